"""Plots of a run as SVG files; the one module that imports matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import Bar, FieldRow, Run

__all__ = ["write_plots"]

_OPERATIONS = (
    ("add_one_ms", "add one"),
    ("add_visible_ms", "add, until visible"),
    ("search_ms", "search"),
    ("filtered_ms", "filtered search"),
    ("get_ms", "get"),
    ("update_ms", "update"),
    ("delete_ms", "delete"),
)
_OURS, _OTHERS = "#1f5fa8", "#b8bec7"


def write_plots(run: Run, folder: Path) -> list[Path]:
    """``field.svg``, ``growth.svg`` and ``ratios.svg``, as far as the run measured them."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "pixelmemory", "font.size": 9, "figure.constrained_layout.use": True})
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if field := [each for each in run.field() if not each.why]:
        written.append(_save(_field(field), folder / "field.svg"))
    growth = next((each.figures for each in run.outcomes if each.name == "growth" and each.figures), None)
    if growth is not None:
        written.append(_save(_growth(growth["costs"]), folder / "growth.svg"))
    if bars := [bar for bar in run.bars() if bar.ratio is not None]:
        written.append(_save(_ratios(bars), folder / "ratios.svg"))
    return written


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    return path


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _field(field: list[FieldRow]) -> Any:
    """One panel an operation: milliseconds, logarithmic, shorter is better."""
    figure, panels = _figure(14, 3.2, len(_OPERATIONS))
    for panel, (name, title) in zip(panels, _OPERATIONS, strict=True):
        rows = [(each.name, getattr(each, name)) for each in reversed(field) if getattr(each, name) is not None]
        colours = [_OURS if each == "pixelmemory" else _OTHERS for each, _ in rows]
        panel.barh([each for each, _ in rows], [value for _, value in rows], color=colours)
        panel.set_xscale("log")
        panel.set_title(title)
        panel.set_xlabel("ms, p50")
    return figure


def _growth(costs: list[dict[str, float]]) -> Any:
    figure, (panel,) = _figure(6, 3.5)
    for name, title in (("add_ms", "add"), ("visible_ms", "until visible"), ("get_ms", "get"), ("list_ms", "list")):
        panel.plot([each["events"] for each in costs], [each[name] for each in costs], marker="o", label=title)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("events in the log")
    panel.set_ylabel("ms, p50")
    panel.legend()
    return figure


def _ratios(bars: list[Bar]) -> Any:
    figure, (panel,) = _figure(9, 0.3 * len(bars) + 1)
    labels = [f"{bar.number}: {bar.name}"[:70] + f"  (wanted {bar.wanted})" for bar in reversed(bars)]
    colours = ["#3a8f4d" if bar.met else "#c0504d" for bar in reversed(bars)]
    panel.barh(range(len(bars)), [bar.ratio or 0.0 for bar in reversed(bars)], color=colours)
    panel.set_yticks(range(len(bars)), labels)
    panel.set_xscale("log")
    panel.set_xlabel("measured / baseline; green: met")
    return figure
