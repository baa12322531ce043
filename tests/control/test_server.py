"""Server and client over a real socket; only the operations are a stand-in, as the rules need no volume."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from icnfs.control import endpoint, server
from icnfs.control import protocol as p
from icnfs.control.client import Mount, wait_ended
from icnfs.errors import ConfigError, DegradedError, Exit, FormatError, LocalDiskError, NotMountedError, SnapshotError


class Operations:
    """Answers like a mount; counts what it was asked."""

    def __init__(self) -> None:
        self.waits_cancelled = trio.Event()
        self.sync_started = trio.Event()
        self.unmounted: list[bool] = []
        self.on_unmount: Callable[[], None] = lambda: None
        self.syncs = 0

    async def status(self, looked: bool) -> object:
        return {"volume": "demo"}

    async def sync(self, deadline: float, progress: server.ProgressSink) -> object:
        self.syncs += 1
        if deadline == 1.0:
            raise DegradedError("safe at 5 of 6 owners")
        if deadline == 2.0:
            raise ZeroDivisionError("secret text")
        if deadline == 3.0:
            self.sync_started.set()
            try:
                await trio.sleep_forever()
            finally:
                self.waits_cancelled.set()
        for step in range(3):
            await trio.sleep(2 * server.PROGRESS_EVERY)
            progress(p.Progress(step, 2))
        return {"batch": 7}

    async def drain(self, deadline: float, progress: server.ProgressSink) -> object:
        return await self.sync(deadline, progress)

    async def unmount(self, lazy: bool) -> None:
        self.unmounted.append(lazy)
        self.on_unmount()
        await trio.lowlevel.checkpoint()

    async def info(self, ino: int) -> object:
        return {"ino": ino}

    async def keys(self) -> object:
        return []

    async def add_key(self, entry: bytes) -> object:
        return len(entry)

    async def remove_key(self, key_id: str) -> object:
        return key_id

    async def adopt(self, path: bytes) -> None:
        if path != b"/demo.toml":
            raise ConfigError("another TOML")

    async def holdings(self) -> object:
        return {"north": 3}

    async def policy(self) -> object:
        return {"clean": True}

    async def health(self, after: str, most: int) -> object:
        return [after, most]

    async def leave(self, provider: str, deadline: float, progress: server.ProgressSink) -> object:
        progress(p.Progress(3, 5, shares_left=2, waiting=f"{provider} is slow"))
        return deadline

    async def scrub(self, full: bool, restart: bool, rate: int, progress: server.ProgressSink) -> object:
        progress(p.Progress(3, 5, shares_left=2))
        return [full, restart, rate]

    async def orphans(self, progress: server.ProgressSink) -> object:
        progress(p.Progress(shares_left=9))
        return {"orphans": 4}

    async def snapshots(self) -> object:
        return ["before"]

    async def make_snapshot(self, name: str, until: int, deadline: float) -> object:
        return [name, until, deadline]

    async def lock_snapshot(self, name: str, until: int) -> object:
        return [name, until]

    async def delete_snapshot(self, name: str) -> None:
        raise SnapshotError(f"{name} is locked")

    async def clone(self, source: int, parent: int, name: bytes, uid: int, progress: server.ProgressSink) -> object:
        progress(p.Progress(files=2))
        return [source, parent, name, uid]

    async def restore(
        self, snapshot: str, path: bytes, parent: int, name: bytes, uid: int, progress: server.ProgressSink
    ) -> object:
        return [snapshot, path, parent, name, uid]


def talk(directory: Path, body: Callable[[Mount], Awaitable[None]], operations: Operations | None = None) -> Operations:
    """Serve `operations` in `directory` while `body` runs."""
    serving = Operations() if operations is None else operations

    async def main() -> None:
        listener = endpoint.listen(directory, "demo")
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                serving.on_unmount = nursery.cancel_scope.cancel
                await nursery.start(server.serve, listener, serving)
                with trio.CancelScope(shield=True):
                    await body(Mount(directory, "demo"))
                nursery.cancel_scope.cancel()

    trio.run(main)
    return serving


def ask(request: p.Request, directory: Path, operations: Operations | None = None) -> tuple[p.Done, list[p.Progress]]:
    seen: list[p.Progress] = []
    answers: list[p.Done] = []

    async def body(mount: Mount) -> None:
        answers.append(await trio.to_thread.run_sync(mount.ask, request, seen.append))

    talk(directory, body, operations)
    return answers[0], seen


def test_socket_and_directory_are_for_their_owner_alone(tmp_path: Path) -> None:
    endpoint.listen(tmp_path / "run", "demo").close()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run" / "demo.sock").stat().st_mode) == 0o600


def test_a_path_longer_than_sun_path_works(tmp_path: Path) -> None:
    answer, _ = ask(p.StatusRequest(), tmp_path / ("d" * 120))
    assert p.take_facts(answer, dict[str, str]) == {"volume": "demo"}


def test_a_dead_mounts_socket_is_replaced(tmp_path: Path) -> None:
    endpoint.listen(tmp_path, "demo").close()
    assert endpoint.volumes(tmp_path) == ["demo"]
    assert not Mount(tmp_path, "demo").alive()
    answer, _ = ask(p.InfoRequest(5), tmp_path)
    assert p.take_facts(answer, dict[str, int]) == {"ino": 5}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a stranger's directory")
def test_a_runtime_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 12345, 12345)
    with pytest.raises(ConfigError, match="not a directory of this user"):
        endpoint.listen(tmp_path / "run", "demo")


def test_a_folder_in_which_nothing_can_be_made_is_one_clear_error(tmp_path: Path) -> None:
    """Not the system's own error in a group of them, which the command would call a fault of icnfs."""
    (tmp_path / "run.").write_bytes(b"")
    with pytest.raises(LocalDiskError, match=r"control socket cannot be made: .*ICNFS_RUNTIME_DIR"):
        endpoint.listen(tmp_path / "run." / "below", "demo")
    with pytest.raises(LocalDiskError, match="demo"):
        endpoint.listen(tmp_path / "run", "demo" * 100)


