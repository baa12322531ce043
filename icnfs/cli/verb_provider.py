"""`icnfs provider`: the providers that a volume's TOML names, from the first trial to the last farewell.

`test` and `add` ask providers by this process itself.  What a provider holds is in the sealed records alone: `drain`
and `remove` take the mount.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from functools import partial
from typing import Any, Final

import click
import trio

from icnfs.cli.changing import change
from icnfs.cli.output import json_option, print_facts, print_json, print_rows, rate, say, size, watching
from icnfs.cli.providing import Listed, check_there, gather, known, made_only_if_taken, report_row, spec_of, table_of
from icnfs.cli.running import run
from icnfs.cli.taking import Above, Named
from icnfs.cli.verb_status import provider_states
from icnfs.config import VolumeConfig, config_file, load, parse, runtime_dir
from icnfs.config.edit import editing, with_provider, with_value, without_provider
from icnfs.config.paths import NAME_PATTERN, check_volume_name
from icnfs.control.client import Mount
from icnfs.control.protocol import WAIT_MAX, HoldingsRequest, LeaveRequest, take_facts
from icnfs.errors import (
    ConfigError,
    ForeignProviderError,
    InterruptedByUserError,
    NotMountedError,
    ObjectMissingError,
    ProviderError,
    UsageError,
)
from icnfs.format import marker
from icnfs.providers.base import Provider
from icnfs.providers.open import ProviderSpec, open_provider
from icnfs.providers.trial import Report, try_out
from icnfs.volume.apart import check_directories
from icnfs.volume.leaving import LeaveResult
from icnfs.volume.standing import Holding

HEAD: Final = ("provider", "result", "latency", "write", "read", "conditional writes")
LIST_HEAD: Final = (
    *("provider", "place", "owner", "country", "parent", "EUR/TB"),
    *("state", "free", "shares", "up", "down", "note"),
)


@click.group("provider")
def verb() -> None:
    """Try out, add, list, drain and remove the providers of a volume."""


# --- test and add -------------------------------------------------------------------------------------------------


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
        known(config, provider)
    reports = run(lambda: _try_all([spec for spec in config.specs() if not providers or spec.name in providers]))
    if as_json:
        print_json([dataclasses.asdict(report) for report in reports])
    else:
        print_rows(HEAD, [report_row(report) for report in reports])
    if failed := [report for report in reports if report.error]:
        others = f" ({len(failed) - 1} more of {len(reports)} fail)" if len(failed) > 1 else ""
        raise ProviderError(failed[0].provider, failed[0].error + others)


async def _try_all(specs: list[ProviderSpec]) -> list[Report]:
    """One after the other: each has the line to itself."""
    return [await _try(spec) for spec in specs]


async def _try(spec: ProviderSpec, *, empty: bool = False) -> Report:
    """A report on the provider of `spec`; with `empty`, ForeignProviderError where strangers' objects are there."""
    provider = open_provider(spec)
    try:
        if empty:
            await _check_empty(provider)
        return await try_out(provider)
    finally:
        with trio.CancelScope(shield=True):
            await provider.close()


async def _check_empty(provider: Provider) -> None:
    """ForeignProviderError where objects lie there and no volume's mark: whose mark it is, only the mount can tell."""
    there = await provider.list("")
    try:
        await provider.size(marker.NAME)
    except ObjectMissingError:
        if there:
            what = f"its place holds {there[0]}, which no volume's mark goes with; use an empty place"
            raise ForeignProviderError(provider.name, what) from None


