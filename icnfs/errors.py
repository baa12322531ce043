"""Every failure that icnfs reports, as one closed tree.

A class carries the errno that a file-system request answers with and the exit code that a verb ends with; exit codes
are numbered once, here and in icnfs(1), and a number is never given a second meaning.  A message says what happened,
to what, and what to do next.  This module knows nothing else of the product.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the `icnfs` command (documented in icnfs(1); never renumbered)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    SECRET = 4
    NO_VOLUME = 5
    VOLUME_EXISTS = 6
    MOUNTED = 7
    MOUNT_POINT = 8
    NOT_MOUNTED = 9
    TOO_FEW_PROVIDERS = 10
    FOREIGN_PROVIDER = 11
    NEWER_FORMAT = 12
    FENCED = 13
    DEGRADED = 14
    DAMAGED = 15
    ROLLED_BACK = 16
    LOCAL_DISK = 17
    PROVIDER = 18
    POLICY = 19
    SNAPSHOT = 20
    INTERRUPTED = 130


class IcnfsError(Exception):
    """The root of the tree: what happened, to what, and the remedy, in one line."""

    errno: int = errno.EIO
    exit_code: Exit = Exit.FAILED


class FsError(IcnfsError):
    """A request that POSIX answers with an errno; it is a reply, not a fault, and is not logged."""

    def __init__(self, code: int) -> None:
        self.errno = code

    def __str__(self) -> str:
        return os.strerror(self.errno)  # when asked: most are only answered


class ConfigError(IcnfsError):
    """The volume's TOML cannot be used; the message names file, key and remedy."""

    errno = errno.EINVAL
    exit_code = Exit.CONFIG


class UsageError(IcnfsError):
    """The command line cannot be used."""

    errno = errno.EINVAL
    exit_code = Exit.USAGE


class SecretError(IcnfsError):
    """A secret is missing, malformed, or opens no key slot."""

    errno = errno.EACCES
    exit_code = Exit.SECRET


class NoVolumeError(IcnfsError):
    """The volume is not there: no TOML, no local state, or no head at its providers."""

    errno = errno.ENOENT
    exit_code = Exit.NO_VOLUME


class VolumeExistsError(IcnfsError):
    """`init` or `recover` would overwrite a volume."""

    errno = errno.EEXIST
    exit_code = Exit.VOLUME_EXISTS


class MountedError(IcnfsError):
    """Another process of this machine has the volume open."""

    errno = errno.EBUSY
    exit_code = Exit.MOUNTED


class MountPointError(IcnfsError):
    """The mount point is missing, not a directory, not empty, or may not be used."""

    exit_code = Exit.MOUNT_POINT

    def __init__(self, message: str, code: int = errno.EINVAL) -> None:
        super().__init__(message)
        self.errno = code


class NotMountedError(IcnfsError):
    """Nothing of icnfs is mounted there, or its daemon does not answer."""

    errno = errno.ENOTCONN
    exit_code = Exit.NOT_MOUNTED


class FormatError(IcnfsError):
    """Bytes from outside are not what they claim to be: the one error every parser raises."""

    exit_code = Exit.DAMAGED


class NewerFormatError(FormatError):
    """Bytes of a format version or feature that this release does not know; the remedy is an upgrade."""

    exit_code = Exit.NEWER_FORMAT


class DamagedError(FormatError):
    """Authentication failed: altered, exchanged, replayed or truncated bytes."""


class FencedError(IcnfsError):
    """Another machine took a higher epoch; local data is kept and the mount is read-only."""

    errno = errno.EROFS
    exit_code = Exit.FENCED


class DegradedError(IcnfsError):
    """Not as many distinct owners hold the data as the volume asks for."""

    exit_code = Exit.DEGRADED


class PolicyError(IcnfsError):
    """Shares lie where the volume's policy does not allow them, or it allows no place for new ones."""

    exit_code = Exit.POLICY


class SnapshotError(IcnfsError):
    """There is no such snapshot, its name is taken or none, or it is locked."""

    errno = errno.EINVAL
    exit_code = Exit.SNAPSHOT


class TooFewProvidersError(IcnfsError):
    """Fewer than k shares can be had; the message says which are missing."""

    exit_code = Exit.TOO_FEW_PROVIDERS


class RolledBackError(IcnfsError):
    """The newest head found is older than what the caller knows to have existed."""

    exit_code = Exit.ROLLED_BACK


class LocalDiskError(IcnfsError):
    """The local state's disk is full or fails."""

    exit_code = Exit.LOCAL_DISK

    def __init__(self, message: str, code: int = errno.ENOSPC) -> None:
        super().__init__(message)
        self.errno = code


class InterruptedByUserError(IcnfsError):
    """Ctrl-C or SIGTERM ended a verb early; what it had done is kept and it resumes when called again."""

    errno = errno.EINTR
    exit_code = Exit.INTERRUPTED


class ProviderError(IcnfsError):
    """What a provider answered; `provider` is its name in the TOML, or empty where it is all of them.

    Its text can be encoded: bytes of a path that are not UTF-8 are shown as escapes.  Its subclasses are the closed
    list.
    """

    exit_code = Exit.PROVIDER

    def __init__(self, provider: str, message: str) -> None:
        message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(f"provider {provider}: {message}" if provider else message)
        self.provider = provider
        self.detail = message

    def __reduce__(self) -> tuple[type[ProviderError], tuple[str, str]]:
        return type(self), (self.provider, self.detail)


class ObjectMissingError(ProviderError):
    """The provider answers and has no such object."""


class ProviderAwayError(ProviderError):
    """The provider does not answer: unreachable, timed out, or its directory is not there.  Worth another try."""


class ProviderFullError(ProviderError):
    """The provider takes no more bytes."""

    errno = errno.ENOSPC


class ProviderRefusedError(ProviderError):
    """The provider answers no: permissions, credentials, a read-only place.  Another try will not help."""

    errno = errno.EACCES


class NameTakenError(ProviderError):
    """An object that must not be replaced is there already, and holds other bytes."""


class ProviderLiesError(ProviderError):
    """The answer breaks the contract: wrong length, malformed listing, altered bytes."""


class ForeignProviderError(ProviderError):
    """The place belongs to another volume, or to another provider of this one."""

    exit_code = Exit.FOREIGN_PROVIDER
