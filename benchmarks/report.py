"""What a run reports: bars, the machine, and both as text, Markdown or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

__all__ = [
    "Bar",
    "FieldRow",
    "Figures",
    "Outcome",
    "Run",
    "WrongResultError",
    "bars_table",
    "check",
    "field_table",
    "not_run",
    "table",
]


class WrongResultError(Exception):
    """A benchmark's result did not check out: its figures mean nothing and are not reported."""


def check(condition: bool, what: str) -> None:
    """Raises WrongResultError with ``what`` unless ``condition``."""
    if not condition:
        raise WrongResultError(what)


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was promised, and what came."""

    #: of the bar, 1 to 9
    number: int
    #: what was measured, as a sentence's subject
    name: str
    #: the figure, with its unit
    measured: str
    #: what stood beside it in the same run, with its figure
    baseline: str = "-"
    #: rows, dimensions, rounds and calls (n)
    sizes: str = ""
    #: measured by baseline; None where the bar is a plain figure
    ratio: float | None = None
    wanted: str = ""
    #: None: not run, for the reason in ``why``; or there is no limit, and the figure is stated
    met: bool | None = None
    #: why it was not run
    why: str = ""

    @property
    def verdict(self) -> str:
        if self.met is None:
            return f"not run ({self.why})" if self.why else "stated"
        return "met" if self.met else "not met"


def not_run(number: int, name: str, why: str, wanted: str = "") -> Bar:
    """A bar that this machine or this size cannot measure."""
    return Bar(number=number, name=name, measured="-", wanted=wanted, why=why)


class FieldRow(msgspec.Struct, frozen=True, kw_only=True):
    """One contender in the table of the field. Milliseconds are medians; None: it does not offer it."""

    name: str
    version: str
    rows: int
    add_one_ms: float | None = None
    #: until a read shows it
    add_visible_ms: float | None = None
    bulk_rows_per_second: float | None = None
    search_ms: float | None = None
    recall: float | None = None
    filtered_ms: float | None = None
    get_ms: float | None = None
    update_ms: float | None = None
    delete_ms: float | None = None
    #: calls behind each median
    calls: int = 0
    why: str = ""


class Figures(Protocol):
    """What a benchmark returns: a struct of figures that knows its bars."""

    def bars(self) -> list[Bar]: ...


class Outcome(msgspec.Struct, kw_only=True):
    """One benchmark of a run."""

    name: str
    seconds: float
    bars: list[Bar]
    figures: dict[str, Any]
    #: why it has no figures
    error: str = ""


class Run(msgspec.Struct, kw_only=True):
    """A whole run."""

    command: str
    size: str
    seconds: float
    machine: dict[str, str]
    outcomes: list[Outcome]

    def bars(self) -> list[Bar]:
        return sorted((bar for each in self.outcomes for bar in each.bars), key=lambda bar: bar.number)

    def field(self) -> list[FieldRow]:
        rows = next((each.figures.get("contenders") for each in self.outcomes if each.name == "field"), None)
        return msgspec.convert(rows or [], list[FieldRow])


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """Columns as wide as their widest cell; Markdown has the same with bars between them."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    if markdown:
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, rule, *rows)
    )


def bars_table(bars: Sequence[Bar], *, markdown: bool = False) -> str:
    head = ("bar", "what", "measured", "beside", "sizes", "ratio", "wanted", "")
    rows = [
        (
            str(bar.number),
            bar.name,
            bar.measured,
            bar.baseline,
            bar.sizes,
            "-" if bar.ratio is None else f"{bar.ratio:.2f}",
            bar.wanted,
            bar.verdict,
        )
        for bar in bars
    ]
    return table(head, rows, markdown=markdown)


def field_table(field: Sequence[FieldRow], *, markdown: bool = False) -> str:
    head = (
        "store",
        "add one ms",
        "until visible ms",
        "bulk rows/s",
        "search ms",
        "recall@10",
        "filtered ms",
        "get ms",
        "update ms",
        "delete ms",
    )
    rows = []
    for each in field:
        figures = (
            each.add_one_ms,
            each.add_visible_ms,
            each.bulk_rows_per_second,
            each.search_ms,
            each.recall,
            each.filtered_ms,
            each.get_ms,
            each.update_ms,
            each.delete_ms,
        )
        name = f"{each.name} {each.version}".strip()
        if each.why:
            rows.append((f"{name}: {each.why}", *("-" for _ in figures)))
            continue
        rows.append((name, *("-" if figure is None else _figure(figure) for figure in figures)))
    return table(head, rows, markdown=markdown)


def _figure(value: float) -> str:
    """Three digits are all that a median here is worth."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
