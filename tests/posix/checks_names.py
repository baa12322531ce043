"""Names, links and renames.  Every check takes a fresh directory and returns what it saw."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.posix.observe import (
    NOBODY,
    OTHER,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    as_user,
    done,
    facts,
    make,
    names,
    nlink,
    outcome,
    read,
    renameat2,
)


def check_name_of_255_bytes(d: str) -> object:
    name = "n" * 255
    make(f"{d}/{name}", b"x")
    return names(d) == [name], read(f"{d}/{name}")


def check_name_of_256_bytes_is_too_long_for_every_call(d: str) -> object:
    long, target = f"{d}/{'n' * 256}", make(f"{d}/f")
    calls: dict[str, Callable[..., object]] = {
        "open": partial(os.open, long, os.O_RDONLY),
        "create": partial(os.open, long, os.O_CREAT | os.O_WRONLY),
        "mkdir": partial(os.mkdir, long),
        "rmdir": partial(os.rmdir, long),
        "unlink": partial(os.unlink, long),
        "mknod": partial(os.mknod, long),
        "symlink": partial(os.symlink, "x", long),
        "link": partial(os.link, target, long),
        "rename to": partial(os.rename, target, long),
        "rename from": partial(os.rename, long, target),
        "lstat": partial(os.lstat, long),
    }
    return {what: done(call) for what, call in calls.items()}


def check_names_are_any_bytes(d: str) -> object:
    root = os.fsencode(d)
    odd = [bytes([b]) * 3 for b in range(1, 256) if b != ord("/") and b != ord(".")]
    for name in odd:
        make(os.fsdecode(root + b"/" + name), name)
    listed = sorted(os.listdir(root))
    contents = all(read(os.fsdecode(root + b"/" + name)) == name for name in odd)
    return listed == sorted(odd), contents


def check_names_with_dots_and_blanks(d: str) -> object:
    for name in ("...", ". ", " .", " ", "\n", "..x", "-", "\\", "a\tb"):
        make(f"{d}/{name}")
    return names(d)


def check_name_normal_forms_stay_apart(d: str) -> object:
    make(f"{d}/\u00e9", b"composed")
    make(f"{d}/e\u0301", b"decomposed")
    make(f"{d}/E", b"upper")
    make(f"{d}/e", b"lower")
    return [read(f"{d}/{n}") for n in ("\u00e9", "e\u0301", "E", "e")], names(d)


def check_path_of_4096_bytes_is_too_long(d: str) -> object:
    return done(os.stat, "/" + "a/" * 2048), done(os.stat, d + "/." * 2100)


def check_symlink_of_4095_bytes(d: str) -> object:
    target = "t" * 4095
    os.symlink(target, f"{d}/l")
    return os.readlink(f"{d}/l") == target, os.lstat(f"{d}/l").st_size, done(os.symlink, "t" * 4096, f"{d}/m")


def check_symlink_facts(d: str) -> object:
    old = os.umask(0o077)
    os.symlink("nowhere", f"{d}/l")
    os.umask(old)
    return facts(f"{d}/l"), done(os.stat, f"{d}/l"), os.readlink(f"{d}/l"), done(os.symlink, "", f"{d}/empty")


def check_symlink_loops(d: str) -> object:
    os.symlink("b", f"{d}/a")
    os.symlink("a", f"{d}/b")
    os.symlink("self", f"{d}/self")
    return [done(os.stat, f"{d}/{n}") for n in ("a", "self", "self/x")], done(os.open, f"{d}/a", os.O_RDONLY)


def check_symlink_chain_of_41(d: str) -> object:
    make(f"{d}/0")
    for i in range(41):
        os.symlink(str(i), f"{d}/{i + 1}")
    return done(os.stat, f"{d}/40"), done(os.stat, f"{d}/41")


def check_open_nofollow_and_directory_flags(d: str) -> object:
    make(f"{d}/f")
    os.mkdir(f"{d}/sub")
    os.symlink("f", f"{d}/l")
    os.symlink("sub", f"{d}/ls")
    return [
        done(os.open, f"{d}/l", os.O_RDONLY | os.O_NOFOLLOW),
        done(os.open, f"{d}/f", os.O_RDONLY | os.O_DIRECTORY),
        done(os.open, f"{d}/ls", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW),
        done(os.open, f"{d}/sub", os.O_RDONLY | os.O_DIRECTORY),
        done(os.open, f"{d}/sub", os.O_WRONLY),
        done(os.open, f"{d}/sub", os.O_RDWR),
        done(os.open, f"{d}/new", os.O_CREAT | os.O_DIRECTORY | os.O_RDONLY),
        done(os.open, f"{d}/l", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    ]


def check_create_through_a_dangling_symlink(d: str) -> object:
    os.symlink("made", f"{d}/l")
    first = done(os.open, f"{d}/l", os.O_CREAT | os.O_WRONLY)
    return first, names(d), facts(f"{d}/made")["kind"]


def check_hard_links(d: str) -> object:
    make(f"{d}/f", b"shared")
    os.link(f"{d}/f", f"{d}/g")
    os.mkdir(f"{d}/sub")
    os.link(f"{d}/f", f"{d}/sub/h")
    same = os.stat(f"{d}/f").st_ino == os.stat(f"{d}/g").st_ino == os.stat(f"{d}/sub/h").st_ino
    three = nlink(f"{d}/g")
    os.unlink(f"{d}/f")
    return same, three, nlink(f"{d}/g"), read(f"{d}/sub/h")


def check_hard_link_refusals(d: str) -> object:
    make(f"{d}/f")
    os.mkdir(f"{d}/sub")
    return [
        done(os.link, f"{d}/sub", f"{d}/x"),
        done(os.link, f"{d}/f", f"{d}/f"),
        done(os.link, f"{d}/f", f"{d}/sub"),
        done(os.link, f"{d}/none", f"{d}/x"),
        done(os.link, f"{d}/f", f"{d}/none/x"),
        done(os.link, f"{d}/f", f"{d}/f/x"),
    ]


def check_hard_link_to_a_symlink(d: str) -> object:
    os.symlink("target", f"{d}/l")
    os.link(f"{d}/l", f"{d}/m", follow_symlinks=False)
    return facts(f"{d}/m"), os.readlink(f"{d}/m"), nlink(f"{d}/l")


def check_hard_links_of_other_kinds(d: str) -> object:
    os.mkfifo(f"{d}/p")
    os.link(f"{d}/p", f"{d}/q")
    return facts(f"{d}/q")


def check_link_revives_nothing(d: str) -> object:
    """linkat of an unlinked file by /proc: ENOENT (Linux: only O_TMPFILE files may)."""
    make(f"{d}/f")
    fd = os.open(f"{d}/f", os.O_RDWR)
    os.unlink(f"{d}/f")
    answer = done(os.link, f"/proc/self/fd/{fd}", f"{d}/back", follow_symlinks=True)
    os.close(fd)
    return answer, names(d)


def check_many_hard_links(d: str) -> object:
    make(f"{d}/f")
    for i in range(300):
        os.link(f"{d}/f", f"{d}/l{i}")
    full = nlink(f"{d}/f")
    for i in range(0, 300, 2):
        os.unlink(f"{d}/l{i}")
    return full, nlink(f"{d}/f"), len(os.listdir(d))


def check_unlink_refusals(d: str) -> object:
    os.mkdir(f"{d}/sub")
    make(f"{d}/f")
    return [
        done(os.unlink, f"{d}/sub"),
        done(os.unlink, f"{d}/none"),
        done(os.unlink, f"{d}/f/x"),
        done(os.rmdir, f"{d}/f"),
        done(os.unlink, f"{d}/f/"),
        done(os.rmdir, f"{d}/sub/."),
        done(os.rmdir, f"{d}/sub/.."),
    ]


def check_trailing_slashes(d: str) -> object:
    make(f"{d}/f")
    os.mkdir(f"{d}/sub/")
    return [
        done(os.stat, f"{d}/f/"),
        done(os.stat, f"{d}/sub/"),
        done(os.open, f"{d}/new/", os.O_CREAT | os.O_WRONLY),
        done(os.rename, f"{d}/sub", f"{d}/moved/"),
        done(os.rename, f"{d}/f", f"{d}/g/"),
        names(d),
    ]


def check_rename_plain(d: str) -> object:
    make(f"{d}/a", b"1")
    os.mkdir(f"{d}/sub")
    before = os.stat(f"{d}/a").st_ino
    os.rename(f"{d}/a", f"{d}/sub/b")
    return os.stat(f"{d}/sub/b").st_ino == before, names(d), read(f"{d}/sub/b"), nlink(f"{d}/sub/b")


def check_rename_over_a_file(d: str) -> object:
    make(f"{d}/a", b"new")
    make(f"{d}/b", b"old")
    os.link(f"{d}/b", f"{d}/keep")
    os.rename(f"{d}/a", f"{d}/b")
    return names(d), read(f"{d}/b"), read(f"{d}/keep"), nlink(f"{d}/keep")


def check_rename_over_an_open_file_keeps_its_data(d: str) -> object:
    make(f"{d}/a", b"new")
    make(f"{d}/b", b"old")
    fd = os.open(f"{d}/b", os.O_RDWR)
    os.rename(f"{d}/a", f"{d}/b")
    seen = os.pread(fd, 10, 0), os.fstat(fd).st_nlink, os.pwrite(fd, b"more", 3), os.pread(fd, 10, 0)
    os.close(fd)
    return seen, read(f"{d}/b")


def check_rename_between_two_links_of_one_file(d: str) -> object:
    make(f"{d}/a")
    os.link(f"{d}/a", f"{d}/b")
    os.rename(f"{d}/a", f"{d}/b")
    return names(d), nlink(f"{d}/a")


def check_rename_onto_itself(d: str) -> object:
    make(f"{d}/a", b"x")
    os.mkdir(f"{d}/sub")
    return done(os.rename, f"{d}/a", f"{d}/a"), done(os.rename, f"{d}/sub", f"{d}/sub"), names(d)


def check_rename_directories(d: str) -> object:
    for name in ("a/x", "empty", "full/y"):
        os.makedirs(f"{d}/{name}")
    make(f"{d}/f")
    return [
        done(os.rename, f"{d}/a", f"{d}/full"),
        done(os.rename, f"{d}/a", f"{d}/f"),
        done(os.rename, f"{d}/f", f"{d}/a"),
        done(os.rename, f"{d}/f", f"{d}/empty"),
        done(os.rename, f"{d}/a", f"{d}/a/x/under"),
        done(os.rename, f"{d}/a", f"{d}/a/under"),
        done(os.rename, f"{d}/a/x", f"{d}/a"),
        done(os.rename, f"{d}/a", f"{d}/empty"),
        names(d),
        names(f"{d}/empty"),
        done(os.rename, f"{d}/none", f"{d}/x"),
        done(os.rename, f"{d}/f", f"{d}/none/x"),
        done(os.rename, f"{d}/f", f"{d}/f/x"),
        done(os.rename, f"{d}/.", f"{d}/x"),
        done(os.rename, f"{d}/full/..", f"{d}/x"),
    ]


def check_rename_moves_dotdot(d: str) -> object:
    os.makedirs(f"{d}/a/sub")
    os.mkdir(f"{d}/b")
    os.rename(f"{d}/a/sub", f"{d}/b/sub")
    parent = os.stat(f"{d}/b/sub/..").st_ino == os.stat(f"{d}/b").st_ino
    return parent, nlink(f"{d}/a"), nlink(f"{d}/b"), nlink(f"{d}/b/sub")


def check_rename_noreplace(d: str) -> object:
    make(f"{d}/a", b"a")
    make(f"{d}/b", b"b")
    os.mkdir(f"{d}/sub")
    return [
        renameat2(f"{d}/a", f"{d}/b", RENAME_NOREPLACE),
        renameat2(f"{d}/a", f"{d}/sub", RENAME_NOREPLACE),
        renameat2(f"{d}/a", f"{d}/a", RENAME_NOREPLACE),
        renameat2(f"{d}/none", f"{d}/b", RENAME_NOREPLACE),
        renameat2(f"{d}/a", f"{d}/sub/c", RENAME_NOREPLACE),
        names(d),
        read(f"{d}/sub/c"),
    ]


def check_rename_exchange(d: str) -> object:
    make(f"{d}/a", b"a")
    make(f"{d}/b", b"b")
    os.makedirs(f"{d}/sub/deep")
    inodes = os.stat(f"{d}/a").st_ino, os.stat(f"{d}/sub/deep").st_ino
    swapped = [
        renameat2(f"{d}/a", f"{d}/b", RENAME_EXCHANGE),
        read(f"{d}/a"),
        read(f"{d}/b"),
        renameat2(f"{d}/b", f"{d}/sub/deep", RENAME_EXCHANGE),
        renameat2(f"{d}/a", f"{d}/none", RENAME_EXCHANGE),
        renameat2(f"{d}/sub", f"{d}/sub/deep", RENAME_EXCHANGE),
        renameat2(f"{d}/a", f"{d}/a", RENAME_EXCHANGE),
        renameat2(f"{d}/a", f"{d}/sub/deep", RENAME_EXCHANGE | RENAME_NOREPLACE),
    ]
    kept = inodes == (os.stat(f"{d}/sub/deep").st_ino, os.stat(f"{d}/b").st_ino)
    return swapped, kept, facts(f"{d}/b"), facts(f"{d}/sub/deep"), nlink(d), nlink(f"{d}/sub")


def check_rename_exchange_of_directories_between_parents(d: str) -> object:
    os.makedirs(f"{d}/p/one/inner")
    os.makedirs(f"{d}/q")
    make(f"{d}/q/two", b"file")
    answer = renameat2(f"{d}/p/one", f"{d}/q/two", RENAME_EXCHANGE)
    up = os.stat(f"{d}/q/two/..").st_ino == os.stat(f"{d}/q").st_ino
    return answer, up, nlink(f"{d}/p"), nlink(f"{d}/q"), read(f"{d}/p/one"), names(f"{d}/q/two")


def check_rename_whiteout(d: str) -> object:
    make(f"{d}/a")
    return renameat2(f"{d}/a", f"{d}/b", RENAME_WHITEOUT), names(d)


def check_rename_unknown_flag(d: str) -> object:
    make(f"{d}/a")
    return renameat2(f"{d}/a", f"{d}/b", 1 << 20), names(d)


def check_sticky_directory(d: str) -> object:
    sticky = f"{d}/tmp"
    os.mkdir(sticky)
    os.chmod(sticky, 0o1777)
    for name in ("a", "b", "c"):
        make(f"{sticky}/{name}", b"", 0o666)
        os.chown(f"{sticky}/{name}", NOBODY, NOBODY)
    return [
        as_user(OTHER, lambda: os.unlink(f"{sticky}/a")),
        as_user(OTHER, lambda: os.rename(f"{sticky}/a", f"{sticky}/z")),
        as_user(OTHER, lambda: make(f"{sticky}/own")) is not None,
        as_user(OTHER, lambda: os.rename(f"{sticky}/own", f"{sticky}/b")),
        as_user(OTHER, lambda: renameat2(f"{sticky}/own", f"{sticky}/b", RENAME_EXCHANGE)),
        as_user(OTHER, lambda: os.unlink(f"{sticky}/own")),
        as_user(NOBODY, lambda: os.unlink(f"{sticky}/a")),
        as_user(NOBODY, lambda: os.rename(f"{sticky}/b", f"{sticky}/c")),
        names(sticky),
    ]


def check_directory_moved_by_another_user(d: str) -> object:
    """Moving a directory to another parent changes its "..", so it needs write permission on itself."""
    for name in ("from", "to"):
        os.mkdir(f"{d}/{name}")
        os.chmod(f"{d}/{name}", 0o777)
    os.mkdir(f"{d}/from/sub")
    os.chmod(f"{d}/from/sub", 0o755)
    return [
        as_user(OTHER, lambda: os.rename(f"{d}/from/sub", f"{d}/to/sub")),
        as_user(OTHER, lambda: os.rename(f"{d}/from/sub", f"{d}/from/renamed")),
    ]


def check_missing_and_wrong_parents(d: str) -> object:
    make(f"{d}/f")
    calls: dict[str, Callable[..., object]] = {
        "mkdir": os.mkdir,
        "rmdir": os.rmdir,
        "unlink": os.unlink,
        "mknod": os.mknod,
        "lstat": os.lstat,
        "readlink": os.readlink,
        "listdir": os.listdir,
    }
    return {what: (done(call, f"{d}/none/x"), done(call, f"{d}/f/x")) for what, call in calls.items()}


def check_exists_refusals(d: str) -> object:
    make(f"{d}/f")
    os.mkdir(f"{d}/sub")
    return [
        (done(os.mkdir, p), done(os.mknod, p), done(os.symlink, "x", p), done(os.mkfifo, p))
        for p in (f"{d}/f", f"{d}/sub")
    ]


def check_mknod_kinds(d: str) -> object:
    old = os.umask(0)
    os.mknod(f"{d}/file", stat.S_IFREG | 0o640)
    os.mknod(f"{d}/none", 0o604)
    os.mknod(f"{d}/fifo", stat.S_IFIFO | 0o622)
    os.mknod(f"{d}/sock", stat.S_IFSOCK | 0o600)
    made = [facts(f"{d}/{n}") for n in ("file", "none", "fifo", "sock")]
    devices: list[object] = []
    for name, kind_bits in (("chr", stat.S_IFCHR), ("blk", stat.S_IFBLK)):
        devices.append(done(os.mknod, f"{d}/{name}", kind_bits | 0o600, os.makedev(259, 70000)))
        devices.append(facts(f"{d}/{name}") if os.path.lexists(f"{d}/{name}") else None)
    refused = as_user(OTHER, lambda: os.mknod(f"{d}/dev", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
    os.umask(old)
    return made, devices, refused, outcome(os.mknod, f"{d}/dir", stat.S_IFDIR | 0o700)


def check_fifo_carries_bytes(d: str) -> object:
    os.mkfifo(f"{d}/p")
    reader = os.open(f"{d}/p", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(f"{d}/p", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"through")
    answer = os.read(reader, 20)
    os.close(reader)
    os.close(writer)
    return answer, facts(f"{d}/p"), done(os.open, f"{d}/p", os.O_WRONLY | os.O_NONBLOCK)


def check_socket_by_bind(d: str) -> object:
    import socket

    here = os.getcwd()
    os.chdir(d)
    try:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
            listener.bind("s")
            listener.listen()
            caller.connect("s")
            with socket.socket(socket.AF_UNIX) as second:
                again = done(second.bind, "s")
    finally:
        os.chdir(here)
    return facts(f"{d}/s")["kind"], again, done(os.open, f"{d}/s", os.O_RDONLY)


def check_inode_numbers_are_stable(d: str) -> object:
    make(f"{d}/f")
    first = os.stat(f"{d}/f").st_ino
    os.rename(f"{d}/f", f"{d}/g")
    fd = os.open(f"{d}/g", os.O_RDWR)
    with os.scandir(d) as entries:
        listed = [entry.inode() for entry in entries]
    seen = {os.fstat(fd).st_ino, os.stat(f"{d}/g").st_ino, *listed}
    os.close(fd)
    return seen == {first}


def check_pathlib_walk_of_a_deep_tree(d: str) -> object:
    deep = Path(d, *["d" * 30] * 60)
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("leaf")
    found = [p.name for p in Path(d).rglob("leaf")]
    return found, len(list(Path(d).rglob("*")))
