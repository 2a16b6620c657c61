#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The real ebbd, driven through ebbctl, with a process whose memory it really takes."""
import os
import select
import signal
import struct
import sys

from guests import MIB, SIZE, ask, attached, vm
from harness import BUILD, Daemon, ctl, main, wait_for


def evicted(d, at_least):
    """Reclaims until that much is evicted: what was touched just now is not cold yet."""
    def enough():
        ask(d, "vm-reclaim", "guest1", "bytes=%d" % at_least)
        return vm(d)["evicted-bytes"] >= at_least
    wait_for(enough, "%d MiB evicted" % (at_least // MIB))


def test_reclaim_prefetch_detach(binary):
    with Daemon(binary) as d, attached(d) as g:
        assert vm(d)["ram-bytes"] == SIZE
        evicted(d, 32 * MIB)
        v = vm(d)
        assert v["stored-bytes"] > 0 and v["tiers"][0]["backend"] == "compressed", v
        assert g.wrong_pages() == 0
        v = vm(d)
        assert v["faults"] > 0 and v["fault-latency-us"]["count"] > 0, v
        evicted(d, 32 * MIB)
        assert ask(d, "vm-prefetch", "guest1")["prefetched-bytes"] > 0
        evicted(d, 16 * MIB)
        ask(d, "vm-detach", "guest1")
        assert ask(d, "query-vms") == [] and g.wrong_pages() == 0


def test_settings_wait_for_the_vm(binary):
    """A limit that was set before the daemon was killed is there when the VM's attach is answered."""
    with Daemon(binary, "[vm *]\nweight = 77\n[vm guest1]\nlimit = 64M\n") as d:
        with attached(d) as g:
            v = vm(d)
            assert (v["limit-bytes"], v["weight"]) == (64 * MIB, 77), v
            wait_for(lambda: vm(d)["resident-bytes"] <= 64 * MIB, "below the limit")
            assert g.wrong_pages() == 0
            ask(d, "vm-set", "guest1", "limit=48M")
            ask(d, "policy-set", "guest1", "role=prefetch", "policy=null")
        wait_for(lambda: ask(d, "query-vms") == [], "gone with its process")
        with attached(d):
            v = vm(d)
            assert (v["limit-bytes"], v["prefetch-policy"]) == (48 * MIB, "null"), v


def test_plugins(binary):
    with Daemon(binary) as d:
        assert [b["state"] for b in ask(d, "query-backends")] == ["ready"]
        ask(d, "backend-add", "strong", "driver=compressed", "codec=zstd")
        r = ctl(d, "backend-add", "bad", "driver=compressed", "codec=none-such")
        assert r.returncode == 1 and "codec" in r.stderr, r
        r = ctl(d, "backend-add", "bad", "driver=none-such")
        assert r.returncode == 1 and "none-such" in r.stderr, r
        ask(d, "policy-load", "example")
        assert "example" in [p["name"] for p in ask(d, "query-policies")]
        r = ctl(d, "policy-load", "evil", "file=/etc/passwd")
        assert r.returncode == 1, r
        with attached(d) as g:
            ask(d, "vm-set", "guest1", "tiers=strong")
            evicted(d, 16 * MIB)
            tiers = {t["backend"]: t["units-bytes"] for t in vm(d)["tiers"]}
            assert tiers["strong"] >= 16 * MIB, tiers
            ask(d, "policy-set", "guest1", "role=reclaim", "policy=example")
            ask(d, "backend-remove", "strong")
            assert [b["name"] for b in ask(d, "query-backends")] == ["compressed"]
            assert g.wrong_pages() == 0


def crashing_start(d):
    """Starts a daemon that crashes, maybe before it is ready."""
    try:
        d.start()
    except AssertionError:
        pass
    status = d.wait()
    assert status < 0 or d.child.returncode not in (0, None), status


def test_crash_loop_ends(binary):
    """Two daemons in a row crash in a policy: the next one does without it, and says so."""
    config = "[vm *]\nprefetch-policy = null\n"
    with Daemon(binary, config, ["--plugin-dir", os.path.join(BUILD, "tests")]) as d:
        with attached(d) as g:
            evicted(d, 16 * MIB)
            r = ctl(d, "policy-set", "guest1", "role=reclaim", "policy=crash", "in=tick")
            # The tick may come before the answer.
            assert r.returncode == 0 or "closed the connection" in r.stderr, r
            d.wait()
            crashing_start(d)
            d.start()
            wait_for(lambda: "guest1" in [v["name"] for v in ask(d, "query-vms")], "back")
            wait_for(lambda: "crash" in vm(d)["policy-failure"], "what failed")
            v = vm(d)
            assert v["reclaim-policy"] == "null" and "tick" in v["policy-failure"], v
            assert "POLICY_FAILED" in d.read_log_since(), d.read_log()
            assert g.wrong_pages() == 0
            # Not by itself, but on the operator's word.
            r = ctl(d, "policy-load", "crash")
            assert r.returncode == 0, r
            ask(d, "policy-set", "guest1", "role=reclaim", "policy=clock")
            v = vm(d)
            assert v["reclaim-policy"] == "clock" and v["policy-failure"] == "", v


def pretend_crashes(d, kind, name, count):
    """The record of daemons that crashed in a plugin, as src/plugin/crashes.c has it."""
    row = struct.pack("=II32s32s", kind, count, name.encode(), b"submit")
    head = struct.pack("=QQQi", 0x3130485352434245, 0, 0, 0) + bytes(72 + 72)
    with open(d.path("crashes"), "r+b") as f:
        f.write(head + row)


def test_backend_that_crashes(binary):
    """It is read from and nothing more is stored in it; later it is not opened, and faults wait."""
    with Daemon(binary) as d, attached(d) as g:
        evicted(d, 32 * MIB)
        d.end(signal.SIGKILL)
        pretend_crashes(d, 2, "compressed", 4)
        d.start()
        wait_for(lambda: "does not take guest1 over" in d.read_log() or
                 "is not there" in d.read_log_since(), "refused")
        assert ask(d, "query-vms") == [] and ask(d, "query-backends") == []
        d.end(signal.SIGKILL)
        pretend_crashes(d, 2, "compressed", 2)
        d.start()
        wait_for(lambda: "guest1" in [v["name"] for v in ask(d, "query-vms")], "back")
        assert [b["state"] for b in ask(d, "query-backends")] == ["aside"]
        assert "BACKEND_FAILED" in d.read_log_since(), d.read_log()
        assert g.wrong_pages() == 0
        ctl(d, "vm-reclaim", "guest1", "bytes=33554432")
        assert vm(d)["evicted-bytes"] == 0, vm(d)
        d.end()
        d.start()
        wait_for(lambda: "guest1" in [v["name"] for v in ask(d, "query-vms")], "back")
        assert [b["state"] for b in ask(d, "query-backends")] == ["ready"]
        evicted(d, 32 * MIB)
        assert g.wrong_pages() == 0


def test_ends_leave_memory_to_the_next(binary):
    """quit without drain, and SIGTERM: faults wait for the next daemon, which has everything."""
    with Daemon(binary) as d, attached(d) as g:
        for how in ("quit", "SIGTERM"):
            evicted(d, 32 * MIB)
            if how == "quit":
                ask(d, "quit")
            else:
                d.child.terminate()
            assert d.wait() == 0, how
            g.child.stdin.write("compare\n")
            g.child.stdin.flush()
            # It waits: it must not be through, however long we look.
            assert not select.select([g.child.stdout], [], [], 0.5)[0], g.child.stdout.readline()
            d.start()
            assert int(g.child.stdout.readline()) == 0, how
            assert vm(d)["pages-lost"] == 0, vm(d)


def test_quit_drain(binary):
    with Daemon(binary) as d, attached(d) as g:
        evicted(d, 32 * MIB)
        ask(d, "quit", "drain=true")
        assert d.wait() == 0
        assert g.wrong_pages() == 0


if not os.path.exists("/dev/userfaultfd") or os.geteuid():
    print("needs root and /dev/userfaultfd; scripts/check runs it in the lab's guests")
    sys.exit(77)
main(globals())
