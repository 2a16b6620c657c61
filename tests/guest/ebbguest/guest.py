# SPDX-License-Identifier: BSD-3-Clause
"""A QEMU with a Linux guest, and commands run in it.

The guest is an initramfs (see build-guest): it needs no disk and is ready 2 s after its start under
KVM and 6 s under TCG. The host talks to the agent in its init over a virtio-serial port. Nothing
in QEMU is modified; Ebb comes in as a plugin, by LD_PRELOAD, or not at all.
"""
import base64
import os
import re
import subprocess

from .process import Failure, wait_for
from .qmp import Lines, Qmp, connect_unix

HERE = os.path.dirname(os.path.realpath(__file__))
SOURCE = os.path.realpath(os.path.join(HERE, "../../.."))
QEMU = "qemu-system-x86_64"
# CPU models with AVX or ERMS make the guest's libc and kernel use them, which TCG is slow at.
TCG_CPU = "Nehalem-v1,+rdrand,+rdtscp"
CMDLINE = ("console=ttyS0 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on nowatchdog "
           "rcupdate.rcu_cpu_stall_suppress=1 memhp_default_state=online_movable")
CMDLINE_TCG = "tsc=reliable no_timer_check nokaslr"


def image_folder():
    """Where build-guest leaves kernel and initramfs; made on the first use."""
    folder = os.environ.get("EBB_GUEST_DIR") or os.path.join(SOURCE, ".cache/guest")
    made = subprocess.run([os.path.join(HERE, "../build-guest"), folder], text=True,
                          stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, check=False)
    if made.returncode:
        raise Failure(made.stderr.strip())
    return folder


def parse_mib(text):
    return int(text[:-1]) * {"M": 1, "G": 1024}[text[-1]]


class Ram:
    """How guest RAM is made: the QEMU arguments of one or more blocks."""

    def __init__(self, size="1G", kind="memfd", blocks=1, hotplug="", folder="/dev/shm"):
        """kind: memfd, hugetlb, file (on a tmpfs, 2 MiB-aligned, so that THP can be had), or
        anonymous, which is not shared: nobody can attach it."""
        self.kind, self.hotplug, self.folder = kind, hotplug, folder
        self.mib = parse_mib(size)
        self.blocks = blocks

    def backend(self, name, mib):
        kinds = {"memfd": "memory-backend-memfd,id=%s,size=%dM,share=on",
                 "file": "memory-backend-file,id=%s,size=%dM,share=on,align=2M,mem-path="
                         + self.folder,
                 "hugetlb": "memory-backend-memfd,id=%s,size=%dM,share=on,hugetlb=on,"
                            "hugetlbsize=2M",
                 "anonymous": "memory-backend-ram,id=%s,size=%dM"}
        return kinds[self.kind] % (name, mib)

    def arguments(self):
        out = ["-m", "%dM%s" % (self.mib, self.hotplug)]
        each = self.mib // self.blocks
        for n in range(self.blocks):
            out += ["-object", self.backend("ram%d" % n, each),
                    "-numa", "node,nodeid=%d,memdev=ram%d" % (n, n)]
        return out


