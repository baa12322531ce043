"""A run gives back exactly its rows, and nothing else that looks like a run."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.errors import DamagedError, FormatError, NewerFormatError
from icnfs.format import run as run_format
from icnfs.format.run import FRAME_SIZE, RunReader, write_frames

RUN = bytes(range(16))


def seal(ad: bytes, plain: bytes) -> bytes:
    """A stand-in that authenticates as the real seal does; the real one is tested in crypto."""
    return plain + hmac.digest(b"key", len(ad).to_bytes(4, "big") + ad + plain, "sha256")


def unseal(ad: bytes, sealed: bytes) -> bytes:
    plain, tag = sealed[:-32], sealed[-32:]
    if len(sealed) < 32 or tag != hmac.digest(b"key", len(ad).to_bytes(4, "big") + ad + plain, "sha256"):
        raise DamagedError("altered")
    return plain


def read(parts: list[bytes], run: bytes = RUN) -> list[tuple[int, bytes, bytes | None]]:
    reader = RunReader(unseal, run)
    rows = [tuple(row) for part in parts for row in reader.feed(part)]
    reader.close()
    return rows


def make(count: int, size: int = 400) -> list[tuple[int, bytes, bytes | None]]:
    return [
        (1 + i // 1000, i.to_bytes(8, "big"), None if i % 7 == 0 else hashlib.shake_128(b"%d" % i).digest(size))
        for i in range(count)
    ]


rows_strategy = st.dictionaries(
    st.tuples(st.integers(1, 255), st.binary(max_size=40)), st.none() | st.binary(max_size=200), max_size=50
).map(lambda d: [(t, k, v) for (t, k), v in sorted(d.items())])


@given(rows_strategy, st.data())
def test_rows_come_back_however_frames_are_grouped_into_parts(rows: list, data: st.DataObject) -> None:
    frames = list(write_frames(rows, seal, RUN))
    cut = data.draw(st.integers(0, len(frames)))
    assert read([b"".join(frames[:cut]), b"".join(frames[cut:])]) == rows


def test_long_runs_are_framed_and_come_back() -> None:
    rows = make(3000)
    frames = list(write_frames(rows, seal, RUN))
    assert len(frames) > 3
    assert all(len(f) <= FRAME_SIZE + 300 for f in frames)
    assert read(frames) == rows


def test_a_value_longer_than_a_frame_comes_back() -> None:
    rows = [(3, b"a", b"x" * (FRAME_SIZE * 3 + 5)), (3, b"b", b"")]
    assert read(list(write_frames(rows, seal, RUN))) == rows


def test_an_empty_run_comes_back() -> None:
    assert read(list(write_frames([], seal, RUN))) == []


@pytest.mark.parametrize("damage", ["swap", "drop first", "drop last", "repeat", "cut", "extend", "flip", "other run"])
def test_damage_of_every_kind_is_refused(damage: str) -> None:
    frames = list(write_frames(make(3000), seal, RUN))
    run = RUN
    match damage:
        case "swap":
            frames[0], frames[1] = frames[1], frames[0]
        case "drop first":
            del frames[0]
        case "drop last":
            del frames[-1]
        case "repeat":
            frames.insert(1, frames[1])
        case "cut":
            frames[-1] = frames[-1][:-1]
        case "extend":
            frames[-1] += b"\0"
        case "flip":
            frames[1] = frames[1][:100] + bytes([frames[1][100] ^ 1]) + frames[1][101:]
        case "other run":
            run = bytes(16)
    with pytest.raises(FormatError):
        read(frames, run)


def test_a_last_flag_turned_on_early_is_refused() -> None:
    frames = list(write_frames(make(3000), seal, RUN))
    frames[0] = b"\1" + frames[0][1:]
    with pytest.raises(DamagedError):
        read(frames[:1])


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_give_rows_or_one_error(junk: bytes) -> None:
    with pytest.raises(FormatError):
        read([junk])


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_any_authentic_bytes_give_rows_or_one_error(junk: bytes) -> None:
    """Even a frame that opens is not believed: counts and lengths are checked before use."""
    sealed = seal(RUN + bytes(4) + b"\1", b"icnfsrun" + bytes([0, 1, 0, 0, 0, 0]) + junk)
    try:
        read([b"\1" + len(sealed).to_bytes(4, "big") + sealed])
    except FormatError:
        pass


def test_rows_out_of_order_are_refused_by_writer_and_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="order"):
        list(write_frames([(2, b"a", b""), (1, b"a", b"")], seal, RUN))


@pytest.mark.parametrize(("version", "features"), [(2, 0), (1, 1 << 31)])
def test_a_newer_format_says_so(version: int, features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_format, "VERSION", version)
        frames = list(write_frames(make(3), seal, RUN, features))
    with pytest.raises(NewerFormatError):
        read(frames)
