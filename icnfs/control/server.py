"""The mount process's end of the control socket: who may ask, how much at once, and for how long.

Promises: only the mount's own user and root are answered, by the kernel's word; a request is read within a deadline
and a size cap; at most CONNECTIONS are served at a time, the rest wait; a client that goes away ends the waiting on
its behalf and nothing else; no request's failure reaches the mount.  What the requests mean is the `Operations`'.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from icnfs.control import endpoint
from icnfs.control.protocol import (
    ANSWER_MAX,
    HEADER,
    REQUEST_MAX,
    AddKeyRequest,
    AdoptRequest,
    Answer,
    CloneRequest,
    DeleteSnapshotRequest,
    Done,
    HealthRequest,
    HoldingsRequest,
    InfoRequest,
    KeysRequest,
    LeaveRequest,
    LockSnapshotRequest,
    MakeSnapshotRequest,
    OrphansRequest,
    PolicyRequest,
    Progress,
    RemoveKeyRequest,
    Request,
    RestoreRequest,
    ScrubRequest,
    SnapshotsRequest,
    StatusRequest,
    StopRequest,
    SyncRequest,
    UnmountRequest,
    body_length,
    done,
    failed,
    frame,
    take_request,
)
from icnfs.errors import FormatError, IcnfsError

CONNECTIONS: Final = 16
READING: Final = 10.0
"""Seconds in which a client must have sent its request."""

SENDING: Final = 30.0
"""Seconds in which a client must have taken an answer."""

PROGRESS_EVERY: Final = 0.1
"""Seconds between two progress messages to one client."""

BEAT_EVERY: Final = 5.0
"""Seconds after which the last progress is sent again: a client tells a slow request from a dead mount by it."""

ProgressSink = Callable[[Progress], None]
"""Takes the newest progress; returns at once."""

_log = logging.getLogger(__name__)


class Operations(Protocol):
    """What the socket can ask of a mount.  Each gives a document for `--json`, or raises an IcnfsError."""

    async def status(self, looked: bool) -> object:
        """The volume's figures; with `looked`, after the first look at the providers, if that does not take long."""

    async def sync(self, deadline: float, progress: ProgressSink) -> object:
        """Publish all that is written; DegradedError where it is not safe after `deadline` seconds (0: the default)."""

    async def drain(self, deadline: float, progress: ProgressSink) -> object:
        """Publish all that is written, safe or not yet; raises what stands in the way."""

    async def unmount(self, lazy: bool) -> None:
        """Detach the mount point and begin to end; MountPointError while files are in use and not `lazy`."""

    async def info(self, ino: int) -> object:
        """Where the contents of `ino` lie."""

    async def keys(self) -> object:
        """Kinds and labels of the key slots."""

    async def add_key(self, entry: bytes) -> object:
        """Take a key that was wrapped elsewhere."""

    async def remove_key(self, key_id: str) -> object:
        """Remove a key."""

    async def adopt(self, path: bytes) -> None:
        """Take over what the TOML says now; ConfigError, and nothing changed, where that cannot be."""

    async def holdings(self) -> object:
        """What each provider holds."""

    async def policy(self) -> object:
        """How providers and segments stand under the policy."""

    async def health(self, after: str, most: int) -> object:
        """The health of every segment, and a page of those that are not safe."""

    async def leave(self, provider: str, deadline: float, progress: ProgressSink) -> object:
        """Move every share away from `provider` and delete what lies there; DegradedError after `deadline` seconds."""

    async def scrub(self, full: bool, restart: bool, rate: int, progress: ProgressSink) -> object:
        """Look at every share; being cancelled loses nothing of it."""

    async def orphans(self, progress: ProgressSink) -> object:
        """List what lies at the providers, and delete old orphans."""

    async def snapshots(self) -> object:
        """All snapshots, the oldest first."""

    async def make_snapshot(self, name: str, until: int, deadline: float) -> object:
        """Keep the tree as it is now, safe on return; DegradedError after `deadline` seconds."""

    async def lock_snapshot(self, name: str, until: int) -> object:
        """Have nothing delete it before `until`; SnapshotError where it is locked for longer."""

    async def delete_snapshot(self, name: str) -> None:
        """Keep a snapshot no longer; SnapshotError where it is locked."""

    async def clone(self, source: int, parent: int, name: bytes, uid: int, progress: ProgressSink) -> object:
        """Clone a file or tree for `uid`, whole or not at all."""

    async def restore(
        self, snapshot: str, path: bytes, parent: int, name: bytes, uid: int, progress: ProgressSink
    ) -> object:
        """Restore a file or tree from a snapshot for `uid`, whole or not at all."""


