"""Every byte class of every kind of stored object, harmed in every way: detected, named, and worked around.

    python -m tests.acceptance.classes [--only KIND]... [--work FOLDER]

Classes: each field, and all of it.  Harms: a bit flipped; cut off within the class; a byte too many at its end; the
same bytes of a sibling (the same kind of object at another place); the same bytes of its own older version (for what
never changes: of an older object of its kind at that provider).  Many objects are harmed at a time, as many as k good
ones allow, each in one way.  Then a machine with nothing but TOML and key file recovers, mounts, reads everything, and
scrubs.

Held: every harm is named, with its provider, in what `recover` says, in the mount's log or by `scrub`; everything reads
back right; and what was harmed is right again at its provider.  And once for each kind with too many harmed: an error
that says what and what to do, and never wrong bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.acceptance.contents import differences, fill, manifest
from tests.acceptance.harness import Volume, wait_for
from tests.acceptance.objects import Object, Region, stored_objects
from tests.acceptance.remote import Say, say

PUBLISHES: Final = 14
OLDER_AT: Final = 8
K, N = 4, 6
REPAIRED_SECONDS: Final = 60.0
SHARES: Final = ("share", "run", "checkpoint")

ROOM: Final = {"share": N - K, "run": N - K, "checkpoint": N - K, "marker": N - K, "head": N - 1, "slot": N - 1}
"""How many objects of one group may be bad."""

DAMAGED, TOO_FEW = 15, 10  # exit codes of icnfs(1)


def flip(data: bytes, region: Region, sibling: bytes, older: bytes) -> bytes:
    at = sum(region) // 2
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def cut(data: bytes, region: Region, sibling: bytes, older: bytes) -> bytes:
    return data[: sum(region) // 2]


def extend(data: bytes, region: Region, sibling: bytes, older: bytes) -> bytes:
    return data[: region[1]] + b"\x2a" + data[region[1] :]


def swap(data: bytes, region: Region, sibling: bytes, older: bytes) -> bytes:
    return _graft(data, region, sibling)


def roll_back(data: bytes, region: Region, sibling: bytes, older: bytes) -> bytes:
    return _graft(data, region, older)


def _graft(data: bytes, region: Region, other: bytes) -> bytes:
    """Another's bytes of that class; of the last class all that is left of it."""
    start, end = region
    piece = other[start:] if end == len(data) else other[start:end]
    return data[:start] + piece + data[end:]


HARMS: Final[dict[str, Callable[[bytes, Region, bytes, bytes], bytes]]] = {
    "flipped": flip,
    "cut": cut,
    "extended": extend,
    "swapped": swap,
    "rolled back": roll_back,
}


@dataclass
class Case:
    """One cell of the table."""

    kind: str
    part: str
    harm: str
    object: Object
    data: bytes
    """What stands there instead."""
    named_by: list[str] = field(default_factory=list)
    restored: bool = False


@dataclass
class Origin:
    """A published volume, its tree, and what it stores."""

    volume: Volume
    expected: dict[str, dict[str, Any]]
    objects: dict[str, list[Object]]
    older: Path
    """The providers as they were before the last publishes, and before a key was changed."""
    same: list[tuple[str, str, str]] = field(default_factory=list)
    """(kind, class, harm) that would change nothing: all objects have the same bytes there."""

    def read(self, one: Object) -> bytes:
        return (self.volume.providers[one.provider] / one.name).read_bytes()


def publish(root: Path) -> Origin:
    """Several segments, runs and heads, and a checkpoint."""
    volume = Volume(root, settings={"volume": {"code": f"{K}-of-{N}", "publish_seconds": 3600}})
    try:
        volume.init()
        volume.mount()
        for number in range(PUBLISHES):
            fill(volume.mountpoint, number, files=3)
            volume.sync()
            if number == OLDER_AT:
                shutil.copytree(root / "providers", root / "older")
        expected = manifest(volume.mountpoint)
        volume.umount("--drain")
        objects = stored_objects(volume)
    except BaseException:
        volume.close()
        raise
    return Origin(volume, expected, objects, root / "older")


def cases_of(origin: Origin) -> list[Case]:
    """Every class and harm of every kind, each with an object of its own as far as there are; none twice in a group."""
    found: list[Case] = []
    for kind, objects in origin.objects.items():
        assert objects, f"the volume stores no {kind}"
        turn = 0
        for part in dict.fromkeys(part for one in objects for part in one.regions):
            having = [one for one in objects if part in one.regions]
            for harm in HARMS:
                turn += 1
                tried = having[turn % len(having) :] + having[: turn % len(having)]
                case = next(filter(None, (_case(origin, kind, part, harm, one, objects) for one in tried)), None)
                if case is None:
                    origin.same.append((kind, part, harm))
                else:
                    found.append(case)
    return found


