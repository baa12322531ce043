"""What is mounted, as the kernel lists it (/proc/self/mountinfo, proc(5))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FS_TYPE: Final = "fuse.icnfs"
MOUNTINFO: Final = Path("/proc/self/mountinfo")

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_USER: Final = re.compile(rb"\buser_id=(\d{1,10})\b")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo (proc(5)): where, of which type, from what source, the device as 'major:minor', and for
    FUSE whose mount it is."""

    path: bytes
    fs_type: str
    source: bytes
    device: str
    uid: int = 0


def parse_mountinfo(text: bytes) -> Iterator[Mounted]:
    """The mounts that `text` lists, in order; lines that are not as proc(5) has them are passed over."""
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        tail = fields[fields.index(b"-", 6) + 1 :] if b"-" in fields[6:] else []
        if len(tail) >= 2:
            fs_type, device = tail[0].decode("ascii", "replace"), fields[2].decode("ascii", "replace")
            user = _USER.search(tail[2]) if len(tail) > 2 else None
            uid = int(user[1]) if user else 0
            yield Mounted(_unescape(fields[4]), fs_type, _unescape(tail[1]), device, uid)


def _unescape(field: bytes) -> bytes:
    """proc(5): space, tab, newline and backslash are three octal digits after a backslash."""
    return _OCTAL.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field)
