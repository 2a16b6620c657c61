# SPDX-License-Identifier: BSD-3-Clause
"""Redis in the guest: values that follow from their keys, checked byte by byte on the host.

Every value is made from (number of the key, how often it was rewritten) by SHAKE-128; half of each
4 KiB is pseudo-random, half repeats, so that it compresses about two to one. What the guest answers
is compared with what the host makes anew: a single wrong byte is found, wherever it was lost.
"""
import bisect
import hashlib
import random
import socket
import threading
import time

from .process import Failure, wait_for
from .qmp import Lines

CHUNK = 4096
IN_FLIGHT = 16 # requests sent ahead of their answers: the round trip under TCG is a millisecond


def make_value(number, version, size):
    """The value of a key after `version` rewrites; size is a multiple of CHUNK."""
    chunks = size // CHUNK
    noise = hashlib.shake_128(b"%d.%d" % (number, version)).digest(chunks * CHUNK // 2)
    out = []
    for n in range(chunks):
        half = noise[n * CHUNK // 2:(n + 1) * CHUNK // 2]
        out += (half, half[:64] * (CHUNK // 2 // 64))
    return b"".join(out)


def wrong_bytes(got, want):
    if got == want:
        return 0
    if got is None:
        return len(want)
    return abs(len(got) - len(want)) + sum(a != b for a, b in zip(got, want))


class Connection:
    """A client connection that keeps IN_FLIGHT requests under way."""

    def __init__(self, port, timeout=120.0):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lines = Lines(self.sock)

    def send(self, *parts):
        out = [b"*%d\r\n" % len(parts)]
        for p in parts:
            p = p.encode() if isinstance(p, str) else p
            out += (b"$%d\r\n" % len(p), p, b"\r\n")
        self.sock.sendall(b"".join(out))

    def answer(self):
        line = self.lines.line()
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise Failure("Redis: " + rest.decode())
        if kind != b"$":
            return rest
        if rest == b"-1":
            return None
        return self.lines.read(int(rest) + 2)[:-2]

    def call(self, *parts):
        self.send(*parts)
        return self.answer()

    def pipeline(self, requests, on_answer):
        """requests: an iterable of (tag, parts); on_answer(tag, answer) for each, in order."""
        waiting = []
        for tag, parts in requests:
            self.send(*parts)
            waiting.append(tag)
            if len(waiting) == IN_FLIGHT:
                on_answer(waiting.pop(0), self.answer())
        for tag in waiting:
            on_answer(tag, self.answer())

    def close(self):
        self.sock.close()


class Redis:
    """The data set in a guest's Redis, and what it must hold."""

    def __init__(self, guest, mib, value_bytes=64 << 10, seed=1):
        self.guest, self.value_bytes = guest, value_bytes
        self.count = (mib << 20) // value_bytes
        self.version = [0] * self.count
        self.random = random.Random(seed)
        self.wrong = self.checked = 0
        self.connection = None
        # Zipf-like: key n is asked for with a weight of 1 / (n + 1), in a shuffled order.
        total, self.cumulative = 0.0, []
        for n in range(self.count):
            total += 1.0 / (n + 1)
            self.cumulative.append(total)
        self.order = list(range(self.count))
        self.random.shuffle(self.order)

    def start(self):
        self.guest.start("redis", "exec redis-server --save \"\" --appendonly no --bind 0.0.0.0 "
                                  "--protected-mode no --activedefrag no --dir /tmp")
        port = self.guest.forwarded_port()

        def answers():
            try:
                self.connection = Connection(port)
                return self.connection.call("PING") == b"PONG"
            except (OSError, Failure):
                return False
        wait_for(answers, "Redis in the guest", 60, self.guest.child, step=0.2)

    @property
    def total_bytes(self):
        return self.count * self.value_bytes

    def _set(self, number):
        return ("set", number), ("SET", "key:%d" % number,
                                 make_value(number, self.version[number], self.value_bytes))

    def _get(self, number):
        return ("get", number, self.version[number]), ("GET", "key:%d" % number)

    def _answer(self, tag, answer):
        if tag[0] == "set":
            if answer != b"OK":
                raise Failure("Redis answered SET with %r" % answer)
            return
        want = make_value(tag[1], tag[2], self.value_bytes)
        self.checked += len(want)
        self.wrong += wrong_bytes(answer, want)

    def _all(self, request, progress):
        done = 0

        def requests():
            for n in range(self.count):
                yield request(n)

        def answer(tag, value):
            nonlocal done
            self._answer(tag, value)
            done += 1
            if progress:
                progress(done * self.value_bytes, self.total_bytes)
        self.connection.pipeline(requests(), answer)

    def fill(self, progress=None):
        self._all(self._set, progress)

    def verify(self, progress=None):
        """Compares every byte of every value; returns how many were wrong in this pass."""
        before = self.wrong
        self._all(self._get, progress)
        return self.wrong - before

    def load(self, seconds, progress=None, writes=0.3, until=lambda: False):
        """Reads, with every answer checked, and rewrites, most of them of a few keys, for a while.
        Returns the number of operations."""
        start, done = time.monotonic(), 0

        def requests():
            while time.monotonic() - start < seconds and not until():
                rank = bisect.bisect(self.cumulative, self.random.random() * self.cumulative[-1])
                number = self.order[min(rank, self.count - 1)]
                if self.random.random() < writes:
                    self.version[number] += 1
                    yield self._set(number)
                else:
                    yield self._get(number)

        def answer(tag, value):
            nonlocal done
            self._answer(tag, value)
            done += 1
            if progress:
                progress(min(time.monotonic() - start, seconds), seconds)
        self.connection.pipeline(requests(), answer)
        return done


class Load:
    """Redis' load in a thread, while something else is done: with Load(redis) as load. What went
    wrong in the thread is raised at the end; nothing else may use the connection until then."""

    def __init__(self, redis):
        self.redis = redis
        self.operations = 0 # answered so far
        self.error = None
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self.redis.load(float("inf"), self._answered, until=self.end.is_set)
        except (Failure, OSError) as e:
            self.error = e

    def _answered(self, _done, _total):
        self.operations += 1

    def wait_answers(self, count, what, timeout=60.0):
        """Waits for that many answers more than there are now."""
        goal = self.operations + count
        wait_for(lambda: self.error or self.operations >= goal, what, timeout,
                 self.redis.guest.child)
        if self.error:
            raise self.error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.end.set()
        if kind is not None:
            return # an answer may never come: the thread ends with QEMU
        self.thread.join()
        if self.error:
            raise self.error
