"""Connections on the lifeline after the commit (docs/protocol.md, Connections): sessions with a state of
their own, one message each.

Owns the messages, and who has a session when one of the two generations fails. What a session is, and
when it is at rest, is left to `chat`.
"""

import asyncio
import errno
import os
import socket

from messages import BadMessage, build, complain, parse

LARGEST_BYTES = 128 * 1024  # of a message; a session with more stays where it is
ANSWER_S = 5  # a receiver that is silent for so long is as good as dead


class Giving:
    """The old generation's end. One session is under way at a time."""

    def __init__(self, lifeline, tell):
        self.lifeline = lifeline  # none where sessions cannot move
        self.tell = tell  # called whenever none is under way
        self.lock = asyncio.Lock()
        self.moved = self.waiting = 0

    async def give(self, name, connection, unread, state):
        """Sends a session; says whether it is the next generation's now."""
        self.waiting += 1
        async with self.lock:
            taken = self.lifeline is not None and await self.send(name, connection, unread, state)
        self.moved += taken
        self.waiting -= 1
        return taken

    def settled(self):
        """A session that was given is accounted for."""
        if not self.waiting:
            self.tell()

    async def send(self, name, connection, unread, state):
        head = build(
            "CONNECTION", PROTOCOL="session", NAME=name, VERSION=0,
            UNREAD=len(unread), STATE=len(state), ATTIC=0, IN_FILE=0,
        )  # fmt: skip
        message = head + b"\n" + unread + state
        if len(message) > LARGEST_BYTES:
            return False
        try:
            # There is room: what was sent before has been answered.
            socket.send_fds(self.lifeline, [message], [connection.fileno()], socket.MSG_NOSIGNAL)
            answer = await asyncio.wait_for(self.answer(), ANSWER_S)
        except (OSError, asyncio.TimeoutError):
            answer = self.resolve()
        if answer in ("", "FULL"):
            self.close()
        return answer == "TAKEN"

    async def answer(self):
        """What the next generation says; nothing if it is gone, or talks nonsense."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.lifeline, readable.set)
        try:
            await readable.wait()
            return self.hear()
        finally:
            loop.remove_reader(self.lifeline)

    def hear(self):
        try:
            return parse(self.lifeline.recv(LARGEST_BYTES))["MESSAGE"]
        except (BadMessage, BlockingIOError, ConnectionResetError):
            return ""

    def resolve(self):
        """Lets no answer come any more, and hears the one that has: so the session is either ours or
        theirs. An answer that comes later fails there, and they let go of it."""
        try:
            self.lifeline.shutdown(socket.SHUT_RD)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        answer = self.hear()
        self.close()
        return answer

    def close(self):
        if self.lifeline:
            self.lifeline.close()
            self.lifeline = None


class Taking:
    """The new generation's end. `unpack` makes a state of protocol, name, version and bytes, or nothing
    of what is not known here; `room` says whether there is room for one more; `serve` gets socket, unread
    bytes and state."""

    def __init__(self, lifeline, unpack, room, serve, ended):
        self.lifeline, self.unpack, self.room, self.serve = lifeline, unpack, room, serve
        self.ended = ended  # called when no more can come
        lifeline.setblocking(False)
        asyncio.get_running_loop().add_reader(lifeline, self.readable)

    def readable(self):
        try:
            data, fds, flags, _ = socket.recv_fds(
                self.lifeline, LARGEST_BYTES, 2, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds, flags = b"", [], 0
        if not data:
            return self.close()
        # A socket that does not fit was one too many; we have none of it, and they still have it.
        full = flags & socket.MSG_CTRUNC or not self.room()
        session = None if full else self.session(data, fds)
        answer = "FULL" if full else "TAKEN" if session else "DECLINED"
        try:
            # Said first: a session is never served by two.
            self.lifeline.send(build(answer), socket.MSG_NOSIGNAL)
        except OSError:
            session = None
            self.close()
        if session:
            self.serve(socket.socket(fileno=fds.pop(0)), *session)
        for fd in fds:
            os.close(fd)

    def session(self, data, fds):
        """Unread bytes and state; nothing if this is not one of our sessions."""
        head, _, rest = data.partition(b"\n\n")
        try:
            said = parse(head)
            unread, state, attic = (int(said[key]) for key in ("UNREAD", "STATE", "ATTIC"))
            whole = said["IN_FILE"] == "0" and unread + state + attic == len(rest)
            if min(unread, state) < 0 or attic or not whole or len(fds) != 1:
                return None
            known = said["PROTOCOL"], said["NAME"], int(said["VERSION"])
            unpacked = self.unpack(*known, rest[unread:])
        except (BadMessage, KeyError, ValueError) as error:
            complain(f"a connection is declined: {error!r}")
            return None
        return unpacked and (rest[:unread], unpacked)

    def close(self):
        if self.lifeline:
            asyncio.get_running_loop().remove_reader(self.lifeline)
            self.lifeline.close()
            self.lifeline = None
            self.ended()
