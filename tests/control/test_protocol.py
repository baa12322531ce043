from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.control import protocol as p
from icnfs.errors import DegradedError, Exit, FormatError, NewerFormatError

REQUESTS = [
    p.StatusRequest(),
    p.StatusRequest(looked=True),
    p.SyncRequest(12.5),
    p.UnmountRequest(drain=True, lazy=True),
    p.InfoRequest(2**63 - 1),
    p.KeysRequest(),
    p.AddKeyRequest(b"slot"),
    p.RemoveKeyRequest("0a"),
    p.AdoptRequest(b"/etc/icnfs/\xff.toml"),
    p.HoldingsRequest(),
    p.PolicyRequest(),
    p.HealthRequest("2-00", 20),
    p.LeaveRequest("north", 60.0),
    p.ScrubRequest(True, True, 1_000_000),
    p.OrphansRequest(),
    p.CloneRequest(5, 1, b"\xff copy"),
    p.RestoreRequest("before", b"a/\xff", 1, b"copy"),
    p.StopRequest(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_every_request_survives_its_frame(request_: p.Request) -> None:
    sent = p.frame(request_)
    assert p.body_length(sent[:5], p.REQUEST_MAX) == len(sent) - 5
    assert p.take_request(sent[5:]) == request_


@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_the_one_error(body: bytes) -> None:
    try:
        p.take_request(body)
    except FormatError:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_give_an_answer_or_the_one_error(body: bytes) -> None:
    try:
        p.take_answer(body)
    except FormatError:
        pass


@given(st.binary(max_size=12))
def test_any_header_gives_a_length_below_the_cap_or_the_one_error(header: bytes) -> None:
    try:
        assert 0 <= p.body_length(header, p.REQUEST_MAX) <= p.REQUEST_MAX
    except FormatError:
        pass


@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * 100_000,
        b"\x81\xa4type\xa5other",
        msgspec.msgpack.encode({"type": "info", "ino": -1}),
        msgspec.msgpack.encode({"type": "info", "ino": 2**63}),
        msgspec.msgpack.encode({"type": "sync", "deadline": float("nan")}),
        msgspec.msgpack.encode({"type": "sync", "deadline": 1e12}),
        msgspec.msgpack.encode({"type": "sync", "more": 1}),
        msgspec.msgpack.encode({"type": "leave", "provider": "north", "deadline": -1.0}),
        msgspec.msgpack.encode({"type": "leave", "provider": "north", "deadline": float("nan")}),
        msgspec.msgpack.encode({"type": "leave", "provider": "../north"}),
        msgspec.msgpack.encode({"type": "health", "most": 10**9}),
        msgspec.msgpack.encode({"type": "health", "after": "0" * 65}),
        msgspec.msgpack.encode({"type": "adopt"}),
        msgspec.msgpack.encode({"type": "scrub", "rate": -1}),
        msgspec.msgpack.encode({"type": "make-snapshot", "name": "../x"}),
        msgspec.msgpack.encode({"type": "make-snapshot", "name": "x", "until": -1}),
        msgspec.msgpack.encode({"type": "make-snapshot", "name": "x", "deadline": -1.0}),
        msgspec.msgpack.encode({"type": "delete-snapshot", "name": ""}),
        b"\x81\xa4type\xa6\xff\xff\xff\xff\xff\xff",
    ],
    ids=[
        "nested",
        "unknown",
        "negative",
        "huge",
        "nan",
        "forever",
        "extra",
        "past",
        "never",
        "path",
        "many",
        "far",
        "bare",
        "backwards",
        "outside",
        "unlocked",
        "before",
        "nameless",
        "not-utf8",
    ],
)
def test_hostile_requests_are_refused(body: bytes) -> None:
    with pytest.raises(FormatError):
        p.take_request(body)


def test_another_protocol_names_the_remedy() -> None:
    with pytest.raises(NewerFormatError, match="unmount and mount again"):
        p.body_length(bytes([p.PROTOCOL + 1, 0, 0, 0, 0]), p.REQUEST_MAX)


def test_a_failure_keeps_message_and_exit_code() -> None:
    answer = p.take_answer(p.frame(p.failed(DegradedError("safe at 5 of 6 owners")))[5:])
    assert isinstance(answer, p.Failed)
    with pytest.raises(p.RemoteError, match="5 of 6") as caught:
        p.raise_failed(answer)
    assert caught.value.exit_code is Exit.DEGRADED


@pytest.mark.parametrize("code", [0, 99, -1])
def test_an_unknown_exit_code_is_still_a_failure(code: int) -> None:
    with pytest.raises(p.RemoteError) as caught:
        p.raise_failed(p.Failed(code, "what"))
    assert caught.value.exit_code is Exit.FAILED


def test_facts_are_checked_for_their_kind() -> None:
    answer = p.take_answer(p.frame(p.done({"a": 1}))[5:])
    assert isinstance(answer, p.Done)
    assert p.take_facts(answer, dict[str, int]) == {"a": 1}
    with pytest.raises(FormatError):
        p.take_facts(answer, list[int])


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256])
def test_what_is_to_be_made_has_a_name_that_a_file_may_have(name: bytes) -> None:
    for request in (p.CloneRequest(5, 1, name), p.RestoreRequest("before", b"a", 1, name)):
        with pytest.raises(FormatError):
            p.take_request(p.frame(request)[5:])
