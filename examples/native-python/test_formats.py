"""The formats against the project's own files: golden snapshots, the smallest example of
docs/snapshot-format.md, the golden values of the codec. Run: python3 -m unittest"""

import pathlib
import unittest

import cbor
import snapshot_format as form
from blake3 import Blake3, blake3
from messages import BadMessage, build, parse, parse_order
from snapshot_reader import Damaged, Reader
from snapshot_writer import Writer

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "state-codec/tests/golden"


def read(data, step=None, **callbacks):
    reader = Reader(**callbacks)
    step = step or max(len(data), 1)
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
    reader.finish()
    return reader


class Hashes(unittest.TestCase):
    # The published test vectors: the input is 0, 1, … 250, 0, 1, …
    VECTORS = {
        0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
        1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
        102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
    }

    def test_published_vectors(self):
        for length, expected in self.VECTORS.items():
            data = bytes(index % 251 for index in range(length))
            self.assertEqual(blake3(data).hex(), expected, length)

    def test_it_does_not_matter_in_which_pieces_bytes_come(self):
        data = bytes(index % 251 for index in range(102400))
        for step in (1000, 1024, 16385, 50000):
            hasher = Blake3()
            for start in range(0, len(data), step):
                hasher.update(data[start : start + step])
                hasher.digest()
            self.assertEqual(hasher.digest().hex(), self.VECTORS[102400], step)

    def test_fingerprints(self):
        for path in GOLDEN.glob("*.shape"):
            fingerprint, shape = path.read_text().splitlines()
            section = form.Section(1, "sessions", "session", 2, shape=shape)
            self.assertEqual(section.fingerprint()[::-1].hex(), fingerprint)
            self.assertEqual(section.reads(), f"sessions\tsession\t2\t{fingerprint}")


class Values(unittest.TestCase):
    def test_golden_values(self):
        values = {
            "session@1": {"user": "ann", "seen": 7},
            "session@2": {"user": "ann", "seen": 7, "tags": ["new"]},
            "session@3": {
                "user": {"first": "Ann", "last": "Lee"},
                "seen": 1 << 40,
                "tags": ["new"],
                "plan": {"Trial": [0x18, 0xDF]},
            },
        }
        for name, value in values.items():
            golden = (GOLDEN / f"{name}.cbor").read_bytes()
            found = cbor.decode(golden)
            if name == "session@3":
                value["plan"] = found["plan"]  # what it holds stands in the file alone
            self.assertEqual(found, value)
            self.assertEqual(cbor.encode(value), golden)

    def test_any_value_comes_back(self):
        big = 1 << 64
        for value in [0, 23, 24, 255, 256, 65536, big - 1, big, -1, -25, -big, -big - 1, 1.5, None]:
            self.assertEqual(cbor.decode(cbor.encode(value)), value)
        for value in [True, False, "", "ä" * 300, b"\0\xff", [], [[1], {}], {"a": {1: [None]}}]:
            self.assertEqual(cbor.decode(cbor.encode(value)), value)

    def test_what_is_no_value_is_refused_at_no_cost(self):
        bad = ["", "18", "a1", "9f01ff", "9bffffffffffffffff", "5bffffffffffffffff00", "0000",
               "a200010002", "a18000", "61ff", "c100", "f818", "81" * 200 + "00"]  # fmt: skip
        for data in bad:
            with self.assertRaises(cbor.NotCbor, msg=data):
                cbor.decode(bytes.fromhex(data))


