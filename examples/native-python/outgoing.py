"""The generation that gives its state away: copies it while it serves, freezes, and gives way or
thaws. The table is `machines.OLD`; here are its actions.

Owns the stream's writing end and the lifeline of one migration. The app is told to pause, to resume,
to give way and to drain; how it does so is its own business.
"""

import asyncio
import errno
import os
import socket
import time

import chat
import snapshot_format as form
from machines import OLD
from messages import BadMessage, complain, monotonic_usec, parse
from moving import Giving
from snapshot_writer import Writer

APP = "native-python"
MOST_ROUNDS = 30  # after the base; a copy that is not small by then will not become so
MOST_COPIES = 3  # sending more than this many times the base, likewise
LEAST_BYTES = 1024 * 1024  # of a state that is so small that three times it is nothing
HARDLY_LESS = 0.9  # what is left after a round, compared with before; twice in a row is enough
LARGEST_LIFELINE_BYTES = 512
FIRST_COUNT_S = 0.01  # by then the sessions that were at rest are on their way


class NotReadable(Exception):
    """The new generation cannot read this one's state."""


class TooMuchChange(Exception):
    """The state changes faster than it can be copied."""


def write_entries(writer, kind, table, keys):
    """Writes entries as they are now. What is written counts as sent: a later change is noted anew,
    and nothing is sent twice with the same version."""
    for key in keys:
        changed_at = table.changed.pop(key, None)
        version, key_bytes, value = table.encoded(key)
        if kind == form.DELTA or value is not None:
            writer.entry(kind, table.section.id, version or changed_at, key_bytes, value)
        else:
            table.changed[key] = changed_at  # removed before it was ever sent
        yield


