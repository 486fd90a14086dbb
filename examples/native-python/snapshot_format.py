"""The layout of the snapshot stream: numbers and structures of docs/snapshot-format.md.

Owns what writer and reader share. Nothing here reads or writes.
"""

import struct
import sys
from dataclasses import dataclass, field

from blake3 import blake3

try:
    from xxhash import xxh3_128_digest
except ImportError:
    sys.exit("the module xxhash is missing; install it: apt-get install python3-xxhash")

MAGIC = b"\x89HLS\r\n\x1a\n"
END_MAGIC = b"\n\x1a\n\rSLH\x89"
SYNC = b"HLF1"
MAJOR, MINOR = 1, 0
HEADER = struct.Struct("<8sHHIQQ20sIIIII")
FRAME = struct.Struct("<4sBBHIIQII")
RECORD = struct.Struct("<QII")
SECTION = struct.Struct("<HBBHHI16sQQ")
TOTAL = struct.Struct("<HQ16s")
TOMBSTONE = 0xFFFFFFFF

VALUE, MAP, LOG, BLOB, CONNECTION, ATTIC = range(1, 7)
WITH_RECORDS = (VALUE, MAP, LOG, ATTIC)
BULK, DELTA, ROUND_END, FREEZE, MEMFD, CONNECTION_FRAME, END, ABORT = range(1, 9)
OF_THE_STREAM = (ROUND_END, FREEZE, END, ABORT)
MORE, OPTIONAL = 1, 2
REQUIRED = 1
RAW, CBOR = 0, 3

FRAME_CAP_BYTES = 16 * 1024  # small, for blake3 in Python takes 3 ms for it, in the serving thread
CONTROL_CAP_BYTES = 32768
FRAME_CAPS = range(256, 1048577)
LONGEST_HEADER_BYTES = 4096
LARGEST_MANIFEST_BYTES = 1048576
MOST_SECTIONS = 1024
LONGEST_NAME_BYTES = 255
LONGEST_SHAPE_BYTES = 65536
LONGEST_KEY_BYTES = 65536
LARGEST_ENTRY_BYTES = 16 * 1024 * 1024  # key and value; the least that a reader should accept


@dataclass
class Section:
    """One section of a manifest, and in a reader what it holds."""

    id: int
    name: str
    schema: str = ""
    version: int = 0
    key_shape: str = ""
    shape: str = ""
    kind: int = MAP
    codec: int = CBOR
    required: bool = True
    attic_of: int = 0
    entries: dict = field(default_factory=dict)  # key: (version, value), or what a subclass keeps
    references: int = 0
    sum: int = 0

    def fingerprint(self):
        return blake3(self.shape.encode())[:16]

    def reads(self):
        """How the handover protocol announces that this schema can be read."""
        fingerprint = self.fingerprint()[::-1].hex()
        return f"{self.name}\t{self.schema}\t{self.version}\t{fingerprint}"

    def identity(self):
        """All that must be the same for two programs to mean the same."""
        return self.kind, self.codec, self.schema, self.version, self.key_shape, self.shape


def hash_of(record):
    """What one entry adds to the digest of its section."""
    return int.from_bytes(xxh3_128_digest(record), "big")


def record_of(version, key, value):
    """The bytes of a record; `None` as a value stands for a removed entry."""
    if value is None:
        return RECORD.pack(version, len(key), TOMBSTONE) + key
    return RECORD.pack(version, len(key), len(value)) + key + value


def text(string):
    data = string.encode()
    return struct.pack("<I", len(data)) + data
