#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""test_native.py: real memory through the native dialect: ebbd, ebbctl and a client in C."""
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import harness

BUILD = os.environ.get("EBB_BUILD", "build")
MIB = 1 << 20
RAM = 8 * MIB if os.environ.get("EBB_LAB_GUEST") else 64 * MIB  # the lab is slow
HUGE_POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
WAIT = 60  # seconds until a test gives up; nothing is decided by it otherwise


def why_not():
    if os.geteuid() != 0:
        return "needs root (for userfaultfd and the folio probe)"
    if not os.path.exists("/dev/userfaultfd"):
        return "this kernel has no /dev/userfaultfd"
    return None


def until(what, describe="nothing"):
    """Waits until what() is true."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        value = what()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {describe}")


class Client:
    """native_client, a process with RAM of its own."""

    def __init__(self, daemon=None):
        self.p = subprocess.Popen([os.path.join(BUILD, "tests/attach/native_client")],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.p.pid
        if daemon:
            self("connect", daemon.attach)

    def try_(self, *words):
        self.p.stdin.write(" ".join(map(str, words)) + "\n")
        self.p.stdin.flush()
        return self.p.stdout.readline().strip()

    def __call__(self, *words):
        answer = self.try_(*words)
        if not answer.startswith("OK"):
            raise AssertionError(f"{words}: {answer or 'the client died'}")
        return answer[3:]

    def kill(self):
        self.p.kill()
        self.p.wait()
        self.p.stdin.close()
        self.p.stdout.close()


class Ebb:
    """An instance of ebbd in a folder of its own."""

    def __init__(self):
        self.dir = tempfile.TemporaryDirectory(prefix="ebb-native.")
        self.attach = os.path.join(self.dir.name, "attach.sock")
        self.path = self.attach
        self.control = os.path.join(self.dir.name, "control.sock")
        self.log = open(os.path.join(self.dir.name, "log"), "w+")
        self.p = subprocess.Popen([os.path.join(BUILD, "ebbd"), "--runtime-dir", self.dir.name],
                                  stderr=self.log)
        until(lambda: os.path.exists(self.control) and os.path.exists(self.attach) or
              self.p.poll() is not None, "ebbd")

    def ctl(self, *words):
        r = subprocess.run([os.path.join(BUILD, "ebbctl"), "--socket", self.control, "--json",
                            *map(str, words)], capture_output=True, text=True, timeout=WAIT)
        if r.returncode:
            raise AssertionError(f"ebbctl {words}: {r.stdout}{r.stderr}")
        answer = json.loads(r.stdout.strip().splitlines()[-1])
        return answer.get("return", answer) if isinstance(answer, dict) else answer

    def vm(self, name="vm"):
        return self.ctl("query-vm", name)

    def names(self):
        return [vm["name"] for vm in self.ctl("query-vms")]

    def reclaim(self, name="vm", wanted=RAM):
        """Evicts until so much is evicted; a single call may find pages busy."""
        def enough():
            try:
                self.ctl("vm-reclaim", name, f"bytes={wanted}")
            except AssertionError as e:
                if "Busy" not in str(e) and "suspended" not in str(e):
                    raise
            return self.vm(name)["evicted-bytes"] >= wanted
        until(enough, f"{wanted} bytes evicted of {name}: {self.vm(name)}")

    def fds(self):
        return len(os.listdir(f"/proc/{self.p.pid}/fd"))

    def stop(self):
        self.p.terminate()
        status = self.p.wait(WAIT)
        self.log.seek(0)
        text = self.log.read()
        self.log.close()
        self.dir.cleanup()
        if status:
            raise AssertionError(f"ebbd ended with {status}:\n{text}")


class HugePool:
    """So many more free huge pages; the pool is as before afterwards."""

    def __init__(self, pages):
        self.before = None
        try:
            with open(HUGE_POOL) as f:
                before = f.read()
            with open(HUGE_POOL, "w") as f:
                f.write(str(int(before) + pages))
            self.before = before
            with open(HUGE_POOL) as f:
                self.ok = int(f.read()) >= int(before) + pages
        except OSError:
            self.ok = False

    def restore(self):
        if self.before is not None:
            with open(HUGE_POOL, "w") as f:
                f.write(self.before)


class Base(unittest.TestCase):
    def setUp(self):
        self.ebb = Ebb()
        self.addCleanup(self.ebb.stop)

    def client(self):
        c = Client(self.ebb)
        self.addCleanup(c.kill)
        return c

    def attached(self, kind="shmem", flags="-", name="vm"):
        c = self.client()
        c("ram", "ram", RAM, kind)
        c("fill", "ram", 1)
        c("attach", name, flags, "ram")
        return c


class Native(Base):
    def test_01_reclaim_and_read_back(self):
        c = self.attached()
        self.assertEqual(self.ebb.vm()["ram-bytes"], RAM)
        self.assertEqual(self.ebb.vm()["pid"], c.pid)
        self.ebb.reclaim(wanted=RAM // 2)
        self.assertLessEqual(int(c("resident", "ram")), RAM // 2)
        c("check", "ram", 1)
        vm = self.ebb.vm()
        self.assertEqual(vm["pages-lost"], 0)
        self.assertGreater(vm["faults"], 0)

    def test_02_writes_after_eviction(self):
        c = self.attached()
        self.ebb.reclaim()
        c("fill", "ram", 2, 0, RAM // 2)
        c("check", "ram", 2, 0, RAM // 2)
        c("check", "ram", 1, RAM // 2, RAM // 2)
        self.ebb.reclaim()
        c("check", "ram", 2, 0, RAM // 2)
        c("check", "ram", 1, RAM // 2, RAM // 2)

    def test_03_lent_userfaultfd(self):
        c = self.attached(flags="lent")
        self.ebb.reclaim()
        c("check", "ram", 1)

    def test_04_detach_brings_all_back(self):
        c = self.attached()
        self.ebb.reclaim()
        c("detach")
        self.assertEqual(int(c("resident", "ram")), RAM)
        self.assertEqual(self.ebb.names(), [])
        c("check", "ram", 1)
        c("attach", "again", "-", "ram")
        self.ebb.reclaim("again")
        c("check", "ram", 1)

    def test_05_hot_plug(self):
        c = self.attached()
        c("ram", "dimm0", RAM, "shmem")
        c("fill", "dimm0", 7)
        c("add", "dimm0")
        self.assertEqual(self.ebb.vm()["ram-bytes"], 2 * RAM)
        self.ebb.reclaim(wanted=2 * RAM)
        c("check", "dimm0", 7, 0, RAM // 4)
        c("remove", "dimm0")  # brings the rest back
        self.assertEqual(int(c("resident", "dimm0")), RAM)
        c("check", "dimm0", 7)
        self.assertEqual(self.ebb.vm()["ram-bytes"], RAM)
        c("check", "ram", 1)

    def test_06_unplug_without_its_content(self):
        c = self.attached()
        c("ram", "dimm0", RAM, "shmem")
        c("fill", "dimm0", 7)
        c("add", "dimm0")
        self.ebb.reclaim(wanted=2 * RAM)
        c("remove", "dimm0", "discard")
        c("unmap", "dimm0")
        self.assertEqual(self.ebb.vm()["ram-bytes"], RAM)
        c("ram", "dimm0", RAM, "shmem")
        c("fill", "dimm0", 8)
        c("add", "dimm0")
        self.ebb.reclaim(wanted=2 * RAM)
        c("check", "dimm0", 8)
        c("check", "ram", 1)

    def test_07_discard(self):
        c = self.attached()
        self.ebb.reclaim()
        stored = self.ebb.vm()["evicted-bytes"]
        c("discard", "ram", 0, RAM // 4)  # evicted
        self.assertLessEqual(self.ebb.vm()["evicted-bytes"], stored - RAM // 4)
        c("check", "ram", 1, RAM // 2, RAM // 4)
        c("discard", "ram", RAM // 2, RAM // 4)  # resident
        c("zeroes", "ram", 0, RAM // 4)
        c("zeroes", "ram", RAM // 2, RAM // 4)
        c("check", "ram", 1, RAM // 4, RAM // 4)
        c("check", "ram", 1, 3 * RAM // 4, RAM // 4)
        c("fill", "ram", 3, 0, RAM // 4)
        self.ebb.reclaim(wanted=3 * RAM // 4)
        c("check", "ram", 3, 0, RAM // 4)

    def test_08_pin(self):
        c = self.attached()
        self.ebb.reclaim()
        c("pin", "ram", 0, RAM // 4)  # brings it back
        self.assertEqual(int(c("resident", "ram", 0, RAM // 4)), RAM // 4)
        c("pin", "ram", 0, MIB)  # nests
        c("unpin", "ram", 0, MIB)
        self.ebb.reclaim(wanted=3 * RAM // 4)
        for _ in range(3):
            self.ebb.ctl("vm-reclaim", "vm", f"bytes={RAM}")
        self.assertEqual(int(c("resident", "ram", 0, RAM // 4)), RAM // 4)
        c("unpin", "ram", 0, RAM // 4)
        self.ebb.reclaim()
        c("check", "ram", 1)

    def test_09_secondary(self):
        c = self.attached()
        second = self.client()
        second("map", "ram", RAM, "shmem", c.pid, c("fd", "ram"))
        second("attach", "other", "secondary", "ram")
        self.assertEqual(self.ebb.names(), ["vm"])
        self.assertEqual(self.ebb.vm()["attachments"], 2)
        self.ebb.reclaim(wanted=RAM // 2)
        second("check", "ram", 1)
        c("check", "ram", 1)
        second("fill", "ram", 4, 0, RAM // 2)
        self.ebb.reclaim(wanted=RAM // 2)
        c("check", "ram", 4, 0, RAM // 2)
        second("check", "ram", 1, RAM // 2, RAM // 2)
        second.kill()
        until(lambda: self.ebb.vm()["attachments"] == 1, "the secondary's end")
        self.ebb.reclaim(wanted=RAM // 2)
        c("check", "ram", 4, 0, RAM // 2)
        c("check", "ram", 1, RAM // 2, RAM // 2)

    def test_10_exit_frees_the_vm(self):
        self.ebb.ctl("query-host")  # answered when it has opened all that it keeps open
        before = self.ebb.fds()
        for _ in range(3):
            c = self.attached()
            self.ebb.reclaim()
            c.kill()
            until(lambda: not self.ebb.names(), "the VM's end")
        until(lambda: self.ebb.fds() <= before, "all descriptors closed")
        store = self.ebb.ctl("query-backends")[0]
        self.assertEqual(store["objects"], 0, store)

    def test_11_connection_lost_process_lives(self):
        c = self.attached()
        self.ebb.reclaim()
        c("disconnect")
        self.client()  # another connection: the daemon has seen the end of the first by now
        self.assertEqual(self.ebb.names(), ["vm"])
        c("check", "ram", 1)
        self.ebb.reclaim()
        c("check", "ram", 1)
        c.kill()
        until(lambda: not self.ebb.names(), "the VM's end")

    def test_12_names_and_memory_that_are_taken(self):
        c = self.attached()
        other = self.client()
        other("ram", "ram", RAM, "shmem")
        answer = other.try_("attach", "vm", "-", "ram")
        self.assertIn("AlreadyExists", answer)
        other("map", "same", RAM, "shmem", c.pid, c("fd", "ram"))
        self.assertIn("RegionsInUse", other.try_("attach", "vm2", "-", "same"))
        other("unmap", "same")
        self.assertIn("NotFound", other.try_("attach", "vm2", "secondary", "ram"))
        other("fill", "ram", 9)
        other("attach", "vm2", "-", "ram")
        self.assertEqual(sorted(self.ebb.names()), ["vm", "vm2"])
        self.ebb.reclaim("vm")
        self.ebb.reclaim("vm2")
        c("check", "ram", 1)
        other("check", "ram", 9)

    def test_13_own_userfaultfd(self):
        """RAM that another userfaultfd watches (postcopy, a snapshot) is refused, and no more."""
        c = self.client()
        c("ram", "ram", RAM, "shmem")
        c("ram", "watched", RAM, "shmem")
        c("fill", "ram", 1)
        c("fill", "watched", 2)
        c("watch", "watched")
        self.assertIn("Busy: region watched has a userfaultfd already",
                      c.try_("attach", "vm", "-", "ram", "watched"))
        self.assertEqual(self.ebb.names(), [])
        c("check", "ram", 1)
        c("check", "watched", 2)
        c("attach", "vm", "-", "ram")
        self.assertIn("Busy", c.try_("add", "watched"))
        self.ebb.reclaim()
        c("check", "ram", 1)

    def test_14_operator_detaches(self):
        c = self.attached()
        self.ebb.reclaim()
        self.ebb.ctl("vm-detach", "vm")
        self.assertEqual(int(c("resident", "ram")), RAM)
        self.assertIn("NotFound", c.try_("pin", "ram", 0, MIB))
        self.assertIn("NotFound", c.try_("detach"))
        c("check", "ram", 1)
        c("attach", "vm", "-", "ram")
        self.ebb.reclaim()
        c("check", "ram", 1)

    def test_15_thp(self):
        c = self.attached("thp")
        self.ebb.reclaim(wanted=RAM // 2)
        c("check", "ram", 1)

    def test_16_hugetlb_and_zap_by_the_client(self):
        pool = HugePool(RAM // (2 * MIB) + 8)
        self.addCleanup(pool.restore)
        if not pool.ok:
            self.skipTest("the pool of huge pages cannot grow here; runs in the lab")
        c = self.attached("hugetlb", "zap")
        self.ebb.reclaim(wanted=RAM // 2)
        c("check", "ram", 1)
        self.assertEqual(self.ebb.vm()["granularity"], "2M")
        c.kill()
        until(lambda: not self.ebb.names(), "the VM's end")

    def test_17_two_clients_busy_at_once(self):
        clients = [self.attached(name=f"vm{i}") for i in range(2)]
        failures = []

        def work(c):
            try:
                for seed in range(2, 6):
                    c("fill", "ram", seed)
                    c("check", "ram", seed)
                    c("discard", "ram", 0, MIB)
                    c("zeroes", "ram", 0, MIB)
            except AssertionError as e:
                failures.append(e)

        threads = [threading.Thread(target=work, args=[c]) for c in clients]
        for t in threads:
            t.start()
        while any(t.is_alive() for t in threads):
            for i in range(2):
                try:
                    self.ebb.ctl("vm-reclaim", f"vm{i}", f"bytes={RAM // 2}")
                except AssertionError as e:
                    if "Busy" not in str(e):
                        raise
        for t in threads:
            t.join()
        self.assertEqual(failures, [])
        for i in range(2):
            self.assertEqual(self.ebb.vm(f"vm{i}")["pages-lost"], 0)

    def test_18_hostile_neighbour(self):
        """Damaged messages do nothing to the daemon and to another client's VM."""
        c = self.attached()
        self.ebb.reclaim()
        before = self.ebb.fds()
        ram = harness.Ram()
        self.addCleanup(ram.__exit__)
        self.assertGreater(harness.fuzz(self.ebb, ram.fds, 2), 10)
        until(lambda: self.ebb.fds() <= before, "all descriptors closed")
        self.assertEqual(self.ebb.names(), ["vm"])
        c("check", "ram", 1)
        self.ebb.reclaim()
        c("check", "ram", 1)


if __name__ == "__main__":
    reason = why_not()
    if reason:
        print(f"skipped: {reason}; runs in the lab")
        sys.exit(77)
    some = None
    if os.environ.get("EBB_LAB_GUEST") and len(sys.argv) == 1:
        # Half a minute each there: those that lean on the kernel most.
        some = ["Native." + name for name in unittest.defaultTestLoader.getTestCaseNames(Native)
                if name[5:7] in ("05", "13", "15", "16")]
    unittest.main(verbosity=2, defaultTest=some)
