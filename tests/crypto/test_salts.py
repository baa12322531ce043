"""A salt's number never stands for two salts."""

from __future__ import annotations

import pytest

from icnfs.crypto.salts import SALT_ID_MAX, Salts
from icnfs.errors import DamagedError
from icnfs.limits import SEALS_PER_KEY


def test_drawn_salts_take_the_next_number_and_fresh_bytes() -> None:
    salts = Salts()
    first, salt = salts.draw()
    assert (first, len(salt)) == (1, 32)
    assert salts.draw()[1] != salt
    salts.add(first, salt)
    salts.add(9, bytes(32))
    assert salts.draw()[0] == 10
    assert list(salts) == [(1, salt), (9, bytes(32))]
    assert len(salts) == 2


def test_a_number_cannot_be_given_another_salt() -> None:
    salts = Salts()
    salts.add(1, bytes(32))
    salts.add(1, bytes(32))
    with pytest.raises(DamagedError):
        salts.add(1, bytes(31) + b"\1")
    assert salts.get(1) == bytes(32)


@pytest.mark.parametrize(("salt_id", "size"), [(0, 32), (-1, 32), (SALT_ID_MAX + 1, 32), (1, 31), (1, 33), (1, 0)])
def test_impossible_salts_are_refused(salt_id: int, size: int) -> None:
    salts = Salts()
    with pytest.raises(DamagedError):
        salts.add(salt_id, bytes(size))
    assert not len(salts)


def test_only_a_known_salt_can_seal() -> None:
    salts = Salts()
    assert salts.current == 0
    with pytest.raises(DamagedError):
        salts.current = 4
    salts.add(4, bytes(32))
    salts.current = 4
    assert salts.current == 4


def test_a_salt_is_spent_after_its_seals_and_a_new_one_is_not() -> None:
    salts = Salts()
    salts.add(1, bytes(32))
    salts.add(2, bytes(range(32)))
    salts.current = 1
    salts.seals = SEALS_PER_KEY - 1
    assert not salts.spent
    salts.seals += 1
    salts.current = 1
    assert salts.spent
    salts.current = 2
    assert not salts.spent
