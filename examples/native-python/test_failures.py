"""A native app's conduct when something goes wrong, at each step of a handover; with `driver` in the
supervisor's part. Run: python3 -m unittest"""

import os
import socket
import time
import unittest

import cbor
import snapshot_format as form
from case import Case
from driver import PIECE_BYTES, Migration, eventually, pair
from messages import build
from outgoing import Old
from snapshot_writer import Writer
from store import Store


class Failures(Case):
    """One handover after the other goes wrong, at each step, and in each way."""

    STEPS = ["copying", "converged", "freezing", "frozen"]

    def setUp(self):
        super().setUp()
        self.old = self.service.first()
        self.fill()
        self.count = 0

    def at(self, step):
        """A migration that stands at this step."""
        new = self.service.start()
        migration = Migration(self.old, new, held=step in ("copying", "freezing"))
        if step != "copying":
            if migration.relay:
                migration.relay.flow()
            migration.converged()
        if step == "freezing":
            migration.relay.hold()
            # More than the pipe has room for is left to send.
            self.write("y" * 1000)
        if step in ("freezing", "frozen"):
            migration.freeze()
        if step == "frozen":
            self.old.report("FROZEN")
            new.report("READY")
        return migration

    def old_one_is_unharmed(self, migration, report):
        """It has said what it must, serves, has lost nothing, and holds nothing any more."""
        if report:
            self.assertEqual(self.old.report(report)["MIGRATION"], migration.number)
        self.count += 1
        self.assertEqual(self.add(), self.count)
        self.serves(self.old)
        if migration.relay:
            migration.relay.end()
        self.assertTrue(self.old.silent())
        eventually("its descriptors are closed", self.old.idle)

    def test_it_is_called_off(self):
        for step in self.STEPS:
            with self.subTest(step):
                migration = self.at(step)
                migration.abort()
                migration.new.ended()
                self.old_one_is_unharmed(migration, "THAWED" if step[0] == "f" else None)
        self.handed_over(self.old)
        self.assertEqual(self.add(), self.count + 1)

    def test_the_new_one_dies(self):
        for step in self.STEPS:
            with self.subTest(step):
                migration = self.at(step)
                migration.new.kill()
                if migration.relay:
                    migration.relay.flow()
                self.old_one_is_unharmed(migration, "THAWED" if step[0] == "f" else "FAILED")
        self.handed_over(self.old)
        self.assertEqual(self.add(), self.count + 1)

    def test_the_supervisor_dies(self):
        """The new one ends, and the old one serves on."""
        for step in self.STEPS:
            with self.subTest(step):
                migration = self.at(step)
                for generation in (self.old, migration.new):
                    generation.channel.shutdown(2)
                migration.new.ended()
                self.count += 1
                self.assertEqual(self.add(), self.count)
                self.serves(self.old)
                if migration.relay:
                    migration.relay.end()
                os.kill(self.old.pid, 15)
                self.assertEqual(self.old.ended(), 0)
                self.old = self.service.first()
                self.fill()
                self.count = 0

    def test_the_old_one_dies(self):
        for step in ("copying", "converged"):
            migration = self.at(step)
            self.old.kill()
            if migration.relay:
                migration.relay.flow()
            migration.new.report("REJECT")
            migration.new.ended()
            self.old = self.service.first()
            self.fill()
        self.add()
        migration = self.at("frozen")
        self.old.kill()
        migration.new.order("COMMIT", MIGRATION=migration.number, ALONE=1)
        migration.new.report("COMMITTED")
        self.assertEqual(self.add(), 2)
        self.serves(migration.new, self.old.number)

    def test_the_old_one_dies_at_the_commit(self):
        self.add()
        migration = self.at("frozen")
        os.kill(migration.new.pid, 19)  # so that it finds all of it at once
        migration.new.order("COMMIT", MIGRATION=migration.number)
        self.old.kill()
        migration.new.order("COMMIT", MIGRATION=migration.number, ALONE=1)
        os.kill(migration.new.pid, 18)
        migration.new.report("COMMITTED")
        self.assertEqual(self.add(), 2)
        self.serves(migration.new, self.old.number)

    def test_a_freeze_ends_by_itself(self):
        new = self.service.start()
        migration = Migration(self.old, new, freeze_usec=200_000)
        frozen, _ = migration.frozen()
        client = self.service.client()
        client.request("POST", "/counters/k")  # waits, and is answered after the thaw
        thawed = self.old.report("THAWED")
        self.assertEqual(client.getresponse().read(), b"1")
        client.close()
        self.count += 1
        lasted_usec = thawed["AT_USEC"] - frozen["AT_USEC"]
        self.assertGreaterEqual(lasted_usec, 200_000)
        # A commit that comes now comes too late, and must not be.
        new.order("COMMIT", MIGRATION=migration.number)
        new.ended()
        self.assertTrue(new.silent())
        self.old_one_is_unharmed(migration, None)

    def test_a_commit_at_the_deadline_is_one_or_is_none(self):
        for _ in range(4):
            new = self.service.start()
            migration = Migration(self.old, new, freeze_usec=50_000)
            frozen, _ = migration.frozen()
            moment = (frozen["AT_USEC"] + 50_000) / 1e6 - 0.0003
            while time.clock_gettime(time.CLOCK_MONOTONIC) < moment:
                pass
            new.order("COMMIT", MIGRATION=migration.number)
            data = self.old.channel.recv(PIECE_BYTES)
            if b"MESSAGE=THAWED" in data:
                new.ended()
                self.assertTrue(new.silent())
            else:
                self.assertIn(b"MESSAGE=YIELDED", data)
                new.report("COMMITTED")
                self.old.order("RETIRE")
                self.assertEqual(self.old.ended(), 0)
                self.old = new
            self.count += 1
            self.assertEqual(self.add(), self.count)

    def test_a_rehearsal_changes_nothing(self):
        new = self.service.start()
        migration = Migration(self.old, new, purpose="rehearsal")
        migration.frozen()
        self.old_one_is_unharmed(migration, None)
        migration.abort()
        new.ended()
        self.handed_over(self.old)

    def test_a_retire_in_a_freeze_thaws_and_ends(self):
        migration = self.at("frozen")
        self.old.order("RETIRE")
        self.old.report("THAWED")
        self.assertEqual(self.old.ended(), 0)
        migration.abort(migration.new)
        migration.new.ended()

    def test_a_second_copy_is_refused_and_disturbs_nothing(self):
        migration = self.at("copying")
        reading, writing = os.pipe()
        os.close(reading)
        lifelines = [pair(kind)[0] for kind in (1, 1)]
        fields = {"TO": 9, "PURPOSE": "handover", "PAUSE_USEC": 1, "FREEZE_USEC": 1}
        self.old.order("SEND", writing, *lifelines, MIGRATION=99, **fields)
        self.assertEqual(self.old.report("FAILED")["MIGRATION"], 99)
        self.old.order("SAVE", self.file(), MIGRATION=98)
        self.assertEqual(self.old.report("FAILED")["MIGRATION"], 98)
        migration.relay.flow()
        migration.whole()
        migration.relay.end()
        self.assertEqual(self.old.ended(), 0)
        self.serves(migration.new, self.old.number)

    def test_what_the_new_one_cannot_read_is_not_sent(self):
        new = self.service.start()
        reads = [line for line in new.hello["READS"] if not line.startswith("notes")]
        migration = Migration(self.old, new, reads=reads)
        failed = self.old.report("FAILED")
        self.assertIn("notes", failed["REASON"])
        new.report("REJECT")
        new.ended()
        self.old_one_is_unharmed(migration, None)


