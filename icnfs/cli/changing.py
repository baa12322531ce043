"""Changing a volume's TOML together with the mount that reads it: both have the change at the end, or neither has.

An interrupt waits meanwhile: it would leave them apart.  A mount that does not answer is the exception: the TOML stays
changed, and the next mount takes it over.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from icnfs.config import VolumeConfig, config_file, runtime_dir
from icnfs.config.edit import editing
from icnfs.control.client import Mount
from icnfs.control.protocol import AdoptRequest
from icnfs.errors import IcnfsError, NotMountedError

INTERRUPTS: Final = {signal.SIGINT, signal.SIGTERM}


def change(
    name: str, edit: Callable[[str], str], verify: Callable[[Mount], None] = lambda _: None
) -> tuple[VolumeConfig, Mount | None]:
    """Edit the TOML of volume `name` and have its mount, where there is one, take that over.

    Gives what the TOML says then, and the mount.  What `edit` (of text), the whole file's check, the mount or `verify`
    (of what came of it there) raises leaves TOML and mount as they were.
    """
    path = config_file(name)
    with _uninterrupted(), editing(name, path) as editor:
        text = edit(editor.text)
        config = editor.replace(text)
        mount = Mount(runtime_dir(), name)
        if not mount.alive():
            return config, None
        try:
            adopt(mount, path)
        except NotMountedError as error:
            raise NotMountedError(f"{error}; {path} is changed, and the next mount takes it over") from None
        except IcnfsError:
            editor.put_back()
            raise
        try:
            verify(mount)
        except IcnfsError:
            editor.put_back()
            adopt(mount, path)
            raise
        return config, mount


def adopt(mount: Mount, path: Path) -> None:
    """Have the mount take over what the TOML at `path` says."""
    mount.ask(AdoptRequest(os.fsencode(os.path.realpath(path))))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold interrupts back until the block has ended; one that fails ends by its own error.

    A signal mask would not do: any other thread, such as one that trio keeps in reserve, would take the signal.
    """
    caught: list[int] = []
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])
