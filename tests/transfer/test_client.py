"""The client over a real process and directory providers: what must hold when the process dies, hangs or lies."""

from __future__ import annotations

import gc
import logging
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import icnfs
from icnfs.crypto.hardening import OVER_FILES
from icnfs.errors import (
    ConfigError,
    FormatError,
    NameTakenError,
    ObjectMissingError,
    ProviderAwayError,
    ProviderRefusedError,
)
from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.limits import INLINE_MAX, LEAF_SIZE, MIB
from icnfs.providers.open import ProviderSpec
from icnfs.transfer import bulk, link, process
from icnfs.transfer.client import TransferClient
from icnfs.transfer.deadlines import Deadlines
from icnfs.transfer.messages import Done, Hello, Limits, ShareEvent, encode
from icnfs.transfer.upload import PutResult
from icnfs.transfer.wire import Wire, socket_pair
from icnfs.volume.attempt import UPLOADS_AT_ONCE

K, N, SHARE = 4, 6, 300_000
ID = bytes(range(16))
NAMES = tuple(f"shares/{index:02}/{index:050}" for index in range(N))
PROVIDERS = tuple(f"p{index}" for index in range(N))
PAYLOAD = random.Random(7).randbytes(K * SHARE)
DEADLINES = Deadlines(read=30, write=30, object=30, hedge=0.5)


def test_states_can_be_asked_for_while_providers_change() -> None:
    """The committer's thread asks, and the loop's follows others between one look and the next."""
    client = TransferClient([ProviderSpec("p0", "memory://"), ProviderSpec("p1", "memory://")], Deadlines())
    before, states = client._bad, client._states
    client._know({"p0"})
    client._states = states
    assert set(client.states()) == {"p0", "p1"}
    client._bad, client._states = before, {"p2": states["p0"]}
    assert client.states()["p2"].bad_shares == 0


