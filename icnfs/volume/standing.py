"""How a volume stands with its providers: what each holds, and what the policy says to that.  Plain enough for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from icnfs import placement
from icnfs.errors import ConfigError, TooFewProvidersError
from icnfs.volume.network import Network
from icnfs.volume.repair import Holders, Repair


@dataclass(frozen=True)
class Holding:
    """What one provider holds by the records: shares of segments and of runs, and their bytes."""

    provider: str
    segments: int
    bytes: int


@dataclass(frozen=True)
class BreachCount:
    """How many segments break one rule in one way; `rule` is of `placement.Breach`."""

    rule: str
    text: str
    segments: int


@dataclass(frozen=True)
class ProviderVerdict:
    """What the policy has against a provider, "" for nothing."""

    name: str
    objection: str


@dataclass(frozen=True)
class PolicyReport:
    """The present policy's judgement.

    `clean` of the `segments` break no rule.  `obstacle` says why no new segment can be placed, and what would help; ""
    where one can.  `queued` segments are to move.
    """

    segments: int
    clean: int
    breaches: tuple[BreachCount, ...]
    providers: tuple[ProviderVerdict, ...]
    obstacle: str
    queued: int


def holdings_of(groups: Iterable[Holders]) -> dict[str, Holding]:
    """What each provider holds, by name, also those that the TOML no longer names."""
    segments: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for group in groups:
        for provider in group.providers:
            segments[provider] += group.segments
            sizes[provider] += group.share_bytes
    return {name: Holding(name, count, sizes[name]) for name, count in sorted(segments.items()) if count}


def policy_report(network: Network, repair: Repair) -> PolicyReport:
    """What the policy says of every provider and every segment."""
    groups = repair.groups()
    counts: Counter[tuple[str, str]] = Counter()
    clean = 0
    for group in groups:
        breaches = placement.judge(
            [(name, True) for name in group.providers],
            network.k,
            network.facts,
            safe=network.safe,
            policy=network.policy,
        )
        clean += 0 if breaches else group.segments
        counts.update({(breach.rule, breach.text): group.segments for breach in breaches})
    return PolicyReport(
        segments=sum(group.segments for group in groups),
        clean=clean,
        breaches=tuple(BreachCount(rule, text, count) for (rule, text), count in counts.most_common()),
        providers=tuple(
            ProviderVerdict(name, network.policy.objection(facts) or "") for name, facts in network.facts.items()
        ),
        obstacle=_obstacle(network),
        queued=repair.moving,
    )


def _obstacle(network: Network) -> str:
    try:
        network.place(0)
    except (ConfigError, TooFewProvidersError) as error:
        return str(error)
    return ""
