"""A native app's conduct in the handover protocol, with `driver` in the supervisor's part: whole
handovers, and one that goes wrong at each of its steps. Run: python3 -m unittest"""

import os
import threading
import time
import unittest

import cbor
import snapshot_format as form
from driver import PIECE_BYTES, Migration, Service, eventually, pair
from messages import build
from snapshot_reader import Reader
from snapshot_writer import Writer
from store import Store

NOTES = 200  # of a kilobyte each: more than a held stream has room for
KEYS = 10
CLIENTS = 4


class Clients:
    """Clients that add to counters without a pause and without a second try."""

    def __init__(self, service):
        self.service, self.stopping = service, threading.Event()
        self.acknowledged, self.failures = dict.fromkeys(range(KEYS), 0), []
        self.answers, self.lock = 0, threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def run(self, turn):
        client = self.service.client()
        while not self.stopping.is_set():
            turn += 1
            try:
                # Half of them keep their connection as long as the service does.
                headers = {"Connection": "close"} if turn % 8 < 4 else {}
                client.request("POST", f"/counters/{turn % KEYS}", headers=headers)
                answer = client.getresponse()
                answer.read()
                if answer.status != 200:
                    raise AssertionError(f"status {answer.status}")
            except Exception as error:
                self.failures.append(repr(error))
                return
            with self.lock:
                self.acknowledged[turn % KEYS] += 1
                self.answers += 1
        client.close()

    def more(self, count=50):
        """Waits until so many more have been answered."""
        wanted = self.answers + count
        eventually("more answers", lambda: self.answers >= wanted or self.failures)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return self.acknowledged


class Case(unittest.TestCase):
    def setUp(self):
        self.service = Service()
        self.addCleanup(self.service.close)
        self.text = self.service.text

    def add(self, key="k"):
        return int(self.text("POST", f"/counters/{key}"))

    def fill(self):
        for number in range(NOTES):
            self.text("PUT", f"/notes/{number}", "x" * 1000)

    def serves(self, generation, former=0):
        said = self.text("GET", "/hello")
        self.assertEqual(said, f"hello, generation={generation.number}, oldgeneration={former}\n")

    def handed_over(self, old):
        """A whole handover to a new generation."""
        new = self.service.start()
        Migration(old, new).whole()
        self.assertEqual(old.ended(), 0)
        self.serves(new, old.number)
        return new

    def file(self):
        return os.open(f"{self.service.directory.name}/state", os.O_RDWR | os.O_CREAT | os.O_TRUNC)


