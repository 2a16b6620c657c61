# SPDX-License-Identifier: BSD-3-Clause
"""Servers as workloads of bench/compare: the server in a cell, Debian's load generator beside it.

Their memory comes from jemalloc, in large anonymous mappings, and they save nothing, so they never
fork: what the benchmark's heap library (heap.c) needs.

Redis: keys are those that redis-benchmark asks for; every value is known. memcached: memcaslap makes
up its keys itself, stores them, and goes on asking until it is ended; the values are read once
before anything is evicted. All are compared at the end. Both draw keys evenly; -zipf is asked by
compare_ask (ask.c), and memcached has the same keys and values as Redis then.

redis-guest is Redis in a Linux guest (vmm.py), asked over the guest's network: the memory that is
limited is the guest's RAM, all that the guest's kernel uses of it included.
"""
import ctypes.util
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
import urllib.parse

import vmm
from machine import Refused, read

SERVERS = {"redis": ("redis-get", "redis-zipf", "redis-set"), "memcached": ("memcached-get",),
           "memcached-zipf": ("memcached-zipf",),
           "redis-guest": ("redis-guest-get", "redis-guest-set")}
VALUE_BYTES = 1000
# What a key takes with its value: 1024 for the value, the rest for the key and the table.
KEY_BYTES = 1150
CLIENTS = 8
FEW = 5000  # requests, to see how fast it goes
BATCH = 256
START_WAIT = 60
TICK = os.sysconf("SC_CLK_TCK")
POOL = random.Random(1).randbytes(1 << 20)


def value_of(number):
    """Half of it does not compress; no two are the same."""
    at = number * 7919 % (len(POOL) - 500)
    head = b"%012d" % number
    return head + POOL[at:at + 500] + (head * 41)[:VALUE_BYTES - 512]


class Connection:
    """As much of Redis's protocol as it takes. where: a socket's path, or a port of ours."""

    def __init__(self, where):
        local = isinstance(where, str)
        self.sock = socket.socket(socket.AF_UNIX if local else socket.AF_INET)
        self.sock.settimeout(600)
        self.sock.connect(where if local else ("127.0.0.1", where))
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


