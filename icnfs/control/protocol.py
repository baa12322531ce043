"""The control socket's bytes: what a verb may ask of a mounted volume, and what it is answered.

A connection carries one request and its answers: any number of `Progress`, then one `Done` or `Failed`.  A frame is

    protocol (1) || length of the body (4, big-endian) || body (msgpack, one tagged struct)

Promises: `take_request` and `take_answer` are total, any bytes give a value or `FormatError`; nothing is allocated for
a length above the cap.  No secret and no file's contents ever cross this socket: a file is named by its inode number,
save one that is to be made or restored, and a new key arrives as the slot that the verb has wrapped already.  This
module knows nothing of sockets.
"""

from __future__ import annotations

import struct
from typing import Final, TypeVar

import msgspec

from icnfs.config.paths import NAME_PATTERN
from icnfs.control.log import escape
from icnfs.errors import Exit, FormatError, IcnfsError, NewerFormatError
from icnfs.format.snapshot import is_name
from icnfs.limits import NAME_MAX

PROTOCOL: Final = 1
"""Grows when a message changes its meaning; a verb and a mount of different protocols refuse to talk."""

HEADER: Final = struct.Struct(">BI")
REQUEST_MAX: Final = 64 * 1024
"""Bytes in a request's body: a new key's slot with a copy for each of 64 providers has 25 KiB."""

ANSWER_MAX: Final = 8 * 1024 * 1024
"""Bytes in an answer's body: `info` of a file over 100,000 segments stays below it."""

MOST_SEGMENTS: Final = 100_000
"""Segments that a page of `health` may be asked for; it may have fewer."""

WAIT_MAX: Final = 7 * 86400.0
"""Longest deadline a request may ask for, in seconds."""

PATH_MAX: Final = 4096
"""Bytes of a path that a request may name."""

RATE_MAX: Final = 10**12
"""Highest rate that a request may ask for, in bytes per second."""


class StatusRequest(msgspec.Struct, frozen=True, tag="status", forbid_unknown_fields=True, omit_defaults=True):
    """The volume's figures, as `icnfs status` shows them; `looked`: once the mount has looked at its providers' places,
    or has waited a moment for it."""

    looked: bool = False


class SyncRequest(msgspec.Struct, frozen=True, tag="sync", forbid_unknown_fields=True):
    """Publish all that is written now and answer when it is safe; `deadline` in seconds, 0 for the volume's own."""

    deadline: float = 0.0


class UnmountRequest(msgspec.Struct, frozen=True, tag="unmount", forbid_unknown_fields=True):
    """Unmount and end; with `drain`, publish first.  `lazy` detaches a mount whose files are in use."""

    drain: bool = False
    deadline: float = 0.0
    lazy: bool = False


class InfoRequest(msgspec.Struct, frozen=True, tag="info", forbid_unknown_fields=True):
    """Where the contents of inode `ino` lie."""

    ino: int


class KeysRequest(msgspec.Struct, frozen=True, tag="keys", forbid_unknown_fields=True):
    """The volume's key slots: kinds and labels, never what they hold."""


class AddKeyRequest(msgspec.Struct, frozen=True, tag="add-key", forbid_unknown_fields=True):
    """Take a key that the verb made: an encoded `icnfs.volume.keyring.Entry`, nothing of which is secret."""

    entry: bytes


class RemoveKeyRequest(msgspec.Struct, frozen=True, tag="remove-key", forbid_unknown_fields=True):
    """Remove the key `id`."""

    id: str


class AdoptRequest(msgspec.Struct, frozen=True, tag="adopt", forbid_unknown_fields=True):
    """Read the TOML again and take over its providers and rules; `path` (bytes of a real path) is where the verb has
    it: a mount that reads another refuses."""

    path: bytes


class HoldingsRequest(msgspec.Struct, frozen=True, tag="holdings", forbid_unknown_fields=True):
    """What each provider holds of the volume, those that the TOML no longer names too."""


class PolicyRequest(msgspec.Struct, frozen=True, tag="policy", forbid_unknown_fields=True):
    """Judge the providers and every segment under the policy in force."""


