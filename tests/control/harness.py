# SPDX-License-Identifier: BSD-3-Clause
"""A daemon in a folder of its own, clients of its control socket, and a runner of test functions."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

BUILD = os.environ["EBB_BUILD"]
SOURCE = os.environ["EBB_SOURCE"]
EBBCTL = os.path.join(BUILD, "ebbctl")
# A sanitizer's complaint must not look like a command that failed.
os.environ.setdefault("ASAN_OPTIONS", "exitcode=99")
DEADLINE = 20.0 # for what must happen; no test measures time


def wait_for(condition, what):
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("did not happen: " + what)


class Failed(Exception):
    def __init__(self, error):
        super().__init__("%s: %s" % (error["class"], error["desc"]))
        self.cls, self.desc = error["class"], error["desc"]


class Client:
    """One connection, in QMP's manner."""

    def __init__(self, path, negotiate=True):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(path)
        self.buffer, self.events, self.ids = b"", [], 0
        self.greeting = self.receive()
        if negotiate:
            self.call("qmp_capabilities")

    def close(self):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def receive(self):
        """The next message; None when the daemon has hung up."""
        while b"\n" not in self.buffer:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def answer(self):
        """The next message that is no event."""
        while True:
            message = self.receive()
            if message is None or "event" not in message:
                return message
            self.events.append(message)

    def start(self, command, **args):
        """Sends a command without waiting; returns its id."""
        self.ids += 1
        args = {k.replace("_", "-"): v for k, v in args.items()}
        self.send(json.dumps({"execute": command, "arguments": args, "id": self.ids}).encode())
        return self.ids

    def call(self, command, **args):
        ident = self.start(command, **args)
        message = self.answer()
        assert message is not None, "the daemon has hung up"
        assert message.get("id") == ident, message
        if "error" in message:
            raise Failed(message["error"])
        return message["return"]

    def wait_event(self, name, **data):
        """The next event of that name whose data has these members."""
        def fits(m):
            return m["event"] == name and all(m["data"].get(k) == v for k, v in data.items())
        for m in self.events:
            if fits(m):
                self.events.remove(m)
                return m
        while True:
            m = self.receive()
            assert m is not None, "hung up before %s" % name
            if "event" in m and fits(m):
                return m
            if "event" in m:
                self.events.append(m)


class Daemon:
    def __init__(self, binary, config=None, args=()):
        self.binary, self.args = binary, list(args)
        self.folder = tempfile.mkdtemp(prefix="ebb-control-")
        self.config = os.path.join(self.folder, "ebbd.conf")
        with open(self.config, "w") as f:
            f.write(config or "")
        self.log = open(os.path.join(self.folder, "log"), "w+")
        self.child = None

    @property
    def run(self):
        return os.path.join(self.folder, "run")

    @property
    def control(self):
        return os.path.join(self.run, "control.sock")

    def path(self, name):
        return os.path.join(self.run, name)

    def start(self, env=None):
        self.child = subprocess.Popen(
            [self.binary, "--config", self.config, "--runtime-dir", self.run, *self.args],
            stderr=self.log, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        wait_for(self._ready, "the daemon's start: " + self.read_log())
        return self

    def _ready(self):
        assert self.child.poll() is None, "the daemon has ended: " + self.read_log()
        return "is ready" in self.read_log_since()

    def read_log(self):
        with open(self.log.name, errors="replace") as f:
            return f.read()

    def read_log_since(self):
        return self.read_log()[getattr(self, "log_mark", 0):]

    def client(self, negotiate=True):
        return Client(self.control, negotiate)

    def end(self, sig=signal.SIGTERM):
        self.child.send_signal(sig)
        return self.wait()

    def wait(self):
        status = self.child.wait(DEADLINE)
        self.log_mark = len(self.read_log())
        return status

    def memory_kib(self):
        with open("/proc/%d/status" % self.child.pid) as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))

    def fds(self):
        return len(os.listdir("/proc/%d/fd" % self.child.pid))

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, value, trace):
        if self.child and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
                if not kind:
                    raise
        if kind:
            print(self.read_log())
        elif "Sanitizer" in self.read_log() or "runtime error" in self.read_log():
            raise AssertionError(self.read_log())
        self.log.close()
        shutil.rmtree(self.folder)


def attach(client, name):
    """A VM in the fake engine, by the driver that it has for that."""
    client.call("backend-add", name=name, driver="fake-attach")
    client.wait_event("VM_ATTACHED", vm=name)


def ctl(daemon, *words, env=None):
    return subprocess.run([EBBCTL, "--socket", daemon.control, *words], capture_output=True,
                          text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL, check=False,
                          env={**os.environ, **(env or {})})


def main(namespace):
    """Runs the functions test_* in the order of the file; argv[1] is the daemon's binary."""
    failed = 0
    for name, function in list(namespace.items()):
        if not name.startswith("test_") or not callable(function):
            continue
        try:
            function(sys.argv[1])
            print("ok   " + name, flush=True)
        except Exception:
            failed += 1
            print("FAIL " + name, flush=True)
            traceback.print_exc(file=sys.stdout)
    sys.exit(1 if failed else 0)
