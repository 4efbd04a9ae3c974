"""What a command prints to goes away, is full or is closed: the command goes on, its exit code says what it decided."""

import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import started_process

ROOT = Path(__file__).parents[2]
# A command as every entry point is one: it prints, opens a file, says something on standard error and decides.
PROGRAM = """
import sys
from pathlib import Path
import rich
from typer import Exit
from experiments._entry import run

def main(exit_code: int, lines: int = 20_000) -> None:
    rich.print("\u2026 \u00b1 caf\u00e9")
    for number in range(lines):
        print("line", number)
    print("to be read", file=sys.stderr)
    with Path(sys.executable).open() as opened:
        assert opened.fileno() > 2
    raise Exit(exit_code)

run(main)
"""


def command(*words: object) -> str:
    return shlex.join([sys.executable, "-c", PROGRAM, *map(str, words)])


def run(line: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"} | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


FULL = "Warning: Standard output cannot be written: {}. What is not written is dropped.\nto be read\n"


@pytest.mark.parametrize("exit_code", [0, 1])
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{} | head -1", "to be read\n"),
        ("PYTHONUNBUFFERED=1 {} | head -1", "to be read\n"),
        ("{} > /dev/full", FULL.format("No space left on device")),
        ("{} > /dev/full 2>&1", ""),
        ("ulimit -f 1; {} > limited", FULL.format("File too large")),
        ("{} >&-", "to be read\n"),
        ("{} 2>&-", ""),
        ("{} <&- >&- 2>&-", ""),
        ("{} > /dev/null <&-", "to be read\n"),
        ("{} 2>&1 | true", ""),
        ("PYTHONIOENCODING=ascii {} --lines 0", "to be read\n"),
    ],
)
def test_the_exit_code_says_what_was_decided(line: str, said: str, exit_code: int, tmp_path: Path) -> None:
    done = run(f"cd {tmp_path}; {line.format(command(exit_code))}")
    assert (done.returncode, done.stderr) == (exit_code, said)


def test_a_program_that_reads_slowly_gets_every_line() -> None:
    ours, theirs = os.pipe()
    # As a program leaves a pipe that it shares with others, Node.js for instance.
    os.set_blocking(theirs, False)
    with started_process(shlex.split(command(0)), cwd=ROOT, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        with os.fdopen(ours) as reader:
            lines = reader.read().splitlines()
    assert process.returncode == 0
    assert lines[1:] == [f"line {number}" for number in range(20_000)]


def test_a_terminal_that_vanishes_fails_no_command() -> None:
    ours, theirs = pty.openpty()
    with started_process(shlex.split(command(1)), cwd=ROOT, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.read(ours, 10)
        os.close(ours)
    assert process.returncode == 1


def test_the_list_of_commands_may_go_unread() -> None:
    for line in ("{} > /dev/full", "{} | true", "{} >&-"):
        done = run(line.format(f"{shlex.quote(sys.executable)} -m experiments"))
        assert done.returncode == 0, done.stderr
        assert "Exception" not in done.stderr
