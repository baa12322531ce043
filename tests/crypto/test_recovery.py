"""A recovery key survives paper and typing; a typo is told apart from a wrong key."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from icnfs.crypto.keys import Secret
from icnfs.crypto.recovery import RECOVERY_SIZE, format_recovery_key, new_recovery_key, parse_recovery_key
from icnfs.errors import SecretError

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
keys = st.binary(min_size=RECOVERY_SIZE, max_size=RECOVERY_SIZE).map(Secret)


@given(keys)
@example(Secret(bytes(RECOVERY_SIZE)))
@example(Secret(b"\xff" * RECOVERY_SIZE))
def test_a_key_reads_back_as_it_was_shown(key: Secret) -> None:
    text = format_recovery_key(key)
    assert re.fullmatch(rf"([{ALPHABET}]{{6}}-){{5}}[{ALPHABET}]{{6}}", text)
    assert parse_recovery_key(text) == key


@given(keys, st.randoms(use_true_random=False))
def test_case_spaces_dashes_and_look_alikes_do_not_matter(key: Secret, random: object) -> None:
    text = format_recovery_key(key)
    variants = [
        text.lower(),
        text.replace("-", ""),
        text.replace("-", " "),
        f"  {text}\n",
        text.replace("0", "O").replace("1", "l"),
        text.replace("0", "o").replace("1", "I"),
        "-".join(text.replace("-", "")),
    ]
    assert all(parse_recovery_key(variant) == key for variant in variants)


@given(keys, st.integers(0, 35), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_a_typo(key: Secret, at: int, char: str) -> None:
    text = format_recovery_key(key).replace("-", "")
    assume(text[at] != char)
    with pytest.raises(SecretError, match="mistyped"):
        parse_recovery_key(text[:at] + char + text[at + 1 :])


@given(keys, st.integers(0, 34))
def test_two_neighbours_exchanged_are_a_typo(key: Secret, at: int) -> None:
    text = format_recovery_key(key).replace("-", "")
    assume(text[at] != text[at + 1])
    with pytest.raises(SecretError, match="mistyped"):
        parse_recovery_key(text[:at] + text[at + 1] + text[at] + text[at + 2 :])


@given(keys, st.integers(0, 32), st.text(ALPHABET, min_size=4, max_size=4))
def test_four_wrong_characters_in_a_row_are_a_typo(key: Secret, at: int, chars: str) -> None:
    text = format_recovery_key(key).replace("-", "")
    assume(text[at : at + 4] != chars)
    with pytest.raises(SecretError, match="mistyped"):
        parse_recovery_key(text[:at] + chars + text[at + 4 :])


@given(keys, st.integers(0, 35))
def test_a_missing_or_added_character_is_a_typo(key: Secret, at: int) -> None:
    text = format_recovery_key(key).replace("-", "")
    with pytest.raises(SecretError, match="35 of 36"):
        parse_recovery_key(text[:at] + text[at + 1 :])
    with pytest.raises(SecretError, match="longer"):
        parse_recovery_key(text[:at] + "A" + text[at:])


@given(st.text(max_size=60))
def test_parsing_is_total_and_quotes_nothing(text: str) -> None:
    with pytest.raises(SecretError) as caught:
        parse_recovery_key(text)
    assert len(text) < 12 or text not in str(caught.value)


def test_a_new_key_is_random() -> None:
    assert len(new_recovery_key()) == RECOVERY_SIZE
    assert new_recovery_key() != new_recovery_key()


def test_only_a_recovery_key_is_shown() -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        format_recovery_key(Secret(bytes(32)))


def test_the_form_never_changes_between_releases() -> None:
    assert format_recovery_key(Secret(bytes(range(RECOVERY_SIZE)))) == "000G40-R40M30-E20918-5GR38E-1W8124-GKAT36"
