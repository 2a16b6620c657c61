#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Configuration file, command line, signals and the service manager's protocol."""
import os
import signal
import socket
import stat
import subprocess

from harness import DEADLINE, Daemon, attach, main, wait_for


def refused(binary, config, *args):
    """What the daemon says about a configuration that it does not start with."""
    d = Daemon(binary, config)
    with_daemon = [binary, "--config", d.config, "--runtime-dir", d.run, *args]
    r = subprocess.run(with_daemon, capture_output=True, text=True, timeout=DEADLINE, check=False)
    d.__exit__(None, None, None)
    assert r.returncode == 1, r
    return r.stderr.replace(d.config, "CONF")


def test_errors_name_file_and_line(binary):
    for config, want in [
            ("# fine\n\nlimit = 3\n", "CONF:3: key 'limit' is not known"),
            ("log-level = loud\n", "CONF:1: 'log-level' must be error, warning, info or debug"),
            ("host-budget = much\n", "CONF:1: 'host-budget' must be a size"),
            ("fault-threads = -1\n", "CONF:1: 'fault-threads' must be a number"),
            ("fault-threads = 99999999999\n", "CONF:1: 'fault-threads' must be a number"),
            ("allow-quarantine = maybe\n", "CONF:1: 'allow-quarantine' must be yes or no"),
            ("just words\n", "CONF:1: a line is KEY = VALUE"),
            ("[vm a]\nlimit = 1G\nlimits = 2\n", "CONF:3: key 'limits' is not known in [vm]"),
            ("[vm a]\nlimit = x\n", "CONF:2: 'limit' cannot be 'x'"),
            ("[vm a]\nvm = x\n", "CONF:2: key 'vm' is not known in [vm]"),
            ("[vm]\n", "CONF:1: section [vm] needs a name"),
            ("[thing x]\n", "CONF:1: section 'thing' is not known"),
            ("[vm a\n", "CONF:1: a section is [KIND NAME]"),
            ("[policy p]\nwhere = x\n", "CONF:2: key 'where' is not known in [policy]"),
            ("[vm a]\nweight = 0\n", "'weight': it must be at least 1"),
            ("[vm a]\nreclaim.x = 0\n", "argument 'policy' is missing"),
            ("[backend b]\nlevel = 3\n", "argument 'driver' is missing"),
            ("x" * 5000 + "\n", "CONF:1: the line is too long"),
            ("metrics-listen = 0.0.0.0:9999\n", "not a loopback address"),
            ("metrics-listen = nonsense\n", "is not ADDRESS:PORT"),
            ("socket-group = no-such-group\n", "no group 'no-such-group'")]:
        said = refused(binary, config)
        assert want in said, (config, said)


def test_command_line_errors(binary):
    assert "--nonsense" in refused(binary, "", "--nonsense")
    assert "--plugin-dir needs a value" in refused(binary, "", "--plugin-dir")
    assert "'word'" in refused(binary, "", "word")
    assert "log-level" in refused(binary, "", "--log-level", "x")
    r = subprocess.run([binary, "--config", "/nowhere/at.all"], capture_output=True, text=True,
                       timeout=DEADLINE, check=False)
    assert r.returncode == 1 and "/nowhere/at.all" in r.stderr


def test_help_and_version(binary):
    for option, want in (("--help", "--runtime-dir"), ("--version", "ebbd ")):
        r = subprocess.run([binary, option], capture_output=True, text=True, timeout=DEADLINE,
                           check=False)
        assert r.returncode == 0 and want in r.stdout and not r.stderr, r


def test_everything_in_a_file(binary):
    config = """
# A comment, and = signs and [brackets] in it
log-level = debug   # behind a value
host-budget = 2G

[backend strong]
driver = any
codec = zstd
color=#ff0000

[vm *]
weight = 3
limit = 1G
[vm guest1]
limit = 512M
tiers = strong, compressed
reclaim-policy = null
reclaim.window = 9
"""
    with Daemon(binary, config) as d:
        c = d.client()
        attach(c, "guest1")
        attach(c, "guest2")
        v = c.call("query-vm", vm="guest1")
        assert (v["limit-bytes"], v["weight"], v["reclaim-policy"]) == (512 << 20, 3, "null"), v
        assert v["tiers"][0]["backend"] == "strong"
        assert c.call("query-policy-stats", vm="guest1")["stats"][0]["help"] == "window=9"
        v = c.call("query-vm", vm="guest2")
        assert (v["limit-bytes"], v["weight"]) == (1 << 30, 3), v
        strong = next(b for b in c.call("query-backends") if b["name"] == "strong")
        assert strong["description"] == "codec=zstd;color=#ff0000;", strong


def test_sockets_modes(binary):
    old = os.umask(0o077) # as the service has it
    try:
        with Daemon(binary) as d:
            for name in ("control.sock", "metrics.sock"):
                assert stat.S_IMODE(os.stat(d.path(name)).st_mode) == 0o660, name
    finally:
        os.umask(old)


def test_failing_backend_does_not_stop_the_start(binary):
    with Daemon(binary, "[backend bad]\ndriver = fake-fail\n") as d:
        assert "backend bad: there is no driver" in d.read_log()
        assert [b["name"] for b in d.client().call("query-backends")] == ["compressed"]


def test_reload(binary):
    with Daemon(binary, "[vm *]\nlimit = 1M\n") as d:
        c = d.client()
        attach(c, "guest1")
        with open(d.config, "w") as f:
            f.write("[vm *]\nlimit = 2M\n")
        d.child.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload:" in d.read_log(), "reload")
        attach(c, "guest2")
        assert c.call("query-vm", vm="guest1")["limit-bytes"] == 1 << 20
        assert c.call("query-vm", vm="guest2")["limit-bytes"] == 2 << 20
        with open(d.config, "w") as f:
            f.write("nonsense = 1\n")
        d.child.send_signal(signal.SIGHUP)
        wait_for(lambda: "everything stays" in d.read_log(), "refusal")
        attach(c, "guest3")
        assert c.call("query-vm", vm="guest3")["limit-bytes"] == 2 << 20


def test_service_manager(binary):
    d = Daemon(binary)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.settimeout(DEADLINE)
    manager.bind(os.path.join(d.folder, "notify"))
    d.start(env={"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "50000"})
    try:
        assert manager.recv(100) == b"READY=1"
        assert os.path.exists(d.control)
        assert manager.recv(100) == b"WATCHDOG=1"
        assert manager.recv(100) == b"WATCHDOG=1"
        d.child.terminate()
        while (said := manager.recv(100)) == b"WATCHDOG=1":
            pass
        assert said == b"STOPPING=1"
        assert d.wait() == 0
    finally:
        d.__exit__(None, None, None)


def test_journal_prefix(binary):
    d = Daemon(binary)
    st = os.fstat(d.log.fileno())
    d.start(env={"JOURNAL_STREAM": "%d:%d" % (st.st_dev, st.st_ino)})
    try:
        assert "<6>ebbd" in d.read_log(), d.read_log()
    finally:
        d.__exit__(None, None, None)


def test_signals_end_cleanly(binary):
    for sig in (signal.SIGTERM, signal.SIGINT):
        with Daemon(binary) as d:
            assert d.end(sig) == 0


main(globals())
