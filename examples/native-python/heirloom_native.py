"""A native app's side of the handover protocol (docs/protocol.md), for a program on asyncio.

Owns the order of things: greet, take the state over, serve, give it away or save it, end. The parts
are `incoming` and `outgoing`. The app behind it has five methods, none of which waits:

    pause()     accept no connection and read no request until the next of these calls
    resume()    go on as before
    give_way(giving)  accept nothing more; the next generation has the state, and takes sessions
    drain()     accept nothing more, finish what was begun
    finished    a future that is done when the drain is
    left()      the connections that are still here, as MOVED has them
    chat        the sessions
"""

import asyncio
import os
import signal
import time

import cbor
import chat
import snapshot_format as form
from incoming import New
from messages import Channel, complain
from moving import Taking
from outgoing import APP, Old
from snapshot_writer import Writer

PROTOCOL = 1
SAVED_BATCH_BYTES = 64 * 1024  # written to a file at once


class Native:
    """One generation. Without `HEIRLOOM_FD` it is a plain app, and begins with no state."""

    def __init__(self, store, app, version):
        self.store, self.app, self.version = store, app, version
        self.generation = int(os.environ.get("HEIRLOOM_GENERATION", "0"))
        self.former = 0
        self.channel = self.new = self.old = None
        self.taking = None  # where sessions of the former generation come from
        self.status = 0  # to exit with
        self.tasks = set()  # asyncio keeps no reference to a task that nobody waits for

    async def take_over(self):
        """Waits until this generation owns the state, which may be none. False if it never will:
        the program is then to end."""
        loop = asyncio.get_running_loop()
        number = os.environ.get("HEIRLOOM_FD")
        if number:
            self.channel = Channel(loop, int(number), self.order, self.gone)
            self.new = New(self.channel, self.store)
            loop.add_signal_handler(signal.SIGTERM, self.new.leave)
            reads = [section.reads() for section in self.store.sections()] + [chat.reads()]
            self.channel.report("HELLO", reads, PROTOCOL=PROTOCOL, VERSION=self.version)
            if not await self.new.outcome:
                complain(f"this generation ends without the state: {self.new.reason}")
                return False
            self.former = self.new.former
            self.old = Old(self.channel, self.store, self.app, self.generation)
            if self.new.lifeline:
                self.take_sessions(self.new.lifeline)
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, self.old.retire if self.old else self.app.drain)
        self.store.open.set()
        if self.channel and self.channel.gone:
            self.gone()
        return True

    def take_sessions(self, lifeline):
        sessions = self.app.chat

        def ended():
            self.taking = None
            self.app.finish_if_done()

        self.taking = Taking(lifeline, sessions.unpack, sessions.has_room, sessions.go_on, ended)

    def gone(self):
        """The supervisor is gone."""
        (self.old or self.new).happens("supervisor_gone", "the supervisor is gone")

    def order(self, order, fds):
        name = order["MESSAGE"]
        if name in ("BEGIN", "RECEIVE", "RESTORE", "COMMIT"):
            fits = self.new if self.old is None else None
        else:
            fits = self.old or (self.new if name == "ABORT" else None)
        if fits is None or (self.new.state != "greeting" and name in ("RECEIVE", "RESTORE")):
            complain(f"{name} is passed over: it is not for a generation in this state")
            for fd in fds:
                os.close(fd)
        elif name in ("SAVE", "STOP"):
            task = asyncio.create_task(self.save(order, fds[0]))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            fits.order(order, fds)

    async def save(self, order, fd):
        """Writes the state to a file; with STOP, after all is finished that could change it."""
        stop = order["MESSAGE"] == "STOP"
        try:
            with open(fd, "wb") as file:
                if self.old.state not in ("serving", "rehearsed"):
                    raise RuntimeError("it is being handed over, or has been")
                if stop:
                    self.app.drain()
                    await self.app.finished
                begun = time.monotonic()
                # Entries are replaced, never changed in place: references to them are a copy.
                copy = [(table, list(table.entries.items())) for table in self.store.tables]
                pause_usec = round((time.monotonic() - begun) * 1e6)
                writer = Writer(APP, self.store.sections(), 0, self.generation)
                await asyncio.to_thread(write_all, writer, copy, file)
        except Exception as error:  # whatever is wrong with a file, the service goes on
            reason = f"the state was not saved: {error}"
            self.channel.report("FAILED", MIGRATION=order["MIGRATION"], REASON=reason)
            if stop:
                self.status = 1
                self.old.retire()
        else:
            self.channel.report(
                "SAVED", MIGRATION=order["MIGRATION"], ENTRIES=writer.live(), BYTES=writer.bytes,
                ROUNDS=writer.rounds, PAUSE_USEC=pause_usec,
            )  # fmt: skip

    async def finished(self):
        """Waits until this generation has nothing left to do."""
        await self.app.finished
        while self.tasks:
            await asyncio.wait(set(self.tasks))
        if self.old:
            self.old.tell_gone()


def write_all(writer, copy, file):
    """Writes a snapshot of what stands still. This runs in a thread, for a file may be slow."""
    writer.freeze()
    for table, items in copy:
        for key, (version, value) in items:
            encoded = cbor.encode(key), cbor.encode(value)
            writer.entry(form.BULK, table.section.id, version, *encoded)
            if writer.waiting() >= SAVED_BATCH_BYTES:
                file.write(writer.take())
    writer.end()
    file.write(writer.take())
