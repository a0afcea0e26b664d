"""What every host of a projection owes, as tests: a host's own test subclasses :class:`HostContract`.

The obligations are those of :class:`pixelmemory.projection.contract.Host`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pixelmemory import Options, ProjectionError, ProjectionUnavailableError, StoreLockedError, UnavailableCause
from pixelmemory.embedding.window import Window
from pixelmemory.faults import set_fault_hook
from pixelmemory.log.contract import StoredEvent
from pixelmemory.memory.events import MemoryAdded, MemoryDeleted, MemoryEvent, MemoryUpdated
from pixelmemory.memory.filters import parse_filter
from pixelmemory.memory.search import Position, Ranking, Search
from pixelmemory.memory.state import MemoryState
from pixelmemory.projection.changes import Change, fold
from pixelmemory.projection.contract import Capability, DeadLetter, Host, ProjectionState, Vectors
from pixelmemory.projection.overlay import Overlay

DIMENSIONS = 3
NAMESPACE, OTHER = "a namespace", "another"
DAY_US = 86_400_000_000


def vector_of(content: str) -> np.ndarray:
    """Another direction for each text."""
    source = np.random.default_rng(len(content) + sum(content.encode()))
    return source.standard_normal(DIMENSIONS).astype(np.float32)


def added(memory_id: str, content: str = "text", namespace: str = NAMESPACE, **changes: Any) -> MemoryAdded:
    return MemoryAdded(namespace, memory_id, content, **{"created_at_us": DAY_US, **changes})


def changes_of(*events: MemoryEvent, first_lsn: int = 1) -> list[Change]:
    stored = [StoredEvent(lsn, bytes(16), 1, event) for lsn, event in enumerate(events, first_lsn)]
    return list(fold(stored).values())


def vectors_of(changes: Sequence[Change]) -> Vectors:
    return {change.key: vector_of(change.content) for change in changes if change.content is not None}


def make_event(memory_id: str, kind: int, number: int) -> MemoryEvent:
    match kind:
        case 0:
            return added(memory_id, f"text {number}", metadata_json=b'{"n":%d}' % number)
        case 1:
            return MemoryUpdated(NAMESPACE, memory_id, f"new {number}")
        case 2:
            return MemoryUpdated(NAMESPACE, memory_id, None, b'{"m":%d}' % number)
        case _:
            return MemoryDeleted(NAMESPACE, memory_id)


#: an example takes a second or more: what fails is shown as it was drawn
UNSHRUNK = (Phase.explicit, Phase.generate)


@st.composite
def lives(draw: st.DrawFn) -> list[MemoryEvent]:
    """Events of a few memories as a facade lets them through, some at the same time, some with vectors of their own."""
    kept: list[MemoryEvent] = []
    existing: set[str] = set()
    for memory_id, kind, number in draw(
        st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(0, 5)), max_size=12)
    ):
        event = make_event(memory_id, kind, number)
        if isinstance(event, MemoryAdded) is (memory_id in existing):
            continue
        if isinstance(event, MemoryAdded):
            own = vector_of(event.content).astype("<f4").tobytes() if number % 2 else None
            event = msgspec.structs.replace(event, created_at_us=DAY_US * (number // 2), embedding=own)
        existing ^= {memory_id} if not isinstance(event, MemoryUpdated) else set()
        kept.append(event)
    return kept


@st.composite
def lives_of_two(draw: st.DrawFn) -> list[MemoryEvent]:
    """Events of two namespaces, in any order that keeps each one's own."""
    one, other = draw(lives()), [msgspec.structs.replace(event, namespace=OTHER) for event in draw(lives())]
    kept: list[MemoryEvent] = []
    while one or other:
        kept.append((one if one and (not other or draw(st.booleans())) else other).pop(0))
    return kept


