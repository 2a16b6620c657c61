#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Metrics over HTTP: both text formats, and what is no GET of /metrics."""
import shutil
import socket
import subprocess

from harness import Daemon, attach, main

OPEN = "application/openmetrics-text; version=1.0.0"


def http(address, request):
    """Sends bytes; returns status, headers (lower case) and body of what comes back."""
    s = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    s.settimeout(20)
    s.connect(address)
    s.sendall(request)
    data = b""
    while chunk := s.recv(65536):
        data += chunk
    s.close()
    if not data:
        return None, {}, ""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    return int(lines[0].split()[1]), headers, body.decode()


def get(address, path="/metrics", method="GET", accept=None):
    more = "Accept: %s\r\n" % accept if accept else ""
    return http(address, ("%s %s HTTP/1.1\r\nHost: x\r\n%sConnection: close\r\n\r\n" %
                          (method, path, more)).encode())


def filled(binary, config=""):
    d = Daemon(binary, config)
    d.start()
    c = d.client()
    for name in ("guest1", 'we"ird\\vm'):
        attach(c, name)
    c.call("vm-reclaim", vm="guest1", bytes=1 << 20)
    return d


def test_promtool(binary):
    if not shutil.which("promtool"):
        # The gate's machine has it (scripts/deps); so does CI.
        raise AssertionError("promtool (Debian package prometheus) is missing")
    d = filled(binary)
    try:
        status, headers, body = get(d.path("metrics.sock"))
        assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
        r = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True,
                           text=True, timeout=20, check=False)
        assert r.returncode == 0, r.stdout + r.stderr
        assert 'ebb_vm_evicted_bytes{vm="guest1"} 1048576' in body
        assert 'ebb_vm_evictions_total{vm="guest1"} 256' in body
        assert 'vm="we\\"ird\\\\vm"' in body
    finally:
        d.__exit__(None, None, None)


class OpenMetrics:
    """A strict reader of OpenMetrics 1.0, as far as our metrics use it."""

    def __init__(self, text):
        assert text.endswith("# EOF\n"), text[-50:]
        self.families, family = {}, None
        for line in text.splitlines()[:-1]:
            words = line.split(" ", 3)
            if line.startswith("# "):
                keyword, name = words[1], words[2]
                if keyword == "TYPE":
                    assert name not in self.families, name + " is declared twice"
                    family = {"name": name, "type": words[3], "samples": []}
                    self.families[name] = family
                assert name == family["name"], line
                if keyword == "UNIT":
                    assert name.endswith("_" + words[3]), line
            else:
                self.sample(family, line)

    @staticmethod
    def sample(family, line):
        name = line.split("{")[0].split(" ")[0]
        suffixes = {"counter": ["_total"], "gauge": [""], "info": ["_info"],
                    "histogram": ["_bucket", "_count", "_sum"]}[family["type"]]
        assert name in [family["name"] + s for s in suffixes], line
        labels, value = line[len(name):].rsplit(" ", 1)
        family["samples"].append((name, labels, float(value)))


def test_openmetrics(binary):
    d = filled(binary)
    try:
        status, headers, body = get(d.path("metrics.sock"), accept=OPEN)
        assert status == 200
        assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        families = OpenMetrics(body).families
        assert all(name.startswith("ebb_") for name in families)
        assert families["ebb_vm_scan_cpu_seconds"]["samples"][0][2] == 1.5
        buckets = [s for s in families["ebb_vm_fault_latency_seconds"]["samples"]
                   if s[0].endswith("_bucket") and 'vm="guest1"' in s[1]]
        counts = [s[2] for s in buckets]
        assert counts == sorted(counts) and counts[-1] == 198 and 'le="+Inf"' in buckets[-1][1]
        assert counts[0] == 0 and counts[5] > 0
    finally:
        d.__exit__(None, None, None)


def test_only_get_of_metrics(binary):
    with Daemon(binary) as d:
        path = d.path("metrics.sock")
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"):
            assert get(path, method=method)[0] == 405, method
        for other in ("/", "/metrics/", "/other", "/../metrics"):
            assert get(path, path=other)[0] == 404, other
        assert get(path)[0] == 200


def test_bad_http(binary):
    with Daemon(binary) as d:
        path = d.path("metrics.sock")
        for bad in (b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"NONSENSE /metrics HTTP/1.1\r\n\r\n",
                    b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"y" * 100000 + b"\r\n\r\n"):
            try:
                status = http(path, bad)[0]
            except (ConnectionResetError, BrokenPipeError):
                status = None
            assert status is None or 400 <= status < 600, (bad[:40], status)
        idle = [socket.socket(socket.AF_UNIX) for _ in range(50)]
        for s in idle:
            s.connect(path)
            s.sendall(b"GET /met")
        assert get(path)[0] == 200
        for s in idle:
            s.close()


def test_loopback_port(binary):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with Daemon(binary, "metrics-listen = 127.0.0.1:%d\n" % port) as d:
        assert get(("127.0.0.1", port))[0] == 200
        assert get(d.path("metrics.sock"))[0] == 200


main(globals())
