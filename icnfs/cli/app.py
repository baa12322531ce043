"""The command line as a whole: which verbs there are, and how each ends.

Promises: whatever goes wrong is one line on stderr and an exit code of `errors.Exit`; a traceback is shown only with
--debug, since it may quote what the user gave.  Verbs are imported when they are called.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NoReturn

import click

from icnfs.control.log import escape
from icnfs.errors import Exit, IcnfsError

VERBS: Final = {
    "init": "Create a volume from its TOML and print its recovery key.",
    "mount": "Mount a volume on a directory.",
    "umount": "Unmount a directory; what is not published waits for the next mount.",
    "sync": "Publish all that is written and wait until it is safe.",
    "status": "Show volumes, what is not yet published, and each provider's state.",
    "health": "Show which segments are safe, degraded, at risk or lost, and how providers do.",
    "info": "Show where a file's contents lie and how many losses they survive.",
    "recover": "Rebuild a volume on this machine from its providers.",
    "clone": "Clone a file or tree inside its volume, without copying what it holds.",
    "snapshot": "Keep, lock, list, compare and delete snapshots of a volume's tree, and restore from them.",
    "scrub": "Verify every share at every provider, by its root or byte for byte.",
    "drill": "Prove that a volume would survive without some of its providers.",
    "key": "Add, list and remove the keys that open a volume.",
    "provider": "Try out, add, list, drain and remove the providers of a volume.",
    "policy": "Judge where shares lie by the volume's rules, and take over new ones.",
}

CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class Verbs(click.Group):
    """The verbs, each in `icnfs.cli.verb_NAME` as `verb`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of a volume's life."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, imported now."""
        if cmd_name not in VERBS:
            return None
        found = importlib.import_module(f"icnfs.cli.verb_{cmd_name}").verb
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Verbs and their lines, without importing one."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _version() -> str:
    try:
        return version("icnfs")
    except PackageNotFoundError:
        return "unknown (not installed)"


@click.group(cls=Verbs, context_settings=CONTEXT, no_args_is_help=True)
@click.version_option(_version(), message="icnfs %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks, which may quote what you gave, and log at debug level.")
def icnfs(debug: bool) -> None:
    """A network of independent storage providers, mounted as one local, encrypted, erasure-coded drive."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `icnfs` command."""
    _heed_signals()
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(guarded(lambda: icnfs.main(given, prog_name="icnfs", standalone_mode=False), debug="--debug" in given))


def mount_helper() -> NoReturn:
    """The `mount.icnfs` command, as mount(8) calls it."""
    from icnfs.cli.verb_mount import helper

    _heed_signals()
    sys.exit(guarded(lambda: helper.main(prog_name="mount.icnfs", standalone_mode=False)))


def _heed_signals() -> None:
    """SIGTERM ends a command as Ctrl-C does; children can be waited for, whatever the parent has made of SIGCHLD."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def guarded(command: Callable[[], Any], *, debug: bool = False) -> int:
    """Run `command` and tell how it ended: its exit code, after one line on stderr where that is not 0."""
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else int(Exit.OK)
    except IcnfsError as error:
        return _fail(str(error), error.exit_code, debug)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return int(Exit.USAGE)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        hint = f" (try {where} --help)" if where else ""
        return _fail(error.format_message().rstrip(".") + hint, Exit.USAGE, debug)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; what was done is kept, call it again to go on", Exit.INTERRUPTED, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it flushes at exit
        return int(Exit.FAILED)
    except Exception as error:  # noqa: BLE001 - told in one line; the traceback is --debug's
        code = error.errno if isinstance(error, OSError) else None
        reason = "" if code is None else f": {os.strerror(code)}"
        return _fail(f"failed inside ({type(error).__name__}{reason}); --debug shows where", Exit.FAILED, debug)


def _fail(message: str, code: Exit, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stdout.flush()
    click.echo(f"icnfs: {escape(message)}", err=True)
    return int(code)
