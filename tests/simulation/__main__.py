"""The simulation as a command.

python -m tests.simulation --seeds 1000 [--from N] [--actions A]
python -m tests.simulation --replay SEED [--verbose]
"""

from __future__ import annotations

import argparse
import gc
import sys
import time

from tests.simulation.run import ACTIONS, Result, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100, metavar="COUNT", help="how many seeds (default 100)")
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED", help="the first one (default 0)")
    parser.add_argument("--actions", type=int, default=ACTIONS, help=f"actions of each seed (default {ACTIONS})")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this one and print its schedule")
    parser.add_argument("--verbose", action="store_true", help="with --replay: every request, and the log")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first seed that fails")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay, options.actions, options.verbose)
    return many(options.first, options.seeds, options.actions, options.keep_going)


def replay(seed: int, actions: int, verbose: bool) -> int:
    result = run_seed(seed, actions=actions, verbose=verbose)
    if not verbose:
        print("\n".join(line for line in result.trace if line[11:13] in ("--", "  ", "!!") and "landed" not in line))
    print(f"seed {seed}: {result.broken or 'every promise was kept'}")
    print(f"trace {result.digest}, {len(result.trace)} events, {result.seconds:.1f} virtual seconds")
    return 1 if result.broken else 0


def many(first: int, count: int, actions: int, keep_going: bool) -> int:
    begun, failed = time.monotonic(), list[Result]()
    events, seconds = 0, 0.0
    done = 0
    for seed in range(first, first + count):
        result = run_seed(seed, actions=actions)
        gc.collect()  # what crashed lives left open: files, of which there may be so many
        done += 1
        events += len(result.trace)
        seconds += result.seconds
        if result.broken:
            failed.append(result)
            _clear()
            print(f"seed {seed}: {result.broken}")
            print(f"  replay it: python -m tests.simulation --replay {seed} --actions {actions} --verbose")
            if not keep_going:
                break
        if sys.stderr.isatty() or done % 100 == 0:
            print(f"\r{done} of {count} seeds, {len(failed)} failed", end="", file=sys.stderr, flush=True)
    _clear()
    took = time.monotonic() - begun
    print(
        f"{done} seeds, {events} events, {seconds / 3600:.1f} virtual hours in {took:.0f} s: "
        + (f"{len(failed)} FAILED" if failed else "every promise was kept")
    )
    return 1 if failed else 0


def _clear() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
