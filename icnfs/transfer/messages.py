"""What front and transfer say to each other: every message, described once.

One message is one packet.  A request carries a call number that its reply repeats; the front may take a request back
with `Cancel`, and then hears nothing more of it.  Bulk bytes ride beside the message as a sealed memfd (see
`bulk`); up to `INLINE_MAX` bytes ride inside it.  Decoding is total: any bytes give a message or a FormatError, for
neither side trusts the other to be whole.  This module knows nothing of sockets, of processes, or of what is done.

A deadline is in seconds from the moment the request is read: the two processes need not share a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

import msgspec

from icnfs import errors
from icnfs.errors import FormatError, IcnfsError, ProviderError
from icnfs.limits import INLINE_MAX, LEAF_SIZE, MESSAGE_MAX, OBJECT_MAX, SEGMENT_MAX, SHARES_MAX
from icnfs.providers.open import ProviderSpec

Call = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=SHARES_MAX)]
Leaf = Annotated[int, msgspec.Meta(ge=0, lt=SEGMENT_MAX // LEAF_SIZE)]
Count = Annotated[int, msgspec.Meta(ge=1, le=SHARES_MAX)]
Size = Annotated[int, msgspec.Meta(ge=0, le=SEGMENT_MAX)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400 * 366)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
ProviderName = Annotated[str, msgspec.Meta(max_length=64)]
ObjectName = Annotated[str, msgspec.Meta(max_length=200)]
Text = Annotated[str, msgspec.Meta(max_length=500)]
Inline = Annotated[bytes, msgspec.Meta(max_length=INLINE_MAX)]
SegmentId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Descriptor = Annotated[bytes, msgspec.Meta(max_length=32 * 1024)]
Root = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Names = Annotated[tuple[ObjectName, ...], msgspec.Meta(max_length=SHARES_MAX)]
Indexes = Annotated[tuple[Index, ...], msgspec.Meta(max_length=SHARES_MAX)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """Bytes per second to and from all providers together; 0 for no bound."""

    up: Bytes = 0
    down: Bytes = 0


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The common form: an array that opens with the type's name."""


class Order(msgspec.Struct, frozen=True, array_like=True):
    """What to code and where each share goes: `names` and `providers` are by share index, n of each.

    The payload is k data shares of `share_len` bytes, one after another; `size` of those bytes are contents.
    """

    id: SegmentId
    k: Count
    n: Count
    share_len: Size
    size: Size
    names: Names
    providers: Annotated[tuple[ProviderName, ...], msgspec.Meta(max_length=SHARES_MAX)]

    def check(self) -> None:
        """Raise FormatError unless the fields agree with each other."""
        whole = 1 <= self.k <= self.n and len(self.names) == self.n == len(self.providers)
        if not whole or self.share_len < 1 or not 1 <= self.size <= self.k * self.share_len <= SEGMENT_MAX:
            raise FormatError("a segment's order contradicts itself")


