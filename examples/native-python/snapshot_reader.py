"""Reads a snapshot stream: takes bytes, gives sections with their entries. No I/O.

Checks everything that docs/snapshot-format.md says a reader must check, in its order, for every kind
of section and frame. Keeps the entries of sections with records; of references it keeps the number.
"""

import struct
import zlib

import snapshot_format as form
from blake3 import Blake3


class Damaged(Exception):
    """The stream is not a snapshot, or not one that can be used."""


class Cursor:
    """Takes fields from the front of some bytes; what does not fit is a damaged stream."""

    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def take(self, count):
        if count > len(self.data) - self.at:
            raise Damaged(f"{self.what} ends in the middle of a field")
        self.at += count
        return self.data[self.at - count : self.at]

    def unpack(self, layout):
        layout = struct.Struct(layout)
        return layout.unpack(self.take(layout.size))

    def text(self, longest):
        (length,) = self.unpack("<I")
        if length > longest:
            raise Damaged(f"{self.what} has a text of {length} bytes; at most {longest} may be")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise Damaged(f"{self.what} has a text that is not UTF-8") from error

    def left(self):
        return len(self.data) - self.at

    def done(self):
        if self.left():
            raise Damaged(f"{self.what} is longer than its content")


class Reader:
    """Reads one snapshot. `accept` is called once with the sections; `changed` for each record, with
    section, version, key and value (`None` if the entry was removed); `applied` with the number of
    each round whose changes have all been applied. They may raise `Damaged`."""

    def __init__(self, accept=None, changed=None, applied=None):
        self.accept = accept or (lambda sections: None)
        self.changed = changed or (lambda *record: None)
        self.applied = applied or (lambda number: None)
        self.app = None
        self.migration = self.generation = None
        self.sections = {}
        self.bytes = self.frames = self.rounds = 0
        self.frozen = self.ended = False
        self.frame_cap = 0
        self._next = {}  # the next position of each log
        self._unread = bytearray()
        self._digest = Blake3()
        self._steps = self._read()
        self._wanted = next(self._steps)
        self._continued = None

    def feed(self, data):
        """Takes more of the stream; raises `Damaged` as soon as something is wrong."""
        self._unread += data
        while not self.ended and len(self._unread) >= self._wanted:
            taken = bytes(self._unread[: self._wanted])
            del self._unread[: self._wanted]
            self.bytes += len(taken)
            self._wanted = self._steps.send(taken)
        if self.ended and self._unread:
            raise Damaged("bytes follow the end mark")
        # What is of another kind may be shorter than a header: say so as soon as it is known.
        if not self.bytes and not form.MAGIC.startswith(self._unread[:8]):
            raise Damaged("this is not a snapshot")

    def finish(self):
        """To be called at the end of the input."""
        if not self.ended:
            raise Damaged(f"the stream ends after {self.bytes + len(self._unread)} bytes, "
                          "without its end mark; its writer has failed")  # fmt: skip

    def held(self):
        """How many entries it holds."""
        return sum(len(section.entries) for section in self.sections.values())

    def _read(self):
        """Yields how many bytes it needs, and is sent them."""
        header = yield form.HEADER.size
        extension, manifest_bytes, crc = self._header(header)
        self._digest.update(header)
        if extension:
            data = yield extension
            if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
                raise Damaged("the header's extension is damaged")
            self._digest.update(data)
        manifest = (yield manifest_bytes) if manifest_bytes else b""
        if zlib.crc32(manifest) != crc:
            raise Damaged("the manifest is damaged")
        self._manifest(Cursor(manifest, "the manifest"))
        self._digest.update(manifest)
        self.accept(self.sections)
        while not self.ended:
            data = yield form.FRAME.size
            kind, flags, section, length, shard, crc = self._frame_header(data)
            payload = (yield length) if length else b""
            if zlib.crc32(payload) != crc:
                raise Damaged(f"the payload of frame {self.frames} is damaged")
            if kind != form.END:
                self._digest.update(data)
            self._payload(kind, flags, section, shard, payload)
            if kind != form.END:
                self._digest.update(payload)
            self.frames += 1
        yield 1

    def _header(self, data):
        magic, major, _, length, *names, crc = form.HEADER.unpack(data)
        self.migration, self.generation, _, self.frame_cap, *rest = names
        manifest_bytes, manifest_crc, features = rest
        if magic != form.MAGIC:
            raise Damaged("this is not a snapshot")
        if major != form.MAJOR:
            raise Damaged(f"format {major} is not known here; only {form.MAJOR} is")
        if zlib.crc32(data[:-4]) != crc:
            raise Damaged("the header is damaged")
        extension = length - form.HEADER.size
        if extension < 0 or 0 < extension < 4 or length > form.LONGEST_HEADER_BYTES:
            raise Damaged(f"a header of {length} bytes")
        if self.frame_cap not in form.FRAME_CAPS or manifest_bytes > form.LARGEST_MANIFEST_BYTES:
            raise Damaged("frame cap or length of the manifest is out of range")
        if features:
            raise Damaged("the snapshot needs features that are not known here")
        return extension, manifest_bytes, manifest_crc

    def _manifest(self, cursor):
        self.app = cursor.text(form.LONGEST_NAME_BYTES)
        (count,) = cursor.unpack("<H")
        if count > form.MOST_SECTIONS:
            raise Damaged(f"{count} sections; at most {form.MOST_SECTIONS} may be")
        names = set()
        for _ in range(count):
            fields = cursor.unpack(form.SECTION.format)
            number, kind, flags, codec, attic_of, version, fingerprint, _, _ = fields
            names_of = [cursor.text(form.LONGEST_NAME_BYTES) for _ in range(2)]
            shapes = [cursor.text(form.LONGEST_SHAPE_BYTES) for _ in range(2)]
            section = form.Section(
                number, *names_of, version, *shapes, kind, codec, bool(flags), attic_of
            )
            if not number or not section.name or number in self.sections or section.name in names:
                raise Damaged(f"section {number} {section.name!r} is empty or there twice")
            if not form.VALUE <= kind <= form.ATTIC or flags & ~form.REQUIRED:
                raise Damaged(f"section {section.name!r} is of an unknown kind")
            if fingerprint != section.fingerprint():
                raise Damaged(f"the fingerprint of section {section.name!r} is not its shape's")
            names.add(section.name)
            self.sections[number] = section
        cursor.done()
        for section in self.sections.values():
            of = self.sections.get(section.attic_of)
            fits = of and of.kind in form.WITH_RECORDS and of.kind != form.ATTIC
            if bool(fits) != (section.kind == form.ATTIC) or (section.attic_of and not fits):
                raise Damaged(f"section {section.name!r} is the attic of none")

    def _frame_header(self, data):
        fields = form.FRAME.unpack(data)
        sync, kind, flags, section, length, shard, sequence, payload_crc, crc = fields
        if sync != form.SYNC or zlib.crc32(data[:-4]) != crc:
            raise Damaged(f"the header of frame {self.frames} is damaged")
        if sequence != self.frames:
            raise Damaged(f"frame {sequence} comes where {self.frames} should")
        if length > (self.frame_cap if section else max(self.frame_cap, form.CONTROL_CAP_BYTES)):
            raise Damaged(f"frame {sequence} is longer than the frame cap")
        known = form.BULK <= kind <= form.ABORT
        if flags & ~(form.MORE | form.OPTIONAL) or known == bool(flags & form.OPTIONAL):
            raise Damaged(f"frame {sequence} is of unknown kind {kind}, or its flags are wrong")
        if flags & form.MORE and kind not in (form.BULK, form.DELTA):
            raise Damaged(f"frame {sequence} cannot be continued")
        if kind in form.OF_THE_STREAM and (section or shard):
            raise Damaged(f"frame {sequence} belongs to no section")
        if self._continued and kind != form.ABORT and self._continued[0] != (kind, section, shard):
            raise Damaged(f"frame {sequence} comes in the middle of a record")
        return kind, flags, section, length, shard, payload_crc

    def _payload(self, kind, flags, section, shard, payload):
        if kind in (form.BULK, form.DELTA):
            if kind == form.BULK and self.rounds:
                raise Damaged("a bulk frame after the base")
            section = self._section(section, form.WITH_RECORDS)
            records = self._records(flags & form.MORE, (kind, section.id, shard), payload)
            for record in records or ():
                self._apply(section, kind == form.BULK, *record)
        elif kind == form.ROUND_END:
            cursor = Cursor(payload, "a round end")
            number, *_ = cursor.unpack("<IQQQ")
            cursor.done()
            if number != self.rounds or self.frozen:
                raise Damaged(f"round end {number} comes where it should not")
            self.rounds += 1
            self.applied(number)
        elif kind == form.FREEZE:
            cursor = Cursor(payload, "a freeze")
            (rounds,) = cursor.unpack("<I")
            cursor.done()
            if self.frozen or rounds != self.rounds:
                raise Damaged("a second freeze, or one with a wrong number of rounds")
            self.frozen = True
        elif kind in (form.MEMFD, form.CONNECTION_FRAME):
            section = self._section(
                section, (form.BLOB if kind == form.MEMFD else form.CONNECTION,)
            )
            check_reference(kind, Cursor(payload, "a reference"))
            section.references += 1
        elif kind == form.END:
            self._end(Cursor(payload, "the end"))
        elif kind == form.ABORT:
            words = Cursor(payload, "an abort")
            (reason,) = words.unpack("<H")
            said = words.take(words.left()).decode(errors="replace")
            raise Damaged(f"the writer has called it off ({reason}): {said}")

    def _section(self, number, kinds):
        section = self.sections.get(number)
        if section is None or section.kind not in kinds:
            raise Damaged(f"frame {self.frames} is of no section that could hold it")
        return section

    def _records(self, more, where, payload):
        """The records of a frame, all of them checked; none as long as one is incomplete."""
        alone = bool(self._continued or more)
        if alone:
            if not payload:
                raise Damaged("an empty part of a record")
            whole = self._continued[1] if self._continued else bytearray()
            whole += payload
            if len(whole) > form.LARGEST_ENTRY_BYTES + form.RECORD.size:
                raise Damaged(f"an entry of over {form.LARGEST_ENTRY_BYTES} bytes")
            self._continued = (where, whole) if more else None
            if more:
                return None
            payload = bytes(whole)
        cursor, records = Cursor(payload, "a frame of records"), []
        while cursor.left() or not records:
            start = cursor.at
            version, key_bytes, value_bytes = cursor.unpack(form.RECORD.format)
            key = cursor.take(key_bytes)
            value = None if value_bytes == form.TOMBSTONE else cursor.take(value_bytes)
            if key_bytes > form.LONGEST_KEY_BYTES or len(value or b"") > form.LARGEST_ENTRY_BYTES:
                raise Damaged("an entry that is too long")
            records.append((version, key, value, cursor.data[start : cursor.at]))
        if alone and len(records) != 1:
            raise Damaged("a continued record that is several")
        return records

    def _apply(self, section, base, version, key, value, record):
        held = section.entries.get(key)
        if section.kind == form.VALUE and key or section.kind == form.LOG and len(key) != 8:
            raise Damaged(f"section {section.name!r} has a key that is none of its kind")
        if base and (held or value is None):
            raise Damaged(f"section {section.name!r}: the base has a key twice, or a tombstone")
        if held and version <= held[0]:
            raise Damaged(f"section {section.name!r}: a change is not newer than what it changes")
        if section.kind == form.LOG:
            position = int.from_bytes(key, "little")
            if value is None or held or self._next.get(section.id, position) != position:
                raise Damaged(f"section {section.name!r}: a log only grows, one by one")
            self._next[section.id] = position + 1
        if held:
            section.sum -= form.hash_of(form.record_of(held[0], key, held[1]))
            del section.entries[key]
        if value is not None:
            section.sum += form.hash_of(record)
            section.entries[key] = version, value
        self.changed(section, version, key, value)

    def _end(self, cursor):
        if not self.frozen:
            raise Damaged("an end without a freeze")
        frames, length, count = cursor.unpack("<QQH")
        totals = [cursor.unpack(form.TOTAL.format) for _ in range(count)]
        self._digest.update(cursor.data[: cursor.at])
        digest, magic = cursor.take(32), cursor.take(8)
        cursor.done()
        if magic != form.END_MAGIC or digest != self._digest.digest():
            raise Damaged("the digest of the stream is wrong: it is not what its writer sent")
        if frames != self.frames or length != self.bytes - form.FRAME.size - len(cursor.data):
            raise Damaged("the end mark counts other frames or bytes than were read")
        if [total[0] for total in totals] != list(self.sections):
            raise Damaged("the end mark has other sections than the manifest")
        for section, (_, entries, total) in zip(self.sections.values(), totals):
            held = len(section.entries) or section.references
            expected = (section.sum % (1 << 128)).to_bytes(16, "little")
            if held != entries or expected != total:
                raise Damaged(f"section {section.name!r} holds other entries than its writer's")
        self.ended = True


def check_reference(kind, cursor):
    """Checks the payload of a reference; what it refers to is for others."""
    if kind == form.MEMFD:
        _, _, offset, length, hashed, _, key_bytes = cursor.unpack("<IIQQB32sI")
        if hashed > 1 or offset + length >= 1 << 64 or key_bytes > form.LONGEST_KEY_BYTES:
            raise Damaged("a reference to a large object is out of range")
        cursor.take(key_bytes)
    else:
        cursor.unpack("<QI")
        for _ in range(2):
            (length,) = cursor.unpack("<I")
            cursor.take(length)
    cursor.done()
