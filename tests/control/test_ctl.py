#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""ebbctl: words into arguments, answers into text, exit status, progress, Ctrl-C."""
import json
import os
import pty
import signal
import subprocess
import xml.etree.ElementTree

from harness import EBBCTL, Daemon, attach, ctl, main, wait_for

MIB = 1 << 20


def ok(d, *words):
    r = ctl(d, *words)
    assert r.returncode == 0, r
    return r.stdout


def test_words_become_arguments(binary):
    with Daemon(binary) as d:
        c = d.client()
        attach(c, "guest1")
        ok(d, "vm-set", "guest1", "limit=128M", "floor=4k", "weight=9", "tiers=compressed",
           "granularity=2M")
        v = c.call("query-vm", vm="guest1")
        assert (v["limit-bytes"], v["floor-bytes"], v["weight"], v["granularity"]) == \
            (128 * MIB, 4096, 9, "2M"), v
        ok(d, "vm-set", "--vm", "guest1", "--limit=64M", "--weight", "8")
        v = c.call("query-vm", vm="guest1")
        assert (v["limit-bytes"], v["weight"]) == (64 * MIB, 8), v


def test_options(binary):
    with Daemon(binary) as d:
        c = d.client()
        ok(d, "backend-add", "a", "driver=any", "path=/x=y", "options.size=1G")
        ok(d, "backend-add", "name=b", "driver=any", 'options={"n":5,"l":["p","q"]}')
        got = {b["name"]: b["description"] for b in c.call("query-backends")}
        assert got["a"] == "path=/x=y;size=1G;" and got["b"] == "n=5;l=p,q;", got


def test_exit_status(binary):
    with Daemon(binary) as d:
        for words, status, said in [
                (["query-vm", "ghost"], 1, "NotFound: there is no VM 'ghost'"),
                (["query-vm"], 2, "'vm' is missing"),
                (["query-vms", "x=1"], 2, "query-vms has no argument 'x'"),
                (["vm-set", "a", "limit=lots"], 2, "limit: 'lots' is not a size"),
                (["vm-set", "a", "weight=0"], 2, "'weight': it must be at least 1"),
                (["vm-set", "a", "b"], 2, "'b': an argument is NAME=VALUE"),
                (["quit", "drain=perhaps"], 2, "drain: 'perhaps' is not true or false"),
                (["nonsense"], 2, "there is no command 'nonsense'"),
                (["--nonsense"], 2, "--nonsense"),
                ([], 2, "usage:")]:
            r = ctl(d, *words)
            assert r.returncode == status and said in r.stderr and not r.stdout, (words, r)
    r = subprocess.run([EBBCTL, "--socket", "/nowhere.sock", "query-vms"], capture_output=True,
                       text=True, timeout=20, check=False)
    assert r.returncode == 1 and "/nowhere.sock" in r.stderr and "running?" in r.stderr


def test_json_is_the_answer(binary):
    with Daemon(binary) as d:
        attach(d.client(), "guest1")
        answer = json.loads(ok(d, "--json", "query-vms"))
        assert answer["return"][0]["ram-bytes"] == 256 * MIB
        r = ctl(d, "--json", "query-vm", "ghost")
        assert r.returncode == 1 and json.loads(r.stdout)["error"]["class"] == "NotFound"


def test_socket_from_the_environment(binary):
    with Daemon(binary) as d:
        r = subprocess.run([EBBCTL, "query-version"], capture_output=True, text=True, timeout=20,
                           check=False, env={**os.environ, "EBB_CONTROL": d.control})
        assert r.returncode == 0 and "ebb " in r.stdout, r


def test_tables_and_top(binary):
    with Daemon(binary) as d:
        c = d.client()
        attach(c, "guest1")
        attach(c, "esc\x1b[2Jape")
        lines = ok(d, "query-vms").splitlines()
        assert lines[0].split()[:4] == ["NAME", "PID", "RAM", "RESIDENT"], lines
        assert "256.0 MiB" in lines[1] and len(lines) == 3
        assert "\x1b" not in "".join(lines)
        out = ok(d, "query-vm", "guest1")
        assert "ram-bytes" in out and "256.0 MiB" in out and "p99.9" in out
        out = ok(d, "top", "--once")
        assert "guest1" in out and "\x1b" not in out
        assert ok(d, "top") == out # no terminal: once


