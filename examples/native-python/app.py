#!/usr/bin/python3
"""A small HTTP service with state, which it hands over to its next generation: counters and notes. If
there is a listener named `chat`, it is served too (see `chat`); its connections move as well.

    GET  /hello                 which generation this is, and which was before it
    GET  /counters/KEY          the value, 0 if there is none;    POST adds one and answers the value
    GET  /notes/KEY             the text, or 404;                 PUT stores the body, DELETE removes it

The state is in `store`, the handover in `heirloom_native`. This file has the connections. A request
that has been read when the state is given away goes, whole, to the next generation: this program is
then a client of its own listener. So nothing is ever refused, and no request runs twice.
"""

import asyncio
import os
import socket
import sys
from contextlib import suppress

from chat import NAME, Chat
from heirloom_native import Native
from store import LARGEST_NUMBER, Full, Store

VERSION = "1.0.0"
FIRST_REQUEST_S = 10  # how long a connection may take to send its first request
NEXT_REQUEST_S = 75  # how long it may then be idle
LAST_REQUEST_S = 2  # how long once we are to end: its next request may be on the way
LONGEST_REQUEST_S = 10  # to read the body, to answer, or to be answered by the next generation
LARGEST_HEAD_BYTES = 16 * 1024
LARGEST_BODY_BYTES = 64 * 1024
LONGEST_KEY_BYTES = 200
LARGEST_ANSWER_BYTES = 128 * 1024  # of the next generation: a note and its head
MOST_CONNECTIONS = 1000  # more wait in the listener's queue
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
           413: "Content Too Large", 501: "Not Implemented", 502: "Bad Gateway",
           507: "Insufficient Storage"}  # fmt: skip


def inherited_listener(name):
    """The socket of this name among those that the supervisor holds, if there is one."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or name not in names:
        return None
    listener = socket.socket(fileno=3 + names.index(name))
    listener.set_inheritable(False)
    listener.setblocking(False)
    return listener


def say(text):
    """Tells the supervisor something, as sd_notify(3) does. That nobody listens changes nothing."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, suppress(OSError):
            channel.setblocking(False)
            # A leading @ stands for the NUL of an abstract name.
            channel.sendto(text.encode(), "\0" + path[1:] if path[0] == "@" else path)


