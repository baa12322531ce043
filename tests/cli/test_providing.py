"""The verbs of providers and policy beside a stand-in for the mount, which agrees with the TOML at every end."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from icnfs.cli import changing, verb_provider
from icnfs.cli.app import guarded, icnfs
from icnfs.config import VolumeConfig, load
from icnfs.control import endpoint, server
from icnfs.control.facts import HealthFacts, MountStatus, PolicyFacts
from icnfs.control.protocol import Progress
from icnfs.errors import ConfigError, DegradedError, Exit, IcnfsError
from icnfs.volume.leaving import LeaveResult
from icnfs.volume.standing import BreachCount, Holding, PolicyReport, ProviderVerdict
from icnfs.volume.status import Status
from tests.cli.machine import World, furnish
from tests.cli.test_status import HEALTHY, PROVIDER


class StandIn:
    """A mount that takes over any TOML it is asked to, unless told to refuse."""

    def __init__(self, config: VolumeConfig) -> None:
        self.config = config
        self.refusal: IcnfsError | None = None
        self.adopted = 0
        self.held: dict[str, Holding] = {}
        self.foreign: set[str] = set()
        self.report = PolicyReport(3, 3, (), tuple(ProviderVerdict(name, "") for name in config.providers), "", 0)
        self.news = ""
        self.result = LeaveResult(4, 4096, 0, "")
        self.leave_failure: IcnfsError | None = None
        self.left: list[tuple[str, float]] = []
        self.healths: dict[str, HealthFacts] = {}
        self.asked: list[tuple[str, int]] = []
        self.on_leave: Callable[[], None] = lambda: None

    async def status(self, looked: bool) -> MountStatus:
        providers = [
            replace(PROVIDER, name=name, state="foreign" if name in self.foreign else "up", error="another volume's")
            for name in self.config.providers
        ]
        status: Status = replace(HEALTHY, providers=tuple(providers))
        return MountStatus("/mnt", os.getpid(), 0, status)

    async def adopt(self, path: bytes) -> None:
        assert path == os.fsencode(os.path.realpath(self.config.path))
        if self.refusal is not None:
            raise self.refusal
        self.config = await trio.to_thread.run_sync(load, "demo")
        self.adopted += 1

    async def holdings(self) -> dict[str, Holding]:
        return self.held

    async def policy(self) -> PolicyFacts:
        return PolicyFacts(self.report, self.news)

    async def health(self, after: str, most: int) -> HealthFacts:
        self.asked.append((after, most))
        return self.healths[after]

    async def leave(self, provider: str, deadline: float, progress: server.ProgressSink) -> LeaveResult:
        self.left.append((provider, deadline))
        progress(Progress(1024, 4096, shares_left=3, waiting="north is slow"))
        self.on_leave()
        if self.leave_failure is not None:
            raise self.leave_failure
        return self.result

    async def scrub(self, full: bool, restart: bool, rate: int, progress: server.ProgressSink) -> None:
        raise NotImplementedError

    async def snapshots(self) -> None:
        raise NotImplementedError

    async def make_snapshot(self, name: str, until: int, deadline: float) -> None:
        raise NotImplementedError

    async def lock_snapshot(self, name: str, until: int) -> None:
        raise NotImplementedError

    async def delete_snapshot(self, name: str) -> None:
        raise NotImplementedError

    async def orphans(self, progress: server.ProgressSink) -> None:
        raise NotImplementedError

    async def sync(self, deadline: float, progress: server.ProgressSink) -> None:
        raise NotImplementedError

    drain = sync

    async def unmount(self, lazy: bool) -> None:
        raise NotImplementedError

    async def info(self, ino: int) -> None:
        raise NotImplementedError

    async def keys(self) -> None:
        raise NotImplementedError

    async def add_key(self, entry: bytes) -> None:
        raise NotImplementedError

    async def remove_key(self, key_id: str) -> None:
        raise NotImplementedError


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine with a TOML of seven providers for a 4-of-6 code; nothing is mounted."""
    made = World(tmp_path)
    furnish(made)
    for name in ("config", "state", "runtime"):
        monkeypatch.setenv(f"ICNFS_{name.upper()}_DIR", str(tmp_path / name))
    toml = made.root / "config" / "demo.toml"
    more = f'\n# The spare one.\n[provider.g]\nurl = "file://{tmp_path}/providers/g"\nowner = "Owner g"\n'
    toml.write_text(toml.read_text() + more + 'parent_country = "SE"\ncountry = "SE"\n')
    return made