def test_a_symlinked_runtime_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    with pytest.raises(ConfigError):
        endpoint.listen(tmp_path / "run", "demo")


def test_sync_reports_progress_and_answers(tmp_path: Path) -> None:
    answer, seen = ask(p.SyncRequest(), tmp_path)
    assert p.take_facts(answer, dict[str, int]) == {"batch": 7}
    assert seen[-1] == p.Progress(2, 2)


def test_a_leave_tells_what_it_waits_for(tmp_path: Path) -> None:
    answer, seen = ask(p.LeaveRequest("north", 7.0), tmp_path)
    assert p.take_facts(answer, float) == 7.0
    assert seen[-1] == p.Progress(3, 5, shares_left=2, waiting="north is slow")


def test_a_scrub_is_answered(tmp_path: Path) -> None:
    answer, seen = ask(p.ScrubRequest(True, False, 5), tmp_path)
    assert p.take_facts(answer, tuple[bool, bool, int]) == (True, False, 5)
    listed, told = ask(p.OrphansRequest(), tmp_path)
    assert p.take_facts(listed, dict[str, int]) == {"orphans": 4}
    assert told[-1] == p.Progress(shares_left=9)
    assert seen[-1] == p.Progress(3, 5, shares_left=2)


def test_a_clone_is_made_for_who_asks(tmp_path: Path) -> None:
    answer, seen = ask(p.CloneRequest(5, 1, b"copy"), tmp_path)
    assert p.take_facts(answer, tuple[int, int, bytes, int]) == (5, 1, b"copy", os.getuid())
    assert seen[-1] == p.Progress(files=2)


def test_a_restore_is_made_for_who_asks(tmp_path: Path) -> None:
    answer, _ = ask(p.RestoreRequest("before", b"a/b", 1, b"copy"), tmp_path)
    expected = ("before", b"a/b", 1, b"copy", os.getuid())
    assert p.take_facts(answer, tuple[str, bytes, int, bytes, int]) == expected


def test_snapshots_are_made_listed_and_deleted(tmp_path: Path) -> None:
    assert p.take_facts(ask(p.SnapshotsRequest(), tmp_path)[0], list[str]) == ["before"]
    made = ask(p.MakeSnapshotRequest("before", 7, 1.0), tmp_path)[0]
    assert p.take_facts(made, tuple[str, int, float]) == ("before", 7, 1.0)
    locked = ask(p.LockSnapshotRequest("before", 7), tmp_path)[0]
    assert p.take_facts(locked, tuple[str, int]) == ("before", 7)
    with pytest.raises(BaseExceptionGroup) as caught:
        ask(p.DeleteSnapshotRequest("before"), tmp_path)
    assert _only(caught.value, p.RemoteError).exit_code is Exit.SNAPSHOT


def test_adopt_holdings_and_policy_are_answered(tmp_path: Path) -> None:
    assert p.take_facts(ask(p.AdoptRequest(b"/demo.toml"), tmp_path)[0], type(None)) is None
    assert p.take_facts(ask(p.HoldingsRequest(), tmp_path)[0], dict[str, int]) == {"north": 3}
    assert p.take_facts(ask(p.PolicyRequest(), tmp_path)[0], dict[str, bool]) == {"clean": True}
    with pytest.raises(BaseExceptionGroup) as caught:
        ask(p.AdoptRequest(b"/other.toml"), tmp_path)
    assert _only(caught.value, p.RemoteError).exit_code is Exit.CONFIG


def test_a_failure_arrives_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        ask(p.SyncRequest(1.0), tmp_path)
    assert _only(caught.value, p.RemoteError).exit_code is Exit.DEGRADED