async def serve(
    listener: socket.socket,
    operations: Operations,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on `listener` (from `endpoint.listen`) until cancelled."""
    limit = trio.CapacityLimiter(CONNECTIONS)
    with trio.socket.from_stdlib_socket(listener) as listening:
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await limit.acquire_on_behalf_of(token := object())
                try:
                    connection, _ = await listening.accept()
                except OSError as error:
                    limit.release_on_behalf_of(token)
                    _log.warning("control_accept_failed errno=%s", error.errno)
                    await trio.sleep(PROGRESS_EVERY)
                    continue
                nursery.start_soon(_serve_one, trio.SocketStream(connection), operations, limit, token)


async def _serve_one(
    stream: trio.SocketStream, operations: Operations, limit: trio.CapacityLimiter, token: object
) -> None:
    try:
        async with stream:
            pid, uid = endpoint.peer(stream.socket)
            if not endpoint.trusted(uid):
                _log.warning("control_refused uid=%d pid=%d", uid, pid)
                return
            await _Conversation(stream, operations, uid).hold()
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        _log.debug("control_client_gone")
    except Exception:  # noqa: BLE001 - a verb's connection must not end the mount
        _log.exception("control_failed")
    finally:
        limit.release_on_behalf_of(token)


class _Conversation:
    """One request and its answers."""

    def __init__(self, stream: trio.SocketStream, operations: Operations, uid: int) -> None:
        self._stream = stream
        self._operations = operations
        self._uid = uid
        self._latest = self._sent = Progress()
        self._scope = trio.CancelScope()

    async def hold(self) -> None:
        """Read the request, carry it out, answer; a client that hangs up first cancels the waiting."""
        with self._scope:
            try:
                request = await self._read()
            except FormatError as error:
                await self._send(failed(error))
                return
            if request is None:
                return
            answer: Answer | None = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_hung_up, nursery.cancel_scope)
                nursery.start_soon(self._report, nursery.cancel_scope)
                answer = await self._carry_out(request)
                nursery.cancel_scope.cancel()
            if answer is not None:
                if isinstance(answer, Done) and self._latest != self._sent:
                    await self._send(self._latest)
                await self._send(answer)

    async def _carry_out(self, request: Request) -> Answer:
        _log.debug("control_request kind=%s", type(request).__name__)
        try:
            answer = done(await _MEANINGS[type(request)](self, request))
        except IcnfsError as error:
            return failed(error)
        except Exception as error:  # noqa: BLE001 - answered and logged; the mount works on
            _log.exception("control_request_failed kind=%s", type(request).__name__)
            return failed(IcnfsError(f"the mount process failed inside ({type(error).__name__}); see its log"))
        if len(bytes(answer.facts)) > ANSWER_MAX - 64:
            return failed(IcnfsError("the answer is too large for the control socket"))
        return answer

    async def _read(self) -> Request | None:
        """The request; None from a client that sent nothing or took too long."""
        with trio.move_on_after(READING):
            header = await self._exactly(HEADER.size)
            if not header:
                return None
            return take_request(await self._exactly(body_length(header, REQUEST_MAX)))
        return None

    async def _exactly(self, size: int) -> bytes:
        """`size` bytes, fewer where the stream ends."""
        received = bytearray()
        while len(received) < size:
            part = await self._stream.receive_some(size - len(received))
            if not part:
                break
            received += part
        return bytes(received)

    async def _send(self, answer: Answer) -> None:
        """Send whole frames only: a cancelled half would garble the next."""
        with trio.CancelScope(shield=True), trio.fail_after(SENDING):
            await self._stream.send_all(frame(answer))

    async def _until_hung_up(self, scope: trio.CancelScope) -> None:
        """A client sends nothing after its request: whatever arrives now is the end."""
        try:
            await self._stream.receive_some(1)
        except trio.BrokenResourceError:
            pass
        scope.cancel()

    def progress(self, newest: Progress) -> None:
        """Remember the newest progress; `_report` sends it on."""
        self._latest = newest

    async def _report(self, scope: trio.CancelScope) -> None:
        """Send progress when it changed, and every BEAT_EVERY seconds when not."""
        at = trio.current_time()
        while True:
            await trio.sleep(PROGRESS_EVERY)
            now = trio.current_time()
            if self._latest != self._sent or now - at >= BEAT_EVERY:
                self._sent, at = self._latest, now
                try:
                    await self._send(self._sent)
                except (trio.BrokenResourceError, trio.TooSlowError):
                    scope.cancel()

    async def _status(self, request: Request) -> object:
        assert isinstance(request, StatusRequest)
        return await self._operations.status(request.looked)

    async def _sync(self, request: Request) -> object:
        assert isinstance(request, SyncRequest)
        return await self._operations.sync(request.deadline, self.progress)

    async def _unmount(self, request: Request) -> object:
        assert isinstance(request, UnmountRequest)
        published = await self._operations.drain(request.deadline, self.progress) if request.drain else None
        await self._end(request.lazy)
        return published

    async def _end(self, lazy: bool) -> None:
        """From here on the server itself is being cancelled; this conversation still gets its answer out."""
        self._scope.shield = True
        await self._operations.unmount(lazy)

    async def _info(self, request: Request) -> object:
        assert isinstance(request, InfoRequest)
        return await self._operations.info(request.ino)

    async def _keys(self, _: Request) -> object:
        return await self._operations.keys()

    async def _add_key(self, request: Request) -> object:
        assert isinstance(request, AddKeyRequest)
        return await self._operations.add_key(request.entry)

    async def _remove_key(self, request: Request) -> object:
        assert isinstance(request, RemoveKeyRequest)
        return await self._operations.remove_key(request.id)

    async def _adopt(self, request: Request) -> object:
        assert isinstance(request, AdoptRequest)
        await self._operations.adopt(request.path)
        return None

    async def _holdings(self, _: Request) -> object:
        return await self._operations.holdings()

    async def _policy(self, _: Request) -> object:
        return await self._operations.policy()

    async def _health(self, request: Request) -> object:
        assert isinstance(request, HealthRequest)
        return await self._operations.health(request.after, request.most)

    async def _leave(self, request: Request) -> object:
        assert isinstance(request, LeaveRequest)
        return await self._operations.leave(request.provider, request.deadline, self.progress)

    async def _scrub(self, request: Request) -> object:
        assert isinstance(request, ScrubRequest)
        return await self._operations.scrub(request.full, request.restart, request.rate, self.progress)

    async def _snapshots(self, _: Request) -> object:
        return await self._operations.snapshots()

    async def _make_snapshot(self, request: Request) -> object:
        assert isinstance(request, MakeSnapshotRequest)
        return await self._operations.make_snapshot(request.name, request.until, request.deadline)

    async def _lock_snapshot(self, request: Request) -> object:
        assert isinstance(request, LockSnapshotRequest)
        return await self._operations.lock_snapshot(request.name, request.until)

    async def _delete_snapshot(self, request: Request) -> object:
        assert isinstance(request, DeleteSnapshotRequest)
        await self._operations.delete_snapshot(request.name)
        return None

    async def _orphans(self, _: Request) -> object:
        return await self._operations.orphans(self.progress)

    async def _clone(self, request: Request) -> object:
        assert isinstance(request, CloneRequest)
        return await self._operations.clone(request.source, request.parent, request.name, self._uid, self.progress)

    async def _restore(self, request: Request) -> object:
        assert isinstance(request, RestoreRequest)
        place = request.parent, request.name
        return await self._operations.restore(request.snapshot, request.path, *place, self._uid, self.progress)

    async def _stop(self, _: Request) -> object:
        await self._end(True)
        return None


_MEANINGS: Final[dict[type[Request], Callable[[_Conversation, Request], Awaitable[object]]]] = {
    StatusRequest: _Conversation._status,
    SyncRequest: _Conversation._sync,
    UnmountRequest: _Conversation._unmount,
    InfoRequest: _Conversation._info,
    KeysRequest: _Conversation._keys,
    AddKeyRequest: _Conversation._add_key,
    RemoveKeyRequest: _Conversation._remove_key,
    AdoptRequest: _Conversation._adopt,
    HoldingsRequest: _Conversation._holdings,
    PolicyRequest: _Conversation._policy,
    HealthRequest: _Conversation._health,
    LeaveRequest: _Conversation._leave,
    ScrubRequest: _Conversation._scrub,
    OrphansRequest: _Conversation._orphans,
    SnapshotsRequest: _Conversation._snapshots,
    MakeSnapshotRequest: _Conversation._make_snapshot,
    LockSnapshotRequest: _Conversation._lock_snapshot,
    DeleteSnapshotRequest: _Conversation._delete_snapshot,
    CloneRequest: _Conversation._clone,
    RestoreRequest: _Conversation._restore,
    StopRequest: _Conversation._stop,
}
