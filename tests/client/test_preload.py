#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""test_preload.py: libebb-attach.so preloaded into a small process, against a fake daemon."""
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fake_daemon import PAGE, FakeDaemon  # noqa: E402

BUILD = os.environ["EBB_BUILD"]
LIBRARY = os.path.join(BUILD, "libebb-attach.so")
GUEST = os.path.join(BUILD, "tests/client/client_guest")
MB = 1 << 20
SIZE = 64 * MB


def can_use_uffd():
    try:
        os.close(os.open("/dev/userfaultfd", os.O_RDWR))
        return os.geteuid() == 0
    except OSError:
        return False


class Guest:
    def __init__(self, path, uid=None, **env):
        env = {k: str(v) for k, v in env.items() if v is not None}
        self.p = subprocess.Popen(
            [GUEST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, user=uid, group=uid, extra_groups=[] if uid else None,
            env={**os.environ, "LD_PRELOAD": LIBRARY, "EBB_SOCKET": path, **env})

    def __call__(self, *words):
        self.p.stdin.write(" ".join(map(str, words)) + "\n")
        self.p.stdin.flush()
        return self.p.stdout.readline().strip()

    def end(self):
        out, err = self.p.communicate(timeout=30)
        return self.p.returncode, err


class PreloadTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="ebb-client-")
        os.chmod(self.dir.name, 0o755)
        self.path = os.path.join(self.dir.name, "attach.sock")
        self.daemon = FakeDaemon(self.path)
        self.guests = []

    def tearDown(self):
        for g in self.guests:
            g.p.kill()
            g.p.wait()
            for f in (g.p.stdin, g.p.stdout, g.p.stderr):
                f.close()
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

    def guest(self, **kw):
        g = Guest(self.path, **kw)
        self.guests.append(g)
        return g

    def attached(self, **kw):
        """A guest with one map, attached; its VM and its region."""
        self.daemon.start()
        g = self.guest(**kw)
        self.assertTrue(g("map", "memfd", SIZE).startswith("0 0x"))
        vm = self.daemon.wait_attached()
        return g, vm, next(iter(vm.regions.values()))

    def settle(self):
        """Long enough for what should not happen to have happened."""
        time.sleep(0.7)

    # ---- attaching ----

    def test_01_attach_tells_name_pid_and_region(self):
        self.daemon.start()
        g = self.guest()
        addr = int(g("map", "memfd", SIZE).split()[1], 16)
        args = self.daemon.wait("attach")[1]
        self.assertEqual(args["version"], 1)
        self.assertEqual(args["vm"], {"name": f"client_guest-{g.p.pid}", "pid": g.p.pid})
        self.assertEqual(args["requests"], ["zap"])
        self.assertNotIn("secondary", args)
        self.assertEqual(len(args["regions"]), 1)
        r = args["regions"][0]
        self.assertEqual((r["host_addr"], r["size"], r["page_size"], r["memfd"],
                          r["memfd_offset"]), (addr, SIZE, PAGE, 1, 0))
        self.assertIn("guest-ram", r["id"])

    def test_02_name_from_the_environment(self):
        _, vm, _ = self.attached(EBB_NAME='a "quoted" name')
        self.assertEqual(vm.name, 'a "quoted" name')

    def test_03_content_comes_back_on_access(self):
        g, vm, r = self.attached()
        g("write", 0, 5 * PAGE, 77)
        vm.evict(r.id, 5 * PAGE)
        self.assertEqual(os.pread(r.fd, 1, 5 * PAGE), b"\0")
        self.assertEqual(g("read", 0, 5 * PAGE), "77")
        self.assertFalse(r.stored)

    def test_04_daemon_that_comes_late(self):
        g = self.guest()
        g("map", "memfd", SIZE)
        self.settle()
        self.daemon.start()
        self.daemon.wait_attached()

    def test_05_without_daemon_nothing_fails_or_waits(self):
        g = self.guest()
        self.assertTrue(g("map", "memfd", SIZE).startswith("0 0x"))
        self.assertEqual(g("write", 0, 0, 1), "ok")
        self.assertEqual(g("punch", 0, 0, PAGE), "ok")
        self.assertEqual(g("read", 0, 0), "0")
        self.assertEqual(g("send", 0, 0), "0")
        self.assertEqual(g("fork-read", 0, 0), "0")
        self.assertEqual(g("unmap", 0), "ok")
        self.assertEqual(g.end(), (0, ""))

    def test_06_require_refuses_to_start(self):
        g = self.guest(EBB_REQUIRE=1)
        self.assertEqual(g("map", "memfd", SIZE), "")
        code, err = g.end()
        self.assertEqual(code, 1)
        self.assertIn("EBB_REQUIRE", err)
        self.assertIn(self.path, err)

    def test_07_require_with_a_daemon(self):
        g, vm, _ = self.attached(EBB_REQUIRE=1)
        self.assertEqual(g("write", 0, 0, 1), "ok")

    def test_08_require_when_the_daemon_refuses(self):
        self.daemon.errors["attach"] = ("GenericError", "no room for this one")
        self.daemon.start()
        g = self.guest(EBB_REQUIRE=1)
        g("map", "memfd", SIZE)
        self.assertEqual(g.p.wait(30), 1)
        self.assertIn("no room for this one", g.p.stderr.read())

    def test_09_min_size(self):
        self.daemon.start()
        g = self.guest(EBB_MIN_SIZE="1M")
        g("map", "memfd", MB - PAGE)
        g("map", "memfd", MB)
        args = self.daemon.wait("attach")[1]
        self.assertEqual([r["size"] for r in args["regions"]], [MB])

    def test_10_what_is_no_guest_ram_is_ignored(self):
        self.daemon.start()
        g = self.guest()
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as disk:
            g("map", "private", SIZE)
            g("map", "memfd", SIZE - PAGE)
            if not is_tmpfs(disk.name):
                g("map", disk.name, SIZE)
            self.settle()
            self.assertFalse(self.daemon.log)
            g("map", "memfd", SIZE)
            args = self.daemon.wait("attach")[1]
            self.assertEqual(len(args["regions"]), 1)

    def test_11_file_on_tmpfs(self):
        self.daemon.start()
        with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="ebb-client-") as f:
            g = self.guest()
            g("map", f.name, SIZE)
            r = self.daemon.wait("attach")[1]["regions"][0]
            self.assertEqual((r["size"], r["page_size"]), (SIZE, PAGE))

    def test_12_unprivileged_borrows_the_device(self):
        g, vm, r = self.attached(uid=65534)
        self.assertEqual(len(self.daemon.messages("userfaultfd")), 1)
        g("write", 0, 0, 9)
        vm.evict(r.id, 0)
        self.assertEqual(g("read", 0, 0), "9")

    def test_13_refused_once_is_tried_again(self):
        self.daemon.errors["attach"] = ("AlreadyExists", "there is a VM of that name")
        self.daemon.start()
        g = self.guest()
        g("map", "memfd", SIZE)
        self.daemon.wait("attach", 2)
        self.daemon.errors.clear()
        self.daemon.wait("attach", 3)

    def test_14_one_bad_region_does_not_keep_the_others_out(self):
        self.daemon.start()
        g = self.guest()
        g("map", "memfd", SIZE)
        g("map", "memfd", SIZE)
        # The first has a userfaultfd of the process's own by the time of the attach.
        g.p.stdin.write("uffd 0\n")
        g.p.stdin.flush()
        self.assertEqual(g.p.stdout.readline(), "registered\n")
        vm = self.daemon.wait_attached()
        self.assertEqual(len(vm.regions), 1)
        self.settle()
        self.assertEqual(len(self.daemon.messages("region-add")), 0)
        self.assertEqual(g("go"), "ok")
        self.daemon.wait("region-add")

    def test_15_secondary_keeps_trying(self):
        self.daemon.errors["attach"] = ("NotFound", "no VM has this RAM")
        self.daemon.start()
        g = self.guest(EBB_SECONDARY=1)
        g("map", "memfd", SIZE)
        self.daemon.wait("attach", 3)
        self.daemon.errors.clear()
        args = self.daemon.wait("attach", 4)[1]
        self.assertIs(args["secondary"], True)

    # ---- life with the daemon ----

    def test_20_hot_plug_and_unplug(self):
        g, vm, r = self.attached()
        g("map", "memfd", 2 * SIZE)
        added = self.daemon.wait("region-add")[1]
        self.assertEqual((added["size"], added["memfd"]), (2 * SIZE, 0))
        g("write", 1, 0, 5)
        self.assertEqual(g("unmap", 1), "ok")
        # Answered before the unmapping went on.
        names = [m[0] if m[0] != "answered" else m for m in self.daemon.log]
        self.assertIn(("answered", "region-remove"), names)
        removed = self.daemon.wait("region-remove")[1]
        self.assertEqual(removed, {"id": added["id"], "discard": False})
        self.assertEqual(list(vm.regions), [r.id])

    def test_21_unmapped_content_is_there_when_mapped_again(self):
        g, vm, r = self.attached()
        g("write", 0, 3 * PAGE, 42)
        vm.evict(r.id, 3 * PAGE)
        g("unmap", 0)
        g("again", 0, 0, SIZE)
        self.assertEqual(g("read", 1, 3 * PAGE), "42")

    def test_22_punch_discards_what_was_evicted(self):
        g, vm, r = self.attached()
        for page in range(4):
            g("write", 0, page * PAGE, 11)
            vm.evict(r.id, page * PAGE)
        before = time.monotonic_ns()
        self.assertEqual(g("punch", 0, PAGE, 2 * PAGE), "ok")
        sent = [dict(m[1]) for m in self.daemon.messages("discard")]
        # What the daemon reaches after the VMM has gone on, it must not drop.
        deadline = sent[0].pop("deadline")
        self.assertTrue(before < deadline < time.monotonic_ns() + 2 * 10**9)
        self.assertEqual(sent, [{"id": r.id, "offset": PAGE, "size": 2 * PAGE}])
        self.assertEqual([g("read", 0, page * PAGE) for page in range(4)], ["11", "0", "0", "11"])

    def test_23_madv_remove_discards_dontneed_keeps(self):
        g, vm, r = self.attached()
        for page in range(2):
            g("write", 0, page * PAGE, 12)
            vm.evict(r.id, page * PAGE)
        self.assertEqual(g("remove", 0, 0, PAGE), "ok")
        self.assertEqual(g("dontneed", 0, PAGE, PAGE), "ok")
        self.assertEqual(g("read", 0, 0), "0")
        self.assertEqual(g("read", 0, PAGE), "12")

    def test_24_part_of_a_page_is_no_discard(self):
        g, vm, r = self.attached()
        self.assertEqual(g("punch", 0, 100, PAGE), "ok")
        self.assertFalse(self.daemon.messages("discard"))

    def test_25_discard_does_not_wait_for_ever(self):
        g, vm, r = self.attached()
        self.daemon.silent.add("discard")
        self.assertEqual(g("punch", 0, 0, PAGE), "ok")

    def test_26_zap_keeps_the_data(self):
        g, vm, r = self.attached()
        g("write", 0, 0, 33)
        answer = vm.request("zap", {"ranges": [[r.addr, 2 * PAGE], [r.addr + SIZE - PAGE, PAGE]]})
        self.assertEqual(answer, {"return": {}, "id": 1})
        self.assertFalse(page_present(g.p.pid, r.addr))
        self.assertEqual(g("read", 0, 0), "33")
        self.assertTrue(page_present(g.p.pid, r.addr))
        # Of whatever serves it, nothing may come into the VMM's allocator.
        self.assertEqual(g("allocs"), "0")

    def test_27_zap_outside_of_regions_is_refused(self):
        g, vm, r = self.attached()
        for bad in ([r.addr - PAGE, PAGE], [r.addr, SIZE + PAGE], [r.addr, 2**64 - PAGE], [1]):
            self.assertIn("error", vm.request("zap", {"ranges": [bad]}))
        self.assertIn("error", vm.request("fly", {}))
        self.assertIn("error", vm.request("zap", {}))

    def test_28_nonsense_from_the_daemon_does_not_hurt(self):
        g, vm, r = self.attached()
        vm.sock.sendall(b'{"return"}\n')
        g("write", 0, 0, 3)
        self.assertEqual(g("read", 0, 0), "3")

    def test_29_request_right_behind_the_answer(self):
        self.daemon.behind["attach"] = b'{"execute":"fly","arguments":{},"id":99}\n'
        g, vm, r = self.attached()
        with vm.answered:
            self.assertTrue(vm.answered.wait_for(lambda: 99 in vm.answers, 10))
        self.assertEqual(vm.answers[99]["error"]["class"], "CommandNotFound")

    # ---- RAM that leaves the daemon's sight ----

    def unanswered(self, name):
        """A guest whose attach is done, and evicted from, before it can know; its VM and region."""
        self.daemon.late["attach"] = 0.5
        self.daemon.start()
        g = self.guest()
        g("map", name, SIZE)
        vm = self.daemon.wait("attach")[2]
        r = next(iter(vm.regions.values()))
        g("write", 0, 0, 24)
        vm.evict(r.id, 0)
        return g, vm, r

    def test_37_discard_before_the_attach_is_answered(self):
        g, _, r = self.unanswered("memfd")
        self.assertEqual(g("punch", 0, 0, PAGE), "ok")
        self.assertEqual([m[1]["id"] for m in self.daemon.messages("discard")], [r.id])
        self.assertEqual(g("read", 0, 0), "0")

    def test_38_named_file_is_whole_after_exit_before_the_answer(self):
        with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="ebb-client-") as f:
            g, _, _ = self.unanswered(f.name)
            self.assertEqual(g.end()[0], 0)
            self.assertEqual(os.pread(f.fileno(), 1, 0), b"\x18")

    def test_39_share_before_the_attach_is_answered(self):
        g, _, r = self.unanswered("memfd")
        self.assertEqual(g("send", 0, 0), "24")
        self.assertEqual([m[1] for m in self.daemon.messages("share")], [{"id": r.id}])

    def test_30_descriptor_leaves_after_content_is_back(self):
        for knows in (True, False):
            with self.subTest(share=knows), self.afresh():
                self.daemon.knows_share = knows
                g, vm, r = self.attached()
                g("write", 0, 0, 21)
                vm.evict(r.id, 0)
                self.assertEqual(g("send", 0, 0), "21")
                # Over a socketpair: who has the other end is not known.
                self.assertEqual([m[1] for m in self.daemon.messages("share")], [{"id": r.id}])
                self.assertEqual(len(self.daemon.messages("pin")), 0 if knows else 1)

    def test_31_child_reads_what_was_evicted(self):
        g, vm, r = self.attached()
        g("write", 0, 0, 22)
        vm.evict(r.id, 0)
        self.assertEqual(g("fork-read", 0, 0), "22")
        self.daemon.wait("detach")
        self.assertEqual(g("read", 0, 0), "22")
        self.daemon.wait_attached(2)

    def test_32_dontfork_needs_no_detach(self):
        g, vm, r = self.attached()
        g("dontfork", 0, 0, SIZE)
        self.assertEqual(g("fork-read", 0, 0), "signal 11")
        self.assertFalse(self.daemon.messages("detach"))

    def test_33_exec_detaches(self):
        g, vm, r = self.attached()
        self.assertEqual(g("exec"), "exec")
        self.daemon.wait("detach")
        self.assertEqual(g.p.wait(30), 0)

    def test_34_own_userfaultfd_goes_first(self):
        g, vm, r = self.attached()
        g("write", 0, 0, 23)
        vm.evict(r.id, 0)
        g.p.stdin.write("uffd 0\n")
        g.p.stdin.flush()
        self.assertEqual(g.p.stdout.readline(), "registered\n")
        self.assertEqual(self.daemon.wait("region-remove")[1], {"id": r.id, "discard": False})
        self.assertEqual(os.pread(r.fd, 1, 0), b"\x17")
        self.settle()
        self.assertFalse(self.daemon.messages("region-add"))
        self.assertEqual(g("go"), "ok")
        self.daemon.wait("region-add")

    def test_35_named_file_is_whole_after_exit(self):
        self.daemon.start()
        with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="ebb-client-") as f:
            g = self.guest()
            g("map", f.name, SIZE)
            vm = self.daemon.wait_attached()
            r = next(iter(vm.regions.values()))
            g("write", 0, 0, 24)
            vm.evict(r.id, 0)
            self.assertEqual(g.end()[0], 0)
            self.assertEqual(os.pread(f.fileno(), 1, 0), b"\x18")

    def test_36_own_descriptors_survive_closing_all(self):
        for how in (0, 1):
            with self.subTest(how=how), self.afresh():
                g, vm, r = self.attached()
                g("write", 0, 0, 25)
                self.assertEqual(g("closeall", how), "ok")
                vm.evict(r.id, 0)
                answer = vm.request("zap", {"ranges": [[r.addr, PAGE]]})
                self.assertEqual(answer, {"return": {}, "id": 1})
                self.assertEqual(g("read", 0, 0), "25")

    # ---- the daemon goes ----

    def test_40_let_go_and_taken_by_the_next_daemon_only(self):
        g, vm, r = self.attached()
        vm.let_go()
        vm.sock.shutdown(2)
        # The same process listens on: whoever let go is not asked again.
        self.settle()
        self.assertEqual(len(self.daemon.messages("attach")), 1)
        g("write", 0, 0, 4)
        self.assertEqual(g("read", 0, 0), "4")

    def test_41_lost_daemon_leaves_faults_waiting(self):
        g, vm, r = self.attached()
        g("write", 0, 0, 26)
        vm.evict(r.id, 0)
        uffd = vm.uffd
        vm.uffd = -1  # nobody serves
        vm.sock.shutdown(2)
        g.p.stdin.write("read 0 0\n")
        g.p.stdin.flush()
        self.settle()
        # Our own descriptor is closed: the process must have kept its duplicate.
        stored = r.stored.pop(0)
        copy = os.dup(uffd)
        os.close(uffd)
        self.settle()
        vm.uffd = copy
        vm.copy(r.addr, stored)
        self.assertEqual(g.p.stdout.readline(), "26\n")


    # ---- the next daemon ----

    def piece(self, text, writable=False):
        """A piece of state as a daemon would hand it over."""
        fd = os.memfd_create("state")
        self.addCleanup(os.close, fd)
        os.write(fd, text)
        if writable:
            return fd
        fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        self.addCleanup(os.close, fd)
        return fd

    def keep(self, vm, name, text):
        return vm.request("keep", {"name": name, "size": len(text)}, self.piece(text))

    def held(self, g, name="memfd:state"):
        """How many descriptors of pieces the process has open."""
        n = 0
        for fd in os.listdir(f"/proc/{g.p.pid}/fd"):
            with contextlib.suppress(OSError):
                n += name in os.readlink(f"/proc/{g.p.pid}/fd/{fd}")
        return n

    def next_daemon(self, stored=None):
        """The daemon dies; after a while there is another."""
        self.daemon.stop()
        self.settle()
        self.daemon = FakeDaemon(self.path)
        self.daemon.inherited = stored or {}
        return self.daemon

    def test_50_keeps_and_lets_go(self):
        g, vm, r = self.attached()
        self.assertIs(vm.args["keep"], True)
        self.assertNotIn("kept", vm.args)
        self.assertIn("return", self.keep(vm, "table:0", b"one"))
        self.assertIn("return", self.keep(vm, "store:0", b"two"))
        self.assertEqual(self.held(g), 2)
        self.assertIn("return", self.keep(vm, "table:0", b"three"))  # in place of the first
        self.assertEqual(self.held(g), 2)
        self.assertIn("return", vm.request("unkeep", {"name": "store:0"}))
        self.assertIn("return", vm.request("unkeep", {"name": "never"}))
        self.assertEqual(self.held(g), 1)
        self.assertEqual(g("closeall", 0), "ok")
        self.assertEqual(self.held(g), 1)

    def test_51_what_it_does_not_keep(self):
        g, vm, r = self.attached()
        self.assertIn("error", vm.request("keep", {"name": "no-descriptor", "size": 1}))
        self.assertIn("error", vm.request("unkeep", {"name": "a"}, self.piece(b"x")))
        for arguments in ({}, {"name": ""}, {"name": 1}, {"name": "x" * 64}, []):
            self.assertIn("error", vm.request("keep", arguments, self.piece(b"x")))
        self.assertEqual(vm.request("zap", {"ranges": []}, self.piece(b"x")).keys(),
                         {"return", "id"})
        self.assertEqual(self.held(g), 0)
        for i in range(96):
            self.assertIn("return", self.keep(vm, f"p{i}", b"x"))
        self.assertIn("error", self.keep(vm, "one-more", b"x"))
        self.assertIn("return", self.keep(vm, "p7", b"y"))
        self.assertEqual(self.held(g), 96)

    def test_52_detach_lets_go_of_everything(self):
        g, vm, r = self.attached()
        self.keep(vm, "table:0", b"x")
        self.assertEqual(g("fork-read", 0, 0), "0")  # detaches and attaches anew
        vm = self.daemon.wait_attached(2)
        self.assertNotIn("kept", vm.args)
        self.assertEqual(self.held(g), 0)

    def test_53_next_daemon_takes_over(self):
        g, vm, r = self.attached()
        for i in range(64):  # more descriptors than go with one packet
            self.assertIn("return", self.keep(vm, f"p{i}", b"piece %d" % i))
        g("write", 0, 0, 51)
        g("write", 0, PAGE, 52)
        vm.evict(r.id, 0)
        vm.evict(r.id, PAGE)
        before, address = vm.args["regions"], r.addr
        daemon = self.next_daemon({r.id: r.stored})
        os.close(vm.uffd)
        g.p.stdin.write("read 0 0\n")
        g.p.stdin.flush()
        daemon.start()
        self.assertEqual(g.p.stdout.readline(), "51\n")
        vm = daemon.wait_attached()
        self.assertEqual(vm.args["regions"], before)
        self.assertEqual(vm.name, f"client_guest-{g.p.pid}")
        self.assertEqual({n: os.pread(fd, 99, 0) for n, fd in vm.kept.items()},
                         {f"p{i}": b"piece %d" % i for i in range(64)})
        # All is as before: content, requests both ways, and keeping.
        self.assertEqual(g("read", 0, PAGE), "52")
        self.assertIn("return", vm.request("zap", {"ranges": [[address, PAGE]]}))
        self.assertIn("return", vm.request("unkeep", {"name": "p0"}))
        self.assertEqual(g("punch", 0, 0, PAGE), "ok")
        daemon.wait("discard")
        self.assertEqual(g("unmap", 0), "ok")
        daemon.wait("region-remove")

    def test_54_refused_takeover_is_tried_again(self):
        g, vm, r = self.attached()
        g("write", 0, 0, 53)
        vm.evict(r.id, 0)
        self.keep(vm, "table:0", b"state")
        daemon = self.next_daemon({r.id: r.stored})
        os.close(vm.uffd)
        daemon.errors["attach"] = ("NotFound", "not yet")
        daemon.start()
        g.p.stdin.write("read 0 0\n")
        g.p.stdin.flush()
        daemon.wait("attach", 2)
        self.assertEqual(self.held(g), 1)
        del daemon.errors["attach"]
        self.assertEqual(g.p.stdout.readline(), "53\n")
        g.p.kill()
        self.assertEqual(g.p.stderr.read().count("not yet"), 1)

    def test_55_ram_that_came_meanwhile(self):
        g, vm, r = self.attached()
        daemon = self.next_daemon()
        g("map", "memfd", SIZE)
        daemon.start()
        vm = daemon.wait_attached()
        self.assertEqual([a["id"] for a in vm.args["regions"]], [r.id])
        self.assertEqual(vm.args["kept"], [])
        self.assertNotEqual(daemon.wait("region-add")[1]["id"], r.id)

    def test_56_secondary_keeps_nothing(self):
        g, vm, r = self.attached(EBB_SECONDARY=1)
        self.assertNotIn("keep", vm.args)
        vm = self.next_daemon().start().wait_attached()
        self.assertEqual((vm.args["secondary"], vm.args["kept"]), (True, []))


def is_tmpfs(path):
    return subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True,
                          text=True).stdout.strip() == "tmpfs"


def page_present(pid, addr):
    with open(f"/proc/{pid}/pagemap", "rb") as f:
        f.seek(addr // PAGE * 8)
        return bool(f.read(8)[7] & 0x80)


if __name__ == "__main__":
    if not can_use_uffd():
        print("SKIP: needs root and /dev/userfaultfd; the lab VM's part of scripts/check runs it")
        sys.exit(77)
    unittest.main()
