#!/usr/bin/env python3
"""A native program for the tests: it speaks the handover protocol and misbehaves where it is told to.

Its state is one number, which each request raises; it answers with that number and with what it is,
as lines of NAME=VALUE. The stream is text of its own making, for the supervisor never looks into it.
What decides a commit is the real thing: the lifeline, its receiving side shut down before a thaw.

`--do SIDE:STEP=WHAT` misbehaves once, at a step of the protocol, as the side `new` or `old`:
  die, exit     ends at once, by a signal or with status 3
  hang          does nothing any more (the old side: until it is called off; it serves on)
  garbage       sends what is no message, and goes on
  deaf          closes its socket of the protocol (the old side serves on)
  say:TEXT      sends this message; \\n in it ends a line, %d is the migration's number
  flood:TEXT    sends it twenty thousand times
  slow          reads one byte a second
and WHAT+hang does nothing any more after that, WHAT+die ends.
Steps of the new side: boot hello receive verify ready commit committed restore
Steps of the old side: send converged freeze frozen yield save stop
"""
import argparse
import array
import os
import select
import signal
import socket
import sys
import threading
import time

# A whole snapshot of the format; what is saved is always this.
SAVED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "saved")


class App:
    def __init__(self):
        parser = argparse.ArgumentParser()
        parser.add_argument("--do", action="append", default=[])
        parser.add_argument("--instance", help="misbehave in this instance only")
        parser.add_argument("--release", default="1")
        parser.add_argument("--protocol", default="1")
        parser.add_argument("--boot-until", help="say HELLO once this file exists")
        parser.add_argument("--commit-until", help="commit once this file exists")
        parser.add_argument("--verify-until", help="verify once this file exists")
        parser.add_argument("--notify-when", help="accept, and say READY=1, once this file exists")
        parser.add_argument("--padding", type=int, default=0, help="bytes of state beside the number")
        parser.add_argument("--ballast", type=int, default=0, help="bytes of memory to hold")
        self.options = parser.parse_args()
        self.misdeeds = dict(deed.split("=", 1) for deed in self.options.do)
        if self.options.instance not in (None, os.environ["HEIRLOOM_INSTANCE"]):
            self.misdeeds = {}
        self.ballast = b"x" * self.options.ballast
        self.socket = socket.socket(fileno=int(os.environ["HEIRLOOM_FD"]))
        self.value = 0
        self.origin = "nothing"
        self.gate = threading.Condition()
        self.frozen = False
        self.migration = 0
        count = int(os.environ.get("LISTEN_FDS", 0))
        self.listeners = [socket.socket(fileno=3 + number) for number in range(count)]

    # The protocol's socket.

    def say(self, name, **keys):
        lines = ["MESSAGE=%s" % name] + ["%s=%s" % (key.upper(), value) for key, value in keys.items()]
        try:
            self.socket.send(("\n".join(lines) + "\n").encode())
        except OSError:
            pass  # Somebody has gone, which is seen elsewhere.

    def hear(self, timeout=None):
        """The next order as a dictionary, with what came along; none once the time is over."""
        ready, _, _ = select.select([self.socket], [], [], timeout)
        if not ready:
            return None
        bytes_, control, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(16))
        if not bytes_:
            os._exit(4)
        fds = array.array("i")
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % 4])
        order = dict(line.split("=", 1) for line in bytes_.decode().splitlines())
        order["fds"] = list(fds)
        return order

    def step(self, side, step):
        """Misbehaves, if it is to; says whether the old side is to leave this migration."""
        what = self.misdeeds.pop("%s:%s" % (side, step), None)
        if what is None:
            return False
        what, _, then = what.partition("+")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "exit":
            sys.stderr.write("told to exit\n")
            sys.stderr.flush()
            os._exit(3)
        if what == "garbage":
            self.socket.send(b"\xff\xfe no message")
        elif what.startswith("say:"):
            text = what.removeprefix("say:").replace("\\n", "\n").replace("%d", str(self.migration))
            self.socket.send(text.encode())
        elif what.startswith("flood:"):
            text = what.removeprefix("flood:").replace("\\n", "\n").replace("%d", str(self.migration))
            for _ in range(20000):
                self.socket.send(text.encode())
        elif what == "deaf":
            self.socket.close()
            while True:
                time.sleep(60)
        elif what == "hang":
            if side == "old":
                while True:
                    order = self.hear()
                    if order["MESSAGE"] == "ABORT":
                        return True
            while True:
                time.sleep(60)
        elif what == "slow":
            self.slow = True
        if then == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while then == "hang":
            time.sleep(60)
        return False

    # Serving.

    def serve(self):
        selector = select.epoll()
        for listener in self.listeners:
            listener.setblocking(False)
            selector.register(listener, select.EPOLLIN)
        by_number = {listener.fileno(): listener for listener in self.listeners}
        while True:
            for number, _ in selector.poll():
                with self.gate:
                    # Who comes while the state stands still waits in the listener.
                    self.gate.wait_for(lambda: not self.frozen)
                try:
                    connection, _ = by_number[number].accept()
                except OSError:
                    continue
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        with connection:
            connection.settimeout(60)
            request = b""
            while b"\r\n\r\n" not in request:
                more = connection.recv(4096)
                if not more:
                    return
                request += more
            with self.gate:
                self.gate.wait_for(lambda: not self.frozen)
                self.value += 1
                lines = {
                    "value": self.value,
                    "generation": os.environ["HEIRLOOM_GENERATION"],
                    "pid": os.getpid(),
                    "release": self.options.release,
                    "origin": self.origin,
                }
            body = "".join("%s=%s\n" % line for line in lines.items()).encode()
            head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head.encode() + body)

    def own(self):
        """From now on the state is ours."""

        def begin():
            if self.options.notify_when:
                wait_for(self.options.notify_when)
                address = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
                    to.sendto(b"READY=1", address)
            self.serve()

        threading.Thread(target=begin, daemon=True).start()
        self.orders()

    # The new side.

    def start(self):
        if self.options.boot_until:
            wait_for(self.options.boot_until)
        self.step("new", "boot")
        self.say("HELLO", protocol=self.options.protocol, version=self.options.release)
        self.step("new", "hello")
        while True:
            order = self.hear()
            name = order["MESSAGE"]
            if name == "BEGIN":
                return self.own()
            if name == "RECEIVE":
                return self.receive(order)
            if name == "RESTORE":
                return self.restore(order)
            if name == "ABORT":
                os._exit(0)

    def receive(self, order):
        self.migration = int(order["MIGRATION"])
        stream, lifeline, link = order["fds"]
        lifeline = socket.socket(fileno=lifeline)
        self.slow = False
        self.step("new", "receive")
        text = b""
        while True:
            more = os.read(stream, 1 if self.slow else 65536)
            if self.slow:
                time.sleep(1)
            if not more:
                break
            text = (text + more)[-200:]
        self.step("new", "verify")
        if self.options.verify_until:
            wait_for(self.options.verify_until)
        if not text.endswith(b"END\n"):
            self.say("REJECT", migration=self.migration, reason="the stream ends without its end mark")
            self.abandoned()
        self.value = int(text.split()[-2])
        self.say("READY", migration=self.migration, entries=1, bytes=len(text) + self.options.padding)
        self.step("new", "ready")
        alone = self.commit_order()
        self.step("new", "commit")
        if self.options.commit_until:
            wait_for(self.options.commit_until)
        if not alone:
            try:
                lifeline.send(b"MESSAGE=COMMITTED\n", socket.MSG_NOSIGNAL)
            except OSError:
                # Refused; unless the other side is dead, which the supervisor knows.
                alone = self.commit_order()
        self.step("new", "committed")
        self.origin = "generation " + order["FROM"]
        self.say("COMMITTED", migration=self.migration, at_usec=now_usec())
        self.lifeline, self.link = lifeline, link
        self.own()

    def commit_order(self):
        """Waits for the order to commit; whether the other side is dead."""
        while True:
            order = self.hear()
            if order["MESSAGE"] == "COMMIT":
                return order.get("ALONE") == "1"
            if order["MESSAGE"] == "ABORT":
                os._exit(0)

    def abandoned(self):
        while self.hear()["MESSAGE"] != "ABORT":
            pass
        os._exit(0)

    def restore(self, order):
        self.migration = int(order["MIGRATION"])
        self.step("new", "restore")
        with os.fdopen(order["fds"][0], "rb") as file:
            saved = file.read()
        with open(SAVED, "rb") as file:
            sound = saved == file.read()
        if not sound:
            self.say("REJECT", migration=self.migration, reason="it is damaged at byte %d" % len(saved))
            self.abandoned()
        self.say("READY", migration=self.migration, entries=7, bytes=len(saved))
        self.step("new", "ready")
        if not self.commit_order():
            os._exit(5)
        self.step("new", "commit")
        self.origin = "a file"
        self.say("COMMITTED", migration=self.migration, at_usec=now_usec())
        self.step("new", "committed")
        self.own()

    # The old side.

    def orders(self):
        while True:
            order = self.hear()
            name = order["MESSAGE"]
            if name == "SEND":
                self.send(order)
            elif name == "RETIRE":
                os._exit(0)
            elif name in ("SAVE", "STOP"):
                self.save(order, name == "STOP")
            else:
                for fd in order["fds"]:
                    os.close(fd)

    def save(self, order, ends):
        self.migration = int(order["MIGRATION"])
        if not self.step("old", "stop" if ends else "save"):
            with open(SAVED, "rb") as file:
                whole = file.read()
            cut = int(os.environ.get("SAVE_ALL_BUT", 0))
            written = whole[: len(whole) - cut]
            os.write(order["fds"][0], written)
            self.say(
                "SAVED", migration=self.migration, entries=7, bytes=len(written), rounds=1, pause_usec=1500
            )
        os.close(order["fds"][0])
        if ends:
            os._exit(0)

    def send(self, order):
        self.migration = int(order["MIGRATION"])
        stream, lifeline, link = order["fds"]
        lifeline = socket.socket(fileno=lifeline)
        try:
            ended = self.copy(order, stream, lifeline)
        except BrokenPipeError:
            if self.frozen:
                ended = self.resolve(lifeline, "the reader is gone")
            else:
                ended = "failed"
                self.say("FAILED", migration=self.migration, reason="the reader is gone")
        if ended == "yielded":
            self.lifeline, self.link = lifeline, link
        else:
            lifeline.close()
            os.close(link)

    def copy(self, order, stream, lifeline):
        rehearsal = order["PURPOSE"] == "rehearsal"
        with os.fdopen(stream, "wb", buffering=0) as stream:
            if self.step("old", "send"):
                return "called off"
            left = self.options.padding
            while left > 0:
                left -= stream.write(b"x" * min(left, 65536))
            stream.write(b"base\n")
            self.say("CONVERGED", migration=self.migration, rounds=1, bytes=5)
            if self.step("old", "converged"):
                return "called off"
            while True:
                name = self.hear()["MESSAGE"]
                if name == "ABORT":
                    return "called off"
                if name == "FREEZE":
                    break
            with self.gate:
                self.frozen = True
            at = now_usec()
            deadline = time.monotonic() + int(order["FREEZE_USEC"]) / 1e6
            if self.step("old", "freeze"):
                return self.resolve(lifeline, "it was called off")
            stream.write(b"\n%d\nEND\n" % self.value)
        if rehearsal:
            self.thaw()
        self.say(
            "FROZEN",
            migration=self.migration,
            at_usec=at,
            rounds=2,
            bytes=10 + self.options.padding,
            stall_usec=300,
        )
        if self.step("old", "frozen"):
            return self.resolve(lifeline, "it was called off")
        while True:
            left = None if rehearsal else max(0, deadline - time.monotonic())
            wanted = [self.socket] if rehearsal else [lifeline, self.socket]
            ready, _, _ = select.select(wanted, [], [], left)
            if lifeline in ready:
                said = lifeline.recv(512)
                if b"COMMITTED" in said:
                    return self.yield_()
                if not said:
                    return self.resolve(lifeline, "the new one is gone")
            elif self.socket in ready:
                if self.hear()["MESSAGE"] == "ABORT":
                    if rehearsal:
                        return "called off"
                    return self.resolve(lifeline, "it was called off")
            else:
                return self.resolve(lifeline, "it stood still for as long as it may")

    def resolve(self, lifeline, reason):
        """Takes the state back, unless the new one owns it."""
        try:
            lifeline.shutdown(socket.SHUT_RD)
        except OSError:
            pass
        lifeline.setblocking(False)
        while True:
            try:
                said = lifeline.recv(512)
            except OSError:
                said = b""
            if b"COMMITTED" in said:
                return self.yield_()
            if not said:
                break
        self.thaw()
        self.say("THAWED", migration=self.migration, at_usec=now_usec(), reason=reason)
        return "thawed"

    def yield_(self):
        self.step("old", "yield")
        self.say("YIELDED", migration=self.migration, at_usec=now_usec())
        # No connection moves; a report waits for a while for one who does not say so.
        self.say("MOVED", migration=self.migration, moved="", left="")
        return "yielded"

    def thaw(self):
        with self.gate:
            self.frozen = False
            self.gate.notify_all()


def now_usec():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.002)


App().start()