@pytest.fixture
def mount(world: World) -> Iterator[StandIn]:
    """The stand-in, answering on the control socket from another thread."""
    stand_in = StandIn(load("demo"))
    listener = endpoint.listen(world.root / "runtime", "demo")
    stopping = trio.CancelScope()
    tokens: list[trio.lowlevel.TrioToken] = []
    running = threading.Event()

    async def main() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        running.set()
        with stopping:
            await server.serve(listener, stand_in)

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    running.wait()
    yield stand_in
    trio.from_thread.run_sync(stopping.cancel, trio_token=tokens[0])
    thread.join()


def toml(world: World) -> str:
    return (world.root / "config" / "demo.toml").read_text()


def run(*arguments: str | Path) -> int:
    return guarded(lambda: icnfs.main([*map(str, arguments)], standalone_mode=False))


def add(world: World, *more: str, name: str = "h", url: str | None = None) -> int:
    where = url or f"file://{world.root}/providers/{name}"
    facts = ("--owner", "Owner h", "--country", "SE", "--parent-country", "SE")
    return run("provider", "add", "demo", name, where, *facts, *more)


# --- add ----------------------------------------------------------------------------------------------------------


def test_add_tries_the_provider_out_writes_the_toml_and_has_the_mount_use_it(
    world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    before = toml(world)
    more = ("--site", "Malmö", "--eur-per-tb-month", "4.5", "--upload", "10MB", "--json")
    assert add(world, *more) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["mounted"], facts["trial"]["error"], facts["trial"]["provider"]) == (True, "", "h")
    assert toml(world).startswith(before)
    table = tomllib.loads(toml(world))["provider"]["h"]
    assert (table["site"], table["eur_per_tb_month"], table["upload"]) == ("Malmö", 4.5, "10MB")
    assert "h" in mount.config.providers and mount.adopted == 1
    place = world.root / "providers" / "h"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert [path for path in place.rglob("*") if path.is_file()] == []


