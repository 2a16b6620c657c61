# SPDX-License-Identifier: BSD-3-Clause
"""A daemon that is replaced under running VMs, for tests: who it is now, and VMs to check it by."""
import ctypes
import os
import sys

sys.path.insert(0, os.path.join(os.environ["EBB_SOURCE"], "tests", "control"))
import harness  # noqa: E402
from harness import BUILD, Daemon, ctl, wait_for  # noqa: E402,F401

PR_SET_CHILD_SUBREAPER = 36
MIB = 1 << 20


class Successors(Daemon):
    """A daemon, or whoever has taken its place: a child of ours too, since we adopt it."""

    def __init__(self, binary, config=None):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        super().__init__(binary, config, args=["--plugin-dir", BUILD])
        self.pid = None

    def start(self, env=None):
        super().start(env)
        self.pid = self.child.pid
        return self

    def upgrade(self, binary=None, **more):
        """By ebbctl; returns what it says. The old process has ended then."""
        old = self.pid
        words = ["binary=" + binary] if binary else []
        words += ["%s=%s" % (k.replace("_", "-"), v) for k, v in more.items()]
        r = ctl(self, "--json", "upgrade", *words)
        if r.returncode:
            raise harness.Failed(harness.json.loads(r.stdout)["error"])
        answer = harness.json.loads(r.stdout)["return"]
        self.pid = answer["pid"]
        self.reap(old)
        return answer

    def reap(self, pid):
        if self.child is not None and pid == self.child.pid:
            self.child.wait(harness.DEADLINE)
        else:
            wait_for(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "the old daemon ends")

    def kill(self, sig=9):
        os.kill(self.pid, sig)
        self.reap(self.pid)
        self.log_mark = len(self.read_log())

    def fds(self):
        return len(os.listdir("/proc/%d/fd" % self.pid))

    def __exit__(self, kind, value, trace):
        if self.pid is not None and self.pid != self.child.pid:
            try:
                self.kill(15)
            except (OSError, AssertionError):
                pass
        super().__exit__(kind, value, trace)
