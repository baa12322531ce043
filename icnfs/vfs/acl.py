"""POSIX access control lists: what a list does to the mode, and the mode to a list (acl(5), fs/posix_acl.c).

The kernel judges by them (FUSE_POSIX_ACL, see `fuse.negotiate`) and checks who may set one.  They are kept as it hands
them over, as the attributes system.posix_acl_access and system.posix_acl_default:

| bytes | little-endian                                                 |
|-------|---------------------------------------------------------------|
| 4     | version, 2; then entries in the order of their tags, of each: |
| 2     | tag                                                           |
| 2     | permissions, 0 to 7                                           |
| 4     | of a named user or group its id, else 2^32 - 1                |

An access list that says no more than a mode is never kept.
"""

from __future__ import annotations

import errno
import stat
from struct import Struct
from typing import Final, NamedTuple

from icnfs.errors import FsError

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = (ACCESS, DEFAULT)

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20

NO_ID: Final = 2**32 - 1
BITS: Final = 0o777
"""Of a mode, those that a list speaks of."""

_HEADER: Final = Struct("<I")
_ENTRY: Final = Struct("<HHI")
_VERSION: Final = 2
_NAMED: Final = (USER, GROUP)
_SHIFTS: Final = {USER_OBJ: 6, GROUP_OBJ: 3, MASK: 3, OTHER: 0}


class Entry(NamedTuple):
    tag: int
    perm: int
    id: int


class Acl(tuple[Entry, ...]):
    """A list as posix_acl_valid() demands it.  Bits are read and written where a mode has them."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: bytes) -> Acl:
        """Raises EINVAL for anything else than one valid list."""
        entries = value[_HEADER.size :]
        if value[: _HEADER.size] == _HEADER.pack(_VERSION) and not len(entries) % _ENTRY.size:
            acl = cls(map(Entry._make, _ENTRY.iter_unpack(entries)))
            if acl._is_valid():
                return acl
        raise FsError(errno.EINVAL)

    def _is_valid(self) -> bool:
        tags = [entry.tag for entry in self]
        once = [tag for tag in tags if tag not in _NAMED]
        named = [entry.id for entry in self if entry.tag in _NAMED]
        return (
            tags == sorted(tags)
            and set(tags) <= {*_SHIFTS, *_NAMED}
            and len(once) == len(set(once))
            and {USER_OBJ, GROUP_OBJ, OTHER} <= set(once)
            and (not named or MASK in once)
            and NO_ID not in named
            and all(entry.perm <= 7 for entry in self)
        )

    def pack(self) -> bytes:
        return _HEADER.pack(_VERSION) + b"".join(
            _ENTRY.pack(tag, perm, id if tag in _NAMED else NO_ID) for tag, perm, id in self
        )

    @property
    def is_mode(self) -> bool:
        """Whether it says no more than nine bits do."""
        return len(self) == 3

    @property
    def mode(self) -> int:
        """The nine bits that stat(2) shows: the group's are the mask's, where there is one."""
        bits = {_SHIFTS[entry.tag]: entry.perm for entry in self if entry.tag in _SHIFTS}  # the mask comes later
        return sum(perm << shift for shift, perm in bits.items())

    def with_mode(self, mode: int) -> Acl:
        """What chmod(2) makes of it."""
        spared = GROUP_OBJ if any(entry.tag == MASK for entry in self) else None
        return Acl(
            entry if entry.tag in _NAMED or entry.tag == spared else entry._replace(perm=mode >> _SHIFTS[entry.tag] & 7)
            for entry in self
        )


def inherited(xattrs: dict[bytes, bytes], mode: int, umask: int) -> tuple[int, dict[bytes, bytes]]:
    """The mode, and the lists, of what is made as `mode` in a directory with those attributes."""
    value = xattrs.get(DEFAULT)
    if value is None:
        return mode & ~umask, {}
    default = Acl.parse(value)
    access = default.with_mode(default.mode & mode)
    lists = {} if access.is_mode else {ACCESS: access.pack()}
    if stat.S_ISDIR(mode):
        lists[DEFAULT] = value
    return mode & ~BITS | access.mode, lists