class HealthRequest(msgspec.Struct, frozen=True, tag="health", forbid_unknown_fields=True):
    """The health of all segments, and up to `most` of those that are not safe, from `after` on ("", or what the last
    page said)."""

    after: str = ""
    most: int = 20


class LeaveRequest(msgspec.Struct, frozen=True, tag="leave", forbid_unknown_fields=True):
    """Answer when nothing of the volume is left at `provider`, which is being drained; `deadline` in seconds, 0 for
    none."""

    provider: str
    deadline: float = 0.0


class ScrubRequest(msgspec.Struct, frozen=True, tag="scrub", forbid_unknown_fields=True):
    """Look at every share: its root, or with `full` every byte; at most `rate` bytes a second, 0 for no bound.

    It goes on from where the last one broke off, unless to `restart`; it ends where the client goes away.
    """

    full: bool = False
    restart: bool = False
    rate: int = 0


class SnapshotsRequest(msgspec.Struct, frozen=True, tag="snapshots", forbid_unknown_fields=True):
    """All snapshots, the oldest first."""


class MakeSnapshotRequest(msgspec.Struct, frozen=True, tag="make-snapshot", forbid_unknown_fields=True):
    """Keep the tree as it is now under `name`; answer when that is safe.

    `until` is the Unix second before which nothing may delete it, 0 for none; `deadline` in seconds, 0 for the
    volume's own.
    """

    name: str
    until: int = 0
    deadline: float = 0.0


class LockSnapshotRequest(msgspec.Struct, frozen=True, tag="lock-snapshot", forbid_unknown_fields=True):
    """Have nothing delete the snapshot `name` before the Unix second `until`; no lock is ever shortened."""

    name: str
    until: int


class DeleteSnapshotRequest(msgspec.Struct, frozen=True, tag="delete-snapshot", forbid_unknown_fields=True):
    """Keep the snapshot `name` no longer."""

    name: str


class OrphansRequest(msgspec.Struct, frozen=True, tag="orphans", forbid_unknown_fields=True):
    """List what lies at the providers, and delete shares that nothing names and that were such for long enough."""


class CloneRequest(msgspec.Struct, frozen=True, tag="clone", forbid_unknown_fields=True):
    """Clone inode `source` as `name` in directory `parent`; it ends where the client goes away, and leaves nothing."""

    source: int
    parent: int
    name: bytes


class RestoreRequest(msgspec.Struct, frozen=True, tag="restore", forbid_unknown_fields=True):
    """Make what `path`, from the root of the volume, was in `snapshot` once more, as `name` in directory `parent`."""

    snapshot: str
    path: bytes
    parent: int
    name: bytes


class StopRequest(msgspec.Struct, frozen=True, tag="stop", forbid_unknown_fields=True):
    """End as on SIGTERM: detach even when files are in use."""


