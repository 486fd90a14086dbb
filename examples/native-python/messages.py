"""Messages of docs/protocol.md: lines of KEY=VALUE, one message a datagram, with descriptors.

Owns the grammar, its limits, and the socket to the supervisor. What the messages mean is left to
`outgoing`, `incoming` and `heirloom_native`.
"""

import os
import re
import socket
import sys
import time

LARGEST_BYTES = 64 * 1024
MOST_LINES = 1024
LONGEST_REASON_BYTES = 1024
MOST_DESCRIPTORS = 3
KEY = re.compile(r"[A-Za-z0-9_]+")

# What an order must have beside its name, and how many descriptors come with it.
ORDERS = {
    "BEGIN": ((), 0),
    "RECEIVE": (("MIGRATION", "FROM"), 3),
    "RESTORE": (("MIGRATION",), 1),
    "SEND": (("MIGRATION", "TO", "PURPOSE", "PAUSE_USEC", "FREEZE_USEC"), 3),
    "FREEZE": (("MIGRATION",), 0),
    "COMMIT": (("MIGRATION",), 0),
    "ABORT": (("MIGRATION",), 0),
    "RETIRE": ((), 0),
    "SAVE": (("MIGRATION",), 1),
    "STOP": (("MIGRATION",), 1),
}
NUMBERS = ("MIGRATION", "FROM", "TO", "PAUSE_USEC", "FREEZE_USEC", "ROUND")
PURPOSES = ("handover", "rehearsal")


class BadMessage(ValueError):
    """What arrived is no message of this protocol."""


def parse(datagram):
    """The lines of a message as a dictionary; `READS` is a list."""
    if len(datagram) > LARGEST_BYTES:
        raise BadMessage(f"a message of over {LARGEST_BYTES} bytes")
    try:
        lines = [line for line in datagram.decode().split("\n") if line]
    except UnicodeDecodeError as error:
        raise BadMessage("a message that is not UTF-8") from error
    if len(lines) > MOST_LINES:
        raise BadMessage(f"a message of over {MOST_LINES} lines")
    message = {"READS": []}
    for number, line in enumerate(lines):
        key, equals, value = line.partition("=")
        if not equals or not KEY.fullmatch(key):
            raise BadMessage(f"a line that is not KEY=VALUE: {line[:80]!r}")
        if number == 0 and key != "MESSAGE":
            raise BadMessage("the first line is not MESSAGE=")
        if key == "READS":
            message["READS"].append(value)
        elif key in NUMBERS and key not in message:
            if not re.fullmatch("[0-9]{1,20}", value, re.ASCII):
                raise BadMessage(f"{key}={value[:80]} is not a number")
            message[key] = int(value)
        else:
            message.setdefault(key, value)
    if "MESSAGE" not in message:
        raise BadMessage("an empty message")
    return message


def parse_order(datagram, fds):
    """An order with all that it needs."""
    order = parse(datagram)
    name = order["MESSAGE"]
    if name not in ORDERS:
        raise BadMessage(f"there is no order {name[:80]}; the supervisor is newer, or at fault")
    keys, descriptors = ORDERS[name]
    for key in keys:
        if key not in order:
            raise BadMessage(f"{name} needs {key}=")
    if order.get("PURPOSE", PURPOSES[0]) not in PURPOSES:
        raise BadMessage(f"PURPOSE={order['PURPOSE'][:80]} is not known")
    if fds != descriptors:
        raise BadMessage(f"{name} comes with {descriptors} descriptors; here are {fds}")
    order["REASON"] = order.get("REASON", "no reason was given")
    return order


def build(name, reads=(), **fields):
    """The bytes of a message."""
    if "REASON" in fields:
        line = fields["REASON"].replace("\n", " ").replace("\r", " ").encode()
        fields["REASON"] = line[:LONGEST_REASON_BYTES].decode(errors="ignore")
    lines = [f"MESSAGE={name}", *(f"{key}={value}" for key, value in fields.items())]
    lines += [f"READS={line}" for line in reads]
    return "".join(f"{line}\n" for line in lines).encode()


def monotonic_usec():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def complain(words):
    print(f"heirloom: {words}", file=sys.stderr, flush=True)


class Channel:
    """The socket to the supervisor. Orders go to `on_order` with their descriptors; its end is
    told to `on_gone`, once."""

    def __init__(self, loop, number, on_order, on_gone):
        self.socket = socket.socket(fileno=number)
        self.socket.set_inheritable(False)
        self.socket.setblocking(False)
        self.loop, self.on_order, self.on_gone = loop, on_order, on_gone
        self.gone = False
        loop.add_reader(self.socket, self._readable)

    def report(self, name, reads=(), **fields):
        """Tells the supervisor something. One that does not read for so long that its socket is
        full is as good as gone: waiting for it would hold up the service."""
        try:
            self.socket.send(build(name, reads, **fields), socket.MSG_NOSIGNAL)
        except OSError:
            self._end()

    def _end(self):
        if not self.gone:
            self.gone = True
            self.loop.remove_reader(self.socket)
            self.loop.call_soon(self.on_gone)

    def _readable(self):
        flags = socket.MSG_CMSG_CLOEXEC
        try:
            data, fds, flags, _ = socket.recv_fds(
                self.socket, LARGEST_BYTES, MOST_DESCRIPTORS, flags
            )
        except (BlockingIOError, InterruptedError, ConnectionResetError):
            return  # a reset is told once, ahead of what is queued; the end comes behind that
        except OSError:
            return self._end()
        if not data:
            return self._end()
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise BadMessage("a message or its descriptors did not fit")
            order = parse_order(data, len(fds))
        except BadMessage as error:
            complain(f"an order is passed over: {error}")
            for fd in fds:
                os.close(fd)
            return
        self.on_order(order, fds)
