# SPDX-License-Identifier: BSD-3-Clause
"""An instance of ebbd in a folder of its own, asked through ebbctl."""
import json
import os
import signal
import subprocess
import threading
import time

from .guest import SOURCE
from .process import Adopted, Failure, adopt_orphans, wait_for

MIB = 1 << 20


def build_folder():
    return os.environ.get("EBB_BUILD") or os.path.join(SOURCE, "build")


class Ebb:
    def __init__(self, scope, build=None, runtime="run", config=None):
        """Nothing is started yet: see start(). config: the text of a configuration file."""
        self.scope, self.build = scope, build or build_folder()
        self.folder = scope.path(runtime)
        self.child = None
        self.config = None
        if config is not None:
            self.config = scope.path(runtime + ".conf")
            with open(self.config, "w") as f:
                f.write(config)

    @property
    def attach_socket(self):
        return self.folder + "/attach.sock"

    @property
    def control_socket(self):
        return self.folder + "/control.sock"

    @property
    def library(self):
        return self.build + "/libebb-attach.so"

    def preload(self, name, **more):
        """The environment that makes a process attach."""
        return {"LD_PRELOAD": self.library, "EBB_SOCKET": self.attach_socket, "EBB_NAME": name,
                **more}

    def start(self, timeout=15.0):
        argv = [self.build + "/ebbd", "--runtime-dir", self.folder]
        if self.config:
            argv += ["--config", self.config]
        self.child = self.scope.spawn("ebbd", argv)
        wait_for(self._answers, "ebbd's start", timeout, self.child)

    def _answers(self):
        if not (os.path.exists(self.attach_socket) and os.path.exists(self.control_socket)):
            return False
        return self._ctl("query-version").returncode == 0

    def stop(self):
        return self.child.stop()

    def upgrade(self):
        """Replaces it by another process of the same binary; returns what ebbctl says of it."""
        adopt_orphans()
        old = self.child
        done = self.ctl("upgrade")
        self.child = Adopted("ebbd", done["pid"], old.log)
        self.scope.defer(self.child.stop)
        wait_for(lambda: not old.running(), "the end of the daemon before", 20)
        return done

    def kill(self):
        """Ends it as a crash would; start() starts its successor."""
        status = self.child.stop(signal.SIGKILL)
        if status != -signal.SIGKILL:
            raise Failure("ebbd was to be killed, but ended by itself: status %d: %s" % (
                status, self.child.tail()))

    @property
    def pid(self):
        return self.child.pid

    def _ctl(self, *words, timeout=120.0):
        argv = [self.build + "/ebbctl", "--socket", self.control_socket, "--json", *words]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=timeout, check=False)

    def ctl(self, *words, timeout=120.0):
        """What ebbctl answers to a command, as a value."""
        done = self._ctl(*words, timeout=timeout)
        if done.returncode:
            self.child.require_running()
            raise Failure("ebbctl %s: %s" % (" ".join(words),
                                             (done.stderr or done.stdout).strip()))
        answer = json.loads(done.stdout) if done.stdout.strip() else {}
        return answer["return"] if isinstance(answer, dict) and "return" in answer else answer

    def vm(self, name):
        return self.ctl("query-vm", name)

    def vms(self):
        return [v["name"] for v in self.ctl("query-vms")]

    def wait_attached(self, name, timeout=30.0, child=None):
        wait_for(lambda: name in self.vms(), "%s attached" % name, timeout, child, step=0.2)

    def wait_gone(self, name, timeout=20.0):
        wait_for(lambda: name not in self.vms(), "%s detached" % name, timeout, step=0.2)

    def limit(self, name, limit_bytes):
        self.ctl("vm-set", name, "limit=%d" % limit_bytes)

    def wait_resident(self, name, at_most_bytes, timeout=60.0):
        """Waits until that much is resident at most; returns the VM's figures."""
        def reached():
            nonlocal figures
            figures = self.vm(name)
            return figures["resident-bytes"] <= at_most_bytes
        figures = {}
        try:
            wait_for(reached, "%s below %d MiB" % (name, at_most_bytes // MIB), timeout, step=0.2)
        except Failure as e:
            raise Failure("%s; %d MiB are resident%s" % (
                e, figures["resident-bytes"] // MIB,
                ", eviction is suspended: " + figures["suspended"] if figures["suspended"] else ""
            )) from e
        return figures

    def open_files(self):
        """What ebbd has open, counted by kind: memfds, userfaultfds, sockets and so on."""
        out, folder = {}, "/proc/%d/fd" % self.pid
        for fd in os.listdir(folder):
            try:
                target = os.readlink(os.path.join(folder, fd))
            except OSError:
                continue
            kind = target.split("[")[0].split(" (")[0] if target[0] != "/" else target
            out[kind] = out.get(kind, 0) + 1
        return out

    def idle_files(self):
        """open_files() of a daemon that has started up and has closed its control connections."""
        def settled():
            files.append(self.open_files())
            return len(files) > 5 and all(f == files[-1] for f in files[-5:])
        self.ctl("query-host")  # answers when the probes have closed what they had opened
        files = []
        wait_for(settled, "an idle daemon", 60, step=0.2)
        return files[-1]


class Sampler:
    """Asks for a VM's figures twice a second in a thread of its own, so that a display is live
    while the guest is kept busy."""

    def __init__(self, ebb, name, period=0.5):
        self.ebb, self.name, self.period = ebb, name, period
        self.last, self.rate = None, 0.0
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        before = None
        while not self.end.wait(self.period):
            try:
                figures = self.ebb.vm(self.name)
            except (Failure, OSError, ValueError, subprocess.TimeoutExpired):
                continue # the daemon is being replaced, or the VM is gone
            now = time.monotonic()
            if before:
                self.rate = max(0.0, (figures["faults"] - before[1]) / (now - before[0]))
            before = (now, figures["faults"])
            self.last = figures

    def text(self):
        f = self.last
        if not f:
            return ""
        latency = f["fault-latency-us"]
        return ("resident %d MiB  evicted %d MiB, stored in %d MiB  faults %d/s  "
                "p50 %s us  p99 %s us" % (
                    f["resident-bytes"] // MIB, f["evicted-bytes"] // MIB,
                    f["stored-bytes"] // MIB, self.rate,
                    figure(latency["p50"]), figure(latency["p99"])))

    def stop(self):
        self.end.set()
        self.thread.join()


def figure(value):
    return "%.1f" % value if value < 100 else "%d" % value
