# SPDX-License-Identifier: BSD-3-Clause
"""Progress, on a terminal or in a log.

On a terminal the current phase is one line that is drawn again in place, with a line of live
figures under it. Without one, a plain line is printed when a phase begins and ends and every few
seconds between. A thread draws, so that the display goes on whatever the phase waits for.
"""
import shutil
import sys
import threading
import time

BAR = 24
TERMINAL_PERIOD = 0.2 # seconds between two drawings
LOG_PERIOD = 5.0      # seconds between two lines of a log


def duration(seconds):
    return "%d:%02d" % divmod(int(seconds), 60)


class Display:
    def __init__(self, phases, out=sys.stdout):
        self.out, self.phases = out, phases
        self.tty = out.isatty()
        self.number, self.title, self.begun = 0, None, 0.0
        self.live = lambda: "" # the line of live figures, set by the owner
        self.share = None
        self.lines = 0 # drawn and still on the terminal
        self.lock = threading.Lock() # over all of the above and the output
        self.closed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def phase(self, title):
        with self.lock:
            self.number += 1
            self.title, self.begun, self.share = title, time.monotonic(), None
            if self.tty:
                self._draw()
            else:
                self._plain(self._head())

    def progress(self, done, total):
        """How far the phase is, in any unit. Cheap: call it as often as it suits."""
        self.share = min(1.0, done / total) if total else None

    def end(self, result=""):
        """The phase is over; what came of it."""
        with self.lock:
            self._erase()
            took = duration(time.monotonic() - self.begun)
            self._plain("%-50s %s  %s" % (self._head(), took, result))
            self.title = None

    def close(self):
        """Stops drawing; a phase that did not come to its end is said to be stopped."""
        self.closed.set()
        with self.lock:
            if self.title is not None:
                self._erase()
                self._plain("%-50s stopped" % self._head())
                self.title = None

    def _run(self):
        while not self.closed.wait(TERMINAL_PERIOD if self.tty else LOG_PERIOD):
            with self.lock:
                if self.title is not None:
                    self._draw()

    def _head(self):
        return "[%d/%d] %s" % (self.number, self.phases, self.title)

    def _draw(self):
        """The phase as it stands; the lock is held."""
        took, share = duration(time.monotonic() - self.begun), self.share
        percent = "" if share is None else "%3d %%  " % (share * 100)
        if not self.tty:
            self._plain("      %s%s  %s" % (percent, took, self.live()))
            return
        bar = ""
        if share is not None:
            full = int(share * BAR)
            bar = "#" * full + "." * (BAR - full) + " "
        width = shutil.get_terminal_size().columns - 1
        lines = ["%-50s %s%s%s" % (self._head(), bar, percent, took), "      " + self.live()]
        self._erase()
        self.out.write("\n".join(line[:width] for line in lines))
        self.out.flush()
        self.lines = len(lines)

    def _erase(self):
        if self.lines:
            self.out.write("\r\033[%dA\033[J" % (self.lines - 1))
            self.lines = 0

    def _plain(self, text):
        print(text.rstrip(), file=self.out, flush=True)