@verb.command("add")
@click.argument("name", metavar="NAME")
@click.argument("provider", metavar="PROVIDER")
@click.argument("url", metavar="URL")
@click.option("--owner", required=True, metavar="TEXT", help="Who runs it.")
@click.option("--country", required=True, metavar="CC", help="The country in which the bytes lie.")
@click.option("--parent-country", required=True, metavar="CC", help="The country of the owner's ultimate parent.")
@click.option("--site", metavar="TEXT", help="The data centre; the default is a site of its own.")
@click.option("--eur-per-tb-month", type=float, metavar="EUR", help="Price of storing 10^12 bytes for a month.")
@click.option("--eur-per-tb-read", type=float, metavar="EUR", help="Price of reading 10^12 bytes.")
@click.option("--credentials", type=Named(dir_okay=False, resolve_path=True), metavar="FILE", help="Its keys.")
@click.option("--profile", metavar="TEXT", help="Its keys, as a profile of ~/.aws/credentials.")
@click.option("--credential", metavar="TEXT", help="Its keys, as a systemd credential.")
@click.option("--upload", metavar="SIZE", help="Most bytes per second to it, such as 10MB.")
@click.option("--download", metavar="SIZE", help="Most bytes per second from it.")
@click.option("--no-test", is_flag=True, help="Take it as it is, without asking it anything.")
@json_option
def add(name: str, provider: str, url: str, no_test: bool, as_json: bool, **facts: Any) -> None:
    """Add PROVIDER at URL to volume NAME: try it out, write its table into the TOML, and have the mount use it.

    A directory is made where it is missing, as `init` makes it.  Without a mount the next one uses it.
    """
    check_volume_name(name)
    if NAME_PATTERN.fullmatch(provider) is None:
        form = "use 1 to 32 of a-z, 0-9 and -, with no dash in front"
        raise UsageError(f"PROVIDER: {provider[:40]!r} is no name for a provider; {form}")
    table = table_of({"url": url, **facts})
    edit = partial(with_provider, name=provider, values=table)
    path = config_file(name)
    with editing(name, path) as editor:
        config = parse(name, path, edit(editor.text).encode())
    run(lambda: check_directories(config))
    spec, report = spec_of(config, provider, create=True), None
    if no_test:
        check_there(spec)
    with made_only_if_taken(spec):
        if not no_test:
            report = run(lambda: _try(spec, empty=True))
            if report.error:
                raise ProviderError(provider, f"{report.error}; {path} is as it was")
        _, mount = change(name, edit, verify=partial(_check_ours, provider))
    if as_json:
        tried = None if report is None else dataclasses.asdict(report)
        print_json({"name": name, "provider": provider, "mounted": mount is not None, "trial": tried})
        return
    if report is not None:
        print_rows(HEAD, [report_row(report)])
    when = "from now on" if mount is not None else "from the next mount on"
    say(f"Provider {provider} is one of volume {name}'s {when}.")


def _check_ours(provider: str, mount: Mount) -> None:
    """ForeignProviderError where the mount found a place that it will not use."""
    state = provider_states(mount).get(provider)
    if state is not None and state.state == "foreign":
        raise ForeignProviderError(provider, f"{state.error}; the TOML is as it was")


# --- list ---------------------------------------------------------------------------------------------------------


@verb.command("list")
@click.argument("name", metavar="NAME")
@json_option
def list_providers(name: str, as_json: bool) -> None:
    """List the providers of volume NAME: who and where each is, and, beside a mount, what it does and holds."""
    found = gather(load(name), Mount(runtime_dir(), name))
    if as_json:
        print_json(found)
        return
    head = (
        "provider",
        "place",
        "owner",
        "country",
        "parent",
        "EUR/TB",
        "state",
        "free",
        "shares",
        "up",
        "down",
        "note",
    )
    print_rows(head, [_listed_row(each) for each in found])


def _listed_row(each: Listed) -> tuple[str, ...]:
    price = "-" if each.eur_per_tb_month is None else f"{each.eur_per_tb_month:g}"
    held = "-" if each.shares is None else f"{each.shares} ({size(each.share_bytes)})"
    return (
        each.name,
        each.place or "-",
        each.owner or "-",
        each.country or "-",
        each.parent_country or "-",
        price,
        each.state or "-",
        size(each.free_bytes),
        held,
        rate(each.rate_up),
        rate(each.rate_down),
        each.objection or each.error or "-",
    )


# --- drain and remove ---------------------------------------------------------------------------------------------


