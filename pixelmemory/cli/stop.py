"""``pixelmemory stop``: stop the database that opening a store has started."""

from __future__ import annotations

import argparse
import collections

from pixelmemory.cli.common import CLEAN, FOUND, Commands, plural, printable, show
from pixelmemory.store.host import stop_database

__all__ = ["add_stop"]

_DESCRIPTION = """\
Stop the PostgreSQL of PIXELTABLE_HOME (default: ~/.pixeltable), which goes on running after the programs that use it.
Nothing is stopped while another program is connected, unless --force is given. The next open of a store starts it
again.
"""
_EPILOG = """\
examples:
  pixelmemory stop
  pixelmemory stop --force

exit status: 0 it is stopped, or did not run; 1 others are connected, and it goes on running; 2 it cannot be stopped
"""


def add_stop(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "stop",
        help="stop the database, if nobody uses it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--force", action="store_true", help="also while others are connected")
    parser.set_defaults(run=run_stop)


def run_stop(arguments: argparse.Namespace) -> int:
    """Run the command."""
    folder, done = stop_database(force=arguments.force)
    show("database", printable(str(folder)))
    if not done.was_running:
        show("result", "it was not running")
        return CLEAN
    if done.clients:
        names = collections.Counter(printable(name) for name in done.clients)
        show("connected", *(f"{name} ({plural(count, 'connection')})" for name, count in names.items()))
        show("result", "still running: close these programs, or add --force to stop it all the same")
        return FOUND
    show("result", "stopped")
    return CLEAN
