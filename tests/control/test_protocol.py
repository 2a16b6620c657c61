#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""QMP's conventions, and that every answer and event is what proto/control.json declares."""
import json
import os

from harness import SOURCE, Daemon, Failed, attach, main


def refused(cls, call, *args, **named):
    try:
        call(*args, **named)
    except Failed as e:
        assert e.cls == cls, (cls, e.cls, e.desc)
        return e.desc
    raise AssertionError("was not refused")


def test_greeting(binary):
    with Daemon(binary) as d:
        c = d.client(negotiate=False)
        version = c.greeting["QMP"]["version"]
        assert c.greeting["QMP"]["capabilities"] == []
        assert set(version["qemu"]) == {"major", "minor", "micro"}, version


def test_negotiation_comes_first(binary):
    with Daemon(binary) as d:
        c = d.client(negotiate=False)
        refused("CommandNotFound", c.call, "query-version")
        refused("InvalidArgument", c.call, "qmp_capabilities", enable=["oob"])
        refused("CommandNotFound", c.call, "query-version")
        assert c.call("qmp_capabilities", enable=[]) == {}
        c.call("query-version")
        refused("CommandNotFound", c.call, "qmp_capabilities")


def test_ids_and_framing(binary):
    with Daemon(binary) as d:
        c = d.client()
        for ident in (7, "x", None, [1, {"a": 2}], 1.5, True):
            c.send(json.dumps({"execute": "query-version", "id": ident}).encode())
            assert c.answer()["id"] == ident
        c.send(b'{"execute":"query-version"}')
        assert "id" not in c.answer()
        # Several in one piece, and one in many pieces, with no newline anywhere.
        c.send(b'{"execute":"query-version","id":1}{"execute":"query-version","id":2}')
        assert [c.answer()["id"], c.answer()["id"]] == [1, 2]
        for byte in b' \r\n{"execute":"query-version","id":"}{"}':
            c.send(bytes([byte]))
        assert c.answer()["id"] == "}{"


def test_errors_name_what_is_wrong(binary):
    with Daemon(binary) as d:
        c = d.client()
        assert "'nonsense'" in refused("CommandNotFound", c.call, "nonsense")
        refused("CommandNotFound", c.call, "Quit")
        assert "'vm'" in refused("InvalidArgument", c.call, "query-vm")
        assert "'vim'" in refused("InvalidArgument", c.call, "query-vm", vm="a", vim=1)
        assert "'ghost'" in refused("NotFound", c.call, "query-vm", vm="ghost")
        refused("NotFound", c.call, "vm-reclaim", vm="ghost", bytes=4096)
        refused("NotFound", c.call, "backend-remove", name="ghost")
        refused("NotFound", c.call, "policy-unload", name="ghost")
        refused("NotFound", c.call, "job-cancel", job="ghost")
        for bad in (b'{"execute":1}', b'{"id":3}', b'{"execute":"query-vms","arguments":[]}',
                    b'{"execute":"query-vms","extra":1}'):
            c.send(bad)
            assert c.answer()["error"]["class"] == "ProtocolError", bad


def test_every_declared_command_is_known(binary):
    with Daemon(binary) as d:
        c = d.client()
        with open(os.path.join(SOURCE, "proto", "control.json")) as f:
            declared = [x["name"] for x in json.load(f)["commands"]]
        assert [x["name"] for x in c.call("query-commands")] == declared
        schema = c.call("query-schema")
        assert [x["name"] for x in schema["commands"]] == declared
        names = [m["name"] for m in schema["types"]["vm"]["members"]]
        assert "prefetch-hits" in names and "fault-latency-us" in names


class Checker:
    """Answers and events against the declaration."""

    def __init__(self, schema):
        self.schema = schema

    def members(self, declared, value, where):
        assert isinstance(value, dict), (where, value)
        names = [m["name"] for m in declared]
        assert set(value) <= set(names), (where, set(value) - set(names))
        for m in declared:
            if m["name"] in value:
                self.value(m, m["type"], value[m["name"]], where + "." + m["name"])
            else:
                assert m.get("optional"), (where, m["name"], "is missing")

    def value(self, declared, kind, value, where):
        plain = {"string": str, "bool": bool, "object": dict, "number": (int, float)}
        if kind in self.schema["types"]:
            self.members(self.schema["types"][kind]["members"], value, where)
        elif kind == "array":
            assert isinstance(value, list), (where, value)
            for i, item in enumerate(value):
                self.value({}, declared["items"], item, "%s[%d]" % (where, i))
        elif kind == "enum":
            assert value in declared["values"], (where, value)
        elif kind in ("int", "size"):
            assert isinstance(value, int) and not isinstance(value, bool), (where, value)
        else:
            assert isinstance(value, plain[kind]), (where, value)

    def answer(self, command, value):
        returns = next(c for c in self.schema["commands"] if c["name"] == command)["returns"]
        if "type" not in returns or "members" in returns:
            self.members(returns.get("members", []), value, command)
        else:
            self.value(returns, returns["type"], value, command)

    def event(self, message):
        declared = next(e for e in self.schema["events"] if e["name"] == message["event"])
        self.members(declared["data"], message["data"], message["event"])
        assert set(message["timestamp"]) == {"seconds", "microseconds"}


