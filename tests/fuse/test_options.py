"""What `-o` accepts, ignores and refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import UsageError
from icnfs.fuse.options import MountOptions, parse
from icnfs.vfs.times import Atime


def test_defaults_are_those_of_fuse() -> None:
    assert parse([]) == MountOptions(False, False, False, False, True, Atime.RELATIVE)


def test_what_mount8_and_systemd_pass_is_ignored() -> None:
    assert parse(
        ["rw,_netdev,nofail,user,x-systemd.automount,x-a=b=c,defaults,auto,noauto,X-b,comment=x=y,,"]
    ) == parse([])


def test_each_option_is_taken_and_the_last_one_wins() -> None:
    options = parse(["ro,allow_other,suid,dev,noexec", "noatime,strictatime"])
    assert options == MountOptions(True, True, True, True, False, Atime.STRICT)
    assert parse(["ro,rw"]).read_only is False
    assert parse(["fsync=publish"]).publishing is True
    assert parse(["fsync=publish,fsync=local"]).publishing is False
    assert parse(["suid,nosuid,dev,nodev,noexec,exec,noatime,relatime"]) == parse([])


def test_unknown_options_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match=r"'r0': unknown mount option; known are allow_other, .*strictatime"):
        parse(["r0"])
    with pytest.raises(UsageError, match="takes no value"):
        parse(["ro=1"])
    for text in ("fsync", "fsync=", "fsync=never", "fsync=publish=now"):
        with pytest.raises(UsageError, match=r"unknown mount option; known are .*fsync=local, fsync=publish"):
            parse([text])


def test_the_kernel_always_checks_permissions() -> None:
    kernel = parse(["ro,allow_other"]).for_kernel("demo")
    assert kernel == {
        "default_permissions", "subtype=icnfs", "fsname=demo", "ro", "nosuid", "nodev", "exec", "allow_other",
    }  # fmt: skip
    assert {"rw", "suid", "dev", "noexec"} <= parse(["suid,dev,noexec"]).for_kernel("demo")
    assert "noatime" in parse(["noatime"]).for_kernel("demo")


@given(st.lists(st.text()))
def test_any_text_gives_options_or_a_usage_error(texts: list[str]) -> None:
    try:
        assert isinstance(parse(texts), MountOptions)
    except UsageError as exc:
        assert "\n" not in str(exc)
