"""Contents: open flags, reads, writes, holes, truncation, mappings, locks, unlinked files.

Each check takes a fresh directory and returns what it saw.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import mmap
import os
import shutil
import stat
import subprocess
from functools import partial

from tests.posix.observe import (
    c_call,
    done,
    facts,
    handle_of,
    libc,
    make,
    names,
    open_handle,
    outcome,
    read,
    touched,
)

CHUNK = 128 * 1024
EDGES = (0, 1, 4095, 4096, 4097, 16383, 16384, 16385, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK - 1, 3 * CHUNK + 1)
"""Offsets about pages, sealed blocks and chunks: where an off-by-one would show."""

TOP = 2**63 - 1


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes without a short period, the same every time."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def check_read_back_at_every_edge(d: str) -> object:
    seen: list[object] = []
    for offset in EDGES:
        path = f"{d}/f{offset}"
        fd = os.open(path, os.O_CREAT | os.O_RDWR)
        os.pwrite(fd, pattern(5000, offset), offset)
        seen.append(
            (os.fstat(fd).st_size, digest(os.pread(fd, 4 * CHUNK, 0)), digest(os.pread(fd, 100, max(0, offset - 50))))
        )
        os.close(fd)
        seen.append(digest(read(path)))
    return seen


def check_overwrites_across_chunks(d: str) -> object:
    data = bytearray(pattern(4 * CHUNK + 77))
    path = make(f"{d}/f", bytes(data))
    fd = os.open(path, os.O_RDWR)
    for i, offset in enumerate(EDGES):
        for size in (1, 13, 4096, 20000, CHUNK + 5):
            piece = pattern(size, 1000 + i)
            os.pwrite(fd, piece, offset)
            data[offset : offset + size] = piece
    same_open = os.pread(fd, len(data) + 10, 0) == bytes(data)
    os.close(fd)
    return same_open, read(path) == bytes(data), os.stat(path).st_size


def check_many_small_patches_to_one_chunk(d: str) -> object:
    data = bytearray(pattern(CHUNK))
    path = make(f"{d}/f", bytes(data))
    fd = os.open(path, os.O_RDWR)
    for i in range(400):
        offset = (i * 7919) % (CHUNK - 300)
        piece = pattern(1 + i % 300, i)
        os.pwrite(fd, piece, offset)
        data[offset : offset + len(piece)] = piece
    os.close(fd)
    return read(path) == bytes(data)


def check_reads_at_and_past_the_end(d: str) -> object:
    fd = os.open(make(f"{d}/f", b"0123456789"), os.O_RDWR)
    seen = [os.pread(fd, n, o) for n, o in ((10, 0), (20, 5), (1, 10), (5, 11), (0, 0), (4, 2**40))]
    os.close(fd)
    return seen


def check_zero_byte_write(d: str) -> object:
    fd = os.open(f"{d}/f", os.O_CREAT | os.O_RDWR)
    answer = os.pwrite(fd, b"", 100), os.fstat(fd).st_size
    os.close(fd)
    return answer


def check_append(d: str) -> object:
    path = make(f"{d}/f", b"start-")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    other = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"one-")
    os.write(other, b"two-")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"three-")
    where = os.lseek(fd, 0, os.SEEK_CUR)
    os.pwrite(fd, b"pwrite", 0)
    os.close(fd)
    os.close(other)
    return read(path), where


def check_append_beside_a_truncate(d: str) -> object:
    path = make(f"{d}/f", b"x" * 1000)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.truncate(path, 10)
    os.write(fd, b"end")
    os.close(fd)
    return read(path)


def check_open_modes_are_enforced(d: str) -> object:
    path = make(f"{d}/f", b"data")
    readable, writable = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    append = os.open(path, os.O_WRONLY | os.O_APPEND)
    place = os.open(path, os.O_PATH)
    return [
        done(os.write, readable, b"x"),
        done(os.read, writable, 1),
        done(os.ftruncate, readable, 0),
        done(os.read, append, 1),
        done(os.read, place, 1),
        os.fstat(place).st_size,
    ]


def check_exclusive_create(d: str) -> object:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    return done(os.open, f"{d}/f", flags), done(os.open, f"{d}/f", flags), done(os.open, f"{d}", flags)


def check_create_with_no_write_permission_writes(d: str) -> object:
    fd = os.open(f"{d}/f", os.O_CREAT | os.O_RDWR, 0o400)
    os.write(fd, b"allowed by the descriptor")
    os.close(fd)
    return facts(f"{d}/f"), read(f"{d}/f")


def check_open_truncate(d: str) -> object:
    path = make(f"{d}/f", pattern(3 * CHUNK))
    fd = os.open(path, os.O_RDWR)
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    seen = os.fstat(fd).st_size, os.pread(fd, 10, 0)
    os.pwrite(fd, b"z", CHUNK)
    os.close(fd)
    return seen, digest(read(path)), done(os.open, d, os.O_WRONLY | os.O_TRUNC)


def check_truncate_at_every_edge(d: str) -> object:
    seen = []
    for size in EDGES:
        path = make(f"{d}/f{size}", pattern(3 * CHUNK))
        os.truncate(path, size)
        short = os.stat(path).st_size, digest(read(path))
        os.truncate(path, 4 * CHUNK)
        seen.append((short, digest(read(path))))
    return seen


def check_truncate_then_extend_reads_zeros(d: str) -> object:
    path = make(f"{d}/f", b"\xff" * (2 * CHUNK))
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, 100)
    os.ftruncate(fd, CHUNK + 100)
    middle = os.pread(fd, 200, 50) == b"\xff" * 50 + bytes(150)
    os.ftruncate(fd, 5)
    os.pwrite(fd, b"!", 50)
    os.close(fd)
    return middle, read(path)


def check_truncate_refusals(d: str) -> object:
    make(f"{d}/f")
    fd = os.open(f"{d}/f", os.O_RDWR)
    return [
        done(os.truncate, d, 0),
        done(os.truncate, f"{d}/none", 0),
        c_call("truncate", os.fsencode(f"{d}/f"), ctypes.c_long(-1)),
        c_call("ftruncate", fd, ctypes.c_long(-1)),
    ]


def check_holes_read_as_zeros(d: str) -> object:
    fd = os.open(f"{d}/f", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"end", 100 * CHUNK)
    seen = (
        os.fstat(fd).st_size,
        os.pread(fd, 1000, 50 * CHUNK) == bytes(1000),
        os.fstat(fd).st_blocks * 512 <= 4 * CHUNK,
    )
    os.close(fd)
    return seen


def check_sparse_file_of_terabytes(d: str) -> object:
    fd = os.open(f"{d}/f", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 10 * 2**40)
    os.pwrite(fd, b"far", 9 * 2**40)
    seen = os.fstat(fd).st_size, os.pread(fd, 5, 9 * 2**40 - 1), os.pread(fd, 3, 2**40)
    os.ftruncate(fd, 1)
    os.close(fd)
    return seen, os.stat(f"{d}/f").st_size


def check_offsets_at_the_top(d: str) -> object:
    """Where the largest file ends differs; that a write past it is refused and changes nothing does not."""
    fd = os.open(f"{d}/f", os.O_CREAT | os.O_RDWR)
    answers = [done(os.pwrite, fd, b"xy", TOP - 1), done(os.ftruncate, fd, TOP), os.fstat(fd).st_size]
    os.close(fd)
    return answers


def check_seek_data_and_hole(d: str) -> object:
    fd = os.open(f"{d}/f", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"a" * 4096, 0)
    os.pwrite(fd, b"b" * 4096, 8 * CHUNK)
    asked = (
        (0, os.SEEK_DATA),
        (0, os.SEEK_HOLE),
        (CHUNK * 4, os.SEEK_DATA),
        (CHUNK * 8, os.SEEK_HOLE),
        (CHUNK * 9, os.SEEK_DATA),
    )
    seen = [outcome(os.lseek, fd, offset, whence) for offset, whence in asked]
    os.close(fd)
    return seen


def check_seeks(d: str) -> object:
    fd = os.open(make(f"{d}/f", b"0123456789"), os.O_RDWR)
    seen = [
        outcome(os.lseek, fd, offset, whence)
        for offset, whence in (
            (3, os.SEEK_SET),
            (4, os.SEEK_CUR),
            (-2, os.SEEK_END),
            (50, os.SEEK_END),
            (-100, os.SEEK_SET),
        )
    ]
    os.close(fd)
    return seen


def check_fallocate(d: str) -> object:
    fd = os.open(make(f"{d}/f", b"abc"), os.O_RDWR)
    answer = c_call("fallocate", fd, 0, ctypes.c_long(0), ctypes.c_long(10000)), os.fstat(fd).st_size
    os.close(fd)
    return answer


def check_posix_fallocate_extends(d: str) -> object:
    """glibc writes the blocks itself where the file system has no fallocate."""
    fd = os.open(make(f"{d}/f", b"abc"), os.O_RDWR)
    answer = done(os.posix_fallocate, fd, 0, 10000), os.fstat(fd).st_size, digest(os.pread(fd, 20000, 0))
    os.close(fd)
    return answer


def check_unlinked_file_lives_until_closed(d: str) -> object:
    fd = os.open(make(f"{d}/f", pattern(2 * CHUNK)), os.O_RDWR)
    os.unlink(f"{d}/f")
    os.pwrite(fd, b"still here", CHUNK)
    os.ftruncate(fd, CHUNK + 10)
    os.fchmod(fd, 0o600)
    os.utime(fd, ns=(5, 6))
    st = os.fstat(fd)
    seen = (
        st.st_nlink,
        st.st_size,
        oct(st.st_mode),
        st.st_mtime_ns,
        digest(os.pread(fd, 4 * CHUNK, 0)),
        done(os.fsync, fd),
    )
    os.close(fd)
    return seen, names(d)


def check_unlinked_name_can_be_made_anew(d: str) -> object:
    fd = os.open(make(f"{d}/f", b"first"), os.O_RDWR)
    os.unlink(f"{d}/f")
    make(f"{d}/f", b"second")
    seen = os.pread(fd, 10, 0), read(f"{d}/f")
    os.close(fd)
    return seen


def check_shared_mapping(d: str) -> object:
    path = make(f"{d}/f", pattern(3 * CHUNK))
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 3 * CHUNK) as view:
        view[CHUNK - 5 : CHUNK + 5] = b"0123456789"
        view[10:13] = b"abc"
        coherent = os.pread(fd, 10, CHUNK - 5)
        os.pwrite(fd, b"written", 2 * CHUNK)
        back = bytes(view[2 * CHUNK : 2 * CHUNK + 7])
        view.flush()
    os.close(fd)
    return coherent, back, digest(read(path))


def check_shared_mapping_after_close(d: str) -> object:
    fd = os.open(make(f"{d}/f", bytes(8192)), os.O_RDWR)
    view = mmap.mmap(fd, 8192)
    os.close(fd)
    view[5000:5005] = b"later"
    view.close()
    return digest(read(f"{d}/f"))


def check_shared_mapping_of_a_sparse_file(d: str) -> object:
    fd = os.open(f"{d}/f", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 20 * CHUNK)
    with mmap.mmap(fd, 20 * CHUNK) as view:
        view[10 * CHUNK] = 7
        zero = view[15 * CHUNK]
        view.flush()
    os.close(fd)
    return zero, digest(read(f"{d}/f"))


def check_private_mapping_stays_private(d: str) -> object:
    fd = os.open(make(f"{d}/f", bytes(8192)), os.O_RDWR)
    with mmap.mmap(fd, 8192, mmap.MAP_PRIVATE) as view:
        view[0:4] = b"mine"
    os.close(fd)
    return digest(read(f"{d}/f"))


def check_mapping_of_an_unlinked_file(d: str) -> object:
    fd = os.open(make(f"{d}/f", b"x" * 8192), os.O_RDWR)
    os.unlink(f"{d}/f")
    with mmap.mmap(fd, 8192) as view:
        view[100] = 65
        view.flush()
        seen = os.pread(fd, 1, 100), view[8191]
    os.close(fd)
    return seen


def check_vectored_and_copied(d: str) -> object:
    fd = os.open(make(f"{d}/f", b"0123456789" * 1000), os.O_RDWR)
    out = os.open(f"{d}/g", os.O_CREAT | os.O_RDWR)
    os.pwritev(out, [b"one", b"two" * 2000, b""], 7)
    first, second = bytearray(5), bytearray(7000)
    count = os.preadv(out, [first, second], 5)
    copied = 0
    while copied < 10000 and (n := os.copy_file_range(fd, out, 10000 - copied, copied, 20000 + copied)):
        copied += n
    sent = os.sendfile(out, fd, 0, 500)
    os.close(fd)
    os.close(out)
    return count, bytes(first), digest(bytes(second)), copied, sent, digest(read(f"{d}/g"))


def check_synchronous_opens(d: str) -> object:
    seen = []
    for name, flag in (("sync", os.O_SYNC), ("dsync", os.O_DSYNC)):
        fd = os.open(f"{d}/{name}", os.O_CREAT | os.O_WRONLY | flag)
        os.write(fd, b"durable")
        os.close(fd)
        seen.append(read(f"{d}/{name}"))
    return seen


def check_direct_io(d: str) -> object:
    path = make(f"{d}/f", pattern(64 * 1024))
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as buffer:
        count = os.preadv(fd, [buffer], 8192)
        same = bytes(buffer) == pattern(64 * 1024)[8192:16384]
        buffer[:] = b"d" * 8192
        wrote = os.pwritev(fd, [buffer], 4096)
    os.close(fd)
    return count, same, wrote, digest(read(path))


def check_fsync_of_everything(d: str) -> object:
    os.mkdir(f"{d}/sub")
    make(f"{d}/f", b"x")
    seen = []
    for path in (f"{d}/f", f"{d}/sub"):
        for call in (os.fsync, os.fdatasync):
            fd = os.open(path, os.O_RDONLY)
            seen.append(done(call, fd))
            os.close(fd)
    return seen, c_call("syncfs", os.open(d, os.O_RDONLY))


def check_reading_a_directory_as_a_file(d: str) -> object:
    fd = os.open(d, os.O_RDONLY)
    return done(os.read, fd, 10), done(os.pread, fd, 10, 0), done(os.ftruncate, fd, 0), done(os.listdir, make(f"{d}/f"))


def check_tmpfile(d: str) -> object:
    return done(os.open, d, os.O_TMPFILE | os.O_RDWR, 0o600), names(d)


def _in_child(call: partial[object]) -> int:
    """Exit status of a forked child: 0 when `call` succeeds, 1 when it would block."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            status = 0 if done(call) == "ok" else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_flock(d: str) -> object:
    path = make(f"{d}/f")
    fd = os.open(path, os.O_RDWR)
    other = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    blocked = done(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_SH)
    shared = done(fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(fd)
    upgraded = done(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    return blocked, shared, upgraded


def check_record_locks(d: str) -> object:
    fd = os.open(make(f"{d}/f", bytes(100)), os.O_RDWR)
    other = os.open(f"{d}/f", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
    seen = [
        _in_child(partial(fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)),
        _in_child(partial(fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)),
    ]
    fcntl.lockf(fd, fcntl.LOCK_UN, 10, 0)
    seen.append(_in_child(partial(fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)))
    os.close(fd)
    os.close(other)
    return seen


def check_executing_a_file(d: str) -> object:
    import shutil
    import subprocess

    shutil.copy("/bin/true", f"{d}/true")
    ran = subprocess.run([f"{d}/true"], check=False).returncode
    os.chmod(f"{d}/true", 0o644)
    try:
        subprocess.run([f"{d}/true"], check=False)
    except PermissionError:
        return ran, "EACCES"
    return ran, "ran"


def check_text_busy(d: str) -> object:
    import shutil
    import subprocess

    shutil.copy("/bin/sleep", f"{d}/sleep")
    with subprocess.Popen([f"{d}/sleep", "60"]) as running:
        answer = done(os.open, f"{d}/sleep", os.O_WRONLY)
        running.kill()
    return answer


def check_statvfs(d: str) -> object:
    st = os.statvfs(d)
    sane = st.f_bsize == st.f_frsize, st.f_bavail <= st.f_bfree <= st.f_blocks, st.f_ffree <= st.f_files, st.f_namemax
    return sane, st.f_blocks > 0, st.f_files > 0


def check_fadvise_and_readahead(d: str) -> object:
    fd = os.open(make(f"{d}/f", pattern(CHUNK)), os.O_RDWR)
    advised = [done(os.posix_fadvise, fd, 0, 0, advice) for advice in (os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED)]
    ctypes.set_errno(0)
    ahead = libc.readahead(fd, ctypes.c_long(0), ctypes.c_size_t(CHUNK))
    same = os.pread(fd, CHUNK, 0) == pattern(CHUNK)
    os.close(fd)
    return advised, ahead, same


def check_open_read_only_with_trunc(d: str) -> object:
    path = make(f"{d}/f", b"data" * 1000)

    changed = touched(path, lambda: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC)))
    return changed, os.stat(path).st_size, read(path)


def check_truncating_a_running_program(d: str) -> object:
    path = f"{d}/program"
    shutil.copy("/bin/sleep", path)
    size = os.stat(path).st_size
    with subprocess.Popen([path, "60"]) as running:
        ways = [done(os.open, path, flags | os.O_TRUNC) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)]
        ways.append(done(os.truncate, path, 0))
        intact = os.stat(path).st_size == size, running.poll()
        running.terminate()
    return ways, intact, running.returncode, read(path) == read("/bin/sleep")


def check_open_by_handle(d: str) -> object:
    """A file, a directory and a symlink's target, found by handle after the kernel has forgotten them."""
    make(f"{d}/f", b"hello")
    os.mkdir(f"{d}/sub")
    make(f"{d}/sub/g", b"inner")
    handles = [handle_of(f"{d}/{name}") for name in ("f", "sub", "sub/g")]
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")
    seen: list[object] = []
    for handle in handles:
        fd = open_handle(d, handle)
        if isinstance(fd, str):
            seen.append(fd)
            continue
        seen.append(sorted(os.listdir(fd)) if stat.S_ISDIR(os.fstat(fd).st_mode) else os.read(fd, 9))
        os.close(fd)
    os.unlink(f"{d}/f")
    return [*seen, open_handle(d, handles[0])]
