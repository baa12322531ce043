"""`icnfs mount`, and `mount.icnfs` as mount(8) calls it: returns when the mount is live.

All that can be refused without the volume (name, TOML, options, secrets, directory) is refused here, before anything
is forked; the mount process relays the rest.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from icnfs.cli import asking
from icnfs.cli.output import say
from icnfs.cli.taking import PATH
from icnfs.config import VolumeConfig, load, runtime_dir, state_dir
from icnfs.control import front, log
from icnfs.control.client import Mount
from icnfs.control.daemon import Readiness, in_background
from icnfs.control.facts import MountStatus
from icnfs.control.front import Front, Job
from icnfs.control.mounts import mount_name, split_mount
from icnfs.control.past import PastFront
from icnfs.control.protocol import StatusRequest, take_facts
from icnfs.errors import Exit, IcnfsError, InterruptedByUserError, MountedError
from icnfs.fuse import mountpoint
from icnfs.fuse.options import parse
from icnfs.fuse.serve import End
from icnfs.volume.keyring import Keyring

LOG_FILE: Final = "log"
"""In the local state, where there is no journald."""

_log = logging.getLogger(__name__)


@click.command("mount")
@click.argument("name", metavar="NAME")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option("-o", "--options", multiple=True, metavar="OPTIONS", help="Mount options, apart by commas.")
@click.option("--log-level", type=click.Choice(log.LEVELS), help="Log from this level up; the default is the TOML's.")
@asking.secret_options
def verb(
    name: str,
    directory: Path,
    foreground: bool,
    options: tuple[str, ...],
    log_level: str | None,
    **secrets: Any,
) -> int:
    """Mount the volume NAME on the empty directory DIR and return when it is live.

    NAME@SNAP mounts its snapshot SNAP, read-only, beside whatever else is mounted of it.
    """
    name, snapshot = split_mount(name)
    config = load(name)
    debug = click.get_current_context().find_root().params.get("debug")
    level = log_level or ("debug" if debug else config.log_level)
    job = prepare(config, snapshot, directory, options, asking.given(secrets))
    return _in_foreground(job, level) if foreground else _as_daemon(job, level)


@click.command("mount.icnfs", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="NAME")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Mount options, apart by commas.")
@click.option("-f", "fake", is_flag=True, help="Do everything but mount.")
@click.option("-r", "read_only", is_flag=True, help="The same as -o ro.")
@click.option("-n", "-s", "-v", "-w", "ignored", is_flag=True, multiple=False, help="Taken for mount(8)'s sake.")
@click.option("-t", "kind", metavar="TYPE", help="Taken for mount(8)'s sake.")
def helper(
    name: str, directory: Path, options: tuple[str, ...], fake: bool, read_only: bool, ignored: bool, kind: str | None
) -> int:
    """Mount the volume NAME on DIR, as mount(8) asks: the secret is what the TOML names, or is asked for."""
    name, snapshot = split_mount(name)
    config = load(name)
    job = prepare(config, snapshot, directory, (*options, "ro") if read_only else options, asking.Given())
    return int(Exit.OK) if fake else _as_daemon(job, config.log_level)


def prepare(config: VolumeConfig, snapshot: str, directory: Path, options: tuple[str, ...], where: asking.Given) -> Job:
    """Refuse what can be refused now, and gather the secrets; `snapshot` is "" for the volume itself."""
    wanted = parse(options)
    state = state_dir(config.name)
    if snapshot:
        wanted = replace(wanted, read_only=True)
    else:
        Keyring.load(state)
    label = mount_name(config.name, snapshot)
    if Mount(runtime_dir(), label).alive():
        what = "snapshot" if snapshot else "volume"
        raise MountedError(f"{what} {label} is mounted here already; `icnfs status {label}` says where")
    path = mountpoint.prepare(os.fspath(directory))
    return Job(config, state, runtime_dir(), path, wanted, asking.opening(config, where), snapshot)


def _in_foreground(job: Job, level: str) -> int:
    with log.logging_to(log.foreground_sink(), level):
        try:
            end = front.run(job, Readiness().live, _kind(job))
        except KeyboardInterrupt:
            raise InterruptedByUserError("interrupted before the mount was live; nothing stays mounted") from None
    return _exit_code(end)


def _kind(job: Job) -> type[Front]:
    return PastFront if job.snapshot else Front


def _log_file(job: Job) -> Path:
    """Where there is no journald: in the local state, which a snapshot has none of that stays."""
    return job.state_dir.with_name(f"{job.label}.log") if job.snapshot else job.state_dir / LOG_FILE


def _as_daemon(job: Job, level: str) -> int:
    in_background(lambda readiness: _daemon(job, level, readiness))
    status = take_facts(Mount(job.runtime_dir, job.label).ask(StatusRequest(looked=True)), MountStatus)
    if status.volume.fenced:
        say(f"icnfs: {status.volume.fenced}")
    for provider in status.volume.providers:
        if provider.state == "foreign":
            say(f"icnfs: provider {provider.name}: nothing is stored there: {provider.error}")
    return int(Exit.OK)


def _daemon(job: Job, level: str, readiness: Readiness) -> int:
    """The daemon's whole life; what a snapshot's has to say for a good end is of no use to the next."""
    code = _logged(job, level, readiness)
    if job.snapshot and code == Exit.OK:
        _log_file(job).unlink(missing_ok=True)
    return code


def _logged(job: Job, level: str, readiness: Readiness) -> int:
    """What it cannot report any more it logs."""
    try:
        job.state_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sink = log.background_sink(job.label, _log_file(job))
    except OSError as error:
        readiness.failed(IcnfsError(f"{_log_file(job)}: the log cannot be written: {error.strerror}"))
        return int(Exit.LOCAL_DISK)
    with log.logging_to(sink, level), log.stderr_logged():
        try:
            return _exit_code(front.run(job, readiness.live, _kind(job)))
        except IcnfsError as error:
            _log.error("ended reason=%s", error)
            readiness.failed(error)
            return int(error.exit_code)
        except KeyboardInterrupt:
            readiness.failed(InterruptedByUserError("interrupted before the mount was live; nothing stays mounted"))
            return int(Exit.INTERRUPTED)
        except BaseException as error:  # noqa: BLE001 - the last frame of a daemon: logged, reported, ended
            _log.critical("ended", exc_info=True)
            readiness.failed(IcnfsError(f"the mount process failed inside ({type(error).__name__}); see its log"))
            return int(Exit.FAILED)


def _exit_code(end: End) -> int:
    return int(Exit.FAILED if end is End.ABORTED else Exit.OK)
