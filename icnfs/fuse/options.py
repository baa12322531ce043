"""The `-o` options of a mount.

mount(8) hands its helper everything that fstab(5) says, so what is not ours but known to be harmless is ignored, and
what nobody knows is refused: a misspelt `ro` must not mount read-write.  default_permissions is always on: permission
bits are checked by the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from icnfs.errors import UsageError
from icnfs.vfs.times import Atime

_OURS: Final[dict[str, dict[str, Any]]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "allow_other": {"allow_other": True},
    "default_permissions": {},
    "noatime": {"atime": Atime.NEVER},
    "relatime": {"atime": Atime.RELATIVE},
    "atime": {"atime": Atime.RELATIVE},
    "strictatime": {"atime": Atime.STRICT},
    "suid": {"set_ids": True},
    "nosuid": {"set_ids": False},
    "dev": {"devices": True},
    "nodev": {"devices": False},
    "exec": {"execute": True},
    "noexec": {"execute": False},
    "poll": {"poll": True},
    "nopoll": {"poll": False},
    "fsync=local": {"publishing": False},
    "fsync=publish": {"publishing": True},
    "defaults": {},
}
"""What each option sets; a later one wins, as in mount(8)."""

_IGNORED: Final = frozenset(
    (
        "_netdev",
        "auto",
        "noauto",
        "nofail",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "async",
        "nodiratime",
        "diratime",
        "lazytime",
        "nolazytime",
        "norelatime",
        "nostrictatime",
        "nomand",
        "silent",
        "loud",
        "noiversion",
        "comment",
    )
)
"""For mount(8), systemd or other file systems."""

_IGNORED_PREFIXES: Final = ("x-", "X-")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What the options ask for.  The defaults are those of FUSE: no set-id bits, no devices, this user alone."""

    read_only: bool = False
    allow_other: bool = False
    set_ids: bool = False
    devices: bool = False
    execute: bool = True
    atime: Atime = Atime.RELATIVE
    poll: bool = True
    """Whether idle processors poll while requests come fast (`fuse.wakeups`)."""
    publishing: bool = False
    """Whether fsync waits until what it covers is published and safe, and not on this machine alone."""

    def for_kernel(self, volume: str) -> set[str]:
        """The options of the mount itself, as pyfuse3 takes them; `volume` is the name that mount(8) and df(1) show."""
        options = {"default_permissions", "subtype=icnfs", f"fsname={volume}", "ro" if self.read_only else "rw"}
        options.add("suid" if self.set_ids else "nosuid")
        options.add("dev" if self.devices else "nodev")
        options.add("exec" if self.execute else "noexec")
        if self.allow_other:
            options.add("allow_other")
        if self.atime is Atime.NEVER:
            options.add("noatime")  # the mount keeps the times: this is for mount(8) and findmnt(8) to show
        return options


def parse(given: Iterable[str]) -> MountOptions:
    """The options in `given`, each a comma-separated list as `-o` takes it.  Raises UsageError that lists the known."""
    options = MountOptions()
    for item in (item for text in given for item in text.split(",")):
        name, _, value = item.partition("=")
        if not item or name in _IGNORED or name.startswith(_IGNORED_PREFIXES):
            continue
        if value and name in _OURS:
            raise UsageError(f"-o {item!r}: the mount option {name} takes no value")
        if item not in _OURS:
            raise UsageError(f"-o {item!r}: unknown mount option; known are {', '.join(sorted(_OURS))}")
        options = replace(options, **_OURS[item])
    return options
