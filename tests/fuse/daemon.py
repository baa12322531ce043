"""A process that serves a `MemFs` (run as `python -m tests.fuse.daemon DIR`): prints `ready`, then how it ended."""

from __future__ import annotations

import sys

import trio

from icnfs.errors import IcnfsError
from icnfs.fuse.options import MountOptions
from icnfs.fuse.serve import serve
from tests.fuse.memfs import MemFs


async def main(directory: str) -> None:
    fs = MemFs()
    try:
        end = await serve(fs, directory, MountOptions(), volume="mem", ready=lambda: print("ready", flush=True))
    except IcnfsError as exc:
        print(type(exc).__name__, exc, flush=True)
        sys.exit(int(exc.exit_code))
    sizes = sorted(node.inode.size for node in fs._nodes.values() if node.inode.is_file)
    data = b"".join(bytes(node.data[:8]) for node in fs._nodes.values())
    print(end.value, sizes, data.decode("ascii", "replace").strip("\0"), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
