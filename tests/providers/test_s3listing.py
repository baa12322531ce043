"""A page of a listing is read out of any bytes, or refused, in little memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.limits import LIST_PAGE, MIB
from icnfs.providers.s3listing import parse

SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def page(inner: str, more: str = "false", attributes: str = SPACE) -> bytes:
    return f"<ListBucketResult {attributes}><IsTruncated>{more}</IsTruncated>{inner}</ListBucketResult>".encode()


@pytest.mark.parametrize("attributes", [SPACE, "", 'a="b"'])
def test_keys_are_found_among_all_that_an_object_is_listed_with(attributes: str) -> None:
    beside = "<Owner><ID>i</ID><DisplayName>Key</DisplayName></Owner>" + "<Size>1</Size>" * 16
    objects = "".join(f"<Contents>{beside}<Key>p/{n:04}&amp;</Key></Contents>" for n in range(LIST_PAGE))
    keys, more = parse(page(f"<Key>none</Key>{objects}<CommonPrefixes><Key>none</Key></CommonPrefixes>", " true "))
    assert keys == [f"p/{n:04}&" for n in range(LIST_PAGE)] and more is True
    assert parse(page("", attributes=attributes)) == ([], False)


@pytest.mark.parametrize(
    "inner",
    [
        "<a>" * 1_300_000,
        "<a/>" * 1_000_000,
        "<Contents><Key>k</Key></Contents>" * 100_000,
        "<Contents><Key>" + "k\n" * 2_000_000 + "</Key></Contents>",
    ],
)
def test_a_page_of_more_than_a_page_can_hold_is_given_up_in_little_memory(inner: str) -> None:
    body = page(inner)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a listing"):
            parse(body)
        assert tracemalloc.get_traced_memory()[1] < len(body) + 8 * MIB
    finally:
        tracemalloc.stop()


@given(
    st.lists(st.sampled_from(["<Contents>", "</Contents>", "<Key>", "</Key>", "k", "<x/>", "&amp;", "&u;", "\0", "<"]))
)
def test_whatever_comes_is_a_page_or_one_error(pieces: list[str]) -> None:
    try:
        keys, more = parse(page("".join(pieces)))
    except ValueError:
        return
    assert all(keys) and more is False
