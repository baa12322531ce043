"""Where icnfs answers otherwise than ext4, and why that is right or cannot be helped: the one list of differences."""

from __future__ import annotations

from typing import Final, NamedTuple


class Difference(NamedTuple):
    """What the mount answers instead, and the reason."""

    answer: object
    reason: str


KNOWN: Final[dict[str, Difference]] = {
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
    "check_tmpfile": Difference(
        ("ENOTSUP", []),
        "pyfuse3 has no tmpfile handler; callers fall back to a name that they unlink",
    ),
    "check_xattr_of_64_kib": Difference(
        ("ok", True),
        "ext4 keeps an inode's attributes in one block; icnfs takes values up to Linux's own limit",
    ),
}
