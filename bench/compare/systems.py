# SPDX-License-Identifier: BSD-3-Clause
"""The ways to run a program with less memory than it wants: the sides that bench/compare compares.

A Cell is one side set up for one program or several: a memory cgroup that holds the program and, on
Ebb's side, the daemon, so that everything that either takes is counted alike. On the kernel's side
the cgroup has the limit; on Ebb's it has none, and the VM has.
"""
import contextlib
import ctypes
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from machine import Refused, read, thread_cpu_ns, vmstat, write, zram_pool

KERNEL = {
    "none": "no limit",
    "shared": "no limit, memory shared as on Ebb's side but not attached",
    "zram-lz4": "cgroup limit, swap to zram (lz4)",
    "zram-zstd": "cgroup limit, swap to zram (zstd)",
    "zswap": "cgroup limit, zswap (lz4, else the kernel's default; zsmalloc) before a swap file",
    "swap": "cgroup limit, swap file",
}
UNLIMITED = ("none", "shared")
EBB = {
    "ebb": "Ebb, compressed tier (lz4)",
    "ebb-ssd": "Ebb, ssd tier",
    "ebb-tiers": "Ebb, compressed tier (lz4) up to a mark, ssd tier below",
}
SYSTEMS = {**KERNEL, **EBB}
ZSWAP = "/sys/module/zswap/parameters/"
SHMEM_THP = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
DAEMON_WAIT = 60
PR_SET_THP_DISABLE = 41
libc = ctypes.CDLL(None)
TIERS_RESIDENT = 0.3  # of what ebb-tiers may take of RAM; the rest is for compressed content
NUMBERS = itertools.count()