class Refused(Exception):
    """The client's request cannot be carried out."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class App:
    """The listener and its connections."""

    def __init__(self, listener, chat_listener):
        self.loop = asyncio.get_running_loop()
        self.listener = listener
        self.address = listener.getsockname()
        self.store = Store()
        self.native = Native(self.store, self, VERSION)
        generation = self.native.generation
        self.chat = Chat(chat_listener, self.store, generation, self.finish_if_done)
        self.connections = set()
        self.accepting = self.paused = False
        self.closing = asyncio.Event()  # each connection ends with its next response
        self.finished = self.loop.create_future()

    # What the handover asks for.

    def pause(self):
        self.paused = True
        self.accept_or_not()
        self.chat.pause()

    def resume(self):
        self.paused = False
        self.accept_or_not()
        self.chat.pause(False)

    def give_way(self, giving=None):
        self.closing.set()
        self.accept_or_not()
        if giving:
            self.chat.give_way(giving)

    def drain(self):
        say("STOPPING=1")
        self.give_way()
        self.chat.drain()
        self.listener.close()
        self.finish_if_done()

    def finish_if_done(self):
        # The former generation may have sessions that are to go through this one to the next.
        busy = self.connections or self.chat.sessions or self.native.taking
        if self.listener.fileno() < 0 and not busy and not self.finished.done():
            self.finished.set_result(None)

    def left(self):
        """The connections that are here still, by protocol."""
        return f"http/1:{len(self.connections)},session:{self.chat.left()}"

    # Connections.

    def accept_or_not(self):
        if self.listener.fileno() < 0:
            return
        free = len(self.connections) < MOST_CONNECTIONS
        wanted = free and not self.paused and not self.closing.is_set()
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
        connection.setblocking(False)
        task = self.loop.create_task(self.serve(connection))
        self.connections.add(task)
        task.add_done_callback(self.gone)
        self.accept_or_not()

    def gone(self, task):
        self.connections.discard(task)
        self.accept_or_not()
        self.finish_if_done()

    async def serve(self, connection):
        reader, writer = await asyncio.open_connection(sock=connection, limit=LARGEST_HEAD_BYTES)
        try:
            patience_s = FIRST_REQUEST_S
            while head := await self.head_of_request(reader, patience_s):
                goes_on = await self.answer(head, reader, writer)
                if not goes_on:
                    break
                patience_s = NEXT_REQUEST_S
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.TimeoutError):
            pass  # the client has gone, or sends nothing that is a request
        finally:
            writer.close()

    async def head_of_request(self, reader, patience_s):
        """The head of the next request; nothing if the client sends none. While the state is
        frozen, a request that comes waits in its socket."""
        await self.store.open.wait()
        head = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        closing = asyncio.ensure_future(self.closing.wait())
        try:
            await asyncio.wait({head, closing}, timeout=patience_s, return_when="FIRST_COMPLETED")
            if not head.done() and self.closing.is_set():
                await asyncio.wait({head}, timeout=min(patience_s, LAST_REQUEST_S))
            return head.result() if head.done() else None
        except asyncio.IncompleteReadError:
            return None
        finally:
            head.cancel()
            closing.cancel()

    async def answer(self, head, reader, writer):
        """Answers one request; says whether the connection goes on."""
        lines = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(":", 1) for line in lines[1:] if ":" in line)
        goes_on = fields.get("connection", "").strip() != "close"
        try:
            unread = True
            body = await self.body_of(fields, reader)
            unread = False
            if await self.store.gate():
                status, text = self.carry_out(lines[0].split(" "), body)
            else:
                status, text = await self.next_generations_answer(head, body)
        except Refused as error:
            status, text = error.status, str(error).encode() + b"\n"
            goes_on = goes_on and not unread
        goes_on = goes_on and not self.closing.is_set()
        connection = "keep-alive" if goes_on else "close"
        writer.write(
            f"HTTP/1.1 {status} {REASONS.get(status, '')}\r\nContent-Length: {len(text)}\r\n"
            f"Connection: {connection}\r\n\r\n".encode()
            + text
        )
        await asyncio.wait_for(writer.drain(), LONGEST_REQUEST_S)
        return goes_on

    async def body_of(self, fields, reader):
        if "transfer-encoding" in fields:
            raise Refused(501, "send a body with Content-Length")
        length = fields.get("content-length", "0").strip()
        if not length.isdecimal():
            raise Refused(400, "Content-Length is not a number")
        if int(length) > LARGEST_BODY_BYTES:
            raise Refused(413, f"a body of more than {LARGEST_BODY_BYTES} bytes")
        return await asyncio.wait_for(reader.readexactly(int(length)), LONGEST_REQUEST_S)

    def carry_out(self, request, body):
        """Does what a request asks for, without waiting for anything: so it is done before a freeze
        or not at all."""
        method, path = (request + ["", ""])[:2]
        _, kind, key = (path.split("/", 2) + ["", ""])[:3]
        store = self.store
        if (method, path) == ("GET", "/hello"):
            generation, former = self.native.generation, self.native.former
            return 200, f"hello, generation={generation}, oldgeneration={former}\n".encode()
        if kind not in ("counters", "notes") or not 0 < len(key.encode()) <= LONGEST_KEY_BYTES:
            raise Refused(404, "there is /hello, /counters/KEY and /notes/KEY")
        try:
            match kind, method:
                case "counters", "GET":
                    return 200, b"%d" % (store.get(store.counters, key) or 0)
                case "counters", "POST":
                    value = min((store.get(store.counters, key) or 0) + 1, LARGEST_NUMBER)
                    store.put(store.counters, key, value)
                    return 200, b"%d" % value
                case "notes", "GET":
                    note = store.get(store.notes, key)
                    if note is None:
                        raise Refused(404, "there is no such note")
                    return 200, note["text"].encode()
                case "notes", "PUT":
                    former = store.get(store.notes, key)
                    changes = former["changes"] + 1 if former else 1
                    store.put(store.notes, key, {"text": body.decode(), "changes": changes})
                    return 200, b""
                case "notes", "DELETE":
                    if not store.remove(store.notes, key):
                        raise Refused(404, "there is no such note")
                    return 200, b""
        except Full as error:
            raise Refused(507, "there is no room for another entry") from error
        except UnicodeDecodeError as error:
            raise Refused(400, "a note is a text in UTF-8") from error
        raise Refused(405, "this cannot be done here")

    async def next_generations_answer(self, head, body):
        """Sends a request on to the next generation, once."""
        first, _, fields = head.rstrip().partition(b"\r\n")
        kept = [
            line for line in fields.split(b"\r\n") if not line.lower().startswith(b"connection:")
        ]
        request = b"\r\n".join([first, *filter(None, kept), b"Connection: close", b"", body])
        try:
            answer = await asyncio.wait_for(self.ask(request), LONGEST_REQUEST_S)
            head, _, text = answer.partition(b"\r\n\r\n")
            return int(head.split(b" ")[1]), text
        except (OSError, ValueError, IndexError, asyncio.TimeoutError) as error:
            raise Refused(502, f"the next generation does not answer: {error}") from error

    async def ask(self, request):
        if self.listener.family == socket.AF_UNIX:
            reader, writer = await asyncio.open_unix_connection(self.address)
        else:
            reader, writer = await asyncio.open_connection(*self.address[:2])
        try:
            writer.write(request)
            answer = b""
            while piece := await reader.read(LARGEST_ANSWER_BYTES):
                answer += piece
                if len(answer) > LARGEST_ANSWER_BYTES:
                    raise ValueError("an answer that is too long")
            return answer
        finally:
            writer.close()


async def main():
    listener = inherited_listener("http")
    if listener is None:
        sys.exit("no listener named http was inherited; start this under heirloom (heirloom.toml)")
    app = App(listener, inherited_listener(NAME))
    if not await app.native.take_over():
        return 1
    app.accept_or_not()
    app.chat.accept_or_not()
    say("READY=1")
    await app.native.finished()
    return app.native.status


sys.exit(asyncio.run(main()))
