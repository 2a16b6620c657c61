#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The daemon is replaced under running VMs: by itself, by a newer version and back, again and again,
and nothing of them is lost."""
import json
import os
import random
import subprocess
import sys
import threading
import time

from vms import MIB, Successors, ctl, harness, wait_for

sys.path.insert(0, os.path.join(os.environ["EBB_SOURCE"], "tests", "control"))
from guests import Guest, ask, vm  # noqa: E402

# A daemon that ends in the middle of a takeover leaves its VMs as they are. Leaks are looked for in
# the other tests; all else that a sanitizer finds counts here, too.
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"

BINARY, FOLDER = sys.argv[1:3]
NEXT = os.path.join(FOLDER, "ebbd-next")


def squeezed(d, name="guest1", limit=24 * MIB):
    g = Guest(d, name)
    wait_for(lambda: name in [v["name"] for v in ask(d, "query-vms")], "attached")
    ask(d, "vm-set", name, "limit=%d" % limit)
    wait_for(lambda: vm(d, name)["resident-bytes"] <= limit, "below the limit")
    return g


def test_everything_goes_along(_):
    """Settings, numbers, policies with their options; the old process is gone, the new one serves."""
    with Successors(BINARY) as d:
        with squeezed(d) as g:
            ask(d, "vm-set", "guest1", "weight=77", "floor=1M")
            ask(d, "policy-set", "guest1", "role=prefetch", "policy=null")
            ask(d, "backend-add", "strong", "driver=compressed", "codec=zstd")
            assert g.wrong_pages() == 0
            before, old = vm(d), d.pid
            answer = d.upgrade()
            assert answer["pid"] == d.pid != old and answer["paused-us"] > 0, answer
            after = vm(d)
            for key in ("pid", "limit-bytes", "floor-bytes", "weight", "evicted-bytes",
                        "reclaim-policy", "prefetch-policy", "granularity", "memory-kind",
                        "ram-bytes", "regions", "attachments", "evictions-stored"):
                assert after[key] == before[key] or key.startswith("evict"), (key, before, after)
            assert after["evictions"] >= before["evictions"] > 0, (before, after)
            assert after["faults"] >= before["faults"] > 0, (before, after)
            assert sorted(b["name"] for b in ask(d, "query-backends")) == ["compressed", "strong"]
            assert g.wrong_pages() == 0
            # The policy has its work again, and the limit holds.
            wait_for(lambda: vm(d)["resident-bytes"] <= 24 * MIB, "below the limit again")
            assert vm(d)["evictions"] > after["evictions"]
            assert vm(d)["suspended"] == "", vm(d)
        wait_for(lambda: ask(d, "query-vms") == [], "gone with its process")


def test_connections_go_along(_):
    """A client's discards and its detach reach the new daemon over the same connection."""
    with Successors(BINARY) as d:
        with squeezed(d) as g:
            d.upgrade()
            before = vm(d)
            assert g.ask("drop 4096 1024") == "ok"
            wait_for(lambda: vm(d)["resident-bytes"] + vm(d)["evicted-bytes"] <=
                     before["resident-bytes"] + before["evicted-bytes"] - 4 * MIB,
                     "what was dropped is off the books")
            assert g.ask("zeroes 4096 1024") == "0"
            ask(d, "vm-detach", "guest1")
            assert ask(d, "query-vms") == []


def test_clients_are_told(_):
    with Successors(BINARY) as d:
        client = d.client()
        answer = d.upgrade()
        event = client.wait_event("UPGRADED")
        assert event["data"] == answer, (event, answer)
        assert client.receive() is None
        client.close()
        client = d.client()
        assert client.call("query-vms") == []
        client.close()


def test_up_and_down(_):
    with Successors(BINARY) as d:
        with squeezed(d) as g:
            for binary in (NEXT, BINARY, NEXT, NEXT, BINARY):
                d.upgrade(binary)
                assert os.readlink("/proc/%d/exe" % d.pid) == os.path.realpath(binary)
                assert g.wrong_pages() == 0


def test_the_file_was_replaced(_):
    """Without a path the file that it was started from, as it is now."""
    with Successors(BINARY) as d:
        copy = os.path.join(d.folder, "ebbd")
        subprocess.run(["cp", BINARY, copy], check=True)
        d.upgrade(copy)
        os.unlink(copy)
        subprocess.run(["cp", NEXT, copy], check=True)
        d.upgrade()
        assert os.readlink("/proc/%d/exe" % d.pid) == copy


def test_under_load(_):
    """VMs that are at work, again and again; no descriptor and no memory stays behind."""
    with Successors(BINARY) as d:
        guests = [squeezed(d, "guest%d" % i) for i in range(2)]
        rounds = int(os.environ.get("EBB_UPGRADES", "12"))
        wrong = []
        ends = threading.Event()

        def work(g):
            while not ends.is_set():
                wrong.append(g.wrong_pages())

        try:
            d.upgrade()
            # What a start needs for a moment is gone, and all is in the clients' hands.
            wait_for(lambda: all(vm(d, v)["suspended"] == "" for v in ("guest0", "guest1")),
                     "all is as usual")
            fds = d.fds()
            threads = [threading.Thread(target=work, args=(g,)) for g in guests]
            for t in threads:
                t.start()
            for i in range(rounds):
                d.upgrade(NEXT if i % 2 else BINARY)
                time.sleep(random.random() / 10)
            ends.set()
            for t in threads:
                t.join()
            assert len(wrong) > 1 and not any(wrong), wrong
            assert [g.wrong_pages() for g in guests] == [0, 0]
            d.upgrade(BINARY)
            wait_for(lambda: d.fds() <= fds, "no descriptor stays behind")
        finally:
            ends.set()
            for g in guests:
                g.__exit__()


def test_killed_meanwhile(_):
    """The old or the new one is killed at any instant of an upgrade; the next daemon takes over."""
    with Successors(BINARY) as d:
        with squeezed(d) as g:
            for i in range(int(os.environ.get("EBB_UPGRADE_KILLS", "10"))):
                old = d.pid
                child = subprocess.Popen([harness.EBBCTL, "--socket", d.control, "upgrade"],
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(random.random() * (0.3 if i % 2 else 0.9))
                everyone = set(successors_of(d))
                victims = sorted(everyone) if i % 3 == 0 else [random.choice(sorted(everyone))]
                for pid in victims:
                    os.kill(pid, 9)
                child.wait(60)
                settle(d, old)
                assert g.wrong_pages() == 0
                assert vm(d)["pages-lost"] == 0


def successors_of(d):
    """All processes that are daemons of this folder."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/cmdline" % name, "rb") as f:
                words = f.read().split(b"\0")
            with open("/proc/%s/stat" % name) as f:
                dead = f.read().rsplit(")", 1)[1].split()[0] in "ZX"
        except OSError:
            continue
        if d.run.encode() in words and words[0].endswith(b"ebbd") and not dead:
            found.append(int(name))
    return found


def settle(d, old):
    """Waits until one daemon serves, starting one when none is left; notes who it is."""
    def serves():
        live = successors_of(d)
        if not live:
            return "none"
        return len(live) == 1 and ctl(d, "query-version").returncode == 0 and live[0]
    who = wait_for(serves, "one daemon serves")
    for pid in {old, d.child.pid if d.child else old}:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
    if who == "none":
        d.log_mark = len(d.read_log())
        d.start()
    else:
        d.pid = who
    wait_for(lambda: [v["name"] for v in json.loads(
        ctl(d, "--json", "query-vms").stdout)["return"]] == ["guest1"], "the VM is there again")


harness.main(globals())
