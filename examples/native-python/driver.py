"""Plays the supervisor's part of docs/protocol.md, to test a native app.

Starts generations of a program as the supervisor does, sends orders, waits for reports with a
deadline. `HEIRLOOM_NATIVE_APP` names another program than this directory's, with its arguments.
"""

import fcntl
import http.client
import os
import select
import shlex
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress

from messages import build, parse

DEADLINE_S = 10  # for anything a program is to do; reached only when it fails
HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = shlex.split(os.environ.get("HEIRLOOM_NATIVE_APP", f"{sys.executable} {HERE}/app.py"))
HIGH_FD = 100  # out of the way of those that a program inherits
PAUSE_USEC, FREEZE_USEC = 5_000, 5_000_000
PIECE_BYTES = 64 * 1024


class Generation:
    """One running process of the program."""

    def __init__(self, service):
        service.started += 1
        self.number = service.started
        self.service = service
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(DEADLINE_S)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.settimeout(DEADLINE_S)
        path = f"{service.directory.name}/notify-{self.number}"
        self.notify.bind(path)
        environment = dict(
            os.environ, LISTEN_FDS="2", LISTEN_FDNAMES="http:chat", NOTIFY_SOCKET=path, HEIRLOOM_FD="5",
            HEIRLOOM_GENERATION=str(self.number), HEIRLOOM_SERVICE="test",
        )  # fmt: skip
        output = service.errors.fileno()
        listeners = {3: service.listener.fileno(), 4: service.chat.fileno()}
        wanted = {1: output, 2: output, **listeners, 5: theirs.fileno()}
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH_FD) for fd in wanted.values()]
        moves = [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in zip(high, wanted)]
        # The shell knows the number of the process that it becomes.
        script = ["sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh", *PROGRAM]
        self.pid = os.posix_spawn("/bin/sh", script, environment, file_actions=moves)
        self.pidfd = os.pidfd_open(self.pid)
        for fd in high:
            os.close(fd)
        theirs.close()
        self.status = None

    def order(self, name, *fds, **fields):
        """Sends an order; the descriptors are the program's from then on."""
        self.send(build(name, fields.pop("reads", ()), **fields), *fds)

    def send(self, data, *fds):
        socket.send_fds(self.channel, [data], fds)
        for fd in fds:
            os.close(fd)

    def report(self, name):
        """Waits for the next report, which must be this one."""
        data = self.channel.recv(PIECE_BYTES)
        assert data, f"{name} was expected of generation {self.number}; it is gone"
        report = parse(data)
        assert report["MESSAGE"] == name, f"{name} was expected; this came: {report}"
        return {
            key: int(value) if str(value).isdecimal() else value for key, value in report.items()
        }

    def silent(self):
        """Whether nothing was said that has not been read; its end is nothing said."""
        ready = select.select([self.channel], [], [], 0)[0]
        return not ready or not self.channel.recv(PIECE_BYTES, socket.MSG_PEEK)

    def ready(self):
        """Waits for READY=1."""
        while b"READY=1" not in self.notify.recv(PIECE_BYTES):
            pass

    def ended(self):
        """Waits for the process's end; gives its exit status, negative for a signal."""
        if self.status is None:
            assert select.select([self.pidfd], [], [], DEADLINE_S)[0], f"{self.pid} does not end"
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def kill(self):
        if self.status is None:
            os.kill(self.pid, 9)
        return self.ended()

    def descriptors(self):
        """What it has open at the moment."""
        directory, found = f"/proc/{self.pid}/fd", []
        for fd in os.listdir(directory):
            with suppress(FileNotFoundError):  # closed in between
                found.append(os.readlink(f"{directory}/{fd}"))
        return sorted(found)

    def idle(self):
        """Whether it has nothing open but what it had before its first connection."""
        return self.descriptors() == self.at_rest

    def close(self):
        self.kill()
        os.close(self.pidfd)
        self.channel.close()
        self.notify.close()


