"""What all tests share: hypothesis profiles, and what becomes of tests that mount.

A test marked `mount` needs /dev/fuse.  Such tests run one at a time (one xdist group), so that they do not disturb
each other's mounts.  Where the device is missing they are skipped, each named with its reason in pytest's summary;
ICNFS_REQUIRE_FUSE=1 makes that a failure instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.seaweed import Seaweed, serving

FUSE_DEVICE = "/dev/fuse"

# A shared machine makes single examples slow now and then; pytest-timeout bounds the whole test.
settings.register_profile("icnfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("icnfs")


@pytest.fixture(autouse=True, scope="session")
def small_reserves() -> Iterator[None]:
    """Local states made in this process keep little of the disk occupied: a property test makes hundreds of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("icnfs.state.env.RESERVE", 1 << 20)
        yield


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server, one for each worker; tests keep to a prefix of their own."""
    with serving(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


def missing_fuse() -> str | None:
    """Why nothing can be mounted here, or None where it can be tried."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{FUSE_DEVICE}: {error.strerror}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing_fuse()
    demanded = os.environ.get("ICNFS_REQUIRE_FUSE") == "1"
    for item in items:
        if item.get_closest_marker("mount") is None:
            continue
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("mount"))
        if reason is not None and not demanded:
            item.add_marker(pytest.mark.skip(reason=f"cannot mount, {reason}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("mount") is None or os.environ.get("ICNFS_REQUIRE_FUSE") != "1":
        return
    reason = missing_fuse()
    if reason is not None:
        pytest.fail(f"ICNFS_REQUIRE_FUSE=1 demands mounts, and {reason}", pytrace=False)
