#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Long commands: progress, cancelling, what happens when the client goes, and quit."""
import os
import signal

from harness import Daemon, Failed, attach, main, wait_for

MIB = 1 << 20


def evicted(c, vm="guest1"):
    return c.call("query-vm", vm=vm)["evicted-bytes"]


def begin(d):
    """A VM of which 64 MiB are evicted; bringing them back takes the fake engine 6 seconds."""
    c = d.client()
    attach(c, "guest1")
    assert c.call("vm-reclaim", vm="guest1", bytes=64 * MIB) == {"reclaimed-bytes": 64 * MIB}
    return c


def test_answer_when_done(binary):
    with Daemon(binary) as d:
        c = begin(d)
        assert evicted(c) == 64 * MIB
        assert c.call("query-jobs") == []
        last = c.wait_event("JOB_PROGRESS", command="vm-reclaim", done=64 * MIB)
        assert last["data"] == {"job": "j1", "command": "vm-reclaim", "vm": "guest1",
                                "done": 64 * MIB, "total": 64 * MIB}


def test_progress_and_other_commands_meanwhile(binary):
    with Daemon(binary) as d:
        c = begin(d)
        ident = c.start("vm-prefetch", vm="guest1", job="mine")
        a = c.wait_event("JOB_PROGRESS", job="mine")["data"]
        b = c.wait_event("JOB_PROGRESS", job="mine")["data"]
        assert b["done"] > a["done"] and b["total"] == 256 * MIB
        c.start("query-jobs")
        jobs = c.answer()["return"]
        assert [(j["job"], j["command"], j["vm"]) for j in jobs] == \
            [("mine", "vm-prefetch", "guest1")]
        c.start("job-cancel", job="mine")
        answers = {m["id"]: m for m in (c.answer(), c.answer())}
        assert answers[ident]["error"]["class"] == "Cancelled", answers
        assert 0 < evicted(c) < 64 * MIB


def test_names_of_jobs(binary):
    with Daemon(binary) as d:
        c, other = begin(d), d.client()
        c.start("vm-prefetch", vm="guest1", job="mine")
        c.wait_event("JOB_PROGRESS", job="mine")
        for name, cls in (("mine", "AlreadyExists"), ("", "InvalidArgument"),
                          ("a b", "InvalidArgument"), ("x" * 33, "InvalidArgument")):
            try:
                other.call("vm-prefetch", vm="guest1", job=name)
                raise AssertionError("was not refused: " + name)
            except Failed as e:
                assert e.cls == cls, e
        other.call("job-cancel", job="mine")


def test_number_of_jobs_is_bounded(binary):
    with Daemon(binary) as d:
        c = begin(d)
        other = d.client()
        for _ in range(16):
            c.start("vm-prefetch", vm="guest1")
        wait_for(lambda: len(other.call("query-jobs")) == 16, "16 jobs")
        try:
            other.call("vm-prefetch", vm="guest1")
            raise AssertionError("was not refused")
        except Failed as e:
            assert e.cls == "LimitExceeded", e
        for j in other.call("query-jobs"):
            other.call("job-cancel", job=j["job"])
        wait_for(lambda: not other.call("query-jobs"), "all jobs ended")


def test_client_goes_job_stays(binary):
    with Daemon(binary) as d:
        c, other = begin(d), d.client()
        c.start("vm-prefetch", vm="guest1", job="stays")
        other.wait_event("JOB_PROGRESS", job="stays")
        c.close()
        for _ in range(3):
            other.wait_event("JOB_PROGRESS", job="stays")
        other.call("job-cancel", job="stays")
        wait_for(lambda: not other.call("query-jobs"), "the job ended")


def test_client_goes_job_goes(binary):
    with Daemon(binary) as d:
        c, other = begin(d), d.client()
        c.start("vm-prefetch", vm="guest1", job="goes", cancel_on_disconnect=True)
        other.wait_event("JOB_PROGRESS", job="goes")
        c.close()
        wait_for(lambda: not other.call("query-jobs"), "the job ended")
        assert evicted(other) > 0


def test_quit_answers_and_keeps(binary):
    with Daemon(binary) as d:
        c = begin(d)
        assert c.call("quit") == {}
        assert c.answer() is None
        assert d.wait() == 0
        assert "detached" not in d.read_log().lower()


def test_quit_drain(binary):
    with Daemon(binary) as d:
        c, listener = begin(d), d.client()
        attach(c, "guest2")
        assert c.call("quit", drain=True) == {}
        listener.wait_event("VM_DETACHED", vm="guest1")
        listener.wait_event("VM_DETACHED", vm="guest2")
        assert d.wait() == 0


def test_quit_drain_is_refused_where_it_does_not_fit(binary):
    with Daemon(binary) as d:
        c = d.client()
        # The fake host has 1 GiB available.
        for i in range(5):
            attach(c, "guest%d" % i)
            c.call("vm-reclaim", vm="guest%d" % i, bytes=256 * MIB)
        try:
            c.call("quit", drain=True)
            raise AssertionError("was not refused")
        except Failed as e:
            assert e.cls == "NoSpace" and "1280 MiB" in e.desc, e
        assert len(c.call("query-vms")) == 5


def test_signal_ends_with_a_job_running(binary):
    with Daemon(binary) as d:
        c = begin(d)
        ident = c.start("vm-prefetch", vm="guest1")
        c.wait_event("JOB_PROGRESS")
        assert d.end(signal.SIGTERM) == 0
        answer = c.answer()
        assert answer["id"] == ident and answer["error"]["class"] == "Cancelled", answer


def test_second_daemon_is_refused(binary):
    with Daemon(binary) as d:
        import subprocess
        r = subprocess.run([binary, "--config", "/dev/null", "--runtime-dir", d.run],
                           capture_output=True, text=True, timeout=20, check=False)
        assert r.returncode == 1 and "another ebbd" in r.stderr, r
        assert str(d.child.pid) in r.stderr
        d.client().call("query-version")
        assert os.path.exists(d.control)


main(globals())
