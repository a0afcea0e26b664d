"""Errors as data: copies for several who wait, pickles, and why the tables cannot be used."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sql

import pixelmemory
from pixelmemory import PixelmemoryError, ProjectionUnavailableError, StoreClosedError, UnavailableCause
from pixelmemory.errors import copy_of
from pixelmemory.faults import set_fault_hook
from pixelmemory.projection.sql.failures import cause_of
from tests.harness.engine_tools import open_memory, with_pixeltable

#: what the arguments of the classes are called -> a value of each
VALUES: dict[str, Any] = {
    "byte_offset": 128,
    "cause": UnavailableCause.TABLE_GONE,
    "checkpoint_lsn": 9,
    "differences": "the layout",
    "durable_lsn": 7,
    "field": "entries[3].content",
    "given": "a",
    "given_fields": {"year": "int"},
    "given_model": "model a",
    "how": "in another event loop",
    "index": 2,
    "lsn": 12,
    "memory_id": "m",
    "memory_ids": ["m", "n"],
    "message": "what happened",
    "model": "a model",
    "namespace": "n",
    "path": Path("/a/path"),
    "pid": 4,
    "reason": "is wrong",
    "remedy": "mend it",
    "stored": "b",
    "stored_fields": None,
    "stored_model": None,
    "timeout_seconds": 1.5,
    "type_code": 99,
    "version": "0.2.0",
    "watermark": 3,
}
CLASSES = [
    value for value in vars(pixelmemory).values() if inspect.isclass(value) and issubclass(value, PixelmemoryError)
]


def made(kind: type[PixelmemoryError]) -> PixelmemoryError:
    """One of ``kind``, with every argument it takes."""
    if "__init__" not in {name for each in kind.__mro__[:-4] for name in vars(each)}:
        return kind("what happened")
    parameters = inspect.signature(kind.__init__).parameters.values()
    given = [each.name for each in parameters if each.name != "self" and each.kind is each.POSITIONAL_OR_KEYWORD]
    return kind(*[VALUES[name] for name in given]) if given else kind("what happened")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("copied", [copy_of, copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_every_error_is_copied_whole(kind: type[PixelmemoryError], copied: Any) -> None:
    error = made(kind)
    other = copied(error)
    assert other is not error
    assert type(other) is kind
    assert str(other) == str(error)
    assert other.args == error.args
    assert vars(other) == vars(error)
    with pytest.raises(kind) as caught:
        raise other from error
    assert caught.value.__cause__ is error
    assert error.__traceback__ is None, "a raise of the copy leaves the other alone"


def test_a_class_of_somebody_elses_is_copied_too() -> None:
    class OwnError(PixelmemoryError):
        def __init__(self, *, number: int, what: object) -> None:
            super().__init__(f"{number} of {what}")
            self.number = number

    other = copy_of(OwnError(number=3, what="four"))
    assert (str(other), other.number) == ("3 of four", 3)


def test_what_an_error_of_the_database_says() -> None:
    def wrapped(error: Exception) -> Exception:
        outer = ValueError("wrapped")
        outer.__cause__ = error
        return outer

    exhausted = psycopg.OperationalError("FATAL: sorry, too many clients already")
    inner = ProjectionUnavailableError("x", UnavailableCause.NOT_BUILT)
    for error, cause in (
        (psycopg.OperationalError("server closed the connection"), UnavailableCause.DATABASE_DOWN),
        (psycopg.errors.UndefinedTable("no table"), UnavailableCause.TABLE_GONE),
        (psycopg.errors.QueryCanceled("statement timeout"), UnavailableCause.TIMEOUT),
        (sql.exc.TimeoutError("pool"), UnavailableCause.TIMEOUT),
        (exhausted, UnavailableCause.NO_CONNECTION),
        (inner, UnavailableCause.NOT_BUILT),
    ):
        assert cause_of(error) is cause
        assert cause_of(wrapped(error)) is cause


def test_a_table_that_is_gone(tmp_path: Path, store_name: str) -> None:
    import pixeltable as pxt

    with open_memory(tmp_path, store_name) as memory:
        memory.add_entry("text", "n", memory_id="m", embedding=[1.0] * 8)
        table = memory.get_namespace_table("n")
        with_pixeltable(lambda: pxt.drop_table(table, force=True))
        with pytest.raises(ProjectionUnavailableError) as caught:
            memory.search("n", consistency="eventual")
    assert caught.value.cause is UnavailableCause.TABLE_GONE


def test_a_projector_that_stopped_tells_everybody(tmp_path: Path, store_name: str) -> None:
    def die(point: str) -> None:
        if point == "projector.fold":
            raise ZeroDivisionError("a bug")

    with open_memory(tmp_path, store_name) as memory:
        set_fault_hook(die)
        try:
            memory.add_entry("text", memory_id="m", embedding=[1.0] * 8)
            found = []
            for call in (memory.flush, memory.search, memory.retry_dead_letters):
                with pytest.raises(ProjectionUnavailableError) as caught:
                    call()
                found.append(caught.value)
        finally:
            set_fault_hook(None)
    assert {error.cause for error in found} == {UnavailableCause.PROJECTOR_STOPPED}
    assert len(set(map(id, found))) == len(found)


def test_a_request_to_a_projector_that_is_stopped_finds_the_store_closed(tmp_path: Path, store_name: str) -> None:
    memory = open_memory(tmp_path, store_name)
    projector = memory._memory._engine._store.projection.projector  # type: ignore[union-attr]
    memory.close()
    with pytest.raises(StoreClosedError):
        projector.request(lambda: None).result(10)
    with pytest.raises(StoreClosedError):
        projector.check_running()
