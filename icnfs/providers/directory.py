"""A directory of this machine as a provider: an object is a file, and its name's components are directories.

Promises beyond `base.py`: nothing outside the directory is read or written, whatever is planted inside; files are
0600 and directories 0700; the directory itself is never made unless `create` asks for it, and its parent never, so
that what lies below the mount point of a missing disk is not taken for the disk.  It knows nothing of what the objects
mean.

How a put becomes durable: a temporary file in the object's own directory, `fdatasync`, `rename` (`link`, where it must
not replace another), `fsync` of the directory.  A directory's own entry is made durable when this process first uses
it, whoever made it; that is also when temporary files that a crash left there a day ago are removed.

Every system call runs in a thread that is abandoned when its caller is cancelled: a hanging disk keeps THREADS
threads of its own provider, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import trio

from icnfs.errors import ObjectMissingError, ProviderAwayError, ProviderError, ProviderLiesError, ProviderRefusedError
from icnfs.limits import LIST_PAGE
from icnfs.providers import beneath
from icnfs.providers.base import (
    OBJECT_NAME_MAX,
    Capacity,
    Data,
    Names,
    Pieces,
    Provider,
    check_name,
    check_prefix,
    check_range,
    check_size,
    exact_length,
    is_name,
)
from icnfs.providers.oserrors import provider_error

T = TypeVar("T")

THREADS: Final = 16
"""System calls in flight at one directory: enough to keep a disk busy, few enough to lose to a hanging one."""


class DirectoryProvider(Provider):
    """Objects as files below `root`, an absolute path."""

    def __init__(self, name: str, root: Path, *, create: bool = False) -> None:
        """`create`: a missing `root` counts as empty until the first put makes it; no later one does.  Its parent must
        be there: `ProviderRefusedError` otherwise."""
        super().__init__(name)
        self.root = root
        self._create = create
        self._limiter = trio.CapacityLimiter(THREADS)
        self._adopted: set[tuple[int, int]] = set()
        """Device and inode of the directories whose own entries this process knows to be durable."""
        self._device = -1
        """The last that is known to be no volume of icnfs's."""

    async def put(self, name: str, data: Data) -> None:
        check_name(name)
        check_size(data)
        # An abandoned thread outlives the call, whose caller may then use its buffer again: hence the copy of one.
        parts = data.parts if isinstance(data, Pieces) else (bytes(data),)
        await self._thread(f"storing {name}", partial(self._put, name, parts))

    async def put_new(self, name: str, data: Data) -> bool:
        check_name(name)
        check_size(data)
        parts = data.parts if isinstance(data, Pieces) else (bytes(data),)
        return await self._thread(f"storing {name}", partial(self._put_new, name, parts))

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        check_range(offset, length)
        return await self._thread(f"reading {name}", partial(self._get, name, offset, length))

    async def size(self, name: str) -> int:
        check_name(name)
        return await self._thread(f"looking up {name}", partial(self._size, name))

    async def delete(self, name: str) -> bool:
        check_name(name)
        await self._thread(f"deleting {name}", partial(self._delete, name))
        return False

    async def list(self, prefix: str, after: str = "") -> list[str]:
        check_prefix(prefix)
        return await self._thread("listing", partial(self._list, prefix, after))

    async def probe(self) -> Capacity:
        return await self._thread("looking at the directory", self._probe)

    # --- what follows runs in threads -------------------------------------------------------------------------------

    async def _thread(self, doing: str, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(
            partial(self._translated, doing, work), abandon_on_cancel=True, limiter=self._limiter
        )

    def _translated(self, doing: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            raise provider_error(self.name, f"{doing} in {self.root}", error) from error

    def _put(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        with self._parent_of(name, create=True) as (parent, leaf):
            beneath.replace_file(leaf, parent, parts)

    def _put_new(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        with self._parent_of(name, create=True) as (parent, leaf):
            return beneath.add_file(leaf, parent, parts)

    def _get(self, name: str, offset: int, length: int | None) -> bytes:
        with self._object(name) as (fd, size):
            count = exact_length(self.name, name, size, offset, length)
            data = beneath.read_fully(fd, offset, count)
        if len(data) != count:
            raise ProviderLiesError(self.name, f"object {name} shrank while it was read")
        return data

    def _size(self, name: str) -> int:
        with self._object(name) as (_, size):
            return size

    def _delete(self, name: str) -> None:
        missing = contextlib.suppress(FileNotFoundError, ObjectMissingError)
        with missing, self._parent_of(name) as (parent, leaf):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(leaf, dir_fd=parent)
            os.fsync(parent)  # also where it was missing: an earlier attempt may have been cut off here

    def _list(self, prefix: str, after: str) -> Names:
        with contextlib.suppress(ObjectMissingError), self._opened_root() as root:
            found = beneath.walk(root, "", prefix, after, OBJECT_NAME_MAX)
            return list(islice(filter(is_name, found), LIST_PAGE))
        return []

    def _probe(self) -> Capacity:
        try:
            with self._opened_root() as root:
                return _capacity(root)
        except ObjectMissingError:  # it is to be made, on its parent's disk
            parent = beneath.open_root(self.root.parent)
            try:
                return _capacity(parent)
            finally:
                os.close(parent)

    @contextlib.contextmanager
    def _object(self, name: str) -> Iterator[tuple[int, int]]:
        with self._parent_of(name) as (parent, leaf):
            fd, size = beneath.open_file(leaf, parent)
        try:
            yield fd, size
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _parent_of(self, name: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of the directory that holds `name`, and the name's last component."""
        *above, leaf = name.split("/")
        with contextlib.ExitStack() as opened:
            directory = opened.enter_context(self._opened_root(create=create))
            if create:
                self._adopt(directory, directory)
            for component in above:
                below = self._directory(component, directory, create)
                opened.callback(os.close, below)
                if create:
                    self._adopt(below, directory)
                directory = below
            yield directory, leaf

    def _directory(self, component: str, parent: int, create: bool) -> int:
        try:
            return beneath.open_directory(component, parent, create=create)
        except NotADirectoryError as error:
            if create:
                raise
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error  # no object lies below another

    def _adopt(self, directory: int, parent: int) -> None:
        """Make the entry of `directory` durable, and tidy it, at its first use by this process."""
        status = os.fstat(directory)
        identity = status.st_dev, status.st_ino
        if identity not in self._adopted:
            os.fsync(parent)
            beneath.sweep_temporaries(directory)
            self._adopted.add(identity)

    @contextlib.contextmanager
    def _opened_root(self, *, create: bool = False) -> Iterator[int]:
        """The directory's descriptor, opened anew each time: a disk may be unplugged, and another may come."""
        try:
            if create and self._create:
                self._check_parent()
                beneath.make_root(self.root)
                self._create = False
            fd = beneath.open_root(self.root)
        except FileNotFoundError:
            raise self._missing() from None
        except NotADirectoryError:
            raise ProviderRefusedError(self.name, f"{self.root} is not a directory; correct the url") from None
        try:
            self._check_disk(fd)
            yield fd
        finally:
            os.close(fd)

    def _check_disk(self, fd: int) -> None:
        """`ProviderRefusedError` where the directory would be a part of what it is to keep, or of another volume."""
        device = os.fstat(fd).st_dev
        if device == self._device:
            return
        if beneath.own_mount(fd):
            raise ProviderRefusedError(
                self.name, f"{self.root} lies on a mounted volume of icnfs; correct provider.{self.name}.url"
            )
        self._device = device

    def _check_parent(self) -> None:
        fd = beneath.open_root(self.root.parent)
        try:
            self._check_disk(fd)
        finally:
            os.close(fd)

    def _missing(self) -> ProviderError:
        """What it means that the directory is not there."""
        if not self._create:
            reason = f"directory {self.root} is not there; mount its disk or correct the url"
            return ProviderAwayError(self.name, reason)
        if self.root.parent.is_dir():
            self._check_parent()
            return ObjectMissingError(self.name, f"directory {self.root} is not made yet")
        return ProviderRefusedError(
            self.name,
            f"directory {self.root.parent} is not there: mount its disk, make it, or correct provider.{self.name}.url",
        )


def _capacity(directory: int) -> Capacity:
    """Of the disk that an open directory lies on."""
    room = os.fstatvfs(directory)
    no_more_files = bool(room.f_files) and not room.f_favail
    return Capacity(
        free_bytes=0 if no_more_files else room.f_bavail * room.f_frsize,
        total_bytes=room.f_blocks * room.f_frsize,
        pool=f"device:{os.fstat(directory).st_dev:x}",
    )