def test_add_without_a_mount_waits_for_the_next(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(world) == 0
    assert "from the next mount on" in capsys.readouterr().err
    assert "h" in load("demo").providers


def test_what_cannot_be_added_leaves_everything_as_it_was(
    world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    before = toml(world)
    (world.root / "providers" / "taken").mkdir()
    (world.root / "providers" / "taken" / "letter").write_text("of somebody's")
    assert add(world, name="a") == Exit.CONFIG
    for option, value in (("--country", "XX"), ("--eur-per-tb-month", "nan"), ("--upload", "fast")):
        capsys.readouterr()
        assert add(world, option, value) == Exit.USAGE
        assert f"icnfs: {option}: " in capsys.readouterr().err
    assert add(world, url="gopher://x") == Exit.USAGE
    for wrong in ("H", "", "N N"):
        capsys.readouterr()
        assert add(world, name=wrong) == Exit.USAGE
        assert "PROVIDER: " in capsys.readouterr().err
    assert add(world, url=f"file://{world.root}/providers/a") == Exit.CONFIG
    assert add(world, "--profile", "x") == Exit.CONFIG
    (world.root / "providers" / "a").mkdir(exist_ok=True)
    (world.root / "link").symlink_to(world.root / "providers" / "a")
    capsys.readouterr()
    assert add(world, url=f"file://{world.root}/link") == Exit.CONFIG
    assert "the same place as provider.a.url" in capsys.readouterr().err
    assert add(world, url=f"file://{world.root}/link/h") == Exit.CONFIG
    assert "lies within, or around, provider.a.url" in capsys.readouterr().err
    assert add(world, url=f"file://{world.root}/none/h") == Exit.PROVIDER
    capsys.readouterr()
    assert add(world, url=f"file://{world.root}/providers/taken") == Exit.FOREIGN_PROVIDER
    assert "holds letter" in capsys.readouterr().err
    assert (toml(world), mount.adopted) == (before, 0)


def test_what_the_mount_refuses_is_put_back(world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    before = toml(world)
    mount.refusal = ConfigError("volume.code cannot change while the volume is mounted")
    assert add(world) == Exit.CONFIG
    assert "volume.code" in capsys.readouterr().err
    assert toml(world) == before
    mount.refusal = None
    mount.foreign.add("h")
    assert add(world) == Exit.FOREIGN_PROVIDER
    assert "another volume's" in capsys.readouterr().err
    assert toml(world) == before and not (world.root / "providers" / "h").exists()
    assert "h" not in mount.config.providers and mount.adopted == 2


def test_without_a_trial_nothing_is_asked(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(world, "--no-test", url="s3://bucket?endpoint=https://127.0.0.1:1", name="h") == Exit.CONFIG
    for gone in (f"file://{world.root}/none/h", f"file://{world.root}/providers/h"):
        assert add(world, "--no-test", url=gone) == Exit.USAGE
        assert "h is not there" in capsys.readouterr().err
    keys = world.root / "keys"
    assert add(world, "--no-test", "--credentials", str(keys), url="s3://bucket?endpoint=https://127.0.0.1:1") == 0
    assert load("demo").providers["h"].credentials == keys


def test_an_interrupt_waits_until_toml_and_mount_agree(
    world: World, mount: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt = changing.adopt

    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        adopt(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(changing, "adopt", interrupted)
    assert add(world) == Exit.INTERRUPTED
    assert "h" in load("demo").providers and "h" in mount.config.providers


# --- list ---------------------------------------------------------------------------------------------------------


def test_list_tells_facts_and_beside_a_mount_what_each_holds(
    world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.held = {"a": Holding("a", 7, 700), "old": Holding("old", 2, 20)}
    mount.report = replace(mount.report, providers=(ProviderVerdict("b", "b is in DE, which is not allowed"),))
    assert run("provider", "list", "demo", "--json") == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert list(found) == [*"abcdefg", "old"]
    assert (found["a"]["shares"], found["b"]["shares"], found["old"]["shares"]) == (7, 0, 2)
    assert found["a"]["place"] == f"{world.root}/providers/a" and found["a"]["state"] == "up"
    assert "not allowed" in found["b"]["objection"] and "does not name it" in found["old"]["objection"]
    assert run("provider", "list", "demo") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0][0] == "provider" and rows[1][8] == "7 (700 B)" and len({len(row) for row in rows}) == 1


def test_list_without_a_mount_tells_the_facts(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("provider", "list", "demo", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["owner"] for each in found] == [f"Owner {name}" for name in "abcdefg"]
    assert {each["shares"] for each in found} == {each["state"] for each in found} == {None}


# --- drain and remove ---------------------------------------------------------------------------------------------


def test_drain_marks_follows_and_tells_that_nothing_is_left(
    world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    before = toml(world)
    assert run("provider", "drain", "demo", "a", "--deadline", "9") == 0
    assert "nothing of the volume is left at a\n" in capsys.readouterr().out
    assert mount.config.providers["a"].drain and mount.left == [("a", 9.0)]
    assert load("demo").providers["a"].drain
    mount.result = replace(mount.result, left=2)
    assert run("provider", "drain", "demo", "a") == 0
    assert "left at a; 2 objects there are not the volume's\n" in capsys.readouterr().out
    assert mount.left[1] == ("a", 0.0)
    assert run("provider", "drain", "demo", "a", "--cancel") == 0
    assert toml(world) == before and not mount.config.providers["a"].drain


@pytest.mark.parametrize("deadline", ["nan", "inf", "-1", "0"])
def test_a_deadline_that_is_none_drains_nothing(world: World, mount: StandIn, deadline: str) -> None:
    before = toml(world)
    assert run("provider", "drain", "demo", "a", "--deadline", deadline) == Exit.USAGE
    assert (toml(world), mount.adopted, mount.left) == (before, 0, [])


def test_drain_tells_what_could_not_be_deleted(
    world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.result = replace(mount.result, unreachable="provider a: does not answer")
    assert run("provider", "drain", "demo", "a", "--json") == Exit.PROVIDER
    out, err = capsys.readouterr()
    assert json.loads(out)["empty"] is False
    assert "does not answer" in err and "nothing of the volume" not in out


def test_drain_tells_of_a_bucket_that_keeps_what_is_deleted(
    world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.result = replace(mount.result, kept=True)
    assert run("provider", "drain", "demo", "a", "--json") == Exit.PROVIDER
    out, err = capsys.readouterr()
    assert json.loads(out)["empty"] is False
    assert "expire noncurrent versions" in err and "nothing of the volume" not in out


def test_a_drain_that_ends_early_stays_marked(world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    mount.leave_failure = DegradedError("provider a still holds 3 shares after 1 s")
    assert run("provider", "drain", "demo", "a", "--deadline", "1") == Exit.DEGRADED
    assert load("demo").providers["a"].drain
    mount.on_leave = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert run("provider", "drain", "demo", "a") == Exit.INTERRUPTED
    assert "go on moving" in capsys.readouterr().err
    assert load("demo").providers["a"].drain and mount.config.providers["a"].drain


def test_a_drain_that_leaves_too_few_is_refused(
    world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("provider", "drain", "demo", "a") == 0
    before = toml(world)
    capsys.readouterr()
    assert run("provider", "drain", "demo", "b") == Exit.CONFIG
    assert "6" in capsys.readouterr().err and toml(world) == before
    assert run("provider", "drain", "demo", "z") == Exit.USAGE


def test_drain_and_remove_need_the_mount(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("drain", "remove"):
        assert run("provider", action, "demo", "a") == Exit.NOT_MOUNTED
        assert "not mounted" in capsys.readouterr().err
    assert run("provider", "drain", "demo", "a", "--cancel") == 0


def test_remove_refuses_while_shares_would_be_lost_and_while_too_few_would_be_left(
    world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    before = toml(world)
    mount.held = {"g": Holding("g", 5, 5000)}
    assert run("provider", "remove", "demo", "g") == Exit.CONFIG
    message = capsys.readouterr().err
    assert "holds 5 shares" in message and "icnfs provider drain demo g" in message
    assert toml(world) == before
    mount.held = {}
    assert run("provider", "remove", "demo", "g") == 0
    assert "What else" in capsys.readouterr().err
    assert toml(world) == before[: before.index("# The spare")]
    assert "g" not in mount.config.providers
    assert run("provider", "remove", "demo", "a") == Exit.CONFIG
    assert "6" in capsys.readouterr().err
    assert "a" in mount.config.providers


# --- policy -------------------------------------------------------------------------------------------------------


def test_policy_check_is_clean_or_ends_with_19(
    world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("policy", "check", "demo") == 0
    assert "3, of which 3 are within policy" in capsys.readouterr().out
    breach = BreachCount("max_per_country", "3 shares in DE, and 2 are allowed", 2)
    mount.report = replace(mount.report, clean=1, breaches=(breach,), queued=2)
    mount.news = "the TOML was changed since"
    assert run("policy", "check", "demo") == Exit.POLICY
    out, err = capsys.readouterr()
    assert "max_per_country\t3 shares in DE, and 2 are allowed\t2" in out
    assert "2 of 3 segments are out of policy; 2 are queued" in err and "changed since" in err
    mount.report = replace(mount.report, obstacle="6 shares need 6 providers; add one")
    assert run("policy", "check", "demo", "--json") == Exit.POLICY
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["clean"], document["mounted"], document["breaches"][0]["segments"]) == (1, True, 2)
    assert "no new segment can be placed: 6 shares" in err


def test_policy_check_without_a_mount_judges_the_providers(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.root / "config" / "demo.toml"
    path.write_text(toml(world) + '[policy]\nexcluded_parents = ["SE"]\n')
    assert run("policy", "check", "demo") == 0
    assert "parent is in SE, which is excluded" in capsys.readouterr().out
    path.write_text(toml(world).replace('["SE"]', '["SE", "DE"]'))
    assert run("policy", "check", "demo") == Exit.CONFIG


def test_policy_adopt_has_the_mount_read_its_toml_again(
    world: World, mount: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world.root / "config" / "demo.toml"
    path.write_text(toml(world) + '[policy]\nexcluded_parents = ["SE"]\n')
    assert run("policy", "adopt", "demo", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "demo", "providers": list("abcdefg")}
    assert mount.config.policy.excluded_parents == {"SE"}


def test_policy_adopt_needs_the_mount(world: World) -> None:
    assert run("policy", "adopt", "demo") == Exit.NOT_MOUNTED
    assert run("policy", "adopt", "nobody") == Exit.NO_VOLUME


def test_the_table_of_providers_has_a_head_for_each_cell() -> None:
    assert len(verb_provider.LIST_HEAD) == 12