Request = (
    StatusRequest
    | SyncRequest
    | UnmountRequest
    | InfoRequest
    | KeysRequest
    | AddKeyRequest
    | RemoveKeyRequest
    | AdoptRequest
    | HoldingsRequest
    | PolicyRequest
    | HealthRequest
    | LeaveRequest
    | ScrubRequest
    | OrphansRequest
    | SnapshotsRequest
    | MakeSnapshotRequest
    | LockSnapshotRequest
    | DeleteSnapshotRequest
    | CloneRequest
    | RestoreRequest
    | StopRequest
)


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far a request is: bytes published, moved or looked at, of those to be (both may grow); shares still missing,
    or still to be moved or looked at; what it waits for, "" while it waits for nothing; and files made so far."""

    done: int = 0
    total: int = 0
    missing_shares: int = 0
    shares_left: int = 0
    waiting: str = ""
    files: int = 0


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The request is carried out; `facts` is its document, as the verb's `--json` prints it."""

    facts: msgspec.Raw = msgspec.Raw(b"\xc0")


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The request failed: one line, and the exit code that the verb ends with."""

    exit_code: int
    message: str


Answer = Progress | Done | Failed

_NAMING: Final = MakeSnapshotRequest | LockSnapshotRequest | DeleteSnapshotRequest
_WAITING: Final = SyncRequest | UnmountRequest | LeaveRequest | MakeSnapshotRequest

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_T = TypeVar("_T")


class RemoteError(IcnfsError):
    """A failure that the mount process met and reported; it keeps the exit code it had there."""

    def __init__(self, message: str, exit_code: Exit) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def frame(message: Request | Answer) -> bytes:
    """Header and body of one message."""
    body = _encoder.encode(message)
    return HEADER.pack(PROTOCOL, len(body)) + body


def body_length(header: bytes, cap: int) -> int:
    """Bytes that follow `header`; FormatError above `cap`, NewerFormatError for another protocol."""
    if len(header) != HEADER.size:
        raise FormatError("control socket: the connection ended early; is the mount process still running?")
    protocol, length = HEADER.unpack(header)
    if protocol != PROTOCOL:
        raise NewerFormatError(
            f"control socket: the mount speaks protocol {protocol}, this command {PROTOCOL}; unmount and mount again"
        )
    if length > cap:
        raise FormatError(f"control socket: a message of {length} bytes, at most {cap} are allowed")
    return int(length)


def take_request(body: bytes) -> Request:
    """The request in `body`; FormatError for any other bytes, and for values out of range."""
    request = _decode(_requests, body)
    if isinstance(request, _WAITING) and not 0.0 <= request.deadline <= WAIT_MAX:
        raise FormatError(f"control socket: a deadline of {request.deadline} s; from 0 to {WAIT_MAX:.0f} are allowed")
    if isinstance(request, _NAMING) and not is_name(request.name):
        raise FormatError("control socket: not a snapshot's name")
    if isinstance(request, MakeSnapshotRequest | LockSnapshotRequest) and not 0 <= request.until < 2**40:
        raise FormatError("control socket: not a date")
    if isinstance(request, InfoRequest) and not 0 < request.ino < 2**63:
        raise FormatError("control socket: not an inode number")
    if isinstance(request, CloneRequest) and not (
        0 < request.source < 2**63 and 0 < request.parent < 2**63 and _is_file_name(request.name)
    ):
        raise FormatError("control socket: not a file to be cloned, or not a place for it")
    if isinstance(request, RestoreRequest) and not (
        is_name(request.snapshot)
        and len(request.path) <= PATH_MAX
        and 0 < request.parent < 2**63
        and _is_file_name(request.name)
    ):
        raise FormatError("control socket: not a file to be restored, or not a place for it")
    if isinstance(request, HealthRequest) and not (0 <= request.most <= MOST_SEGMENTS and len(request.after) <= 64):
        raise FormatError("control socket: not a page of segments")
    if isinstance(request, ScrubRequest) and not 0 <= request.rate <= RATE_MAX:
        raise FormatError(f"control socket: a rate of {request.rate}; from 0 to {RATE_MAX} are allowed")
    if isinstance(request, LeaveRequest) and NAME_PATTERN.fullmatch(request.provider) is None:
        raise FormatError("control socket: not a provider's name")
    return request


def _is_file_name(name: bytes) -> bool:
    return 0 < len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


def take_answer(body: bytes) -> Answer:
    """The answer in `body`; FormatError for any other bytes."""
    return _decode(_answers, body)


def take_facts(done: Done, kind: type[_T]) -> _T:
    """The document of a `Done`, checked to be a `kind`; FormatError otherwise."""
    return _decode(msgspec.msgpack.Decoder(kind), bytes(done.facts))


def done(facts: object = None) -> Done:
    """A `Done` that carries `facts`."""
    return Done(msgspec.Raw(_encoder.encode(facts)))


def failed(error: IcnfsError) -> Failed:
    """The answer that hands `error` to the verb."""
    return Failed(int(error.exit_code), escape(str(error)))


def raise_failed(answer: Failed) -> None:
    """Raise what the mount process reported; an exit code unknown here counts as FAILED."""
    known = answer.exit_code in Exit.__members__.values() and answer.exit_code != Exit.OK
    raise RemoteError(answer.message, Exit(answer.exit_code) if known else Exit.FAILED)


def _decode(decoder: msgspec.msgpack.Decoder[_T], body: bytes) -> _T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"control socket: not a message of this protocol ({type(error).__name__})") from None