def test_a_segment_crosses_is_stored_and_read_back_in_every_way(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            info = await _stored(client)
            for share in range(K):
                for verified in (False, True):
                    got = await client.fetch(info, NAMES, share, 1000, SHARE - 1001, verified=verified)
                    assert got == PAYLOAD[share * SHARE + 1000 : (share + 1) * SHARE - 1]
            assert await client.get_segment(info, NAMES) == PAYLOAD
            (tmp_path / "p3" / NAMES[3]).unlink()
            result = await client.complete_segment(info, NAMES, [3], ["p3"], [NAMES[3]])
            assert not result.errors and result.roots == tuple(share.root for share in info.shares)
            assert (tmp_path / "p3" / NAMES[3]).exists()
            assert client.restarts == 0

    trio.run(main)


def test_checks_cross_and_name_what_they_find(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            info = await _stored(client)
            assert (await client.check(info, NAMES, 0)).outcome == "present"
            path = tmp_path / "p1" / NAMES[1]
            path.write_bytes(path.read_bytes()[:-1] + b"?")
            (tmp_path / "p2" / NAMES[2]).unlink()
            found = [(await client.check(info, NAMES, index, (0,))).outcome for index in range(3)]
            assert found == ["present", "altered" if SHARE <= LEAF_SIZE else "present", "missing"]
            looked = await client.check(info, NAMES, 1)
            assert looked.outcome == "altered" and looked.detail and looked.bytes > SHARE
            assert client.states()["p1"].bad_shares == client.states()["p2"].bad_shares == 1
            (tmp_path / "p3").rename(tmp_path / "gone")
            assert (await client.check(info, NAMES, 3)).outcome == "down"

    trio.run(main)
    assert f"provider p1: share {NAMES[1]} is bad" in caplog.text


def test_objects_of_every_size_cross(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            for size in (0, 1, INLINE_MAX, INLINE_MAX + 1, 3 * 2**20):
                await client.put_object("p0", f"slots/{size}", bytes(size))
                assert await client.get_object("p0", f"slots/{size}") == bytes(size)
            assert len(await client.list_objects("p0", "slots/")) == 5
            await client.delete_object("p0", "slots/0")
            with pytest.raises(ObjectMissingError) as caught:
                await client.get_object("p0", "slots/0")
            assert caught.value.provider == "p0"
            with pytest.raises(ProviderRefusedError):
                await client.get_object("nobody", "volume")
            assert (await client.probe("p1")).free_bytes

    trio.run(main)


def test_failed_shares_are_reported_by_index(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            for index in (1, 4):
                (tmp_path / f"p{index}").rmdir()
            result = await _put(client)
            assert {index: type(error) for index, error in result.errors.items()} == {
                1: ProviderAwayError,
                4: ProviderAwayError,
            }
            await _until(lambda: client.states()["p1"].state == "down" == client.states()["p4"].state)
            await _until(lambda: client.states()["p0"].state == "up" and client.states()["p0"].bytes_up > SHARE)
            (tmp_path / "p1").mkdir()
            await client.probe("p1")
            await _until(lambda: client.states()["p1"].state == "up")

    trio.run(main)


def test_a_bad_share_is_logged_by_provider_and_name_and_counted_over_restarts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            info = await _stored(client)
            path = tmp_path / "p2" / NAMES[2]
            path.write_bytes(path.read_bytes()[:-1])
            tail = PAYLOAD[3 * SHARE - 10 : 3 * SHARE]
            assert await client.fetch(info, NAMES, 2, SHARE - 10, 10) == tail
            assert client.states()["p2"].bad_shares == 1
            await _killed(client)
            assert await client.fetch(info, NAMES, 2, SHARE - 10, 10) == tail
            assert client.states()["p2"].bad_shares == 1
            await client.complete_segment(info, NAMES, [2], ["p2"], [NAMES[2]])
            assert client.states()["p2"].bad_shares == 0

    trio.run(main)
    assert caplog.text.count(f"provider p2: share {NAMES[2]} is bad") == 1


@pytest.mark.parametrize("seed", range(4))
def test_calls_outlive_a_kill_at_any_moment(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        async with _client(tmp_path, query="?latency=0.1") as client:
            info = await _stored(client)
            results: list[bool] = []

            async def fetches(share: int) -> None:
                got = await client.fetch(info, NAMES, share, 0, 100_000)
                results.append(got == PAYLOAD[share * SHARE :][:100_000])

            async def puts() -> None:
                results.append(not (await _put(client)).errors)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(puts)
                for share in range(K):
                    nursery.start_soon(fetches, share)
                await trio.sleep(rng.uniform(0, 0.3))
                assert client.pid is not None
                os.kill(client.pid, signal.SIGKILL)
            assert results == [True] * (K + 1)
            await _until(lambda: client.restarts == 1)
            assert await client.get_segment(info, NAMES) == PAYLOAD

    trio.run(main)


def test_a_death_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            await _killed(client)
            assert client.restarts == 1

    trio.run(main)
    assert "is gone: it was killed by signal 9" in caplog.text


def test_a_call_that_two_processes_died_under_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path, query="?hang=1") as client:
            caught: list[ProviderAwayError] = []

            async def call() -> None:
                try:
                    await client.get_object("p0", "volume")
                except ProviderAwayError as error:
                    caught.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                for _ in range(2):
                    await trio.testing.wait_all_tasks_blocked(0.02)
                    await _killed(client)
            assert "ended 2 times" in str(caught[0])

    trio.run(main)


def test_a_call_that_waits_is_answered_although_a_process_died_before_it_introduced_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a process must not take along the event that the call waits on."""

    async def main() -> None:
        async with _client(tmp_path) as client:
            hello, stillborn = link.Link.hello, 2

            async def die_first(life: link.Link, *told: Any) -> None:
                nonlocal stillborn
                if stillborn:
                    stillborn -= 1
                    life.process.kill()
                await hello(life, *told)

            monkeypatch.setattr(link.Link, "hello", die_first)
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            with trio.fail_after(15):
                while client.pid is not None:
                    await trio.sleep(0.001)
                await client.put_object("p0", "slots/a", b"waited")
                assert await client.get_object("p0", "slots/a") == b"waited"
            assert client.restarts == 3

    trio.run(main)


def test_cancelling_a_call_stops_the_work_on_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path, query="?hang=1") as client:
            for _ in range(40):  # more than a provider's requests in flight: each must have given its place back
                with trio.move_on_after(0.01):
                    await client.get_object("p0", "volume", deadline=3600)
            with pytest.raises(ProviderAwayError, match=r"within 0\.2 s"):
                await client.get_object("p0", "volume", deadline=0.2)
            assert not client._link or not client._link._waiting

    trio.run(main)


def test_a_process_that_is_stuck_costs_no_call_more_than_its_deadline_and_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icnfs.transfer.client.GRACE_SECONDS", 0.2)
    monkeypatch.setattr(link, "PING_SECONDS", 0.5)
    monkeypatch.setattr(link, "SILENCE_SECONDS", 1.0)

    async def main() -> None:
        async with _client(tmp_path) as client:
            await client.put_object("p0", "volume", b"marker")
            assert client.pid is not None
            os.kill(client.pid, signal.SIGSTOP)
            begun = trio.current_time()
            with pytest.raises(ProviderAwayError, match="did not answer"):
                await client.get_object("p0", "volume", deadline=0.2)
            assert trio.current_time() - begun < 1.0
            await _until(lambda: client.restarts == 1)
            assert await client.get_object("p0", "volume") == b"marker"

    trio.run(main)


def test_no_descriptor_and_no_process_is_left_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            await _stored(client)
            await _killed(client)
            await _stored(client)
            pids.append(client.pid)

    pids: list[int | None] = []
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    trio.run(main)
    assert len(os.listdir("/proc/self/fd")) == before
    assert pids[0] is not None and not Path(f"/proc/{pids[0]}").exists()


def test_a_request_that_cannot_be_made_harms_no_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            with pytest.raises(FormatError):
                await client.get_object("p0", "n" * 201)
            with pytest.raises(FormatError):
                await client.put_object("p" * 65, "volume", b"")
            await client.put_object("p0", "volume", b"marker", deadline=math.inf)
            assert await client.get_object("p0", "volume") == b"marker" and client.restarts == 0

    trio.run(main)


def test_errors_of_the_body_come_out_bare(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            await client.get_object("p0", "volume")

    with pytest.raises(ObjectMissingError):
        trio.run(main)


def test_a_url_that_cannot_be_used_is_one_clear_error() -> None:
    async def main() -> None:
        async with TransferClient.start([ProviderSpec("p0", "gopher://hole")]):
            raise AssertionError("it started")

    with pytest.raises(ConfigError, match="of no known kind"):
        trio.run(main)


def test_whoever_hears_that_a_provider_answers_sees_it_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            place = tmp_path / "p0"
            await client.put_object("p0", "volume", b"x")
            for _ in range(3):
                place.rename(tmp_path / "gone")
                with pytest.raises(ProviderAwayError):
                    await client.probe("p0")
                assert client.states()["p0"].is_down
                (tmp_path / "gone").rename(place)
                await client.probe("p0")
                assert not client.states()["p0"].is_down

    trio.run(main)


# --- the process itself -----------------------------------------------------------------------------------------------


def test_the_process_has_a_session_of_its_own_no_cores_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICNFS_PASSPHRASE", "canary-passphrase")
    monkeypatch.setenv("SOME_TOKEN", "canary-token")

    async def main() -> None:
        async with _client(tmp_path) as client:
            await client.probe("p0")
            process = Path(f"/proc/{client.pid}")
            assert client.pid is not None and os.getpgid(client.pid) == client.pid
            assert os.getsid(client.pid) == client.pid
            autogroup = process / "autogroup"
            if autogroup.exists():  # or it would claim processors as other sessions do
                assert int(autogroup.read_text().rsplit(maxsplit=1)[1]) > 0
            assert os.getpriority(os.PRIO_PROCESS, client.pid) > os.getpriority(os.PRIO_PROCESS, 0)
            assert os.sched_getscheduler(client.pid) == os.SCHED_BATCH
            assert "canary" not in (process / "environ").read_text()
            assert "canary" not in (process / "cmdline").read_text()
            assert re.search(r"Max core file size +0 +0 ", (process / "limits").read_text())
            assert (process / "cwd").resolve() == Path("/")
            status = (process / "status").read_text()
            assert "NoNewPrivs:\t1" in status
            for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
                found = re.search(rf"{name}:\t([0-9a-f]+)", status)
                assert found is not None and (not int(found[1], 16) & ~OVER_FILES or os.geteuid() != 0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(client.pid, number)
            await client.probe("p0")
            assert client.restarts == 0

    trio.run(main)


def test_storing_many_segments_takes_no_more_memory_than_a_few_at_once(tmp_path: Path) -> None:
    size = 16 * MIB
    names = tuple(f"shares/aa/{index}" for index in range(N))
    providers = tuple(f"p{index}" for index in range(N))

    async def main() -> None:
        async with _client(tmp_path) as client:

            async def store(number: int, limiter: trio.CapacityLimiter) -> None:
                async with limiter:
                    with bulk.closing(bulk.create("test")) as fd:
                        os.truncate(fd, size)
                        os.pwrite(fd, os.urandom(MIB), 0)
                        id = number.to_bytes(16, "big")
                        result = await client.put_segment(id, K, N, size // K, size, names, providers, fd)
                        assert not result.errors

            async with trio.open_nursery() as nursery:
                limiter = trio.CapacityLimiter(UPLOADS_AT_ONCE)
                for number in range(10):
                    nursery.start_soon(store, number, limiter)
            status = Path(f"/proc/{client.pid}/status").read_text()
            peak = re.search(r"VmHWM:\s+(\d+) kB", status)
            assert peak is not None and int(peak[1]) < 180 * 1024

    trio.run(main)


def test_the_process_ends_when_its_front_is_killed(tmp_path: Path) -> None:
    front = (
        "import sys, trio\n"
        "from icnfs.providers.open import ProviderSpec\n"
        "from icnfs.transfer.client import TransferClient\n"
        "async def main():\n"
        "    async with TransferClient.start([ProviderSpec('p0', sys.argv[1], True)]) as client:\n"
        "        print(client.pid, flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    root = Path(icnfs.__path__[0]).parent
    with subprocess.Popen(
        [sys.executable, "-c", front, str(tmp_path / "p0")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        pidfd = os.pidfd_open(pid)
        process.kill()
        with bulk.closing(pidfd):
            trio.run(_readable, pidfd)


@pytest.mark.parametrize("nonsense", [b"nonsense", encode(Done(1)), encode(Hello(2, (), 1.0))])
def test_a_front_that_talks_nonsense_ends_the_process(nonsense: bytes) -> None:
    async def main() -> None:
        wire, process = link.spawn()
        await wire.send(encode(Hello(1, (), 1.0)))
        await wire.send(nonsense)
        with trio.fail_after(20), pytest.raises(trio.EndOfChannel):
            while True:
                await wire.receive()
        wire.close()
        assert await trio.to_thread.run_sync(process.wait) == 1

    trio.run(main)


def test_a_process_that_talks_nonsense_is_ended_and_its_calls_are_told() -> None:
    async def main() -> None:
        ours, theirs = socket_pair()
        process = subprocess.Popen(["sleep", "60"])
        life = link.Link(Wire(ours), process)
        lost: list[bool] = []

        async def nonsense() -> None:
            with bulk.closing(bulk.holding([b"x"], "test")) as fd:
                socket.send_fds(theirs, [b"nonsense"], [fd])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_lost_call, life, lost)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(nonsense)
            await life.run(lambda push: None, lambda: None)
        theirs.close()
        assert lost == [True] and process.returncode == -signal.SIGKILL and "malformed message" in life.end

    trio.run(main)


def test_late_shares_are_heard_of_after_the_answer_also_when_the_process_dies(tmp_path: Path) -> None:
    async def main() -> None:
        slow = {"p1": "?latency=2", "p4": "?latency=600"}
        for name in PROVIDERS:
            (tmp_path / name).mkdir()
        specs = [ProviderSpec(name, f"file://{tmp_path / name}{slow.get(name, '')}") for name in PROVIDERS]
        heard: list[ShareEvent] = []
        with trio.fail_after(60):
            async with TransferClient.start(specs, DEADLINES) as client:
                client.heard = heard.append
                with bulk.closing(bulk.create("test")) as fd:
                    os.write(fd, PAYLOAD)
                    result = await client.put_segment(ID, K, N, SHARE, len(PAYLOAD), NAMES, PROVIDERS, fd, enough=K)
                assert result.late == {1, 4} and not result.errors and not heard
                await _until(lambda: len(heard) == 1)
                assert (heard[0].provider, heard[0].what) == ("p1", "stored") and (tmp_path / "p1" / NAMES[1]).exists()
                await _killed(client)
                assert [(event.provider, event.index, event.what) for event in heard[1:]] == [("p4", 4, "failed")]

    trio.run(main)


def test_a_rate_and_a_price_change_without_anything_being_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            await client.put_object("p0", "volume", bytes(200_000))
            await _until(lambda: client.states()["p0"].bytes_up == 200_000)
            for rate, least, most in ((200_000, 0.9, 30.0), (0, 0.0, 0.9)):
                spec = ProviderSpec("p0", f"file://{tmp_path / 'p0'}", upload=rate, eur_per_tb_read=float(rate))
                await client.set_providers([spec], Limits())
                begun = trio.current_time()
                await client.put_object("p0", "volume", bytes(200_000))
                assert least <= trio.current_time() - begun <= most
            await _until(lambda: client.states()["p0"].bytes_up == 600_000)

    trio.run(main)


def test_providers_are_changed_while_it_runs_and_a_new_process_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            info = await _stored(client)
            (tmp_path / "new").mkdir()
            specs = [ProviderSpec(name, f"file://{tmp_path / name}") for name in (*PROVIDERS[1:], "new")]
            with pytest.raises(ConfigError):
                await client.set_providers([*specs, ProviderSpec("bad", "gopher://hole")], Limits())
            assert client.states().keys() == set(PROVIDERS)
            await client.put_object("p0", "volume", b"still")
            await client.set_providers(specs, Limits(up=10**9))
            assert client.states().keys() == {spec.name for spec in specs}
            for _ in range(2):
                await client.put_object("new", "volume", b"marker")
                with pytest.raises(ProviderRefusedError, match="does not name it"):
                    await client.get_object("p0", "volume")
                assert await client.get_segment(info, NAMES) == PAYLOAD
                await _until(lambda: client.states()["new"].state == "up")
                await _killed(client)

    trio.run(main)


def test_an_object_is_new_or_the_same_across_the_socket(tmp_path: Path) -> None:
    async def main() -> None:
        async with _client(tmp_path) as client:
            for data in (b"small", bytes(INLINE_MAX + 1)):
                await client.put_object("p0", f"heads/{len(data)}", data, new=True)
                await client.put_object("p0", f"heads/{len(data)}", data, new=True)
                with pytest.raises(NameTakenError) as caught:
                    await client.put_object("p0", f"heads/{len(data)}", data[1:], new=True)
                assert caught.value.provider == "p0"

    trio.run(main)


# --- helpers ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _client(root: Path, query: str = "") -> AsyncIterator[TransferClient]:
    for name in PROVIDERS:
        (root / name).mkdir(exist_ok=True)
    specs = [ProviderSpec(name, f"file://{root / name}{query}") for name in PROVIDERS]
    logging.getLogger("icnfs").setLevel(logging.INFO)
    with trio.fail_after(90):
        async with TransferClient.start(specs, DEADLINES) as client:
            yield client


async def _put(client: TransferClient) -> PutResult:
    with bulk.closing(bulk.create("test")) as fd:
        os.write(fd, PAYLOAD)
        return await client.put_segment(ID, K, N, SHARE, len(PAYLOAD), NAMES, PROVIDERS, fd)


async def _stored(client: TransferClient) -> SegmentInfo:
    result = await _put(client)
    assert not result.errors
    shares = tuple(ShareInfo(name, root, True) for name, root in zip(PROVIDERS, result.roots, strict=True))
    return SegmentInfo(ID, K, N, SHARE, len(PAYLOAD), shares)


async def _killed(client: TransferClient) -> None:
    """SIGKILL the process, and wait for the next."""
    old = client.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    await _until(lambda: client.pid not in (None, old))


async def _until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not holds():
            await trio.sleep(0.01)


async def _lost_call(life: link.Link, lost: list[bool]) -> None:
    try:
        await life.hello([], 1.0)
    except link.LinkLostError:
        lost.append(True)


async def _readable(fd: int) -> None:
    with trio.fail_after(20):
        await trio.lowlevel.wait_readable(fd)


def test_the_process_stands_back_before_it_may_not_write_its_own_autogroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardened, a process of anybody but root may not: PR_SET_DUMPABLE gives its files in /proc to root."""
    done: list[str] = []

    class EnoughError(Exception):
        pass

    def harden() -> None:
        done.append("hardened")
        raise EnoughError

    monkeypatch.setattr(process, "_stand_back", lambda: done.append("stands back"))
    monkeypatch.setattr(process, "_harden", harden)
    with pytest.raises(EnoughError):
        process.main(["icnfs.transfer", "3"])
    assert done == ["stands back", "hardened"]
