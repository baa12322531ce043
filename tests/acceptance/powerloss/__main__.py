"""python -m tests.acceptance.powerloss [--states N] [--seed S] [--requests R] [--work FOLDER]

Records one run and judges N crash states of it; prints a line for each fault and the totals; exit status 1 on a fault.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.acceptance.powerloss.trial import Verdict, run


def main() -> int:
    parser = argparse.ArgumentParser(description="power loss: crash states of a recorded run")
    parser.add_argument("--states", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--work", type=Path, help="where to put the states (default: a fresh folder in /dev/shm)")
    given = parser.parse_args()

    def say(verdict: Verdict) -> None:
        if verdict.fault:
            print(f"{verdict.crash}: {verdict.fault}", flush=True)

    with tempfile.TemporaryDirectory(prefix="icnfs-powerloss-", dir=given.work or "/dev/shm") as work:
        verdicts = run(Path(work), given.states, given.seed, given.requests, say)
    kinds = Counter(verdict.crash.loss.value for verdict in verdicts)
    faults = sum(bool(verdict.fault) for verdict in verdicts)
    pending = sum(verdict.pending for verdict in verdicts) / len(verdicts)
    print(f"{len(verdicts)} states ({dict(kinds)}), {pending:.1f} pending writes each, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
