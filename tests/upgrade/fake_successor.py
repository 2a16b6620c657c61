#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A successor that goes wrong: it plays its part (src/daemon/stage.h) up to a stage, named by the
file next to this script's copy, and then does what that says:

  STAGE die|hang|garbage|refuse|wrong

It runs as a copy of this file, so that ebbd can execute it."""
import array
import json
import os
import signal
import socket
import struct
import sys
import time

HEADER = struct.Struct("=QQII")
MAGIC = 0x6c65637261706245


def receive_exactly(sock, n):
    data = b""
    while len(data) < n:
        # What comes along is closed at once: this one has no use for it.
        part, control, _, _ = sock.recvmsg(n - len(data), socket.CMSG_SPACE(64 * 4))
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[:len(payload) - len(payload) % 4])
                for fd in fds:
                    os.close(fd)
        if not part:
            sys.exit(3)
        data += part
    return data


def receive(sock):
    magic, size, fds, _ = HEADER.unpack(receive_exactly(sock, HEADER.size))
    assert magic == MAGIC
    body = json.loads(receive_exactly(sock, size))
    receive_exactly(sock, (fds + 63) // 64)
    return body


def send(sock, body):
    text = json.dumps(body).encode()
    sock.sendall(HEADER.pack(MAGIC, len(text), 0, 0) + text)


def go_wrong(sock, how):
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "hang":
        time.sleep(600)
    elif how == "garbage":
        sock.sendall(os.urandom(300))
        time.sleep(600)
    elif how == "refuse":
        send(sock, {"stage": "failed", "desc": "it does not want to"})
    elif how == "wrong":
        send(sock, {"stage": "serving"})
    sys.exit(1)


def main():
    sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--take-over") + 1]))
    with open(os.path.realpath(__file__) + ".plan") as plan:
        stage, how = plan.read().split()
    for own, heard in (("hello", "prepare"), ("ready", "state"), ("taken", "commit")):
        if stage == own:
            go_wrong(sock, how)
        send(sock, {"stage": own, "version": 1, "compat": 1, "oldest": 1, "ebbd": "fake"})
        body = receive(sock)
        assert body["stage"] == heard, body


main()
