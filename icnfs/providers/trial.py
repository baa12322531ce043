"""What a provider can do, found out by doing it with one object of random bytes, which is gone afterwards.

It works on the bare provider, without retries, so that what shows is what is there.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from icnfs.errors import ObjectMissingError, ProviderAwayError, ProviderError, ProviderLiesError
from icnfs.limits import KIB, MIB
from icnfs.providers.base import Provider
from icnfs.providers.guard import SLOWEST_BYTES_PER_SECOND

FOLDER: Final = "trial"
"""What the object's name begins with: no name of a volume's does."""

SIZE: Final = 4 * MIB
"""Bytes of the object: about a share."""

STEP_SECONDS: Final = 15.0
"""For each step, and its bytes at SLOWEST_BYTES_PER_SECOND on top: one that says nothing is told of soon."""

SMALL_READS: Final = 5
REMEDY: Final = "correct its url, see what lies in between, or leave the provider"

T = TypeVar("T")


@dataclass
class Report:
    """What was found; seconds and bytes per second, None where it did not come to that."""

    provider: str
    error: str = ""
    """The first thing that it could not do."""
    latency_s: float | None = None
    """The median of small ranged reads."""
    write_rate: float | None = None
    read_rate: float | None = None
    conditional_writes: bool | None = None
    """Whether a put that must not replace an object does not."""
    keeps_deleted: bool | None = None
    """Whether it says that it keeps what is deleted, as older versions."""
    steps: list[str] = field(default_factory=list)
    """What it could do, in order."""


async def try_out(provider: Provider) -> Report:
    """A report on `provider`, which keeps nothing of the trial; never raises one of the closed list."""
    report = Report(provider.name)
    name = f"{FOLDER}/{secrets.token_hex(16)}"
    try:
        await _steps(provider, name, report)
    except ProviderError as error:
        report.error = error.detail
    finally:
        if report.steps:  # else nothing was stored
            await _tidy(provider, name, report)
    return report


async def _tidy(provider: Provider, name: str, report: Report) -> None:
    """See that nothing is left of the trial."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + STEP_SECONDS):
        try:
            await provider.delete(name)
        except ProviderError as error:
            report.error = report.error or error.detail


async def _steps(provider: Provider, name: str, report: Report) -> None:
    data = os.urandom(SIZE)

    async def step(what: str, call: Callable[[], Awaitable[T]], size: int = 0) -> tuple[T, float]:
        begun, allowed = trio.current_time(), STEP_SECONDS + size / SLOWEST_BYTES_PER_SECOND
        with trio.move_on_after(allowed):
            result = await call()
            report.steps.append(what)
            return result, trio.current_time() - begun
        late = f"{what}: no answer within {allowed:.0f} s; check its url, and the disk or the network there"
        raise ProviderAwayError(provider.name, late)

    def hold(right: bool, what: str) -> None:
        if not right:
            raise ProviderLiesError(provider.name, f"{what}: it answered something else than was stored; {REMEDY}")

    await step("probe", provider.probe)
    _, seconds = await step("put", lambda: provider.put(name, data), SIZE)
    report.write_rate = SIZE / seconds
    whole, seconds = await step("get", lambda: provider.get(name), SIZE)
    report.read_rate = SIZE / seconds
    hold(whole == data, "get")
    took = []
    for i in range(SMALL_READS):
        at = i * 100 * KIB + 17
        part, seconds = await step("range", lambda at=at: provider.get(name, at, 4 * KIB))  # type: ignore[misc]
        hold(part == data[at : at + 4 * KIB], "range")
        took.append(seconds)
    report.latency_s = sorted(took)[SMALL_READS // 2]
    hold((await step("size", lambda: provider.size(name)))[0] == SIZE, "size")
    hold(name in (await step("list", lambda: provider.list(name)))[0], "list")
    report.conditional_writes = not (await step("put_new", lambda: provider.put_new(name, b"overwritten")))[0]
    report.keeps_deleted = (await step("delete", lambda: provider.delete(name)))[0]
    try:
        await provider.get(name)
    except ObjectMissingError:
        return
    raise ProviderLiesError(provider.name, f"delete: the object is still there; {REMEDY}")
