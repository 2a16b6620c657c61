# SPDX-License-Identifier: BSD-3-Clause
"""The made-up workloads of bench/compare: compare_load in one process or several."""
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile

from machine import Refused

PATTERNS = ("uniform", "zipf", "hotspot", "sequential", "strided", "phase", "pmbench", "gups",
            "keyvalue")
CONTENTS = {
    "heap": "made up, like a heap: lz4 packs it to about half",
    "random": "does not compress",
    "zero": "zero but for a word a page",
    "binary": "pages of a program",
    "text": "pages of text",
}


def content_argument(name, folder):
    """What compare_load takes for it: real contents are files."""
    if name == "binary":
        return os.path.realpath(sys.executable)
    if name != "text":
        return name
    path = os.path.join(folder, "text")
    if not os.path.exists(path):
        with open(path, "wb") as out:
            for source in sorted(glob.glob("/usr/share/common-licenses/*")
                                 + glob.glob("/usr/lib/python3*/*.py"))[:400]:
                with open(source, "rb") as f:
                    out.write(f.read())
    return path


class Load:
    """n programs with size bytes of memory together, in a cell."""

    own_memory = False

    def __init__(self, cell, size, kind, content, folder, n=1):
        argv = [cell.build + "/bench/compare/compare_load", str(size // n), kind,
                content_argument(content, folder)]
        self.programs, self.size = [], size
        for _ in range(n):
            self.programs.append(cell.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            text=True))
            self.answer(self.programs[-1])

    @staticmethod
    def answer(program):
        line = program.stdout.readline()
        if not line:
            raise Refused("the program ended (status %s)" % program.wait())
        return json.loads(line)

    def ask(self, line):
        for p in self.programs:
            p.stdin.write(line + "\n")
            p.stdin.flush()
        return [self.answer(p) for p in self.programs]

    def fill(self):
        self.ask("fill")

    def stir(self):
        self.run("uniform", 2, 0, 0.1, 0.7)

    def wrong(self):
        return sum(a["wrong"] for a in self.ask("check"))

    def run(self, workload, threads, write, warm, seconds):
        answers = self.ask("run %s %d %d %g %g" % (workload, threads, write, warm, seconds))
        both = {key: sum(a[key] for a in answers) for key in (
            "accesses", "accesses_s", "faults_s", "wrong", "user_s", "sys_s", "major", "minor")}
        for q in ("p50", "p99", "p999", "max", "mean"):
            values = [a["fault"][q + "_us"] for a in answers if a["fault"]["count"]]
            both["fault_%s_us" % q] = statistics.median(values) if values else None
        values = [a["access"]["p99_us"] for a in answers]
        both["access_p99_us"] = statistics.median(values)
        both["cdf"] = answers[0]["fault"]["cdf"] if answers[0]["fault"]["count"] else []
        return both


def temporary_folder(where):
    return tempfile.TemporaryDirectory(prefix="ebb-compare-", dir=where)