def test_help_needs_no_daemon(binary):
    r = subprocess.run([EBBCTL, "help"], capture_output=True, text=True, timeout=20, check=False)
    assert r.returncode == 0 and "vm-reclaim" in r.stdout and "qmp_capabilities" not in r.stdout
    r = subprocess.run([EBBCTL, "help", "vm-set"], capture_output=True, text=True, timeout=20,
                       check=False)
    assert r.returncode == 0 and "granularity" in r.stdout and "VM" in r.stdout
    r = subprocess.run([EBBCTL, "help", "x"], capture_output=True, text=True, timeout=20,
                       check=False)
    assert r.returncode == 2


def test_watch(binary):
    with Daemon(binary) as d:
        p = subprocess.Popen([EBBCTL, "--socket", d.control, "--json", "watch"], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            c = d.client()
            seen = []
            # It may not be connected yet: events until one arrives.
            os.set_blocking(p.stdout.fileno(), False)

            def more():
                c.call("backend-add", name="x", driver="fake-event")
                c.events.clear()
                line = p.stdout.readline()
                if line:
                    seen.append(json.loads(line))
                return seen
            wait_for(more, "an event")
            assert seen[0]["event"] == "VM_LIMIT_EXCEEDED", seen
            p.send_signal(signal.SIGINT)
            assert p.wait(20) == 0
        finally:
            p.kill()
            p.wait()


class Terminal:
    """ebbctl with a terminal as its stderr, or as its stdout."""

    def __init__(self, *words, stdout=False, env=None):
        self.master, slave = pty.openpty()
        self.child = subprocess.Popen(words, stderr=subprocess.DEVNULL if stdout else slave,
                                      stdout=slave if stdout else subprocess.PIPE, text=True,
                                      stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        os.close(slave)
        os.set_blocking(self.master, False)
        self.text = ""

    def read(self):
        try:
            self.text += os.read(self.master, 65536).decode()
        except (BlockingIOError, OSError):
            pass
        return self.text

    def close(self):
        self.child.kill()
        self.child.wait()
        if self.child.stdout:
            self.child.stdout.close()
        os.close(self.master)


def test_heatmap(binary):
    """The fake engine's VM: a quarter each hot, cold, evicted, never touched."""
    with Daemon(binary) as d:
        attach(d.client(), "guest1")
        row = "|" + "#" * 4 + "." * 4 + "-" * 4 + " " * 4 + "|"
        lines = ok(d, "heatmap", "guest1", "seconds=3", "columns=16").splitlines()
        assert [x.split(None, 1)[1] for x in lines if x.endswith("|")] == [row] * 3, lines
        assert [float(x.split()[0]) for x in lines if x.endswith("|")] == [-3, -2, -1], lines
        # Where the second RAM block begins: a quarter of the way; a VMM's text steers nothing.
        assert lines[4].strip() == "^ low<&?, 64.0 MiB", lines
        assert lines[5].index("^") - lines[4].index("^") == 4 and "high, 192.0 MiB" in lines[5]
        assert "\x1b" not in "".join(lines)
        for env, colours in (({"TERM": "xterm-256color"}, True), ({"TERM": "dumb"}, False),
                             ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False)):
            t = Terminal(EBBCTL, "--socket", d.control, "heatmap", "guest1", "seconds=1",
                         stdout=True, env=env)
            try:
                wait_for(lambda: "never touched" in t.read(), "the map")
                assert ("\x1b[38;5;231;48;5;160m#\x1b[0m" in t.text) == colours, t.text
            finally:
                t.close()


def test_heatmap_svg(binary):
    with Daemon(binary) as d:
        attach(d.client(), "guest1")
        file = os.path.join(d.folder, "map.svg")
        ok(d, "heatmap", "guest1", "seconds=2", "columns=16", "--svg", file)
        svg = xml.etree.ElementTree.parse(file).getroot()
        rects = [(int(r.get("x")), int(r.get("width")), r.get("fill")) for r in svg
                 if r.tag.endswith("rect") and r.get("height") == "12" and not r.get("stroke")]
        x = rects[0][0]
        assert rects == [(x, 24, "#c8261b"), (x + 24, 24, "#5b8fc7"), (x + 48, 24, "#9a9a9a")] * 2
        texts = [t.text for t in svg if t.tag.endswith("text")]
        assert "guest1: 256.0 MiB of RAM" in texts and "low<&?, 64.0 MiB" in texts, texts
        # Not to be written, or nothing to be drawn: no part of a picture stays.
        r = ctl(d, "heatmap", "guest1", "seconds=1", "--svg", "/nowhere/map.svg")
        assert r.returncode == 1 and "/nowhere/map.svg" in r.stderr, r
        os.unlink(file)
        r = ctl(d, "heatmap", "ghost", "--svg=" + file)
        assert r.returncode == 1 and "NotFound" in r.stderr, r
        assert not [x for x in os.listdir(d.folder) if "svg" in x]
        r = ctl(d, "--json", "heatmap", "guest1", "--svg", file)
        assert r.returncode == 2 and "--svg" in r.stderr, r


def test_wss(binary):
    with Daemon(binary) as d:
        attach(d.client(), "guest1")
        lines = ok(d, "wss", "guest1", "seconds=5").splitlines()[2:]
        got = [(float(x.split()[0]), x.split()[2], x.count("#")) for x in lines]
        assert got == [(1, "64.0", 10), (2, "64.0", 10), (4, "64.0", 10), (5, "128.0", 20)], lines
        curve = json.loads(ok(d, "--json", "wss", "guest1", "seconds=1"))["return"]["curve"]
        assert curve == [{"within-ms": 1000, "accessed-bytes": 128 * MIB}], curve


def test_watch_refuses(binary):
    with Daemon(binary) as d:
        attach(d.client(), "guest1")
        for words, status, said in [
                (["heatmap"], 2, "'vm' is missing"),
                (["heatmap", "ghost"], 1, "NotFound"),
                (["wss", "ghost"], 1, "NotFound"),
                (["heatmap", "guest1", "columns=0"], 2, "at least 1"),
                (["heatmap", "guest1", "columns=513"], 2, "at most 512"),
                (["heatmap", "guest1", "columns=wide"], 2, "is not a number"),
                (["heatmap", "guest1", "seconds=0"], 2, "at least 1"),
                (["heatmap", "guest1", "seconds=33", "columns=512"], 1, "at most 16384"),
                (["heatmap", "guest1", "seconds=1", "window-ms=1001"], 1, "that is 0 windows"),
                (["wss", "guest1", "seconds=3601"], 1, "1 to 3600"),
                (["wss", "guest1", "seconds=86400", "window-ms=10"], 1, "1 to 3600"),
                (["wss", "guest1", "columns=5"], 2, "no argument 'columns'"),
                (["heatmap", "guest1", "--svg="], 2, "--svg needs a file")]:
            r = ctl(d, *words)
            assert r.returncode == status and said in r.stderr and not r.stdout, (words, r)


def test_progress_bar_and_ctrl_c(binary):
    with Daemon(binary) as d:
        c = d.client()
        attach(c, "guest1")
        c.call("vm-reclaim", vm="guest1", bytes=64 * MIB)
        t = Terminal(EBBCTL, "--socket", d.control, "vm-prefetch", "guest1")
        try:
            wait_for(lambda: "[#" in t.read() and "MiB" in t.text, "a bar")
            t.child.send_signal(signal.SIGINT)
            assert t.child.wait(20) == 1
            assert "Cancelled" in t.read(), t.text
            assert 0 < c.call("query-vm", vm="guest1")["evicted-bytes"] < 64 * MIB
            assert c.call("query-jobs") == []
        finally:
            t.close()


def test_daemon_dies_meanwhile(binary):
    with Daemon(binary) as d:
        c = d.client()
        attach(c, "guest1")
        c.call("vm-reclaim", vm="guest1", bytes=64 * MIB)
        p = subprocess.Popen([EBBCTL, "--socket", d.control, "vm-prefetch", "guest1"], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        c.wait_event("JOB_PROGRESS", command="vm-prefetch")
        d.end(signal.SIGKILL)
        out, err = p.communicate(timeout=20)
        assert p.returncode == 1 and "closed the connection" in err and not out, (out, err)


def test_quit(binary):
    with Daemon(binary) as d:
        ok(d, "quit")
        assert d.wait() == 0
    with Daemon(binary) as d:
        attach(d.client(), "guest1")
        ok(d, "quit", "--drain")
        assert d.wait() == 0


main(globals())
