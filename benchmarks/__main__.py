"""Run the benchmarks and print the table of bars.

    python -m benchmarks [--only NAME ...] [--size tiny|small|full] [--json FILE|-] [--markdown] [--plots FOLDER]
                         [--docs]
    python -m benchmarks --profile NAME

Each benchmark runs in a process of its own, one after the other, with one Pixeltable for all of them in a temporary
folder. Progress goes to stderr, the tables to stdout.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.catalogue import NAMES, failed, run_one
from benchmarks.place import Place, environment, stop_postgres
from benchmarks.report import Outcome, Run, bars_table, field_table

ROOT = Path(__file__).parent.parent
#: what ``--docs`` writes: a run, as it is and as Markdown, and its plots
DOCS_RUN, DOCS_TABLES, DOCS_PLOTS = (
    ROOT / "docs" / name for name in ("generated/benchmarks.json", "generated/benchmarks.md", "plots")
)
SIZES = ("tiny", "small", "full")
#: a benchmark that takes longer is ended, and said to have been
LIMIT_SECONDS = {"tiny": 240, "small": 600, "full": 1800}


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures Pixelmemory beside its baselines and prints the bars."
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"some of: {', '.join(NAMES)}")
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="full",
        help="full: the sizes that the bars are about, 20 minutes or so on two cores (default); small: 4 minutes; tiny",
    )
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; - for stdout, without tables")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="also write plots there, as SVG")
    parser.add_argument("--docs", action="store_true", help="write the run, its tables and its plots into docs/")
    parser.add_argument("--folder", type=Path, help="where to write; the disk is measured too (default: temporary)")
    parser.add_argument("--profile", choices=NAMES, metavar="NAME", help="run one and print where its CPU time goes")
    # how this program calls itself
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a benchmark failed, 0 otherwise: a bar that is not met is a result."""
    given = _arguments(arguments)
    if given.child is not None:
        _child(given.child, Place(given.home, given.size))
        return 0
    with tempfile.TemporaryDirectory(
        prefix="pixelmemory-bench-", dir=given.folder, ignore_cleanup_errors=True
    ) as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # PostgreSQL runs as another user where this runs as root
        os.environ.update(environment(folder))
        try:
            if given.profile is not None:
                return _profile(given.profile, Place(folder, given.size))
            run = _run(given, folder)
        finally:
            stop_postgres(folder)
    _report(run, given)
    return int(any(each.error for each in run.outcomes))


def _profile(name: str, place: Place) -> int:
    from benchmarks.profiling import profiling

    with profiling() as profiles:
        outcome = run_one(name, place)
    print(bars_table(outcome.bars), end="\n\n")
    print(profiles.text())
    return int(bool(outcome.error))


def _child(name: str, place: Place) -> None:
    """Run one benchmark in this process, which was started for it."""
    if name == "machine":
        from benchmarks.machine import describe

        answer: object = describe(place.folder)
    else:
        answer = run_one(name, place)
    (place.folder / f"{name}.json").write_bytes(msgspec.json.encode(answer))


def _start(name: str, folder: Path, size: str) -> str:
    """Run one benchmark in a process of its own. Returns why it did not come to an end, if so."""
    command = [sys.executable, "-m", "benchmarks", "--child", name, "--home", str(folder), "--size", size]
    process = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, start_new_session=True)
    try:
        process.wait(timeout=LIMIT_SECONDS[size])
    except subprocess.TimeoutExpired:
        return f"took longer than {LIMIT_SECONDS[size]} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "" if process.returncode == 0 else f"its process ended with {process.returncode}"


def _run(given: argparse.Namespace, folder: Path) -> Run:
    started = time.perf_counter()
    _tell("machine")
    if why := _start("machine", folder, given.size):
        raise SystemExit(f"Pixeltable does not start here: {why}")
    machine = msgspec.json.decode((folder / "machine.json").read_bytes(), type=dict[str, str])
    outcomes = []
    for name in given.only or NAMES:
        _tell(name)
        begun = time.perf_counter()
        if why := _start(name, folder, given.size):
            outcomes.append(failed(name, why, time.perf_counter() - begun))
        else:
            outcomes.append(msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=Outcome))
        _tell(f"{name}: {outcomes[-1].seconds:.0f} s {outcomes[-1].error}")
    command = " ".join(["python -m benchmarks", f"--size {given.size}", *_only(given)])
    return Run(
        command=command, size=given.size, seconds=time.perf_counter() - started, machine=machine, outcomes=outcomes
    )


def _only(given: argparse.Namespace) -> list[str]:
    return [f"--only {' '.join(given.only)}"] if given.only else []


def _tell(text: str) -> None:
    print(f"-- {text}", file=sys.stderr, flush=True)


def _report(run: Run, given: argparse.Namespace) -> None:
    """Print and write what was asked for."""
    if given.docs:
        DOCS_RUN.write_text(msgspec.json.format(msgspec.json.encode(run)).decode() + "\n")
        DOCS_TABLES.write_text(report(run, markdown=True) + "\n")
        given.plots = DOCS_PLOTS
    if given.json is not None:
        text = msgspec.json.format(msgspec.json.encode(run)).decode()
        if given.json == "-":
            print(text)
        else:
            Path(given.json).write_text(text + "\n")
    if given.json != "-":
        print(report(run, markdown=given.markdown))
    if given.plots is not None:
        from benchmarks.plots import write_plots

        for path in write_plots(run, given.plots):
            _tell(str(path))


def report(run: Run, *, markdown: bool = False) -> str:
    """The machine, the bars, the field: what docs/generated/benchmarks.md holds."""
    bars = run.bars()
    parts = [f"`{run.command}`, {run.seconds:.0f} s." if markdown else f"{run.command}, {run.seconds:.0f} s"]
    if run.size != "full":
        parts.append(f"The size is {run.size}: the bars are about larger ones, so these verdicts are indications.")
    described = [f"{name}: {value}" for name, value in run.machine.items()]
    parts.append("\n".join(f"- {line}" for line in described) if markdown else "\n".join(described))
    if bars:
        judged = [bar for bar in bars if bar.met is not None]
        met = sum(bar.met is True for bar in judged)
        parts += [
            bars_table(bars, markdown=markdown),
            f"{met} of {len(judged)} met, {sum(bool(bar.why) for bar in bars)} not run.",
        ]
    if field := run.field():
        rows, calls = field[0].rows, field[0].calls
        parts += [
            f"The field: {rows:,} rows, medians of {calls} calls; the operations of all stores took turns.",
            field_table(field, markdown=markdown),
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
