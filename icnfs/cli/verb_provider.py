"""`icnfs provider`: the providers that a volume's TOML names.

They are asked by this process itself, with a mount beside it or none: nothing of the volume is read or changed.
"""

from __future__ import annotations

import dataclasses

import click
import trio

from icnfs.cli.output import json_option, print_json, print_rows
from icnfs.cli.running import run
from icnfs.config import load
from icnfs.errors import ProviderError, UsageError
from icnfs.limits import MIB
from icnfs.providers.open import ProviderSpec, open_provider
from icnfs.providers.trial import Report, try_out


@click.group("provider")
def verb() -> None:
    """Try out the providers that a volume's TOML names."""


@verb.command("test")
@click.argument("name", metavar="NAME")
@click.argument("providers", metavar="[PROVIDER]...", nargs=-1)
@json_option
def test(name: str, providers: tuple[str, ...], as_json: bool) -> None:
    """Store, read, list and delete one object of 4 MiB at each PROVIDER of volume NAME, or at all of them.

    Shows what each can do and how fast; the first thing that one cannot do ends with exit code 18.
    """
    config = load(name)
    for provider in providers:
        if provider not in config.providers:
            raise UsageError(
                f"{config.path} has no [provider.{provider[:40]}]; there are {', '.join(config.providers)}"
            )
    reports = run(lambda: _try_all([spec for spec in config.specs() if not providers or spec.name in providers]))
    if as_json:
        print_json([dataclasses.asdict(report) for report in reports])
    else:
        head = ("provider", "result", "latency", "write", "read", "conditional writes")
        print_rows(head, [_row(report) for report in reports])
    if failed := [report for report in reports if report.error]:
        others = f" ({len(failed) - 1} more of {len(reports)} fail)" if len(failed) > 1 else ""
        raise ProviderError(failed[0].provider, failed[0].error + others)


async def _try_all(specs: list[ProviderSpec]) -> list[Report]:
    """One after the other: each has the line to itself."""
    reports = []
    for spec in specs:
        provider = open_provider(spec)
        try:
            reports.append(await try_out(provider))
        finally:
            with trio.CancelScope(shield=True):
                await provider.close()
    return reports


def _row(report: Report) -> tuple[str, ...]:
    conditional = {None: "-", True: "yes", False: "no: two machines at once are told apart later"}
    return (
        report.provider,
        report.error or "ok",
        "-" if report.latency_s is None else f"{report.latency_s * 1000:.1f} ms",
        _rate(report.write_rate),
        _rate(report.read_rate),
        conditional[report.conditional_writes],
    )


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / MIB:.0f} MiB/s"
