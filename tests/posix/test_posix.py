"""Every check runs on a mount and on the machine's own file system, and both must have seen the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from tests.posix import checks_acls, checks_attributes, checks_data, checks_directories, checks_names
from tests.posix.known import KNOWN

Check = Callable[[str], object]


def _checks(*modules: ModuleType) -> dict[str, Check]:
    found = {name: check for module in modules for name, check in vars(module).items() if name.startswith("check_")}
    return dict(sorted(found.items()))


CHECKS: Final = _checks(checks_names, checks_data, checks_attributes, checks_directories, checks_acls)


def _fresh(parent: Path, name: str) -> str:
    path = parent / name
    path.mkdir(parents=True)
    path.chmod(0o777)
    return str(path)


@pytest.mark.mount
@pytest.mark.parametrize("name", CHECKS)
def test_mount_answers_as_the_local_file_system_does(name: str, playground: Path, drive: Path) -> None:
    expected = CHECKS[name](_fresh(playground / "local", name))
    found = CHECKS[name](_fresh(drive, name))
    if name in KNOWN:
        assert found == KNOWN[name].answer, f"known to differ, but otherwise: {KNOWN[name].reason}"
        assert found != expected, f"{name} no longer differs: strike it from KNOWN"
    else:
        assert found == expected


def test_known_differences_name_checks_that_exist() -> None:
    assert set(KNOWN) <= set(CHECKS)
