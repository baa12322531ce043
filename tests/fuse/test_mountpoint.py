"""Which directories may be mounted on, and how mountinfo is read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import MountPointError
from icnfs.fuse import mountpoint as places
from icnfs.fuse.mountpoint import prepare, tune
from icnfs.fuse.serve import DEADLINE, deadline
from icnfs.mountinfo import Mounted, parse_mountinfo


def _refused(path: Path, code: int, text: str) -> None:
    with pytest.raises(MountPointError, match=text) as caught:
        prepare(str(path))
    assert caught.value.errno == code
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_empty_directory_is_taken_by_its_real_path(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("dir")
    assert prepare(str(tmp_path / "link")) == str((tmp_path / "dir").resolve())


def test_what_cannot_be_mounted_on_is_refused_with_its_errno(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    _refused(tmp_path / "none", errno.ENOENT, "does not exist; create it")
    _refused(tmp_path / "file", errno.ENOTDIR, "not a directory")
    _refused(tmp_path / "file/below", errno.ENOTDIR, "Not a directory")
    _refused(tmp_path, errno.ENOTEMPTY, "not empty")
    _refused(tmp_path / "loop", errno.ELOOP, "symbolic links")
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


LINE = rb"36 35 0:45 / /mnt/a\040b\134c rw,nosuid shared:7 master:2 - fuse.icnfs de\011mo rw,user_id=0"


def test_mountinfo_is_read_with_its_escapes_and_optional_fields() -> None:
    assert list(parse_mountinfo(LINE + b"\n")) == [Mounted(rb"/mnt/a b\c", "fuse.icnfs", b"de\tmo", "0:45")]


@given(st.binary())
def test_any_bytes_can_be_read_as_mountinfo(text: bytes) -> None:
    list(parse_mountinfo(text))


@given(st.binary(min_size=1).filter(lambda path: b"\0" not in path))
def test_any_path_survives_the_kernels_escapes(path: bytes) -> None:
    escaped = b"".join(b"\\%03o" % c if c in b" \t\n\\" else bytes((c,)) for c in path)
    (found,) = parse_mountinfo(LINE.replace(rb"/mnt/a\040b\134c", escaped))
    assert found.path == path


def test_this_machine_has_a_root() -> None:
    assert places.mounted_at("/") is not None
    assert places.mounted_at("/proc/self/no such") is None


def test_tuning_writes_what_is_there_and_leaves_the_rest(tmp_path: Path) -> None:
    bdi = tmp_path / "class/bdi/0:45"
    bdi.mkdir(parents=True)
    tune("0:45", tmp_path)
    assert int((bdi / "read_ahead_kb").read_text()) == places.READ_AHEAD_KIB
    connection = tmp_path / "fs/fuse/connections/45"
    connection.mkdir(parents=True)
    tune("0:45", tmp_path)
    assert int((connection / "max_background").read_text()) == places.MAX_BACKGROUND


@pytest.mark.parametrize(("timeout", "expected"), [(None, DEADLINE), (10.0, 6.0), (600.0, DEADLINE)])
def test_the_deadline_stays_below_the_kernels(
    timeout: float | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "request_timeout", lambda: timeout)
    assert deadline() == expected
