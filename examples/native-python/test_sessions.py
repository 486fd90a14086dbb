"""Sessions over handovers: in the middle of a line, in several generations, and where they cannot move.
Run: python3 -m unittest test_sessions"""

import asyncio
import socket
import unittest
from contextlib import suppress

import chat
import moving
from case import Case
from driver import DEADLINE_S, Migration
from messages import build

LINES = 5


class Client:
    """A client that never connects again."""

    def __init__(self, service):
        address = service.chat.getsockname()
        self.socket = socket.create_connection(address, timeout=DEADLINE_S)
        self.lines = self.socket.makefile("r", newline="\n")

    def send(self, text):
        self.socket.sendall(text.encode())

    def line(self):
        return self.lines.readline().rstrip("\n")

    def close(self):
        self.lines.close()
        self.socket.close()


class Sessions(Case):
    def client(self):
        client = Client(self.service)
        self.addCleanup(client.close)
        client.send("NAME ann\n")
        self.assertEqual(client.line(), "OK ann")
        return client

    def test_sessions_go_on_in_the_middle_of_a_line(self):
        serving = self.service.first()
        clients = [self.client() for _ in range(LINES)]
        silent = Client(self.service)
        self.addCleanup(silent.close)
        for turn in range(1, 5):
            for client in clients:
                client.send(f"SAY first {turn}\nSAY sec")
                said = f"ann #{2 * turn - 1} generation={serving.number} first {turn}"
                self.assertEqual(client.line(), said)
            new = self.service.start()
            Migration(serving, new).whole()
            for client in clients:
                client.send("ond\n")
                said = f"ann #{2 * turn} generation={new.number} second"
                self.assertEqual(client.line(), said)
            self.assertEqual(serving.ended(), 0)
            serving = new
        silent.send("NAME bob\nSAY hi\n")
        self.assertEqual(silent.line(), "OK bob")
        self.assertEqual(silent.line(), f"bob #1 generation={serving.number} hi")

    def test_the_supervisor_is_told_how_many_have_moved(self):
        old = self.service.first()
        clients = [self.client() for _ in range(LINES)]
        new = self.service.start()
        migration = Migration(old, new)
        migration.frozen()
        migration.commit()
        moved = old.report("MOVED")
        self.assertEqual((moved["MOVED"], moved["LEFT"]), (f"session:{LINES}", "http/1:0,session:0"))
        old.order("RETIRE")
        gone = old.report("GONE")
        self.assertEqual((gone["MOVED"], gone["CUT"]), (f"session:{LINES}", 0))
        self.assertEqual(old.ended(), 0)
        for client in clients:
            client.send("SAY hi\n")
            self.assertEqual(client.line(), f"ann #1 generation={new.number} hi")

    def test_what_is_said_while_the_state_stands_still_is_answered_once(self):
        old = self.service.first()
        client = self.client()
        new = self.service.start()
        migration = Migration(old, new)
        migration.frozen()
        client.send("SAY a\nSAY b\n")
        migration.commit()
        self.assertEqual(client.line(), f"ann #1 generation={new.number} a")
        self.assertEqual(client.line(), f"ann #2 generation={new.number} b")

    def test_a_handover_that_is_called_off_leaves_sessions_where_they_are(self):
        old = self.service.first()
        client = self.client()
        new = self.service.start()
        migration = Migration(old, new)
        migration.frozen()
        client.send("SAY a\n")
        migration.abort()
        old.report("THAWED")
        self.assertEqual(client.line(), f"ann #1 generation={old.number} a")

    def test_a_generation_that_knows_no_sessions_gets_none(self):
        old = self.service.first()
        client = self.client()
        new = self.service.start()
        reads = [line for line in new.hello["READS"] if not line.startswith(chat.NAME)]
        migration = Migration(old, new, reads=reads)
        migration.frozen()
        migration.commit()
        client.send("SAY a\n")
        self.assertEqual(client.line(), f"ann #1 generation={old.number} a")
        old.order("RETIRE")
        self.assertEqual(client.line(), "")
        self.assertEqual(old.ended(), 0)


class Ends(unittest.TestCase):
    """Who has a session when one of the two generations fails: never both."""

    def setUp(self):
        self.here, self.there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.session, self.client = socket.socketpair()
        self.here.setblocking(False)
        for one in (self.here, self.there, self.session, self.client):
            self.addCleanup(one.close)

    async def give(self):
        giving = moving.Giving(self.here, lambda: None)
        return await giving.give("chat", self.session, b"SA", b"{}")

    def answered(self, answer):
        self.there.send(build(answer))
        return asyncio.run(self.give())

    def test_each_answer_says_whose_it_is(self):
        self.assertTrue(self.answered("TAKEN"))

    def test_a_session_that_is_not_taken_stays(self):
        self.assertFalse(self.answered("DECLINED"))

    def test_where_there_is_no_room_it_stays_and_nothing_follows(self):
        self.assertFalse(self.answered("FULL"))
        with self.assertRaises(BrokenPipeError):
            self.there.send(build("TAKEN"))

    def test_an_answer_that_comes_too_late_fails(self):
        limit, moving.ANSWER_S = moving.ANSWER_S, 0.01
        try:
            self.assertFalse(asyncio.run(self.give()))
        finally:
            moving.ANSWER_S = limit
        with self.assertRaises(BrokenPipeError):
            self.there.send(build("TAKEN"))

    def test_an_answer_that_came_in_the_last_moment_counts(self):
        async def resolved():
            giving = moving.Giving(self.here, lambda: None)
            self.there.send(build("TAKEN"))
            return giving.resolve()

        self.assertEqual(asyncio.run(resolved()), "TAKEN")

    def test_what_cannot_be_answered_is_not_served(self):
        async def taken():
            served, over = [], asyncio.Event()
            unpack, room = lambda *_: ("", 0), lambda: True
            moving.Taking(self.there, unpack, room, lambda *one: served.append(one), over.set)
            head = build("CONNECTION", PROTOCOL="session", NAME="chat", VERSION=0,
                         UNREAD=0, STATE=0, ATTIC=0, IN_FILE=0)  # fmt: skip
            socket.send_fds(self.here, [head + b"\n"], [self.session.fileno()])
            self.here.shutdown(socket.SHUT_RD)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(over.wait(), DEADLINE_S)
            return served

        self.assertEqual(asyncio.run(taken()), [])


if __name__ == "__main__":
    unittest.main()
