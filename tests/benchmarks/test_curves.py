from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.curves import Curve, Design, append_curve, append_session, continue_table, read_table
from fashion_study.errors import DataError

DESIGN = Design("baseline", "a digest", 3, "another", 100, "a third", 0)
CURVES = (
    Curve(0, {"filters_1": 32, "learning_rate": 1e-4}, 7, (0.5, 0.6, 0.7), (1.0, 0.9, 0.8), (3.0, 2.0, 2.0)),
    Curve(1, {"filters_1": 48, "learning_rate": 1e-2}, 8, (0.5,), (2.0,), (3.0, 1.0)),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "curves.jsonl.gz"
    assert continue_table(path, DESIGN) == set()
    append_session(path, {"commit": "abc"})
    for curve in CURVES:
        append_curve(path, curve)
    return path


def test_what_is_recorded_comes_back(path: Path) -> None:
    table = read_table(path)

    assert table.design == DESIGN
    assert table.sessions == ({"commit": "abc"},)
    assert table.curves == CURVES
    assert [curve.is_diverged for curve in table.curves] == [False, True]
    assert table.best_from(1) == 0.7


@pytest.mark.parametrize("missing", [1, 9, 60])
def test_an_incomplete_entry_is_recorded_again(path: Path, missing: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-missing])

    assert read_table(path).curves == CURVES[:1]
    assert continue_table(path, DESIGN) == {0}
    append_curve(path, CURVES[1])

    assert path.read_bytes() == whole


def test_a_table_of_another_design_is_refused_and_left_as_it_is(path: Path) -> None:
    before = path.read_bytes()

    with pytest.raises(DataError, match="differs in epochs, seed"):
        continue_table(path, replace(DESIGN, epochs=20, seed=9))

    assert path.read_bytes() == before


def test_a_table_without_curves_says_how_to_record_some(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl.gz"
    with pytest.raises(DataError, match=r"found no file.*benchmarks.record_curves"):
        read_table(path)
    continue_table(path, DESIGN)

    with pytest.raises(DataError, match=r"found 0 curves.*benchmarks.record_curves"):
        read_table(path)
