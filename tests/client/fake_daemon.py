# SPDX-License-Identifier: BSD-3-Clause
"""fake_daemon.py: a small attach server that evicts, brings back and records, for the client's tests.

It speaks the native dialect and serves faults, so that what a client does wrong shows in the
client's memory: content that was not brought back in time reads as zero, content that was not
discarded comes back. It has none of the real daemon's protections and is not fast.
"""
import array
import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import threading
import time

PAGE = 4096
API, REGISTER, UNREGISTER, WAKE, COPY = (0xC018AA3F, 0xC020AA00, 0x8010AA01, 0x8010AA02,
                                         0xC028AA03)
MISSING, WP = 1, 2
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Error(Exception):
    def __init__(self, cls, desc):
        super().__init__(desc)
        self.cls = cls


class Region:
    def __init__(self, args, fd):
        self.id, self.addr, self.size = args["id"], args["host_addr"], args["size"]
        self.page, self.fd, self.offset = args["page_size"], fd, args["memfd_offset"]
        self.stored = {}

    def has(self, addr):
        return self.addr <= addr < self.addr + self.size


class Vm:
    """One connection; what was attached on it outlives it, as in a daemon."""

    def __init__(self, daemon, sock):
        self.daemon, self.sock, self.uffd = daemon, sock, -1
        self.name, self.args, self.regions = None, None, {}
        self.lock = threading.RLock()
        self.answers, self.answered = {}, threading.Condition()
        self.next_id = 0
        self.closed = False

    # ---- memory ----

    def api(self):
        fcntl.ioctl(self.uffd, API, struct.pack("QQQ", 0xAA, 0, 0))

    def register(self, region):
        fcntl.ioctl(self.uffd, REGISTER,
                    struct.pack("QQQQ", region.addr, region.size, MISSING | WP, 0))

    def unregister(self, region):
        fcntl.ioctl(self.uffd, UNREGISTER, struct.pack("QQ", region.addr, region.size))

    def copy(self, addr, content):
        buf = ctypes.create_string_buffer(content, len(content))
        try:
            fcntl.ioctl(self.uffd, COPY,
                        struct.pack("QQQQq", addr, ctypes.addressof(buf), len(content), 0, 0))
        except OSError:  # there already, or unmapped
            fcntl.ioctl(self.uffd, WAKE, struct.pack("QQ", addr, len(content)))

    def evict(self, rid, offset):
        with self.lock:
            r = self.regions[rid]
            r.stored[offset] = os.pread(r.fd, r.page, r.offset + offset)
            if libc.fallocate(r.fd, 3, r.offset + offset, r.page):
                raise OSError(ctypes.get_errno(), "punch")

    def restore(self, region):
        with self.lock:
            for offset in list(region.stored):
                self.copy(region.addr + offset, region.stored.pop(offset))

    def serve_faults(self):
        poll = select.poll()
        poll.register(self.uffd, select.POLLIN)
        while not self.daemon.stopping and self.uffd >= 0:
            if not poll.poll(20):
                continue
            try:
                msg = os.read(self.uffd, 32)
            except OSError:
                continue
            if len(msg) == 32 and msg[0] == 0x12:
                self.fault(struct.unpack_from("Q", msg, 16)[0])

    def fault(self, addr):
        with self.lock:
            for r in self.regions.values():
                if r.has(addr):
                    offset = (addr - r.addr) & ~(r.page - 1)
                    content = r.stored.pop(offset, bytes(r.page))
                    self.daemon.faults += 1
                    self.copy(r.addr + offset, content)

    # ---- messages ----

    def run(self):
        text, fds = b"", []
        while True:
            try:
                data, anc, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(64 * 4))
            except OSError:
                break
            for level, kind, payload in anc:
                fds += array.array("i", payload[:len(payload) // 4 * 4]).tolist()
            if not data:
                break
            text += data
            while b"\n" in text:
                line, text = text.split(b"\n", 1)
                self.line(json.loads(line), fds)
                fds = []
        self.closed = True
        self.sock.close()
        with self.answered:
            self.answered.notify_all()

    def line(self, message, fds):
        if "execute" not in message:
            with self.answered:
                self.answers[message["id"]] = message
                self.answered.notify_all()
            return
        command, args = message["execute"], message.get("arguments", {})
        self.daemon.record(self, command, args)
        if command in self.daemon.silent:
            return
        lent = []
        try:
            if command in self.daemon.errors:
                raise Error(*self.daemon.errors[command])
            method = getattr(self, "on_" + command.replace("-", "_"), None)
            if not method:
                raise Error("CommandNotFound", "there is no command " + command)
            with self.lock:
                answer, lent = {"return": method(args, fds) or {}}, self.lent(command)
        except Error as e:
            answer = {"error": {"class": e.cls, "desc": str(e)}}
        except OSError as e:
            answer = {"error": {"class": "Busy" if e.errno == 16 else "GenericError",
                                "desc": str(e)}}
        data = json.dumps(answer).encode() + b"\n" + self.daemon.behind.pop(command, b"")
        self.daemon.note(("answered", command))
        time.sleep(self.daemon.late.pop(command, 0))
        try:
            if lent:
                socket.send_fds(self.sock, [data], lent)
            else:
                self.sock.sendall(data)
        except OSError:
            pass
        self.daemon.note(("sent", command))
        if command == "detach" and "return" in answer:
            self.sock.close()

    def lent(self, command):
        return [self.daemon.device] if command == "userfaultfd" else []

    def on_userfaultfd(self, args, fds):
        if self.daemon.device is None:
            self.daemon.device = os.open("/dev/userfaultfd", os.O_RDWR)

    def on_attach(self, args, fds):
        assert set(args) <= {"version", "vm", "regions", "requests", "secondary", "keep",
                             "kept"}, args
        assert ("keep" in args) != ("secondary" in args), args
        self.args, self.name = args, args["vm"]["name"]
        self.uffd = fds[0]
        self.kept = {k["name"]: fds[k["fd"]] for k in args.get("kept", [])}
        assert len(fds) == 1 + len({a["memfd"] for a in args["regions"]}) + len(self.kept)
        if "kept" not in args:
            self.api()
        done = []
        try:
            for a in args["regions"]:
                r = Region(a, fds[a["memfd"]])
                self.register(r)
                done.append(r)
        except OSError:
            for r in done:
                self.unregister(r)
            os.close(self.uffd)
            self.uffd = -1
            raise
        self.regions = {r.id: r for r in done}
        for r in done:
            r.stored = self.daemon.inherited.pop(r.id, {})
            if "kept" in args:  # what the dead daemon had read is not told again until woken
                fcntl.ioctl(self.uffd, WAKE, struct.pack("QQ", r.addr, r.size))
        threading.Thread(target=self.serve_faults, daemon=True).start()
        return {"vm": self.name, "version": 1}

    def on_region_add(self, args, fds):
        r = Region(args, fds[args["memfd"]])
        self.register(r)
        self.regions[r.id] = r

    def on_region_remove(self, args, fds):
        r = self.regions[args["id"]]
        if args["discard"]:
            r.stored.clear()
        self.restore(r)
        self.unregister(r)
        del self.regions[r.id]

    def on_discard(self, args, fds):
        r = self.regions[args["id"]]
        assert args["offset"] % r.page == 0 and args["size"] % r.page == 0
        for offset in list(r.stored):
            if args["offset"] <= offset < args["offset"] + args["size"]:
                del r.stored[offset]

    def on_share(self, args, fds):
        if not self.daemon.knows_share:
            raise Error("CommandNotFound", "there is no command share")
        self.restore(self.regions[args["id"]])

    def on_pin(self, args, fds):
        assert args["offset"] == 0
        self.restore(self.regions[args["id"]])

    def on_unpin(self, args, fds):
        assert args["id"] in self.regions

    def on_detach(self, args, fds):
        self.let_go()

    def let_go(self):
        for r in self.regions.values():
            self.restore(r)
            self.unregister(r)
        self.regions = {}
        os.close(self.uffd)
        self.uffd = -1

    def request(self, command, arguments, fd=None, seconds=10):
        """Asks the client for something and returns its answer."""
        with self.answered:
            self.next_id += 1
            rid = self.next_id
            line = {"execute": command, "arguments": arguments, "id": rid}
            data = json.dumps(line).encode() + b"\n"
            if fd is None:
                self.sock.sendall(data)
            else:
                socket.send_fds(self.sock, [data], [fd])
            self.answered.wait_for(lambda: rid in self.answers or self.closed, seconds)
            return self.answers.pop(rid, None)


class FakeDaemon:
    def __init__(self, path):
        self.path, self.vms, self.log = path, [], []
        self.errors, self.silent, self.knows_share = {}, set(), True
        self.late = {}  # command: seconds between the deed and its answer
        self.behind = {}  # command: what is sent in one piece with its answer
        self.inherited = {}  # region: what a daemon that died had stored of it
        self.device, self.faults, self.stopping = None, 0, False
        self.changed = threading.Condition()
        self.listener = None

    def start(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        os.chmod(self.path, 0o666)
        self.listener.listen(8)
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()
        return self

    def accept(self, listener):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            vm = Vm(self, sock)
            self.vms.append(vm)
            threading.Thread(target=vm.run, daemon=True).start()

    def note(self, what):
        with self.changed:
            self.log.append(what)
            self.changed.notify_all()

    def record(self, vm, command, args):
        self.note((command, args, vm))

    def messages(self, command):
        return [m for m in self.log if m[0] == command]

    def wait(self, command, count=1, seconds=30):
        """The count-th message of that name, once it has been answered: (name, arguments, vm)."""
        with self.changed:
            done = self.changed.wait_for(
                lambda: self.log.count(("answered", command)) >= count, seconds)
        if not done:
            raise AssertionError(f"no {command} came; had {[m[0] for m in self.log]}")
        return self.messages(command)[count - 1]

    def wait_attached(self, count=1, seconds=30):
        """The VM of the count-th attach, once its answer has been sent."""
        with self.changed:
            done = self.changed.wait_for(
                lambda: self.log.count(("sent", "attach")) >= count, seconds)
        if not done:
            raise AssertionError("nobody attached")
        return self.messages("attach")[count - 1][2]

    def stop_listening(self):
        if self.listener:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        if os.path.exists(self.path):
            os.unlink(self.path)

    def stop(self):
        self.stop_listening()
        self.stopping = True
        for vm in self.vms:
            try:
                vm.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
