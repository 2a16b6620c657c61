# SPDX-License-Identifier: BSD-3-Clause
"""harness.py: drives the attach socket over the fake engine, as good and bad clients would."""
import array
import ctypes
import fcntl
import json
import mmap
import os
import platform
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

BUILD = os.environ.get("EBB_BUILD", "build")
WAIT = 60  # seconds after which a test gives up; nothing is decided by it otherwise
PAGE = 4096
MIB = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)


def make_uffd(device_fd=None):
    """A userfaultfd on which UFFDIO_API was not called."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    if device_fd is not None:
        return fcntl.ioctl(device_fd, 0xAA00, flags)
    number = {"x86_64": 323, "aarch64": 282}[platform.machine()]
    fd = libc.syscall(number, flags)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    return fd


def make_memfd(size=4 * MIB, seals=0):
    fd = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def region(id="ram", host_addr=0x7F0000000000, size=4 * MIB, page_size=PAGE, memfd=1,
           memfd_offset=0, **more):
    r = dict(id=id, host_addr=host_addr, size=size, page_size=page_size, memfd=memfd,
             memfd_offset=memfd_offset)
    r.update(more)
    return r


def attach(name="guest1", regions=None, **more):
    args = dict(version=1, vm=dict(name=name, uuid="4dd9-1", pid=4242),
                regions=[region()] if regions is None else regions)
    args.update(more)
    return dict(execute="attach", arguments=args)


class Daemon:
    """The fake daemon with a thread that collects the engine's notes."""

    def __init__(self, **limits):
        self.dir = tempfile.TemporaryDirectory(prefix="ebb-attach.")
        self.path = os.path.join(self.dir.name, "attach.sock")
        args = [f"{k.replace('_', '-')}={v}" for k, v in limits.items()]
        self.proc = subprocess.Popen(
            [os.path.join(BUILD, "tests/attach/attach_fake_daemon"), self.path] + args,
            stdout=subprocess.PIPE, text=True)
        self.notes = queue.Queue()
        threading.Thread(target=self._collect, daemon=True).start()
        self.note("READY")
        self.idle_fds = self.fds()

    def _collect(self):
        for line in self.proc.stdout:
            self.notes.put(line.rstrip("\n"))

    def note(self, begins):
        """Waits for a note that begins so; the ones before it are dropped."""
        while True:
            line = self.notes.get(timeout=WAIT)
            if line.startswith(begins):
                return line

    def fds(self):
        return len(os.listdir(f"/proc/{self.proc.pid}/fd"))

    def settle(self):
        """Waits until all is closed that clients caused to be open; says what is left over."""
        for _ in range(WAIT * 100):
            left = self.fds() - self.idle_fds
            if left <= 0:
                break
            threading.Event().wait(0.01)
        return left

    def stop(self):
        self.proc.send_signal(signal.SIGTERM)
        status = self.proc.wait(WAIT)
        end = self.note("END")
        self.proc.stdout.close()
        self.dir.cleanup()
        return status, end


class Client:
    def __init__(self, daemon):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(daemon.path)  # waits where the daemon is behind with accepting
        self.sock.settimeout(WAIT)
        self.have = b""
        self.fds = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def send(self, message, fds=()):
        data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        n = self.sock.sendmsg([data], ancillary)
        if n < len(data):
            self.sock.sendall(data[n:])

    def line(self):
        """The next line, or None at the end of the stream."""
        while b"\n" not in self.have:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 65536, 8)
            except ConnectionResetError:
                return None
            self.fds += fds
            if not data:
                return None
            self.have += data
        line, self.have = self.have.split(b"\n", 1)
        return json.loads(line)

    def call(self, message, fds=()):
        self.send(message, fds)
        return self.line()

    def quiet(self):
        """Nothing has come that was not read."""
        self.sock.setblocking(False)
        try:
            self.have += self.sock.recv(65536)
        except BlockingIOError:
            pass
        self.sock.settimeout(WAIT)
        return not self.have

    def ended(self):
        """Reads on to the end of the stream; True when nothing else came."""
        return self.line() is None


class Ram:
    """Descriptors for one attach; closed at the end."""

    def __init__(self, *memfds):
        self.uffd = make_uffd()
        self.fds = [self.uffd] + (list(memfds) or [make_memfd()])

    def __enter__(self):
        return self.fds

    def __exit__(self, *_):
        for fd in self.fds:
            os.close(fd)


def fuzz(daemon, fds, seconds):
    """Connections with randomly damaged messages, for so long; returns how many."""
    seed = int(os.environ.get("EBB_SEED", "20240917"))
    print(f"seed {seed}, {seconds} s", file=sys.stderr)
    rng = random.Random(seed)
    good = [json.dumps(m).encode() + b"\n" for m in (
        attach("fuzz"), attach("fuzz", requests=["zap"], keep=True), {"execute": "detach"},
        {"execute": "userfaultfd"},
        dict(execute="discard", arguments=dict(id="ram", offset=0, size=4096)),
        dict(execute="region-add", arguments=region(memfd=0)),
        {"return": {}, "id": 1})]
    tokens = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"-1", b"1e9", b"null", b"\x00",
              b"9223372036854775807", b"\xff", b"\\u0000", b'"memfd":', b"2097152", b"0"]
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        with Client(daemon) as c:
            for _ in range(rng.randrange(1, 4)):
                data = bytearray(rng.choice(good))
                for _ in range(rng.choice((0, 1, 1, 2, 5))):
                    at = rng.randrange(len(data))
                    data[at:at + rng.choice((0, 0, 1, 4))] = rng.choice(tokens)
                n = rng.choice((0, 0, 1, 2, 2, 2, 3))
                try:
                    c.send(bytes(data), (fds + fds[1:])[:n])
                except ConnectionError:
                    break
            if rng.random() < 0.5:
                c.sock.shutdown(socket.SHUT_WR)
                while not c.ended():
                    pass
        rounds += 1
    return rounds
