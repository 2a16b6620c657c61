#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""test_daemon.py: libebb-attach.so and the real ebbd: content survives whatever the VMM does."""
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import test_preload  # noqa: E402
import test_qemu  # noqa: E402

BUILD = os.environ["EBB_BUILD"]
PAGE, MB = 4096, 1 << 20
SIZE = 64 * MB


class DaemonTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="ebb-client-")
        os.chmod(self.dir.name, 0o755)
        self.path = os.path.join(self.dir.name, "attach.sock")
        self.control = os.path.join(self.dir.name, "control.sock")
        config = os.path.join(self.dir.name, "ebbd.conf")
        with open(config, "w"):
            pass
        self.log = open(os.path.join(self.dir.name, "log"), "w+")
        self.command = [os.path.join(BUILD, "ebbd"), "--runtime-dir", self.dir.name, "--config",
                        config]
        self.ebbd = subprocess.Popen(self.command, stderr=self.log)
        self.guests, self.qemus = [], []
        for _ in range(1500):
            if os.path.exists(self.control):
                return
            time.sleep(0.02)
        self.fail("the daemon did not start")

    def tearDown(self):
        for g in self.guests:
            g.p.kill()
            g.p.communicate()
        for q in self.qemus:
            q.end()
        self.ebbd.kill()
        self.ebbd.wait()
        self.log.close()
        self.dir.cleanup()

    @contextlib.contextmanager
    def afresh(self):
        try:
            yield
        finally:
            self.tearDown()
            self.setUp()

    def ctl(self, *args):
        p = subprocess.run([os.path.join(BUILD, "ebbctl"), "--socket", self.control, "--json",
                            *args], capture_output=True, text=True, timeout=60)
        if p.returncode:
            raise AssertionError(f"ebbctl {args}: {p.stdout}{p.stderr}")
        return json.loads(p.stdout)["return"]

    def wait_vm(self, name, **members):
        for _ in range(1500):
            vms = {v["name"]: v for v in self.ctl("query-vms")}
            if name in vms and all(vms[name][k] == v for k, v in members.items()):
                return vms[name]
            time.sleep(0.02)
        self.log.seek(0)
        self.fail(f"no {name} {members}; {vms}; {self.log.read()}")

    def guest(self, **kw):
        g = test_preload.Guest(self.path, EBB_NAME="guest1", **kw)
        self.guests.append(g)
        return g

    def evicted(self, at_least=SIZE // 2):
        """A guest of 64 MiB, written and then evicted."""
        g = self.guest()
        g("map", "memfd", SIZE)
        self.wait_vm("guest1")
        g("fill", 0, 7)
        self.evict(at_least)
        return g

    def reclaim(self, size):
        """Eviction waits for the first look at who else maps the RAM."""
        for _ in range(200):
            try:
                return self.ctl("vm-reclaim", "guest1", f"bytes={size}")
            except AssertionError as e:
                if "suspended" not in str(e):
                    raise
                why = str(e)
            time.sleep(0.1)
        if "guard" in why or "probe" in why:
            self.skipTest(why + "; a host with BPF runs it")
        self.fail(why)

    def evict(self, at_least):
        for _ in range(50):
            self.reclaim(SIZE)
            if self.ctl("query-vm", "guest1")["evicted-bytes"] >= at_least:
                return
        self.fail(f"evicted too little: {self.ctl('query-vm', 'guest1')}")

    def test_01_content_survives_eviction(self):
        g = self.evicted()
        self.assertEqual(g("check", 0, 7), "ok")

    def test_02_discarded_reads_as_zero(self):
        for how in ("punch", "remove"):
            with self.subTest(how=how), self.afresh():
                g = self.evicted()
                self.assertEqual(g(how, 0, 0, SIZE // 2), "ok")
                for at in range(0, SIZE // 2, 1 * MB):
                    self.assertEqual(g("read", 0, at), "0")
                self.assertEqual(g("read", 0, SIZE // 2), "7")

    def test_03_descriptor_leaves_with_its_content(self):
        g = self.evicted()
        for at in (0, SIZE // 2, SIZE - PAGE):
            self.assertEqual(g("send", 0, at), "7")

    def test_04_child_reads_content(self):
        g = self.evicted()
        self.assertEqual(g("fork-read", 0, SIZE // 2), "7")
        self.assertEqual(g("check", 0, 7), "ok")

    def test_05_own_userfaultfd_then_back(self):
        g = self.evicted()
        g.p.stdin.write("uffd 0\n")
        g.p.stdin.flush()
        self.assertEqual(g.p.stdout.readline(), "registered\n")
        self.assertEqual(g("go"), "ok")
        self.assertEqual(g("check", 0, 7), "ok")

    def test_06_unmapped_and_mapped_again(self):
        g = self.evicted()
        self.assertEqual(g("unmap", 0), "ok")
        g("again", 0, 0, SIZE)
        self.assertEqual(g("check", 1, 7), "ok")

    def test_07_hot_plug(self):
        g = self.evicted()
        g("map", "memfd", SIZE)
        self.wait_vm("guest1", **{"ram-bytes": 2 * SIZE})
        g("fill", 1, 9)
        self.assertEqual(g("unmap", 1), "ok")
        self.wait_vm("guest1", **{"ram-bytes": SIZE})
        self.assertEqual(g("check", 0, 7), "ok")

    def test_08_operator_detaches(self):
        g = self.evicted()
        self.ctl("vm-detach", "guest1")
        self.assertEqual(g("check", 0, 7), "ok")
        self.assertEqual(g("punch", 0, 0, PAGE), "ok")
        time.sleep(0.7)
        self.assertEqual(self.ctl("query-vms"), [])

    def test_09_unprivileged(self):
        g = self.guest(uid=65534) if self.open_socket() else None
        g("map", "memfd", SIZE)
        self.wait_vm("guest1")
        g("fill", 0, 7)
        self.evict(SIZE // 2)
        self.assertEqual(g("check", 0, 7), "ok")

    def test_10_killed_daemon(self):
        """What a daemon had evicted when it was killed comes back from the next one."""
        g = self.evicted()
        for seed in (7, 8):
            self.wait_kept(g)
            self.ebbd.kill()
            self.ebbd.wait()
            g.p.stdin.write(f"check 0 {seed}\n")  # waits for the next daemon
            g.p.stdin.flush()
            self.ebbd = subprocess.Popen(self.command, stderr=self.log)
            self.assertEqual(g.p.stdout.readline(), "ok\n")
            self.wait_vm("guest1", **{"lost-bytes": 0})
            g("fill", 0, seed + 1)
            self.evict(SIZE // 2)
        self.assertEqual(g("check", 0, 9), "ok")

    def wait_kept(self, g):
        """Until the process holds a page table and a store."""
        folder, links = f"/proc/{g.p.pid}/fd", []
        for _ in range(500):
            with contextlib.suppress(OSError):
                links = [os.readlink(os.path.join(folder, fd)) for fd in os.listdir(folder)]
                if any("table" in s for s in links) and any("store" in s for s in links):
                    return
            time.sleep(0.02)
        self.fail(f"nothing is kept: {links}")

    def open_socket(self):
        os.chmod(self.path, 0o666)
        return True

    def test_11_back_end_maps_again(self):
        """A mapping that an attached back end makes is registered before it can be read."""
        path = os.path.join("/dev/shm", os.path.basename(self.dir.name))
        try:
            g = self.guest()
            g("map", path, SIZE)
            self.wait_vm("guest1")
            g("fill", 0, 7)
            back_end = self.guest(EBB_SECONDARY="1")
            back_end("map", path, SIZE)
            self.wait_vm("guest1", attachments=2)
            for again in range(1, 4):
                self.evict(SIZE // 2)
                back_end("map", path, SIZE)
                self.assertEqual(back_end("check", again, 7), g("check", 0, 7))
        finally:
            os.unlink(path)

    def test_20_qemu(self):
        if not shutil.which(test_qemu.QEMU):
            self.skipTest("no QEMU; scripts/check runs it in the lab VM")
        accels = ["tcg"] + (["kvm"] if os.path.exists("/dev/kvm") else [])
        for accel in accels:
            for way in ("plugin", "preload"):
                with self.subTest(accel=accel, way=way), self.afresh():
                    self.qemu(accel, way)

    def qemu(self, accel, way):
        if way == "plugin":
            lib = test_qemu.LIBRARY
            args, env = ["-plugin", f"{lib},socket={self.path},name=guest1"], {}
        else:
            args, env = [], {"LD_PRELOAD": test_qemu.LIBRARY, "EBB_SOCKET": self.path,
                             "EBB_NAME": "guest1"}
        content = os.urandom(4 * MB)
        with open(os.path.join(self.dir.name, "content"), "wb") as f:
            f.write(content)
        args += ["-device", f"loader,file={f.name},addr={64 * MB:#x},force-raw=on"]
        q = test_qemu.Qemu(self.dir.name, args, accel=accel, **env)
        self.qemus.append(q)
        self.wait_vm("guest1", **{"pid": q.p.pid, "ram-bytes": test_qemu.RAM})
        self.reclaim(test_qemu.RAM)
        self.assertGreater(self.ctl("query-vm", "guest1")["evictions"], 0)
        for at in range(0, len(content), 256 * 1024):
            self.assertEqual(q.byte(64 * MB + at), content[at])
        self.assertEqual(q("query-status")["status"], "running")


if __name__ == "__main__":
    if not test_preload.can_use_uffd():
        print("SKIP: needs root and /dev/userfaultfd; scripts/check runs it in the lab VM")
        sys.exit(77)
    unittest.main()
