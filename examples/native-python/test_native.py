"""A native app's conduct when all goes well: handovers, saving, restoring; with `driver` in the
supervisor's part. Run: python3 -m unittest"""

import os
import unittest

from case import NOTES, Case, Clients
from driver import Migration, eventually
from messages import build
from snapshot_reader import Reader


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
        self.assertLess(frozen["AT_USEC"], yielded["AT_USEC"])
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
        reading, writing = os.pipe()
        old.order("SAVE", reading, writing, MIGRATION=9)  # one descriptor too many
        old.order("COMMIT", MIGRATION=9)
        old.order("FREEZE", MIGRATION=9)
        eventually("its descriptors are closed", old.idle)
        self.assertTrue(old.silent())
        self.handed_over(old)

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


if __name__ == "__main__":
    unittest.main()
