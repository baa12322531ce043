"""How providers come to stand: in virtual time, by outcomes alone."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from icnfs.volume.trust import (
    ANSWERS,
    PAROLE,
    RIGHT_AGAIN,
    RIGHT_LEAST,
    THERE_AGAIN,
    THERE_LEAST,
    VETTED,
    Change,
    Record,
    Standing,
    Trust,
)

HOUR, DAY = 3600.0, 86_400.0
NAMES = ("ada", "bee", "cat", "dog")


class Life:
    """A volume's providers, looked at every few minutes."""

    def __init__(self) -> None:
        self.now = 1e9
        self.trust = Trust({})
        self.trust.adopt(NAMES, self.now)
        self.changes: list[Change] = []

    def answers(self, *outcomes: str, name: str = "ada", every: float = 60.0) -> None:
        for outcome in outcomes:
            self.now += every
            change = self.trust.answered(name, outcome, self.now)
            self.changes += [change] if change is not None else []

    def passes(self, hours: float, *away: str, of: tuple[str, ...] = NAMES) -> None:
        for _ in range(round(hours * 12)):
            self.now += 300
            self.changes += self.trust.look({name: name not in away for name in of}, self.now)

    def of(self, name: str = "ada") -> Record:
        return self.trust.records[name]

    def trusted(self) -> Life:
        self.answers(*["present"] * VETTED)
        self.passes(25)
        self.answers("present")
        assert self.of().standing is Standing.TRUSTED
        return self


def test_a_new_provider_is_vetted_by_answers_and_by_time() -> None:
    life = Life()
    assert life.of().standing is Standing.VETTING
    life.answers(*["present"] * 500, every=1)
    assert life.of().standing is Standing.VETTING, "not within a day"
    life.passes(25)
    life.answers("present")
    assert life.of().standing is Standing.TRUSTED
    assert life.of("bee").standing is Standing.VETTING, "nobody asked it anything"
    assert [(c.provider, c.before, c.after) for c in life.changes] == [("ada", "vetting", "trusted")]
    assert "100%" in life.changes[0].reason


def test_one_wrong_answer_is_forgiven_two_of_a_new_provider_are_not() -> None:
    life = Life()
    life.answers("present", "missing", "present")
    assert life.of().standing is Standing.VETTING
    life.answers("altered")
    assert life.of().standing is Standing.SUSPENDED
    assert life.trust.suspended() == {"ada"}
    assert "96%" in life.of().reason


def test_a_trusted_provider_is_suspended_at_its_sixth_wrong_answer_of_late() -> None:
    life = Life().trusted()
    life.answers(*["missing"] * 5)
    assert life.of().standing is Standing.TRUSTED
    life.answers("altered")
    assert life.of().standing is Standing.SUSPENDED
    life = Life().trusted()
    for _ in range(50):
        life.answers("missing", *["present"] * 30)
    assert life.of().standing is Standing.TRUSTED, "one in thirty, for years, is seen but not punished"


def test_the_way_back_is_right_answers_and_then_vetting_anew() -> None:
    life = Life()
    life.answers(*["missing"] * 50)
    assert life.of().standing is Standing.SUSPENDED
    life.answers(*["present"] * 100)
    assert life.of().standing is Standing.SUSPENDED
    life.answers(*["present"] * 100)
    assert life.of().standing is Standing.VETTING
    life.passes(25)
    life.answers(*["present"] * VETTED)
    assert life.of().standing is Standing.TRUSTED
    assert [c.after for c in life.changes] == ["suspended", "vetting", "trusted"]
    assert all(c.reason for c in life.changes)


def test_who_holds_nothing_more_gets_another_chance_after_a_week() -> None:
    life = Life()
    life.answers("missing", "missing", "missing")
    life.passes(6.9 * 24)
    assert life.of().standing is Standing.SUSPENDED
    life.passes(12)
    assert life.of().standing is Standing.VETTING
    assert "holds nothing" in life.of().reason


def test_absence_for_hours_suspends_and_presence_brings_back() -> None:
    life = Life()
    life.passes(6, "ada")
    assert life.of().standing is Standing.VETTING
    life.passes(2, "ada")
    assert life.of().standing is Standing.SUSPENDED
    assert "was there" in life.of().reason
    life.passes(12)
    assert life.of().standing is Standing.SUSPENDED
    life.passes(24)
    assert life.of().standing is Standing.VETTING
    assert life.of("bee").standing is Standing.VETTING