def test_an_unforeseen_failure_is_answered_without_its_text(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        ask(p.SyncRequest(2.0), tmp_path)
    message = str(_only(caught.value, p.RemoteError))
    assert "ZeroDivisionError" in message
    assert "secret text" not in message


def test_unmount_is_answered_though_it_cancels_the_server(tmp_path: Path) -> None:
    operations = Operations()
    ask(p.UnmountRequest(lazy=True), tmp_path, operations)
    assert operations.unmounted == [True]
    assert operations.syncs == 0


def test_drain_publishes_before_it_unmounts(tmp_path: Path) -> None:
    operations = Operations()
    answer, _ = ask(p.UnmountRequest(drain=True), tmp_path, operations)
    assert (operations.syncs, operations.unmounted) == (1, [False])
    assert p.take_facts(answer, dict[str, int]) == {"batch": 7}


def test_a_failed_drain_leaves_the_mount(tmp_path: Path) -> None:
    operations = Operations()
    with pytest.raises(BaseExceptionGroup):
        ask(p.UnmountRequest(drain=True, deadline=1.0), tmp_path, operations)
    assert operations.unmounted == []


def test_a_client_that_hangs_up_ends_the_waiting_only(tmp_path: Path) -> None:
    operations = Operations()

    async def body(mount: Mount) -> None:
        with endpoint.connect(tmp_path, "demo", 5) as connection:
            connection.sendall(p.frame(p.SyncRequest(3.0)))
            await operations.sync_started.wait()
        await operations.waits_cancelled.wait()
        assert await trio.to_thread.run_sync(mount.alive)

    talk(tmp_path, body, operations)


@pytest.mark.parametrize(
    "sent",
    [b"", b"\x01", b"\x01\xff\xff\xff\xff", b"\x02\0\0\0\0", b"\x01\0\0\0\x01\xc1", b"GET / HTTP/1.1\r\n"],
)
def test_bytes_of_no_request_are_refused_and_the_server_lives(tmp_path: Path, sent: bytes) -> None:
    async def body(mount: Mount) -> None:
        with endpoint.connect(tmp_path, "demo", 5) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            received = await trio.to_thread.run_sync(connection.recv, 4096)
        if sent:
            assert isinstance(p.take_answer(received[p.HEADER.size :]), p.Failed)
        await trio.to_thread.run_sync(mount.ask, p.StatusRequest())

    talk(tmp_path, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_another_user_is_not_answered() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as reachable:
        talk_as_stranger(Path(reachable))


def talk_as_stranger(directory: Path) -> None:
    async def body(mount: Mount) -> None:
        directory.chmod(0o755)
        (directory / "demo.sock").chmod(0o666)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.chdir(directory)
                os.setgroups([])
                os.setgid(12345)
                os.setuid(12345)
                stranger = socket.socket(socket.AF_UNIX)
                stranger.connect("demo.sock")
                try:
                    stranger.sendall(p.frame(p.StatusRequest()))
                    got = stranger.recv(100)
                except ConnectionError:
                    got = b""
                os.write(writer, b"answered" if got else b"refused")
            finally:
                os._exit(0)
        os.close(writer)
        verdict = await trio.to_thread.run_sync(os.read, reader, 100)
        os.close(reader)
        os.waitpid(child, 0)
        assert verdict == b"refused"

    talk(directory, body)


def test_more_clients_than_places_wait_their_turn(tmp_path: Path) -> None:
    async def body(mount: Mount) -> None:
        idle = [endpoint.connect(tmp_path, "demo", 5) for _ in range(server.CONNECTIONS)]
        answered = trio.Event()

        async def late() -> None:
            await trio.to_thread.run_sync(mount.ask, p.StatusRequest())
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            assert not answered.is_set()
            for connection in idle:
                connection.close()
            await answered.wait()

    talk(tmp_path, body)


def test_nobody_listening_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NotMountedError, match="icnfs mount demo DIR"):
        Mount(tmp_path / "none", "demo").ask(p.StatusRequest())


def test_the_end_of_a_process_is_seen(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    handle = os.pidfd_open(child)
    assert not wait_ended(handle, 0.0)
    os.close(writer)
    assert wait_ended(handle, 10.0)
    os.waitpid(child, 0)
    os.close(handle)
    assert wait_ended(None, 0.0)


def _only(group: BaseException, kind: type[p.RemoteError]) -> p.RemoteError:
    while isinstance(group, BaseExceptionGroup):
        assert len(group.exceptions) == 1
        group = group.exceptions[0]
    assert isinstance(group, kind)
    return group


def test_a_lying_server_is_a_format_error(tmp_path: Path) -> None:
    async def main() -> None:
        with endpoint.listen(tmp_path, "demo") as listener:

            def lie() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"\x01\xff\xff\xff\xff")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, lie)
                with pytest.raises(FormatError):
                    await trio.to_thread.run_sync(Mount(tmp_path, "demo").ask, p.StatusRequest())

    trio.run(main)
