# SPDX-License-Identifier: BSD-3-Clause
"""Line-wise JSON with QEMU (QMP)."""
import json
import socket
import time

from .process import Failure


class QmpError(Failure):
    """The other side refused the command."""

    def __init__(self, name, error):
        super().__init__("%s: %s" % (name, error.get("desc", error)))
        self.error = error


class Lines:
    """A stream socket read line by line."""

    def __init__(self, sock):
        self.sock = sock
        self.buffer = b""

    def read(self, count):
        while len(self.buffer) < count:
            self._more()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def line(self):
        while b"\n" not in self.buffer:
            self._more()
        data, self.buffer = self.buffer.split(b"\n", 1)
        return data.rstrip(b"\r")

    def _more(self):
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionError("the other side closed the connection")
        self.buffer += data


def connect_unix(path, child, timeout=10.0):
    end = time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
            return sock
        except OSError as e:
            sock.close()
            child.require_running()
            if time.monotonic() > end:
                raise Failure("%s: %s" % (path, e)) from e
            time.sleep(0.02)


class Qmp:
    def __init__(self, path, child, timeout=30.0):
        self.sock = connect_unix(path, child)
        self.sock.settimeout(timeout)
        self.lines = Lines(self.sock)
        self.events = []
        self._answer() # the greeting
        self.execute("qmp_capabilities")

    def _answer(self):
        while True:
            message = json.loads(self.lines.line())
            if "event" not in message:
                return message
            self.events.append(message)

    def execute(self, name, **arguments):
        """Runs a command; '_' in argument names stands for '-'."""
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.sock.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        answer = self._answer()
        if "error" in answer:
            raise QmpError(name, answer["error"])
        return answer["return"]

    def event(self, name):
        """The events of that name so far."""
        self.execute("query-name")
        return [e for e in self.events if e["event"] == name]
