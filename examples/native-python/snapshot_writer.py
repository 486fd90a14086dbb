"""Writes a snapshot stream: takes entries, gives bytes. No I/O, no thought of when to send what."""

import struct
import zlib

import snapshot_format as form
from blake3 import Blake3


class Writer:
    """Writes one snapshot. Bytes that are ready are taken with `take`."""

    def __init__(self, app, sections, migration, generation, frame_cap=form.FRAME_CAP_BYTES):
        self.frame_cap = frame_cap
        self.frames = self.bytes = self.rounds = 0
        self._digest = Blake3()
        self._ready = bytearray()
        self._open = None  # kind and section of the frame that records are being added to
        self._payload = bytearray()
        self._hashes = {section.id: {} for section in sections}  # of what was sent, by key
        self._sums = dict.fromkeys(self._hashes, 0)
        self._round_records = self._round_bytes = 0
        manifest = form.text(app) + struct.pack("<H", len(sections))
        for one in sections:
            manifest += form.SECTION.pack(
                one.id, one.kind, form.REQUIRED if one.required else 0, one.codec, one.attic_of,
                one.version, one.fingerprint(), 0, 0,
            )  # fmt: skip
            for words in (one.name, one.schema, one.key_shape, one.shape):
                manifest += form.text(words)
        header = form.HEADER.pack(
            form.MAGIC, form.MAJOR, form.MINOR, form.HEADER.size, migration, generation, bytes(20),
            frame_cap, len(manifest), zlib.crc32(manifest), 0, 0,
        )[:-4]  # fmt: skip
        self._emit(header + struct.pack("<I", zlib.crc32(header)) + manifest)

    def entry(self, kind, section, version, key, value):
        """Adds an entry in a bulk or delta frame; `None` as a value removes it."""
        record = form.record_of(version, key, value)
        hashes = self._hashes[section]
        self._sums[section] -= hashes.pop(key, 0)
        if value is not None:
            hashes[key] = form.hash_of(record)
            self._sums[section] += hashes[key]
        self._round_records += 1
        self._round_bytes += len(record)
        if self._open != (kind, section) or len(self._payload) + len(record) > self.frame_cap:
            self._seal()
        if len(record) > self.frame_cap:
            parts = range(0, len(record), self.frame_cap)
            for start in parts:
                part = record[start : start + self.frame_cap]
                self._frame(kind, section, part, 0 if start == parts[-1] else form.MORE)
            return
        self._open = kind, section
        self._payload += record

    def round_end(self, dirty):
        """Ends the base or a round; `dirty` entries are known to have changed meanwhile."""
        self._seal()
        payload = struct.pack("<IQQQ", self.rounds, self._round_records, self._round_bytes, dirty)
        self._frame(form.ROUND_END, 0, payload)
        self.rounds += 1
        self._round_records = self._round_bytes = 0

    def freeze(self):
        self._seal()
        self._frame(form.FREEZE, 0, struct.pack("<I", self.rounds))

    def end(self):
        self._seal()
        payload = struct.pack("<QQH", self.frames, self.bytes, len(self._sums))
        for section, total in self._sums.items():
            held = len(self._hashes[section])
            payload += form.TOTAL.pack(section, held, (total % (1 << 128)).to_bytes(16, "little"))
        self._digest.update(payload)
        self._frame(form.END, 0, payload + self._digest.digest() + form.END_MAGIC)

    def abort(self, reason, words):
        """Makes all that was written void."""
        self._open, self._payload = None, bytearray()
        message = words.encode()[:1024].decode(errors="ignore").encode()
        self._frame(form.ABORT, 0, struct.pack("<H", reason) + message)

    def live(self):
        """How many entries the snapshot holds so far."""
        return sum(map(len, self._hashes.values()))

    def waiting(self):
        """How many bytes are ready."""
        return len(self._ready)

    def take(self):
        """The bytes that are ready to be sent."""
        ready, self._ready = bytes(self._ready), bytearray()
        return ready

    def _seal(self):
        if self._open:
            payload, self._payload = bytes(self._payload), bytearray()
            (kind, section), self._open = self._open, None
            self._frame(kind, section, payload)

    def _frame(self, kind, section, payload, flags=0):
        header = form.FRAME.pack(
            form.SYNC, kind, flags, section, len(payload), 0, self.frames, zlib.crc32(payload), 0
        )[:-4]
        self._emit(header + struct.pack("<I", zlib.crc32(header)) + payload)
        self.frames += 1

    def _emit(self, data):
        self._digest.update(data)
        self.bytes += len(data)
        self._ready += data
