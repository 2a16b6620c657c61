# SPDX-License-Identifier: BSD-3-Clause
"""Processes whose memory a real ebbd takes, and what it says of them."""
import json
import os
import subprocess
import sys

from harness import BUILD, ctl, wait_for

MIB = 1 << 20
SIZE = 96 * MIB

# What is attached: fills memory that is half easy and half hard to compress, then does what the
# lines on its standard input say.
GUEST = r"""
import fcntl, mmap, os, random, sys
fd = os.memfd_create("ram", os.MFD_ALLOW_SEALING)
os.ftruncate(fd, %d)
fcntl.fcntl(fd, 1033, 2)  # F_ADD_SEALS, F_SEAL_SHRINK
ram = mmap.mmap(fd, %d)
rng = random.Random(5)
pages = [rng.randbytes(64) * 32 + rng.randbytes(2048) for _ in range(64)]
def page(i):
    return i.to_bytes(8, "little") + pages[i %% 64][8:]
for i in range(len(ram) // 4096):
    ram[i * 4096:(i + 1) * 4096] = page(i)
print("filled", flush=True)
for line in sys.stdin:
    what, *numbers = line.split()
    if what == "compare":
        print(sum(ram[i * 4096:(i + 1) * 4096] != page(i) for i in range(len(ram) // 4096)),
              flush=True)
    elif what == "drop":  # first page and how many: they read as zero from then on
        ram.madvise(9, int(numbers[0]) * 4096, int(numbers[1]) * 4096)  # MADV_REMOVE
        print("ok", flush=True)
    elif what == "zeroes":  # how many of them are not
        print(sum(ram[i * 4096:(i + 1) * 4096] != bytes(4096)
                  for i in range(int(numbers[0]), sum(map(int, numbers)))), flush=True)
""" % (SIZE, SIZE)


class Guest:
    def __init__(self, daemon, name):
        env = {**os.environ, "LD_PRELOAD": os.path.join(BUILD, "libebb-attach.so"),
               "EBB_SOCKET": daemon.path("attach.sock"), "EBB_NAME": name}
        env["LD_PRELOAD"] = os.environ.get("LD_PRELOAD", "") + " " + env["LD_PRELOAD"]
        self.child = subprocess.Popen([sys.executable, "-c", GUEST], env=env, text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.child.stdout.readline() == "filled\n"

    def ask(self, line):
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()
        return self.child.stdout.readline().strip()

    def wrong_pages(self):
        return int(self.ask("compare"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()


def ask(d, *words):
    r = ctl(d, "--json", *words)
    assert r.returncode == 0, r
    return json.loads(r.stdout)["return"]


def vm(d, name="guest1"):
    return ask(d, "query-vm", name)


def attached(d, name="guest1"):
    g = Guest(d, name)
    wait_for(lambda: name in [v["name"] for v in ask(d, "query-vms")], "attached")
    return g