# --- front to transfer ----------------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """The first message of a process's life: whom it talks to, and how long it waits at most before it hedges a read.

    Answered with Done, or with Failed if a provider's URL cannot be used.
    """

    call: Call
    specs: Annotated[tuple[ProviderSpec, ...], msgspec.Meta(max_length=256)]
    hedge: Seconds
    limits: Limits = Limits()


class Providers(Message, frozen=True):
    """From now on talk to these providers, and no others.  Answered as Hello is."""

    call: Call
    specs: Annotated[tuple[ProviderSpec, ...], msgspec.Meta(max_length=256)]
    limits: Limits


class Ping(Message, frozen=True):
    """Are you there?  Answered with Done at once."""

    call: Call


class PutSegment(Message, frozen=True):
    """Code the memfd beside this message and store its shares, or those of `only`.  Answered with Stored.

    Once `enough` shares are stored, those of providers that are much slower are waited for no longer.
    """

    call: Call
    deadline: Seconds
    order: Order
    only: Indexes | None
    enough: Count


class CompleteSegment(Message, frozen=True):
    """Store share `missing[i]` at `providers[i]` as `targets[i]`; answered with Stored.

    It is read where it is stored, or rebuilt from any k others; those bear `names`.
    """

    call: Call
    deadline: Seconds
    segment: Descriptor
    names: Names
    missing: Indexes
    providers: Annotated[tuple[ProviderName, ...], msgspec.Meta(max_length=SHARES_MAX)]
    targets: Names


class Fetch(Message, frozen=True):
    """Read a range of one data share.  Answered with Data."""

    call: Call
    deadline: Seconds
    segment: Descriptor
    names: Names
    share: Index
    offset: Size
    length: Size
    distrust: Indexes
    verified: bool


class FetchStripe(Message, frozen=True):
    """Read the same range of all k data shares, from whichever k shares are expected first.

    Answered with Data: the k ranges, one after another.
    """

    call: Call
    deadline: Seconds
    segment: Descriptor
    names: Names
    offset: Size
    length: Size


class GetSegment(Message, frozen=True):
    """Read a whole payload, verified.  Answered with Data."""

    call: Call
    deadline: Seconds
    segment: Descriptor
    names: Names


class Check(Message, frozen=True):
    """See whether a share is still what was stored: by these of its leaves, as a whole where there are none, by its
    list of leaf hashes alone for None.

    Answered with Checked.
    """

    call: Call
    deadline: Seconds
    segment: Descriptor
    names: Names
    index: Index
    leaves: Annotated[tuple[Leaf, ...], msgspec.Meta(max_length=SEGMENT_MAX // LEAF_SIZE)] | None


class PutObject(Message, frozen=True):
    """Store an object: `data`, or the memfd beside the message if `data` is None.  Answered with Done.

    With `new`, only where no other bytes have that name: NameTakenError otherwise.
    """

    call: Call
    deadline: Seconds
    provider: ProviderName
    name: ObjectName
    data: Inline | None
    new: bool = False


class GetObject(Message, frozen=True):
    """Read a whole object of at most `most` bytes.  Answered with Data."""

    call: Call
    deadline: Seconds
    provider: ProviderName
    name: ObjectName
    most: Annotated[int, msgspec.Meta(ge=0, le=OBJECT_MAX)] = OBJECT_MAX


class ListObjects(Message, frozen=True):
    """List every name that starts with `prefix` and sorts after `after`, or the first page of them alone.

    Answered with Data: a line for each.
    """

    call: Call
    deadline: Seconds
    provider: ProviderName
    prefix: ObjectName
    after: ObjectName = ""
    page: bool = False


class Peek(Message, frozen=True):
    """Look how large an object is, and how it begins.  Answered with Peeked."""

    call: Call
    deadline: Seconds
    provider: ProviderName
    name: ObjectName
    length: Annotated[int, msgspec.Meta(ge=0, le=INLINE_MAX)]


class DeleteObject(Message, frozen=True):
    """Delete an object; a missing one is deleted already.  Answered with Done."""

    call: Call
    deadline: Seconds
    provider: ProviderName
    name: ObjectName


class Probe(Message, frozen=True):
    """Ask a provider how it is, now.  Answered with Facts."""

    call: Call
    deadline: Seconds
    provider: ProviderName


class Cancel(Message, frozen=True):
    """The caller has gone: stop the work of `call` and do not answer it."""

    call: Call


Request = (
    Hello
    | Providers
    | Ping
    | PutSegment
    | CompleteSegment
    | Fetch
    | FetchStripe
    | GetSegment
    | Check
    | PutObject
    | GetObject
    | ListObjects
    | Peek
    | DeleteObject
    | Probe
    | Cancel
)
Work = (
    Providers
    | PutSegment
    | CompleteSegment
    | Fetch
    | FetchStripe
    | GetSegment
    | Check
    | PutObject
    | GetObject
    | ListObjects
    | Peek
    | DeleteObject
    | Probe
)


# --- transfer to front ----------------------------------------------------------------------------------------------


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """An error of the closed tree, as it crosses: its class's name, the provider if it has one, and the text."""

    kind: Annotated[str, msgspec.Meta(max_length=64)]
    provider: ProviderName
    detail: Text


class Done(Message, frozen=True):
    """It is done; `kept` where what was to be deleted is only hidden, and the provider keeps it."""

    call: Call
    kept: bool = False


class Data(Message, frozen=True):
    """Bytes: `data`, or the first `size` of the memfd beside the message if `data` is None."""

    call: Call
    size: Annotated[int, msgspec.Meta(ge=0, le=max(SEGMENT_MAX, OBJECT_MAX))]
    data: Inline | None


class Stored(Message, frozen=True):
    """What became of an upload: the root of every share, and the error of each that was not stored.

    Shares of `late` are still on their way to slow providers: a ShareEvent, "stored" or "failed", follows for each.
    """

    call: Call
    roots: Annotated[tuple[Root, ...], msgspec.Meta(max_length=SHARES_MAX)]
    errors: Annotated[dict[Index, Fault], msgspec.Meta(max_length=SHARES_MAX)]
    late: Indexes = ()


class Checked(Message, frozen=True):
    """What a check found (see `checks`), and for how many bytes that were read."""

    call: Call
    outcome: Annotated[str, msgspec.Meta(pattern="^(present|missing|altered|down|unknown)\\Z")]
    bytes: Bytes
    detail: Text


class Peeked(Message, frozen=True):
    """An object's size, and its first bytes."""

    call: Call
    size: Bytes
    head: Inline


class Facts(Message, frozen=True):
    """What a provider says of itself: bytes, and the pool (equal pools share one physical disk)."""

    call: Call
    free_bytes: Bytes | None
    total_bytes: Bytes | None
    pool: Text


class Failed(Message, frozen=True):
    call: Call
    fault: Fault


