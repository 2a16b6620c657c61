# SPDX-License-Identifier: BSD-3-Clause
"""What the guest tests share: expectations, exit statuses, and the reasons for skipping."""
import shutil
import sys
import traceback

from .guest import QEMU
from .process import Failure

SKIPPED = 77


class Skip(Exception):
    """Why the test cannot run here, and where else it runs."""


def expect(condition, what):
    if not condition:
        raise Failure("expected: " + what)


def require_programs(*programs):
    for p in programs:
        if shutil.which(p) is None and not p.startswith("/"):
            raise Skip("no %s here; runs where scripts/deps install was done" % p)


def main(run):
    """Runs a test and returns its exit status."""
    try:
        require_programs(QEMU, "apt-get", "dpkg-deb")
        run()
    except Skip as e:
        print("skipped: %s" % e)
        return SKIPPED
    except KeyboardInterrupt:
        return 130
    except (Failure, OSError) as e:
        traceback.print_exc()
        print("FAILED: %s" % e, file=sys.stderr)
        return 1
    print("ok")
    return 0
