# SPDX-License-Identifier: BSD-3-Clause
"""What a run starts and makes, and the one place that cleans it up again."""
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None)


class Failure(Exception):
    """What went wrong, in a sentence for the person who runs it."""


def _end_with_parent():
    # Only async-signal-safe work between fork and exec: one system call.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Child:
    """A process of ours, known by its pid, with its output in a log file."""

    def __init__(self, name, argv, folder, env=None):
        self.name = name
        self.log = os.path.join(folder, name + ".log")
        with open(self.log, "ab") as log:
            # A session of its own: Ctrl-C reaches us alone, and we end things in the right order.
            self.popen = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log,
                                          stderr=subprocess.STDOUT, start_new_session=True,
                                          preexec_fn=_end_with_parent,
                                          env={**os.environ, **(env or {})})

    @property
    def pid(self):
        return self.popen.pid

    def running(self):
        return self.popen.poll() is None

    def tail(self, lines=12):
        with open(self.log, errors="replace") as f:
            return "".join(f.readlines()[-lines:]).strip()

    def require_running(self):
        if not self.running():
            raise Failure("%s ended (status %d): %s" % (self.name, self.popen.returncode,
                                                        self.tail()))

    def stop(self, sig=signal.SIGTERM, wait=5.0):
        """Ends it: politely first, then by SIGKILL. Returns its exit status."""
        if self.running():
            self.popen.send_signal(sig)
            try:
                self.popen.wait(wait)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        return self.popen.wait()


class Adopted:
    """A process that one of ours left to us when it ended; used as a Child. Needs adopt_orphans()
    before that."""

    def __init__(self, name, pid, log):
        self.name, self.pid, self.log, self.status = name, pid, log, None

    tail = Child.tail

    def running(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def require_running(self):
        if not self.running():
            raise Failure("%s ended (status %d): %s" % (self.name, self.status, self.tail()))

    def stop(self, sig=signal.SIGTERM, wait=5.0):
        if self.running():
            os.kill(self.pid, sig)
            end = time.monotonic() + wait
            while self.running():
                if time.monotonic() > end:
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.01)
        return self.status


def adopt_orphans():
    """What our processes leave behind becomes our child."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Scope:
    """A temporary folder and the processes of one run; leaving it ends and removes them all,
    newest first, also on Ctrl-C and SIGTERM (both a KeyboardInterrupt here)."""

    def __init__(self, keep=False):
        self.stack = contextlib.ExitStack()
        self.keep = keep
        self.folder = None

    def __enter__(self):
        def interrupt(_sig, _frame):
            raise KeyboardInterrupt
        # SIGINT too: a shell starts what it puts in the background with SIGINT ignored.
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, interrupt)
        # Short: a unix socket's path has 108 bytes at most.
        self.folder = tempfile.mkdtemp(prefix="ebb-")
        if not self.keep:
            self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        return self

    def __exit__(self, *exc):
        # From here on nothing interrupts the cleaning up.
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, signal.SIG_IGN)
        try:
            self.stack.close()
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return False

    def spawn(self, name, argv, env=None, wait=5.0):
        child = Child(name, argv, self.folder, env)
        self.stack.callback(child.stop, wait=wait)
        return child

    def defer(self, function, *args):
        self.stack.callback(function, *args)

    def path(self, name):
        return os.path.join(self.folder, name)


def wait_for(condition, what, timeout, child=None, step=0.05):
    """Polls until condition() is true and returns its value; a dead child ends the wait."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if child is not None:
            child.require_running()
        if time.monotonic() > end:
            raise Failure("%s: not within %g s%s" % (
                what, timeout, ": " + child.tail() if child is not None else ""))
        time.sleep(step)