@st.composite
def searches_of(draw: st.DrawFn) -> Search:
    """By time or by meaning, of one namespace or two, with and without conditions."""
    bounds = sorted(draw(st.lists(st.integers(0, 3), min_size=2, max_size=2)))
    start, end = (dt.datetime(1970, 1, 1 + day, tzinfo=dt.UTC) if draw(st.booleans()) else None for day in bounds)
    key = draw(st.sampled_from(["n", "m"]))
    conditions = draw(st.sampled_from([None, {key: {"$gte": 2}}, {"$not": {key: 3}}, {key: None}]))
    parsed = None if conditions is None else parse_filter(conditions, Options())
    namespaces = draw(st.sampled_from([(NAMESPACE,), (OTHER,), (NAMESPACE, OTHER), (OTHER, "unknown", NAMESPACE)]))
    search = Search(namespaces, draw(st.integers(0, 5)), filter=parsed, start=start, end=end)
    if draw(st.booleans()):
        ranking = draw(st.sampled_from([Ranking.NEWEST, Ranking.LISTED_NEWEST, Ranking.LISTED_OLDEST]))
        search = msgspec.structs.replace(search, ranking=ranking)
        if ranking is Ranking.NEWEST:
            return msgspec.structs.replace(search, offset=draw(st.integers(0, 2)))
        if draw(st.booleans()):
            return search
        day = draw(
            st.sampled_from([None, dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.datetime(1970, 1, 2, tzinfo=dt.UTC)])
        )
        return msgspec.structs.replace(
            search, after=Position(day, draw(st.sampled_from("abcd")), draw(st.sampled_from([NAMESPACE, OTHER])))
        )
    vector, bound = vector_of(f"query {draw(st.integers(0, 3))}"), draw(st.sampled_from([None, -0.2, 0.3]))
    return msgspec.structs.replace(search, ranking=Ranking.SIMILARITY, vector=vector, min_score=bound)


@dataclasses.dataclass
class OpenHost:
    """A host that is loaded, and what a test does with it on one thread."""

    host: Host
    state: ProjectionState

    def apply(self, *events: MemoryEvent, first_lsn: int = 1, **given: Any) -> list[DeadLetter]:
        """Apply ``events`` as one batch whose checkpoint is its last LSN."""
        changes = changes_of(*events, first_lsn=first_lsn)
        checkpoint_lsn = given.pop("checkpoint_lsn", first_lsn + len(events) - 1)
        self.host.prepare(changes)
        return self.host.apply(changes, vectors_of(changes), checkpoint_lsn=checkpoint_lsn, **given)

    def contents(self, namespace: str = NAMESPACE) -> dict[str, str]:
        rows = self.host.search(Search((namespace,), 10_000))
        assert len({row.memory_id for row in rows}) == len(rows)
        return {row.memory_id: row.content for row in rows}

    @property
    def checkpoint_lsn(self) -> int:
        stored = self.host.stored_state()
        assert stored is not None
        assert stored[0] == self.state
        return stored[1]


