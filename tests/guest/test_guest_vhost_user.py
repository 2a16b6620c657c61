#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Another process that maps the guest's RAM: a vhost-user back end moves the guest's I/O into and
out of memory that is being evicted, without a copy in between, and every byte is checked."""
import os
import sys

from ebbguest.ebb import Ebb
from ebbguest.guest import Guest, Ram
from ebbguest.process import Scope, wait_for
from ebbguest.testing import Skip, expect, expect_sound, guest_mem, main, require_programs, squeeze, step

VM = "vhost-user"
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
DROP_CACHES = "sync; echo 3 >/proc/sys/vm/drop_caches"
DISK_MIB = 160


class Disk:
    """qemu-storage-daemon's vhost-user-blk export of an image that holds the pattern."""

    def __init__(self, scope, env):
        require_programs("qemu-storage-daemon")
        self.image, sock = scope.path("disk"), scope.path("blk")
        guest_mem("fill", self.image, DISK_MIB, 1)
        self.child = scope.spawn("storage", [
            "qemu-storage-daemon", "--blockdev", "driver=file,node-name=f,filename=" + self.image,
            "--export", "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=%s,"
                        "writable=on" % sock], env)
        wait_for(lambda: os.path.exists(sock), "the export", 10, self.child)
        self.devices = ["-chardev", "socket,id=back,path=" + sock,
                        "-device", "vhost-user-blk-pci,chardev=back,num-queues=1"]
        self.read, self.written = "/dev/vda", "/dev/vda"
        self.prepare = "true"

    def check_written(self):
        guest_mem("check", self.image, DISK_MIB, 2)


class Share:
    """virtiofsd's share of a folder with a file that holds the pattern."""

    def __init__(self, scope, env):
        if not os.path.exists(VIRTIOFSD):
            raise Skip("no virtiofsd of QEMU's here; it runs on Debian 12")
        self.folder, sock = scope.path("share"), scope.path("fs")
        os.mkdir(self.folder)
        guest_mem("fill", self.folder + "/in", DISK_MIB, 1)
        # sandbox=chroot: with namespaces the process that maps the RAM is a child of this one.
        self.child = scope.spawn("virtiofsd", [
            VIRTIOFSD, "--socket-path=" + sock, "-o", "source=" + self.folder,
            "-o", "cache=always", "-o", "sandbox=chroot"], env)
        wait_for(lambda: os.path.exists(sock), "virtiofsd's socket", 10, self.child)
        self.devices = ["-chardev", "socket,id=back,path=" + sock,
                        "-device", "vhost-user-fs-pci,chardev=back,tag=share"]
        self.read, self.written = "/mnt/in", "/mnt/out"
        self.prepare = "mount -t virtiofs share /mnt"

    def check_written(self):
        guest_mem("check", self.folder + "/out", DISK_MIB, 2)


def test_reads_into_evicted_memory(ebb, guest, back):
    """The page cache's pages are filled by the back end, and evicted while that goes on."""
    step("reads")
    for _ in range(3):
        guest.check("guest-mem check %s %d 1" % (back.read, DISK_MIB))
        guest.check(DROP_CACHES)
    expect(ebb.vm(VM)["attachments"] == 2, "the back end is still attached")
    expect_sound(ebb, VM)


def test_writes_from_evicted_memory(ebb, guest, back):
    """What the back end reads out of the guest was evicted before it got there."""
    step("writes")
    guest.check("guest-mem fill /dev/shm/source %d 2" % DISK_MIB)
    squeeze(ebb, VM, 0.6)
    guest.check("dd if=/dev/shm/source of=%s bs=1M conv=notrunc && sync" % back.written)
    back.check_written()
    guest.check("rm /dev/shm/source")
    guest.check(DROP_CACHES)
    guest.check("guest-mem check %s %d 2" % (back.written, DISK_MIB))


def run():
    kind, = sys.argv[1:]
    with Scope() as scope:
        ebb = Ebb(scope)
        ebb.start()
        back = {"blk": Disk, "fs": Share}[kind](
            scope, ebb.preload(VM, EBB_SECONDARY="1", EBB_MIN_SIZE="4096"))
        guest = Guest(scope, VM, Ram("640M"), attach="preload", ebb=ebb, devices=back.devices)
        guest.wait_ready()
        ebb.wait_attached(VM, child=guest.child)
        guest.check(back.prepare)
        wait_for(lambda: ebb.vm(VM)["attachments"] == 2, "the back end is attached", 20,
                 back.child, 0.2)
        guest.check("guest-mem fill /dev/shm/keep 150 7")
        guest.check("guest-mem check %s %d 1" % (back.read, DISK_MIB))
        squeeze(ebb, VM)
        guest.start("loop", "guest-mem loop /dev/shm/keep 150 7 15")
        test_reads_into_evicted_memory(ebb, guest, back)
        test_writes_from_evicted_memory(ebb, guest, back)
        status, output = guest.finish("loop")
        expect(status == 0, "nothing was wrong meanwhile: " + output)
        guest.check("guest-mem check /dev/shm/keep 150 7")
        expect_sound(ebb, VM)
        guest.stop()
        ebb.wait_gone(VM)


sys.exit(main(run))
