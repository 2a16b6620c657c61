# SPDX-License-Identifier: BSD-3-Clause
"""Real programs for bench/compare: none so far."""
APPS = ()


def one_side(_comparison, app, _row):
    raise NotImplementedError(app)
