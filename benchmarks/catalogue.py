"""The benchmarks by name, in the order in which a run takes them; and running one of them."""

from __future__ import annotations

import importlib
import time
import traceback

import msgspec

from benchmarks.place import Place
from benchmarks.report import Figures, Outcome, WrongResultError, not_run

__all__ = ["BARS", "NAMES", "run_one"]

#: name -> the numbers of the bars that it measures
BARS: dict[str, tuple[int, ...]] = {
    "acknowledge": (1,),
    "bulk": (2,),
    "project": (3,),
    "searchable": (4,),
    "reads": (5,),
    "large": (3, 5),
    "growth": (6,),
    "rebuild": (7,),
    "namespaces": (8,),
    "gpu": (9,),
    "field": (),
}
NAMES = tuple(BARS)


def load(name: str) -> object:
    """The module of the benchmark ``name``; it imports what it measures."""
    return importlib.import_module(f"benchmarks.bars.{name}")


def run_one(name: str, place: Place) -> Outcome:
    """Run one benchmark here. One that fails, or whose result is wrong, has no figures: its bars say why."""
    started = time.perf_counter()
    try:
        figures: Figures = load(name).run(place)  # type: ignore[attr-defined]
    except WrongResultError as error:
        return failed(name, f"wrong result: {error}", time.perf_counter() - started)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other benchmarks go on, and the report has it
        traceback.print_exc()
        return failed(name, f"failed: {type(error).__name__}: {error}", time.perf_counter() - started)
    return Outcome(
        name=name,
        seconds=time.perf_counter() - started,
        bars=figures.bars(),
        figures=msgspec.to_builtins(figures, str_keys=True),
    )


def failed(name: str, why: str, seconds: float = 0.0) -> Outcome:
    """A benchmark without figures."""
    why = " ".join(why.split())[:200]
    bars = [not_run(number, f"benchmark {name}", why) for number in BARS[name]]
    return Outcome(name=name, seconds=seconds, bars=bars, figures={}, error=why)