class Guest:
    def __init__(self, scope, name="guest", ram=None, cpus=2, accel="tcg", attach=None, ebb=None,
                 devices=(), env=None):
        """attach: None, "plugin" or "preload"; ebb: the instance to attach to."""
        self.scope, self.name, self.accel = scope, name, accel
        self.ram = ram or Ram()
        self.folder = image_folder()
        self.agent = self.qmp = None
        self.tag = 0
        env = dict(env or {})
        argv = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-name", name, "-machine", "q35", "-smp", str(cpus), *self._accel(),
                *self.ram.arguments(),
                "-kernel", self.folder + "/vmlinux", "-initrd", self.folder + "/initramfs",
                "-append", CMDLINE + (" " + CMDLINE_TCG if accel == "tcg" else ""),
                "-chardev", "file,id=console,path=" + self._path("console"),
                "-serial", "chardev:console",
                "-qmp", "unix:%s,server=on,wait=off" % self._path("qmp"),
                "-device", "virtio-serial-pci",
                "-chardev", "socket,id=agent,path=%s,server=on,wait=off" % self._path("agent"),
                "-device", "virtserialport,chardev=agent,nr=1,name=org.ebb.agent",
                "-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:6379",
                "-device", "virtio-net-pci,netdev=net,romfile=", *devices]
        if attach == "plugin":
            argv += ["-plugin", "%s,socket=%s,name=%s" % (ebb.library, ebb.attach_socket, name)]
        elif attach == "preload":
            env.update(ebb.preload(name))
        self.argv = argv
        self.child = scope.spawn("qemu-" + name, argv, env)

    def _path(self, what):
        return self.scope.path("%s.%s" % (self.name, what))

    def _accel(self):
        if self.accel == "kvm":
            return ["-accel", "kvm", "-cpu", "host"]
        return ["-accel", "tcg,thread=multi", "-cpu", TCG_CPU]

    @property
    def pid(self):
        return self.child.pid

    def console(self, lines=20):
        try:
            with open(self._path("console"), errors="replace") as f:
                return "".join(f.readlines()[-lines:]).strip()
        except OSError:
            return ""

    def connect(self):
        """Connects to QEMU and to the port of the agent, which need not be there yet."""
        self.qmp = Qmp(self._path("qmp"), self.child)
        self.agent = Lines(connect_unix(self._path("agent"), self.child))

    def wait_ready(self, timeout=90.0):
        """Connects, and waits until the guest's agent says that it is there."""
        try:
            self.connect()
            self.agent.sock.settimeout(0.1)
            wait_for(self._hello, "the guest's start", timeout, self.child, step=0)
        except (ConnectionError, Failure) as e:
            if isinstance(e, ConnectionError):
                self.child.stop() # it is ending: let it, so that its log is whole
            self.child.require_running()
            raise Failure("%s\n%s" % (e, self.console())) from e

    def _hello(self):
        try:
            return self.agent.line().startswith(b"hello")
        except TimeoutError:
            return False

    def run(self, command, timeout=60.0):
        """Runs a shell command in the guest: (exit status, output)."""
        self.tag += 1
        self.agent.sock.settimeout(timeout)
        request = b"%d %s\n" % (self.tag, base64.b64encode(command.encode()))
        try:
            self.agent.sock.sendall(request)
            tag, status, length = self.agent.line().split()
            output = self.agent.read(int(length)).decode(errors="replace")
        except TimeoutError as e:
            raise Failure("in the guest, not within %g s: %s\n%s" % (
                timeout, command, self.console())) from e
        if int(tag) != self.tag:
            raise Failure("the guest answered request %s, not %d" % (tag.decode(), self.tag))
        return int(status), output.strip()

    def check(self, command, timeout=60.0):
        """Runs a shell command in the guest that must succeed; returns its output."""
        status, output = self.run(command, timeout)
        if status:
            raise Failure("in the guest, %s: status %d: %s" % (command, status, output))
        return output

    def start(self, name, command):
        """Starts a command in the guest's background; its end is taken with finish()."""
        quoted = command.replace("'", "'\\''")
        self.check("(sh -c '%s' >/tmp/%s.log 2>&1; echo $? >/tmp/%s.status) </dev/null "
                   ">/dev/null 2>&1 &" % (quoted, name, name))

    def finish(self, name, timeout=60.0):
        """Waits for a command of start(): (exit status, output)."""
        wait_for(lambda: self.run("test -e /tmp/%s.status" % name)[0] == 0,
                 "%s in the guest" % name, timeout, self.child, step=0.3)
        status = self.check("cat /tmp/%s.status" % name)
        return int(status), self.check("cat /tmp/%s.log" % name)

    def forwarded_port(self):
        """The host's port that leads to the guest's Redis."""
        text = self.qmp.execute("human-monitor-command", command_line="info usernet")
        found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", text)
        if not found:
            raise Failure("QEMU forwards no port: " + text)
        return int(found.group(1))

    def memory_fds(self):
        """{inode: path} of the memory files that QEMU holds."""
        out, folder = {}, "/proc/%d/fd" % self.pid
        for fd in os.listdir(folder):
            path = os.path.join(folder, fd)
            try:
                target = os.readlink(path)
                if target.startswith(("/memfd:memory-backend", self.ram.folder + "/")):
                    out[os.stat(path).st_ino] = path
            except OSError:
                continue
        return out

    def ram_taken_bytes(self):
        """What the guest's RAM takes of the host's, by the kernel's own account."""
        return sum(os.stat(p).st_blocks * 512 for p in self.memory_fds().values())

    def balloon(self, target_bytes, timeout=120.0):
        self.qmp.execute("balloon", value=target_bytes)
        wait_for(lambda: abs(self.qmp.execute("query-balloon")["actual"] - target_bytes) < 4 << 20,
                 "the balloon", timeout, self.child, step=0.2)

    def stop(self):
        """Ends the VM at once."""
        try:
            self.qmp.execute("quit")
        except (OSError, Failure):
            pass
        return self.child.stop()


def best_accelerator(scope, timeout=15.0):
    """"kvm" where it really runs a 64-bit Linux, else "tcg", and why."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "no access to /dev/kvm"
    # /dev/kvm alone proves nothing: some hosts' KVM cannot run a 64-bit guest.
    try:
        probe = Guest(scope, name="kvm-probe", ram=Ram("256M"), cpus=1, accel="kvm")
    except Failure as e:
        return "tcg", str(e)
    try:
        probe.wait_ready(timeout)
        return "kvm", "/dev/kvm"
    except (Failure, OSError):
        return "tcg", "/dev/kvm is there but does not boot a 64-bit guest"
    finally:
        probe.child.stop(wait=2.0)
