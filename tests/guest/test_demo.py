#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""scripts/demo in short, without a terminal, and interrupted after its daemon's death: it leaves
nothing behind."""
import os
import re
import signal
import subprocess
import sys

from ebbguest.guest import SOURCE
from ebbguest.process import Failure, Scope, wait_for
from ebbguest.testing import expect, main

DEMO = [SOURCE + "/scripts/demo", "--memory", "512M"]


def start(scope, name, seconds, data_mib):
    """The demo, in a process group of its own, its temporary files in a folder of ours."""
    temporary = scope.path(name)
    os.mkdir(temporary)
    child = scope.spawn("demo-" + name, [*DEMO, "--seconds", str(seconds), "--data", str(data_mib)],
                        {"TMPDIR": temporary}, wait=30)
    return child, temporary


def children(pid):
    out = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], stdout=subprocess.PIPE,
                         text=True, check=False).stdout
    return [int(p) for p in out.split()]


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_whole(scope):
    child, temporary = start(scope, "whole", 4, 120)
    wait_for(lambda: not child.running(), "the demo's end", 240)
    text = child.tail(1000)
    print(text)
    expect(child.popen.returncode == 0, "the demo succeeds")
    expect("taken over in" in text, "another daemon took the VM over")
    expect(re.search(r"^  wrong bytes +0$", text, re.M), "no byte was wrong")
    saved = re.search(r"^  saved, net of store and overhead +(\d+) MiB", text, re.M)
    expect(saved and int(saved.group(1)) > 30, "memory was saved")
    expect(os.listdir(temporary) == [], "no file is left")


def test_interrupted(scope):
    child, temporary = start(scope, "interrupted", 1, 64)
    wait_for(lambda: "taken over in" in child.tail(), "the second daemon", 120, child)
    started = children(child.pid)
    expect(len(started) >= 2, "QEMU and the second ebbd run")
    child.popen.send_signal(signal.SIGINT)
    try:
        child.popen.wait(20)
    except subprocess.TimeoutExpired as e:
        raise Failure("the demo goes on after SIGINT") from e
    expect(child.popen.returncode == 130, "status %d is 130" % child.popen.returncode)
    expect(not any(alive(p) for p in started), "no process is left")
    expect(os.listdir(temporary) == [], "no file is left")


def run():
    with Scope() as scope:
        test_whole(scope)
        test_interrupted(scope)


sys.exit(main(run))
