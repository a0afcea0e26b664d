"""Every value is checked before the append; what is accepted comes back exactly."""

from __future__ import annotations

import datetime as dt
import enum
import json
import math
import os
import random
import struct
import subprocess
import sys
import threading
import types
import uuid
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, LimitExceededError, PixelmemoryError
from pixelmemory.memory import identity
from pixelmemory.memory.arguments import CheckedEntry, check_added, check_entry
from pixelmemory.memory.identity import memory_key, new_memory_id
from pixelmemory.memory.metadata import decode_metadata, encode_metadata
from pixelmemory.memory.rules import Rules
from pixelmemory.memory.schema import parse_schema
from pixelmemory.memory.values import (
    check_content,
    check_limit,
    check_memory_id,
    check_namespace,
    check_time_range,
    check_timestamp,
    check_vector,
    from_timestamp,
)
from pixelmemory.options import Options

OPTIONS = Options()
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))

# -- text


@given(texts)
def test_text_comes_back_exactly(text: str) -> None:
    assert check_content(text, OPTIONS) == text
    if text:
        assert check_namespace(text[:255], OPTIONS) == text[:255]
        assert check_memory_id(text, OPTIONS) == text


@pytest.mark.parametrize("value", [None, b"bytes", 5, ["a"], uuid.uuid4()])
@pytest.mark.parametrize("check", [check_content, check_namespace, check_memory_id])
def test_text_must_be_a_string(check: Any, value: object) -> None:
    with pytest.raises(InvalidTypeError, match=r"entries\[3\]\.x must be a string, not "):
        check(value, OPTIONS, "entries[3].x")


@pytest.mark.parametrize(
    ("value", "reason"),
    [("a\0b", r"NUL character \(character 1\)"), ("ab\ud800", r"lone surrogate \(character 2\)"), ("\udc80", "lone")],
)
@pytest.mark.parametrize("check", [check_content, check_namespace, check_memory_id])
def test_what_no_database_holds_is_refused(check: Any, value: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason) as caught:
        check(value, OPTIONS)
    assert caught.value.field in ("content", "namespace", "memory_id")


def test_lengths() -> None:
    assert check_content("", OPTIONS) == ""
    assert check_content("é" * 10, Options(content_chars_max=10)) == "é" * 10
    with pytest.raises(LimitExceededError, match=r"content has 11 characters.*content_chars_max.* 10"):
        check_content("é" * 11, Options(content_chars_max=10))
    assert len(check_namespace("n" * 255, OPTIONS)) == 255
    with pytest.raises(LimitExceededError, match="namespace_chars_max"):
        check_namespace("n" * 256, OPTIONS)
    with pytest.raises(LimitExceededError, match="memory_id_chars_max"):
        check_memory_id("n" * 1025, OPTIONS)
    for check in (check_namespace, check_memory_id):
        with pytest.raises(InvalidArgumentError, match="must not be empty"):
            check("", OPTIONS)


def test_a_subclass_of_str_is_kept_as_its_text() -> None:
    class Tag(enum.StrEnum):
        A = "a"

    checked = check_content(Tag.A, OPTIONS)
    assert type(checked) is str
    assert checked == "a"


# -- ids


def test_ids_are_monotone_uuids_of_version_7(monkeypatch: pytest.MonkeyPatch) -> None:
    # another test may have set the clock ahead, and ids never go back
    monkeypatch.setattr(identity, "_id_last", 0)
    before_ms = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
    ids = [new_memory_id() for _ in range(20_000)]
    assert ids == sorted(set(ids))
    first = uuid.UUID(ids[0])
    assert (first.version, first.variant, str(first)) == (7, uuid.RFC_4122, ids[0])
    assert before_ms - 5 <= first.int >> 80 <= before_ms + 60_000