def test_answers_are_as_declared(binary):
    with Daemon(binary) as d:
        c = d.client()
        check = Checker(c.call("query-schema"))
        attach(c, "guest1")
        calls = [
            ("query-version", {}), ("query-commands", {}), ("query-schema", {}),
            ("query-host", {}), ("query-vms", {}), ("query-vm", {"vm": "guest1"}),
            ("vm-set", {"vm": "guest1", "limit": 1 << 27, "floor": 4096, "weight": 5,
                        "granularity": "auto", "tiers": ["compressed"]}),
            ("vm-reclaim", {"vm": "guest1", "bytes": 1 << 20}),
            ("vm-prefetch", {"vm": "guest1"}),
            ("vm-trace", {"vm": "guest1", "file": os.path.join(d.folder, "trace"),
                          "seconds": 1}),
            ("vm-heatmap", {"vm": "guest1", "seconds": 2, "columns": 8}),
            ("vm-wss", {"vm": "guest1"}),
            ("policy-load", {"name": "mine", "file": "/somewhere/mine.so"}),
            ("query-policies", {}), ("policy-unload", {"name": "mine"}),
            ("policy-set", {"vm": "guest1", "role": "reclaim", "policy": "null",
                            "options": {"window": 3}}),
            ("query-policy-stats", {"vm": "guest1"}),
            ("backend-add", {"name": "b2", "driver": "compressed", "options": {"level": 3}}),
            ("query-backends", {}), ("query-metrics", {}), ("query-jobs", {}),
            ("backend-remove", {"name": "b2"}), ("vm-detach", {"vm": "guest1"}),
        ]
        for command, args in calls:
            check.answer(command, c.call(command, **args))
        done = {command for command, _ in calls} | {"qmp_capabilities", "job-cancel", "quit"}
        # This daemon has none to be replaced by; tests/upgrade has.
        refused("Unsupported", c.call, "upgrade", binary="/bin/true")
        done.add("upgrade")
        assert done == {x["name"] for x in check.schema["commands"]}


def test_events_are_as_declared(binary):
    with Daemon(binary) as d:
        c, listener = d.client(), d.client()
        silent = d.client(negotiate=False)
        check = Checker(c.call("query-schema"))
        attach(c, "guest1")
        c.call("backend-add", name="x", driver="fake-event")
        for name in ("VM_ATTACHED", "VM_LIMIT_EXCEEDED", "BACKEND_FULL", "BACKEND_FAILED",
                     "PAGE_LOST", "POLICY_FAILED", "VM_SUSPENDED"):
            check.event(listener.wait_event(name))
        assert c.wait_event("PAGE_LOST")["data"]["address"] == 4096
        c.call("vm-detach", vm="guest1")
        check.event(listener.wait_event("VM_DETACHED"))
        check.event(listener.wait_event("JOB_PROGRESS", command="vm-detach"))
        # Who has not negotiated gets nothing before the answer to his own first command.
        silent.start("qmp_capabilities")
        assert silent.receive() == {"return": {}, "id": 1}


def test_options_become_text(binary):
    with Daemon(binary) as d:
        c = d.client()
        c.call("backend-add", name="b", driver="any",
               options={"a": "x y", "n": 5, "f": True, "donors": ["h:1", "i:2"]})
        b = next(b for b in c.call("query-backends") if b["name"] == "b")
        assert b["description"] == "a=x y;n=5;f=true;donors=h:1,i:2;", b
        assert "'n'" in refused("InvalidArgument", c.call, "backend-add", name="c", driver="any",
                                options={"n": {"deep": 1}})


def test_metrics_are_the_same_numbers(binary):
    with Daemon(binary) as d:
        c = d.client()
        attach(c, "guest1")
        c.call("vm-reclaim", vm="guest1", bytes=1 << 20)
        families = {f["name"]: f for f in c.call("query-metrics")}
        sample = families["ebb_vm_evicted_bytes"]["samples"][0]
        assert sample == {"labels": {"vm": "guest1"}, "value": 1 << 20}, sample
        assert families["ebb_vm_evictions"]["type"] == "counter"
        assert families["ebb_vm_scan_cpu_seconds"]["samples"][0]["value"] == 1.5
        histogram = families["ebb_vm_fault_latency_seconds"]["samples"][0]
        assert histogram["count"] == 198
        assert histogram["buckets"][-1]["count"] == 198


main(globals())
