# SPDX-License-Identifier: BSD-3-Clause
"""What the guest tests share: expectations, exit statuses, skipping, and the usual squeeze."""
import os
import shutil
import subprocess
import sys
import time
import traceback

from .ebb import MIB, build_folder
from .guest import QEMU
from .process import Failure

SKIPPED = 77
STARTED = time.monotonic()
ELSEWHERE = "it runs where scripts/deps install was done"


class Skip(Exception):
    """Why the test cannot run here, and where else it runs."""


def expect(condition, what):
    if not condition:
        raise Failure("expected: " + what)


def step(text):
    """Says where the test is: a test that runs out of time shows how far it came, and how fast."""
    print("%6.1f s  %s" % (time.monotonic() - STARTED, text), flush=True)


def require_programs(*programs):
    for p in programs:
        if shutil.which(p) is None:
            raise Skip("no %s here; %s" % (p, ELSEWHERE))


def squeeze(ebb, name, share=0.5, timeout=60):
    """Sets the VM's limit to a share of what it uses and waits until that is kept."""
    figures = ebb.vm(name)
    limit = int((figures["resident-bytes"] + figures["evicted-bytes"]) * share) & -4096
    step("the limit becomes %d MiB" % (limit // MIB))
    ebb.limit(name, limit)
    figures = ebb.wait_resident(name, limit, timeout)
    step("%d MiB are evicted" % (figures["evicted-bytes"] // MIB))
    expect(figures["evicted-bytes"] + figures["zero-bytes"] > 0, "something was evicted")
    return figures


def expect_sound(ebb, name, faulted=True):
    """Nothing was lost, and what was evicted was also asked for again."""
    figures = ebb.vm(name)
    for counter in ("pages-lost", "resolve-errors", "poisoned-fills"):
        expect(figures[counter] == 0, "%s is 0, not %d" % (counter, figures[counter]))
    if faulted:
        expect(figures["faults"] > 0 and figures["evictions"] > 0,
               "evictions (%d) and faults (%d)" % (figures["evictions"], figures["faults"]))
    return figures


def guest_mem(*words):
    """Runs guest-mem on the host: to make an image, or to check what the guest wrote."""
    program = os.path.join(build_folder(), "tests/guest/guest-mem")
    done = subprocess.run([program, *map(str, words)], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise Failure("guest-mem %s: %s" % (" ".join(map(str, words)), done.stdout[-2000:]))
    return done.stdout


def huge_pages(scope, mib):
    """Has that many MiB of free 2 MiB pages while the scope lasts."""
    path = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
    with open(path + "nr_hugepages") as f:
        before = int(f.read())
    with open(path + "free_hugepages") as f:
        lacking = mib // 2 - int(f.read())
    if lacking <= 0:
        return
    scope.defer(_write, path + "nr_hugepages", str(before))
    try:
        _write(path + "nr_hugepages", str(before + lacking))
        with open(path + "free_hugepages") as f:
            lacking = mib // 2 - int(f.read())
    except OSError as e:
        raise Skip("no huge pages can be had (%s); it runs as root on a host" % e) from e
    if lacking > 0:
        raise Skip("%d MiB of huge pages are lacking; it runs on a host with more memory" %
                   (2 * lacking))


def _write(path, text):
    with open(path, "w") as f:
        f.write(text)


def huge_tmpfs(scope):
    """A tmpfs that has transparent huge pages where they are advised; its path."""
    path = scope.path("tmpfs")
    os.mkdir(path)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "huge=advise,mode=700", "ebb-test", path],
                          stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Skip("no tmpfs can be mounted (%s); it runs as root on a host" %
                   done.stderr.strip())
    scope.defer(subprocess.run, ["umount", path])
    return path


def main(run):
    """Runs a test and returns its exit status."""
    try:
        require_programs(QEMU, "apt-get", "dpkg-deb")
        run()
    except Skip as e:
        print("skipped: %s" % e)
        return SKIPPED
    except KeyboardInterrupt:
        return 130
    except (Failure, OSError) as e:
        traceback.print_exc()
        print("FAILED: %s" % e, file=sys.stderr)
        return 1
    print("ok")
    return 0
