#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The docs are what the declarations say, and mandoc finds nothing wrong in the manual."""
import glob
import os
import shutil
import subprocess
import tempfile

from harness import BUILD, SOURCE, main


def test_docs_are_current(binary):
    r = subprocess.run([os.path.join(SOURCE, "scripts", "gen-docs"), "--check",
                        "--ebbctl", os.path.join(BUILD, "ebbctl"), "--ebbd", binary],
                       capture_output=True, text=True, timeout=60, check=False)
    assert r.returncode == 0, r.stdout + r.stderr


def test_manual_is_clean(binary):
    if not shutil.which("mandoc"):
        raise AssertionError("mandoc is missing")
    pages = sorted(glob.glob(os.path.join(SOURCE, "docs", "man", "*.[1-8]")))
    assert {os.path.basename(p) for p in pages} >= {"ebbctl.1", "ebbd.8", "ebbd.conf.5"}
    for page in pages:
        r = subprocess.run(["mandoc", "-Tlint", page], capture_output=True, text=True, timeout=60,
                           check=False)
        # Whether the pages that are referred to are installed is not the page's business.
        said = [x for x in r.stdout.splitlines() if "referenced manual not found" not in x]
        assert not said and not r.stderr, said


def test_sample_is_a_valid_configuration(binary):
    """Each line with its comment sign taken off is accepted, once it has a value."""
    with open(os.path.join(SOURCE, "etc", "ebbd.conf")) as f:
        lines = [x[1:] for x in f.read().splitlines() if x.startswith("#") and not
                 x.startswith("# ")]
    sections = "\n".join(lines[next(i for i, x in enumerate(lines) if x.startswith("[")):])
    with tempfile.TemporaryDirectory() as folder:
        conf = os.path.join(folder, "conf")
        # A group that does not exist is found out last, after the whole file was understood.
        with open(conf, "w") as f:
            f.write("socket-group = no-such-group\n" + sections)
        r = subprocess.run([binary, "--config", conf, "--runtime-dir", folder + "/run"],
                           capture_output=True, text=True, timeout=20, check=False)
        assert r.returncode == 1 and "no group" in r.stderr, r.stderr


main(globals())
