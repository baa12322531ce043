"""POSIX access control lists, as the attributes that acl(5)'s library reads and writes.  Each check takes a fresh
directory."""

from __future__ import annotations

import os
import stat
import struct

from tests.posix.observe import NOBODY, OTHER, as_user, done, make, mode, outcome, read, touched

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"

NO_ID = 2**32 - 1
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHERS = 1, 2, 4, 8, 16, 32
TEAM = 888


def acl(*entries: tuple[int, int] | tuple[int, int, int], version: int = 2) -> bytes:
    """Entries of tag, permissions and, where there is one, id."""
    packed = (struct.pack("<HHI", e[0], e[1], e[2] if len(e) == 3 else NO_ID) for e in entries)
    return struct.pack("<I", version) + b"".join(packed)


def shown(path: str, name: str = ACCESS) -> object:
    value = outcome(os.getxattr, path, name, follow_symlinks=False)
    return list(struct.iter_unpack("<HHI", value[4:])) if isinstance(value, bytes) else value


def state(path: str) -> object:
    return mode(path), shown(path), shown(path, DEFAULT), sorted(os.listxattr(path, follow_symlinks=False))


MORE = acl((USER_OBJ, 6), (USER, 4, OTHER), (GROUP_OBJ, 6), (MASK, 4), (OTHERS, 0))
PLAIN = acl((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHERS, 1))
INHERITED = acl((USER_OBJ, 7), (USER, 7, OTHER), (GROUP_OBJ, 5), (GROUP, 3, TEAM), (MASK, 7), (OTHERS, 5))


def check_list_is_judged_by_and_shows_in_the_mode(d: str) -> object:
    f = make(f"{d}/f", b"data", 0o600)
    seen = [as_user(OTHER, lambda: read(f)), touched(f, lambda: os.setxattr(f, ACCESS, MORE)), state(f)]
    seen += [as_user(OTHER, lambda: read(f)), as_user(NOBODY, lambda: read(f))]
    return seen, as_user(OTHER, lambda: os.open(f, os.O_WRONLY)), touched(f, lambda: os.setxattr(f, ACCESS, MORE))


def check_list_of_a_mode_is_the_mode(d: str) -> object:
    f = make(f"{d}/f", b"", 0o4777)
    os.setxattr(f, ACCESS, MORE)
    return touched(f, lambda: os.setxattr(f, ACCESS, PLAIN)), state(f)


def check_mask_alone_is_kept(d: str) -> object:
    f = make(f"{d}/f", b"", 0o640)
    return done(os.setxattr, f, ACCESS, acl((USER_OBJ, 6), (GROUP_OBJ, 7), (MASK, 1), (OTHERS, 0))), state(f)


def check_chmod_moves_the_mask(d: str) -> object:
    f = make(f"{d}/f", b"data", 0o640)
    os.setxattr(f, ACCESS, MORE)
    seen = [state(f)]
    for bits in (0o777, 0o4707, 0o070, 0o640):
        os.chmod(f, bits)
        seen += [state(f), as_user(OTHER, lambda: read(f))]
    os.setxattr(d, DEFAULT, INHERITED)
    os.chmod(d, 0o1700)
    return seen, state(d)


def check_lists_are_removed(d: str) -> object:
    f = make(f"{d}/f", b"data", 0o640)
    seen = [touched(f, lambda: os.removexattr(f, ACCESS)), done(os.removexattr, f, DEFAULT), state(f)]
    os.setxattr(f, ACCESS, MORE)
    seen += [touched(f, lambda: os.removexattr(f, ACCESS)), state(f), as_user(OTHER, lambda: read(f))]
    os.setxattr(f, ACCESS, MORE)
    seen += [done(os.setxattr, f, ACCESS, acl()), state(f), done(os.setxattr, f, ACCESS, b"")]
    os.setxattr(d, DEFAULT, INHERITED)
    return seen, touched(d, lambda: os.removexattr(d, DEFAULT)), done(os.removexattr, d, DEFAULT), state(d)


