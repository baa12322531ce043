"""Keyed names: bounded, stable for ever, and unmatched between providers."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from icnfs.crypto.keys import MasterKey, Secret
from icnfs.crypto.names import COOKIE_BITS, NameHash

NAMES = NameHash(MasterKey(Secret(bytes(range(32)))))
OTHER = NameHash(MasterKey(Secret(bytes(32))))
inodes = st.integers(0, 2**64 - 1)
names = st.binary(min_size=1, max_size=255)


@given(inodes, names)
def test_a_cookie_leaves_room_for_its_rank_and_the_dots(parent: int, name: bytes) -> None:
    base = NAMES.cookie_base(parent, name)
    assert 1 <= base < 2**COOKIE_BITS
    assert 16 <= base << 4 | 15 < 2**63
    assert NAMES.cookie_base(parent, name) == base


@given(inodes, inodes, names, names)
def test_cookies_differ_by_directory_and_name(parent: int, other_parent: int, name: bytes, other: bytes) -> None:
    if (parent, name) != (other_parent, other):
        assert NAMES.cookie_base(parent, name) != NAMES.cookie_base(other_parent, other)


def test_cookies_spread_over_their_whole_range() -> None:
    bases = sorted(NAMES.cookie_base(1, b"%d" % number) for number in range(4096))
    assert len(set(bases)) == 4096
    quarters = [base >> COOKIE_BITS - 2 for base in bases]
    assert all(850 < quarters.count(quarter) < 1200 for quarter in range(4))


def test_another_volume_sorts_otherwise() -> None:
    assert NAMES.cookie_base(1, b"name") != OTHER.cookie_base(1, b"name")


def test_share_names_fit_every_provider_and_never_match() -> None:
    made = {
        names.share_name(segment, index, provider)
        for names in (NAMES, OTHER)
        for segment in (bytes(16), bytes(15) + b"\1")
        for index in (0, 1, 63)
        for provider in ("a", "b")
    }
    assert len(made) == 24
    assert all(re.fullmatch(r"[a-z2-7]{52}", name) for name in made)


def test_tokens_and_tags_differ_by_volume_provider_and_writer() -> None:
    tokens = {names.place_token(provider) for names in (NAMES, OTHER) for provider in ("a", "b", "")}
    tags = {
        names.writer_tag(provider, writer) for names in (NAMES, OTHER) for provider in "ab" for writer in (b"", b"w")
    }
    assert len(tokens) == 6
    assert len(tags) == 8
    assert {len(value) for value in tokens | tags} == {16}
    assert NAMES.writer_tag("b", b"a") != NAMES.writer_tag("ab", b"")


def test_names_never_change_between_releases() -> None:
    assert NAMES.cookie_base(1, b"name") == 510394020758672266
    assert NAMES.share_name(bytes(16), 3, "alpha") == "yt36ztkgon5w4s4dtbpdwa6msbnzh37kvudru6juvpmd2b3ux44a"
    assert NAMES.place_token("alpha").hex() == "007f506ca7f683f520f701ca872c4711"
    assert NAMES.writer_tag("alpha", bytes(16)).hex() == "65d2002ab33820f2e47f969703a312c3"
