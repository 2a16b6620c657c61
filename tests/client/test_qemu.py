#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""test_qemu.py: libebb-attach.so in an unmodified QEMU, against a fake daemon.

Firmware only, no operating system: what is tried is how the library gets at QEMU's RAM. EBB_QEMU
names another qemu-system-x86_64, EBB_QEMU_ARGS what it takes in front (-L of an unpacked package).
"""
import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fake_daemon import PAGE, FakeDaemon  # noqa: E402

LIBRARY = os.path.join(os.environ["EBB_BUILD"], "libebb-attach.so")
QEMU = os.environ.get("EBB_QEMU", "qemu-system-x86_64")
QEMU_ARGS = shlex.split(os.environ.get("EBB_QEMU_ARGS", ""))
MB = 1 << 20
RAM = 128 * MB
MEMFD = ["-object", f"memory-backend-memfd,id=ram,size={RAM},share=on"]
SANDBOX = ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]


class Qemu:
    def __init__(self, folder, args, ram=MEMFD, machine="pc,memory-backend=ram", accel="tcg",
                 mem="128M", qmp="qmp.sock", **env):
        qmp = os.path.join(folder, qmp)
        self.p = subprocess.Popen(
            [QEMU, *QEMU_ARGS, "-machine", machine, "-accel", accel, "-m", mem, "-nodefaults",
             "-display", "none", "-qmp", f"unix:{qmp},server=on,wait=off", *ram, *args],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **env})
        self.sock = socket.socket(socket.AF_UNIX)
        for _ in range(1500):
            try:
                self.sock.connect(qmp)
                break
            except OSError:
                if self.p.poll() is not None:
                    raise AssertionError("QEMU ended: " + self.p.stderr.read())
                time.sleep(0.02)
        self.sock.settimeout(60)
        self.file = self.sock.makefile("rw")
        try:
            self.file.readline()
            self("qmp_capabilities")
        except (OSError, ValueError) as e:
            raise AssertionError("QEMU ended: " + self.end()) from e

    def __call__(self, command, **args):
        answer = self.ask(command, **args)
        if "error" in answer:
            raise AssertionError(f"{command}: {answer['error']}")
        return answer["return"]

    def ask(self, command, **args):
        self.file.write(json.dumps({"execute": command, "arguments": args}) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "event" not in answer:
                return answer

    def byte(self, guest_addr):
        """As the guest's memory reads to QEMU itself."""
        text = self("human-monitor-command", **{"command-line": f"xp /1xb {guest_addr}"})
        return int(text.split(":")[1], 16)

    def end(self):
        self.p.kill()
        err = self.p.communicate()[1]
        self.file.close()
        self.sock.close()
        return err


class QemuTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="ebb-qemu-")
        self.path = os.path.join(self.dir.name, "attach.sock")
        self.daemon = FakeDaemon(self.path).start()
        self.qemus, self.others = [], []

    def tearDown(self):
        for q in self.qemus:
            q.end()
        for p in self.others:
            p.kill()
            p.wait()
        self.daemon.stop()
        self.dir.cleanup()

    @contextlib.contextmanager
    def afresh(self):
        """One of several runs within a test."""
        try:
            yield
        finally:
            self.tearDown()
            self.setUp()

    def run_qemu(self, *args, **kw):
        q = Qemu(self.dir.name, list(args), **kw)
        self.qemus.append(q)
        return q

    def plugin(self, *args, **kw):
        return self.run_qemu("-plugin", f"{LIBRARY},socket={self.path},name=guest1", *args, **kw)

    def preload(self, *args, **kw):
        return self.run_qemu(*args, LD_PRELOAD=LIBRARY, EBB_SOCKET=self.path, EBB_NAME="guest1",
                             **kw)

    def check(self, q, size=RAM):
        """Attached, and what is evicted is there when it is read."""
        vm = self.daemon.wait_attached()
        self.assertEqual(vm.name, "guest1")
        self.assertEqual([r.size for r in vm.regions.values()], [size])
        r = next(iter(vm.regions.values()))
        at = 64 * MB + 3 * r.page
        os.pwrite(r.fd, b"\x5a", at) if r.page == PAGE else None
        if r.page == PAGE:
            vm.evict(r.id, at)
            self.assertEqual(q.byte(at), 0x5a)
            self.assertNotIn(at, r.stored)
        return vm, r

    # ---- ways in ----

    def test_01_plugin_tcg(self):
        self.check(self.plugin())

    def test_02_plugin_kvm(self):
        if not os.path.exists("/dev/kvm"):
            self.skipTest("no /dev/kvm; a host with KVM runs it")
        self.check(self.plugin(accel="kvm"))

    def test_03_preload_tcg(self):
        self.check(self.preload())

    def test_04_preload_kvm(self):
        if not os.path.exists("/dev/kvm"):
            self.skipTest("no /dev/kvm; a host with KVM runs it")
        self.check(self.preload(accel="kvm"))

    def test_05_both(self):
        self.check(self.run_qemu("-plugin", f"{LIBRARY},socket={self.path},name=guest1",
                                 LD_PRELOAD=LIBRARY, EBB_SOCKET=self.path, EBB_NAME="guest1"))
        time.sleep(0.5)
        self.assertEqual(len(self.daemon.messages("attach")), 1)

    def test_06_sandbox(self):
        for way in (self.plugin, self.preload):
            with self.subTest(way=way.__name__), self.afresh():
                q = way(*SANDBOX)
                vm, r = self.check(q)
                answer = vm.request("zap", {"ranges": [[r.addr, RAM]]})
                self.assertEqual(answer["return"], {})
                self.assertEqual(q("query-status")["status"], "running")

    def test_07_privileges_go_after_attaching(self):
        # QEMU drops them before the helper attaches; the device comes from the daemon then.
        os.chmod(self.dir.name, 0o755)
        option = ["-run-with", "user=nobody"] if qemu_version() >= 10 else ["-runas", "nobody"]
        for way in (self.plugin, self.preload):
            with self.subTest(way=way.__name__), self.afresh():
                os.chmod(self.dir.name, 0o755)
                q = way(*option)
                vm, r = self.check(q)
                with open(f"/proc/{q.p.pid}/status") as f:
                    uid = next(x for x in f if x.startswith("Uid:")).split()[1]
                self.assertNotEqual(uid, "0")
                answer = vm.request("zap", {"ranges": [[r.addr, RAM]]})
                self.assertEqual(answer["return"], {})

    def test_08_plugin_refuses_unknown_options(self):
        with self.assertRaisesRegex(AssertionError, "unknown option"):
            self.run_qemu("-plugin", f"{LIBRARY},sock={self.path}")

    def test_09_plugin_require(self):
        self.daemon.stop()
        with self.assertRaisesRegex(AssertionError, "EBB_REQUIRE"):
            self.run_qemu("-plugin", f"{LIBRARY},socket={self.path}", EBB_REQUIRE="1")

    # ---- kinds of RAM ----

    def test_10_file_on_tmpfs_aligned(self):
        for way in (self.plugin, self.preload):
            with self.subTest(way=way.__name__), self.afresh():
                with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="ebb-qemu-") as f:
                    vm, r = self.check(way(ram=[
                        "-object", f"memory-backend-file,id=ram,size={RAM},mem-path={f.name},"
                        "align=2M,share=on"]))
                    self.assertEqual(r.addr % (2 * MB), 0)

    def test_11_hugetlb(self):
        add_huge_pages(64)
        try:
            if free_huge_pages() < 64:
                self.skipTest("no 64 huge pages to be had; a machine with free memory runs it")
            self.plugin(ram=["-object", f"memory-backend-memfd,id=ram,size={RAM},share=on,"
                             "hugetlb=on,hugetlbsize=2M"])
            vm = self.daemon.wait_attached()
            self.assertEqual([r.page for r in vm.regions.values()], [2 * MB])
        finally:
            self.qemus.pop().end()
            add_huge_pages(-64)

    def test_12_several_blocks(self):
        ram = []
        for node in (0, 1):
            ram += ["-object", f"memory-backend-memfd,id=ram{node},size={RAM},share=on",
                    "-numa", f"node,memdev=ram{node}"]
        for way in (self.plugin, self.preload):
            with self.subTest(way=way.__name__), self.afresh():
                way(ram=ram, machine="pc", mem="256M")
                args = self.daemon.wait("attach")[1]
                self.assertEqual([r["size"] for r in args["regions"]], [RAM, RAM])
                self.assertEqual({r["memfd"] for r in args["regions"]}, {1, 2})
                self.assertEqual(len({r["id"] for r in args["regions"]}), 2)

    def test_13_private_ram_is_left_alone(self):
        q = self.plugin(ram=[], machine="pc")
        time.sleep(0.7)
        self.assertFalse(self.daemon.log)
        self.assertEqual(q("query-status")["status"], "running")

    def test_14_preallocated_before_attaching(self):
        self.preload(ram=["-object",
                          f"memory-backend-memfd,id=ram,size={RAM},share=on,prealloc=on"])
        vm = self.daemon.wait_attached()
        r = next(iter(vm.regions.values()))
        self.assertGreaterEqual(os.fstat(r.fd).st_blocks * 512, RAM)
        self.assertLess(self.daemon.faults, 100)

    # ---- changes ----

    def test_20_hot_plug_and_unplug(self):
        for way in (self.plugin, self.preload):
            with self.subTest(way=way.__name__), self.afresh():
                q = way(mem="size=128M,slots=2,maxmem=1G")
                vm = self.daemon.wait_attached()
                q("object-add", **{"qom-type": "memory-backend-memfd", "id": "more",
                                   "size": RAM, "share": True})
                q("device_add", driver="pc-dimm", memdev="more", id="dimm1")
                added = self.daemon.wait("region-add")[1]
                self.assertEqual(added["size"], RAM)
                q("object-add", **{"qom-type": "memory-backend-memfd", "id": "other",
                                   "size": RAM, "share": True})
                other = self.daemon.wait("region-add", 2)[1]
                os.pwrite(vm.regions[other["id"]].fd, b"\x01", 0)
                vm.evict(other["id"], 0)
                q("object-del", id="other")
                removed = self.daemon.wait("region-remove")[1]
                self.assertEqual(removed, {"id": other["id"], "discard": True})

    def test_21_postcopy_gets_its_userfaultfd(self):
        for way in (self.plugin, self.preload):
            with self.subTest(way=way.__name__), self.afresh():
                self.postcopy(way)

    def postcopy(self, way):
        uri = "unix:" + os.path.join(self.dir.name, "migration")
        target = way("-incoming", uri)
        vm = self.daemon.wait_attached()
        source = self.run_qemu(qmp="source.sock", ram=[
            "-object", f"memory-backend-file,id=ram,size={RAM},share=on,"
            f"mem-path={self.dir.name}/source.ram"])
        with open(f"{self.dir.name}/source.ram", "r+b") as f:
            f.seek(64 * MB)
            f.write(os.urandom(16 * MB))
        for q in (target, source):
            q("migrate-set-capabilities",
              capabilities=[{"capability": "postcopy-ram", "state": True}])
        source("migrate-set-parameters", **{"max-bandwidth": 4 * MB})
        source("migrate", uri=uri)
        source("migrate-start-postcopy")
        # QEMU registers only after the daemon has let go, or it would have been told EBUSY.
        self.daemon.wait("region-remove")
        source("migrate-set-parameters", **{"max-postcopy-bandwidth": 0})
        self.wait_migration(target)
        self.wait_migration(source)
        with open(f"{self.dir.name}/source.ram", "rb") as f:
            f.seek(64 * MB)
            want = f.read(16 * MB)
        self.daemon.wait("region-add")
        r = next(iter(vm.regions.values()))
        self.assertEqual(os.pread(r.fd, 16 * MB, 64 * MB), want)

    def wait_migration(self, q):
        for _ in range(1000):
            info = q("query-migrate")
            if info.get("status") in ("completed", "failed"):
                self.assertEqual(info["status"], "completed", info)
                return
            time.sleep(0.05)
        self.fail("the migration did not end")

    def test_22_vhost_user_back_end(self):
        if not shutil.which("qemu-storage-daemon"):
            self.skipTest("no qemu-storage-daemon; apt has it in qemu-system-common")
        disk, sock = (os.path.join(self.dir.name, n) for n in ("disk", "vhost.sock"))
        with open(disk, "wb") as f:
            f.truncate(4 * MB)
            f.seek(510)
            f.write(b"\x55\xaa")  # so that the firmware reads it
        self.others.append(subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=disk,filename={disk}",
             "--export", f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,"
             f"addr.path={sock},writable=on"],
            env={**os.environ, "LD_PRELOAD": LIBRARY, "EBB_SOCKET": self.path,
                 "EBB_NAME": "guest1", "EBB_SECONDARY": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for _ in range(500):
            if os.path.exists(sock):
                break
            time.sleep(0.02)
        self.plugin("-chardev", f"socket,id=c,path={sock}",
                    "-device", "vhost-user-blk-pci,chardev=c,bootindex=0", "-S")
        vm = self.daemon.wait_attached()
        r = next(iter(vm.regions.values()))
        os.pwrite(r.fd, b"\x66", 64 * MB)
        vm.evict(r.id, 64 * MB)
        self.qemus[0]("cont")
        # The firmware starts the device; QEMU sends the descriptor of its RAM.
        self.assertEqual(self.daemon.wait("share")[1], {"id": r.id, "pid": self.others[0].pid})
        name, args, second = self.daemon.wait("attach", 2)
        self.assertIs(args["secondary"], True)
        self.assertEqual(os.pread(r.fd, 1, 64 * MB), b"\x66")
        ids = {os.fstat(x.fd).st_ino for x in second.regions.values()}
        self.assertEqual(ids, {os.fstat(r.fd).st_ino})


def qemu_version():
    text = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    return int(text.split("version ")[1].split(".")[0])


def add_huge_pages(n):
    """By difference: others may be changing the pool as well."""
    with open("/proc/sys/vm/nr_hugepages", "r+") as f:
        had = int(f.read())
        f.seek(0)
        f.write(str(had + n))


def free_huge_pages():
    with open("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") as f:
        return int(f.read())


if __name__ == "__main__":
    if os.geteuid() or not os.path.exists("/dev/userfaultfd") or not shutil.which(QEMU):
        print("SKIP: needs root, /dev/userfaultfd and QEMU; scripts/check runs it in the lab VM")
        sys.exit(77)
    unittest.main()
