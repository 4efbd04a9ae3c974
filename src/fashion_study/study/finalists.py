"""The ranked trials of a study, and its finalists: the best trained again, so that luck does not choose the model."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from fashion_study.space.space import SearchSpace
from fashion_study.statistics import student_interval, student_lower_bound
from fashion_study.store.checkpoints import Checkpoints
from fashion_study.store.trials import MAX_RETRIES, TrialRecord
from fashion_study.study.loop import TrackedSource, Tracker
from fashion_study.tracking.attempt import Attempt
from fashion_study.trial import AttemptLost, ParamValue, Precision, TrialResult, TrialSpec, TrialState, trial_seed

if TYPE_CHECKING:
    import pandas as pd

# Of the states in a ranking.
ORDER = (
    TrialState.COMPLETE,
    TrialState.PAUSED,
    TrialState.PRUNED,
    TrialState.RUNNING,
    TrialState.WAITING,
    TrialState.FAILED,
)
DEFAULT_FINALISTS = 3
DEFAULT_REPEATS = 3
# What MLflow calls the run of a repeat that is not trained again.
ENDED = ("FINISHED", "FAILED")


@dataclass(frozen=True)
class Finalist:
    """A trial that was trained again: the objective and the run of each repeat that is complete."""

    trial: int
    params: Mapping[str, ParamValue]
    objectives: tuple[float, ...]
    run_ids: tuple[str, ...]

    @property
    def mean(self) -> float | None:
        """Return the mean objective, None without a complete repeat."""
        return mean(self.objectives) if self.objectives else None

    @property
    def sd(self) -> float | None:
        """Return the standard deviation of the objectives, None for fewer than two."""
        return stdev(self.objectives) if len(self.objectives) > 1 else None

    @property
    def lower_bound(self) -> float | None:
        """Return the one-sided 95 % lower confidence bound of the mean (Student's t), None for fewer than two."""
        return student_lower_bound(self.objectives) if len(self.objectives) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the two-sided 95 % confidence interval of the mean (Student's t), None for fewer than two."""
        return student_interval(self.objectives) if len(self.objectives) > 1 else None

    @property
    def median_run(self) -> str | None:
        """Return the run of the repeat with the median objective, the lower one of two."""
        ranked = sorted(zip(self.objectives, self.run_ids, strict=True))
        return ranked[(len(ranked) - 1) // 2][1] if ranked else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self) | {name: getattr(self, name) for name in ("mean", "sd", "lower_bound", "interval")}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Finalist":
        """Return what `as_dict` was made of."""
        return cls(entry["trial"], entry["params"], tuple(entry["objectives"]), tuple(entry["run_ids"]))


@dataclass(frozen=True)
class FinalistPlan:
    """Which trials are trained again, and how often; `note` says why that is less than what was asked for."""

    trials: tuple[TrialRecord, ...]
    repeats: int
    note: str | None = None

    @property
    def total(self) -> int:
        """Count the trainings."""
        return len(self.trials) * self.repeats


def rank(records: Iterable[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Sort trials: complete ones by objective, then paused and pruned ones by how far and how well they went."""

    def key(record: TrialRecord) -> tuple[float, ...]:
        reached = record.reached if record.objective is None else 0
        return ORDER.index(record.state), -reached, -(record.value or 0.0), record.number

    return tuple(sorted(records, key=key))


def table(ranked: Sequence[TrialRecord]) -> "pd.DataFrame":
    """Turn ranked trials into a table, one row each, the hyperparameters as columns of their own."""
    import pandas as pd

    names = dict.fromkeys(name for record in ranked for name in record.params)
    columns = {
        "rank": range(1, len(ranked) + 1),
        "trial": [record.number for record in ranked],
        "state": [str(record.reason or record.state) for record in ranked],
        "objective": [record.objective for record in ranked],
        **{name: [record.params.get(name) for record in ranked] for name in names},
        "epochs_run": [record.reached for record in ranked],
        "seconds": [None if record.seconds is None else round(record.seconds, 1) for record in ranked],
        "run_id": [record.run_id for record in ranked],
    }
    return pd.DataFrame(columns)


def plan_finalists(
    records: Iterable[TrialRecord],
    finalists: int,
    repeats: int,
    known: Iterable[Attempt] = (),
    *,
    epochs: float = math.inf,
    epochs_in_time: float = math.inf,
) -> FinalistPlan:
    """Choose the best complete trials to train again, as many and as often as both limits allow.

    All repeats together have so many `epochs`, and those that are not in `known`, from earlier starts, no more than
    `epochs_in_time`. Fewer trials come before fewer repeats: two repeats say next to nothing of their spread. `records`
    are ranked, the best first.
    """
    done = {(run.trial, run.repeat) for run in known if run.status in ENDED}
    chosen = tuple(record for record in records if record.state is TrialState.COMPLETE)[:finalists]
    asked = f"{finalists} finalists with {repeats} repeats"
    note = None if len(chosen) == finalists else f"{asked} were asked; {len(chosen)} trials are complete"
    by_time = f"{asked} do not fit the time left; {{}} can be trained"
    by_epochs = (
        f"{asked} would train more epochs than all trials did ({epochs:.0f}); {{}} fit. "
        "Ask for more with --finalists and --repeats"
    )
    shortfall = by_time if epochs_in_time < epochs else by_epochs
    for fewer in range(repeats, min(repeats, 2) - 1, -1):
        for count in range(len(chosen), 0, -1):
            wanted = [(trial, repeat) for trial in chosen[:count] for repeat in range(1, fewer + 1)]
            # A repeat trains what a trial has taken over, too.
            missing = sum(trial.reached for trial, repeat in wanted if (trial.number, repeat) not in done)
            if sum(trial.reached for trial, _ in wanted) <= epochs and missing <= epochs_in_time:
                is_all = (count, fewer) == (len(chosen), repeats)
                return FinalistPlan(
                    chosen[:count], fewer, note if is_all else shortfall.format(f"{count} with {fewer}")
                )
    return FinalistPlan((), repeats, shortfall.format("none") if chosen else note)


def choose(finalists: Iterable[Finalist]) -> Finalist | None:
    """Return the finalist with the highest lower bound of its mean; None where no repeat is complete.

    Where repeats failed and only one is left there is no bound, and such a finalist comes after those with one.
    """
    return next((finalist for finalist in rank_finalists(finalists) if finalist.objectives), None)


def rank_finalists(finalists: Iterable[Finalist]) -> tuple[Finalist, ...]:
    """Sort finalists by the lower bound of their mean, then by the mean, the best first."""

    def key(finalist: Finalist) -> tuple[float, float, int]:
        bound, average = (-math.inf if each is None else each for each in (finalist.lower_bound, finalist.mean))
        return -bound, -average, finalist.trial

    return tuple(sorted(finalists, key=key))


@dataclass(eq=False)
class Repeats(TrackedSource):
    """The finalists' repeats that the tracking store does not have yet, as the work of a loop.

    They are no trials: nothing is pruned, and the engine learns nothing of them.
    """

    plan: FinalistPlan
    records: Iterable[TrialRecord]
    tracker: Tracker
    space: SearchSpace
    seed: int
    precision: Precision
    checkpoints: Checkpoints | None = None

    def __post_init__(self) -> None:
        self._params = {record.number: record.params for record in self.records}
        self._superseded: dict[tuple[int, int], str] = {}
        self._attempts: Counter[int] = Counter()
        self._lost: Counter[tuple[int, int]] = Counter()
        ended = set()
        for run in self.tracker.repeats():
            self._attempts[run.trial] = max(self._attempts[run.trial], run.number)
            if run.status in ENDED:
                ended.add((run.trial, run.repeat))
            else:
                self._superseded[run.trial, run.repeat] = run.run_id
        # Round by round, so that a study that is stopped has as many repeats of each finalist as it can.
        wanted = ((each.number, repeat) for repeat in range(1, self.plan.repeats + 1) for each in self.plan.trials)
        self._open = [key for key in wanted if key not in ended]

    @property
    def left(self) -> int:
        """Count the repeats that are not trained."""
        return len(self._open)

    def results(self) -> tuple[Finalist, ...]:
        """Return every trial that has been trained again, the best first.

        Those of earlier starts count too: what was measured stays, whatever came after it.
        """
        # A user may have deleted the tags that say of what trial a run is, and which repeat.
        known = (run for run in self.tracker.repeats() if run.trial in self._params and run.repeat)
        finished = {(run.trial, run.repeat): run for run in known if run.status == "FINISHED"}
        finalists = []
        for number in {record.number for record in self.plan.trials} | {trial for trial, _ in finished}:
            own = [run for (trial, _), run in sorted(finished.items()) if trial == number]
            scores = tuple(run.objective for run in own if run.objective is not None)
            finalists.append(Finalist(number, self._params[number], scores, tuple(run.run_id for run in own)))
        return rank_finalists(finalists)

    def next(self) -> TrialSpec | None:
        """Take the first of the repeats that are left."""
        if not self._open:
            return None
        number, repeat = self._open.pop(0)
        return TrialSpec(
            number,
            0,
            self.space.hyperparameters(self._params[number]),
            trial_seed(self.seed, number, repeat),
            precision=self.precision,
            repeat=repeat,
            supersedes=self._superseded.get((number, repeat)),
        )

    def put_back(self, spec: TrialSpec) -> None:
        """Leave a repeat to be trained later."""
        self._open.insert(0, (spec.number, spec.repeat))

    def begin(self, spec: TrialSpec) -> TrialSpec:
        """Count the attempt among all those at the trial's repeats, and open its run."""
        self._attempts[spec.number] += 1
        return super().begin(replace(spec, attempt=self._attempts[spec.number]))

    def settle(self, spec: TrialSpec, result: TrialResult) -> None:
        """Close the run."""
        self.tracker.close_trial(spec, result)
        self.discard_checkpoint(spec)

    def lose(self, spec: TrialSpec, lost: AttemptLost) -> TrialState:
        """Train the repeat again, or give it up after too many losses."""
        key = spec.number, spec.repeat
        if lost.by_checkpoint:
            self.discard_checkpoint(spec)
        has_progressed = self.reached(spec) > spec.resumes
        self._lost[key] += not (lost.by_store or lost.by_checkpoint or has_progressed)
        return TrialState.FAILED if self._lost[key] > MAX_RETRIES else self.stop(spec)

    def stop(self, spec: TrialSpec, *, by_error: bool = False) -> TrialState:  # noqa: ARG002
        """Leave the repeat to be trained again: a user may stop a study as often as they like."""
        self._superseded[spec.number, spec.repeat] = spec.run_id
        self.put_back(spec)
        return TrialState.WAITING
