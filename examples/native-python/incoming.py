"""The generation that takes the state over: reads and checks it, and owns it or ends. The table is
`machines.NEW`; here are its actions.

Owns the stream's reading end and the lifeline. Until it owns the state it serves nobody, so it may
work in large pieces; only orders must be heard in between.
"""

import asyncio
import os
import socket
import stat

from machines import NEW
from messages import build, monotonic_usec
from snapshot_reader import Damaged, Reader

PIECE_BYTES = 64 * 1024  # of the stream, between two looks at what else has happened
# A commit that was refused waits so long for the supervisor to say why: a death is seen by it in a
# moment, and whoever has taken the state back needs nothing of this generation.
LONGEST_DOUBT_SECONDS = 1


class New:
    """The part of the new generation. `outcome` becomes true when it owns the state, and false
    when it never will."""

    def __init__(self, channel, store):
        self.channel, self.store = channel, store
        self.state = "greeting"
        self.outcome = asyncio.get_running_loop().create_future()
        self.stream = self.lifeline = self.task = None
        self.migration = None
        self.former = 0  # the generation that the state is of
        self.reason = ""

    def happens(self, event, reason=""):
        following = NEW[self.state].get(event)
        if following is None:
            return
        self.reason = reason
        self.state, actions = following
        for action in actions:
            getattr(self, action)()

    def order(self, order, fds):
        """BEGIN, RECEIVE, RESTORE, COMMIT or ABORT."""
        name = order["MESSAGE"]
        if name in ("RECEIVE", "RESTORE"):
            self.asked = order, fds
            self.happens("receive")
        elif name == "BEGIN":
            self.happens("begin")
        elif name == "ABORT" and self.state == "greeting":
            self.happens("abort", order["REASON"])
        elif order.get("MIGRATION") == self.migration:
            alone = name == "COMMIT" and order.get("ALONE") == "1"
            self.happens("commit_alone" if alone else name.lower(), order["REASON"])

    def leave(self):
        """Somebody wants this process to end before it owns anything."""
        self.happens("abort", "it was told to end")

    # What is done; the names are those of the table.

    def read(self):
        order, fds = self.asked
        self.migration, self.former = order["MIGRATION"], order.get("FROM")
        self.stream = fds[0]
        if order["MESSAGE"] == "RECEIVE":
            self.lifeline = socket.socket(fileno=fds[1])
            os.close(fds[2])  # no request goes on over the commit, so nothing is asked
        self.task = asyncio.create_task(self.take_over())

    def tell_ready(self):
        held = self.reader.held()
        self.channel.report(
            "READY", MIGRATION=self.migration, ENTRIES=held, BYTES=self.reader.bytes
        )

    def tell_reject(self):
        self.channel.report("REJECT", MIGRATION=self.migration, REASON=self.reason)

    def say_committed(self):
        queued = self.say("COMMITTED")
        self.happens("queued" if queued else "refused")

    def doubt(self):
        loop = asyncio.get_running_loop()
        loop.call_later(LONGEST_DOUBT_SECONDS, self.happens, "deadline")

    def own(self):
        self.owner_since = monotonic_usec()
        self.close_stream()  # the lifeline stays, for sessions of the former generation
        self.outcome.set_result(True)

    def tell_committed(self):
        self.channel.report("COMMITTED", MIGRATION=self.migration, AT_USEC=self.owner_since)

    def give_up(self):
        self.close()
        self.outcome.set_result(False)

    # How.

    def say(self, name, **fields):
        """Says something on the lifeline; false if the old generation has taken the state back, or
        is dead. There is room for all that is ever said, so this does not wait."""
        if self.lifeline is None:
            return False
        try:
            self.lifeline.send(build(name, **fields), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def applied(self, number):
        self.say("APPLIED", ROUND=number)

    async def take_over(self):
        self.reader = Reader(self.accept, self.store.take, self.applied)
        try:
            while not self.reader.ended:
                piece = await self.piece()
                if not piece:
                    break
                self.reader.feed(piece)
                await asyncio.sleep(0)
            self.reader.finish()
            if not self.lifeline and os.read(self.stream, 1):
                raise Damaged("bytes follow the end mark")
        except Damaged as error:
            self.happens("unusable", f"the state cannot be taken over: {error}")
        except Exception as error:  # whatever it is, the old generation must go on
            self.happens("unusable", f"the state could not be read: {error!r}")
        else:
            self.happens("verified")

    def accept(self, sections):
        if self.lifeline and self.reader.migration != self.migration:
            raise Damaged(f"it is of migration {self.reader.migration}, not {self.migration}")
        if not self.lifeline:
            self.former = self.reader.generation
        self.store.accept(sections)

    async def piece(self):
        if stat.S_ISREG(os.fstat(self.stream).st_mode):
            return os.read(self.stream, PIECE_BYTES)
        os.set_blocking(self.stream, False)
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self.stream, readable.set)
        try:
            await readable.wait()
        finally:
            if self.stream is not None:
                loop.remove_reader(self.stream)
        return os.read(self.stream, PIECE_BYTES)

    def close(self):
        self.close_stream()
        if self.lifeline:
            self.lifeline.close()

    def close_stream(self):
        if self.task:
            self.task.cancel()
        if self.stream is not None:
            asyncio.get_running_loop().remove_reader(self.stream)
            os.close(self.stream)
            self.stream = None