def test_where_most_are_away_the_fault_is_here() -> None:
    life = Life()
    life.passes(1000, "ada", "bee", "cat")
    assert not life.changes
    assert all(one.there == 1.0 for one in life.trust.records.values())


def test_neither_silence_nor_the_unknown_is_a_wrong_answer() -> None:
    life = Life()
    life.answers(*["down", "unknown"] * 500)
    assert life.of().right == 1.0 and life.of().asked == 0
    assert life.of().outcomes == {"down": 500, "unknown": 500}
    assert not life.changes


def test_time_between_two_mounts_was_seen_by_nobody() -> None:
    life = Life()
    life.passes(1, "ada")
    before = life.of().there
    life.now += 30 * DAY
    life.changes += life.trust.look(dict.fromkeys(NAMES, True) | {"ada": False}, life.now)
    assert before - life.of().there < 0.02
    assert not life.changes


def test_it_goes_on_after_being_kept_and_forgets_who_was_taken_out() -> None:
    life = Life()
    life.answers("missing", "missing")
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(life.trust.records), type=dict[str, Record])
    assert kept == life.trust.records
    again = Trust(kept)
    again.adopt(("ada", "eel"), life.now)
    assert again.suspended() == {"ada"}
    assert set(again.records) == {"ada", "eel"} and again.records["eel"].standing is Standing.VETTING
    again.adopt(("eel",), life.now)
    again.adopt(("ada", "eel"), life.now)
    assert again.suspended() == frozenset(), "one that was removed and comes back is new"
    assert again.answered("nobody", "missing", life.now) is None


OUTCOMES = st.sampled_from(["present", "missing", "altered", "down", "unknown"])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("answer"), st.sampled_from(NAMES), OUTCOMES),
        st.tuples(st.just("look"), st.sets(st.sampled_from(NAMES)), st.just("")),
        st.tuples(st.just("wait"), st.floats(-1e6, 1e6), st.just("")),
    ),
    max_size=300,
)


@given(EVENTS)
def test_every_change_is_told_once_with_its_reason_and_follows_the_table(events: list[tuple[str, object, str]]) -> None:
    life = Life()
    standing = dict.fromkeys(NAMES, Standing.VETTING)
    for kind, what, outcome in events:
        before = len(life.changes)
        if kind == "answer":
            life.answers(outcome, name=str(what))
        elif kind == "look":
            life.passes(1 / 12, *what)  # type: ignore[misc]
        else:
            life.now += float(what)  # type: ignore[arg-type]
        for change in life.changes[before:]:
            assert change.before is standing[change.provider] is not change.after and change.reason
            assert (change.before, change.after) in {
                (Standing.VETTING, Standing.TRUSTED),
                (Standing.VETTING, Standing.SUSPENDED),
                (Standing.TRUSTED, Standing.SUSPENDED),
                (Standing.SUSPENDED, Standing.VETTING),
            }
            standing[change.provider] = change.after
        for name, one in life.trust.records.items():
            assert one.standing is standing[name]
            assert 0.0 <= one.right <= 1.0 and 0.0 <= one.there <= 1.0
            if one.standing is not Standing.SUSPENDED:
                assert one.right >= RIGHT_LEAST and one.there >= THERE_LEAST


@given(st.integers(1, 300))
def test_whoever_answers_rightly_and_is_there_comes_back(wrong: int) -> None:
    life = Life()
    life.answers(*["altered"] * wrong)
    for _ in range(6 * ANSWERS):
        life.answers("present")
    life.passes(1)
    assert life.of().standing is not Standing.SUSPENDED
    assert life.of().right >= RIGHT_AGAIN and life.of().there >= THERE_AGAIN


@given(st.floats(1, 30))
def test_parole_is_given_to_nobody_who_is_away(days: float) -> None:
    life = Life()
    life.answers("missing", "missing", "missing")
    life.passes(PAROLE / HOUR + days * 24, "ada")
    assert life.of().standing is Standing.SUSPENDED
