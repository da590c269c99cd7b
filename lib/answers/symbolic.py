"""math_verify in a process of its own, under a limit that holds anywhere.

math_verify's own limits are alarms, which only a main thread can set and which a long step of
big-number arithmetic does not heed. So one child process does its work: started when the first
pair needs it, asked from any thread, stopped by the kernel after ``CPU_SECONDS`` of its own
computing (a busy machine does not change a verdict) and started afresh for the next pair.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import subprocess
import sys
import threading
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

CPU_SECONDS = 3.0  # for one pair, once math_verify is imported
START_SECONDS = 300.0  # for the import, which counts towards nothing
WALL_SECONDS = 120.0  # for one pair: only a machine that stands still takes longer
MEMORY_BYTES = 4 << 30

LONGEST_SIDE = 300  # characters of an answer that is worth a parser's time
DEEPEST_SIDE = 8  # brackets within brackets
# What would only run into the limit: towers of powers, huge exponents, factorials and numbers.
_HUGE = re.compile(
    r"(?:\^|\*\*)\s?[({]{0,2}\s?\d+\s?(?:\^|\*\*)|(?:\^|\*\*)\s?[({]{0,2}\d{4}"
    r"|\d{4}\)?\s?!|!\s?\)?!|\d{200}"
)
_CODE = re.compile(r"__|[\"'`]\w|\blambda\b|\bimport\b")


class Worker:
    """The child process and the only way to talk to it."""

    def __init__(self) -> None:
        self.pairs = 0  # how many it was asked, which tests count
        self._after_fork()

    def _after_fork(self) -> None:
        """The process is the parent's, so a forked child starts its own."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, mine: str, gold: str) -> bool | None:
        """math_verify's verdict; None where it did not come within the limit."""
        with self._lock:
            self.pairs += 1
            if self._process is None or self._process.poll() is not None:
                self._start()
            reply = b""
            try:
                self._process.stdin.write(json.dumps([mine, gold]).encode() + b"\n")
                self._process.stdin.flush()
                reply = self._read(WALL_SECONDS)
            except OSError:
                pass  # it was killed after the last look at it
            finally:
                if not reply:  # its time was up, or a Ctrl-C would leave an old reply in the pipe
                    self.stop()
            return json.loads(reply) if reply else None

    def stop(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def _start(self) -> None:
        self.stop()
        root = str(Path(__file__).resolve().parents[2])
        program = (
            f"import sys; sys.path.insert(0, {root!r}); import lib.answers.symbolic as s; s.serve()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the notebook is not for it
        )
        if self._read(START_SECONDS) != b"ready\n":
            self.stop()
            raise RuntimeError("math_verify does not start; is it installed in this environment?")

    def _read(self, seconds: float) -> bytes:
        """The next line of the child, b"" where it ended or took too long."""
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        return self._process.stdout.readline() if poll.poll(seconds * 1000) else b""


WORKER = Worker()
atexit.register(WORKER.stop)
os.register_at_fork(after_in_child=WORKER._after_fork)


@lru_cache(maxsize=8192)
def symbolically_equal(mine: str, gold: str) -> bool | None:
    """Whether math_verify holds two answers for equal; None where that takes too long. RuntimeError
    if it cannot be started at all."""
    if not _is_formula(mine) or not _is_formula(gold):
        return False
    return None if _HUGE.search(mine) or _HUGE.search(gold) else WORKER.ask(mine, gold)


def _is_formula(text: str) -> bool:
    """Whether a text is short, no code, and its brackets close and nest no deeper than usual."""
    if len(text) > LONGEST_SIDE or _CODE.search(text):
        return False
    depths = [0, *accumulate((c in "([{") - (c in ")]}") for c in text)]
    return depths[-1] == 0 and max(depths) <= DEEPEST_SIDE


def serve() -> None:
    """The child's side: a line [mine, gold] in, a line true or false out, until the parent ends."""
    import resource
    import signal

    from math_verify import LatexExtractionConfig, parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    config = [LatexExtractionConfig()]  # its parser of plain text goes through eval

    def verdict(mine: str, gold: str) -> bool:
        answers = [parse(f"${a}$", config, parsing_timeout=None) for a in (gold, mine)]
        return bool(all(answers)) and verify(*answers, timeout_seconds=None)

    parent, out = os.getppid(), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    verdict("x", "y")  # imports what is imported late
    print("ready", file=out, flush=True)
    while os.getppid() == parent:
        if not select.select([sys.stdin], [], [], 5.0)[0]:
            continue
        line = sys.stdin.buffer.readline()
        if not line:
            break
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
        try:
            reply = verdict(*json.loads(line))
        except Exception:
            reply = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=out, flush=True)