@verb.command("drain")
@click.argument("name", metavar="NAME")
@click.argument("provider", metavar="PROVIDER")
@click.option(
    "--deadline",
    type=Above(WAIT_MAX),
    metavar="SECONDS",
    help="Stop waiting after SECONDS; the drain goes on.  The default is to wait to the end.",
)
@click.option("--cancel", is_flag=True, help="Let PROVIDER hold shares again; what has moved stays where it is.")
@json_option
def drain(name: str, provider: str, deadline: float | None, cancel: bool, as_json: bool) -> None:
    """Move every share away from PROVIDER while volume NAME is in use, and delete all that lies there.

    The TOML remembers it: interrupted, it goes on in the mount and with the next one, and called again it follows on.
    """
    if cancel:
        with suppress(ConfigError):  # a TOML that cannot be used may be mended by it
            known(load(name), provider)
        _cancel(name, provider, as_json)
        return
    known(load(name), provider)
    mount = Mount(runtime_dir(), name)
    if not mount.alive():
        raise NotMountedError(f"{name} is not mounted, and only a mount moves shares; `icnfs mount {name} DIR` first")
    change(name, partial(with_value, name=provider, key="drain", value=True))
    try:
        with watching(f"Draining {provider}") as show:
            result = take_facts(mount.ask(LeaveRequest(provider, deadline or 0.0), show), LeaveResult)
    except KeyboardInterrupt:
        raise InterruptedByUserError(
            f"interrupted; the shares at {provider} go on moving in the mount: call it again to follow, and to have "
            "deleted what is left, or with --cancel to stop it"
        ) from None
    _tell(name, provider, result, as_json)


def _cancel(name: str, provider: str, as_json: bool) -> None:
    _, mount = change(name, partial(with_value, name=provider, key="drain", value=None))
    if as_json:
        print_json({"name": name, "provider": provider, "draining": False, "mounted": mount is not None})
    else:
        say(f"Provider {provider} may hold shares of volume {name} again.")


def _tell(name: str, provider: str, result: LeaveResult, as_json: bool) -> None:
    """What a drain came to; ProviderError where something of the volume is left."""
    if as_json:
        print_json(
            {
                "name": name,
                "provider": provider,
                "empty": not (result.unreachable or result.kept),
                **dataclasses.asdict(result),
            }
        )
    else:
        print_facts([("moved", f"{result.shares} shares, {size(result.bytes)}")])
    if result.unreachable:
        raise ProviderError(
            "",
            f"{provider} holds no share that is needed, but what lies there is not deleted: {result.unreachable}; "
            "call it again once it can be",
        )
    if result.kept:
        raise ProviderError(
            "",
            f"{provider} holds no share that is needed, and all of the volume there was deleted, but its bucket keeps "
            "deleted objects as older versions; let a lifecycle rule expire noncurrent versions, or delete them with "
            "the provider's own tool",
        )
    if not as_json:
        others = f"; {result.left} objects there are not the volume's" if result.left else ""
        print(f"nothing of the volume is left at {provider}{others}", flush=True)
        say(f"Next: icnfs provider remove {name} {provider}")


@verb.command("remove")
@click.argument("name", metavar="NAME")
@click.argument("provider", metavar="PROVIDER")
@json_option
def remove(name: str, provider: str, as_json: bool) -> None:
    """Take PROVIDER out of volume NAME: out of its TOML, and out of the mount.

    Refused while it holds shares, which `icnfs provider drain` moves, and where too few providers would be left.
    """
    config = load(name)
    known(config, provider)
    mount = Mount(runtime_dir(), name)
    if not mount.alive():
        raise NotMountedError(f"{name} is not mounted, and only a mount knows what {provider} holds; mount it first")
    held = take_facts(mount.ask(HoldingsRequest()), dict[str, Holding]).get(provider)
    if held is not None and held.segments:
        raise ConfigError(
            f"provider {provider} holds {held.segments} shares ({size(held.bytes)}) that the volume would lose; "
            f"`icnfs provider drain {name} {provider}` moves them first"
        )
    change(name, partial(without_provider, name=provider))
    if as_json:
        print_json({"name": name, "provider": provider})
        return
    say(f"Provider {provider} is none of volume {name}'s any more.")
    _tell_leftover(config, provider)


def _tell_leftover(config: VolumeConfig, provider: str) -> None:
    if not config.providers[provider].drain:
        say(f"What else the volume put there (its mark, heads, key slots) stays at {provider}; a drain deletes it.")
