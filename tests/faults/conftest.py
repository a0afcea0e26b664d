"""The report of the fault battery."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.fault_report import LONG_FORM, FaultReport

_REPORT = pytest.StashKey[FaultReport]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = FaultReport()


@pytest.fixture(scope="session")
def fault_report(pytestconfig: pytest.Config) -> FaultReport:
    """The run's counters: ``fault_report.add(kind, n)`` for each fault, ``fault_report.judge(verdict)`` after it."""
    return pytestconfig.stash.setdefault(_REPORT, FaultReport())


@pytest.fixture(autouse=True)
def _good_verdicts(fault_report: FaultReport) -> Iterator[None]:
    """A verdict that found something fails its test, whatever the test made of it."""
    found = fault_report.total._replace(acknowledged=0)
    yield
    assert fault_report.total._replace(acknowledged=0) == found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash.get(_REPORT, None)
    if report is not None and (lines := report.lines()):
        terminalreporter.section(f"fault battery, {'long' if LONG_FORM else 'short'} form")
        for line in lines:
            terminalreporter.write_line(line)
