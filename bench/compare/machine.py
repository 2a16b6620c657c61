# SPDX-License-Identifier: BSD-3-Clause
"""What bench/compare changes on the machine, and how it is put back whatever happens.

Every change (swap, zram, zswap, cgroups, huge pages, files of /sys) is made by one process, the
keeper. How to undo a change is written down before the change is made, in memory and in a journal
file. The keeper undoes everything, last change first, when it is told to, and when the end of its
pipe says that its parent is gone, of whatever it died; it ignores the signals of a terminal. Should
the keeper itself be killed, the next one that starts finds the journal and undoes what is in it
before anything else (compare --restore does only that).
"""
import contextlib
import fcntl
import glob
import json
import os
import signal
import subprocess
import sys
import time

LOCK = "/tmp/ebb-swap.lock"  # also that of bench_fault: one user of swap at a time
JOURNAL = os.environ.get("EBB_COMPARE_JOURNAL", "/run/ebb-compare.undo")
ZRAM_CONTROL = "/sys/class/zram-control"
PAGE = 4096


class Refused(Exception):
    """Something cannot be had on this machine; the text says what."""


def read(path):
    with open(path, encoding="ascii", errors="replace") as f:
        return f.read().strip()


def write(path, text):
    with open(path, "w", encoding="ascii") as f:
        f.write(str(text))


def chosen(text):
    """The value in use, of a file that lists all with the one in brackets."""
    return text.split("[")[1].split("]")[0] if "[" in text else text


def swaps():
    return [line.split()[0] for line in read("/proc/swaps").splitlines()[1:]]


def controller():
    """Where the memory controller is mounted, and its version."""
    found = None
    for line in read("/proc/self/mounts").splitlines():
        _, where, kind, options = line.split()[:4]
        if kind == "cgroup" and "memory" in options.split(","):
            return where, 1
        if kind == "cgroup2" and "memory" in read(where + "/cgroup.controllers").split():
            found = where, 2
    if not found:
        raise Refused("no memory cgroups")
    return found


# --- undoing ------------------------------------------------------------------------------------

def insist(action, seconds=20):
    """Tries until it works: devices are busy for a moment while udev looks at them."""
    end = time.monotonic() + seconds
    while True:
        try:
            return action()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def undo_swap(path):
    if path in swaps():
        subprocess.run(["swapoff", path], check=True)


def undo_zram(number, codec, made, loaded):
    block = "/sys/block/zram%d" % number
    if os.path.exists(block):
        insist(lambda: write(block + "/reset", 1))
        write(block + "/comp_algorithm", codec)
        if made:
            insist(lambda: write(ZRAM_CONTROL + "/hot_remove", number))
    if loaded:
        subprocess.run(["modprobe", "-r", "zram"], check=False)


def undo_cgroup(path):
    """Ends what is left in the cgroup: only processes of ours ever entered it."""
    if not os.path.isdir(path):
        return
    for _ in range(500):
        pids = read(path + "/cgroup.procs").split()
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)
    insist(lambda: os.rmdir(path))


