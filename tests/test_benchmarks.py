"""Each benchmark in a tiny form, with its result checked."""

from __future__ import annotations

from benchmarks import acknowledge


def test_acknowledge() -> None:
    figures = acknowledge.main(["--events", "64", "--tasks", "8", "--json"])
    assert figures["counts"] == {"one": 128, "many": 640, "bulk": 5000}
    assert 0 < figures["bare_p50_us"] < figures["one_p50_us"] * 1000
    assert figures["many_to_sqlite"] > 0
