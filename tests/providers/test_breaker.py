"""The circuit breaker: its table of states, how soon it finds out, and how little it asks.  All in virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from icnfs.errors import (
    IcnfsError,
    ObjectMissingError,
    ProviderAwayError,
    ProviderError,
    ProviderFullError,
    ProviderLiesError,
    ProviderRefusedError,
)
from icnfs.providers.base import Capacity, Data
from icnfs.providers.breaker import (
    GAP_MAX_SECONDS,
    PROBE_SECONDS,
    READ_GAP_SECONDS,
    STUCK_SECONDS,
    WATCH_SECONDS,
    Breaker,
    Switch,
)
from icnfs.providers.guard import guard
from icnfs.providers.memory import MemoryProvider
from icnfs.providers.refusals import FAILED_GAP_SECONDS
from icnfs.providers.refusals import GAP_MAX_SECONDS as REFUSED_GAP_MAX_SECONDS
from icnfs.providers.refusals import GAP_SECONDS as REFUSED_GAP_SECONDS


class Moody(MemoryProvider):
    """Counts what it is asked; hangs, or refuses whatever it is asked, as it is told."""

    def __init__(self) -> None:
        super().__init__("alpha")
        self.asked: list[str] = []
        self.hangs = False
        self.refusal: ProviderError | None = None
        self.at_once = self.most = 0

    async def _turn(self, *, changes: bool = False) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            if self.hangs:
                await trio.sleep_forever()
            await super()._turn(changes=changes)
            if self.refusal is not None:
                raise self.refusal
        finally:
            self.at_once -= 1

    async def probe(self) -> Capacity:
        self.asked.append("probe")
        return await super().probe()

    async def put(self, name: str, data: Data) -> None:
        self.asked.append("put")
        await super().put(name, data)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self.asked.append("get")
        return await super().get(name, offset, length)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(20_000):
            await main()

    trio.run(bounded, clock=MockClock(autojump_threshold=0))


def made() -> tuple[Moody, Breaker]:
    inner = Moody()
    return inner, Breaker(inner, Switch(), random.Random(1))


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (ProviderAwayError("p", "away"), "down", "away"),
        (ProviderFullError("p", "full"), "up", "full"),
        (ProviderRefusedError("p", "no"), "up", "no"),
        (ProviderLiesError("p", "lie"), "up", "lie"),
        (ObjectMissingError("p", "none"), "up", ""),
    ],
)
def test_only_silence_means_down(error: IcnfsError, state: str, told: str) -> None:
    switch = Switch()
    switch.failed(error)
    assert (switch.state, switch.error) == (state, told)
    switch.answered()
    assert (switch.state, switch.error) == ("up", "")


def test_a_refused_write_shows_for_as_long_as_it_counts() -> None:
    switch = Switch()
    switch.refusals.refused(ProviderFullError("p", "no room"), 1000, 0.0)
    switch.answered()
    switch.refusals.stored(10)
    assert (switch.state, switch.error, switch.refusals.state(0.0)) == ("up", "no room", "refused")
    switch.lost(ProviderRefusedError("p", "expired"))
    assert switch.error == "expired", "why it is down"
    switch.answered()
    switch.refusals.stored(1000)
    assert (switch.error, switch.refusals.state(0.0)) == ("", "ok")


def test_a_refusal_does_not_bring_back_who_is_down() -> None:
    switch = Switch()
    switch.lost(ProviderRefusedError("p", "expired"))
    switch.failed(ProviderRefusedError("p", "expired"))
    assert switch.state == "down"
    switch.failed(ObjectMissingError("p", "none"))
    assert switch.state == "up"


def test_one_failure_is_mended_by_the_probe_that_follows() -> None:
    async def main() -> None:
        inner, breaker = made()
        inner.away = True
        with pytest.raises(ProviderAwayError):
            await breaker.put("a", b"")
        inner.away = False
        assert breaker.switch.state == "down"
        await breaker.put("a", b"")
        assert inner.asked == ["put", "probe", "put"] and breaker.switch.state == "up"

    run(main)


def test_calls_fail_at_once_behind_one_that_is_down_and_one_of_them_is_the_probe() -> None:
    async def main() -> None:
        inner, breaker = made()
        inner.away = True
        for _ in range(50):
            with pytest.raises(ProviderAwayError, match="does not answer"):
                await breaker.put("a", b"")
        assert inner.asked == ["put", "probe"]
        inner.hangs = True
        await trio.sleep(2)
        inner.asked.clear()
        failed = 0

        async def put() -> None:
            nonlocal failed
            with pytest.raises(ProviderAwayError):
                await breaker.put("a", b"")
            failed += 1

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(put)
            await wait_all_tasks_blocked()
            assert breaker.switch.state == "probing"
        assert failed == 20 and inner.asked == ["probe"] and inner.most == 1

    run(main)


def test_a_dead_provider_is_asked_little_over_an_hour_whoever_wants_what_of_it() -> None:
    """Writers, readers that have no other way, and the watch, for an hour."""

    async def main() -> None:
        inner = Moody()
        guarded = guard(inner, Switch())
        inner.away = True
        with pytest.raises(ProviderAwayError):
            await guarded.breaker.probe()

        async def write() -> None:
            while True:
                with pytest.raises(ProviderAwayError):
                    await guarded.again.put("a", b"")
                await trio.sleep(0.1)

        with trio.move_on_after(3600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guarded.breaker.watch)
                for _ in range(10):
                    nursery.start_soon(write)
        alone = len(inner.asked)
        assert 3600 / (GAP_MAX_SECONDS + 1) <= alone <= 3600 / (GAP_MAX_SECONDS / 2) + 20
        assert inner.most == 1 and set(inner.asked) == {"probe"}

        async def read() -> None:
            while True:
                await guarded.breaker.patiently()
                with pytest.raises(ProviderAwayError):
                    await guarded.once.get("a")

        with trio.move_on_after(3600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guarded.breaker.watch)
                for _ in range(10):
                    nursery.start_soon(write)
                    nursery.start_soon(read)
        assert len(inner.asked) - alone <= 3600 / READ_GAP_SECONDS + 1 and inner.most == 1

    run(main)


def test_one_that_comes_back_is_found_within_the_longest_gap_and_at_once_by_who_has_no_other_way() -> None:
    async def main() -> None:
        for wanted in (False, True):
            inner, breaker = made()
            inner.away = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(breaker.watch)
                await trio.sleep(600)
                inner.away, back = False, trio.current_time()
                if wanted:
                    await breaker.patiently()
                    await breaker.put("a", b"")
                    assert trio.current_time() - back <= READ_GAP_SECONDS
                while breaker.switch.state != "up":
                    await trio.sleep(0.1)
                assert trio.current_time() - back <= GAP_MAX_SECONDS + 1.1
                nursery.cancel_scope.cancel()

    run(main)


def test_what_is_in_flight_at_one_that_stops_answering_is_given_up_soon() -> None:
    async def main() -> None:
        inner, breaker = made()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaker.watch)
            await trio.sleep(1)
            inner.hangs, begun = True, trio.current_time()
            with pytest.raises(ProviderAwayError, match="given up: "):
                await breaker.put("a", b"")
            assert trio.current_time() - begun <= STUCK_SECONDS + PROBE_SECONDS + 1.1
            assert breaker.switch.state == "down"
            nursery.cancel_scope.cancel()

    run(main)


def test_one_that_is_slow_but_answers_keeps_what_is_in_flight() -> None:
    async def main() -> None:
        inner, breaker = made()
        put = inner.put

        async def slowly(name: str, data: Data) -> None:
            await trio.sleep(60)
            await put(name, data)

        inner.put = slowly  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaker.watch)
            await breaker.put("a", b"x")
            assert inner.objects == {"a": b"x"} and 10 < inner.asked.count("probe") < 22
            nursery.cancel_scope.cancel()

    run(main)


def test_a_probe_that_times_out_while_other_calls_are_answered_marks_nobody_down() -> None:
    async def main() -> None:
        inner, breaker = made()
        inner.objects["a"] = b"x"
        hang = trio.Event()

        async def probe() -> Capacity:
            await hang.wait()
            raise AssertionError

        inner.probe = probe  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaker.watch)
            for _ in range(40):
                await breaker.get("a")
                await trio.sleep(0.5)
                assert breaker.switch.state == "up"
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize(
    "refusal", [ProviderRefusedError("alpha", "its certificate has expired"), ProviderLiesError("alpha", "a web page")]
)
def test_one_that_refuses_everything_is_down_with_the_reason_and_comes_back(refusal: ProviderError) -> None:
    async def main() -> None:
        inner, breaker = made()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaker.watch)
            await trio.sleep(10)
            inner.refusal = refusal
            with pytest.raises(type(refusal)):
                await breaker.put("a", b"")
            await trio.sleep(1.1)
            assert (breaker.switch.state, breaker.switch.error) == ("down", refusal.detail)
            with pytest.raises(ProviderAwayError, match=refusal.detail):
                await breaker.put("a", b"")
            inner.refusal = None
            await trio.sleep(GAP_MAX_SECONDS)
            await breaker.put("a", b"")
            assert (breaker.switch.state, breaker.switch.error) == ("up", "")
            nursery.cancel_scope.cancel()

    run(main)


def test_one_that_refuses_writes_alone_stays_up_shows_why_and_is_not_probed_for_each() -> None:
    async def main() -> None:
        inner, breaker = made()
        inner.read_only = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaker.watch)
            for _ in range(600):
                with pytest.raises(ProviderRefusedError, match="read-only"):
                    await breaker.put("a", b"object")
                await trio.sleep(0.1)
            assert inner.asked.count("put") == 4  # at once, and after 5, 10, and 20 seconds more
            assert breaker.switch.state == "up" and "read-only" in breaker.switch.error
            assert inner.asked.count("probe") <= 60 / 5 + 2
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("heads", [False, True])
def test_one_that_fails_stores_alone_is_taken_to_refuse_them_and_mended_by_one_that_is_stored(heads: bool) -> None:
    """Whether or not it takes what is small."""

    async def main() -> None:
        inner, breaker = made()
        put, fails, states = inner.put, True, list[str]()

        async def failing(name: str, data: Data) -> None:
            await put(name, data)
            if fails and len(data) > 1:
                raise ProviderAwayError("alpha", "503 SlowDown")

        inner.put = failing  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaker.watch)
            for _ in range(600):
                with pytest.raises(ProviderAwayError, match="503 SlowDown"):
                    await breaker.put("a", b"object")
                if heads:
                    await breaker.put("b", b"h")
                states.append(breaker.switch.state)
                await trio.sleep(0.1)
            assert inner.asked.count("put") - 600 * heads <= 2 + 6  # after 1, 2, 4 seconds, and so on
            assert inner.asked.count("probe") <= 60 / 5 + 2
            assert states[0] == ("up" if heads else "down") and set(states[1:]) == {"up"}
            assert breaker.switch.error == "503 SlowDown" and breaker.switch.refusals.state(60.0) != "ok"
            fails = False
            await trio.sleep(REFUSED_GAP_MAX_SECONDS)
            await breaker.put("a", b"object")
            assert (breaker.switch.error, breaker.switch.refusals.state(0.0)) == ("", "ok")
            nursery.cancel_scope.cancel()

    run(main)


def test_an_object_that_was_there_already_does_not_mend_one_that_refuses_to_store() -> None:
    async def main() -> None:
        inner, breaker = made()
        inner.objects["head"] = b"theirs"
        inner.read_only = True
        with pytest.raises(ProviderRefusedError):
            await breaker.put("a", b"object")
        inner.read_only = False
        await trio.sleep(REFUSED_GAP_SECONDS)
        assert not await breaker.put_new("head", b"a longer one")
        assert breaker.switch.refusals.state(trio.current_time()) == "due"
        assert await breaker.put_new("other", b"a longer one")
        assert breaker.switch.refusals.state(trio.current_time()) == "ok"

    run(main)


def test_one_that_failed_stores_that_went_off_together_is_asked_again_at_once_and_no_longer_shunned_than_a_second() -> (
    None
):
    async def main() -> None:
        inner, breaker = made()
        inner.away = True
        failed = 0

        async def put() -> None:
            nonlocal failed
            with pytest.raises(ProviderAwayError):
                await breaker.put("a", b"object")
            failed += 1

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(put)
        inner.away = False
        assert failed == 6 and breaker.switch.refusals.state(0.0) == "ok"
        await breaker.probe()
        inner.away = True
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(put)
        inner.away = False
        assert failed == 12 and breaker.switch.refusals.state(trio.current_time()) == "refused"
        await trio.sleep(FAILED_GAP_SECONDS)
        await breaker.put("a", b"object")
        assert breaker.switch.refusals.state(trio.current_time()) == "ok"

    run(main)


def test_one_object_at_a_time_is_tried_where_many_wait_to_be_stored() -> None:
    async def main() -> None:
        inner, breaker = made()
        inner.read_only = True
        refused = 0

        async def put() -> None:
            nonlocal refused
            try:
                await breaker.put("a", b"object")
            except ProviderRefusedError:
                refused += 1

        await put()
        for stuck in (False, True):
            inner.hangs = stuck
            await trio.sleep(REFUSED_GAP_SECONDS * 2)
            inner.asked.clear()
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(put)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert inner.asked == ["put"]
        assert refused == 1 + 20 + 19
        inner.hangs = inner.read_only = False
        await put()
        await put()
        assert refused == 40 and breaker.switch.refusals.state(trio.current_time()) == "ok"

    run(main)


def test_a_watched_provider_that_nobody_uses_is_asked_now_and_then() -> None:
    async def main() -> None:
        inner, breaker = made()
        with trio.move_on_after(3600):
            await breaker.watch()
        assert 3600 / (WATCH_SECONDS + 1) - 1 <= len(inner.asked) <= 3600 / WATCH_SECONDS + 1

    run(main)


def test_a_cancelled_probe_leaves_the_state_as_it_was_and_the_next_asks_anew() -> None:
    async def main() -> None:
        inner, breaker = made()
        inner.away = True
        with pytest.raises(ProviderAwayError):
            await breaker.probe()
        inner.away, inner.hangs = False, True
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1):
                await breaker.probe()
            assert breaker.switch.state == "down"
            nursery.start_soon(breaker.probe)
            await wait_all_tasks_blocked()
            inner.hangs = False
            nursery.cancel_scope.cancel()
        await breaker.probe()
        assert breaker.switch.state == "up"

    run(main)
