"""Messages: what is sent arrives, and anything else is one named error."""

from __future__ import annotations

import os
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs import errors
from icnfs.errors import FormatError, IcnfsError, ProviderError
from icnfs.limits import INLINE_MAX, MESSAGE_MAX, SHARES_MAX
from icnfs.providers.open import ProviderSpec
from icnfs.transfer import messages
from icnfs.transfer.messages import (
    Check,
    Checked,
    CompleteSegment,
    Data,
    Fault,
    Fetch,
    FetchStripe,
    Hello,
    Limits,
    Order,
    Providers,
    ProviderState,
    PutObject,
    PutSegment,
    ShareEvent,
    States,
    Stored,
    decode_reply,
    decode_request,
    encode,
    error_of,
    fault_of,
)

ORDER = Order(bytes(16), 2, 3, 100, 150, ("a", "b", "c"), ("p0", "p1", "p2"))
REQUESTS = [
    Hello(1, (ProviderSpec("p0", "file:///srv", True),), 2.0),
    PutSegment(2, 60.0, ORDER, (0, 2), 3),
    Fetch(3, 20.0, b"segment", ("a", "b"), 1, 7, 9, (1,), True),
    PutObject(4, 1.0, "p0", "volume", b"bytes"),
    PutObject(5, 1.0, "p0", "heads/1", None, True),
    CompleteSegment(6, 1.0, b"segment", ("a", "b"), (1,), ("p1",), ("c",)),
    FetchStripe(7, 1.0, b"segment", ("a", "b"), 7, 9),
    Check(9, 1.0, b"segment", ("a", "b"), 1, (0, 1023)),
    Check(9, 1.0, b"segment", ("a", "b"), 1, None),
    Providers(8, (ProviderSpec("p0", "file:///srv", upload=1000),), Limits(5, 7)),
]
REPLIES = [
    Data(1, 3, b"abc"),
    Stored(2, (bytes(32),) * 3, {1: Fault("ProviderFullError", "p1", "no room")}),
    Checked(3, "altered", 66_000, "its leaves do not fit"),
    States((ProviderState("p0", "up", latency_s=0.25),)),
    ShareEvent("p0", "shares/aa/b", bytes(16), 3, "bad", "altered"),
    ShareEvent("p0", "shares/aa/b", bytes(16), 3, "stored", ""),
]


def test_what_is_sent_arrives() -> None:
    assert [decode_request(encode(message)) for message in REQUESTS] == REQUESTS
    assert [decode_reply(encode(message)) for message in REPLIES] == REPLIES


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_raise_one_error(packet: bytes) -> None:
    for decode in (decode_request, decode_reply):
        try:
            decode(packet)
        except FormatError:
            pass


@given(st.sampled_from([encode(message) for message in [*REQUESTS, *REPLIES]]), st.data())
def test_altered_messages_decode_or_raise_one_error(packet: bytes, data: st.DataObject) -> None:
    altered = bytearray(packet)
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(altered[: data.draw(st.integers(0, len(packet)))])
    for decode in (decode_request, decode_reply):
        try:
            decode(cut)
        except FormatError:
            pass


@pytest.mark.parametrize(
    "packet",
    [b"", b"\x91" * MESSAGE_MAX, b"\xdd\xff\xff\xff\xff", b"\x92\xa4Ping\xc7\xff\xff", os.urandom(MESSAGE_MAX + 1)],
)
def test_nesting_and_absurd_lengths_are_refused(packet: bytes) -> None:
    with pytest.raises(FormatError):
        decode_request(packet)


@pytest.mark.parametrize(
    "order",
    [
        Order(bytes(16), 3, 2, 100, 150, ("a", "b"), ("p0", "p1")),
        Order(bytes(16), 2, 3, 100, 201, ("a", "b", "c"), ("p0", "p1", "p2")),
        Order(bytes(16), 2, 3, 0, 0, ("a", "b", "c"), ("p0", "p1", "p2")),
        Order(bytes(16), 2, 3, 100, 150, ("a", "b"), ("p0", "p1", "p2")),
        Order(bytes(16), 60, SHARES_MAX, 2**26, 1, ("a",) * SHARES_MAX, ("p",) * SHARES_MAX),
    ],
)
def test_orders_that_contradict_themselves_are_refused(order: Order) -> None:
    with pytest.raises(FormatError):
        decode_request(encode(PutSegment(1, 1.0, order, None, 3)))


def test_what_does_not_fit_a_packet_is_not_sent() -> None:
    assert len(encode(PutObject(1, 1.0, "p", "n", bytes(INLINE_MAX)))) <= MESSAGE_MAX
    with pytest.raises(FormatError, match="does not fit"):
        encode(PutObject(1, 1.0, "p", "n", bytes(MESSAGE_MAX)))


def test_the_largest_segment_order_fits_a_packet() -> None:
    order = Order(bytes(16), 1, SHARES_MAX, 100, 100, ("n" * 200,) * SHARES_MAX, ("p" * 32,) * SHARES_MAX)
    assert decode_request(encode(PutSegment(1, 1.0, order, None, 3))).order == order  # type: ignore[union-attr]


def test_errors_cross_with_their_class_and_words() -> None:
    provider_errors = [kind for kind in _subclasses(ProviderError) if kind is not ProviderError]
    for kind in provider_errors:
        error = error_of(fault_of(kind("p0", "what happened")))  # type: ignore[call-arg]
        assert (type(error), str(error)) == (kind, "provider p0: what happened")
    error = error_of(fault_of(errors.TooFewProvidersError("three are missing")))
    assert (type(error), str(error)) == (errors.TooFewProvidersError, "three are missing")


def test_unknown_errors_cross_as_format_errors() -> None:
    assert type(error_of(fault_of(errors.FencedError("no")))) is FormatError
    assert type(error_of(Fault("OSError", "", "no"))) is FormatError


def test_every_message_documents_itself() -> None:
    undocumented = {"Done", "Failed"}
    for kind in (*get_args(messages.Request), *get_args(messages.Reply)):
        assert kind.__doc__ or kind.__name__ in undocumented


def _subclasses(kind: type[IcnfsError]) -> list[type[IcnfsError]]:
    return [kind, *(deeper for sub in kind.__subclasses__() for deeper in _subclasses(sub))]