class Control:
    """The daemon's control socket."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DAEMON_WAIT)
        self.sock.connect(path)
        self.file = self.sock.makefile("r")
        self.file.readline()
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        self.sock.sendall((json.dumps({"execute": command, "arguments": arguments})
                           + "\n").encode())
        while True:
            line = self.file.readline()
            if not line:
                raise Refused("the daemon ended")
            answer = json.loads(line)
            if "error" in answer:
                raise Refused("%s: %s" % (command, answer["error"]["desc"]))
            if "return" in answer:
                return answer["return"]


class Cell:
    """What all sides have in common."""

    def __init__(self, machine, build, system, kind, most_bytes, folder):
        self.machine, self.build, self.system, self.kind = machine, build, system, kind
        self.most_bytes, self.folder = most_bytes, folder
        self.processes = []
        self.path, self.version = machine.ask("cgroup", "%d.%d" % (os.getpid(), next(NUMBERS)))

    def enter(self):
        """In the child, before exec."""
        write(self.path + "/cgroup.procs", 0)
        if self.kind == "small":
            # Whatever a program advises: QEMU asks for huge pages.
            libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)

    @property
    def shares(self):
        """Programs have shared memory."""
        return self.system in EBB or self.system == "shared"

    def spawn(self, argv, env=None, **options):
        # In a group of its own: a Ctrl-C is for us, who end it in order.
        p = subprocess.Popen(argv, env=dict(os.environ, **(env or {})), preexec_fn=self.enter,
                             start_new_session=True, **options)
        self.processes.append(p)
        return p

    def prepare_shared(self):
        """For a program with the benchmark's heap library."""
        # Where shared memory may be huge, Ebb has pages that its tracker unmapped pass through it
        # when they are touched again, also small ones.
        if self.kind != "hugetlb":
            self.machine.ask("write", SHMEM_THP, "advise" if self.kind == "thp" else "never")
        if self.kind == "hugetlb":
            self.machine.ask("huge_pages", self.most_bytes // (2 << 20) + 24)

    def preload(self, libraries, env, heap):
        """The environment with these libraries, after what is preloaded already; before them the
        heap library, unless the program shares its memory by itself."""
        env = env or {}
        if heap:
            libraries = [self.build + "/bench/compare/libcompare_heap.so"] + libraries
        if "LD_PRELOAD" in env:
            libraries = [env["LD_PRELOAD"]] + libraries
        return dict(env, LD_PRELOAD=" ".join(libraries), EBB_HEAP_KIND=self.kind,
                    EBB_HEAP_BYTES=str(self.most_bytes))

    def usage(self):
        """All memory of the cell, that of its pool too."""
        name = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        return int(read(self.path + "/" + name)) + self.huge_bytes() + self.pool()

    def huge_bytes(self):
        """Pages of hugetlbfs, which are charged to no memory cgroup."""
        total = 0
        for p in self.processes if self.kind == "hugetlb" else []:
            with contextlib.suppress(OSError):
                found = re.search(r"HugetlbPages:\s+(\d+) kB", read("/proc/%d/status" % p.pid))
                total += int(found.group(1)) << 10 if found else 0
        return total

    def pool(self):
        return 0

    def held(self):
        """What the limit is a limit of."""
        return self.resident()

    def cost(self, gone):
        """Memory that a byte takes that is not held; gone: how many there are."""
        return self.pool() / gone if gone > 0 else 0

    def counters(self):
        return {"swapped_in": vmstat("pswpin"), "swapped_out": vmstat("pswpout")}

    def close(self):
        for p in reversed(self.processes):
            if p.poll() is None:
                p.kill()
            p.wait()
            for f in (p.stdin, p.stdout):
                if f:
                    f.close()


class KernelCell(Cell):
    def __init__(self, *args):
        super().__init__(*args)
        self.device = None
        size = self.most_bytes + (64 << 20)
        if self.kind == "hugetlb" and self.system not in UNLIMITED:
            raise Refused("the kernel does not swap huge pages of hugetlbfs")
        if self.system == "shared":
            self.prepare_shared()
        elif self.kind == "hugetlb":
            self.machine.ask("huge_pages", self.most_bytes // (2 << 20) + 24)
        swapfile = os.path.join(self.folder, "swap")
        if self.system.startswith("zram"):
            self.device = self.machine.ask("zram", self.system.split("-")[1], size)
        elif self.system == "zswap":
            # A kernel may have none but lzo; it refuses those that it does not have.
            with contextlib.suppress(Refused):
                self.machine.ask("write", ZSWAP + "compressor", "lz4")
            if os.path.exists(ZSWAP + "zpool"):
                self.machine.ask("write", ZSWAP + "zpool", "zsmalloc")
            self.machine.ask("swap_file", swapfile, size)
            self.machine.ask("write", ZSWAP + "enabled", "Y")
        elif self.system == "swap":
            self.machine.ask("write", ZSWAP + "enabled", "N")
            self.machine.ask("swap_file", swapfile, size)

    def start(self, argv, env=None, heap=True, **options):
        if self.system == "shared":
            env = self.preload([], env, heap)
        return self.spawn(argv, env=env, **options)

    def attached(self, n):
        pass

    def limit(self, nbytes):
        """For everything in the cgroup together."""
        if self.system in UNLIMITED:
            return
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        for _ in range(100):
            try:
                write(self.path + "/" + name, int(nbytes))
                return
            except OSError:  # busy: it could not be reclaimed so fast
                time.sleep(0.1)
        raise Refused("the cgroup does not come down to its limit")

    def share(self):
        """Ours of what is in swap: others on the machine may be swapped out too."""
        if self.version == 1:
            ours = int(read(self.path + "/memory.memsw.usage_in_bytes")) - int(
                read(self.path + "/memory.usage_in_bytes"))
        else:
            ours = int(read(self.path + "/memory.swap.current"))
        used = sum(int(line.split()[3]) << 10
                   for line in read("/proc/swaps").splitlines()[1:])
        return min(1, ours / used) if used else 1

    def pool(self):
        if self.system.startswith("zram"):
            return int(zram_pool(self.device) * self.share())
        # On version 2 it is charged to the cgroup.
        if self.system == "zswap" and self.version == 1:
            found = re.search(r"^Zswap:\s+(\d+) kB", read("/proc/meminfo"), re.M)
            return int((int(found.group(1)) << 10) * self.share()) if found else 0
        return 0

    def resident(self):
        return self.usage() - self.pool()

    def helper_cpu(self):
        return {}


class EbbCell(Cell):
    def __init__(self, *args):
        super().__init__(*args)
        self.names, self.vms = [], 0
        self.prepare_shared()
        self.dir = tempfile.mkdtemp(prefix="ebb-compare-")
        self.daemon = self.spawn([self.build + "/ebbd", "--runtime-dir", self.dir, "--log-level",
                                  "warning"])
        end = time.monotonic() + DAEMON_WAIT
        while not os.path.exists(self.dir + "/control.sock"):
            if time.monotonic() > end or self.daemon.poll() is not None:
                raise Refused("the daemon does not start")
            time.sleep(0.05)
        self.control = Control(self.dir + "/control.sock")
        if self.system != "ebb":
            if not os.path.exists(self.build + "/backends/ssd.so"):
                raise Refused("there is no ssd backend in this build")
            self.control.call("backend-add", name="ssd", driver="ssd", options={
                "path": os.path.join(self.folder, "ebb-ssd"),
                "size": str(self.most_bytes + (64 << 20))})

    def start(self, argv, env=None, heap=True, **options):
        name = "program%d" % self.vms
        self.vms += 1
        self.names.append(name)
        env = dict(self.preload([self.build + "/libebb-attach.so"], env, heap), EBB_NAME=name,
                   EBB_SOCKET=self.dir + "/attach.sock", EBB_MIN_SIZE="1M")
        return self.spawn(argv, env=env, **options)

    def attached(self, n):
        end = time.monotonic() + DAEMON_WAIT
        while True:
            have = {vm["name"] for vm in self.control.call("query-vms")}
            if have >= set(self.names[:n]):
                break
            if time.monotonic() > end:
                raise Refused("the program does not attach")
            time.sleep(0.05)
        tiers = {"ebb-ssd": ["ssd"], "ebb-tiers": ["compressed", "ssd"]}.get(self.system)
        for name in self.names if tiers else []:
            self.control.call("vm-set", vm=name, tiers=tiers)

    def policy(self, role, name):
        """For all that have attached."""
        for vm in self.names:
            self.control.call("policy-set", vm=vm, role=role, policy=name)

    def query(self):
        return [self.control.call("query-vm", vm=name) for name in self.names]

    def limit(self, nbytes):
        """For the memory of all VMs together; ebb-tiers: and what is compressed of it."""
        each = max(int(nbytes / len(self.names)), 4 << 20)
        more = {}
        if self.system == "ebb-tiers":
            mark = int(each * (1 - TIERS_RESIDENT))
            more = {"tier-high": [mark, 0], "tier-low": [mark * 31 // 32, 0]}
            each = int(each * TIERS_RESIDENT)
        for name in self.names:
            self.control.call("vm-set", vm=name, limit=each, **more)
        end = time.monotonic() + DAEMON_WAIT
        while any(vm["resident-bytes"] > each for vm in self.query()) or (
                more and self.compressed("content-bytes") > mark * len(self.names)):
            if time.monotonic() > end:
                raise Refused("the daemon does not come down to the limit")
            time.sleep(0.05)

    def resident(self):
        return sum(vm["resident-bytes"] for vm in self.query())

    def compressed(self, what="stored-bytes"):
        return sum(tier[what] for vm in self.query() for tier in vm["tiers"]
                   if tier["backend"] == "compressed")

    def held(self):
        return self.resident() + (self.compressed() if self.system == "ebb-tiers" else 0)

    def cost(self, gone):
        if self.system == "ebb-tiers":
            return 0
        gone = sum(vm["evicted-bytes"] for vm in self.query())
        return self.compressed() / gone if gone else 0

    def counters(self):
        keys = ("faults", "zero-faults", "minor-faults", "evictions", "evictions-stored",
                "evictions-cancelled", "faults-parked", "run-waits", "prefetched", "prefetch-hits",
                "prefetch-wasted", "prefetch-trusted", "refaults", "evict-cpu-ns",
                "scan-cpu-ns", "units-cleared")
        vms = self.query()
        return {key: sum(vm.get(key, 0) for vm in vms) for key in keys}

    def helper_cpu(self):
        return thread_cpu_ns(self.daemon.pid)

    def close(self):
        # The program first: its memory needs nobody then.
        for p in self.processes[1:]:
            if p.poll() is None:
                p.kill()
            p.wait()
        if self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemon.wait(10)
        super().close()
        shutil.rmtree(self.dir, ignore_errors=True)


@contextlib.contextmanager
def cell(machine, builds, system, kind, most_bytes, folder):
    """A side, set up; at the end everything of it is gone. system: NAME, or NAME@BUILD."""
    name, _, build = system.partition("@")
    kind_of = EbbCell if name in EBB else KernelCell
    with machine.changes():
        made = kind_of.__new__(kind_of)
        made.processes = []
        try:
            made.__init__(machine, builds[build], name, kind, most_bytes, folder)
            yield made
        finally:
            if hasattr(made, "path") and (kind_of is KernelCell or hasattr(made, "daemon")):
                made.close()
