#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The demo in short, for each way to attach and each kind of memory: Redis in a guest that has
half of its memory taken keeps every byte; then the VM detaches, or ends, and leaves nothing."""
import sys

from ebbguest.ebb import MIB, Ebb
from ebbguest.guest import Guest, Ram
from ebbguest.process import Failure, Scope, wait_for
from ebbguest.redis import Redis
from ebbguest.testing import expect, expect_sound, huge_pages, huge_tmpfs, main, squeeze, step

VM = "attach"
DATA_MIB = 96


def test_squeezed(ebb, guest, redis):
    step("Redis is filled")
    redis.fill()
    before = guest.ram_taken_bytes()
    squeeze(ebb, VM)
    # The kernel's own account, not the daemon's: the memory is really given back.
    expect(guest.ram_taken_bytes() < before * 0.65, "half of %d MiB is gone, not down to %d" % (
        before // MIB, guest.ram_taken_bytes() // MIB))
    step("load under the limit")
    redis.load(3)
    step("every value is checked")
    expect(redis.verify() == 0, "every value is right under the limit")
    figures = expect_sound(ebb, VM)
    expect(figures["fault-latency-us"]["p50"] > 0, "faults were measured")
    expect(0 < figures["stored-bytes"] < figures["evicted-bytes"],
           "what is stored takes less than it was")


def test_detach(ebb, guest, redis):
    squeeze(ebb, VM)
    step("detach")
    ebb.ctl("vm-detach", VM)
    ebb.wait_gone(VM)
    expect(redis.verify() == 0, "every value is right after the detach")
    redis.load(2)
    expect(redis.wrong == 0, "and stays so under load")


def test_end_frees_everything(ebb, guest, files_before):
    step("the VM ends")
    guest.stop()
    ebb.wait_gone(VM)
    # The last descriptors go with the attachment, which may be a moment later than the name.
    try:
        wait_for(lambda: ebb.open_files() == files_before, "ebbd's files as before", 60)
    except Failure as e:
        raise Failure("%s: %s, not %s" % (e, files_before, ebb.open_files())) from e


def ram_of(kind, scope):
    if kind == "thp":
        return Ram("768M", "file", folder=huge_tmpfs(scope))
    if kind == "hugetlb":
        huge_pages(scope, 1024)
        return Ram("768M", "hugetlb")
    return Ram("768M", blocks=2 if kind == "blocks" else 1)


def run():
    attach, kind = sys.argv[1:]
    with Scope() as scope:
        ram = ram_of(kind, scope)
        ebb = Ebb(scope)
        ebb.start()
        files_before = ebb.idle_files()
        guest = Guest(scope, VM, ram, attach=attach, ebb=ebb)
        guest.wait_ready()
        ebb.wait_attached(VM, child=guest.child)
        expect(ebb.vm(VM)["regions"] == ram.blocks, "%d regions" % ram.blocks)
        redis = Redis(guest, DATA_MIB)
        redis.start()
        test_squeezed(ebb, guest, redis)
        if attach == "preload":
            test_detach(ebb, guest, redis)
        test_end_frees_everything(ebb, guest, files_before)


sys.exit(main(run))
