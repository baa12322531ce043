"""What the operating system's errors mean for a provider, as one table.

What is not in the table may pass (a disk that resets, a server that restarts, a descriptor that is short): it is
`ProviderAwayError`, worth another try.
"""

from __future__ import annotations

import errno
from typing import Final

from icnfs.errors import (
    ObjectMissingError,
    ProviderAwayError,
    ProviderError,
    ProviderFullError,
    ProviderRefusedError,
)

_MEANING: Final[dict[int, type[ProviderError]]] = {
    errno.ENOENT: ObjectMissingError,
    errno.ENOSPC: ProviderFullError,
    errno.EDQUOT: ProviderFullError,
    errno.EFBIG: ProviderFullError,
    errno.EACCES: ProviderRefusedError,
    errno.EPERM: ProviderRefusedError,
    errno.EROFS: ProviderRefusedError,
    errno.ELOOP: ProviderRefusedError,
    errno.ENOTDIR: ProviderRefusedError,
    errno.EISDIR: ProviderRefusedError,
    errno.ENOTEMPTY: ProviderRefusedError,
    errno.ENAMETOOLONG: ProviderRefusedError,
    errno.EXDEV: ProviderRefusedError,
    errno.ENOTSUP: ProviderRefusedError,
}

_REMEDY: Final[dict[int, str]] = {
    errno.EIO: "look at its disk, and at the system's log",
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "raise the quota or free space there",
    errno.EACCES: "give this user access",
    errno.EPERM: "give this user access",
    errno.EROFS: "mount it writable",
    errno.ELOOP: "a symbolic link lies in its path, and none is followed; replace it by what it points at",
    errno.ENOTDIR: "a file lies where a directory belongs; move it away",
    errno.EISDIR: "a directory lies where an object belongs; move it away",
}


def provider_error(provider: str, doing: str, error: OSError) -> ProviderError:
    """`error`, met while `doing` (as in "storing shares/ab/cd"), as the one class of the closed list that fits."""
    code = error.errno if error.errno is not None else errno.EIO
    kind = _MEANING.get(code, ProviderAwayError)
    remedy = f"; {_REMEDY[code]}" if code in _REMEDY else ""
    return kind(provider, f"{doing}: {error.strerror or error}{remedy}")
