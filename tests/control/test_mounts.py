from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.control.mounts import Mounted, mount_at, mount_of, mounted
from icnfs.errors import NotMountedError, UsageError

LINE = "36 35 0:47 / {point} rw,nosuid,nodev - {kind} {source} rw,user_id={uid},group_id=0,default_permissions\n"


def table(tmp_path: Path, *rows: tuple[str, str, str, int]) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text("".join(LINE.format(point=p, kind=k, source=s, uid=u) for p, k, s, u in rows))
    return path


def test_only_our_mounts_are_listed_with_their_user(tmp_path: Path) -> None:
    path = table(tmp_path, ("/", "ext4", "/dev/sda", 0), ("/mnt/icn", "fuse.icnfs", "demo", 1000))
    assert mounted(path) == [Mounted(Path("/mnt/icn"), "demo", 1000, "0:47")]


def test_escaped_mount_points_are_plain_again(tmp_path: Path) -> None:
    path = table(tmp_path, (r"/mnt/a\040b\011c\012d\134e", "fuse.icnfs", "demo", 0))
    assert mounted(path)[0].point == Path("/mnt/a b\tc\nd\\e")


def test_a_mount_is_found_by_a_symlink_to_it(tmp_path: Path) -> None:
    point = tmp_path / "point"
    point.mkdir()
    (tmp_path / "link").symlink_to(point)
    path = table(tmp_path, (str(point), "fuse.icnfs", "old", 0), (str(point), "fuse.icnfs", "new", 0))
    assert mount_at(tmp_path / "link", path).volume == "new"
    assert mount_at(tmp_path / "x" / ".." / "point", path).volume == "new"


def test_a_directory_inside_a_mount_is_not_its_mount_point(tmp_path: Path) -> None:
    path = table(tmp_path, (str(tmp_path), "fuse.icnfs", "demo", 0))
    (tmp_path / "inner").mkdir()
    with pytest.raises(NotMountedError, match="nothing of icnfs is mounted there"):
        mount_at(tmp_path / "inner", path)


def test_a_path_on_another_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotMountedError, match="does not lie on a mount of icnfs"):
        mount_of(tmp_path, table(tmp_path, ("/x", "fuse.icnfs", "demo", 0)))
    with pytest.raises(UsageError, match="No such file"):
        mount_of(tmp_path / "missing", table(tmp_path))


@given(st.binary(max_size=300))
def test_any_line_is_parsed_or_skipped(tmp_path_factory: pytest.TempPathFactory, line: bytes) -> None:
    path = tmp_path_factory.mktemp("m") / "mountinfo"
    path.write_bytes(line + b"\n36 35 0:47 / /a rw - fuse.icnfs demo rw\n")
    assert mounted(path)[-1].volume == "demo"
