"""The same with nothing replaced: directories, and the transfer process."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import trio

from icnfs import config as configs
from icnfs.crypto.slots import parse_recovery_key
from icnfs.volume.create import create
from icnfs.volume.keyring import Secrets
from icnfs.volume.recover import recover
from icnfs.volume.volume import open_volume
from tests.volume.world import CHEAP, NAMES, PASSPHRASE, TOML, get_file, put_file

DATA = os.urandom(20_000_000)


def test_directories_and_a_process_of_its_own_that_is_killed_midway(tmp_path: Path) -> None:
    toml = TOML.format(code="4-of-6").replace("/nowhere", str(tmp_path / "providers"))
    (tmp_path / "providers").mkdir()
    config = configs.parse("demo", tmp_path / "demo.toml", toml.encode())
    here, there = tmp_path / "here" / "demo", tmp_path / "there" / "demo"
    offered = Secrets(passphrase=PASSPHRASE)

    async def fill() -> str:
        created = await create(config, here, offered, costs=CHEAP)
        async with open_volume(config, here, offered) as volume:
            await put_file(volume, b"f", DATA)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(volume.sync)
                while not volume.publisher.progress.done:
                    await trio.sleep(0.005)
                os.kill(volume.network.transfer.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            assert volume.status().transfer_restarts == 1
            assert not volume.status().degraded
        return created.recovery_key

    async def back(key: str) -> None:
        secrets = Secrets(recovery=parse_recovery_key(key))
        await recover(config, there, secrets)
        async with open_volume(config, there, secrets) as volume:
            assert await get_file(volume, b"f") == DATA

    key = trio.run(fill)
    assert here.stat().st_mode & 0o777 == 0o700
    for name in NAMES[1:3]:
        shutil.rmtree(tmp_path / "providers" / name)
    trio.run(back, key)
