#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""scripts/check counts what ctest reports: tried on a small project with tests of every outcome."""
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import tempfile
import unittest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(small LANGUAGES NONE)
enable_testing()
function(one name code)
  add_test(NAME ${name} COMMAND /bin/sh -c "printf '%b' '${ARGN}'; exit ${code}")
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 LABELS small)
endfunction()
one(passes 0 fine)
one(passes_too 0 "skipped is only a word here")
one(fails 3 "first line\\\\nthe telling line\\\\n")
one(skips 77 "looking\\\\nskipped: no such device here, runs in the lab\\\\nbye\\\\n")
one(skips_nowhere 77 "skipped: not today\\\\n")
add_test(NAME slow COMMAND /bin/sleep 60)
set_tests_properties(slow PROPERTIES TIMEOUT 1 LABELS small)
add_test(NAME missing COMMAND /nonexistent/program)
set_tests_properties(missing PROPERTIES LABELS small)
add_test(NAME unlabelled COMMAND /bin/false)
"""


def load_check():
    sys.dont_write_bytecode = True
    path = os.path.join(TOP, "scripts", "check")
    loader = importlib.machinery.SourceFileLoader("check", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("check", loader))
    loader.exec_module(module)
    return module


class CheckTest(unittest.TestCase):
    def setUp(self):
        self.check = load_check()
        self.folder = tempfile.TemporaryDirectory(prefix="ebb-check.")
        self.addCleanup(self.folder.cleanup)
        self.check.TOP = self.folder.name

    def run_project(self, selection):
        with open(os.path.join(self.folder.name, "CMakeLists.txt"), "w") as project:
            project.write(PROJECT)
        subprocess.run(["cmake", "-G", "Ninja", "-Wno-dev", "-S", self.folder.name,
                        "-B", self.folder.name + "/out"], check=True, stdout=subprocess.DEVNULL)
        outcome = self.check.Outcome()
        self.check.ctest(outcome, "out", "ctest", selection)
        return outcome

    def test_reason_is_the_line_that_mentions_it(self):
        self.assertEqual(self.check.skip_reason("a\nskipped: b, runs there\nc\n"),
                         "skipped: b, runs there")
        self.assertEqual(self.check.skip_reason("a\nlast\n\n"), "last")
        self.assertEqual(self.check.skip_reason(""), "no reason given")

    def test_every_outcome_is_counted_once(self):
        outcome = self.run_project(["-L", "small"])
        self.assertEqual(outcome.passed, 2)
        self.assertEqual(outcome.skips,
                         [("out: skips", "skipped: no such device here, runs in the lab")])
        self.assertEqual(sorted(name for name, _ in outcome.failures),
                         ["out: fails", "out: missing", "out: skips_nowhere", "out: slow"])

    def test_the_output_of_a_failure_is_shown(self):
        outcome = self.run_project(["-R", "fails"])
        self.assertIn("the telling line", dict(outcome.failures)["out: fails"])

    def test_an_empty_selection_is_no_failure(self):
        outcome = self.run_project(["-L", "nothing-has-this-label"])
        self.assertEqual((outcome.passed, outcome.failures, outcome.skips), (0, [], []))

    def test_ctest_itself_failing_is_a_failure(self):
        outcome = self.check.Outcome()
        self.check.ctest(outcome, "no-such-build", "ctest", [])
        self.assertEqual(len(outcome.failures), 1)

    def test_last_line_and_status(self):
        for stages, status, line in ((["good"], 0, "2 passed, 0 failed, 0 skipped"),
                                     (["good", "bad"], 1, "2 passed, 1 failed, 0 skipped")):
            program = ("import sys; sys.path.insert(0, %r); import test_check; "
                       "check = test_check.load_check(); check.STAGES = %r; "
                       "check.stage_good = test_check.good; check.stage_bad = test_check.bad; "
                       "sys.exit(check.main())" % (os.path.dirname(os.path.realpath(__file__)),
                                                   stages))
            done = subprocess.run([sys.executable, "-B", "-c", program], stdout=subprocess.PIPE,
                                  text=True, check=False)
            self.assertEqual(done.returncode, status)
            self.assertEqual(done.stdout.rstrip("\n").split("\n")[-1], line)


def good(outcome):
    """passes"""
    outcome.passed += 2


def bad(outcome):
    """fails"""
    outcome.failures.append(("it", "why"))


if __name__ == "__main__":
    unittest.main()
