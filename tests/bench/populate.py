"""Filling a volume in process: through `Vfs` and `Store`, with its publisher and providers, but without a mount.

What comes to be is what a mount would have made, in a fraction of the time: no FUSE request is on the way.  The volume
must not be mounted meanwhile; what was made is committed when a function returns, and published as far as the volume's
settings say, or all of it where that is asked for.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from icnfs import config as configs
from icnfs.crypto.keys import Secret
from icnfs.vfs.vfs import Vfs
from icnfs.volume.keyring import Secrets
from icnfs.volume.volume import Volume as OpenVolume
from icnfs.volume.volume import open_volume
from tests.acceptance.harness import Volume

FOLDER: Final = 1000
"""Files in one folder of a tree of many files."""

CHUNK: Final = 128 << 10
TURN: Final = 64
"""Entries made between two turns of the event loop."""

_BLOCK: Final = random.Random(11).randbytes(1 << 20)

Say = Callable[[str], None]


def name(number: int) -> str:
    """The path of a file in a tree of many, below its top."""
    return f"{number // FOLDER}/f{number}"


def contents(number: int, size: int) -> bytes:
    """`size` bytes, at most half a MiB, that few other numbers have."""
    at = number * 37 % (len(_BLOCK) // 2)
    return _BLOCK[at : at + size]


def populate(volume: Volume, work: Callable[[Vfs], Awaitable[None]], *, sync: bool) -> None:
    """Open the volume, do `work`, and leave it; published on return where `sync` asks for it."""

    async def run() -> None:
        async with _opened(volume) as (opened, vfs):
            await work(vfs)
            await opened.store.flush()
            if sync:
                await opened.sync(3600)

    sys.setswitchinterval(0.0001)
    trio.run(run)


@asynccontextmanager
async def _opened(volume: Volume) -> AsyncIterator[tuple[OpenVolume, Vfs]]:
    toml = volume.config_dir / f"{volume.name}.toml"
    config = configs.parse(volume.name, toml, toml.read_bytes())
    offered = Secrets(keyfile=Secret(volume.keyfile.read_bytes()))
    async with open_volume(config, volume.state_dir / volume.name, offered) as opened:
        yield opened, Vfs(opened.store, opened.free_bytes)


async def make_tree(vfs: Vfs, top: str, count: int, size: int, say: Say) -> None:
    """`count` files of `size` bytes below `top`, as `name` names them."""
    root = vfs.mkdir(1, top.encode(), 0o755, 0, 0).ino
    folder = 0
    for number in range(count):
        await _turn(vfs, number)
        if number % FOLDER == 0:
            folder = vfs.mkdir(root, b"%d" % (number // FOLDER), 0o755, 0, 0).ino
        handle, _ = vfs.create(folder, b"f%d" % number, 0o644, os.O_RDWR, 0, 0)
        if size:
            await vfs.write(handle.fh, 0, contents(number, size))
        vfs.release(handle.fh)
        if number % 100_000 == 99_999:
            say(f"{top}: {number + 1:,} files made")


async def make_entries(vfs: Vfs, top: str, count: int, say: Say) -> None:
    """A directory `top` with `count` empty files, named by number."""
    folder = vfs.mkdir(1, top.encode(), 0o755, 0, 0).ino
    for number in range(count):
        await _turn(vfs, number)
        vfs.mknod(folder, b"%d" % number, 0o100644, 0, 0, 0)
        if number % 100_000 == 99_999:
            say(f"{top}: {number + 1:,} entries made")


async def make_islands(vfs: Vfs, top: str, size: int, islands: int, say: Say) -> None:
    """A file of `size` bytes with `islands` bytes of contents, one in each of as many chunks, evenly apart."""
    handle, node = vfs.create(1, top.encode(), 0o644, os.O_RDWR, 0, 0)
    stride = max(size // islands // CHUNK, 1) * CHUNK
    for number in range(islands):
        await _turn(vfs, number)
        await vfs.write(handle.fh, number * stride, b"x")
        if number % 100_000 == 99_999:
            say(f"{top}: {number + 1:,} chunks made")
    await vfs.write(handle.fh, size - 1, b"x")
    vfs.release(handle.fh)
    assert vfs.getattr(node.ino).size == size


async def _turn(vfs: Vfs, number: int) -> None:
    if vfs.congested:
        await vfs.wait_room()
    elif number % TURN == 0:
        await trio.lowlevel.checkpoint()