class Server:
    """What both have in common: self.server, its process."""

    size = before = keys = 0
    own_memory = False  # resident() is of what is limited, which the process has more than

    def __init__(self, cell, size):
        self.build, self.keys = cell.build, size // KEY_BYTES

    def ask_zipf(self, kind, where, warm, seconds):
        """What compare_ask says, with the server's CPU time."""
        before = self.cpu()
        p = subprocess.run([self.build + "/bench/compare/compare_ask", kind, str(where), "zipf",
                            str(self.keys), str(VALUE_BYTES), str(warm), str(seconds)],
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
        if p.returncode and not p.stdout:
            raise Refused("compare_ask: status %d" % p.returncode)
        user, system = (now - then for now, then in zip(self.cpu(), before))
        return dict(json.loads(p.stdout), user_s=user, sys_s=system, cdf=[])

    @staticmethod
    def installed(*programs):
        for program in programs:
            if not shutil.which(program):
                raise Refused("%s is not installed" % program)

    def connect(self, attempt):
        """attempt() as soon as it does not fail; self.before is what the server takes then."""
        end = time.monotonic() + START_WAIT
        while True:
            try:
                done = attempt()
                break
            except OSError:
                if self.server.poll() is not None or time.monotonic() > end:
                    raise Refused("%s does not start" % self.server.args[0]) from None
                time.sleep(0.05)
        self.before = self.resident()
        return done

    def resident(self):
        """Bytes in its memory, whose file they may be."""
        status = read("/proc/%d/status" % self.server.pid)
        return sum(int(re.search(name + r":\s+(\d+) kB", status).group(1)) << 10
                   for name in ("RssAnon", "RssShmem"))

    def filled(self):
        self.size = self.resident() - self.before

    def cpu(self):
        words = read("/proc/%d/stat" % self.server.pid).rsplit(")", 1)[1].split()
        return int(words[11]) / TICK, int(words[12]) / TICK


class Redis(Server):
    """One redis-server with about size bytes of keys."""

    def __init__(self, cell, size, folder):
        self.installed("redis-server", "redis-benchmark")
        super().__init__(cell, size)
        self.overwritten = None
        self.where = self.start(cell, size, folder)  # a path or a port
        self.connection = self.connect(self.answering)

    def start(self, cell, _size, folder):
        path = os.path.join(folder, "redis.sock")
        self.server = cell.start(
            ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly",
             "no", "--dir", folder, "--logfile", os.path.join(folder, "redis.log")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return path

    def answering(self):
        """A connection; a guest's network takes it before there is anyone to answer."""
        connection = Connection(self.where)
        connection.send([(b"PING",)])
        try:
            connection.answer()
        except Refused as e:
            raise OSError(str(e)) from None
        return connection

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
        # What redis-benchmark will write is always the same: its first key gets it for a moment.
        self.benchmark("set", 1, keys=1)
        self.connection.send([(b"GET", b"key:%012d" % 0)])
        self.overwritten = self.connection.answer()
        self.connection.send([(b"SET", b"key:%012d" % 0, value_of(0))])
        self.connection.answer()
        self.filled()

    def benchmark(self, test, requests, keys=None):
        where = ["-s"] if isinstance(self.where, str) else ["-h", "127.0.0.1", "-p"]
        return subprocess.run(
            ["redis-benchmark", *where, str(self.where), "-t", test, "-r",
             str(keys or self.keys), "-n", str(requests), "-c", str(CLIENTS), "-d", str(VALUE_BYTES), "--precision", "3"],
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

    def stir(self):
        self.benchmark("get", FEW)

    def run(self, workload, _threads, _write, warm, seconds):
        test = workload.rpartition("-")[2]
        if test == "zipf":
            return self.ask_zipf("redis", self.where, warm, seconds)
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


class RedisGuest(Redis):
    """The same in a guest."""

    own_memory = True

    def start(self, cell, size, folder):
        self.installed(vmm.QEMU)
        self.vmm = vmm.Vmm(cell, size * 5 // 4, folder)
        self.server = self.vmm.process
        self.vmm.guest.start("redis", "exec redis-server --save '' --appendonly no --bind 0.0.0.0 "
                                      "--protected-mode no --dir /tmp")
        return self.vmm.guest.forwarded_port()

    def resident(self):
        return self.vmm.resident()

    def filled(self):
        self.size = self.resident()  # the guest's kernel too


class Memcached(Server):
    """One memcached with about size bytes of values, and memcaslap at work all the time."""

    def __init__(self, cell, size, folder):
        super().__init__(cell, size)
        self.installed("memcached", "memcaslap")
        jemalloc = ctypes.util.find_library("jemalloc")
        if not jemalloc:
            raise Refused("libjemalloc is not installed")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        # memcaslap takes thousands (of 1024) for each client.
        self.window = max(size // KEY_BYTES // CLIENTS >> 10, 1)
        self.setting = os.path.join(folder, "memcaslap.cfg")
        with open(self.setting, "w", encoding="ascii") as out:
            out.write("key\n16 16 1\nvalue\n%d %d 1\ncmd\n0 0.0\n1 1.0\n"
                      % (VALUE_BYTES, VALUE_BYTES))
        self.server = cell.start(
            ["memcached", "-u", "root", "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-t",
             "1", "-m", str(2 * size >> 20)], env={"LD_PRELOAD": jemalloc},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.connect(self.stats)
        self.values = {}
        self.start_load(cell)

    def start_load(self, cell):
        """Outside of the cell, and ended with it. It stores its keys first."""
        self.load = subprocess.Popen(
            ["memcaslap", "-s", "127.0.0.1:%d" % self.port, "-T", "1", "-c", str(CLIENTS), "-w",
             "%dk" % self.window, "-F", self.setting, "-t", "1d"], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        cell.processes.append(self.load)

    def ask(self, command, end=b"END\r\n"):
        with socket.create_connection(("127.0.0.1", self.port), timeout=600) as sock:
            sock.sendall(command + b"\r\n")
            text = bytearray()
            while not text.endswith(end):
                got = sock.recv(1 << 20)
                if not got:
                    raise Refused("memcached says %r" % bytes(text[-100:]))
                text += got
        return bytes(text)

    def stats(self):
        return dict(line.split(" ", 2)[1:]
                    for line in self.ask(b"stats").decode().splitlines()[:-1])

    def read_all(self, keys):
        """{key: hash of what is stored}"""
        found = {}
        for first in range(0, len(keys), BATCH):
            text = self.ask(b"get " + b" ".join(keys[first:first + BATCH]))
            while not text.startswith(b"END"):
                head, text = text.split(b"\r\n", 1)
                _, key, _, length = head.split()
                found[key] = hash(text[:int(length)])
                text = text[int(length) + 2:]
        return found

    def fill(self):
        wanted = CLIENTS * self.window << 10
        # The listing may miss what is being moved; a few keys less are as good.
        while int(self.stats()["curr_items"]) < wanted or len(self.values) < wanted * 0.99:
            if self.load.poll() is not None:
                raise Refused("memcaslap ended")
            time.sleep(0.1)
            if int(self.stats()["curr_items"]) >= wanted:
                listing = self.ask(b"lru_crawler metadump all")
                self.values = self.read_all([urllib.parse.unquote_to_bytes(key) for key in
                                             re.findall(rb"^key=(\S+)", listing, re.M)])
        self.filled()

    def stir(self):
        time.sleep(0.7)

    def run(self, _workload, _threads, _write, warm, seconds):
        time.sleep(warm)
        before, start = self.stats(), time.monotonic()
        user, system = self.cpu()
        time.sleep(seconds)
        after, took = self.stats(), time.monotonic() - start
        user_now, system_now = self.cpu()
        got = int(after["cmd_get"]) - int(before["cmd_get"])
        return {"accesses": got, "accesses_s": got / took, "wrong": int(after["get_misses"]),
                "user_s": user_now - user, "sys_s": system_now - system, "cdf": []}

    def wrong(self):
        """How many values are not what they were when all of them were in place."""
        now = self.read_all(list(self.values))
        return sum(now.get(key) != value for key, value in self.values.items())


class MemcachedZipf(Memcached):
    """memcached with keys and values like Redis's, asked by compare_ask."""

    def start_load(self, cell):
        pass

    @staticmethod
    def key(number):
        return b"key:%012d" % number

    def fill(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=600) as sock:
            for n in range(self.keys):
                sock.sendall(b"set %s 0 0 %d noreply\r\n%s\r\n" % (self.key(n), VALUE_BYTES,
                                                                value_of(n)))
            sock.sendall(b"mn\r\n")
            if sock.recv(16) != b"MN\r\n":
                raise Refused("memcached does not take the values")
        self.filled()

    def stir(self):
        self.ask_zipf("memcached", self.port, 0, 0.7)

    def run(self, _workload, _threads, _write, warm, seconds):
        return self.ask_zipf("memcached", self.port, warm, seconds)

    def wrong(self):
        found = self.read_all([self.key(n) for n in range(self.keys)])
        return sum(found.get(self.key(n)) != hash(value_of(n)) for n in range(self.keys))


KINDS = {"redis": Redis, "memcached": Memcached, "memcached-zipf": MemcachedZipf,
         "redis-guest": RedisGuest}