class Handovers(Case):
    def test_nothing_is_accepted_before_the_state_is_there(self):
        new = self.service.start()
        self.assertEqual(new.hello["PROTOCOL"], 1)
        client = self.service.client()
        client.request("POST", "/counters/k")
        new.order("BEGIN", NEW_KEY="is passed over")
        new.ready()
        self.assertEqual(client.getresponse().read(), b"1")
        client.close()

    def test_everything_that_changed_meanwhile_arrives(self):
        old = self.service.first()
        self.fill()
        new = self.service.start()
        migration = Migration(old, new, held=True)
        # The base is under way and cannot end: these are changes of what was sent and what was not.
        for number in (0, 1, NOTES - 1):
            self.text("DELETE", f"/notes/{number}")
        self.text("PUT", "/notes/1", "back")
        self.text("PUT", "/notes/2", "other")
        self.text("PUT", "/notes/short-lived", "a")
        self.text("DELETE", "/notes/short-lived")
        self.add()
        migration.relay.flow()
        migration.converged()
        # These come with the freeze alone.
        self.text("DELETE", "/notes/3")
        self.text("PUT", "/notes/4", "late")
        self.add()
        migration.freeze()
        frozen, ready = old.report("FROZEN"), new.report("READY")
        self.assertGreaterEqual(frozen["ROUNDS"], 2)
        self.assertEqual(frozen["BYTES"], ready["BYTES"])
        self.assertEqual(ready["ENTRIES"], NOTES - 3 + 1)
        committed, yielded = migration.commit()
        self.assertLess(frozen["AT_USEC"], committed["AT_USEC"])
        self.assertLess(committed["AT_USEC"], yielded["AT_USEC"])
        old.order("RETIRE")
        self.assertEqual(old.ended(), 0)
        for number in (0, 3, NOTES - 1, "short-lived"):
            self.assertEqual(self.service.ask("GET", f"/notes/{number}")[0], 404, number)
        expected = {1: "back", 2: "other", 4: "late", 5: "x" * 1000}
        for number, note in expected.items():
            self.assertEqual(self.text("GET", f"/notes/{number}"), note)
        self.assertEqual(self.text("GET", "/counters/k"), "2")
        self.serves(new, old.number)
        migration.relay.end()
        # What went through the pipe is a snapshot of this migration, to the last byte.
        reader = Reader()
        reader.feed(migration.relay.carried)
        reader.finish()
        self.assertEqual((reader.migration, reader.generation), (migration.number, old.number))

    def test_each_acknowledged_increment_is_there_once(self):
        serving = self.service.first()
        clients = Clients(self.service)
        try:
            for _ in range(4):
                clients.more()
                serving = self.handed_over(serving)
            clients.more()
        finally:
            acknowledged = clients.stop()
        self.assertEqual(clients.failures, [])
        for key, count in acknowledged.items():
            self.assertEqual(int(self.text("GET", f"/counters/{key}")), count, key)

    def test_a_request_that_the_old_one_has_read_is_answered_by_the_new_one(self):
        old = self.service.first()
        self.add()
        client = self.service.client()
        client.request("GET", "/counters/k")
        self.assertEqual(client.getresponse().read(), b"1")
        new = self.service.start()
        migration = Migration(old, new)
        migration.frozen()
        client.request("POST", "/counters/k")
        migration.commit()
        answer = client.getresponse()
        self.assertEqual((answer.read(), answer.headers["Connection"]), (b"2", "close"))
        old.order("RETIRE")
        self.assertEqual(old.ended(), 0)
        self.assertEqual(self.add(), 3)
        client.close()

    def test_a_retire_that_overtakes_the_lifeline_is_not_forgotten(self):
        old = self.service.first()
        new = self.service.start()
        migration = Migration(old, new)
        migration.frozen()
        os.kill(old.pid, 19)  # so that it finds both at once
        new.order("COMMIT", MIGRATION=migration.number)
        new.report("COMMITTED")
        old.order("RETIRE")
        os.kill(old.pid, 18)
        old.report("YIELDED")
        self.assertEqual(old.ended(), 0)
        self.serves(new, old.number)

    def test_sigterm_lets_it_finish(self):
        old = self.service.first()
        client = self.service.client()
        client.request("POST", "/counters/k")
        self.assertEqual(client.getresponse().read(), b"1")
        os.kill(old.pid, 15)
        client.request("POST", "/counters/k")  # at once: the connection is not closed under it
        answer = client.getresponse()
        self.assertEqual((answer.read(), answer.headers["Connection"]), (b"2", "close"))
        self.assertEqual(old.ended(), 0)
        client.close()

    def test_what_is_no_order_is_passed_over(self):
        old = self.service.first()
        for data in (b"MESSAGE=DANCE\n", b"nonsense", b"MESSAGE=SEND\nMIGRATION=1\n", b"\xff"):
            old.send(data)
        held = old.descriptors()
        reading, writing = os.pipe()
        old.order("SAVE", reading, writing, MIGRATION=9)  # one descriptor too many
        old.order("COMMIT", MIGRATION=9)
        old.order("FREEZE", MIGRATION=9)
        self.handed_over_after(old, held)

    def handed_over_after(self, old, held):
        eventually("its descriptors are closed", lambda: old.descriptors() == held)
        self.assertTrue(old.silent())
        self.handed_over(old)


