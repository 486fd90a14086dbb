#!/usr/bin/env python3
"""A plain HTTP server for the tests: it serves on every listener it inherits and knows nothing of Heirloom.

It answers with what it is, as lines of NAME=VALUE. `GET /until/NAME` is answered at once with a
head, and with its body when the file NAME exists; so a test decides how long a request runs.
SIGTERM lets it finish what it has begun. The options make it misbehave.
"""
import argparse
import fcntl
import os
import selectors
import signal
import socket
import sys
import threading
import time

STARTED_IN = os.getcwd()
STARTED_AS = os.path.realpath(__file__)


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--release", default="", help="what to answer as release")
    parser.add_argument("--boot", type=float, default=0, help="seconds before it serves")
    parser.add_argument("--boot-until", help="serve once this file exists")
    parser.add_argument("--ready-when", help="say READY=1 once this file exists; serve before")
    parser.add_argument("--extend", type=float, help="ask for so many seconds more to become ready")
    parser.add_argument("--lock", help="hold this file locked; fail if another does")
    parser.add_argument("--fail-if", help="fail at the start if this file exists")
    parser.add_argument("--stubborn", action="store_true", help="pass SIGTERM over")
    return parser.parse_args()


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)


def notify(text):
    address = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.sendto(text.encode(), address)


def describe(release):
    lines = {
        "release": release or os.environ.get("RELEASE", ""),
        "generation": os.environ["HEIRLOOM_GENERATION"],
        "pid": os.getpid(),
        "directory": STARTED_IN,
        "program": STARTED_AS,
        "PWD": os.environ.get("PWD", ""),
    }
    return "".join("%s=%s\n" % line for line in lines.items()).encode()


def answer(connection, release):
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            more = connection.recv(4096)
            if not more:
                return
            request += more
        body = describe(release)
        head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        path = request.split()[1].decode()
        try:
            if path.startswith("/until/"):
                connection.sendall(head.encode())
                wait_for(path.removeprefix("/until/"))
                connection.sendall(body)
            else:
                connection.sendall(head.encode() + body)
        except OSError:
            pass  # The client has gone.


def serve(listeners, release, stubborn):
    told, tell = socket.socketpair()
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno())
    if not stubborn:
        signal.signal(signal.SIGTERM, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(told, selectors.EVENT_READ)
    for listener in listeners:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
    answering = []
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if told in ready:
            if signal.SIGTERM in told.recv(16):
                break
            ready.remove(told)
        for listener in ready:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue  # Another generation, or instance, has it.
            connection.setblocking(True)
            thread = threading.Thread(target=answer, args=(connection, release))
            thread.start()
            answering.append(thread)
    for thread in answering:
        thread.join()


def main():
    wanted = options()
    if wanted.fail_if and os.path.exists(wanted.fail_if):
        sys.exit("told to fail")
    if wanted.lock:
        lock = open(wanted.lock, "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another one runs")
    if wanted.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if wanted.extend:
        notify("EXTEND_TIMEOUT_USEC=%d" % (wanted.extend * 1e6))
    time.sleep(wanted.boot)
    if wanted.boot_until:
        wait_for(wanted.boot_until)
    if wanted.ready_when:
        def say_it():
            wait_for(wanted.ready_when)
            notify("READY=1")
        threading.Thread(target=say_it, daemon=True).start()
    count = int(os.environ.get("LISTEN_FDS", 0))
    listeners = [socket.socket(fileno=3 + number) for number in range(count)]
    serve(listeners, wanted.release, wanted.stubborn)


main()
