"""The table of faults: what was injected how often, and which promises were kept. Printed when the tests have ended.

A test says what it has injected with `record_fault`, once it has checked what it names. With `--faults-full` the tests
inject everything that `docs/reliability.md` speaks of, and where all of them pass the table is written there.
"""

import os
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
TABLE = re.compile(r"(<!-- faults: begin -->\n).*(<!-- faults: end -->)", re.DOTALL)
PROMISES = tuple(f"I{number}" for number in range(1, 9))
HEADER = ("fault", "times", "promises kept", "of which")


class RecordFault(Protocol):
    """Say that a fault was injected so many times, and which promises (`"I1 I2"`) were found kept after each.

    `phases` counts what was going on when it came: `{"epoch": 3, "tell": 1}`.
    """

    def __call__(self, fault: str, promises: str, times: int = 1, phases: Mapping[str, int] | None = None) -> None: ...


@dataclass
class Row:
    """Hold one line of the table."""

    promises: set[str]
    phases: Counter[str]
    times: int = 0

    def cells(self, fault: str) -> tuple[str, str, str, str]:
        phases = ", ".join(f"{phase} {count}" for phase, count in self.phases.items())
        return fault, f"{self.times:,}", " ".join(sorted(self.promises)), phases


class FaultTable:
    """Gather what the tests of every process have recorded."""

    def __init__(self, is_to_be_written: bool) -> None:
        self._is_to_be_written = is_to_be_written
        self._began = time.monotonic()
        self._rows: dict[str, Row] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take from a test that has passed what it has injected."""
        if report.when != "call" or not report.passed:
            return
        for name, value in report.user_properties:
            if name == "fault" and isinstance(value, dict):
                self._add(value)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
        """Show the table; write it down where everything was injected and every test has passed."""
        if not self._rows:
            return
        terminalreporter.section("faults")
        for line in self._lines():
            terminalreporter.write_line(line)
        if self._is_to_be_written and exitstatus == pytest.ExitCode.OK:
            page = PAGE.read_text(encoding="utf-8")
            written = "\n".join(("", *self._lines(), "", ""))
            PAGE.write_text(TABLE.sub(lambda found: found[1] + written + found[2], page), encoding="utf-8")
            terminalreporter.write_line(f"\nWritten to {PAGE.relative_to(ROOT)}.")

    def _add(self, fault: Mapping[str, object]) -> None:
        row = self._rows.setdefault(str(fault["fault"]), Row(set(), Counter()))
        row.times += int(str(fault["times"]))
        row.promises |= set(str(fault["promises"]).split())
        for phase, count in dict(fault["phases"]).items():  # type: ignore[call-overload]
            row.phases[phase] += count

    def _lines(self) -> Iterable[str]:
        yield from (f"| {' | '.join(cells)} |" for cells in (HEADER, ("---", "---:", "---", "---")))
        yield from (f"| {' | '.join(row.cells(fault))} |" for fault, row in sorted(self._rows.items()))
        yield ""
        total = sum(row.times for row in self._rows.values())
        yield f"{total:,} faults in {time.monotonic() - self._began:,.0f} s, {_machine()}."


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch of `make test-faults-full`."""
    parser.addoption(
        "--faults-full", action="store_true", help="inject hundreds of faults, and write docs/reliability.md"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Gather in the process that the user has started: with pytest-xdist the others send it their reports."""
    if not hasattr(config, "workerinput"):
        # A part of the tests must not write down a part of the table.
        is_all = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
        config.pluginmanager.register(FaultTable(is_all and config.getoption("--faults-full")))


@pytest.fixture
def record_fault(request: pytest.FixtureRequest) -> RecordFault:
    """Give the function with which a test says what it has injected and found kept."""

    def record(fault: str, promises: str, times: int = 1, phases: Mapping[str, int] | None = None) -> None:
        unknown = set(promises.split()) - set(PROMISES)
        assert not unknown, f"{unknown} are none of {PROMISES}"
        entry = {"fault": fault, "promises": promises, "times": times, "phases": dict(phases or {})}
        request.node.user_properties.append(("fault", entry))

    return record


@pytest.fixture(scope="session")
def is_full(request: pytest.FixtureRequest) -> bool:
    """Say whether everything is to be injected, rather than a sample."""
    return bool(request.config.getoption("--faults-full"))


def _machine() -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    return (
        f"on {datetime.now(UTC):%Y-%m-%d}, commit {commit or 'unknown'}, {cores} cores ({_processor()}), "
        f"Python {platform.python_version()}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    known = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return known[1] if known else platform.machine()
