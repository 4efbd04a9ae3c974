"""The finalists of a study: its best trials trained again, so that luck does not choose the model."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, stdev
from typing import Any

from fashion_study.space.space import SearchSpace
from fashion_study.statistics import CONFIDENCE, pooled_deviation, student_margin
from fashion_study.store.checkpoints import Checkpoints
from fashion_study.store.trials import MAX_RETRIES, TrialRecord
from fashion_study.study.loop import TrackedSource, Tracker
from fashion_study.study.progress import Observer
from fashion_study.tracking.attempt import Attempt
from fashion_study.trial import AttemptLost, ParamValue, Precision, TrialResult, TrialSpec, TrialState, trial_seed

DEFAULT_FINALISTS = 3
DEFAULT_REPEATS = 3
# So many repeats every finalist has: one alone says nothing of how far luck goes.
SURE_REPEATS = 2
# A trial's number and that of a repeat of it.
Key = tuple[int, int]
# What MLflow calls the run of a repeat that is not trained again.
ENDED = ("FINISHED", "FAILED")


@dataclass(frozen=True)
class Finalist:
    """A trial that was trained again: the objective and the run of each repeat that is complete.

    `pooled` is the pooled standard deviation of a study's finalists and its degrees of freedom, on which bound and
    interval of the mean rest; without it they rest on the finalist's own.
    """

    trial: int
    params: Mapping[str, ParamValue]
    objectives: tuple[float, ...]
    run_ids: tuple[str, ...]
    pooled: tuple[float, int] | None = None

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
        """Return the one-sided 95 % lower confidence bound of the mean (Student's t), None without a deviation."""
        low, _ = self._bounds(CONFIDENCE) or (None, None)
        return low

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the two-sided 95 % confidence interval of the mean (Student's t), None without a deviation."""
        return self._bounds((1 + CONFIDENCE) / 2)

    def _bounds(self, confidence: float) -> tuple[float, float] | None:
        """Return the one-sided confidence bounds of the mean, the lower and the upper one."""
        deviation = self.pooled or pooled_deviation([self.objectives])
        if deviation is None or self.mean is None:
            return None
        margin = student_margin(*deviation, len(self.objectives), confidence)
        return self.mean - margin, self.mean + margin

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
        # Earlier versions had none.
        deviation, freedom = entry.get("pooled") or (None, 0)
        pooled = None if deviation is None else (deviation, freedom)
        return cls(entry["trial"], entry["params"], tuple(entry["objectives"]), tuple(entry["run_ids"]), pooled)


@dataclass(frozen=True)
class FinalistPlan:
    """Which trials are trained again, and how often at most; `note` says why that is less than what was asked for.

    All repeats together train no more than `epochs`.
    """

    trials: tuple[TrialRecord, ...]
    repeats: int
    note: str | None = None
    epochs: float = math.inf


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

    What must fit is the shortest race, two repeats of each and the others of one: all of it into `epochs`, to which the
    race itself keeps, and what is not in `known`, from earlier starts, into `epochs_in_time`. Fewer trials come before
    fewer repeats: two repeats say next to nothing of their spread. `records` are ranked, the best first.
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
    for fewer in range(repeats, min(repeats, SURE_REPEATS) - 1, -1):
        for count in range(len(chosen), 0, -1):
            # A repeat trains what a trial has taken over, too.
            longest = max(chosen[:count], key=lambda trial: trial.reached)
            wanted = [(trial, repeat) for trial in chosen[:count] for repeat in range(1, min(fewer, SURE_REPEATS) + 1)]
            wanted += [(longest, repeat) for repeat in range(SURE_REPEATS + 1, fewer + 1)]
            missing = sum(trial.reached for trial, repeat in wanted if (trial.number, repeat) not in done)
            if sum(trial.reached for trial, _ in wanted) <= epochs and missing <= epochs_in_time:
                is_all = (count, fewer) == (len(chosen), repeats)
                note = note if is_all else shortfall.format(f"{count} with {fewer}")
                return FinalistPlan(chosen[:count], fewer, note, epochs)
    return FinalistPlan((), repeats, shortfall.format("none") if chosen else note)


def choose(finalists: Iterable[Finalist]) -> Finalist | None:
    """Return the first of ranked finalists; None where no repeat is complete."""
    return next((finalist for finalist in finalists if finalist.objectives), None)


def rank_finalists(finalists: Iterable[Finalist]) -> tuple[Finalist, ...]:
    """Give finalists their pooled deviation, and sort them by lower bound, then by mean, the best first."""
    finalists = tuple(finalists)
    pooled = pooled_deviation(finalist.objectives for finalist in finalists)

    def key(finalist: Finalist) -> tuple[float, float, int]:
        bound, average = (-math.inf if each is None else each for each in (finalist.lower_bound, finalist.mean))
        return -bound, -average, finalist.trial

    return tuple(sorted((replace(finalist, pooled=pooled) for finalist in finalists), key=key))


def contenders(objectives: Mapping[int, Sequence[float]]) -> list[int]:
    """Return the trials that are not too far behind after so many repeats of each, the best first.

    Too far behind is a mean that is below the best one by more than chance: by a one-sided t-test at 5 % with the
    pooled standard deviation, one comparison at a time. A trial without a complete repeat comes last, and is not
    judged.
    """
    means = {trial: mean(values) for trial, values in objectives.items() if values}
    ranked = sorted(objectives, key=lambda trial: means.get(trial, -math.inf), reverse=True)
    pooled = pooled_deviation(objectives.values())
    first = ranked[0]

    def is_near(trial: int) -> bool:
        if pooled is None or trial not in means:
            return True
        pairs = 1 / (1 / len(objectives[first]) + 1 / len(objectives[trial]))
        return means[first] - means[trial] <= student_margin(*pooled, pairs)

    return [trial for trial in ranked if is_near(trial)]


@dataclass(eq=False)
class Repeats(TrackedSource):
    """The finalists' repeats that the tracking store does not have yet, as the work of a loop.

    It is a race, in rounds of one repeat each: after the second, and each that follows, those go on who are not too
    far behind, the best first, as far as the plan's epochs go. Who that is depends on the results alone, not on the
    order in which they come. Repeats are no trials: nothing is pruned, and the engine learns nothing of them.
    """

    plan: FinalistPlan
    records: Iterable[TrialRecord]
    tracker: Tracker
    observer: Observer
    space: SearchSpace
    seed: int
    precision: Precision
    checkpoints: Checkpoints | None = None

    def __post_init__(self) -> None:
        self._records = {record.number: record for record in self.records}
        self._superseded: dict[Key, str] = {}
        self._attempts: Counter[int] = Counter()
        self._lost: Counter[Key] = Counter()
        self._training: set[Key] = set()
        # The objectives of those that are complete, None of those that failed.
        self._ended: dict[Key, float | None] = {}
        for run in self.tracker.repeats():
            self._attempts[run.trial] = max(self._attempts[run.trial], run.number)
            if run.status in ENDED:
                self._ended[run.trial, run.repeat] = run.objective if run.status == "FINISHED" else None
            else:
                self._superseded[run.trial, run.repeat] = run.run_id
        self._racing = [record.number for record in self.plan.trials]
        self._rounds = min(SURE_REPEATS, self.plan.repeats)
        self._judge_rounds()

    @property
    def left(self) -> int:
        """Count the repeats that are not trained, if nobody else leaves the race."""
        return len(self._missing(self.plan.repeats))

    @property
    def total(self) -> int:
        """Count those that are left, and the plan's that have ended."""
        return self.left + len(self._done())

    def results(self) -> tuple[Finalist, ...]:
        """Return every trial that has been trained again, the best first.

        Those of earlier starts count too: what was measured stays, whatever came after it.
        """
        # A user may have deleted the tags that say of what trial a run is, and which repeat.
        known = (run for run in self.tracker.repeats() if run.trial in self._records and run.repeat)
        finished = {(run.trial, run.repeat): run for run in known if run.status == "FINISHED"}
        finalists = []
        for number in {record.number for record in self.plan.trials} | {trial for trial, _ in finished}:
            own = [run for (trial, _), run in sorted(finished.items()) if trial == number]
            scores = tuple(run.objective for run in own if run.objective is not None)
            finalists.append(Finalist(number, self._records[number].params, scores, tuple(run.run_id for run in own)))
        return rank_finalists(finalists)

    def next(self) -> TrialSpec | None:
        """Take the first repeat that is left of the rounds that have begun."""
        key = next((key for key in self._missing(self._rounds) if key not in self._training), None)
        if key is None:
            return None
        self._training.add(key)
        number, repeat = key
        return TrialSpec(
            number,
            0,
            self.space.hyperparameters(self._records[number].params),
            trial_seed(self.seed, number, repeat),
            precision=self.precision,
            repeat=repeat,
            supersedes=self._superseded.get(key),
        )

    def put_back(self, spec: TrialSpec) -> None:
        """Leave a repeat to be trained later."""
        self._training.discard((spec.number, spec.repeat))

    def begin(self, spec: TrialSpec) -> TrialSpec:
        """Count the attempt among all those at the trial's repeats, and open its run."""
        self._attempts[spec.number] += 1
        return super().begin(replace(spec, attempt=self._attempts[spec.number]))

    def settle(self, spec: TrialSpec, result: TrialResult) -> None:
        """Close the run."""
        self.tracker.close_trial(spec, result)
        self.discard_checkpoint(spec)
        self._end(spec, result.objective)

    def lose(self, spec: TrialSpec, lost: AttemptLost) -> TrialState:
        """Train the repeat again, or give it up after too many losses."""
        key = spec.number, spec.repeat
        if lost.by_checkpoint:
            self.discard_checkpoint(spec)
        has_progressed = self.reached(spec) > spec.resumes
        self._lost[key] += not (lost.by_store or lost.by_checkpoint or has_progressed)
        if self._lost[key] <= MAX_RETRIES:
            return self.stop(spec)
        self._end(spec, None)
        return TrialState.FAILED

    def stop(self, spec: TrialSpec, *, counted: bool = False) -> TrialState:  # noqa: ARG002
        """Leave the repeat to be trained again: a user may stop a study as often as they like."""
        self._superseded[spec.number, spec.repeat] = spec.run_id
        self.put_back(spec)
        return TrialState.WAITING

    def _done(self) -> list[Key]:
        planned = {record.number for record in self.plan.trials}
        return [key for key in self._ended if key[0] in planned and 0 < key[1] <= self.plan.repeats]

    def _missing(self, rounds: int) -> list[Key]:
        """Return the repeats that have not ended, round by round."""
        keys = ((number, repeat) for repeat in range(1, rounds + 1) for number in self._racing)
        return [key for key in keys if key not in self._ended]

    def _end(self, spec: TrialSpec, objective: float | None) -> None:
        self.put_back(spec)
        self._ended[spec.number, spec.repeat] = objective
        for number, reason in self._judge_rounds().items():
            self.observer.note(f"{self._records[number].label} is trained no more: {reason}")
        self.observer.expect(self.total)

    def _judge_rounds(self) -> dict[int, str]:
        """Begin the rounds whose racers are known now; return who is out, and why."""
        out: dict[int, str] = {}
        while self._racing and self._rounds < self.plan.repeats and not self._missing(self._rounds):
            objectives = {
                number: [
                    score for repeat in range(1, self._rounds + 1) if (score := self._ended[number, repeat]) is not None
                ]
                for number in self._racing
            }
            able = contenders(objectives)
            going_on = self._affordable(able)
            out |= dict.fromkeys(set(self._racing) - set(able), "it is too far behind")
            out |= dict.fromkeys(set(able) - set(going_on), "the epochs left are for those ahead of it")
            self._racing = going_on
            self._rounds += 1
        return out

    def _affordable(self, ranked: Iterable[int]) -> list[int]:
        """Return those for whose other repeats the plan's epochs are enough, the first of them first."""
        left = self.plan.epochs - sum(self._records[number].reached for number, _ in self._done())
        chosen = []
        for number in ranked:
            others = sum((number, repeat) not in self._ended for repeat in range(1, self.plan.repeats + 1))
            if (cost := others * self._records[number].reached) <= left:
                left -= cost
                chosen.append(number)
        return chosen
