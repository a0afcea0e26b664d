"""What an error of the database means: whether it speaks of the machine or of the rows, and how it is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import psycopg
import sqlalchemy as sql

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause

__all__ = ["EXHAUSTED_REMEDY", "cause_of", "first_line", "is_exhausted", "is_infrastructure_error"]

#: what to do where PostgreSQL has no connection left
EXHAUSTED_REMEDY = (
    "Close stores or programs that use this Pixeltable, "
    "or raise max_connections in its postgresql.conf and start it again"
)

#: SQLSTATE classes that say nothing about the rows: connection, resources, operator intervention, system, rollback
_INFRASTRUCTURE_CLASSES = ("08", "53", "57", "58", "40", "55", "XX")


def is_exhausted(error: BaseException) -> bool:
    """Whether the server refused a connection because it has none left."""
    return re.search("too many clients|remaining connection slots", str(error)) is not None


def is_infrastructure_error(error: BaseException, also: Callable[[BaseException], bool] = lambda _error: False) -> bool:
    """Whether ``error`` speaks of the database or the machine rather than of the rows that were written.

    Looks along the chain of causes, since a host wraps what psycopg raised.

    Args:
        also: of one error of the chain, whether the host counts it as such, too.
    """
    for cause in _chain(error):
        if isinstance(cause, psycopg.Error):
            if cause.sqlstate is None:
                return isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError))
            return cause.sqlstate[:2] in _INFRASTRUCTURE_CLASSES
        # SQLAlchemy's: the connections of its pool were all in use for too long
        if isinstance(cause, (OSError, MemoryError, ProjectionUnavailableError, sql.exc.TimeoutError)):
            return True
        if also(cause):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it came from, the outermost first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = getattr(cause, "orig", None) or cause.__cause__ or cause.__context__


def cause_of(error: BaseException) -> UnavailableCause:
    """What ``error`` of the database, or one of its causes, says of why the tables cannot be used."""
    for cause in _chain(error):
        if isinstance(cause, ProjectionUnavailableError):
            return cause.cause
        if isinstance(cause, (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)):
            return UnavailableCause.TABLE_GONE
        if isinstance(cause, (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, sql.exc.TimeoutError)):
            return UnavailableCause.TIMEOUT
        if is_exhausted(cause):
            return UnavailableCause.NO_CONNECTION
    return UnavailableCause.DATABASE_DOWN


def first_line(error: BaseException) -> str:
    """What ``error`` says, without what quotes the row: the further lines of PostgreSQL, the end of Pixeltable's.

    Of an error without a text: its repr, so that it is never empty.
    """
    text = str(error).strip()
    line = f"{type(error).__name__}: {text.splitlines()[0].partition(' in row {')[0]}" if text else repr(error)
    return f"{line}. {EXHAUSTED_REMEDY}" if is_exhausted(error) else line
