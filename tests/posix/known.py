"""Where icnfs answers otherwise than ext4, and why that is right or cannot be helped: the one list of differences."""

from __future__ import annotations

from typing import Final, NamedTuple


class Difference(NamedTuple):
    """What the mount answers instead, and the reason."""

    answer: object
    reason: str


KNOWN: Final[dict[str, Difference]] = {
    "check_acls": Difference(
        ("ENOTSUP", "EACCES", "0o640"),
        "ACLs are off: a file system that hands them to the kernel half-way would show permissions it does not enforce",
    ),
    "check_fallocate": Difference(
        ("ENOTSUP", 3),
        "pyfuse3 has no fallocate handler; posix_fallocate(3) falls back to writing where the handle reads as well",
    ),
    "check_immutable_flag_is_not_pretended": Difference(
        "ENOTTY",
        "pyfuse3 has no ioctl handler, and a flag that nothing enforces must not be taken",
    ),
    "check_rename_whiteout": Difference(
        ("EINVAL", ["a"]),
        "RENAME_WHITEOUT serves overlay file systems' upper layers, which a FUSE mount cannot be",
    ),
    "check_seek_data_and_hole": Difference(
        [0, 1052672, 524288, 1052672, "ENXIO"],
        "pyfuse3 has no lseek handler: the kernel calls the whole file data, which lseek(2) allows",
    ),
    "check_setgid_without_group_execute_and_groups": Difference(
        ["0o2666", "0o666"],
        "the kernel does not tell which groups the caller is in: see vfs.setid",
    ),
    "check_tmpfile": Difference(
        ("ENOTSUP", []),
        "pyfuse3 has no tmpfile handler; callers fall back to a name that they unlink",
    ),
    "check_xattr_of_64_kib": Difference(
        ("ok", True),
        "ext4 keeps an inode's attributes in one block; icnfs takes values up to Linux's own limit",
    ),
}