def test_ids_of_threads_are_distinct() -> None:
    made: list[list[str]] = []
    threads = [threading.Thread(target=lambda: made.append([new_memory_id() for _ in range(2000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ids == sorted(ids) for ids in made)
    assert len({memory_id for ids in made for memory_id in ids}) == 8000


def test_ids_do_not_follow_the_global_random_state() -> None:
    program = "import random; random.seed(1); from pixelmemory.memory.identity import new_memory_id as new; "
    program += "print(new()[15:], new()[15:])"
    made = [subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(2)]
    assert made[0] != made[1]
    random.seed(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ids_differ_after_a_fork() -> None:
    program = """
import os
from pixelmemory.memory import identity
identity.new_memory_id()
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, str(identity._random.getrandbits(200)).encode())
    os._exit(0)
os.wait()
print(os.read(read, 200).decode() != str(identity._random.getrandbits(200)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert run.stdout.strip() == "True"


def test_a_canonical_uuid_is_its_own_key() -> None:
    for made in (uuid.uuid4(), uuid.uuid1(), uuid.UUID(new_memory_id()), uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)):
        assert memory_key(str(made)) == made


@pytest.mark.parametrize(
    "memory_id",
    [
        *("a", "é", "memory 1", "x" * 1024, " " * 36),
        *("C91A1248-097C-414E-B3C2-70CA9D80B389", "d0f9f757b47246f084202eff146545bf"),
        "{b466c12d-e3e1-42a7-9458-752977ae93a3}",
    ],
)
def test_every_other_id_has_a_key_of_version_5(memory_id: str) -> None:
    key = memory_key(memory_id)
    assert key.version == 5
    assert key == memory_key(memory_id)


@given(st.sets(texts.filter(bool), min_size=2, max_size=20))
def test_no_id_can_pass_for_another(ids: set[str]) -> None:
    everything = ids | {str(memory_key(memory_id)) for memory_id in ids}
    everything |= {str(memory_key(memory_id)) for memory_id in everything}
    assert len({memory_key(memory_id) for memory_id in everything}) == len(everything)


def test_keys_are_for_ever() -> None:
    assert str(memory_key("memory 1")) == "0318f5e1-958b-50ab-89b7-71677fcdb7a7"


# -- metadata

numbers = st.integers() | st.integers(-(10**999), 10**999) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=20
)


def _exactly(value: Any) -> Any:
    """A form in which values are equal only if their types, the order of their keys and the signs of zeros are."""
    if isinstance(value, dict):
        return [(key, _exactly(item)) for key, item in value.items()]
    if isinstance(value, list):
        return ["list", *map(_exactly, value)]
    return (type(value).__name__, struct.pack("d", value) if isinstance(value, float) else value)


@given(st.dictionaries(texts, json_values, max_size=5))
def test_metadata_comes_back_exactly(metadata: dict[str, Any]) -> None:
    text = encode_metadata(metadata, OPTIONS)
    assert _exactly(decode_metadata(text)) == _exactly(metadata)
    assert _exactly(json.loads(text)) == _exactly(metadata)  # any reader of JSON sees the same


@pytest.mark.parametrize(
    "value", [1.0, -0.0, 1e308, 5e-324, 0.1, 1e16, 2**63, 2**64, -(2**64), 10**999, True, None, "", "😀", {}, [], [[]]]
)
def test_awkward_values_come_back_exactly(value: Any) -> None:
    assert _exactly(decode_metadata(encode_metadata({"b": value, "a": [value]}, OPTIONS))) == _exactly(
        {"b": value, "a": [value]}
    )


def test_no_metadata_is_an_empty_object() -> None:
    assert encode_metadata(None, OPTIONS) == encode_metadata({}, OPTIONS) == b"{}"
    assert decode_metadata("{}") == {}


def test_subclasses_become_what_they_hold() -> None:
    class Level(enum.IntEnum):
        HIGH = 3

    given_value = OrderedDict(
        [("z", defaultdict(int, a=1)), ("level", Level.HIGH), ("f", np.float64(1.5)), ("m", types.MappingProxyType({}))]
    )
    decoded = decode_metadata(encode_metadata(types.MappingProxyType(given_value), OPTIONS))
    assert _exactly(decoded) == _exactly({"z": {"a": 1}, "level": 3, "f": 1.5, "m": {}})


@pytest.mark.parametrize(
    ("metadata", "error", "field", "reason"),
    [
        ("{}", InvalidTypeError, "metadata", "must be a dict, not str"),
        ([("a", 1)], InvalidTypeError, "metadata", "must be a dict, not list"),
        ({1: 2}, InvalidTypeError, "metadata", "keys must be strings, not int"),
        ({"a": {None: 2}}, InvalidTypeError, "metadata.a", "keys must be strings, not None"),
        ({"a": math.nan}, InvalidArgumentError, "metadata.a", "must be finite, not nan"),
        ({"a": [1, {"b": -math.inf}]}, InvalidArgumentError, "metadata.a[1].b", "must be finite, not -inf"),
        ({"a": "x\0"}, InvalidArgumentError, "metadata.a", "NUL"),
        ({"a": [[], ["\ud800"]]}, InvalidArgumentError, "metadata.a[1][0]", "lone surrogate"),
        ({"x\0": 1}, InvalidArgumentError, "metadata", "has the key 'x\\x00', which must not contain the NUL"),
        ({"a": {"\udfff": 1}}, InvalidArgumentError, "metadata.a", "lone surrogate"),
        ({"a": {1, 2}}, InvalidTypeError, "metadata.a", "JSON has no sets"),
        ({"a": (1, 2)}, InvalidTypeError, "metadata.a", "it would come back as a list"),
        ({"a": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)}, InvalidTypeError, "metadata.a", "value.isoformat()"),
        ({"a": dt.date(2024, 1, 1)}, InvalidTypeError, "metadata.a", "value.isoformat()"),
        ({"a": b"x"}, InvalidTypeError, "metadata.a", "not bytes"),
        ({"a": np.int64(1)}, InvalidTypeError, "metadata.a", "not numpy.int64; pass value.tolist()"),
        ({"a": np.zeros(2)}, InvalidTypeError, "metadata.a", "not numpy.ndarray; pass value.tolist()"),
        ({"a": 1j}, InvalidTypeError, "metadata.a", "not complex"),
        ({"a": object()}, InvalidTypeError, "metadata.a", "not object"),
        ({"a": np.bool_(True)}, InvalidTypeError, "metadata.a", "not numpy.bool; pass value.tolist()"),
        ({"a": uuid.uuid4()}, InvalidTypeError, "metadata.a", "not uuid.UUID"),
        ({"a": 10**1000}, LimitExceededError, "metadata.a", "more than 1000 digits"),
        ({"a": -(10**1000)}, LimitExceededError, "metadata.a", "more than 1000 digits"),
        ({"a": "x" * 2**20}, LimitExceededError, "metadata", "metadata_bytes_max"),
        ({"a": ["x"] * 2**21}, LimitExceededError, "metadata", "metadata_bytes_max"),
    ],
)
def test_metadata_that_cannot_be_kept_is_refused(
    metadata: Any, error: type[PixelmemoryError], field: str, reason: str
) -> None:
    with pytest.raises(error) as caught:
        encode_metadata(metadata, OPTIONS)
    assert caught.value.field == field  # type: ignore[attr-defined]
    assert reason in str(caught.value)


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def test_depth() -> None:
    assert decode_metadata(encode_metadata(_nested(64), OPTIONS)) == _nested(64)
    for value in (_nested(65), {"a": [_nested(63)]}, _nested(50_000)):
        with pytest.raises(LimitExceededError, match="metadata_depth_max"):
            encode_metadata(value, OPTIONS)
    deepest = Options(metadata_depth_max=256)
    assert decode_metadata(encode_metadata(_nested(256), deepest)) == _nested(256)
    with pytest.raises(LimitExceededError, match="metadata_depth_max"):
        encode_metadata({"a": [_nested(254), (1,)]}, Options(metadata_depth_max=20))
    with pytest.raises(InvalidArgumentError, match="metadata_depth_max must not be more than 256"):
        Options(metadata_depth_max=257)


def test_endless_and_exploding_metadata_end() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(LimitExceededError):
        encode_metadata(endless, OPTIONS)
    exploding: list[Any] = []
    for _ in range(60):
        exploding = [exploding] * 10
    with pytest.raises(LimitExceededError, match="metadata_bytes_max"):
        encode_metadata({"a": exploding}, OPTIONS)


def test_as_many_digits_as_python_reads() -> None:
    options = Options(metadata_int_digits_max=4299)
    value = -(10**4298)
    assert decode_metadata(encode_metadata({"a": value}, options)) == {"a": value}
    with pytest.raises(LimitExceededError, match="4299 digits"):
        encode_metadata({"a": 10**4299}, options)
    with pytest.raises(InvalidArgumentError, match="metadata_int_digits_max must not be more than 4299"):
        Options(metadata_int_digits_max=4300)


# -- time

FIRST, LAST = dt.datetime.min, dt.datetime.max  # noqa: DTZ901 - what callers pass for "no bound"


def test_timestamps_are_microseconds_in_utc() -> None:
    assert check_timestamp(dt.datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=dt.UTC)) == 1_000_005
    east = dt.timezone(dt.timedelta(hours=5, minutes=30))
    assert check_timestamp(dt.datetime(1970, 1, 1, 5, 30, tzinfo=east)) == 0
    naive = dt.datetime(2024, 7, 1, 12)  # noqa: DTZ001 - a naive datetime is local time
    assert check_timestamp(naive) == int(naive.timestamp() * 1_000_000)


@given(st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30), timezones=st.just(dt.UTC)))  # noqa: DTZ001
def test_timestamps_come_back_exactly(value: dt.datetime) -> None:
    back = from_timestamp(check_timestamp(value))
    assert back == value
    assert back.tzinfo is dt.UTC


@pytest.mark.parametrize("value", ["2024-01-01", 1700000000, dt.date(2024, 1, 1), None])
def test_a_timestamp_must_be_a_datetime(value: object) -> None:
    with pytest.raises(InvalidTypeError, match="when must be a datetime"):
        check_timestamp(value, "when")


def test_timestamps_at_the_ends_of_the_calendar_are_refused() -> None:
    import pandas as pd  # type: ignore[import-untyped]

    for value in (FIRST, LAST, dt.datetime.max.replace(tzinfo=dt.UTC), pd.NaT):
        with pytest.raises(InvalidArgumentError):
            check_timestamp(value)


def test_time_ranges() -> None:
    one, two = (dt.datetime(2024, 1, day, tzinfo=dt.UTC) for day in (1, 2))
    assert check_time_range(None, None) == (None, None)
    assert check_time_range(one, one) == (check_timestamp(one), check_timestamp(one))
    assert check_time_range(one, two) == (check_timestamp(one), check_timestamp(two))
    start, end = check_time_range(FIRST, LAST)
    assert start is not None
    assert end is not None
    assert from_timestamp(start).year == 1
    assert from_timestamp(end).year == 9999
    with pytest.raises(InvalidArgumentError, match=r"start_time .* must not be after end_time"):
        check_time_range(two, one)
    with pytest.raises(InvalidTypeError, match="end_time must be a datetime, not str"):
        check_time_range(one, "2024")


# -- numbers


def test_limits() -> None:
    assert [check_limit(value) for value in (0, 1, np.int64(7), 10**30)] == [0, 1, 7, 2**63 - 1]
    with pytest.raises(InvalidArgumentError, match="limit must be at least 0, not -1"):
        check_limit(-1)
    for value in (True, False, 1.0, "5", None, np.array([1, 2])):
        with pytest.raises(InvalidTypeError, match="limit must be an integer"):
            check_limit(value)


def test_vectors_become_float32() -> None:
    import torch

    expected = struct.pack("<3f", 1.0, -0.5, 0.1)
    for value in (
        [1, -0.5, 0.1],
        (1, -0.5, 0.1),
        np.array([1, -0.5, 0.1]),
        np.array([1, -0.5, 0.1], dtype=">f4"),
        torch.tensor([1, -0.5, 0.1], requires_grad=True),
    ):
        assert check_vector(value, 3) == expected
    assert check_vector(torch.tensor([1, 2], dtype=torch.bfloat16), 2) == struct.pack("<2f", 1, 2)
    assert check_vector(np.array([1, 2], dtype="u1"), 2) == struct.pack("<2f", 1, 2)
    denormal = np.array([3, -5], dtype="f4") * np.finfo("f4").smallest_subnormal
    for kept in ([1e30, -1e-30], [3.4e38, 1.0], [1e-37, 1e-60], denormal):
        assert check_vector(kept, 2) == np.array(kept, dtype="<f4").tobytes(), "of any magnitude that float32 holds"


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        ([1.0, 2.0], InvalidArgumentError, "must have 3 numbers, not 2"),
        ([], InvalidArgumentError, "must have 3 numbers, not 0"),
        ([[1.0, 2.0, 3.0]], InvalidArgumentError, "must have one dimension, not 2"),
        ([0, 0.0, -0.0], InvalidArgumentError, "all zero"),
        ([1e-60, 0, 0], InvalidArgumentError, "too small for float32: its largest number is 1e-60"),
        ([1.3e-44, 0, 0], InvalidArgumentError, "too small for float32"),
        ([1.0, math.nan, 0], InvalidArgumentError, "finite"),
        ([1.0, math.inf, 0], InvalidArgumentError, "finite"),
        ([1e39, 0, 0], InvalidArgumentError, "finite numbers (as float32: up to 3.4e38)"),
        ([True, False, 1], InvalidTypeError, "numbers"),
        (["1", "2", "3"], InvalidTypeError, "numbers"),
        ("abc", InvalidTypeError, "must be a sequence of numbers, not str"),
        (b"abc", InvalidTypeError, "must be a sequence of numbers, not bytes"),
        (5.0, InvalidTypeError, "must be a sequence of numbers, not float"),
        ({1: 1.0}, InvalidTypeError, "must be a sequence of numbers, not dict"),
        ([1, None, 2], InvalidTypeError, "numbers"),
        ([1, [2], 3], InvalidTypeError, "flat"),
        ([1j, 2, 3], InvalidTypeError, "numbers"),
        (np.array([True, False, True]), InvalidTypeError, "numbers"),
    ],
)
def test_vectors_that_cannot_be_searched_are_refused(value: object, error: type[PixelmemoryError], reason: str) -> None:
    with pytest.raises(error) as caught:
        check_vector(value, 3, "entries[0].embedding")
    assert str(caught.value).startswith("entries[0].embedding ")
    assert reason in str(caught.value)


# -- entries


def test_an_entry_with_everything() -> None:
    entry = {
        "content": "text",
        "metadata": {"a": 1},
        "memory_id": "mine",
        "timestamp": dt.datetime(1970, 1, 2, tzinfo=dt.UTC),
        "embedding": [1.0, 0.0],
    }
    expected = CheckedEntry("mine", "text", b'{"a":1}', 86_400_000_000, struct.pack("<2f", 1, 0))
    assert check_entry(Rules(OPTIONS, None, 2), entry, "entries[0]") == expected


def test_an_entry_with_content_alone() -> None:
    bare = CheckedEntry(None, "", b"{}", None, None)
    assert check_entry(Rules(OPTIONS), {"content": ""}, "entries[0]") == bare
    nothing = {"content": "", "metadata": None, "memory_id": None, "timestamp": None, "embedding": None}
    assert check_entry(Rules(OPTIONS), nothing, "entries[0]") == bare


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", r"entries\[4\] must be a dict with 'content', not str"),
        ({}, r"entries\[4\] has no 'content'"),
        ({"metadata": {}}, r"entries\[4\] has no 'content'"),
        ({"content": "a", "meta": {}, 5: 1}, r"entries\[4\] has unknown keys: 'meta', 5; known are content, embedding"),
        ({"content": None}, r"entries\[4\]\.content must be a string, not None"),
        ({"content": "a", "metadata": []}, r"entries\[4\]\.metadata must be a dict"),
        ({"content": "a", "metadata": {"b": [{1}]}}, r"entries\[4\]\.metadata\.b\[0\] must not be a set"),
        ({"content": "a", "metadata": {"year": "x"}}, r"entries\[4\]\.metadata\.year breaks the schema"),
        ({"content": "a", "memory_id": ""}, r"entries\[4\]\.memory_id must not be empty"),
        ({"content": "a", "memory_id": uuid.uuid4()}, r"entries\[4\]\.memory_id must be a string, not uuid.UUID"),
        ({"content": "a", "timestamp": "now"}, r"entries\[4\]\.timestamp must be a datetime"),
        ({"content": "a", "embedding": [1.0]}, r"entries\[4\]\.embedding must have 2 numbers, not 1"),
    ],
)
def test_a_bad_entry_is_named(entry: object, message: str) -> None:
    with pytest.raises(PixelmemoryError, match=message):
        check_entry(Rules(OPTIONS, parse_schema({"year": int}), 2, has_model=True), entry, "entries[4]")


def test_a_single_add_is_named_by_its_arguments() -> None:
    with pytest.raises(InvalidTypeError, match=r"^content must be a string"):
        check_added(Rules(OPTIONS), 5, None, None, None, None)


def test_a_vector_needs_a_store_with_vectors() -> None:
    with pytest.raises(InvalidArgumentError, match="embedding was given, and this store has no vectors"):
        check_added(Rules(OPTIONS), "a", None, None, None, [1.0])
