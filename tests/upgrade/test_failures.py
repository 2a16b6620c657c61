#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""An upgrade that fails is no event: the old daemon goes on, and says why."""
import os
import shutil
import sys

from vms import MIB, Successors, harness, wait_for

sys.path.insert(0, os.path.join(os.environ["EBB_SOURCE"], "tests", "control"))
from guests import Guest, ask, vm  # noqa: E402

BINARY, FOLDER = sys.argv[1:3]


def expect_failure(d, g, binary, why, **more):
    """The upgrade fails with that in its text; the same process serves, and nothing is wrong."""
    old, fds, before = d.pid, d.fds(), vm(d)
    try:
        d.upgrade(binary, **more)
    except harness.Failed as e:
        assert why in e.desc, (why, e.desc)
    else:
        raise AssertionError("this upgrade should fail: " + why)
    assert d.pid == old and os.path.exists("/proc/%d" % old)
    wait_for(lambda: d.fds() <= fds, "no descriptor stays behind")
    assert g.wrong_pages() == 0
    after = vm(d)
    assert after["pid"] == before["pid"] and after["limit-bytes"] == before["limit-bytes"]
    assert after["faults"] > before["faults"] and after["evictions"] > before["evictions"], after


def squeezed(d):
    g = Guest(d, "guest1")
    wait_for(lambda: [v["name"] for v in ask(d, "query-vms")] == ["guest1"], "attached")
    ask(d, "vm-set", "guest1", "limit=24M")
    wait_for(lambda: vm(d)["resident-bytes"] <= 24 * MIB, "below the limit")
    assert g.wrong_pages() == 0
    return g


def test_binaries_that_are_none(_):
    with Successors(BINARY) as d, squeezed(d) as g:
        text = os.path.join(d.folder, "text")
        with open(text, "w") as f:
            f.write("no program\n")
        expect_failure(d, g, "/no/such/ebbd", "No such file")
        expect_failure(d, g, text, "Permission denied")
        os.chmod(text, 0o755)
        expect_failure(d, g, text, "not an executable of this machine")
        foreign = os.path.join(d.folder, "foreign")
        with open(BINARY, "rb") as f:
            head = bytearray(f.read(64))
        head[18:20] = b"\xb7\x00"  # e_machine: AArch64
        with open(foreign, "wb") as f:
            f.write(head)
        os.chmod(foreign, 0o755)
        expect_failure(d, g, foreign, "not an executable of this machine")
        expect_failure(d, g, "/bin/false", "ended before it was 'hello'")
        expect_failure(d, g, "ebbd", "absolute path")


def test_versions_that_do_not_fit(_):
    foreign = os.path.join(FOLDER, "ebbd-foreign")
    with Successors(BINARY) as d, squeezed(d) as g:
        expect_failure(d, g, foreign, "it reads state of version 9 to 9; ours is 1")
    with Successors(foreign) as d, squeezed(d) as g:
        expect_failure(d, g, BINARY, "ours is 9, for readers of 9 and later")


def test_successors_that_go_wrong(_):
    """Each way at each stage."""
    reasons = {"die": "ended before", "hang": "was not '", "garbage": "does not speak",
               "refuse": "does not want to", "wrong": "it said 'serving'"}
    with Successors(BINARY) as d, squeezed(d) as g:
        fake = os.path.join(d.folder, "fake")
        shutil.copy(os.path.join(os.environ["EBB_SOURCE"], "tests/upgrade/fake_successor.py"), fake)
        os.chmod(fake, 0o755)
        for stage in ("hello", "ready", "taken"):
            for how, why in reasons.items():
                with open(fake + ".plan", "w") as f:
                    f.write("%s %s\n" % (stage, how))
                # What does not hang has all the time it needs.
                expect_failure(d, g, fake, why, wait_ms=1500 if how == "hang" else 60000)
        # And after all that one that is good.
        d.upgrade()
        assert g.wrong_pages() == 0


def test_a_configuration_that_is_wrong(_):
    with Successors(BINARY) as d, squeezed(d) as g:
        with open(d.config, "w") as f:
            f.write("no-such-key = 1\n")
        expect_failure(d, g, None, "ended before it was 'hello'")
        assert "no-such-key" in d.read_log()


harness.main(globals())
