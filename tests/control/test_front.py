"""What a front refuses by itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from icnfs.config import load
from icnfs.control.front import Front
from icnfs.errors import LocalDiskError
from tests.config.test_volume import MINIMAL


def test_it_stays_mounted_while_the_local_disk_lacks_what_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def flush() -> None:
        raise LocalDiskError("the local disk takes no more; free some space there")

    front = Front(cast(Any, SimpleNamespace(directory="/mnt/icn")), lambda: None)
    front._opened = cast(Any, SimpleNamespace(store=SimpleNamespace(read_only=False, flush=flush)))
    unmounted: list[str] = []
    monkeypatch.setattr("icnfs.fuse.mountpoint.unmount", unmounted.append)
    with pytest.raises(LocalDiskError, match=r"free some space there; .* --lazy"):
        trio.run(front.unmount, False)
    assert not unmounted
    trio.run(front.unmount, True)
    assert unmounted == ["/mnt/icn"]


def test_a_toml_that_would_be_refused_is_not_said_to_be_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    path.write_text(MINIMAL)
    front = Front(cast(Any, SimpleNamespace(config=load("demo", path))), lambda: None)
    front._opened = cast(Any, SimpleNamespace(config=load("demo", path)))
    assert trio.run(front._news) == ""
    path.write_text(MINIMAL + "[limits]\nupload = 1000000\n")
    assert "icnfs policy adopt demo` takes it over" in trio.run(front._news)
    path.write_text(MINIMAL + '[log]\nlevel = "debug"\n')
    news = trio.run(front._news)
    assert "log.level cannot change while" in news and "adopt" not in news
    path.write_text("[log")
    assert "cannot be used" in trio.run(front._news)
