#!/usr/bin/env python3
"""A small HTTP server on asyncio: takes its listener from Heirloom, says when it is ready, and on
SIGTERM answers all it has accepted before it ends. Nothing but the standard library."""

import asyncio
import os
import signal
import socket

LISTENER = 3  # the first inherited descriptor, as with LISTEN_FDS
BACKLOG = 4096  # asyncio calls listen(2) again and would shorten the queue to 100
FIRST_REQUEST_S = 10  # how long a connection may take to send its first request
NEXT_REQUEST_S = 75  # how long it may then be idle
LAST_REQUEST_S = 2  # how long once we are to end: its next request may be on the way
LONGEST_REQUEST_S = 10

stopping = asyncio.Event()
connections = set()


def say(text):
    """Tells the supervisor something, as sd_notify(3) does."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            # A leading @ stands for the NUL of an abstract name.
            channel.sendto(text.encode(), "\0" + path[1:] if path[0] == "@" else path)


async def head_of_request(reader, patience_s):
    """The head of the next request; nothing if the client sends none."""
    head = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({head, stopped}, timeout=patience_s, return_when="FIRST_COMPLETED")
        if not head.done() and stopping.is_set():
            await asyncio.wait({head}, timeout=min(patience_s, LAST_REQUEST_S))
        return head.result() if head.done() else None
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        return None
    finally:
        head.cancel()
        stopped.cancel()


async def answer(head, writer):
    """Answers one request; says whether the connection goes on."""
    if head.startswith(b"GET /slow "):
        await asyncio.sleep(0.3)
    goes_on = b"connection: close" not in head.lower() and not stopping.is_set()
    body = f"pid {os.getpid()}\n"
    connection = "keep-alive" if goes_on else "close"
    writer.write(
        f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: {connection}\r\n\r\n{body}".encode()
    )
    await asyncio.wait_for(writer.drain(), LONGEST_REQUEST_S)
    return goes_on


async def serve(reader, writer):
    connections.add(asyncio.current_task())
    try:
        patience_s = FIRST_REQUEST_S
        while head := await head_of_request(reader, patience_s):
            if not await answer(head, writer):
                break
            patience_s = NEXT_REQUEST_S
    except (ConnectionError, TimeoutError, asyncio.TimeoutError):
        pass  # the client has gone
    finally:
        connections.discard(asyncio.current_task())
        writer.close()


async def main():
    loop = asyncio.get_running_loop()
    listener = socket.socket(fileno=LISTENER)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = await asyncio.start_server(serve, sock=listener, backlog=BACKLOG)
    say("READY=1")
    await stopping.wait()
    say("STOPPING=1")
    # First accept nothing more. What was accepted a moment ago has its task only after this turn of
    # the loop, and Server.close() would let it fall; so close later.
    loop.remove_reader(LISTENER)
    await asyncio.sleep(0.1)
    server.close()
    while connections:
        await asyncio.wait(set(connections))


asyncio.run(main())
