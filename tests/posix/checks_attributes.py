"""Modes, owners, set-id bits, times and extended attributes.  Each check takes a fresh directory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial

from tests.posix.observe import (
    NOBODY,
    OTHER,
    UTIME_NOW,
    UTIME_OMIT,
    as_user,
    done,
    facts,
    make,
    mode,
    outcome,
    read,
    touched,
    utimensat,
)

SET_ID = 0o6755
PAST = 1_000_000_000 * 10**9


def check_umask_on_creation(d: str) -> object:
    seen = []
    for umask in (0o000, 0o022, 0o077, 0o777):
        old = os.umask(umask)
        os.close(os.open(f"{d}/f{umask:o}", os.O_CREAT | os.O_WRONLY, 0o7777))
        os.mkdir(f"{d}/d{umask:o}", 0o7777)
        os.mkfifo(f"{d}/p{umask:o}", 0o666)
        os.umask(old)
        seen += [mode(f"{d}/{k}{umask:o}") for k in "fdp"]
    return seen


def check_times_never_run_backwards(d: str) -> object:
    """Whatever sets them: what is made or touched after something else looks no older."""
    seen = []
    for i in range(50):
        make(f"{d}/first{i}", b"data")
        second = make(f"{d}/second{i}")
        os.utime(second)
        os.mkdir(f"{d}/third{i}")
        first, second_stat, third = (os.stat(f"{d}/{name}{i}") for name in ("first", "second", "third"))
        seen.append(first.st_mtime_ns <= second_stat.st_mtime_ns <= third.st_mtime_ns)
    return all(seen)


def check_chmod_every_bit(d: str) -> object:
    make(f"{d}/f")
    os.mkdir(f"{d}/sub")
    seen = []
    for bit in range(12):
        for name in ("f", "sub"):
            os.chmod(f"{d}/{name}", 1 << bit)
            seen.append(mode(f"{d}/{name}"))
    return seen


def check_chmod_and_chown_through_a_symlink(d: str) -> object:
    make(f"{d}/f")
    os.symlink("f", f"{d}/l")
    os.chmod(f"{d}/l", 0o600)
    os.chown(f"{d}/l", OTHER, OTHER)
    os.lchown(f"{d}/l", NOBODY, NOBODY)
    return facts(f"{d}/f"), facts(f"{d}/l")


def check_chown_of_root_keeps_and_clears_set_id(d: str) -> object:
    seen = []
    for bits in (0o6755, 0o2745, 0o4644, 0o1777):
        path = make(f"{d}/f{bits:o}", b"", bits)
        os.chown(path, OTHER, -1)
        one = mode(path)
        os.chmod(path, bits)
        os.chown(path, -1, OTHER)
        two = mode(path)
        os.chmod(path, bits)
        os.chown(path, -1, -1)
        seen.append((one, two, mode(path)))
    return seen


def check_chown_of_a_directory_keeps_set_id(d: str) -> object:
    os.mkdir(f"{d}/sub")
    os.chmod(f"{d}/sub", 0o6775)
    os.chown(f"{d}/sub", OTHER, OTHER)
    return facts(f"{d}/sub")


def check_chown_by_an_owner_within_his_groups(d: str) -> object:
    path = make(f"{d}/f", b"", SET_ID)
    os.chown(path, OTHER, OTHER)
    os.chmod(path, SET_ID)
    return [
        as_user(OTHER, lambda: os.chown(path, -1, 777), groups=(777,)),
        facts(path),
        as_user(OTHER, lambda: os.chown(path, -1, 778), groups=(777,)),
        as_user(OTHER, lambda: os.chown(path, NOBODY, -1)),
        as_user(NOBODY, lambda: os.chown(path, NOBODY, -1)),
    ]


def check_write_by_another_user_clears_set_id(d: str) -> object:
    seen = []
    for bits in (0o6777, 0o2777, 0o2767, 0o4777):
        path = make(f"{d}/f{bits:o}", b"data", bits)

        def write(path: str = path) -> int:
            fd = os.open(path, os.O_WRONLY)
            return os.write(fd, b"x")

        seen.append((as_user(OTHER, write), mode(path)))
    return seen


def check_write_by_root_keeps_set_id(d: str) -> object:
    path = make(f"{d}/f", b"data", SET_ID)
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)
    return mode(path)


def check_truncate_by_another_user_clears_set_id(d: str) -> object:
    seen = []
    for bits in (0o6777, 0o2767):
        paths = [make(f"{d}/{how}{bits:o}", b"data", bits) for how in ("path", "fd", "open")]
        seen += [
            as_user(OTHER, lambda p=paths[0]: os.truncate(p, 2)),  # type: ignore[misc]
            as_user(OTHER, lambda p=paths[1]: os.ftruncate(os.open(p, os.O_WRONLY), 2)),  # type: ignore[misc]
            as_user(OTHER, lambda p=paths[2]: os.open(p, os.O_WRONLY | os.O_TRUNC) > 0),  # type: ignore[misc]
            *(mode(p) for p in paths),
        ]
    return seen


def check_chmod_outside_the_group_drops_setgid(d: str) -> object:
    path = make(f"{d}/f")
    os.chown(path, OTHER, 888)
    outside = as_user(OTHER, lambda: os.chmod(path, 0o2755))
    first = mode(path)
    inside = as_user(OTHER, lambda: os.chmod(path, 0o2755), groups=(888,))
    return outside, first, inside, mode(path), as_user(NOBODY, lambda: os.chmod(path, 0o700))


def check_setgid_directory_is_inherited(d: str) -> object:
    sub = f"{d}/sub"
    os.mkdir(sub)
    os.chown(sub, OTHER, 888)
    os.chmod(sub, 0o2777)
    make(f"{sub}/f")
    os.mkdir(f"{sub}/deeper")
    os.symlink("x", f"{sub}/l")
    os.mkfifo(f"{sub}/p")
    own = as_user(OTHER, lambda: os.close(os.open(f"{sub}/own", os.O_CREAT | os.O_WRONLY, 0o2775)))
    return own, [facts(f"{sub}/{n}") for n in ("f", "deeper", "l", "p", "own")]


def check_permissions_bind_other_users(d: str) -> object:
    secret = make(f"{d}/secret", b"s", 0o600)
    public = make(f"{d}/public", b"p", 0o644)
    os.mkdir(f"{d}/closed", 0o700)
    make(f"{d}/closed/f")
    os.mkdir(f"{d}/through")
    os.chmod(f"{d}/through", 0o711)
    make(f"{d}/through/f", b"t", 0o644)
    os.chmod(d, 0o755)
    return [
        as_user(OTHER, lambda: read(secret)),
        as_user(OTHER, lambda: read(public)),
        as_user(OTHER, lambda: os.open(public, os.O_WRONLY)),
        as_user(OTHER, lambda: os.listdir(f"{d}/closed")),
        as_user(OTHER, lambda: os.stat(f"{d}/closed/f").st_size),
        as_user(OTHER, lambda: os.listdir(f"{d}/through")),
        as_user(OTHER, lambda: read(f"{d}/through/f")),
        as_user(OTHER, lambda: os.mkdir(f"{d}/new")),
        as_user(OTHER, lambda: os.unlink(public)),
        as_user(OTHER, lambda: os.rename(public, f"{d}/p2")),
        as_user(OTHER, lambda: os.link(public, f"{d}/p3")),
        as_user(OTHER, lambda: os.access(secret, os.R_OK)),
        as_user(OTHER, lambda: os.access(public, os.R_OK)),
        as_user(OTHER, lambda: os.utime(public)),
        as_user(OTHER, lambda: os.setxattr(public, "user.a", b"b")),
        as_user(OTHER, lambda: os.truncate(public, 0)),
    ]


def check_created_files_belong_to_their_maker(d: str) -> object:
    os.chmod(d, 0o777)
    makers: list[Callable[[], object]] = [
        partial(os.mkdir, f"{d}/m"),
        partial(os.mkfifo, f"{d}/p"),
        partial(os.symlink, "x", f"{d}/l"),
        partial(make, f"{d}/f"),
    ]
    made = [as_user(OTHER, partial(done, maker)) for maker in makers]
    return made, [facts(f"{d}/{n}") for n in "mplf"]


def check_times_of_namespace_changes(d: str) -> object:
    sub, f = f"{d}/sub", f"{d}/f"
    os.mkdir(sub)
    make(f, b"data")
    make(f"{d}/gone")
    os.mkdir(f"{d}/empty")
    return {
        "mkdir": touched([d], lambda: os.mkdir(f"{d}/n1")),
        "create": touched([d], lambda: make(f"{d}/n2")),
        "mknod": touched([d], lambda: os.mkfifo(f"{d}/n3")),
        "symlink": touched([d], lambda: os.symlink("x", f"{d}/n4")),
        "link": touched([d, sub, f], lambda: os.link(f, f"{sub}/n5")),
        "unlink": touched([d, sub, f], lambda: os.unlink(f"{sub}/n5")),
        "rmdir": touched([d], lambda: os.rmdir(f"{d}/empty")),
        "rename": touched([d, sub, f], lambda: os.rename(f"{d}/gone", f"{sub}/gone")),
        "rename of a file": touched([d, sub, f], lambda: os.rename(f, f)),
        "lookup": touched([d, sub, f], lambda: os.stat(f)),
    }


def check_times_of_a_renamed_file(d: str) -> object:
    make(f"{d}/f")
    os.mkdir(f"{d}/sub")
    before = os.stat(f"{d}/f")
    touched([f"{d}/f"], lambda: os.rename(f"{d}/f", f"{d}/g"))
    after = os.stat(f"{d}/g")
    return before.st_mtime_ns == after.st_mtime_ns, before.st_ctime_ns != after.st_ctime_ns


def check_times_of_data_changes(d: str) -> object:
    f = make(f"{d}/f", b"data" * 1000)
    fd = os.open(f, os.O_RDWR)
    return {
        "write": touched([d, f], lambda: os.pwrite(fd, b"x", 0)),
        "empty write": touched([d, f], lambda: os.pwrite(fd, b"", 0)),
        "ftruncate": touched([d, f], lambda: os.ftruncate(fd, 10)),
        "ftruncate to the same size": touched([d, f], lambda: os.ftruncate(fd, 10)),
        "truncate to the same size": touched([d, f], lambda: os.truncate(f, 10)),
        "extend": touched([d, f], lambda: os.truncate(f, 10000)),
        "open": touched([d, f], lambda: os.open(f, os.O_RDWR)),
        "O_TRUNC": touched([d, f], lambda: os.open(f, os.O_RDWR | os.O_TRUNC)),
        "O_TRUNC when empty": touched([d, f], lambda: os.open(f, os.O_RDWR | os.O_TRUNC)),
        "O_CREAT of what exists": touched([d, f], lambda: os.open(f, os.O_RDWR | os.O_CREAT)),
        "fsync": touched([d, f], lambda: os.fsync(fd)),
    }


def check_times_of_attribute_changes(d: str) -> object:
    f = make(f"{d}/f", b"data")
    return {
        "chmod": touched([d, f], lambda: os.chmod(f, 0o600)),
        "chmod to the same": touched([d, f], lambda: os.chmod(f, 0o600)),
        "chown": touched([d, f], lambda: os.chown(f, OTHER, OTHER)),
        "chown to nothing new": touched([d, f], lambda: os.chown(f, -1, -1)),
        "utime": touched([d, f], lambda: os.utime(f, ns=(1, 2))),
        "setxattr": touched([d, f], lambda: os.setxattr(f, "user.a", b"b")),
        "setxattr to the same": touched([d, f], lambda: os.setxattr(f, "user.a", b"b")),
        "removexattr": touched([d, f], lambda: os.removexattr(f, "user.a")),
        "getxattr": touched([d, f], lambda: os.listxattr(f)),
        "failed chmod": touched([d, f], lambda: as_user(NOBODY, lambda: os.chmod(f, 0o777))),
    }


def check_atime_of_reads_is_relative(d: str) -> object:
    """relatime: a read moves an atime that is not after mtime, and then no more."""
    f = make(f"{d}/f", b"data" * 5000)
    os.utime(f, ns=(PAST, PAST))
    fd = os.open(f, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    first = touched(f, lambda: os.pread(fd, 100, 0))
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    second = touched(f, lambda: os.pread(fd, 100, 0))
    os.close(fd)
    return first, second


def check_atime_of_cached_reads(d: str) -> object:
    f = make(f"{d}/f", b"data" * 5000)
    read(f)
    os.utime(f, ns=(PAST, PAST))
    return touched(f, lambda: read(f))


def check_atime_of_noatime_reads(d: str) -> object:
    f = make(f"{d}/f", b"data")
    os.utime(f, ns=(PAST, PAST))
    fd = os.open(f, os.O_RDONLY | os.O_NOATIME)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return touched(f, lambda: os.read(fd, 10))


def check_atime_of_listings(d: str) -> object:
    sub = f"{d}/sub"
    os.mkdir(sub)
    os.utime(sub, ns=(PAST, PAST))
    return touched(sub, lambda: os.listdir(sub)), touched(sub, lambda: os.listdir(sub))


def check_atime_of_readlink(d: str) -> object:
    os.symlink("x", f"{d}/l")
    os.utime(f"{d}/l", ns=(PAST, PAST), follow_symlinks=False)
    return touched(f"{d}/l", lambda: os.readlink(f"{d}/l"))


def check_new_files_have_equal_times(d: str) -> object:
    os.mkdir(f"{d}/sub")
    fd = os.open(f"{d}/f", os.O_CREAT | os.O_WRONLY)
    os.close(fd)
    seen = []
    for name in ("sub", "f"):
        st = os.stat(f"{d}/{name}")
        seen.append(st.st_atime_ns == st.st_mtime_ns == st.st_ctime_ns)
    return seen


def check_utimensat_nanoseconds(d: str) -> object:
    f = make(f"{d}/f")
    os.utime(f, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    st = os.stat(f)
    return st.st_atime_ns, st.st_mtime_ns


def check_utimensat_before_1970_and_far_ahead(d: str) -> object:
    f = make(f"{d}/f")
    seen = []
    for seconds in (-1, 1 - 2**31, 2**31, 2**32, 2**33):
        os.utime(f, ns=(seconds * 10**9 + 7, seconds * 10**9 + 9))
        st = os.stat(f)
        seen.append((st.st_atime_ns, st.st_mtime_ns))
    return seen


def check_utimensat_omit_and_now(d: str) -> object:
    f = make(f"{d}/f")
    seen: list[object] = []
    for atime, mtime in (((0, UTIME_OMIT), (5, 6)), ((7, 8), (0, UTIME_OMIT)), ((0, UTIME_OMIT), (0, UTIME_OMIT))):
        seen.append(touched(f, lambda a=atime, m=mtime: utimensat(f, a, m)))  # type: ignore[misc]
        st = os.stat(f)
        seen.append((st.st_mtime_ns if mtime[1] != UTIME_OMIT else 0, st.st_atime_ns if atime[1] != UTIME_OMIT else 0))
    seen.append(utimensat(f, (0, UTIME_NOW), (0, UTIME_OMIT)))
    st = os.stat(f)
    seen.append((st.st_atime_ns > PAST, st.st_mtime_ns))
    seen += [utimensat(f, (0, 10**9), (0, 0)), utimensat(f"{d}/none", (0, 0), (0, 0))]
    return seen


def check_utimensat_by_others(d: str) -> object:
    f = make(f"{d}/f", b"", 0o666)
    os.chmod(d, 0o755)
    return [
        as_user(OTHER, lambda: utimensat(f, (0, UTIME_NOW), (0, UTIME_NOW))),
        as_user(OTHER, lambda: utimensat(f, (1, 0), (1, 0))),
        as_user(OTHER, lambda: utimensat(f, (0, UTIME_NOW), (0, UTIME_OMIT))),
    ]


def check_utimensat_of_a_symlink_itself(d: str) -> object:
    make(f"{d}/f")
    os.symlink("f", f"{d}/l")
    os.utime(f"{d}/l", ns=(1, 2), follow_symlinks=False)
    return os.lstat(f"{d}/l").st_mtime_ns, os.stat(f"{d}/f").st_mtime_ns == 2


def check_xattr_create_and_replace(d: str) -> object:
    f = make(f"{d}/f")
    return [
        done(os.setxattr, f, "user.a", b"1", os.XATTR_REPLACE),
        done(os.setxattr, f, "user.a", b"1", os.XATTR_CREATE),
        done(os.setxattr, f, "user.a", b"2", os.XATTR_CREATE),
        done(os.setxattr, f, "user.a", b"3", os.XATTR_REPLACE),
        outcome(os.getxattr, f, "user.a"),
        done(os.setxattr, f, "user.a", b""),
        outcome(os.getxattr, f, "user.a"),
        outcome(os.getxattr, f, "user.b"),
        done(os.removexattr, f, "user.b"),
        done(os.removexattr, f, "user.a"),
        os.listxattr(f),
    ]


def check_xattr_sizes(d: str) -> object:
    f = make(f"{d}/f")
    name = "user." + "n" * 250
    seen: list[object] = [
        done(os.setxattr, f, name, b"x"),
        done(os.setxattr, f, name + "n", b"x"),
        done(os.setxattr, f, "user.", b"x"),
        done(os.setxattr, f, "user.big", b"v" * 65537),
        done(os.setxattr, f, "user.kib", bytes(range(256)) * 4),
        sorted(os.listxattr(f)),
        outcome(os.getxattr, f, "user.kib") == bytes(range(256)) * 4,
    ]
    return seen


def check_xattr_of_64_kib(d: str) -> object:
    f = make(f"{d}/f")
    value = bytes(range(256)) * 256
    return done(os.setxattr, f, "user.max", value), outcome(os.getxattr, f, "user.max") == value


def check_xattr_small_buffers(d: str) -> object:
    from tests.posix.observe import c_call

    f = make(f"{d}/f")
    os.setxattr(f, "user.a", b"value")
    buffer = bytes(3)
    path = os.fsencode(f)
    return c_call("getxattr", path, b"user.a", buffer, 3), c_call("listxattr", path, buffer, 3)


def check_xattr_namespaces(d: str) -> object:
    f = make(f"{d}/f")
    os.chmod(f, 0o666)
    seen: list[object] = []
    for name in ("user.u", "trusted.t", "security.icnfs", "system.none", "nonsense", "foreign.x", "User.x"):
        seen.append((name, done(os.setxattr, f, name, b"v")))
    seen.append(sorted(os.listxattr(f)))
    seen.append(as_user(OTHER, lambda: sorted(os.listxattr(f))))
    seen.append(as_user(OTHER, lambda: os.getxattr(f, "trusted.t")))
    seen.append(as_user(OTHER, lambda: os.setxattr(f, "trusted.t", b"w")))
    seen.append(as_user(OTHER, lambda: os.setxattr(f, "user.u", b"w")))
    seen.append(as_user(OTHER, lambda: os.setxattr(f, "security.icnfs", b"w")))
    return seen


def check_xattr_on_other_kinds(d: str) -> object:
    os.mkdir(f"{d}/sub")
    os.symlink("x", f"{d}/l")
    os.mkfifo(f"{d}/p")
    seen: list[object] = []
    for name in ("sub", "l", "p"):
        for attribute in ("user.a", "trusted.a"):
            seen.append(done(os.setxattr, f"{d}/{name}", attribute, b"v", follow_symlinks=False))
        seen.append(sorted(os.listxattr(f"{d}/{name}", follow_symlinks=False)))
    os.chmod(f"{d}/sub", 0o1777)
    seen.append(as_user(OTHER, lambda: os.setxattr(f"{d}/sub", "user.b", b"v")))
    return seen


def check_xattrs_follow_the_inode(d: str) -> object:
    f = make(f"{d}/f")
    os.setxattr(f, "user.a", b"1")
    os.link(f, f"{d}/g")
    os.rename(f, f"{d}/h")
    os.setxattr(f"{d}/g", "user.b", b"2")
    return sorted(os.listxattr(f"{d}/h")), os.getxattr(f"{d}/h", "user.b")


def check_many_xattrs(d: str) -> object:
    f = make(f"{d}/f")
    for i in range(60):
        os.setxattr(f, f"user.n{i:03}", str(i).encode())
    for i in range(0, 60, 3):
        os.removexattr(f, f"user.n{i:03}")
    return {name: os.getxattr(f, name) for name in sorted(os.listxattr(f))}


def check_file_capability_is_dropped_by_a_write(d: str) -> object:
    f = make(f"{d}/f", b"program", 0o755)
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    if done(os.setxattr, f, "security.capability", capability) != "ok":
        return "cannot be set"
    fd = os.open(f, os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)
    return outcome(os.getxattr, f, "security.capability") == capability


def check_immutable_flag_is_not_pretended(d: str) -> object:
    import fcntl

    fd = os.open(make(f"{d}/f"), os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x80086601, bytes(8))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(fd)
    return "ok"


def check_stat_of_open_descriptors(d: str) -> object:
    fd = os.open(make(f"{d}/f", b"12345", 0o604), os.O_RDONLY)
    st, lst = os.fstat(fd), os.lstat(f"{d}/f")
    os.close(fd)
    return st.st_size, oct(st.st_mode), st.st_ino == lst.st_ino, st.st_dev == lst.st_dev, stat.S_ISREG(st.st_mode)


def check_chown_of_nothing_by_a_stranger(d: str) -> object:
    seen = []
    for bits in (0o4755, 0o2750, 0o755, 0o2640):
        path = make(f"{d}/f{bits:o}", b"", bits)
        made = touched(path, lambda p=path: os.close(os.open(p, os.O_RDONLY)))  # type: ignore[misc]
        seen.append((made, as_user(OTHER, lambda p=path: os.chown(p, -1, -1)), mode(path)))  # type: ignore[misc]
        seen.append((as_user(OTHER, lambda p=path: os.chown(p, -1, -1), groups=(0,)), mode(path)))  # type: ignore[misc]
    return seen


def check_chown_of_special_files_clears_set_id(d: str) -> object:
    def fifo(path: str) -> None:
        os.mkfifo(path)

    def device(path: str) -> None:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))

    def sock(path: str) -> None:
        os.mknod(path, stat.S_IFSOCK | 0o600)

    seen = []
    for create in (fifo, device, sock):
        for bits in (0o6555, 0o4600, 0o2660):
            path = f"{d}/{create.__name__}{bits:o}"
            create(path)
            os.chown(path, OTHER, OTHER)
            os.chmod(path, bits)
            answer = as_user(OTHER, lambda p=path: os.chown(p, OTHER, 777), groups=(777,))  # type: ignore[misc]
            one = facts(path)
            os.chmod(path, bits)
            os.chown(path, NOBODY, NOBODY)
            seen.append((answer, one, facts(path)))
    return seen


def check_setgid_without_group_execute_and_groups(d: str) -> object:
    """An owner who is not in the file's group, and somebody else who is."""
    path = make(f"{d}/f", b"data", 0o2666)
    os.chown(path, OTHER, 888)
    os.chmod(path, 0o2666)
    as_user(OTHER, lambda: os.truncate(path, 3))
    seen = [mode(path)]
    os.chmod(path, 0o2666)
    as_user(NOBODY, lambda: os.truncate(path, 2), groups=(888,))
    return [*seen, mode(path)]


def check_chgrp_by_an_owner_who_is_no_member(d: str) -> object:
    seen = []
    for bits in (0o2644, 0o2654, 0o6644):
        for who, groups in ((OTHER, ()), (OTHER, (888,)), (0, ())):
            path = make(f"{d}/f{len(seen)}", b"data")
            os.chown(path, OTHER, 888)
            os.chmod(path, bits)
            answer = as_user(who, lambda at=path: os.chown(at, OTHER, OTHER), groups=groups)  # type: ignore[misc]
            seen.append((answer, mode(path)))
    return seen


def check_xattr_names_can_always_be_listed(d: str) -> object:
    """However many were taken; how many these are is each file system's own."""
    path = make(f"{d}/f")
    answers = [done(os.setxattr, path, f"user.{i:04}" + "n" * 240, b"") for i in range(400)]
    return answers[-1], isinstance(outcome(os.listxattr, path), list)