class Streams(Case):
    """Streams that the driver writes itself, to a new generation."""

    def receive(self, data, migration=1):
        """Gives a new generation a stream, whole; gives the generation and its lifeline's other
        end."""
        new = self.service.start()
        reading, writing = os.pipe()
        (lifeline, theirs), (asks, answers) = pair(5), pair(1)
        new.order("RECEIVE", reading, theirs, answers, MIGRATION=migration, FROM=1)
        os.close(asks)
        try:
            os.write(writing, data)
        except BrokenPipeError:
            pass  # it has seen enough
        os.close(writing)
        os.close(lifeline)
        return new

    def snapshot(self, *more, entries=3):
        sections = [*Store().sections(), *more]
        writer = Writer("native-python", sections, 1, 1)
        for number in range(entries):
            key = cbor.encode(f"k{number}")
            writer.entry(form.BULK, 1, number + 1, key, cbor.encode(number))
        writer.round_end(0)
        writer.freeze()
        writer.end()
        return writer.take()

    def rejected(self, data, **kwargs):
        new = self.receive(data, **kwargs)
        reason = new.report("REJECT")["REASON"]
        new.ended()
        return reason

    def test_damage_is_refused(self):
        whole = self.snapshot()
        for place in (0, 30, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
            data = bytearray(whole)
            data[place] ^= 4
            with self.subTest(place):
                self.assertIn("damaged" if 8 < place < len(whole) - 20 else "", self.rejected(data))
        self.assertIn("without its end mark", self.rejected(whole[:-40]))
        self.assertIn("follow", self.rejected(whole + b"x"))
        self.assertIn("of migration 1", self.rejected(whole, migration=2))

    def test_what_is_not_understood_is_refused(self):
        unknown = form.Section(9, "carts", "cart", 1, key_shape="str", shape="u64")
        self.assertIn("'carts'", self.rejected(self.snapshot(unknown)))
        unknown.required = False
        new = self.receive(self.snapshot(unknown))
        self.assertEqual(new.report("READY")["ENTRIES"], 3)
        new.order("COMMIT", MIGRATION=1, ALONE=1)
        new.report("COMMITTED")
        self.assertEqual(self.text("GET", "/counters/k2"), "2")

    def test_another_shape_is_refused(self):
        writer = Writer("x", [form.Section(1, "notes", "note", 2, "str", "{text:str}")], 1, 1)
        writer.freeze()
        writer.end()
        self.assertIn("{text:str,changes:u64}", self.rejected(writer.take()))
        writer = Writer("x", Store().sections(), 1, 1)
        writer.freeze()
        writer.entry(form.BULK, 1, 1, cbor.encode("k"), cbor.encode("not a number"))
        writer.end()
        self.assertIn("counters", self.rejected(writer.take()))

    def test_other_digests_are_refused(self):
        writer = Writer("x", Store().sections(), 1, 1)
        writer.freeze()
        writer._sums[1] += 1  # as if one change had not been sent
        writer.end()
        self.assertIn("other entries", self.rejected(writer.take()))


class Lifeline(unittest.IsolatedAsyncioTestCase):
    async def test_a_commit_between_the_look_and_the_end_of_the_lifeline_is_refused(self):
        """Nothing from outside can make this happen in time, so the look itself does."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        old = Old(None, None, None, 1)
        old.lifeline, old.outcome = ours, None
        listen = old.listen

        def look():
            said = listen()
            with self.assertRaises(BrokenPipeError):
                theirs.send(build("COMMITTED"))
            return said

        old.listen = look
        old.happens = lambda event: setattr(old, "outcome", event)
        theirs.send(build("APPLIED", ROUND=1))
        old.resolve()
        self.assertEqual(old.outcome, "ours")
        ours.close()
        theirs.close()


if __name__ == "__main__":
    unittest.main()
