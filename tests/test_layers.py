"""The shape of the package: imports point down only, libraries stay behind their part, modules stay small.

Read from the syntax trees, late imports and those for type checkers included: what a type checker must know, a reader
must know too.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

EVERYBODY = {"errors", "limits", "mountinfo", "private", "process"}

BELOW: dict[str, set[str]] = {
    "errors": set(),
    "limits": set(),
    "mountinfo": set(),
    "private": {"errors", "limits"},
    "process": {"limits"},
    "crypto": set(),
    "erasure": set(),
    "format": {"crypto", "erasure"},
    "providers": {"format", "crypto", "erasure"},
    "placement": {"providers"},
    "config": {"placement", "providers"},
    # Beside each other: neither knows the other, and transfer, which parses strangers' bytes, has no keys.
    "transfer": {"providers", "format", "erasure"},
    "state": {"format", "crypto", "erasure"},
    "volume": {"state", "transfer", "config", "placement", "providers", "format", "crypto", "erasure"},
    "vfs": {"volume", "state", "format", "crypto"},
    "fuse": {"vfs", "volume", "state", "config", "format"},
    "control": {"fuse", "vfs", "volume", "state", "transfer", "config", "placement", "providers", "format", "crypto"},
    "cli": {"control", "fuse", "vfs", "volume", "state", "transfer", "config", "placement", "providers"}
    | {"format", "crypto"},
}
"""Part -> the parts that it may import, besides itself and what is everybody's: the arrows, all of which point down."""

OWNERS = {"pyfuse3": {"fuse"}, "lmdb": {"state"}, "zfec": {"erasure"}, "cryptography": {"crypto"}}
"""Library -> the only parts that may import it."""

KEYLESS = {"icnfs.crypto.hardening"}
"""What a process does before it handles anything secret: it knows no key, so transfer may use it too."""

EVENT_LOOP_FREE = {"errors", "limits", "mountinfo", "crypto", "erasure", "format", "placement", "config"}

MODULE_LINES = 500
FUNCTION_LINES = 80


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    found = {}
    for path in sorted((ROOT / "icnfs").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_bytes())


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@cache
def imports(module: str) -> frozenset[str]:
    """Dotted names that `module` imports; `from icnfs import x` counts as icnfs.x."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}:{node.lineno} imports relatively"
            found.add(node.module)
            found.update(name for alias in node.names if (name := f"{node.module}.{alias.name}") in modules())
    return frozenset(found - {"icnfs"})


def reached(module: str) -> set[str]:
    """Every module of the package that importing `module` loads, with the packages they lie in."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parents = (name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1))
        waiting += [other for other in (*imports(name), *parents) if other in modules()]
    return seen


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_part_has_its_place_among_the_layers() -> None:
    assert {part_of(module) for module in modules()} - {""} <= set(BELOW)


def test_the_arrows_themselves_make_no_circle() -> None:
    order = list(BELOW)
    for part, below in BELOW.items():
        assert all(order.index(lower) < order.index(part) for lower in below), part


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down_only(module: str) -> None:
    part = part_of(module)
    allowed = BELOW.get(part, set()) | {part} | (EVERYBODY if part not in EVERYBODY else set())
    known = KEYLESS if part == "transfer" else set()
    strays = {name for name in imports(module) - known if name.startswith("icnfs.") and part_of(name) not in allowed}
    assert not strays, f"{module} may import only {sorted(allowed)}"


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_a_library_stays_behind_its_part(library: str) -> None:
    users = {part_of(m) for m in modules() if any(name.split(".")[0] == library for name in imports(m))}
    assert users == OWNERS[library]


def test_pure_parts_know_no_event_loop() -> None:
    users = {part_of(m) for m in modules() if any(name.split(".")[0] == "trio" for name in imports(m))}
    assert not users & EVENT_LOOP_FREE


def test_the_transfer_process_loads_neither_keys_nor_database_nor_fuse() -> None:
    entry = "icnfs.transfer.__main__"
    assert entry in modules()
    loaded = reached(entry)
    parts = {part_of(name) for name in loaded - KEYLESS - {"icnfs.crypto"}}
    assert parts <= BELOW["transfer"] | EVERYBODY | {"transfer", ""}
    libraries = {name.split(".")[0] for module in loaded for name in imports(module)}
    assert not libraries & {"cryptography", "lmdb", "pyfuse3"}


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in project["dependencies"]}
    used = {name.split(".")[0] for module in modules() for name in imports(module)}
    assert used - set(sys.stdlib_module_names) - {"icnfs"} == declared


@pytest.mark.parametrize("module", sorted(modules()))
def test_modules_and_functions_stay_small(module: str) -> None:
    lines = modules()[module].read_bytes().count(b"\n")
    assert lines <= MODULE_LINES
    long = [f.name for f in functions(module) if (f.end_lineno or 0) - f.lineno >= FUNCTION_LINES]
    assert not long, f"{module}: {long} of {FUNCTION_LINES} lines or more"


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_opens_with_what_it_is_for(module: str) -> None:
    assert not tree(module).body or ast.get_docstring(tree(module)), f"{module} has no docstring"
