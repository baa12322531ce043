"""`icnfs recover` killed at random moments: each time it is started over, and the last one is whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from icnfs import config as configs
from icnfs.crypto.keys import Secret
from icnfs.volume.keyring import Secrets
from icnfs.volume.volume import Volume, open_volume
from tests.cli.machine import World, furnish
from tests.volume.world import get_file, list_files, put_file

KILLS = 8
DATA = os.urandom(300_000)


def fill(world: World) -> None:
    async def body(volume: Volume) -> None:
        for i in range(3000):
            await put_file(volume, b"name-%04d" % i, b"")
        await put_file(volume, b"data", DATA)
        await volume.sync()

    _open(world, body)


def check(world: World) -> None:
    async def body(volume: Volume) -> None:
        assert len(list_files(volume)) == 3001
        assert await get_file(volume, b"data") == DATA
        await put_file(volume, b"new", b"")
        await volume.sync()

    _open(world, body)


def _open(world: World, body: Callable[[Volume], Awaitable[None]]) -> None:
    toml = world.root / "config" / "demo.toml"
    config = configs.parse("demo", toml, toml.read_bytes())
    offered = Secrets(keyfile=Secret((world.root / "config" / "demo.key").read_bytes()))

    async def main() -> None:
        async with open_volume(config, world.root / "state" / "demo", offered) as volume:
            await body(volume)

    trio.run(main)


def killed_after(world: World, seconds: float) -> None:
    """Front and transfer, which is told by the front's end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "icnfs.cli", "recover", "demo"],
        env=world.environment,
        cwd=world.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_recovery_is_started_over_until_one_is_whole(tmp_path: Path) -> None:
    world = World(tmp_path)
    furnish(world)
    world.run("init", "demo")
    fill(world)
    state = world.root / "state" / "demo"
    shutil.rmtree(state)
    begun = time.monotonic()
    world.run("recover", "demo")
    whole = time.monotonic() - begun
    chance = random.Random(1)
    for _ in range(KILLS):
        shutil.rmtree(state, ignore_errors=True)
        killed_after(world, chance.uniform(0.3, 1.0) * whole)
    if not state.exists():
        world.run("recover", "demo")
    assert not state.with_name("demo.partial").exists()
    check(world)
