import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.curves import TABLE, append_curve, append_session, continue_table, space_file
from benchmarks.search import Reached, _ratio_and_interval, _reached, main
from benchmarks.virtual_study import Moment
from fashion_study.errors import BadInputError
from tests.benchmarks.test_virtual_study import DESIGN, rising_table


def write(path: Path, design_digest: str = DESIGN.space_digest) -> Path:
    shutil.copy(space_file(TABLE), space_file(path))
    continue_table(path, replace(DESIGN, space_digest=design_digest))
    for version in (1, 2):
        append_session(path, {"training_version": version, "precision": "float32"})
    for curve in rising_table(12).curves:
        append_curve(path, curve)
    return path


def test_the_short_form_compares_every_main_strategy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, output = write(tmp_path / "curves.jsonl.gz"), tmp_path / "search.json"

    main(short=True, seeds=1, trials=6, table=table, output=output)

    sheet = json.loads(output.read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert "12 rows" in printed
    assert (sheet["rows"], sheet["trials"], sheet["n"]) == (12, 6, 1)
    names = {(each["sampler"], each["pruner"], each["workers"]) for each in sheet["strategies"]}
    assert {("random", "none", 1), ("tpe", "successive-halving", 8), ("random", "one epoch of 20", 1)} <= names
    for each in sheet["strategies"]:
        epochs, never = each["reached"]["0.010"]["epochs"], each["reached"]["0.010"]["never"]
        assert (epochs == [None] * 3) == (never == 1)
        assert never == 1 or 0 < epochs[1] < math.inf
        assert each["distance"][1] >= 0
    assert any(each["reached"]["0.005"]["never"] for each in sheet["strategies"])
    assert "never" in printed
    (mixed,) = [line["measured"] for line in sheet["lines"] if line["what"] == "the recordings mix"]
    assert mixed == "training version 1, 2"


def test_curves_of_a_space_that_has_changed_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "curves.jsonl.gz", design_digest="before")

    with pytest.raises(BadInputError, match=r"curves\.yaml: .* has changed since .* Restore the committed file"):
        main(table=table, output=tmp_path / "search.json")


def reached(*epochs: int | None) -> Reached:
    return _reached([None if each is None else Moment(each, float(each), 0.9) for each in epochs])


def test_a_ratio_stands_with_how_far_other_seeds_could_move_it() -> None:
    assert _ratio_and_interval(reached(*[300] * 20), reached(*[100] * 20)) == "3.0x (95%: 3.0 to 3.0)"

    wide = _ratio_and_interval(reached(*range(100, 500, 20)), reached(*range(50, 150, 5)))

    ratio, low, high = map(float, re.findall(r"[\d.]+(?=x| to|\))", wide))
    assert 1 < low < ratio < high < 10


def test_studies_that_never_reach_it_leave_the_ratio_s_end_open() -> None:
    assert "to inf" in _ratio_and_interval(reached(*[300] * 6, *[None] * 5), reached(*[100] * 11))
    assert _ratio_and_interval(reached(300), reached(None)) == "no median: never reached"