def check_what_is_made_takes_after_the_default(d: str) -> object:
    os.setxattr(d, DEFAULT, INHERITED)
    seen = [state(d)]
    for umask in (0o000, 0o022, 0o777):
        old = os.umask(umask)
        for bits in (0o7777, 0o666, 0o640, 0o007, 0o000):
            at = f"{d}/{umask:o}-{bits:o}"
            os.close(os.open(f"{at}-f", os.O_CREAT | os.O_WRONLY, bits))
            os.mkdir(f"{at}-d", bits)
            os.mkfifo(f"{at}-p", bits)
            os.mknod(f"{at}-n", stat.S_IFREG | bits)
            os.symlink("nowhere", f"{at}-l")
            seen += [state(f"{at}-{kind}") for kind in "fdpnl"]
        os.umask(old)
    return seen


def check_default_of_a_mode_replaces_the_umask(d: str) -> object:
    old = os.umask(0o077)
    os.setxattr(d, DEFAULT, acl((USER_OBJ, 7), (GROUP_OBJ, 5), (OTHERS, 1)))
    os.mkdir(f"{d}/sub", 0o777)
    os.mkdir(f"{d}/sub/sub", 0o770)
    make_at = f"{d}/sub/f"
    os.close(os.open(make_at, os.O_CREAT | os.O_WRONLY, 0o666))
    os.removexattr(f"{d}/sub", DEFAULT)
    os.close(os.open(f"{make_at}2", os.O_CREAT | os.O_WRONLY, 0o666))
    os.umask(old)
    return [state(path) for path in (d, f"{d}/sub", f"{d}/sub/sub", make_at, f"{make_at}2")]


def check_default_below_a_set_group_id_directory(d: str) -> object:
    os.chown(d, 0, TEAM)
    os.chmod(d, 0o2777)
    os.setxattr(d, DEFAULT, INHERITED)
    answer = as_user(OTHER, lambda: os.mkdir(f"{d}/sub", 0o2770))
    made = as_user(OTHER, lambda: os.close(os.open(f"{d}/f", os.O_CREAT | os.O_WRONLY, 0o2775)))
    return answer, made, [(state(f"{d}/{name}"), os.lstat(f"{d}/{name}").st_gid) for name in ("sub", "f")]


def check_lists_where_they_cannot_be(d: str) -> object:
    f = make(f"{d}/f")
    os.symlink("f", f"{d}/l")
    os.mkfifo(f"{d}/p")
    seen = [done(os.setxattr, f, DEFAULT, INHERITED), done(os.setxattr, f"{d}/p", ACCESS, MORE), state(f"{d}/p")]
    for name in (ACCESS, DEFAULT):
        seen.append(done(os.setxattr, f"{d}/l", name, MORE, follow_symlinks=False))
        seen.append(done(os.removexattr, f"{d}/l", name, follow_symlinks=False))
    return seen, shown(f"{d}/l"), done(os.setxattr, f, "system.posix_acl_other", MORE), state(f)


def check_lists_that_are_none(d: str) -> object:
    f = make(f"{d}/f", b"", 0o640)
    base = ((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHERS, 0))
    wrong = (
        acl(*base[:2]),
        acl(*base[1:]),
        acl(base[1], base[0], base[2]),
        acl(*base, base[2]),
        acl(base[0], (USER, 4, OTHER), *base[1:]),
        acl(*base[:2], (GROUP, 4, OTHER), base[2]),
        acl(*base[:2], (MASK, 4), (MASK, 4), base[2]),
        acl(base[0], (USER, 4), base[1], (MASK, 4), base[2]),
        acl((USER_OBJ, 8), *base[1:]),
        acl(*base[:2], (64, 4), base[2]),
        acl(*base, version=1),
        acl(*base) + b"x",
        acl(*base)[:-1],
        b"\2\0\0",
    )
    twice = acl(base[0], (USER, 4, OTHER), (USER, 6, OTHER), base[1], (MASK, 7), base[2])
    return [done(os.setxattr, f, ACCESS, value) for value in wrong], done(os.setxattr, f, ACCESS, twice), state(f)