def undo_file(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


UNDO = {"swap": undo_swap, "zram": undo_zram, "cgroup": undo_cgroup, "file": undo_file,
        "write": write}


# --- the keeper's side --------------------------------------------------------------------------

class Keeper:
    def __init__(self):
        self.undo = []
        self.lock = None

    def journal(self):
        if not self.undo:
            undo_file(JOURNAL)
            return
        with open(JOURNAL + ".new", "w", encoding="ascii") as f:
            json.dump(self.undo, f)
        os.rename(JOURNAL + ".new", JOURNAL)

    def will(self, kind, *args):
        """To be undone; written down before it is done."""
        self.undo.append([kind, *args])
        self.journal()

    def back(self, mark=0):
        failed = []
        while len(self.undo) > mark:
            kind, *args = self.undo[-1]
            try:
                UNDO[kind](*args)
            except (OSError, subprocess.CalledProcessError) as e:
                failed.append("%s %s: %s" % (kind, args, e))
            self.undo.pop()
            self.journal()
        if failed:
            raise Refused("not put back: " + "; ".join(failed))

    def leftovers(self):
        """What an earlier keeper that was killed has left."""
        if os.path.exists(JOURNAL):
            with open(JOURNAL, encoding="ascii") as f:
                self.undo = json.load(f)
            self.back()

    def take_lock(self, seconds):
        self.lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Refused(LOCK + " is held by another") from None
                time.sleep(0.1)

    # What may be asked for.

    def do_mark(self):
        return len(self.undo)

    def do_back(self, mark):
        self.back(mark)

    def do_write(self, path, text):
        if not os.path.exists(path):
            raise Refused("%s is not there" % path)
        self.will("write", path, chosen(read(path)))
        write(path, text)

    def do_huge_pages(self, n):
        """n more than there are free ones."""
        base = "/sys/kernel/mm/hugepages/hugepages-2048kB"
        pool, free = int(read(base + "/nr_hugepages")), int(read(base + "/free_hugepages"))
        self.do_write(base + "/nr_hugepages", pool + max(0, n - free))
        if int(read(base + "/free_hugepages")) < n:
            raise Refused("no %d free huge pages" % n)

    def do_cgroup(self, name):
        where, version = controller()
        if version == 2 and "memory" not in read(where + "/cgroup.subtree_control").split():
            write(where + "/cgroup.subtree_control", "+memory")
            self.will("write", where + "/cgroup.subtree_control", "-memory")
        path = "%s/ebb-compare.%s" % (where, name)
        self.will("cgroup", path)
        os.mkdir(path)
        return path, version

    def no_other_swap(self):
        if swaps():
            raise Refused("this machine swaps already")

    def swap_on(self, path):
        subprocess.run(["mkswap", path], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        self.will("swap", path)
        subprocess.run(["swapon", path], check=True)
        return path

    def do_zram(self, codec, size):
        self.no_other_swap()
        loaded = made = False
        if not os.path.exists(ZRAM_CONTROL):
            loaded = subprocess.run(["modprobe", "-q", "zram"], check=False).returncode == 0
        number = None
        for i in range(16):
            if os.path.exists("/sys/block/zram%d/disksize" % i) and \
                    read("/sys/block/zram%d/disksize" % i) == "0":
                number = i
                break
        if number is None:
            if not os.path.exists(ZRAM_CONTROL):
                raise Refused("no zram (module zram)")
            number, made = int(read(ZRAM_CONTROL + "/hot_add")), True
        block = "/sys/block/zram%d" % number
        self.will("zram", number, chosen(read(block + "/comp_algorithm")), made, loaded)
        if codec not in read(block + "/comp_algorithm").replace("[", "").replace("]", "").split():
            raise Refused("this kernel's zram has no " + codec)
        write(block + "/comp_algorithm", codec)
        write(block + "/disksize", size)
        device = "/dev/zram%d" % number
        insist(lambda: os.close(os.open(device, os.O_RDWR)))
        return self.swap_on(device)

    def do_swap_file(self, path, size):
        self.no_other_swap()
        self.will("file", path)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)
        return self.swap_on(path)


def keeper_main(requests, answers, wait_lock):
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(sig, signal.SIG_IGN)
    keeper = Keeper()

    def answer(value, why=None):
        with contextlib.suppress(BrokenPipeError):
            os.write(answers, (json.dumps([value, why]) + "\n").encode())

    try:
        keeper.take_lock(wait_lock)
        keeper.leftovers()
        answer(None)
        for line in os.fdopen(requests):
            name, *args = json.loads(line)
            try:
                answer(getattr(keeper, "do_" + name)(*args))
            except (Refused, OSError, subprocess.CalledProcessError) as e:
                answer(None, str(e))
    except Refused as e:
        answer(None, str(e))
    try:
        keeper.back()
    except Refused as e:
        print("compare: the machine is not as it was: %s" % e, file=sys.stderr)
        os._exit(1)
    os._exit(0)


# --- the user's side ----------------------------------------------------------------------------

class Machine:
    """The keeper, as its parent sees it. Use as a context."""

    def __init__(self, wait_lock=600):
        if os.geteuid():
            raise Refused("this needs root")
        ours, theirs = os.pipe(), os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.close(ours[1])
            os.close(theirs[0])
            keeper_main(ours[0], theirs[1], wait_lock)
        os.close(ours[0])
        os.close(theirs[1])
        self.requests, self.answers = ours[1], os.fdopen(theirs[0])
        self.answer()

    def answer(self):
        line = self.answers.readline()
        if not line:
            raise Refused("the keeper of the machine ended")
        value, why = json.loads(line)
        if why:
            raise Refused(why)
        return value

    def ask(self, name, *args):
        os.write(self.requests, (json.dumps([name, *args]) + "\n").encode())
        return self.answer()

    @contextlib.contextmanager
    def changes(self):
        """What is asked for within is undone at its end."""
        mark = self.ask("mark")
        try:
            yield self
        finally:
            self.ask("back", mark)

    def close(self):
        os.close(self.requests)
        _, status = os.waitpid(self.pid, 0)
        return status == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.close():
            raise Refused("the machine could not be put back as it was")


def zram_pool(device):
    """Memory that a zram device takes, in bytes."""
    return int(read("/sys/block/%s/mm_stat" % os.path.basename(device)).split()[2])


def vmstat(name):
    for line in read("/proc/vmstat").splitlines():
        key, value = line.split()
        if key == name:
            return int(value)
    return 0


def thread_cpu_ns(pid):
    """CPU time of a process by the names of its threads; those that ended are not counted."""
    out = {}
    for task in glob.glob("/proc/%d/task/*" % pid):
        with contextlib.suppress(OSError):
            name = read(task + "/comm")
            out[name] = out.get(name, 0) + int(read(task + "/schedstat").split()[0])
    return out
