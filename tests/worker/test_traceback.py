"""The promise of a worker's traceback: however long an error is, what is sent of it arrives whole or not at all."""

import os
import pickle
import random
import signal
import sys
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from fashion_study.text import MAX_TRACEBACK, truncated_traceback
from fashion_study.trial import FailReason, TrialResult, TrialState
from tests.support.processes import started_process

STOPS = 200
# A worker that fails again and again, at such a length as a trainer can send.
FAILING = """
import sys
from multiprocessing.connection import Connection
from tests.worker.test_traceback import failed
connection, result = Connection(int(sys.argv[1])), failed("x" * 2**20)
while True:
    connection.send(result)
"""


def failed(error: str) -> TrialResult:
    """Make the result of a trial that failed with an error."""
    try:
        raise ValueError(error)
    except ValueError:
        tags = {f"tag_{number}": "x" * 250 for number in range(20)}
        return TrialResult(
            3, 1, TrialState.FAILED, 2, reason=FailReason.ERROR, message=truncated_traceback(), tags=tags, seconds=1.0
        )


def test_a_short_traceback_is_kept_as_it_is() -> None:
    message = failed("the loss is a pear").message
    assert message.startswith("Traceback (most recent call last)")
    assert message.endswith("ValueError: the loss is a pear\n")
    assert "left out" not in message


@pytest.mark.parametrize("letter", ["x", "\n", "é", "\N{PEAR}", "\udce9"], ids=["x", "line", "two", "four", "none"])
def test_a_long_traceback_is_cut_to_fit_into_one_write(letter: str) -> None:
    result = failed(f"first{letter * 2**20}last")
    assert result.message.startswith("Traceback (most recent call last)")
    assert result.message.endswith("last\n")
    assert "bytes are left out here" in result.message
    assert len(result.message.encode(errors="backslashreplace")) < MAX_TRACEBACK
    assert len(pickle.dumps(result)) < 2**14


@pytest.mark.faults
def test_a_worker_stopped_in_a_write_leaves_no_half_message() -> None:
    ours, theirs = Pipe()
    words = [sys.executable, "-c", FAILING, str(theirs.fileno())]
    with started_process(words, pass_fds=[theirs.fileno()]) as worker, theirs:
        assert ours.poll(60)
        for _ in range(STOPS):
            received = read_for_a_moment(ours)
            worker.send_signal(signal.SIGSTOP)
            os.waitpid(worker.pid, os.WUNTRACED)
            # Everything that has been sent can be taken in, though its sender stands still.
            while ours.poll():
                received = ours.recv()
            assert received == failed("x" * 2**20)
            worker.send_signal(signal.SIGCONT)
        worker.kill()


def read_for_a_moment(connection: Connection) -> TrialResult:
    end = time.monotonic() + random.uniform(0.0, 0.003)
    while True:
        received: TrialResult = connection.recv()
        if time.monotonic() > end:
            return received