class ProviderState(msgspec.Struct, frozen=True, array_like=True):
    """One provider as transfer sees it.

    `state` is "up", "down", "probing" (it was down, and is asked again) or "unknown" (not asked yet); `error` is the
    last one that was not followed by a success, or ""; `bad_shares` counts shares known to be altered, truncated or
    withheld; `latency_s` is the median seconds of recent small reads, and the rates are moving estimates in bytes per
    second, None before the first; the bytes are payload, since the process started; `writes` is as in
    `providers.refusals`.
    """

    name: ProviderName
    state: Annotated[str, msgspec.Meta(pattern="^(up|down|probing|unknown)\\Z")] = "unknown"
    error: Text = ""
    bad_shares: Bytes = 0
    free_bytes: Bytes | None = None
    pool: Text = ""
    latency_s: Seconds | None = None
    rate_up: Rate | None = None
    rate_down: Rate | None = None
    bytes_up: Bytes = 0
    bytes_down: Bytes = 0
    writes: Annotated[str, msgspec.Meta(pattern="^(ok|refused|due)\\Z")] = "ok"

    @property
    def is_down(self) -> bool:
        """Whether it does not answer, or refuses everything, as far as is known."""
        return self.state in ("down", "probing")

    def change_from(self, before: ProviderState) -> str:
        """What has happened since `before` that people want to know, "" for nothing."""
        if self.is_down != before.is_down:
            return f"is down: {self.error}" if self.is_down else "is up again"
        if (self.writes == "ok") != (before.writes == "ok"):
            return (
                "stores again"
                if self.writes == "ok"
                else f"refuses to store, and gets nothing for a while: {self.error}"
            )
        return ""


class States(Message, frozen=True):
    """Pushed, unasked: the providers whose state changed."""

    states: Annotated[tuple[ProviderState, ...], msgspec.Meta(max_length=256)]


class ShareEvent(Message, frozen=True):
    """Pushed, unasked: a share was found bad or missing, or was stored anew; a late one was stored, or failed."""

    provider: ProviderName
    name: ObjectName
    segment: SegmentId
    index: Index
    what: Annotated[str, msgspec.Meta(pattern="^(bad|missing|mended|stored|failed)\\Z")]
    detail: Text


Reply = Done | Data | Stored | Checked | Peeked | Facts | Failed | States | ShareEvent
Answer = Done | Data | Stored | Checked | Peeked | Facts | Failed
Push = States | ShareEvent

_M = TypeVar("_M")
_encoder: Final = msgspec.msgpack.Encoder()
_requests: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_replies: Final[msgspec.msgpack.Decoder[Reply]] = msgspec.msgpack.Decoder(Reply)


def encode(message: Message) -> bytes:
    """The packet of a message.  Raises FormatError when it would not fit one packet."""
    packet = _encoder.encode(message)
    if len(packet) > MESSAGE_MAX:
        raise FormatError(f"a {type(message).__name__} message of {len(packet)} bytes does not fit a packet")
    return packet


def decode_request(packet: bytes) -> Request:
    """The request in a packet.  Total: raises FormatError and nothing else."""
    request = _decode(_requests, packet)
    if isinstance(request, PutSegment):
        request.order.check()
    return request


def decode_reply(packet: bytes) -> Reply:
    """The reply in a packet.  Total: raises FormatError and nothing else."""
    return _decode(_replies, packet)


def _decode(decoder: msgspec.msgpack.Decoder[_M], packet: bytes) -> _M:
    if not 0 < len(packet) <= MESSAGE_MAX:
        raise FormatError(f"a packet of {len(packet)} bytes between front and transfer")
    try:
        return decoder.decode(packet)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"a malformed message between front and transfer: {error}") from error


# --- errors across the boundary -------------------------------------------------------------------------------------

_KINDS: Final[Mapping[str, type[IcnfsError]]] = {
    kind.__name__: kind
    for kind in (
        errors.ObjectMissingError,
        errors.ProviderAwayError,
        errors.ProviderFullError,
        errors.ProviderRefusedError,
        errors.ProviderLiesError,
        errors.NameTakenError,
        errors.ForeignProviderError,
        errors.TooFewProvidersError,
        errors.DamagedError,
        errors.NewerFormatError,
        FormatError,
        errors.ConfigError,
    )
}


def fault_of(error: IcnfsError) -> Fault:
    """An error as it crosses.  Classes that transfer does not raise cross as FormatError."""
    provider, detail = (error.provider, error.detail) if isinstance(error, ProviderError) else ("", str(error))
    kind = type(error).__name__
    return Fault(kind if kind in _KINDS else FormatError.__name__, provider[:64], detail[:500])


def error_of(fault: Fault) -> IcnfsError:
    """The error that a fault stands for.  A class that is unknown here comes out as FormatError."""
    kind = _KINDS.get(fault.kind, FormatError)
    if issubclass(kind, ProviderError):
        return kind(fault.provider, fault.detail)
    return kind(fault.detail)
