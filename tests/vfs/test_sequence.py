"""Who reads in order, and how far ahead of it is worth fetching."""

from __future__ import annotations

import random

from icnfs.limits import GIB, KIB, MIB
from icnfs.vfs.sequence import BEGINS, GROWS, NEAR, WIDEST, Sequence

READ = 128 * KIB


def test_the_window_grows_with_what_is_read_up_to_its_bound() -> None:
    sequence = Sequence()
    windows = []
    for at in range(0, 64 * MIB, READ):
        assert sequence.saw(at, READ)
        windows.append(sequence.window)
    assert windows[0] == 0 and windows[BEGINS // READ - 1] == GROWS * BEGINS
    assert windows == sorted(windows) and windows[-1] == WIDEST


def test_the_kernel_s_reads_may_come_in_any_order() -> None:
    sequence = Sequence()
    for at in range(0, 16 * MIB, NEAR):
        offsets = list(range(at, at + NEAR, READ))
        random.Random(at).shuffle(offsets)
        assert all(sequence.saw(offset, READ) for offset in offsets)
    assert sequence.window == min(GROWS * 16 * MIB, WIDEST) and sequence.end == 16 * MIB


def test_reads_here_and_there_have_no_window() -> None:
    sequence, noise = Sequence(), random.Random(2)
    for _ in range(1000):
        sequence.saw(noise.randrange(GIB) // READ * READ, READ)
        assert sequence.window <= GROWS * 2 * READ
    thin = Sequence()
    for at in range(0, GIB, MIB):
        thin.saw(at, 4096)
        assert thin.window == 0


def test_a_jump_begins_anew() -> None:
    sequence = Sequence()
    for at in range(0, 8 * MIB, READ):
        sequence.saw(at, READ)
    sequence.announced = 20 * MIB
    assert not sequence.saw(100 * MIB, READ)
    assert sequence.window == 0 and sequence.announced == 100 * MIB
