from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from icnfs.vfs.handles import References

inos = st.sampled_from([1, 2, 1023, 1024, 1025, 2**40, 2**63])


@given(st.lists(st.tuples(st.sampled_from(["add", "drop"]), inos, st.integers(1, 3)), max_size=60))
def test_references_are_counted_as_a_dictionary_would(steps: list[tuple[str, int, int]]) -> None:
    references, model = References(), Counter[int]()
    for kind, ino, count in steps:
        if kind == "add":
            references.add(ino)
            model[ino] += 1
        else:
            references.drop(ino, count)
            model[ino] = max(model[ino] - count, 0)
        assert (ino in references) == (model[ino] > 0)
    assert len(references) == sum(1 for held in model.values() if held)


def test_nothing_is_kept_of_what_was_given_back() -> None:
    references = References()
    for ino in range(5000):
        references.add(ino)
    for ino in range(5000):
        references.drop(ino, 1)
    assert not references._blocks
