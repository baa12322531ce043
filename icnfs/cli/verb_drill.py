"""`icnfs drill`: proves on the live volume that it would survive without some of its providers; changes nothing."""

from __future__ import annotations

import secrets
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

import click

from icnfs.cli import asking
from icnfs.cli.output import Show, age, json_option, moment, print_facts, print_json, rate, say, size, watching
from icnfs.cli.running import run
from icnfs.cli.taking import TEXT
from icnfs.config import VolumeConfig, load, state_dir
from icnfs.control.protocol import Progress
from icnfs.errors import DamagedError, InterruptedByUserError, TooFewProvidersError, UsageError
from icnfs.volume.drill import Plan, Report, drill

LINES_MOST: Final = 20
"""Lost files, losing sets and wrong shares that are listed, of each; all are with --json."""

SAMPLE: Final = 100
"""Files read unless told otherwise."""


@click.command("drill")
@click.argument("name", metavar="NAME")
@click.option("--without", multiple=True, type=TEXT, metavar="PROVIDER,...", help="Take these providers to be lost.")
@click.option(
    "--country", multiple=True, metavar="XX", help="And all whose site or ultimate parent is in this country."
)
@click.option("--owner", multiple=True, metavar="OWNER", help="And all of this owner.")
@click.option("--any", "any_of", type=click.IntRange(1), metavar="M", help="Try every M of the others besides.")
@click.option("--sample", type=click.IntRange(0), metavar="N", help=f"Read N files [default: {SAMPLE}].")
@click.option("--all", "everything", is_flag=True, help="Read every file, whole.")
@click.option("--seed", type=click.IntRange(0, 2**32), help="Draw the sample that this number drew before.")
@asking.secret_options
@json_option
def verb(
    name: str,
    without: tuple[str, ...],
    country: tuple[str, ...],
    owner: tuple[str, ...],
    any_of: int | None,
    sample: int | None,
    everything: bool,
    seed: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Recover the volume NAME into a scratch place from what would be left without some of its providers.

    Nothing is written at any provider, and a mount goes on. Exits with 0 where nothing would be lost.
    """
    if everything and sample is not None:
        raise UsageError("--all reads every file; leave out --sample")
    config = load(name)
    plan = Plan(
        chosen(config, without, country, owner),
        any_of or 0,
        None if everything else SAMPLE if sample is None else sample,
        secrets.randbelow(2**32) if seed is None else seed,
    )
    offered = asking.opening(config, asking.given(given))
    try:
        with _watching(name) as show:
            work = partial(
                drill, config, state_dir(name), offered, plan, progress=lambda done, whole: show(Progress(done, whole))
            )
            report = run(work)
    except KeyboardInterrupt:
        raise InterruptedByUserError("interrupted; the drill left nothing behind, call it again") from None
    if as_json:
        print_json({"name": name, "lossless": report.is_lossless, **vars(report)})
    else:
        _tell(report)
    _judge(name, report)


def _watching(name: str) -> AbstractContextManager[Show]:
    """A bar on a terminal; elsewhere nothing, so that cron has nothing to mail when all is well."""
    return watching(f"Drill of {name}") if sys.stderr.isatty() else nullcontext(lambda _: None)


def chosen(
    config: VolumeConfig, without: tuple[str, ...], countries: tuple[str, ...], owners: tuple[str, ...]
) -> frozenset[str]:
    """The providers that options name; UsageError for what is none of the volume's."""
    lost: set[str] = set()
    for provider in (each.strip() for some in without for each in some.split(",")):
        if provider not in config.providers:
            there_are = ", ".join(config.providers)
            raise UsageError(f"--without {provider[:40] or repr(provider)}: no such provider; there are {there_are}")
        lost.add(provider)
    for code in countries:
        there = {n for n, f in config.providers.items() if code.upper() in (f.country, f.parent_country)}
        if not there:
            known = sorted({c for f in config.providers.values() for c in (f.country, f.parent_country)})
            raise UsageError(f"--country {code[:40]}: no provider of the volume is there; there are {', '.join(known)}")
        lost |= there
    for owner in owners:
        theirs = {n for n, f in config.providers.items() if f.owner == owner}
        if not theirs:
            known = sorted({f.owner for f in config.providers.values()})
            raise UsageError(f"--owner {owner[:80]}: no provider of the volume is theirs; there are {', '.join(known)}")
        lost |= theirs
    return frozenset(lost)


def _judge(name: str, report: Report) -> None:
    """End as cron is to see it."""
    if report.failure:
        raise TooFewProvidersError(f"without {', '.join(report.without)} volume {name} would be lost: {report.failure}")
    if report.lost_files:
        raise DamagedError(f"without {_names(report)} {len(report.lost_files)} files of volume {name} would be lost")
    if not report.is_lossless:
        raise DamagedError(
            f"without {_names(report)} {report.lost_segments} segments of volume {name} would be lost; "
            "no file of the newest tree needs them"
        )


def _names(report: Report) -> str:
    return ", ".join(report.without) or "any"


def _tell(report: Report) -> None:
    facts = [("without", ", ".join(report.without) or "nobody")]
    if report.trials:
        losing = [trial for trial in report.trials if trial.failure or trial.lost_segments]
        facts.append(("sets", f"{len(report.trials)} tried, {len(losing)} of them would lose something"))
    facts += [
        ("head", f"{report.epoch}-{report.sequence}, as of {moment(report.time_ns)}"),
        ("tree", f"{report.files} files, {size(report.bytes_used)}"),
    ]
    if not report.failure:
        facts += _found(report)
    print_facts(facts)
    _list("away", [f"{name}: {why}" for name, why in report.away.items()])
    _list("losing set", [_trial(t.without, t.failure, t.lost_segments) for t in report.trials])
    _list("lost", [f"{file.path or '(a file without a name)'}: {file.why}" for file in report.lost_files])
    _list("wrong", list(report.wrong_shares))


def _found(report: Report) -> list[tuple[str, str]]:
    read, lost = report.read_bytes, len(report.lost_files)
    pace = rate(read / report.read_seconds) if report.read_seconds else "-"
    back, whole = report.whole_read_seconds, report.whole_recovery_seconds
    return [
        ("lost", "nothing" if report.is_lossless else f"{lost} files, {report.lost_segments} segments"),
        ("segments", f"{report.segments}, {report.bare_segments} of them with no owner to spare"),
        ("metadata", f"found in {_span(report.find_seconds)}, loaded in {_span(report.load_seconds)}"),
        ("records", size(report.record_bytes)),
        ("read", f"{report.read_files} files, {size(read)} in {_span(report.read_seconds)} ({pace})"),
        ("looked at", f"{report.looks} shares, {len(report.wrong_shares)} of them wrong"),
        ("reading all", f"about {_span(back)}, by the rate of each class of size" if back is not None else "not known"),
        ("recovery", f"about {_span(whole)} in all" if whole is not None else "not known"),
        ("fetched", size(report.fetched_bytes)),
        ("seed", str(report.seed)),
    ]


def _trial(without: tuple[str, ...], failure: str, lost: int) -> str:
    return f"{', '.join(without)}: {failure or f'{lost} segments'}" if failure or lost else ""


def _list(what: str, lines: list[str]) -> None:
    """So many lines on stdout; how many more there are on stderr."""
    lines = [line for line in lines if line]
    print_facts([(what, line) for line in lines[:LINES_MOST]])
    if len(lines) > LINES_MOST:
        say(f"{what}: {len(lines) - LINES_MOST} more; --json lists all")


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else age(seconds)
