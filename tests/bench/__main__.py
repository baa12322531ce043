"""python -m tests.bench [--quick] [--floor] [--reps N] [--tree FOLDER] [--work FOLDER] [--json]

Makes a volume of default settings over six directories in FOLDER (default: a fresh temporary folder), mounts it, and
measures it beside a directory of the same file system, step by step: reads and writes, fsyncs, small files, trees, git
and SQLite, publishing in the background all the while; then how fast what is written is published, and how fast it is
read back from the providers alone, with no local copy.  Prints one table of medians, ratios included.  With `--floor`,
a third column: a file system in memory behind the same FUSE loop (tests.bench.floor).

    python -m tests.bench compare OLD NEW     two commits, or two files that --json printed: see tests.bench.compare
    python -m tests.bench peers [PEER...]     beside other file systems: see tests.bench.peers
    python -m tests.bench.stalls              the event loop's stalls under a full write load
    python -m tests.bench.counts              the FUSE requests that each system call costs

Wants root, to drop caches, and 8 GiB of disk.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.bench import compare, peers
from tests.bench.cold import drop_caches
from tests.bench.figures import FULL, QUICK, Scale
from tests.bench.run import measure
from tests.bench.table import Table


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def scale(given: argparse.Namespace) -> Scale:
    chosen = QUICK if given.quick else FULL
    return replace(chosen, source=given.tree) if given.tree else chosen


def repeat(given: argparse.Namespace, once: Callable[[Path, Scale, Table], None]) -> Table:
    """`once` in a fresh folder for each repetition."""
    table = Table()
    for _ in range(given.reps):
        work = Path(tempfile.mkdtemp(prefix="icnfs-bench-", dir=given.work))
        try:
            once(work, scale(given), table)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return table


def figures(given: argparse.Namespace) -> tuple[Table, list[str], list[tuple[str, str]]]:
    table = repeat(given, lambda *each: measure(*each, say, with_floor=given.floor))
    columns, ratios = ["icnfs", "local"], [("icnfs", "local")]
    if given.floor:
        columns.append("floor")
        ratios.append(("icnfs", "floor"))
    return table, columns, ratios


def compared(given: argparse.Namespace) -> tuple[Table, list[str], list[tuple[str, str]]]:
    if Path(given.old).is_file() and Path(given.new).is_file():
        table = compare.saved(Path(given.old), Path(given.new))
    else:
        work = Path(tempfile.mkdtemp(prefix="icnfs-bench-", dir=given.work))
        try:
            table = compare.commits(given.old, given.new, work, scale(given), given.reps, say)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return table, ["old", "new"], [("new", "old")]


def among_peers(given: argparse.Namespace) -> tuple[Table, list[str], list[tuple[str, str]]]:
    names = peers.available(given.peer or list(peers.PEERS), say)
    table = repeat(given, lambda *each: peers.measure(*each, names, say))
    reference = "local" if "local" in names else names[0]
    ratios = [("icnfs", reference)] if "icnfs" in names and reference != "icnfs" else []
    return table, peers.columns(names), ratios


def main() -> int:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quick", action="store_true", help="a tenth of the work")
    common.add_argument("--reps", type=int, default=1, help="repetitions; medians are printed")
    common.add_argument("--tree", type=Path, help="the folder to be unpacked (default: this Python's library)")
    common.add_argument("--work", type=Path, help="where to work")
    common.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__, parents=[common])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--floor", action="store_true", help="measure an empty file system behind the same loop too")
    parser.set_defaults(run=figures)
    verbs = {"compare": compared, "peers": among_peers}
    verb = sys.argv[1] if sys.argv[1:2] and sys.argv[1] in verbs else None
    if verb is not None:
        parser = argparse.ArgumentParser(prog=f"python -m tests.bench {verb}", parents=[common])
        parser.set_defaults(run=verbs[verb])
        if verb == "compare":
            parser.add_argument("old", help="a commit, a folder, or a file that --json printed")
            parser.add_argument("new", help="likewise")
        else:
            parser.add_argument("peer", nargs="*", help=f"of {', '.join(peers.PEERS)} (default: all)")
    given = parser.parse_args(sys.argv[2:] if verb else sys.argv[1:])
    table, columns, ratios = given.run(given)
    print(table.to_json() if given.json else table.markdown(columns, ratios))
    if not drop_caches():
        say("(not root: the kernel's caches could not be dropped before reads)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
