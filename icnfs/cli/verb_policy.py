"""`icnfs policy`: whether shares lie where the volume's owner allows them."""

from __future__ import annotations

from typing import Final

import click
import msgspec

from icnfs.cli.changing import adopt as adopt_toml
from icnfs.cli.output import json_option, print_facts, print_json, print_rows, say
from icnfs.config import VolumeConfig, config_file, load, runtime_dir
from icnfs.config.paths import check_volume_name
from icnfs.control.client import Mount
from icnfs.control.facts import PolicyFacts
from icnfs.control.protocol import PolicyRequest, take_facts
from icnfs.errors import PolicyError
from icnfs.volume.standing import PolicyReport, ProviderVerdict

UNKNOWN: Final = "not looked at: where segments lie is known to a mount alone"


@click.group("policy")
def verb() -> None:
    """Judge a volume by the rules of its TOML, and have its mount take over new ones."""


@verb.command("check")
@click.argument("name", metavar="NAME")
@json_option
def check(name: str, as_json: bool) -> None:
    """Judge the providers and every segment of volume NAME under the policy that its mount has taken over.

    Segments out of policy end it with exit code 19; the mount moves them by itself.  Without a mount the providers
    alone are judged, under the TOML's policy.
    """
    mount = Mount(runtime_dir(), check_volume_name(name))
    if not mount.alive():
        _without_mount(load(name), as_json)
        return
    facts = take_facts(mount.ask(PolicyRequest()), PolicyFacts)
    report = facts.report
    if as_json:
        document: dict[str, object] = msgspec.to_builtins(report)
        print_json({"name": name, "mounted": True, "toml": facts.toml} | document)
    else:
        _print(name, report)
    if facts.toml:
        say(f"Note: {facts.toml}")
    if _broken(report):
        raise PolicyError(_failure(report))


def _broken(report: PolicyReport) -> bool:
    return bool(report.breaches or report.obstacle)


def _failure(report: PolicyReport) -> str:
    if report.obstacle:
        return f"no new segment can be placed: {report.obstacle}"
    out = report.segments - report.clean
    return f"{out} of {report.segments} segments are out of policy; {report.queued} are queued to move"


def _print(name: str, report: PolicyReport) -> None:
    print_facts(
        [
            ("volume", name),
            ("segments", f"{report.segments}, of which {report.clean} are within policy"),
            ("queued to move", str(report.queued)),
            ("new segments", report.obstacle or "can be placed"),
        ]
    )
    if report.breaches:
        print_rows(("rule", "breach", "segments"), [(b.rule, b.text, str(b.segments)) for b in report.breaches])
    _print_verdicts(report.providers)


def _print_verdicts(verdicts: tuple[ProviderVerdict, ...]) -> None:
    print_rows(("provider", "verdict"), [(verdict.name, verdict.objection or "allowed") for verdict in verdicts])


def _without_mount(config: VolumeConfig, as_json: bool) -> None:
    """The providers; that the policy leaves a choice of them was checked when the TOML was read."""
    verdicts = tuple(
        ProviderVerdict(name, config.policy.objection(facts) or "") for name, facts in config.providers.items()
    )
    if as_json:
        print_json({"name": config.name, "mounted": False, "providers": verdicts})
        return
    print_facts([("volume", config.name), ("segments", UNKNOWN), ("new segments", "can be placed")])
    _print_verdicts(verdicts)


@verb.command("adopt")
@click.argument("name", metavar="NAME")
@json_option
def adopt(name: str, as_json: bool) -> None:
    """Have the mount of volume NAME take over the providers, policy, weights and limits that its TOML has now.

    What is out of policy then moves.  Anything else that was changed takes a new mount, and is refused.
    """
    config = load(name)
    adopt_toml(Mount(runtime_dir(), name), config_file(name))
    if as_json:
        print_json({"name": name, "providers": list(config.providers)})
    else:
        say(f"The mount of {name} goes by its TOML; `icnfs policy check {name}` says what is to move.")
