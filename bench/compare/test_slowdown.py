#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The arithmetic of compare --equal-slowdown."""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import slowdown  # noqa: E402


def step(ratio, total, error=0.01):
    s = slowdown.Step.__new__(slowdown.Step)
    s.ratio, s.total, s.error = ratio, total, error
    return s


class Steps(unittest.TestCase):
    def test_what_falls_stays(self):
        self.assertEqual(slowdown.falling([step(1, 9), step(0.9, 8), step(0.5, 7)]), [1, 0.9, 0.5])

    def test_what_rises_is_levelled_by_weight(self):
        line = slowdown.falling([step(1, 9), step(0.8, 8, 0.01), step(0.9, 7, 0.02), step(0.5, 6)])
        self.assertAlmostEqual(line[1], (4 * 0.8 + 0.9) / 5)
        self.assertEqual((line[0], line[1], line[3]), (1, line[2], 0.5))

    def test_needed_where_the_bound_is_crossed(self):
        self.assertAlmostEqual(
            slowdown.needed([step(1, 90), step(0.97, 80), step(0.91, 70)], 0.95), 80 - 10 / 3)

    def test_too_slow_from_the_start(self):
        self.assertIsNone(slowdown.needed([step(0.9, 90), step(0.8, 80)], 0.95))

    def test_never_too_slow(self):
        self.assertEqual(slowdown.needed([step(1, 90), step(0.99, 80)], 0.95), 80)


class Ratios(unittest.TestCase):
    def test_a_run_that_was_held_up_does_not_count(self):
        pairs = [(95, 100)] * 10 + [(10, 100), (95, 20)] * 2
        self.assertAlmostEqual(slowdown.ratio_of(pairs, whole=False), 0.95)

    def test_all_of_the_phases_count(self):
        self.assertAlmostEqual(slowdown.ratio_of([(100, 100), (20, 100)], whole=True), 0.6)


class Summary(unittest.TestCase):
    @staticmethod
    def found(side, n, saved):
        return {"workload": "w", "side": side, "round": n, "saved_bytes": saved,
                "unlimited_bytes": 100, "full_ratio": 1}

    def test_best_first_and_ratio_by_round(self):
        rows = slowdown.summary([self.found("zram", 0, 10), self.found("ebb:a", 0, 8),
                                 self.found("ebb:b", 0, 20), self.found("zram", 1, 20),
                                 self.found("ebb:b", 1, 30)], "zram")
        self.assertEqual([r["side"] for r in rows], ["ebb:b", "zram", "ebb:a"])
        self.assertEqual((rows[0]["ratio"]["min"], rows[0]["ratio"]["max"]), (1.5, 2))
        self.assertIsNone(rows[1]["ratio"])

    def test_nothing_saved_there_is_no_ratio(self):
        rows = slowdown.summary([self.found("zram", 0, 0), self.found("ebb:a", 0, 8)], "zram")
        self.assertIsNone(rows[0]["ratio"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
