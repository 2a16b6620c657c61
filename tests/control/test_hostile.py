#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Clients that send nonsense, too much, too slowly, or do not read: the daemon goes on."""
import json
import random
import socket

from harness import Client, Daemon, attach, main, wait_for


def still_well(d):
    c = d.client()
    assert "package" in c.call("query-version")
    c.close()


def test_not_json(binary):
    with Daemon(binary) as d:
        c = d.client()
        for bad in (b"hello\n", b"[1,2]\n", b"{]\n", b'{"a":}\n', b'{"execute":"query-version",}',
                    b'{"execute":"a","execute":"b"}', b'{"execute":"\xc3\x28"}',
                    b'{"execute":"query-vm","arguments":{"vm":"\\u0000"}}',
                    b'{"execute":"vm-set","arguments":{"vm":"a","limit":99999999999999999999}}'):
            c.send(bad)
            assert c.answer()["error"]["class"] == "ProtocolError", bad
        c.call("query-version")


def test_nul_bytes(binary):
    with Daemon(binary) as d:
        c = d.client()
        c.send(b"\0\0\0\n")
        assert c.answer()["error"]["class"] == "ProtocolError"
        c.send(b'{"execute":"query\0-version"}')
        assert c.answer()["error"]["class"] == "ProtocolError"
        c.call("query-version")


def test_reset_byte(binary):
    with Daemon(binary) as d:
        c = d.client()
        c.send(b'{"execute":"never finis\xff')
        c.call("query-version")


def test_too_long(binary):
    with Daemon(binary) as d:
        before = d.memory_kib()
        for _ in range(8):
            c = d.client()
            try:
                c.send(b'{"execute":"' + b"x" * (4 << 20))
            except (BrokenPipeError, ConnectionResetError):
                pass # it has hung up meanwhile, as it should
            try:
                assert c.answer()["error"]["class"] == "ProtocolError"
                assert c.answer() is None
            except ConnectionResetError:
                pass
            c.close()
        still_well(d)
        assert d.memory_kib() - before < 16 * 1024, "memory grew with what was sent"


def test_too_deep(binary):
    with Daemon(binary) as d:
        c = d.client()
        c.send(b'{"a":' * 1000)
        assert c.answer()["error"]["class"] == "ProtocolError"
        assert c.answer() is None
        c = d.client()
        c.send(b'{"execute":"query-version","id":' + b"[" * 30 + b"]" * 30 + b"}")
        assert "return" in c.answer()
        still_well(d)


def test_half_a_request_and_away(binary):
    with Daemon(binary) as d:
        before = d.fds()
        for _ in range(50):
            c = d.client()
            c.send(b'{"execute":"query-vm","argu')
            c.close()
        still_well(d)
        wait_for(lambda: d.fds() <= before, "descriptors given back")


def test_long_names(binary):
    with Daemon(binary) as d:
        c = d.client()
        for n in (63, 64, 100, 5000, 20000):
            for name in ("x" * n, "\u00e4" * (n // 2)):
                for command, argument in (("query-vm", "vm"), ("backend-remove", "name")):
                    c.start(command, **{argument: name})
                    answer = c.answer()
                    assert answer["error"]["class"] == "NotFound", (command, n, answer)
        c.start("vm-reclaim", vm="x" * 100, bytes=1)
        assert c.answer()["error"]["class"] == "NotFound"
        c.send(json.dumps({"execute": "x" * 60000}).encode())
        assert c.answer()["error"]["class"] == "CommandNotFound"


def test_many_clients(binary):
    with Daemon(binary) as d:
        clients = [d.client() for _ in range(64)]
        for c in clients:
            c.call("query-version")
        one_more = socket.socket(socket.AF_UNIX)
        one_more.settimeout(20)
        one_more.connect(d.control)
        assert json.loads(one_more.recv(65536))["error"]["class"] == "LimitExceeded"
        assert one_more.recv(1) == b""
        clients.pop().close()
        wait_for(lambda: "QMP" in Client(d.control, negotiate=False).greeting, "room again")
        for c in clients:
            c.call("query-version")


def test_who_does_not_read_answers_waits(binary):
    """Its requests wait in its own socket; the daemon holds no more than a bounded part."""
    with Daemon(binary) as d:
        before = d.memory_kib()
        c = d.client()
        c.sock.setblocking(False)
        request = b'{"execute":"query-schema"}' * 100
        sent = 0
        try:
            while sent < 16 << 20:
                sent += c.sock.send(request)
        except BlockingIOError:
            pass
        still_well(d)
        assert sent < 16 << 20, "everything was taken"
        assert d.memory_kib() - before < 32 * 1024
        # And it gets all the answers once it reads.
        c.sock.settimeout(20)
        for _ in range(sent // len(request) * 100 // 50):
            assert "return" in c.answer()


def test_who_does_not_read_events_is_dropped(binary):
    with Daemon(binary) as d:
        c, deaf = d.client(), d.client()
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # Each of these emits several events; the deaf one's buffer is 1 MiB.
        for _ in range(60):
            for _ in range(50):
                c.start("policy-unload", name="fake-event")
            for _ in range(50):
                c.answer()
            c.events.clear()
        wait_for(lambda: "does not read its events" in d.read_log(), "the deaf one dropped")
        c.call("query-version")
        still_well(d)


def test_random_bytes(binary):
    with Daemon(binary) as d:
        rng = random.Random(20240301)
        likely = [b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\n", b"\xff", b"\0", b"1e999",
                  b'"execute"', b'"arguments"', b'"id"', b'"query-vm"', b'"vm-set"', b'"vm"',
                  b'"quit', b"null", b"-1", b"\xc3", b"\\ud800"]
        for _ in range(60):
            c = d.client(negotiate=rng.random() < 0.7)
            data = b"".join(rng.choice(likely) if rng.random() < 0.9 else rng.randbytes(3)
                            for _ in range(rng.randrange(3000)))
            try:
                c.send(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
            c.close()
        still_well(d)


def test_mutated_requests(binary):
    """Requests that are nearly right, so that they come past the parser."""
    with Daemon(binary) as d:
        c = d.client()
        attach(c, "guest1")
        rng = random.Random(7)
        schema = c.call("query-schema")
        values = [0, -1, 1, 2**63 - 1, 1.5, True, None, "", "guest1", "compressed", "x" * 300, [],
                  ["compressed"] * 20, [[]], {}, {"a": {"b": 1}}, "\u0001\u001b[2J"]
        commands = [x for x in schema["commands"] if x["name"] not in ("quit", "vm-prefetch")]
        for _ in range(1500):
            command = rng.choice(commands)
            args = {a["name"]: rng.choice(values) for a in command["arguments"]
                    if rng.random() < 0.8}
            if rng.random() < 0.1:
                args["more"] = 1
            c.send(json.dumps({"execute": command["name"], "arguments": args}).encode())
            answer = c.answer()
            assert "return" in answer or "error" in answer, answer
            c.events.clear()
        still_well(d)


main(globals())
