"""What the verbs of providers share: reading options as the TOML's keys, and gathering what is known of a provider."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from icnfs.cli.output import rate
from icnfs.cli.verb_status import provider_states
from icnfs.config import VolumeConfig
from icnfs.config.edit import Value
from icnfs.config.schema import PROVIDER
from icnfs.config.values import BadValueError
from icnfs.control.client import Mount
from icnfs.control.facts import PolicyFacts, printable_path
from icnfs.control.protocol import HoldingsRequest, PolicyRequest, take_facts
from icnfs.errors import UsageError
from icnfs.providers.facts import ProviderFacts
from icnfs.providers.open import ProviderSpec, parse_url
from icnfs.providers.trial import Report
from icnfs.volume.standing import Holding
from icnfs.volume.status import ProviderStatus


class Listed(msgspec.Struct, frozen=True):
    """All that is known of one provider: its facts, None where the TOML no longer names it; what the mount says, None
    without one; `objection` is why it gets no share, "" where it does."""

    name: str
    url: str | None
    place: str | None
    owner: str | None
    country: str | None
    parent_country: str | None
    site: str | None
    eur_per_tb_month: float | None
    eur_per_tb_read: float | None
    draining: bool
    state: str | None
    error: str | None
    free_bytes: int | None
    latency_s: float | None
    rate_up: float | None
    rate_down: float | None
    shares: int | None
    share_bytes: int | None
    objection: str


def known(config: VolumeConfig, provider: str) -> ProviderFacts:
    """The facts of `provider`; UsageError where the TOML has none of that name."""
    if provider not in config.providers:
        raise UsageError(f"{config.path} has no [provider.{provider[:40]}]; there are {', '.join(config.providers)}")
    return config.providers[provider]


def spec_of(config: VolumeConfig, provider: str, *, create: bool) -> ProviderSpec:
    """What opens `provider`; `create` makes its place."""
    return next(spec for spec in config.specs(create=create) if spec.name == provider)


def table_of(options: Mapping[str, Any]) -> dict[str, Value]:
    """The options that were given, as keys of a `[provider.NAME]`; UsageError for what none can be."""
    table: dict[str, Value] = {key: options[key] for key in PROVIDER if options.get(key) is not None}
    for key, value in table.items():
        try:
            PROVIDER[key].read(value)
        except BadValueError as error:
            raise UsageError(f"{'URL' if key == 'url' else '--' + key.replace('_', '-')}: {error}") from None
    return table


def check_there(spec: ProviderSpec) -> None:
    """UsageError where the place of `spec` is a directory and it is not there."""
    place = parse_url(spec.url)
    if place.s3 is None and not os.path.isdir(place.path):
        remedy = "mount its disk or make it; without --no-test it is made"
        raise UsageError(f"--no-test: directory {printable_path(place.path)} is not there; {remedy}")


@contextmanager
def made_only_if_taken(spec: ProviderSpec) -> Iterator[None]:
    """A directory that the block makes at the place of `spec`, and those within, go again where it fails; what is not
    empty stays."""
    place = parse_url(spec.url)
    spared = place.s3 is not None or os.path.lexists(place.path)
    try:
        yield
    except BaseException:
        for folder, _, _ in () if spared else os.walk(place.path, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
        raise


def report_row(report: Report) -> tuple[str, ...]:
    """A trial's line in a table."""
    conditional = {None: "-", True: "yes", False: "no: two machines at once are told apart later"}
    return (
        report.provider,
        report.error or ("ok; keeps what is deleted, as older versions" if report.keeps_deleted else "ok"),
        "-" if report.latency_s is None else f"{report.latency_s * 1000:.1f} ms",
        rate(report.write_rate),
        rate(report.read_rate),
        conditional[report.conditional_writes],
    )


def gather(config: VolumeConfig, mount: Mount) -> list[Listed]:
    """All providers, as in the TOML; then those that it no longer names and that hold shares."""
    if not mount.alive():
        return [_listed(facts, None, None, config.policy.objection(facts) or "") for facts in config.providers.values()]
    states = provider_states(mount)
    held = take_facts(mount.ask(HoldingsRequest()), dict[str, Holding])
    report = take_facts(mount.ask(PolicyRequest()), PolicyFacts).report
    objections = {verdict.name: verdict.objection for verdict in report.providers}
    found = []
    for name, facts in config.providers.items():
        objection = objections.get(name, "the mount has not taken it over: `icnfs policy adopt` lets it")
        found.append(_listed(facts, states.get(name), held.get(name, Holding(name, 0, 0)), objection))
    return found + [_unnamed(held[name], states.get(name)) for name in held if name not in config.providers]


def _listed(facts: ProviderFacts, state: ProviderStatus | None, held: Holding | None, objection: str) -> Listed:
    place = parse_url(facts.url)
    return Listed(
        name=facts.name,
        url=facts.url,
        place=str(place.path) if place.s3 is None else f"{place.s3.origin}{place.path}",
        owner=facts.owner,
        country=facts.country,
        parent_country=facts.parent_country,
        site=facts.site,
        eur_per_tb_month=facts.eur_per_tb_month,
        eur_per_tb_read=facts.eur_per_tb_read,
        draining=facts.drain,
        objection=objection,
        **_measured(state, held),
    )


def _unnamed(held: Holding, state: ProviderStatus | None) -> Listed:
    facts = dict.fromkeys(
        ("url", "place", "owner", "country", "parent_country", "site", "eur_per_tb_month", "eur_per_tb_read")
    )
    return Listed(
        name=held.provider,
        draining=False,
        objection="the TOML does not name it",
        **facts,
        **_measured(state, held),
    )


def _measured(state: ProviderStatus | None, held: Holding | None) -> dict[str, Any]:
    """What a mount knows of a provider."""
    fields = ("state", "error", "free_bytes", "latency_s", "rate_up", "rate_down")
    return {
        **{field: getattr(state, field, None) for field in fields},
        "shares": None if held is None else held.segments,
        "share_bytes": None if held is None else held.bytes,
    }