class Service:
    """A listener, one for sessions, and the generations that serve on it."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.errors = open(f"{self.directory.name}/errors", "w+")
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.chat = socket.create_server(("127.0.0.1", 0))
        self.started = self.migrations = 0
        self.generations = []

    def start(self):
        """Starts a generation and waits until it has said HELLO."""
        generation = Generation(self)
        self.generations.append(generation)
        generation.hello = generation.report("HELLO")
        return generation

    def first(self):
        """Starts a generation without state and waits until it serves."""
        generation = self.start()
        generation.order("BEGIN")
        generation.ready()
        # What is open for a moment only, such as a connection, is not there both times.
        before = generation.descriptors()
        self.text("GET", "/hello")
        generation.at_rest = [name for name in generation.descriptors() if name in before]
        return generation

    def close(self):
        for generation in self.generations:
            generation.close()
        self.listener.close()
        self.chat.close()
        self.errors.close()
        self.directory.cleanup()

    def client(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def ask(self, method, path, body=None):
        """One request on a connection of its own; gives status and text."""
        client = self.client()
        try:
            client.request(method, path, body, {"Connection": "close"})
            answer = client.getresponse()
            return answer.status, answer.read().decode()
        finally:
            client.close()

    def text(self, method, path, body=None):
        status, text = self.ask(method, path, body)
        assert status == 200, f"{method} {path}: {status} {text}"
        return text


class Migration:
    """One attempt to hand over, with its orders given."""

    def __init__(
        self, old, new, purpose="handover", freeze_usec=FREEZE_USEC, held=False, reads=None
    ):
        service = old.service
        service.migrations += 1
        self.number, self.old, self.new = service.migrations, old, new
        reading, writing = os.pipe()
        self.relay = None
        if held:
            self.relay = Relay(reading)
            reading = self.relay.reading
        for_old, for_new = pair(socket.SOCK_SEQPACKET)
        asks, answers = pair(socket.SOCK_STREAM)
        old.order(
            "SEND", writing, for_old, asks, MIGRATION=self.number, TO=new.number, PURPOSE=purpose,
            PAUSE_USEC=PAUSE_USEC, FREEZE_USEC=freeze_usec,
            reads=new.hello["READS"] if reads is None else reads,
        )  # fmt: skip
        new.order("RECEIVE", reading, for_new, answers, MIGRATION=self.number, FROM=old.number)

    def converged(self):
        return self.old.report("CONVERGED")

    def freeze(self):
        self.old.order("FREEZE", MIGRATION=self.number)

    def frozen(self):
        """Freezes, and waits until both have said that the copy is complete."""
        self.converged()
        self.freeze()
        return self.old.report("FROZEN"), self.new.report("READY")

    def commit(self):
        """Commits, and waits until both have said so."""
        self.new.order("COMMIT", MIGRATION=self.number)
        committed = self.new.report("COMMITTED")
        return committed, self.old.report("YIELDED")

    def abort(self, *generations):
        for generation in generations or (self.old, self.new):
            generation.order("ABORT", MIGRATION=self.number, REASON="it was only a test")

    def whole(self):
        """All of a handover; the old generation ends."""
        frozen, _ = self.frozen()
        committed, _ = self.commit()
        self.old.order("RETIRE")
        return frozen, committed


def pair(kind):
    return [end.detach() for end in socket.socketpair(socket.AF_UNIX, kind)]


class Relay:
    """Stands in the middle of a stream, whose size it keeps small. Carries nothing until `flow`,
    and nothing more from `hold` on; remembers what it has carried."""

    def __init__(self, taking):
        self.taking = taking
        fcntl.fcntl(taking, fcntl.F_SETPIPE_SZ, 4096)
        self.reading, self.giving = os.pipe()
        self.flowing = threading.Event()
        self.carried = bytearray()
        self.thread = threading.Thread(target=self.carry, daemon=True)
        self.thread.start()

    def flow(self):
        self.flowing.set()

    def hold(self):
        self.flowing.clear()

    def carry(self):
        try:
            self.flowing.wait()
            while piece := os.read(self.taking, PIECE_BYTES):
                self.flowing.wait()
                self.carried += piece
                os.write(self.giving, piece)
        except BrokenPipeError:
            pass  # the reader has gone; so are we, and the writer will see it
        finally:
            os.close(self.taking)
            os.close(self.giving)

    def end(self):
        self.flow()
        self.thread.join(DEADLINE_S)


def eventually(what, true):
    """Waits until something is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, f"this never came to be: {what}"
        time.sleep(0.002)