class Failures(Case):
    """One handover after the other goes wrong, at each step, and in each way."""

    STEPS = ["copying", "converged", "freezing", "frozen"]

    def setUp(self):
        super().setUp()
        self.old = self.service.first()
        self.fill()
        self.count = 0
        self.held = self.old.descriptors()

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
            for number in range(100):
                self.text("PUT", f"/notes/{number}", "y" * 1000)
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
        eventually("its descriptors are closed", lambda: self.old.descriptors() == self.held)

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


class Saving(Case):
    def saved(self, order, old):
        file = self.file()
        kept = os.dup(file)
        os.lseek(file, 0, 0)
        old.order(order, file, MIGRATION=5)
        return kept

    def check(self, kept, report, generation):
        with open(kept, "rb") as file:
            file.seek(0)
            data = file.read()
        reader = Reader()
        reader.feed(data)
        reader.finish()
        self.assertEqual((report["BYTES"], report["ENTRIES"]), (len(data), reader.held()))
        self.assertEqual((reader.migration, reader.generation), (0, generation.number))
        return data

    def restore(self, data):
        path = f"{self.service.directory.name}/restored"
        with open(path, "wb") as file:
            file.write(data)
        new = self.service.start()
        new.order("RESTORE", os.open(path, os.O_RDONLY), MIGRATION=6)
        return new

    def test_a_snapshot_is_saved_while_it_serves_and_can_be_restored(self):
        old = self.service.first()
        self.fill()
        clients = Clients(self.service)
        try:
            clients.more()
            kept = self.saved("SAVE", old)
            data = self.check(kept, old.report("SAVED"), old)
            clients.more()
        finally:
            clients.stop()
        self.assertEqual(clients.failures, [])
        self.serves(old)
        old.kill()
        new = self.restore(data)
        self.assertGreater(new.report("READY")["ENTRIES"], NOTES)
        self.assertTrue(new.silent())
        new.order("COMMIT", MIGRATION=6, ALONE=1)
        new.report("COMMITTED")
        new.ready()
        self.serves(new, old.number)
        self.assertEqual(self.text("GET", "/notes/7"), "x" * 1000)
        self.handed_over(new)

    def test_stop_finishes_first_and_saves_what_was_last(self):
        old = self.service.first()
        client = self.service.client()
        client.request("POST", "/counters/k")
        client.getresponse().read()
        kept = self.saved("STOP", old)
        client.request("POST", "/counters/k")  # on a connection that it has
        self.assertEqual(client.getresponse().read(), b"2")
        client.close()
        data = self.check(kept, old.report("SAVED"), old)
        self.assertEqual(old.ended(), 0)
        new = self.restore(data)
        new.report("READY")
        new.order("COMMIT", MIGRATION=6, ALONE=1)
        new.report("COMMITTED")
        self.assertEqual(self.add(), 3)

    def test_a_damaged_file_is_refused(self):
        for data in (b"", b"not a snapshot", b"\x89HLS\r\n\x1a\n" + bytes(100)):
            new = self.restore(data)
            new.report("REJECT")
            new.ended()

    def test_a_file_that_cannot_be_written_is_told(self):
        old = self.service.first()
        old.order("SAVE", os.open("/dev/full", os.O_WRONLY), MIGRATION=5)
        self.assertIn("not saved", old.report("FAILED")["REASON"])
        self.assertEqual(self.add(), 1)


class Datagrams(Case):
    def test_an_order_for_another_migration_is_left_over(self):
        old, new = self.service.first(), self.service.start()
        migration = Migration(old, new)
        migration.converged()
        for generation in (old, new):
            generation.send(build("ABORT", MIGRATION=migration.number + 7))
        migration.freeze()
        old.report("FROZEN")
        new.report("READY")
        migration.commit()
        self.serves(new, old.number)


if __name__ == "__main__":
    unittest.main()
