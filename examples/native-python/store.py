"""The app's state: tables of entries that remember what has changed, and a gate before them.

Owns what an entry looks like in a snapshot. All changes are made in one thread and are over before
anything else runs; so while the gate is closed, nothing changes.
"""

import asyncio

import cbor
from snapshot_format import Section
from snapshot_reader import Damaged

MOST_ENTRIES = 1_000_000  # a hundred megabytes or so; more belongs in a database
LARGEST_NUMBER = (1 << 64) - 1  # what the shape u64 can hold


class Full(Exception):
    """There is no room for another entry."""


class Table:
    """Entries by key, each with the version that its last change had."""

    def __init__(self, section, fits):
        self.section = section
        self.fits = fits  # whether a value is of the section's shape
        self.entries = {}
        self.changed = None  # while a copy is made: keys whose change has not been sent

    def encoded(self, key):
        """Version, key and value as they stand in a snapshot; no value if the entry is gone."""
        version, value = self.entries.get(key, (None, None))
        return version, cbor.encode(key), None if version is None else cbor.encode(value)


class Store:
    """All tables. `open` says whether the state may be used."""

    def __init__(self):
        counters = Section(1, "counters", "counter", 1, key_shape="str", shape="u64")
        notes = Section(2, "notes", "note", 1, key_shape="str", shape="{text:str,changes:u64}")
        self.counters = Table(counters, is_number)
        self.notes = Table(notes, is_note)
        self.tables = [self.counters, self.notes]
        self.named = {table.section.name: table for table in self.tables}
        self.version = 0  # of the last change; each change has the next
        self.open = asyncio.Event()
        self.given_away = False  # the next generation owns the state: this one is out of date

    async def gate(self):
        """Waits until the state may be used; says whether it is still this generation's."""
        await self.open.wait()
        return not self.given_away

    def get(self, table, key):
        return table.entries.get(key, (0, None))[1]

    def put(self, table, key, value):
        if key not in table.entries and len(table.entries) >= MOST_ENTRIES:
            raise Full
        self.version += 1
        table.entries[key] = self.version, value
        if table.changed is not None:
            table.changed[key] = self.version

    def remove(self, table, key):
        if table.entries.pop(key, None) is None:
            return False
        self.version += 1
        if table.changed is not None:
            table.changed[key] = self.version
        return True

    def track(self, wanted):
        """Begins, or ends, to remember what changes."""
        for table in self.tables:
            table.changed = {} if wanted else None

    def changes(self):
        """How many entries have changed and not been sent."""
        return sum(len(table.changed or ()) for table in self.tables)

    def sections(self):
        return [table.section for table in self.tables]

    def take(self, section, version, key, value):
        """Takes a change over from a snapshot; raises `Damaged` for what is not of the shape."""
        table = self.named.get(section.name)
        if table is None:
            return
        try:
            key, value = cbor.decode(key), None if value is None else cbor.decode(value)
        except cbor.NotCbor as error:
            raise Damaged(f"section {section.name!r}: {error}") from error
        if not isinstance(key, str) or not (value is None or table.fits(value)):
            raise Damaged(f"section {section.name!r}: an entry is not of its shape")
        self.version = max(self.version, version)
        if value is None:
            table.entries.pop(key, None)
        else:
            table.entries[key] = version, value

    def accept(self, sections):
        """Refuses what this program does not understand, before anything of it is decoded."""
        for section in sections.values():
            table = self.named.get(section.name)
            ours = table and table.section
            if ours is None and section.required:
                raise Damaged(f"this program has no use for section {section.name!r}, "
                              "which must not be lost; start a version that has")  # fmt: skip
            if ours and ours.identity() != section.identity():
                raise Damaged(f"section {section.name!r} is {section.schema}@{section.version} "
                              f"of shape {section.shape}; this program reads {ours.schema}@"
                              f"{ours.version} of shape {ours.shape}")  # fmt: skip


def is_number(value):
    return type(value) is int and 0 <= value <= LARGEST_NUMBER


def is_note(value):
    return (
        isinstance(value, dict)
        and value.keys() == {"text", "changes"}
        and isinstance(value["text"], str)
        and is_number(value["changes"])
    )