def check_who_may_set_and_see(d: str) -> object:
    f = make(f"{d}/f", b"", 0o640)
    os.chown(f, OTHER, OTHER)
    seen = [as_user(OTHER, lambda: os.setxattr(f, ACCESS, MORE)), as_user(NOBODY, lambda: os.getxattr(f, ACCESS))]
    seen += [as_user(NOBODY, lambda: os.setxattr(f, ACCESS, PLAIN)), as_user(NOBODY, lambda: os.removexattr(f, ACCESS))]
    return seen, state(f)


def check_set_group_id_stays_with_members_alone(d: str) -> object:
    seen = []
    for groups in ((), (TEAM,)):
        for value in (MORE, PLAIN):
            f = make(f"{d}/f{len(seen)}", b"")
            os.chown(f, OTHER, TEAM)
            os.chmod(f, 0o6775)
            answer = as_user(OTHER, lambda at=f, v=value: os.setxattr(at, ACCESS, v), groups=groups)  # type: ignore[misc]
            seen.append((answer, mode(f)))
    f = make(f"{d}/f", b"", 0o6775)
    os.setxattr(f, ACCESS, MORE)
    return seen, mode(f)


def check_mask_and_groups(d: str) -> object:
    f = make(f"{d}/f", b"data", 0o640)
    entries = ((USER_OBJ, 6), (GROUP_OBJ, 0), (GROUP, 6, TEAM), (MASK, 2), (OTHERS, 4))
    seen = []
    for mask in (2, 4, 6):
        entries = (*entries[:3], (MASK, mask), entries[4])
        os.setxattr(f, ACCESS, acl(*entries))
        for group in (TEAM, 0, NOBODY):
            seen.append(as_user(OTHER, lambda: read(f), groups=(group,)))
            seen.append(as_user(OTHER, lambda: os.close(os.open(f, os.O_WRONLY)), groups=(group,)))
    return seen


def check_directory_opened_to_one(d: str) -> object:
    sub = f"{d}/sub"
    os.mkdir(sub, 0o700)
    os.setxattr(sub, ACCESS, acl((USER_OBJ, 7), (USER, 7, OTHER), (GROUP_OBJ, 0), (MASK, 7), (OTHERS, 0)))
    seen = [as_user(who, lambda who=who: os.mkdir(f"{sub}/{who}")) for who in (OTHER, NOBODY)]  # type: ignore[misc]
    seen += [as_user(who, lambda: os.listdir(sub)) for who in (OTHER, NOBODY)]
    os.chmod(sub, 0o750)
    return seen, as_user(OTHER, lambda: os.mkdir(f"{sub}/again")), as_user(OTHER, lambda: os.listdir(sub))


def check_lists_stay_through_chown_rename_and_links(d: str) -> object:
    f = make(f"{d}/f", b"", 0o640)
    os.setxattr(f, "user.a", b"1")
    os.setxattr(f, ACCESS, MORE)
    os.chown(f, OTHER, TEAM)
    os.link(f, f"{d}/g")
    os.rename(f, f"{d}/h")
    os.chmod(f"{d}/h", 0o660)
    return state(f"{d}/g"), state(f"{d}/h")


def check_list_of_many(d: str) -> object:
    f = make(f"{d}/f", b"data", 0o600)
    users = [(USER, 4, 10_000 + i) for i in range(200)]
    answer = done(os.setxattr, f, ACCESS, acl((USER_OBJ, 6), *users, (GROUP_OBJ, 0), (MASK, 4), (OTHERS, 0)))
    return answer, state(f), as_user(10_199, lambda: read(f)), as_user(10_200, lambda: read(f))