class HostContract:
    """The suite. A subclass opens the host; what it lacks it says in ``lacks``."""

    #: how its tables are laid out, a value of ``Layout``
    layout = "per_namespace"
    #: what this host does not have
    lacks: frozenset[Capability] = frozenset()

    def open(self, name: str, tables_id: uuid.UUID, state: ProjectionState, options: Options) -> Host:
        """Claim the tables ``tables_id``: neither reset nor loaded."""
        raise NotImplementedError

    def drop_table(self, host: Host, namespace: str) -> None:
        """Take the table of ``namespace`` away, as its user might."""
        raise NotImplementedError

    def insert(self, host: Host, namespace: str, memory_id: str, content: str) -> None:
        """Insert a row as a user does, with no LSN."""
        raise NotImplementedError

    # -- fixtures

    @pytest.fixture
    def opened(self, store_name: str) -> Iterator[Callable[..., OpenHost]]:
        tables_id = uuid.uuid4()
        with contextlib.ExitStack() as stack:

            def open_one(*, reset: bool = False, **changes: Any) -> OpenHost:
                fields = {"store_id": str(tables_id), "layout": self.layout, "embedding": "x", "schema": None}
                state = ProjectionState(**{**fields, "dimensions": DIMENSIONS, **changes})
                host = self.open(store_name, tables_id, state, Options(progress=False))
                stack.callback(host.close, keep_claim=False)
                stack.enter_context(host.on_thread())
                if reset:
                    host.reset()
                host.load()
                return OpenHost(host, state)

            yield open_one

    @pytest.fixture
    def open_host(self, opened: Callable[..., OpenHost]) -> OpenHost:
        return opened(reset=True)

    # -- the projection as a whole

    def test_there_is_none_before_the_first_reset(self, store_name: str) -> None:
        state = ProjectionState("s", "per_namespace", None, None, None)
        host = self.open(store_name, uuid.uuid4(), state, Options(progress=False))
        try:
            with host.on_thread():
                assert host.stored_state() is None
        finally:
            host.close(keep_claim=False)

    def test_a_reset_makes_an_empty_one(self, open_host: OpenHost) -> None:
        assert open_host.checkpoint_lsn == 0
        assert open_host.host.namespaces() == []
        assert open_host.host.dead_letters() == []
        open_host.apply(added("m"))
        open_host.host.reset()
        open_host.host.load()
        assert open_host.checkpoint_lsn == 0
        assert open_host.contents() == {}
        assert not open_host.host.knows(NAMESPACE)

    def test_what_was_applied_is_there_when_it_is_opened_again(self, opened: Callable[..., OpenHost]) -> None:
        first = opened(reset=True)
        letter = DeadLetter(3, NAMESPACE, "dead", "why", 2)
        first.apply(added("m", "one"), added("n", "two", OTHER), dead_letters=[letter])
        first.host.close(keep_claim=False)
        again = opened()
        assert again.checkpoint_lsn == 2
        assert again.contents() == {"m": "one"}
        assert again.host.namespaces() == sorted([NAMESPACE, OTHER])
        assert again.host.dead_letters() == [letter]

    def test_one_claim_at_a_time(self, store_name: str) -> None:
        tables_id, state = uuid.uuid4(), ProjectionState("s", "per_namespace", None, None, None)
        host = self.open(store_name, tables_id, state, Options(progress=False))
        with pytest.raises(StoreLockedError):
            self.open(store_name, tables_id, state, Options(progress=False))
        host.close(keep_claim=False)
        host.close(keep_claim=False)
        self.open(store_name, tables_id, state, Options(progress=False)).close(keep_claim=False)

    # -- writing

    def test_the_steps_of_a_change(self, open_host: OpenHost) -> None:
        open_host.apply(added("kept", "one"), added("replaced", "two"), added("gone", "three"), added("patched", "4"))
        dead = open_host.apply(
            MemoryDeleted(NAMESPACE, "replaced"),
            added("replaced", "again", metadata_json=b'{"n":1}', created_at_us=2 * DAY_US),
            MemoryDeleted(NAMESPACE, "gone"),
            MemoryUpdated(NAMESPACE, "patched", metadata_json=b'{"b":1,"a":2}'),
            added("never", "seen"),
            MemoryDeleted(NAMESPACE, "never"),
            first_lsn=5,
        )
        assert dead == []
        assert open_host.contents() == {"kept": "one", "replaced": "again", "patched": "4"}
        assert open_host.checkpoint_lsn == 10
        row = open_host.host.get(NAMESPACE, "patched")
        assert row is not None
        assert row.metadata_json == '{"b":1,"a":2}'
        assert row.created_at == dt.datetime(1970, 1, 2, tzinfo=dt.UTC)

    def test_a_patch_without_its_row_is_a_dead_letter(self, open_host: OpenHost) -> None:
        dead = open_host.apply(added("m"), MemoryUpdated(NAMESPACE, "nobody", "text"), MemoryUpdated(OTHER, "x", "y"))
        assert sorted((letter.lsn, letter.memory_id) for letter in dead) == [(2, "nobody"), (3, "x")]
        assert sorted(each.lsn for each in open_host.host.dead_letters()) == [2, 3]
        assert open_host.checkpoint_lsn == 3

    def test_dead_letters_are_kept_and_revived(self, open_host: OpenHost) -> None:
        letters = [DeadLetter(lsn, NAMESPACE, f"m{lsn}", "why") for lsn in (1, 2, 3)]
        assert open_host.host.apply([], {}, checkpoint_lsn=3, dead_letters=letters) == letters
        open_host.host.apply([], {}, checkpoint_lsn=None, revived_lsns=[1, 3])
        assert open_host.host.dead_letters() == [letters[1]]
        newer = DeadLetter(2, NAMESPACE, "m2", "another reason")
        open_host.host.apply([], {}, checkpoint_lsn=None, dead_letters=[newer])
        assert open_host.host.dead_letters() == [newer]
        assert open_host.checkpoint_lsn == 3

    @pytest.mark.parametrize("point", ["apply.begun", "apply.rows", "apply.checkpoint", "apply.committed"])
    def test_a_batch_that_was_torn_is_put_right_by_applying_it_again(self, open_host: OpenHost, point: str) -> None:
        open_host.apply(added("old", "old"), added("deleted", "x"), added("patched", "x"))
        batch: list[MemoryEvent] = [
            added("new", "new"),
            MemoryDeleted(NAMESPACE, "deleted"),
            MemoryUpdated(NAMESPACE, "patched", "changed"),
            added("brief", "brief"),
            MemoryDeleted(NAMESPACE, "brief"),
        ]

        def fail(name: str) -> None:
            if name == point:
                raise ConnectionError("the database went away")

        set_fault_hook(fail)
        try:
            with pytest.raises(ConnectionError) as caught:
                open_host.apply(*batch, first_lsn=4)
        finally:
            set_fault_hook(None)
        assert open_host.host.is_infrastructure_error(caught.value)
        assert open_host.checkpoint_lsn in (3, 8)
        open_host.apply(*batch, first_lsn=4, replace=True)
        assert open_host.contents() == {"old": "old", "new": "new", "patched": "changed"}
        assert open_host.checkpoint_lsn == 8
        assert open_host.host.dead_letters() == []

    def test_a_batch_may_be_cut_elsewhere_when_it_is_applied_again(self, open_host: OpenHost) -> None:
        open_host.apply(added("a", "1"), MemoryUpdated(NAMESPACE, "a", "2"), added("b", "3"), checkpoint_lsn=None)
        open_host.apply(added("a", "1"), checkpoint_lsn=1, replace=True)
        open_host.apply(MemoryUpdated(NAMESPACE, "a", "2"), added("b", "3"), first_lsn=2, replace=True)
        assert open_host.contents() == {"a": "2", "b": "3"}

    @settings(max_examples=8, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_batches_come_to_the_fold(self, open_host: OpenHost, data: st.DataObject) -> None:
        """Whatever the events and however they are cut, the rows are what evolving one memory at a time comes to."""
        host = open_host.host
        host.reset()
        host.load()
        events: list[MemoryEvent] = data.draw(
            st.lists(st.builds(make_event, st.sampled_from(["a", "b", "c"]), st.integers(0, 3), st.integers(0, 9)))
        )
        model: dict[str, MemoryState] = {}
        kept: list[MemoryEvent] = []
        for event in events:  # as a facade lets through: no add of what exists, no update or delete of what does not
            if isinstance(event, MemoryAdded) is (event.memory_id in model):
                continue
            kept.append(event)
            after = MemoryState.evolve(model.get(event.memory_id), event)
            if after is None:
                del model[event.memory_id]
            else:
                model[event.memory_id] = after
        cut = data.draw(st.integers(0, len(kept)))
        parts: list[tuple[list[MemoryEvent], int]] = [(kept[:cut], 1), (kept[cut:], cut + 1)]
        for part, first_lsn in parts:
            if part:
                assert open_host.apply(*part, first_lsn=first_lsn) == []
        assert open_host.contents() == {memory_id: state.content for memory_id, state in model.items()}
        for memory_id, state in model.items():
            row = host.get(NAMESPACE, memory_id)
            assert row is not None
            assert (row.metadata_json or "").encode() == state.metadata_json

    # -- reading

    def test_reads_of_what_is_not_there(self, open_host: OpenHost) -> None:
        host = open_host.host
        assert host.get(NAMESPACE, "m") is None
        assert host.existing(NAMESPACE, ["m"]) == set()
        assert host.count(Search((NAMESPACE,))) == 0
        assert host.search(Search((NAMESPACE,), 5)) == []
        assert list(host.long_texts(NAMESPACE, Window(8, 2, 2))) == []
        assert not host.knows(NAMESPACE)

    def test_a_namespace_is_its_own(self, open_host: OpenHost) -> None:
        open_host.apply(added("m", "one"), added("m", "two", OTHER), added("n", "three", OTHER))
        host = open_host.host
        assert host.existing(NAMESPACE, ["m", "n", "o"]) == {"m"}
        assert [host.count(Search((each,))) for each in (NAMESPACE, OTHER)] == [1, 2]
        assert host.occupied([NAMESPACE, OTHER]) == {NAMESPACE, OTHER}
        assert host.count(Search((NAMESPACE, OTHER))) == 3
        assert open_host.contents(OTHER) == {"m": "two", "n": "three"}
        assert host.knows(OTHER)
        open_host.apply(MemoryDeleted(OTHER, "m"), MemoryDeleted(OTHER, "n"), first_lsn=4)
        assert host.namespaces() == sorted([NAMESPACE, OTHER]), "what ever held a memory"
        assert host.count(Search((OTHER,))) == 0
        assert host.occupied([NAMESPACE, OTHER]) == {NAMESPACE}

    def test_every_condition_holds_before_the_limit(self, open_host: OpenHost) -> None:
        events = [
            added(
                f"m{n}",
                f"text {n}",
                created_at_us=n * DAY_US,
                metadata_json=b'{"even":%s}' % [b"true", b"false"][n % 2],
            )
            for n in range(20)
        ]
        open_host.apply(*events)
        host = open_host.host
        newest = host.search(Search((NAMESPACE,), 3))
        assert [row.memory_id for row in newest] == ["m19", "m18", "m17"]
        assert [row.score for row in newest] == [None] * 3
        even = parse_filter({"even": True}, Options())
        assert [row.memory_id for row in host.search(Search((NAMESPACE,), 3, filter=even))] == ["m18", "m16", "m14"]
        start, end = (dt.datetime(1970, 1, day, tzinfo=dt.UTC) for day in (6, 9))
        assert [row.memory_id for row in host.search(Search((NAMESPACE,), 9, filter=even, start=start, end=end))] == [
            "m8",
            "m6",
        ]

    def test_nearest_come_first(self, open_host: OpenHost) -> None:
        events = [added(f"m{n}", f"text {n * 7}") for n in range(12)]
        open_host.apply(*events)
        query = vector_of("a query")

        def cosine(content: str) -> float:
            vector = vector_of(content)
            return float(vector @ query / (np.linalg.norm(vector) * np.linalg.norm(query)))

        expected = sorted(events, key=lambda event: -cosine(event.content))
        rows = open_host.host.search(self.nearest(query, 4))
        assert [row.memory_id for row in rows] == [event.memory_id for event in expected[:4]]
        assert [row.score for row in rows] == pytest.approx([cosine(event.content) for event in expected[:4]], abs=1e-5)
        bound = cosine(expected[5].content) - 1e-4
        assert len(open_host.host.search(self.nearest(query, 12, min_score=bound))) == 6

    @pytest.mark.parametrize("ranking", [Ranking.LISTED_NEWEST, Ranking.LISTED_OLDEST])
    def test_a_list_goes_on_after_any_memory(self, open_host: OpenHost, ranking: Ranking) -> None:
        """By time, then by id; a user's row without a time comes at the end, and is gone on after as the others."""
        open_host.apply(*(added(f"m{n}", created_at_us=n // 4 * DAY_US) for n in range(12)))
        host = open_host.host
        for memory_id in ("a user's", "another of a user's"):
            self.insert(host, NAMESPACE, memory_id, "text")
        rows = host.search(Search((NAMESPACE,), ranking=ranking))
        assert len(rows) == 14
        undated = [row for row in rows if row.created_at is None]
        assert rows[-len(undated) :] == undated or not undated
        keys = [(row.created_at, row.memory_id) for row in rows if row.created_at is not None]
        assert keys == sorted(keys, reverse=ranking is Ranking.LISTED_NEWEST)
        for size in (1, 3, 5):
            pages: list[Any] = []
            after = None
            while page := host.search(Search((NAMESPACE,), size, ranking, after=after)):
                pages += page
                after = page[-1].place
            assert pages == rows
        by_time = host.search(Search((NAMESPACE,), 14))
        assert host.search(Search((NAMESPACE,), 4, offset=9)) == by_time[9:13]

    @settings(max_examples=10, suppress_health_check=list(HealthCheck), phases=UNSHRUNK)
    @given(data=st.data())
    def test_changes_laid_over_the_tables_are_what_applying_them_gives(
        self, open_host: OpenHost, data: st.DataObject
    ) -> None:
        """Contents, order and scores, to the last bit; also where some of the changes are applied already."""
        host = open_host.host
        host.reset()
        host.load()
        kept = data.draw(lives_of_two())
        cut, ahead = sorted(data.draw(st.tuples(st.integers(0, len(kept)), st.integers(0, len(kept)))))
        for part, first_lsn in ((kept[:cut], 1), (kept[cut:ahead], cut + 1)):
            if part:
                assert open_host.apply(*part, first_lsn=first_lsn) == []
        if data.draw(st.booleans()):
            host.create(OTHER)
        changes = changes_of(*kept[cut:], first_lsn=cut + 1)
        over = Overlay(host, changes, lambda texts: np.stack([vector_of(text) for text in texts]))
        searches = [data.draw(searches_of()) for _ in range(4)]

        def read(reads: Host | Overlay) -> list[Any]:
            rows = [reads.search(search) for search in searches]
            counts = [reads.count(search) for search in searches]
            return [rows, counts, [reads.get(each, memory_id) for memory_id in "abcd" for each in (NAMESPACE, OTHER)]]

        found = read(over)
        if kept[ahead:]:
            assert open_host.apply(*kept[ahead:], first_lsn=ahead + 1) == []
        assert found == read(host)

    @staticmethod
    def nearest(query: np.ndarray, limit: int, **conditions: Any) -> Search:
        return Search((NAMESPACE,), limit, Ranking.SIMILARITY, vector=query, **conditions)

    def test_long_texts_come_in_pages(self, open_host: OpenHost) -> None:
        open_host.apply(*[added(f"m{n}", "x" * (n % 2 * 100), created_at_us=n * DAY_US) for n in range(120)])
        pages = list(open_host.host.long_texts(NAMESPACE, Window(50, 40, 2)))
        found = [row.memory_id for page in pages for row in page]
        assert found == [f"m{n}" for n in reversed(range(120)) if n % 2]
        assert all(0 < len(page) <= 50 for page in pages)

    def test_readers_on_other_threads_see_what_was_applied(self, open_host: OpenHost) -> None:
        host, wrong = open_host.host, list[str]()
        applied = 0

        def read() -> None:
            for _ in range(15):
                before = applied
                count = host.count(Search((NAMESPACE,)))
                if not before <= count <= 10:
                    wrong.append(f"{count} rows after {before} were applied")

        open_host.apply(added("m0"))
        applied = 1
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for n in range(1, 10):
            open_host.apply(added(f"m{n}"), first_lsn=n + 1)
            applied += 1
        for thread in threads:
            thread.join()
        assert wrong == []

    # -- users' own

    def test_rows_of_a_user_are_found_and_left_alone(self, open_host: OpenHost) -> None:
        open_host.apply(added("m", "ours"))
        self.insert(open_host.host, NAMESPACE, "theirs", "inserted")
        assert open_host.contents() == {"m": "ours", "theirs": "inserted"}
        open_host.apply(MemoryDeleted(NAMESPACE, "m"), first_lsn=2)
        assert open_host.contents() == {"theirs": "inserted"}

    # -- errors

    def test_what_is_wrong_with_the_machine_is_told_from_what_is_wrong_with_a_row(self, open_host: OpenHost) -> None:
        host = open_host.host
        wrapped = ProjectionError("wrapped")
        wrapped.__cause__ = psycopg.OperationalError("the server closed the connection")
        for error in (
            ConnectionError(),
            OSError(28, "no space"),
            MemoryError(),
            wrapped,
            ProjectionUnavailableError("x", UnavailableCause.DATABASE_DOWN),
        ):
            assert host.is_infrastructure_error(error), error
        for wrong in (ValueError("a row"), ProjectionError("a row"), psycopg.DataError("a value")):
            assert not host.is_infrastructure_error(wrong), wrong
            assert not host.is_missing_table(wrong), wrong

    def test_a_table_that_is_gone_is_no_rows_fault(self, open_host: OpenHost) -> None:
        open_host.apply(added("m"))
        host = open_host.host
        assert host.damage([NAMESPACE, "unknown"]) is None
        self.drop_table(host, NAMESPACE)
        damage = host.damage([NAMESPACE])
        assert damage is not None
        assert "gone" in damage
        with pytest.raises(ProjectionUnavailableError) as caught:
            host.get(NAMESPACE, "m")
        assert caught.value.cause is UnavailableCause.TABLE_GONE

    # -- upkeep

    def test_upkeep_changes_no_row(self, open_host: OpenHost) -> None:
        changes = changes_of(*[added(f"m{n}", f"text {n}") for n in range(30)])
        for lag_events in (0, 10**6, 0):
            open_host.host.prepare(changes)
            open_host.host.before_batch(changes, lag_events)
            open_host.host.apply(changes, vectors_of(changes), checkpoint_lsn=30, replace=True)
            open_host.host.after_batch(changes, lag_events)
        assert len(open_host.contents()) == 30

    # -- what a host may lack

    def test_it_says_what_it_lacks(self, open_host: OpenHost) -> None:
        assert set(open_host.host.lacks) == self.lacks
        assert all(open_host.host.lacks.values())

    def test_its_own_table(self, open_host: OpenHost) -> None:
        if Capability.TABLE in self.lacks:
            pytest.skip("this host has no tables of its own")
        open_host.host.create(NAMESPACE)
        open_host.host.create(NAMESPACE)
        assert open_host.host.knows(NAMESPACE)
        assert open_host.host.table(NAMESPACE) is not None

    def test_a_purge_takes_the_past_with_it(self, open_host: OpenHost) -> None:
        if Capability.PURGE in self.lacks:
            pytest.skip("this host cannot purge")
        letters = [DeadLetter(3, NAMESPACE, "erased", "why"), DeadLetter(9, NAMESPACE, "erased", "later")]
        open_host.apply(added("erased"), added("kept"), dead_letters=letters)
        open_host.apply(MemoryDeleted(NAMESPACE, "erased"), added("erased", "anew"), first_lsn=10)
        open_host.host.purge(NAMESPACE, ["erased"], 8)
        assert open_host.contents() == {"erased": "anew", "kept": "text"}
        assert open_host.host.dead_letters() == [letters[1]]
        self.insert(open_host.host, NAMESPACE, "theirs", "inserted")
        open_host.host.purge(NAMESPACE, None, 20)
        assert open_host.contents() == {}
        open_host.host.purge("unknown", None, 20)
