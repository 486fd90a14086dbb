"""Sessions over a raw connection that outlive their generation: lines that are answered with a number.

    NAME ann        OK ann
    SAY hi          ann #K generation=N hi;   K counts on a connection, over all generations

A session at rest is a socket, the bytes that were read and are not a line yet, and a state. That is all
the next generation needs to go on in the middle of a line. How it gets there is `moving`.
"""

import asyncio
import json

from snapshot_format import Section

NAME = "chat"  # of the listener, and what the generations know these sessions by
LONGEST_LINE_BYTES = 4096
LONGEST_NAME_BYTES = 64
READ_BYTES = 4096
LONGEST_WRITE_S = 10  # a client that reads nothing for so long is given up
MOST_SESSIONS = 1000  # more wait in the listener's queue


def reads():
    """How HELLO says that these sessions can be taken: their state is bytes without a schema."""
    return Section(0, NAME).reads()


class Session:
    def __init__(self, connection, unread, name, said):
        self.connection, self.unread, self.name, self.said = connection, unread, name, said
        self.stays = self.is_theirs = False  # whether the next generation has taken it, once it could
        self.wake = asyncio.Event()

    def state(self):
        return json.dumps({"name": self.name, "said": self.said}).encode()


class Chat:
    """The listener, if there is one, and its sessions."""

    def __init__(self, listener, store, generation, changed):
        self.loop = asyncio.get_running_loop()
        self.listener, self.store, self.generation = listener, store, generation
        self.changed = changed  # called when a session is gone
        self.sessions = {}  # the task of each
        self.accepting = self.paused = self.ending = False
        self.giving = None

    # What the handover asks for.

    def pause(self, paused=True):
        self.paused = paused
        self.accept_or_not()

    def give_way(self, giving):
        """The next generation has the state: the sessions go there."""
        self.giving = giving
        self.accept_or_not()
        self.wake_all()

    def drain(self):
        """What has not moved ends."""
        self.ending = True
        if self.listener:
            self.accept_or_not()
            self.listener.close()
            self.listener = None
        self.wake_all()

    def wake_all(self):
        for session in self.sessions.values():
            session.wake.set()

    # Sessions.

    def left(self):
        """How many are ours."""
        return sum(not session.is_theirs for session in self.sessions.values())

    def has_room(self):
        return len(self.sessions) < MOST_SESSIONS

    def accept_or_not(self):
        if self.listener is None:
            return
        idle = not (self.paused or self.giving or self.ending)
        wanted = idle and self.has_room()
        if wanted and not self.accepting:
            self.loop.add_reader(self.listener, self.accept)
        elif self.accepting and not wanted:
            self.loop.remove_reader(self.listener)
        self.accepting = wanted

    def accept(self):
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return  # another process was first, or the client has gone
        self.begin(Session(connection, b"", "", 0))

    def unpack(self, protocol, name, version, state):
        """The state of a session of the former generation; nothing if we have no such sessions."""
        if (protocol, name, version) != ("session", NAME, 0):
            return None
        state = json.loads(state)
        return str(state["name"]), int(state["said"])

    def go_on(self, connection, unread, state):
        """A session of the former generation."""
        self.begin(Session(connection, unread, *state))

    def begin(self, session):
        session.connection.setblocking(False)
        task = self.loop.create_task(self.serve(session))
        self.sessions[task] = session
        task.add_done_callback(self.gone)
        self.accept_or_not()

    def gone(self, task):
        del self.sessions[task]
        self.accept_or_not()
        self.changed()

    async def serve(self, session):
        try:
            while await self.goes_on(session):
                data = await self.read(session)
                if data == b"":
                    break
                session.unread += data or b""
        except (OSError, asyncio.TimeoutError):
            pass  # the client has gone
        finally:
            session.connection.close()

    async def goes_on(self, session):
        """Does what can be done without reading; says whether the session is still ours."""
        session.wake.clear()  # whatever wakes it from here on is looked at the next time
        await self.store.open.wait()  # while the state is frozen, nothing is begun
        if self.giving and not session.stays:
            state = session.state()
            taken = await self.giving.give(NAME, session.connection, session.unread, state)
            session.stays, session.is_theirs = not taken, taken
            self.giving.settled()
            if taken:
                return False
        while b"\n" in session.unread:
            line, _, session.unread = session.unread.partition(b"\n")
            answer = self.answer(session, line.decode(errors="replace").rstrip("\r"))
            sending = self.loop.sock_sendall(session.connection, f"{answer}\n".encode())
            await asyncio.wait_for(sending, LONGEST_WRITE_S)
        return not self.ending and len(session.unread) <= LONGEST_LINE_BYTES

    async def read(self, session):
        """What has come; nothing if something else is to be done first, no bytes at the end."""
        try:
            return session.connection.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            pass
        # Nothing is read while this is waited for, so nothing can be lost.
        self.loop.add_reader(session.connection, session.wake.set)
        try:
            await session.wake.wait()
        finally:
            self.loop.remove_reader(session.connection)
        return None

    def answer(self, session, line):
        word, _, rest = line.partition(" ")
        if word == "NAME" and 0 < len(rest.encode()) <= LONGEST_NAME_BYTES:
            session.name = rest
            return f"OK {rest}"
        if word == "SAY" and session.name:
            session.said += 1
            return f"{session.name} #{session.said} generation={self.generation} {rest}"
        return "ERR first NAME ann, then SAY something"
