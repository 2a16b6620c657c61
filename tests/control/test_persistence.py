#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What was set at run time survives the daemon's end, of whatever kind."""
import json
import os
import signal

from harness import Daemon, Failed, attach, ctl, main


def vm(c, name="guest1"):
    return c.call("query-vm", vm=name)


def change(d):
    c = d.client()
    attach(c, "guest1")
    c.call("backend-add", name="second", driver="any", options={"level": 3})
    c.call("policy-load", name="mine", file="/x/mine.so")
    c.call("vm-set", vm="guest1", limit=1 << 27, weight=7, tiers=["second", "compressed"])
    c.call("vm-set", vm="guest1", limit=1 << 26, floor=4096)
    c.call("policy-set", vm="guest1", role="reclaim", policy="mine", options={"hands": 2})
    return c


def check(d):
    """In the fake engine the VM comes back as the backend that it is: before the client is there."""
    c = d.client()
    v = vm(c)
    assert (v["limit-bytes"], v["floor-bytes"], v["weight"]) == (1 << 26, 4096, 7), v
    assert v["tiers"][0]["backend"] == "second", v
    assert (v["reclaim-policy"], v["prefetch-policy"]) == ("mine", "sequential"), v
    stats = c.call("query-policy-stats", vm="guest1")["stats"]
    assert stats[0]["help"] == "hands=2", stats
    assert {b["name"]: b["description"] for b in c.call("query-backends")} == \
        {"compressed": "", "second": "level=3;"}
    assert [p["file"] for p in c.call("query-policies")] == ["/x/mine.so"]


def test_over_a_kill(binary):
    with Daemon(binary) as d:
        change(d)
        d.end(signal.SIGKILL)
        d.start()
        check(d)
        d.end(signal.SIGTERM)
        d.start()
        check(d)


def test_file_is_private_and_whole(binary):
    with Daemon(binary) as d:
        change(d)
        path = d.path("settings.json")
        assert os.stat(path).st_mode & 0o7777 == 0o600
        with open(path) as f:
            assert json.load(f)["version"] == 1
        assert not os.path.exists(path + ".new")


def test_removed_things_stay_removed(binary):
    with Daemon(binary, "[backend third]\ndriver = any\n") as d:
        c = change(d)
        c.call("vm-set", vm="guest1", tiers=["compressed"])
        c.call("backend-remove", name="second")
        c.call("backend-remove", name="third")
        c.call("policy-set", vm="guest1", role="reclaim", policy="clock")
        c.call("policy-unload", name="mine")
        d.end(signal.SIGKILL)
        d.start()
        c = d.client()
        assert [b["name"] for b in c.call("query-backends")] == ["compressed"]
        assert c.call("query-policies") == []
        assert vm(c)["reclaim-policy"] == "clock"


def test_failed_commands_are_not_kept(binary):
    with Daemon(binary) as d:
        c = change(d)
        with open(d.path("settings.json")) as f:
            before = f.read()
        for call in (("vm-set", {"vm": "guest1", "tiers": ["nowhere"]}),
                     ("vm-set", {"vm": "ghost", "limit": 1}),
                     ("backend-add", {"name": "x", "driver": "fake-fail"}),
                     ("policy-set", {"vm": "ghost", "role": "reclaim", "policy": "x"})):
            try:
                c.call(call[0], **call[1])
                raise AssertionError("was not refused")
            except Failed:
                pass
        with open(d.path("settings.json")) as f:
            assert f.read() == before


def test_torn_file(binary):
    with Daemon(binary) as d:
        change(d)
        d.end(signal.SIGKILL)
        path = d.path("settings.json")
        with open(path, "r+") as f:
            f.truncate(os.path.getsize(path) // 2)
        d.start()
        assert "settings.json" in d.read_log_since() and os.path.exists(path + ".broken")
        c = d.client()
        assert [b["name"] for b in c.call("query-backends")] == ["compressed"]
        c.call("backend-add", name="new", driver="any")
        d.end(signal.SIGTERM)
        d.start()
        assert len(d.client().call("query-backends")) == 2


def test_what_cannot_be_written_is_said(binary):
    with Daemon(binary) as d:
        c = change(d)
        os.mkdir(d.path("settings.json.new")) # root may write anywhere, but not into this
        try:
            c.call("vm-set", vm="guest1", limit=1 << 25)
            raise AssertionError("was not told")
        except Failed as e:
            assert "forgotten" in e.desc, e
        assert vm(c)["limit-bytes"] == 1 << 25
        os.rmdir(d.path("settings.json.new"))
        c.call("vm-set", vm="guest1", limit=1 << 24)


def test_by_ebbctl(binary):
    with Daemon(binary) as d:
        attach(d.client(), "guest1")
        assert ctl(d, "vm-set", "guest1", "limit=64M").returncode == 0
        d.end(signal.SIGKILL)
        d.start()
        assert vm(d.client())["limit-bytes"] == 64 << 20


main(globals())
