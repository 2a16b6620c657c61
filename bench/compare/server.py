# SPDX-License-Identifier: BSD-3-Clause
"""Redis as a workload of bench/compare: the server in a cell, redis-benchmark beside it.

The server's memory comes from jemalloc, in large anonymous mappings, and it saves nothing, so it
never forks: what the benchmark's heap library (heap.c) needs. Keys are those that redis-benchmark
asks for; every value is known, and all are compared at the end.
"""
import os
import random
import re
import shutil
import socket
import subprocess
import time

from machine import Refused, read

SERVERS = {"redis": ("redis-get", "redis-set")}
VALUE_BYTES = 1000
# What a key takes with its value: 1024 for the value, the rest for the key and the table.
KEY_BYTES = 1150
CLIENTS = 8
FEW = 5000  # requests, to see how fast it goes
BATCH = 256
START_WAIT = 30
TICK = os.sysconf("SC_CLK_TCK")
POOL = random.Random(1).randbytes(1 << 20)


def value_of(number):
    """Half of it does not compress; no two are the same."""
    at = number * 7919 % (len(POOL) - 500)
    head = b"%012d" % number
    return head + POOL[at:at + 500] + (head * 41)[:VALUE_BYTES - 512]


class Connection:
    """As much of Redis's protocol as it takes."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(600)
        self.sock.connect(path)
        self.file = self.sock.makefile("rb")

    def send(self, commands):
        out = []
        for words in commands:
            out.append(b"*%d\r\n" % len(words))
            out.extend(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
        self.sock.sendall(b"".join(out))

    def answer(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:].strip()
        if kind in (b"+", b":"):
            return rest
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        raise Refused("redis-server says %r" % line)

    def close(self):
        self.file.close()
        self.sock.close()


class Redis:
    """One redis-server with about size bytes of keys."""

    def __init__(self, cell, size, folder):
        for program in ("redis-server", "redis-benchmark"):
            if not shutil.which(program):
                raise Refused("%s is not installed" % program)
        self.path = os.path.join(folder, "redis.sock")
        self.keys = size // KEY_BYTES
        self.overwritten = None
        self.server = cell.start(
            ["redis-server", "--port", "0", "--unixsocket", self.path, "--save", "", "--appendonly",
             "no", "--dir", folder, "--logfile", os.path.join(folder, "redis.log")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        end = time.monotonic() + START_WAIT
        while True:
            try:
                self.connection = Connection(self.path)
                break
            except OSError:
                if self.server.poll() is not None or time.monotonic() > end:
                    raise Refused("redis-server does not start") from None
                time.sleep(0.05)
        self.before = self.resident()
        self.size = 0

    def resident(self):
        """Bytes in its memory, whose file they may be."""
        status = read("/proc/%d/status" % self.server.pid)
        return sum(int(re.search(name + r":\s+(\d+) kB", status).group(1)) << 10
                   for name in ("RssAnon", "RssShmem"))

    def batches(self, words_of):
        """Sends a command for every key, some at a time; yields (number, answer)."""
        for first in range(0, self.keys, BATCH):
            numbers = range(first, min(first + BATCH, self.keys))
            self.connection.send([words_of(n) for n in numbers])
            for n in numbers:
                yield n, self.connection.answer()

    def fill(self):
        for _ in self.batches(lambda n: (b"SET", b"key:%012d" % n, value_of(n))):
            pass
        # What redis-benchmark will write is always the same; its first key gets it now.
        self.benchmark("set", 1, keys=1)
        self.connection.send([(b"GET", b"key:%012d" % 0)])
        self.overwritten = self.connection.answer()
        self.size = self.resident() - self.before

    def benchmark(self, test, requests, keys=None):
        return subprocess.run(
            ["redis-benchmark", "-s", self.path, "-t", test, "-r", str(keys or self.keys), "-n",
             str(requests), "-c", str(CLIENTS), "-d", str(VALUE_BYTES), "--precision", "3"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=True).stdout

    @staticmethod
    def figures(text):
        """Requests a second and {part: us} of what redis-benchmark printed."""
        rate = re.search(r"throughput summary: ([\d.]+) requests per second", text)
        steps = re.findall(r"([\d.]+)% <= ([\d.]+) milliseconds", text)
        if not rate or not steps:
            raise Refused("redis-benchmark says:\n" + text[-500:])
        at = {}
        for part in (50, 99, 99.9):
            at[part] = next((float(ms) * 1e3 for reached, ms in steps if float(reached) >= part),
                            float(steps[-1][1]) * 1e3)
        return float(rate.group(1)), at

    def cpu(self):
        words = read("/proc/%d/stat" % self.server.pid).rsplit(")", 1)[1].split()
        return int(words[11]) / TICK, int(words[12]) / TICK

    def stir(self):
        self.benchmark("get", FEW)

    def run(self, workload, _threads, _write, warm, seconds):
        test = workload.partition("-")[2]
        rate, _ = self.figures(self.benchmark(test, FEW))
        self.benchmark(test, max(int(rate * warm), FEW))
        user, system = self.cpu()
        requests = max(int(rate * seconds), FEW)
        rate, at = self.figures(self.benchmark(test, requests))
        user_now, system_now = self.cpu()
        return {"accesses": requests, "accesses_s": rate, "wrong": 0, "user_s": user_now - user,
                "sys_s": system_now - system, "request_p50_us": at[50], "request_p99_us": at[99],
                "request_p999_us": at[99.9], "cdf": []}

    def wrong(self):
        """How many values are neither the first nor what redis-benchmark wrote."""
        return sum(value not in (value_of(n), self.overwritten)
                   for n, value in self.batches(lambda n: (b"GET", b"key:%012d" % n)))
