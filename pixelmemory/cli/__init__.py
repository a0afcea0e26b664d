"""The program ``pixelmemory``: is this store whole, what does its log hold, can it be mended."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import pixelmemory
from pixelmemory.cli.common import CANNOT, printable
from pixelmemory.cli.repair import add_repair
from pixelmemory.cli.show import add_log
from pixelmemory.cli.stop import add_stop
from pixelmemory.cli.verify import add_verify
from pixelmemory.errors import PixelmemoryError
from pixelmemory.installed import check_installed

__all__ = ["main"]

_EPILOG = """\
STORE is a store's folder (such as ./notes), or the name of a store in the home: --home, else PIXELMEMORY_HOME, else
the user data folder of the platform.

exit status:
  0  all is well
  1  something was found
  2  it could not be checked, or the command is not understood

examples:
  pixelmemory verify notes
  pixelmemory log notes --from 1000 --limit 20
  pixelmemory repair notes
  pixelmemory stop
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with ``argv`` (without the program's name), and return its exit status.

    Raises:
        SystemExit: the arguments are not understood, or help was asked for.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets its escape
            stream.reconfigure(errors="backslashreplace")
    try:
        check_installed()
        arguments = _parser().parse_args(argv)
        run: Callable[[argparse.Namespace], int] = arguments.run
        status = run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CANNOT
    except KeyboardInterrupt:
        sys.stderr.write("pixelmemory: interrupted\n")
        return 130
    except (PixelmemoryError, OSError) as error:
        sys.stderr.write(f"pixelmemory: {printable(str(error))}\n")
        return CANNOT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pixelmemory",
        description="Check a store, read its log, repair it; stop the database.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pixelmemory {pixelmemory.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (add_verify, add_log, add_repair, add_stop):
        add(commands)
    return parser
