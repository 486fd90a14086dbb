"""What the tests of a native app's conduct have in common: a service with notes and counters, and
clients that use it meanwhile."""

import os
import threading
import unittest

from driver import Migration, Service, eventually

NOTES = 60  # of a kilobyte each: more than a held stream has room for
KEYS = 10
CLIENTS = 4


class Clients:
    """Clients that add to counters without a pause and without a second try."""

    def __init__(self, service):
        self.service, self.stopping = service, threading.Event()
        self.acknowledged, self.failures = dict.fromkeys(range(KEYS), 0), []
        self.answers, self.lock = 0, threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def run(self, turn):
        client = self.service.client()
        while not self.stopping.is_set():
            turn += 1
            try:
                # Half of them keep their connection as long as the service does.
                headers = {"Connection": "close"} if turn % 8 < 4 else {}
                client.request("POST", f"/counters/{turn % KEYS}", headers=headers)
                answer = client.getresponse()
                answer.read()
                if answer.status != 200:
                    raise AssertionError(f"status {answer.status}")
            except Exception as error:
                self.failures.append(repr(error))
                return
            with self.lock:
                self.acknowledged[turn % KEYS] += 1
                self.answers += 1
        client.close()

    def more(self, count=50):
        """Waits until so many more have been answered."""
        wanted = self.answers + count
        eventually("more answers", lambda: self.answers >= wanted or self.failures)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return self.acknowledged


class Case(unittest.TestCase):
    """A test with a service of its own, of which no generation outlives the test."""

    def setUp(self):
        self.service = Service()
        self.addCleanup(self.service.close)
        self.addCleanup(self.no_traceback)
        self.text = self.service.text

    def no_traceback(self):
        """What a program says goes to a file; an error of its own is in there."""
        self.service.errors.seek(0)
        said = self.service.errors.read()
        self.assertNotIn("Traceback", said)

    def add(self, key="k"):
        return int(self.text("POST", f"/counters/{key}"))

    def fill(self):
        self.write("x" * 1000)

    def write(self, note):
        """Stores all notes anew, on one connection."""
        client = self.service.client()
        for number in range(NOTES):
            client.request("PUT", f"/notes/{number}", note)
            self.assertEqual(client.getresponse().read(), b"")
        client.close()

    def serves(self, generation, former=0):
        said = self.text("GET", "/hello")
        self.assertEqual(said, f"hello, generation={generation.number}, oldgeneration={former}\n")

    def handed_over(self, old):
        """A whole handover to a new generation."""
        new = self.service.start()
        Migration(old, new).whole()
        self.assertEqual(old.ended(), 0)
        self.serves(new, old.number)
        return new

    def file(self):
        return os.open(f"{self.service.directory.name}/state", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
