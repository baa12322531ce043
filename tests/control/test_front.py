"""What a front refuses by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from icnfs.control.front import Front
from icnfs.errors import LocalDiskError


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