class Old:
    """The part of the old generation, from the time when it owns the state to its end."""

    def __init__(self, channel, store, app, generation):
        self.channel, self.store, self.app, self.generation = channel, store, app, generation
        self.state = "serving"
        self.retiring = self.draining = False
        self.task = self.deadline = self.stream = self.lifeline = self.giving = None
        self.migration = None
        self.reason = ""

    # What happens.

    def happens(self, event, reason=""):
        following = OLD[self.state].get(event)
        if following is None:
            return
        if reason:
            self.reason = reason
        self.state, actions = following
        for action in actions:
            getattr(self, action)()
        # These are facts and do not pass: what could not follow from them before follows now.
        if self.state in ("serving", "yielded") and not self.draining:
            if self.retiring:
                self.happens("retire")
            elif self.channel.gone:
                self.happens("supervisor_gone")

    def order(self, order, fds):
        """SEND, FREEZE, ABORT or RETIRE."""
        name = order["MESSAGE"]
        if name == "RETIRE":
            self.retire()
        elif name == "SEND":
            self.asked = order, fds
            self.happens("send")
        elif order["MIGRATION"] == self.migration:
            self.happens(name.lower(), order["REASON"])

    def retire(self):
        self.retiring = True
        self.happens("retire", "this generation was told to end")

    # What is done about it; the names are those of the table.

    def copy(self):
        order, fds = self.asked
        stream, lifeline, link = fds
        os.close(link)  # requests that go on after the commit are handed over whole
        self.stream = stream
        os.set_blocking(stream, False)
        self.lifeline = socket.socket(fileno=lifeline)
        self.lifeline.setblocking(False)
        self.migration, self.rehearsal = order["MIGRATION"], order["PURPOSE"] == "rehearsal"
        self.pause_s, self.freeze_s = order["PAUSE_USEC"] / 1e6, order["FREEZE_USEC"] / 1e6
        self.reason = ""
        self.applied = -1
        self.progress = asyncio.Event()
        self.asked_to_freeze = asyncio.Event()
        self.stall_s = 0.0
        self.writer = Writer(APP, self.store.sections(), self.migration, self.generation)
        self.store.track(True)
        asyncio.get_running_loop().add_reader(self.lifeline, self.hear)
        self.reads = set(order["READS"])
        self.task = asyncio.create_task(self.send(self.reads))

    def refuse(self):
        order, fds = self.asked
        for fd in fds:
            os.close(fd)
        reason = "this generation has given its state away"
        if self.state != "yielded":
            reason = f"this generation still sends its state for migration {self.migration}"
        self.channel.report("FAILED", MIGRATION=order["MIGRATION"], REASON=reason)

    def tell_converged(self):
        self.channel.report("CONVERGED", MIGRATION=self.migration, **self.sent())

    def freeze(self):
        # Every change so far is complete, for each is made without waiting for anything.
        self.store.open.clear()
        self.frozen_at = monotonic_usec()
        self.app.pause()
        loop = asyncio.get_running_loop()
        reason = f"no commit within {self.freeze_s:g} s of the freeze"
        self.deadline = loop.call_later(self.freeze_s, self.happens, "deadline", reason)
        self.asked_to_freeze.set()

    def tell_frozen(self):
        stall = round(self.stall_s * 1e6)
        self.channel.report(
            "FROZEN",
            MIGRATION=self.migration,
            AT_USEC=self.frozen_at,
            **self.sent(),
            STALL_USEC=stall,
        )

    def end_copy(self):
        loop = asyncio.get_running_loop()
        self.task.cancel()
        if self.deadline:
            self.deadline.cancel()
            self.deadline = None
        self.close_stream()
        loop.remove_reader(self.lifeline)
        if self.state != "yielded":
            self.lifeline.close()
        self.store.track(False)

    def tell_failed(self):
        self.channel.report("FAILED", MIGRATION=self.migration, REASON=self.reason)

    def resolve(self):
        asyncio.get_running_loop().remove_reader(self.lifeline)
        try:
            self.lifeline.shutdown(socket.SHUT_RD)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # without a peer nobody can send any more either
                raise
        committed = False
        while (said := self.listen()) not in (None, {}):
            committed |= said["MESSAGE"] == "COMMITTED"
        self.happens("theirs" if committed else "ours")

    def tell_thawed(self):
        at = monotonic_usec()
        self.channel.report("THAWED", MIGRATION=self.migration, AT_USEC=at, REASON=self.reason)

    def thaw(self):
        self.store.open.set()
        self.app.resume()

    def give_way(self):
        self.store.given_away = True
        self.store.open.set()
        # Sessions go to a generation that has said that it knows them.
        knows = chat.reads() in self.reads
        if not knows:
            self.lifeline.close()
        self.giving = Giving(self.lifeline if knows else None, self.tell_moved)
        self.app.give_way(self.giving)

    def tell_yielded(self):
        self.channel.report("YIELDED", MIGRATION=self.migration, AT_USEC=monotonic_usec())
        asyncio.get_running_loop().call_later(FIRST_COUNT_S, self.tell_moved)

    def tell_moved(self):
        if not self.giving.waiting:
            moved = f"session:{self.giving.moved}"
            left = self.app.left()
            self.channel.report("MOVED", MIGRATION=self.migration, MOVED=moved, LEFT=left)

    def tell_gone(self):
        """The last word of a generation that has given its state away."""
        if self.giving:
            moved = f"session:{self.giving.moved}"
            self.channel.report("GONE", MIGRATION=self.migration, MOVED=moved, CUT=0)

    def drain(self):
        self.draining = True
        self.app.drain()

    # The lifeline.

    def listen(self):
        """The next message; nothing if none is queued, an empty one at the end."""
        try:
            data = self.lifeline.recv(LARGEST_LIFELINE_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionResetError:
            return self.listen()  # told once, ahead of what is queued
        if not data:
            return {}
        try:
            return parse(data)
        except BadMessage as error:
            return {"MESSAGE": "", "REASON": str(error)}

    def hear(self):
        said = self.listen()
        if said is None:
            return
        if not said:
            asyncio.get_running_loop().remove_reader(self.lifeline)
            self.happens("peer_gone", "the new generation has closed the lifeline, or is dead")
        elif said["MESSAGE"] == "APPLIED":
            self.applied = max(self.applied, said.get("ROUND", -1))
            self.progress.set()
        elif said["MESSAGE"] == "COMMITTED":
            self.happens("committed")
        else:
            self.happens("broken", f"the new generation talks nonsense on the lifeline: {said}")

    # The copy.

    async def send(self, reads):
        try:
            for section in self.store.sections():
                if section.reads() not in reads:
                    raise NotReadable(f"the new generation cannot read section {section.name!r} "
                                     f"in version {section.version}")  # fmt: skip
            await self.rounds()
            self.happens("converged")
            await self.asked_to_freeze.wait()
            for table in self.store.tables:
                await self.slices(
                    write_entries(self.writer, form.DELTA, table, list(table.changed))
                )
            self.writer.freeze()
            self.writer.end()
            await self.flush()
        except BrokenPipeError:
            self.happens("broken", "the new generation has closed the stream, or is dead")
        except (NotReadable, TooMuchChange) as error:
            self.happens("broken", str(error))
        except Exception as error:  # whatever it is must end the migration, and nothing else
            complain(f"the copy of the state failed: {error!r}")
            self.happens("broken", f"the copy of the state failed: {error}")
        else:
            self.close_stream()
            self.happens("complete_rehearsal" if self.rehearsal else "complete")

    async def rounds(self):
        for table in self.store.tables:
            await self.slices(write_entries(self.writer, form.BULK, table, list(table.entries)))
        await self.end_round()
        base_bytes, before, hardly = self.writer.bytes, None, 0
        while True:
            begun, sent = time.monotonic(), self.writer.bytes
            for table in self.store.tables:
                await self.slices(
                    write_entries(self.writer, form.DELTA, table, list(table.changed))
                )
            trip_s = await self.end_round()
            rate = (self.writer.bytes - sent) / max(time.monotonic() - begun, 1e-6)
            left = self.store.changes()
            left_bytes = left * (self.writer.bytes / max(self.writer.live(), 1))
            pause_s = left_bytes / rate + trip_s
            if left == 0 or pause_s <= self.pause_s:
                return
            hardly = hardly + 1 if before is not None and left >= HARDLY_LESS * before else 0
            before = left
            enough = MOST_COPIES * base_bytes + LEAST_BYTES
            if hardly < 2 and self.writer.rounds <= MOST_ROUNDS and self.writer.bytes < enough:
                continue
            # It does not become less. A longer pause will do if it is far from the limit.
            if pause_s <= self.freeze_s / 4:
                return
            raise TooMuchChange(
                f"the state changes as fast as it is sent: {left} entries are left "
                f"after {self.writer.rounds} rounds; try at a quieter time"
            )

    async def end_round(self):
        """Ends a round and waits until it was applied; says how long that took."""
        number = self.writer.rounds
        self.writer.round_end(self.store.changes())
        await self.flush()
        flushed = time.monotonic()
        while self.applied < number:
            self.progress.clear()
            await self.progress.wait()
        return time.monotonic() - flushed

    async def slices(self, steps):
        """Carries steps out and lets requests run in between, as soon as a frame is full."""
        begun = time.monotonic()
        frames = self.writer.frames
        for _ in steps:
            if self.writer.frames > frames:
                self.stall(begun)
                await self.flush()
                begun, frames = time.monotonic(), self.writer.frames
        self.stall(begun)

    def stall(self, begun):
        if not self.asked_to_freeze.is_set():
            self.stall_s = max(self.stall_s, time.monotonic() - begun)

    async def flush(self):
        """Writes what is ready, never waiting in the system: a pipe that is full is waited for."""
        loop = asyncio.get_running_loop()
        ready = memoryview(self.writer.take())
        while ready:
            count = self.write_some(ready)
            ready = ready[count:]
            if count:
                await asyncio.sleep(0)
                continue
            writable = asyncio.Event()
            loop.add_writer(self.stream, writable.set)
            try:
                await writable.wait()
            finally:
                if self.stream is not None:
                    loop.remove_writer(self.stream)

    def write_some(self, data):
        try:
            return os.write(self.stream, data)
        except (BlockingIOError, InterruptedError):
            return 0

    def close_stream(self):
        if self.stream is not None:
            asyncio.get_running_loop().remove_writer(self.stream)
            os.close(self.stream)
            self.stream = None

    def sent(self):
        return {"ROUNDS": self.writer.rounds, "BYTES": self.writer.bytes}
