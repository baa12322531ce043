"""A marker gives its token back, and nothing else passes for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import FormatError, NewerFormatError
from icnfs.format import marker
from icnfs.format.marker import pack_marker, unpack_marker


def test_the_token_comes_back() -> None:
    assert unpack_marker(pack_marker(b"t" * 16)) == b"t" * 16


@pytest.mark.parametrize(("name", "value"), [("VERSION", 2), ("FEATURES", 4)])
def test_a_newer_marker_says_so(name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(marker, name, value)
        raw = pack_marker(b"t" * 16)
    with pytest.raises(NewerFormatError, match="upgrade"):
        unpack_marker(raw + b"what a later release may add")


@given(st.binary(max_size=60))
def test_any_bytes_give_a_token_or_one_error(junk: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_marker(junk)


@pytest.mark.parametrize("raw", [pack_marker(b"t" * 16)[:-1], pack_marker(b"t" * 16) + b"x", b"icnfsvol" + bytes(22)])
def test_a_marker_of_a_wrong_length_or_version_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_marker(raw)