class Snapshots(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.golden = (GOLDEN / "format-1.0.hls").read_bytes()
        text = (ROOT / "docs/snapshot-format.md").read_text()
        example = text.rsplit("## A smallest example", 1)[1].split("```")[1]
        cls.example = bytes.fromhex("".join(line.split("#")[0] for line in example.splitlines()))

    def test_the_golden_snapshot_is_read(self):
        reader = read(self.golden)
        said = (GOLDEN / "format-1.0.txt").read_text()
        self.assertEqual((reader.app, reader.generation, reader.migration), ("shop", 7, 0x11223344))
        self.assertEqual(len(reader.sections), 7)
        for section in reader.sections.values():
            line = next(line for line in said.splitlines() if f"`{section.name}`" in line)
            if section.kind in form.WITH_RECORDS:
                digest = f"{section.sum % (1 << 128):032x}"
                self.assertIn(f"{len(section.entries)} entries, digest {digest}", line)
            else:
                self.assertIn(f"{section.references} references", line)

    def test_it_does_not_matter_in_which_pieces_it_comes(self):
        for step in (1, 7, 1000):
            self.assertEqual(read(self.golden, step).bytes, len(self.golden))

    def test_the_smallest_example_is_written(self):
        writer = Writer("raw", [form.Section(1, "s1", codec=form.RAW)], 0, 1, frame_cap=256)
        writer.freeze()
        writer.entry(form.BULK, 1, 1, b"k", b"v")
        writer.end()
        self.assertEqual(writer.take(), self.example)
        self.assertEqual(read(self.example).sections[1].entries, {b"k": (1, b"v")})

    def test_every_end_that_is_too_early_is_seen(self):
        for length in range(len(self.example)):
            with self.assertRaises(Damaged, msg=length):
                read(self.example[:length])

    def test_every_bit_that_is_flipped_is_seen(self):
        for bit in range(8 * len(self.example)):
            data = bytearray(self.example)
            data[bit // 8] ^= 1 << bit % 8
            with self.assertRaises(Damaged, msg=bit):
                read(data)
        with self.assertRaisesRegex(Damaged, "follow"):
            read(self.example + b"\0")

    def test_changes_and_long_records_are_read_as_they_are_written(self):
        writer = Writer("test", [form.Section(5, "notes")], 3, 2, frame_cap=256)
        for key in (b"a", b"b", b"c"):
            writer.entry(form.BULK, 5, 1, key, b"first")
        writer.round_end(2)
        writer.entry(form.DELTA, 5, 2, b"a", None)
        writer.entry(form.DELTA, 5, 3, b"b", b"x" * 1000)
        writer.round_end(0)
        writer.freeze()
        writer.entry(form.DELTA, 5, 4, b"a", b"back")
        writer.entry(form.DELTA, 5, 5, b"gone", None)
        writer.end()
        rounds = []
        reader = read(writer.take(), 50, applied=rounds.append)
        expected = {b"a": (4, b"back"), b"b": (3, b"x" * 1000), b"c": (1, b"first")}
        self.assertEqual(reader.sections[5].entries, expected)
        self.assertEqual(rounds, [0, 1])

    def test_what_breaks_a_rule_is_refused(self):
        def stale(writer):
            writer.entry(form.BULK, 1, 2, b"k", b"v")
            writer.entry(form.DELTA, 1, 2, b"k", b"w")

        def twice(writer):
            writer.entry(form.BULK, 1, 1, b"k", b"v")
            writer.entry(form.BULK, 1, 2, b"k", b"v")

        def base_again(writer):
            writer.round_end(0)
            writer.entry(form.BULK, 1, 1, b"k", b"v")

        def tombstone_in_base(writer):
            writer.entry(form.BULK, 1, 1, b"k", None)

        def other_state(writer):
            writer.entry(form.BULK, 1, 1, b"k", b"v")
            writer._sums[1] += 1

        def called_off(writer):
            writer.abort(5, "called off by hand")

        for breaks in (stale, twice, base_again, tombstone_in_base, other_state, called_off):
            writer = Writer("test", [form.Section(1, "s")], 0, 1)
            breaks(writer)
            writer.freeze()
            writer.end()
            with self.assertRaises(Damaged, msg=breaks.__name__):
                read(writer.take())
        with self.assertRaisesRegex(Damaged, "by hand"):
            writer = Writer("test", [form.Section(1, "s")], 0, 1)
            called_off(writer)
            read(writer.take())


class Messages(unittest.TestCase):
    def test_the_example_of_the_protocol_is_understood(self):
        text = (ROOT / "docs/protocol.md").read_text().rsplit("## An example", 1)[1]
        lines = [line for line in text.splitlines() if "MESSAGE=" in line]
        self.assertGreater(len(lines), 10)
        for line in lines:
            words = line[line.index("MESSAGE=") :].rpartition("⏎")[0] + "⏎"
            data = words.replace("⏎", "\n").replace("⇥", "\t").encode()
            if " ← " in line:
                parse_order(data, 3 if "3 descriptors" in line else 0)
            else:
                parse(data)

    def test_bad_messages_are_refused(self):
        bad = [b"", b"\n", b"MIGRATION=1\nMESSAGE=FREEZE", b"MESSAGE=FREEZE", b"MESSAGE=DANCE",
               b"MESSAGE=FREEZE\nMIGRATION=-1", b"MESSAGE=FREEZE\nMIGRATION=1\nnonsense",
               b"MESSAGE=\xff", b"MESSAGE=RETIRE\nA B=1", b"MESSAGE=SAVE\nMIGRATION=1",
               b"MESSAGE=RETIRE\n" + b"A=1\n" * 1024]  # fmt: skip
        for data in bad:
            with self.assertRaises(BadMessage, msg=data):
                parse_order(data, 0)
        self.assertEqual(parse_order(b"MESSAGE=RETIRE\n\nNEW=key", 0)["MESSAGE"], "RETIRE")

    def test_a_reason_is_one_line_of_bounded_length(self):
        reason = parse(build("ABORT", MIGRATION=1, REASON="a\nMESSAGE=X " + "ä" * 2000))["REASON"]
        self.assertTrue(reason.startswith("a MESSAGE=X "))
        self.assertLessEqual(len(reason.encode()), 1024)


if __name__ == "__main__":
    unittest.main()
