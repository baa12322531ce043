"""Any k of n shares give back the others, whole or by range."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.erasure import code as code_module
from icnfs.erasure.code import Code
from icnfs.limits import SHARES_MAX


def shares_of(code: Code, data: list[bytes]) -> list[bytes]:
    return [*data, *code.encode(data)]


@st.composite
def coded(draw: st.DrawFn) -> tuple[Code, list[bytes]]:
    n = draw(st.integers(1, 12))
    code = Code(draw(st.integers(1, n)), n)
    length = draw(st.integers(0, 40))
    return code, shares_of(code, [draw(st.binary(min_size=length, max_size=length)) for _ in range(code.k)])


@settings(max_examples=150)
@given(coded(), st.data())
def test_any_k_of_n_rebuild_all_the_others(pair: tuple[Code, list[bytes]], data: st.DataObject) -> None:
    code, shares = pair
    have = data.draw(st.permutations(range(code.n)))[: data.draw(st.integers(code.k, code.n))]
    want = data.draw(st.lists(st.integers(0, code.n - 1), unique=True))
    rebuilt = code.rebuild({index: shares[index] for index in have}, want)
    assert rebuilt == {index: shares[index] for index in want}


def test_every_choice_of_four_of_six_rebuilds_the_other_two() -> None:
    code = Code(4, 6)
    shares = shares_of(code, [bytes((index + 1,)) * 100 for index in range(4)])
    for have in combinations(range(6), 4):
        rebuilt = code.rebuild({index: shares[index] for index in have}, range(6))
        assert [rebuilt[index] for index in range(6)] == shares


@given(coded(), st.data())
def test_a_range_rebuilds_to_that_range_of_the_whole(pair: tuple[Code, list[bytes]], data: st.DataObject) -> None:
    code, shares = pair
    start, end = sorted((data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40))))
    have = data.draw(st.permutations(range(code.n)))[: code.k]
    rebuilt = code.rebuild({index: shares[index][start:end] for index in have}, range(code.n))
    assert all(rebuilt[index] == shares[index][start:end] for index in range(code.n))


def test_pieces_join_to_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    code = Code(3, 5)
    data = [bytes((index + 1, 7 * index)) * 500 for index in range(3)]
    whole = shares_of(code, data)
    monkeypatch.setattr(code_module, "COLUMN", 64)
    assert shares_of(code, data) == whole
    assert code.rebuild({1: whole[1], 3: whole[3], 4: whole[4]}, [0, 2]) == {0: whole[0], 2: whole[2]}


def test_shares_larger_than_a_column_rebuild() -> None:
    code = Code(2, 4)
    length = 2 * code_module.COLUMN + 17
    shares = shares_of(code, [bytes(range(256)) * (length // 256) + bytes(length % 256), b"\x5a" * length])
    assert {len(share) for share in shares} == {length}
    assert code.rebuild({2: shares[2], 3: shares[3]}, [0, 1]) == {0: shares[0], 1: shares[1]}


def test_any_kind_of_buffer_is_taken_and_bytes_are_given() -> None:
    code = Code(2, 3)
    backing = bytearray(b"abcdefgh")
    parity = code.encode([memoryview(backing)[:4], bytearray(b"efgh")])
    rebuilt = code.rebuild({1: memoryview(backing)[4:], 2: bytearray(parity[0])}, [0, 1])
    backing[:] = bytes(8)
    assert rebuilt == {0: b"abcd", 1: b"efgh"}
    assert all(type(share) is bytes for share in (*parity, *rebuilt.values()))


def test_the_data_shares_are_the_data() -> None:
    assert Code(3, 3).encode([b"a", b"b", b"c"]) == []
    assert Code(1, 3).encode([b"abc"]) == [b"abc", b"abc"]


@pytest.mark.parametrize(("k", "n"), [(0, 1), (2, 1), (-1, 3), (1, SHARES_MAX + 1), (0, 0)])
def test_an_impossible_code_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="no code"):
        Code(k, n)


def test_the_largest_code_works() -> None:
    code = Code(SHARES_MAX // 2, SHARES_MAX)
    shares = shares_of(code, [bytes((index,)) * 8 for index in range(code.k)])
    have = {index: shares[index] for index in range(code.k, code.n)}
    assert code.rebuild(have, range(code.k)) == dict(enumerate(shares[: code.k]))


def test_wrong_input_is_refused() -> None:
    code = Code(2, 3)
    for data in ([b"a"], [b"a", b"b", b"c"], [b"a", b"bb"]):
        with pytest.raises(ValueError, match="shares"):
            code.encode(data)
    refused: list[tuple[dict[int, bytes], int]] = [
        ({0: b"a"}, 1),
        ({0: b"a", 1: b"bb"}, 2),
        ({0: b"a", 3: b"b"}, 1),
        ({0: b"a", 1: b"b"}, -1),
    ]
    for have, want in refused:
        with pytest.raises(ValueError, match="share"):
            code.rebuild(have, [want])


def test_parity_never_changes_between_releases() -> None:
    parity = Code(4, 6).encode([b"\x01\x10", b"\x02\x20", b"\x03\x30", b"\x04\x40"])
    assert [share.hex() for share in parity] == ["8798", "2eda"]
