#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The guest by itself, without Ebb: what the other guest tests lean on is true.

Above all: a wrong byte in the guest is found, by the check of Redis' values and by guest-mem.
"""
import sys

from ebbguest.guest import Guest, Ram
from ebbguest.process import Failure, Scope
from ebbguest.redis import Redis
from ebbguest.testing import expect, main


def test_commands(guest):
    expect(guest.run("echo out; echo err >&2; exit 7") == (7, "out\nerr"), "output and status")
    expect(guest.check("echo 'a  \"b\" $((1+1))'") == 'a  "b" $((1+1))', "quoting")
    try:
        guest.check("false")
    except Failure:
        pass
    else:
        raise Failure("a failing command was not reported")
    guest.start("later", "sleep 1; echo it is 'done'; exit 3")
    expect(guest.finish("later") == (3, "it is done"), "a command in the background")


def test_ram_is_measured(guest):
    before = guest.ram_taken_bytes()
    guest.check("guest-mem fill /dev/shm/f 64 1")
    taken = guest.ram_taken_bytes() - before
    expect(32 << 20 < taken < 128 << 20, "64 MiB written took %d MiB" % (taken >> 20))


def test_guest_mem_finds_one_byte(guest):
    expect(guest.run("guest-mem check /dev/shm/f 64 1")[0] == 0, "an unchanged file is right")
    guest.check("printf X | dd of=/dev/shm/f bs=1 seek=40000000 conv=notrunc")
    status, output = guest.run("guest-mem check /dev/shm/f 64 1")
    expect(status == 1 and "wrong bytes: 1" in output, "one changed byte is found: " + output)
    guest.check("rm /dev/shm/f")


def test_redis_finds_one_byte(guest):
    redis = Redis(guest, mib=16)
    redis.start()
    redis.fill()
    expect(redis.verify() == 0 and redis.checked == 16 << 20, "all values are right")
    redis.load(1)
    expect(redis.wrong == 0 and any(redis.version), "load rewrites and stays right")
    redis.connection.call("SETRANGE", "key:100", "5000", b"\1")
    redis.connection.call("DEL", "key:7")
    expect(redis.verify() in range(redis.value_bytes, redis.value_bytes + 2),
           "one changed byte and one lost value are found")


def run():
    with Scope() as scope:
        guest = Guest(scope, ram=Ram("512M", blocks=2))
        guest.wait_ready()
        expect(len(guest.memory_fds()) == 2, "two RAM blocks")
        test_commands(guest)
        test_ram_is_measured(guest)
        test_guest_mem_finds_one_byte(guest)
        test_redis_finds_one_byte(guest)


sys.exit(main(run))
