import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from benchmarks.curves import TABLE, append_session, read_table, space_file
from benchmarks.record_curves import design_points, last_precision
from fashion_study.space.file import load_space
from fashion_study.trial import Precision
from tests.support.processes import started_process

COMMAND = [sys.executable, "-m", "benchmarks.record_curves", "--dataset", "digits", "--images", "100"]


def test_the_design_begins_with_the_baseline() -> None:
    space = load_space("baseline")

    points = design_points(space, 200, seed=0)

    assert len(points) == 201
    assert points[0] == {name: value for name, value in space.baseline.items() if name != "epochs"}
    for point in points:
        assert space.complete(point) == point | {"epochs": space.baseline["epochs"]}


def test_a_longer_design_begins_with_the_shorter_one() -> None:
    space = load_space("baseline")

    assert design_points(space, 300, seed=0)[:51] == design_points(space, 50, seed=0)


def test_a_prefix_of_the_design_is_spread_over_the_whole_space() -> None:
    points = design_points(load_space("baseline"), 40, seed=0)[1:]

    batches = Counter(point["batch_size"] for point in points)
    low_rates = sum(float(point["learning_rate"]) < (3e-5 * 1e-2) ** 0.5 for point in points)
    assert len(batches) == 6
    assert max(batches.values()) <= 10
    assert 18 <= low_rates <= 22


def test_a_recording_goes_on_in_the_precision_of_the_last_one(tmp_path: Path) -> None:
    table = tmp_path / "curves.jsonl.gz"
    assert last_precision(table) is Precision.FLOAT32
    for precision in ("float32", "bfloat16"):
        append_session(table, {"precision": precision})

    assert last_precision(table) is Precision.BFLOAT16


@pytest.mark.faults
@pytest.mark.timeout(1800)  # At the lowest priority, beside whatever else runs.
def test_a_killed_recording_resumes_and_leaves_no_process(tmp_path: Path) -> None:
    table = tmp_path / "curves.jsonl.gz"
    shutil.copy(space_file(TABLE), space_file(table))
    command = [*COMMAND, "--configurations", "3", "--workers", "2", "--output", str(table)]
    with started_process(command, stdout=subprocess.PIPE, text=True) as recorder:
        assert recorder.stdout is not None
        assert "0 of 4 recorded" in recorder.stdout.readline()
        assert recorder.stdout.readline().startswith("00")
        children = psutil.Process(recorder.pid).children(recursive=True)
        os.kill(recorder.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    first = read_table(table)
    table.write_bytes(table.read_bytes()[:-5])

    finished = subprocess.run(command, capture_output=True, text=True, check=True)

    assert f"{len(first.curves) - 1} of 4 recorded" in finished.stdout
    second = read_table(table)
    assert [curve.place for curve in second.curves] == [0, 1, 2, 3]
    assert {len(curve.accuracy) for curve in second.curves} == {20}
    assert len(second.sessions) == 2
    again = {curve.place: curve.accuracy for curve in second.curves}
    assert all(again[curve.place] == curve.accuracy for curve in first.curves)
