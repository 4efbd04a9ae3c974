import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale


def made_up(size: int, workers: tuple[int, ...]) -> dict[str, Any]:
    """Cost as much as there are trials, with a memory of 2 KB a trial that is taken up and 3 KB one that has run."""

    def marks(n: int) -> dict[str, float]:
        return {"p50": 1.0, "p95": size / 1000, "max": 9.0, "cpu_p50": 1.0, "cpu_p95": size / 1000, "n": n}

    runs = [
        {
            "sampler": sampler,
            "workers": slots,
            "resumed_ms": size / 10,
            "trials_per_s": 5.0,
            "held_kb": 2.0 * size,
            "held_at_the_end_kb": 3.0 * size,
            "times": {name: marks(40 + slots) for name in (*scale.ENGINE, *scale.TRACKER)},
        }
        for sampler in scale.SAMPLERS
        for slots in workers
    ]
    reads = {"times": {name: marks(20) for name in ("best", scale.LOGGED_ONCE)}}
    return {"size": size, "grown_s": 1.0, "store_mb": {"optuna": 1.0, "mlflow": 2.0}, "runs": runs, "reads": reads}


def lines_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **form: bool) -> dict[str, dict[str, Any]]:
    monkeypatch.setattr(scale, "_measured", made_up)
    output = tmp_path / "scale.json"
    scale.main(**form, output=output)
    return {line["what"]: line for line in json.loads(output.read_text(encoding="utf-8"))["lines"]}


def test_ten_thousand_trials_have_goals_and_more_a_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(tmp_path, monkeypatch, full=True)

    assert lines["ask tpe, 10,000 trials, p95"]["goal"] == "150 ms"
    assert lines["best, 10,000 trials, p95"]["n"] == 20
    assert lines["coordinator's memory, 10,000 trials, highest"]["measured"] == "3.0 KB a trial"
    assert lines["coordinator's memory, 10,000 trials, highest"]["goal"] == "8 KB a trial"
    largest = [line for what, line in lines.items() if "100,000 trials" in what]
    assert len(largest) * 2 == len(lines)
    assert {line["goal"] for line in largest} == {""}
    assert "10.0 times that of 10,000" in lines["ask tpe, 100,000 trials, p95"]["measured"]


def test_what_is_logged_once_and_what_is_smaller_has_no_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines_of(tmp_path, monkeypatch)[f"{scale.LOGGED_ONCE}, 10,000 trials, p95"]["goal"] == ""
    assert {line["goal"] for line in lines_of(tmp_path, monkeypatch, short=True).values()} == {""}