def _case(origin: Origin, kind: str, part: str, harm: str, one: Object, objects: Sequence[Object]) -> Case | None:
    """None where the harm would change nothing."""
    data = origin.read(one)
    siblings = [other for other in objects if other is not one]
    sibling = origin.read(siblings[len(siblings) // 2])
    now = HARMS[harm](data, one.regions[part], sibling, _older(origin, one, objects))
    return None if now == data else Case(kind, part, harm, one, now)


def _older(origin: Origin, one: Object, objects: Sequence[Object]) -> bytes:
    """The bytes that `one` has gone back to."""
    if one.kind == "head":
        folder = origin.volume.providers[one.provider] / "heads"
        return sorted(folder.iterdir())[0].read_bytes()
    if one.kind in SHARES:
        at_home = [other for other in objects if other.provider == one.provider and other is not one]
        return origin.read(at_home[0]) if at_home else origin.read(one)
    return (origin.older / one.provider / one.name).read_bytes()


def batches(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases that may stand beside one another; kinds of shares together, other kinds by themselves."""
    done: list[list[Case]] = []
    for case in cases:
        for batch in done:
            if _fits(batch, case):
                batch.append(case)
                break
        else:
            done.append([case])
    return done


def _fits(batch: list[Case], case: Case) -> bool:
    if (batch[0].kind in SHARES) != (case.kind in SHARES) or (case.kind not in SHARES and batch[0].kind != case.kind):
        return False
    mates = [one for one in batch if one.object.group == case.object.group]
    names = [one.object for one in batch]
    return case.object not in names and len(mates) < ROOM[case.kind]


def run(origin: Origin, root: Path, batch: list[Case]) -> list[str]:
    """One machine over copies of the providers; what was against the promises."""
    kind = batch[0].kind
    copies = _copies(origin, root)
    for case in batch:
        (copies[case.object.provider] / case.object.name).write_bytes(case.data)
    wrong = []
    with origin.volume.elsewhere(root / "machine", copies) as machine:
        if kind == "head":
            _look_at_all_heads(origin, machine, batch)
        told = machine.recover()
        _note(batch, "recover", told.stderr)
        machine.mount()
        found = differences(manifest(machine.mountpoint), origin.expected)
        wrong += [f"{kind}: {line}" for line in found[:3]]
        _note(batch, "mount", machine.log.read_text(errors="replace"))
        if kind in SHARES:
            scrub = machine.icnfs("scrub", "--full", machine.name, code=None)
            if scrub.returncode not in (0, DAMAGED):
                wrong.append(f"scrub ended with {scrub.returncode}: {scrub.stderr}")
        if kind in (*SHARES, "slot"):
            wait_for(lambda: _restored(origin, batch, copies), REPAIRED_SECONDS, f"repair\n{machine.log_tail()}")
        _note(batch, "scrub" if kind in SHARES else "mount", machine.log.read_text(errors="replace"))
        machine.umount()
    wrong += [f"{_cell(case)} at {case.object.provider}: nobody named it" for case in batch if not case.named_by]
    shutil.rmtree(root)
    return wrong


def _look_at_all_heads(origin: Origin, machine: Volume, batch: list[Case]) -> None:
    """With none that is good: `recover` looks at no more of them than it takes to find one."""
    good = [one for one in origin.objects["head"] if one not in [case.object for case in batch]]
    for one in good:
        (machine.providers[one.provider] / one.name).write_bytes(b"x" * 100)
    _note(batch, "recover", machine.recover(code=DAMAGED).stderr)
    for one in good:
        (machine.providers[one.provider] / one.name).write_bytes(origin.read(one))


def _copies(origin: Origin, root: Path) -> dict[str, Path]:
    shutil.copytree(origin.volume.root / "providers", root / "providers")
    return {name: root / "providers" / name for name in origin.volume.providers}


def _note(batch: list[Case], where: str, text: str) -> None:
    """Which harms a text names: in one line, the provider and the object."""
    for case in batch:
        lines = [line for line in text.splitlines() if f"provider {case.object.provider}" in line]
        if any(told in line for line in lines for told in case.object.told) and not case.named_by:
            case.named_by.append(where)


def _restored(origin: Origin, batch: list[Case], copies: dict[str, Path]) -> bool:
    """Whether all is again what was stored, byte for byte."""
    for case in batch:
        case.restored = (copies[case.object.provider] / case.object.name).read_bytes() == origin.read(case.object)
    return all(case.restored for case in batch)


def _cell(case: Case) -> str:
    return f"{case.kind}, {case.part}, {case.harm}"


# --- too many ---------------------------------------------------------------------------------------------------------


def beyond(origin: Origin, root: Path, kind: str) -> tuple[str, list[str]]:
    """With more harmed than may be: what was said, and what was against the promises."""
    copies = _copies(origin, root)
    group = [one for one in origin.objects[kind] if one.group == origin.objects[kind][0].group]
    harmed = group if ROOM[kind] == N - 1 else group[: N - K + 1]
    for one in harmed:
        path = copies[one.provider] / one.name
        path.write_bytes(flip(path.read_bytes(), (0, 2 * min(20, path.stat().st_size // 2)), b"", b""))
        if kind == "slot":
            for other in path.parent.iterdir():
                other.write_bytes(path.read_bytes())
        if kind in SHARES:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with origin.volume.elsewhere(root / "machine", copies) as machine:
        if kind == "share":
            said, wrong = _beyond_contents(origin, machine, group[0].group, [one.provider for one in harmed])
        else:
            done = machine.icnfs("recover", machine.name, code=None)
            said = done.stderr.strip().splitlines()[-1]
            wrong = [] if done.returncode in (DAMAGED, TOO_FEW) else [f"recover ended with {done.returncode}: {said}"]
            named = (group[0].group, *(one.provider for one in harmed)) if kind in SHARES else ()
            wrong += [f"{kind}: {said}" for name in named if name not in said]
            wrong += [] if (machine.state_dir / machine.name).exists() is False else ["a half-made state is left"]
    shutil.rmtree(root)
    return said, wrong


def _beyond_contents(origin: Origin, machine: Volume, segment: str, providers: list[str]) -> tuple[str, list[str]]:
    """Files of that segment fail with EIO or read right, all others read right; health and scrub say so."""
    machine.recover()
    machine.mount()
    wrong, failed = [], 0
    for name, facts in origin.expected.items():
        path = machine.mountpoint / name
        if "content" not in facts:
            continue
        try:
            data = path.read_bytes()
        except OSError as error:
            failed += 1
            if error.errno != 5:
                wrong.append(f"{name}: {error}")
            continue
        if len(data) != facts["size"] or _digest(data) != facts["content"]:
            wrong.append(f"{name}: wrong bytes")
    log = machine.log.read_text(errors="replace")
    told = [line for line in log.splitlines() if segment in line]
    if not failed or not any(name in "".join(told) for name in providers):
        wrong.append(f"{failed} files failed, and the log names segment or providers in {len(told)} lines")
    scrub = machine.icnfs("scrub", "--full", machine.name, code=None)
    health = machine.icnfs("health", machine.name, code=None)
    if scrub.returncode != DAMAGED or health.returncode != DAMAGED or segment not in health.stdout:
        wrong.append(f"scrub ended with {scrub.returncode}, health with {health.returncode}:\n{health.stdout}")
    machine.umount()
    return f"{failed} files answer EIO; {scrub.stderr.strip().splitlines()[-1]}", wrong


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data).hexdigest()


# --- the whole --------------------------------------------------------------------------------------------------------


def table(origin: Origin, cases: Sequence[Case], say: Say) -> None:
    """kind x class x harm -> what named it, and whether it was restored."""
    said = {(c.kind, c.part, c.harm): ("+".join(c.named_by) or "NOBODY") + ("*" * c.restored) for c in cases}
    kinds = {case.kind for case in cases}
    said |= dict.fromkeys((cell for cell in origin.same if cell[0] in kinds), "=")
    say(f"{'kind':11} {'class':12} " + " ".join(f"{harm:12}" for harm in HARMS))
    for kind, part in dict.fromkeys((kind, part) for kind, part, _ in said):
        say(f"{kind:11} {part:12} " + " ".join(f"{said.get((kind, part, harm), '-'):12}" for harm in HARMS))
    say("named first by; * right again at its provider; = the other's bytes are the same there; - no such object")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="an empty folder; default: one below /tmp")
    parser.add_argument("--only", choices=list(ROOM), action="append", help="kinds; default: all")
    chosen = parser.parse_args()
    kinds = chosen.only or list(ROOM)
    work = chosen.work or Path(tempfile.mkdtemp(prefix="icnfs-classes-"))
    origin = publish(work / "origin")
    wrong: list[str] = []
    with origin.volume:
        cases = [case for case in cases_of(origin) if case.kind in kinds]
        for number, batch in enumerate(batches(cases)):
            found = run(origin, work / f"{number}", batch)
            wrong += found
            harmed = ", ".join(f"{count} of {kind}" for kind, count in Counter(case.kind for case in batch).items())
            say(f"harmed: {harmed}; read back right" if not found else f"WRONG: {found}")
        table(origin, cases, say)
        for kind in kinds:
            said, found = beyond(origin, work / f"beyond-{kind}", kind)
            wrong += found
            say(f"too many of {kind}: {said}" + "".join(f"\nWRONG: {line}" for line in found))
    say(f"{len(wrong)} promises broken; in {work}" if wrong else f"{len(cases)} harms, all promises held")
    if not wrong:
        shutil.rmtree(work)
    return 1 if wrong else 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
