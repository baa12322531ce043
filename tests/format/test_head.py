"""A head says what was sealed into it, under its own name, at its own provider, and nothing else passes for one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.crypto.keys import MasterKey
from icnfs.crypto.sealing import open_document, seal_document
from icnfs.errors import DamagedError, FormatError, NewerFormatError
from icnfs.format import head as head_format
from icnfs.format import segment
from icnfs.format.head import Head, HeadName, RunInfo, parse_name
from icnfs.format.records import FEATURE_OF
from icnfs.format.segment import SegmentInfo, ShareInfo

MASTER = MasterKey.random()
TOKEN = bytes(range(16))
NAME = HeadName(3, 7, bytes(16))


def seal(ad: bytes, plain: bytes) -> bytes:
    return seal_document(MASTER, "heads", ad, plain)


def unseal(ad: bytes, sealed: bytes) -> bytes:
    return open_document(MASTER, "heads", ad, sealed)


def part(size: int = 100) -> bytes:
    shares = tuple(ShareInfo(f"p{i}", bytes(32), True) for i in range(6))
    return segment.encode(SegmentInfo(bytes(16), 4, 6, 25, size, shares))


HEAD = Head(
    volume=b"v" * 16,
    epoch=3,
    sequence=7,
    writer=b"w" * 16,
    previous=(3, 6),
    time_ns=10**18,
    cut=55,
    generation=9,
    chunk_size=128 * 1024,
    k=4,
    n=6,
    safe=6,
    runs=(RunInfo(b"r" * 16, 0, 4, 10, 200, (part(), part())), RunInfo(b"s" * 16, 4, 9, 1, 100, (part(),))),
    counters=(1, 2, 3, 4, 5, 6),
    keyring=b"keys",
)


@pytest.mark.parametrize("features", [0, sum(FEATURE_OF.values())])
def test_a_head_comes_back(features: int) -> None:
    head = msgspec.structs.replace(HEAD, features=features)
    raw = head_format.seal(head, TOKEN, seal)
    assert head_format.unseal(raw, NAME, TOKEN, unseal) == head
    assert [s.size for s in HEAD.segments()] == [100, 100, 100]


@pytest.mark.parametrize(
    "change",
    [
        {"keyring": bytes(head_format.HEAD_MAX)},
        {"runs": (RunInfo(b"r" * 16, 0, 9, 1, 1, (part(),) * (head_format.PARTS_MAX + 1)),)},
    ],
)
def test_a_head_that_nobody_could_read_back_is_not_made(change: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        head_format.seal(msgspec.structs.replace(HEAD, **change), TOKEN, seal)


def test_names_sort_as_heads_do_and_come_back() -> None:
    names = [HeadName(e, s, bytes([t]) * 16) for e in (0, 1, 2**40) for s in (1, 16, 2**33) for t in (0, 255)]
    assert sorted(map(str, names)) == [str(n) for n in sorted(names)]
    assert [parse_name(str(n)) for n in names] == names


@pytest.mark.parametrize("name", ["heads/", "heads/1-2-3", str(NAME).upper(), str(NAME) + "0", "slots/" + "0" * 32])
def test_other_names_are_no_heads(name: str) -> None:
    assert parse_name(name) is None


@pytest.mark.parametrize("at", [0, 8, 9, 10, 13, 14, 50, 80, -1])
def test_a_flipped_bit_anywhere_is_refused(at: int) -> None:
    raw = bytearray(head_format.seal(HEAD, TOKEN, seal))
    raw[at] ^= 1
    with pytest.raises(FormatError) as caught:
        head_format.unseal(bytes(raw), NAME, TOKEN, unseal)
    assert not isinstance(caught.value, NewerFormatError), "one provider must not make a volume look newer"


def test_a_head_of_another_provider_number_or_length_is_refused() -> None:
    raw = head_format.seal(HEAD, TOKEN, seal)
    for other, name, token in (
        (raw, NAME, bytes(16)),
        (raw, NAME._replace(epoch=4), TOKEN),
        (raw, NAME._replace(sequence=8), TOKEN),
        (raw[:-1], NAME, TOKEN),
        (raw + b"\0", NAME, TOKEN),
        (b"", NAME, TOKEN),
    ):
        with pytest.raises(FormatError):
            head_format.unseal(other, name, token, unseal)


@pytest.mark.parametrize(("version", "features"), [(2, 0), (1, 1 << 31)])
def test_an_authentic_newer_head_says_so(version: int, features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(head_format, "VERSION", version)
        raw = head_format.seal(msgspec.structs.replace(HEAD, features=features), TOKEN, seal)
    with pytest.raises(NewerFormatError, match="upgrade"):
        head_format.unseal(raw, NAME, TOKEN, unseal)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"counters": (1, 2, 3, 4, 5, -6)},
        {"volume": b""},
        {"k": 7},
        {"safe": 3},
        {"n": 10**9},
        {"chunk_size": 2**40},
        {"runs": ()},
        {"generation": 10},
        {"runs": HEAD.runs[1:]},
        {"runs": (msgspec.structs.replace(HEAD.runs[0], upto=9, size=5),)},
        {"runs": (msgspec.structs.replace(HEAD.runs[0], upto=9, parts=(b"junk",)),)},
        {"runs": (msgspec.structs.replace(HEAD.runs[0], upto=9, parts=()),)},
    ],
)
def test_a_head_out_of_range_is_refused_though_authentic(change: dict[str, object]) -> None:
    bad = head_format.encode(msgspec.structs.replace(HEAD, **change))
    with pytest.raises(FormatError):
        head_format.decode(bad)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_head_or_one_error(junk: bytes) -> None:
    for attempt in (head_format.decode, lambda b: head_format.unseal(b, NAME, TOKEN, unseal)):
        with pytest.raises(FormatError):
            attempt(junk)


@given(st.integers(0, 10**4), st.binary(min_size=1, max_size=4))
def test_any_damage_to_the_plain_document_is_a_head_or_one_error(at: int, junk: bytes) -> None:
    plain = head_format.encode(HEAD)
    at %= len(plain)
    try:
        head_format.decode(plain[:at] + junk + plain[at + len(junk) :])
    except FormatError:
        pass


def test_damage_is_not_mistaken_for_a_newer_format() -> None:
    raw = head_format.seal(HEAD, TOKEN, seal)
    with pytest.raises(DamagedError):
        head_format.unseal(raw[:8] + b"\0\2" + raw[10:], NAME, TOKEN, unseal)
