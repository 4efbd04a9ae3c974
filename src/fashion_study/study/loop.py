"""The loop of a study: ask, train, report, tell. No store, no engine and no process is known here but by its seam."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fashion_study.engines.engine import Engine, Exhausted, Proposal
from fashion_study.errors import StudyError
from fashion_study.executors.executor import Event, Executor, losses_last
from fashion_study.space.space import SearchSpace
from fashion_study.store.failures import StoreFailurePolicy
from fashion_study.store.trials import TrialStorage
from fashion_study.study.progress import Observer
from fashion_study.tracking.tracker import Tracker
from fashion_study.trial import (
    CONTINUATION_LOST,
    AttemptLost,
    EpochReport,
    Precision,
    TrialResult,
    TrialSpec,
    TrialState,
    trial_seed,
)

TICK_SECONDS = 0.25


@dataclass(frozen=True)
class Assignment:
    """Say what a study's trials have in common, and when the study ends: the first of the three that is reached."""

    space: SearchSpace
    seed: int
    precision: Precision
    trials: int
    deadline: float | None = None
    epoch_budget: int | None = None


class Coordinator:
    """Keep every worker busy until the budget is spent, nothing is left to propose, or `interrupted` says stop.

    A worker waits for what its answer rests on, and for nothing more: a report for the trial storage and the pruner, a
    result until it is safe, an order until its run is open. All else that goes to the stores waits in `_later` until no
    message does.
    `after_trial` is called when a trial has ended and everything of it is written down.
    """

    def __init__(
        self,
        assignment: Assignment,
        engine: Engine,
        trial_storage: TrialStorage,
        executor: Executor,
        tracker: Tracker,
        observer: Observer,
        interrupted: Callable[[], bool] = lambda: False,
        after_trial: Callable[[], None] = lambda: None,
    ) -> None:
        self._assignment = assignment
        self._engine = engine
        self._trial_storage = trial_storage
        self._executor = executor
        self._tracker = tracker
        self._observer = observer
        self._interrupted = interrupted
        self._after_trial = after_trial
        self._counted = trial_storage.counted()
        self._epochs = sum(len(record.curve) for record in trial_storage.records())
        best = trial_storage.best()
        self._best = (best.number, best.objective or 0.0) if best else None
        self._next: Proposal | None = None
        self._running: dict[tuple[int, int], TrialSpec] = {}
        self._unsettled = 0
        self._later: deque[Callable[[], None]] = deque()
        self._store_failures = StoreFailurePolicy()
        self.exhausted: Exhausted | None = None
        self.busy_seconds = 0.0

    def run(self) -> None:
        """Run trials to the end of the budget, then return with nothing running.

        Raises:
            StudyError: no worker can start, or the store fails the workers; no trial has lost an attempt by it.
        """
        try:
            self._run()
        except StudyError:
            self._wind_up(uncounted_attempts=True)
            raise
        self._wind_up()

    def _run(self) -> None:
        while not self._interrupted():
            self._fill_slots()
            if self._later:
                self._later.popleft()()
            elif not self._running and not self._waits_for_a_slot():
                break
            if not self._later and self._next is None:
                self._next = self._ask()
            for event in losses_last(self._executor.wait(0 if self._later else TICK_SECONDS)):
                self._handle(event)

    def _fill_slots(self) -> None:
        while len(self._running) < self._executor.slots and not self._is_over():
            proposal = self._next or self._ask()
            self._next = None
            if proposal is None:
                return
            self._begin(proposal)

    def _waits_for_a_slot(self) -> bool:
        """Say whether something is left to train, and nothing to train it: a cluster may have lost its last node."""
        if self._executor.slots > 0 or self._is_over():
            return False
        self._next = self._next or self._ask()
        return self._next is not None

    def _ask(self) -> Proposal | None:
        in_flight = len(self._running) + self._unsettled
        if self.exhausted or self._is_over() or self._counted + in_flight >= self._assignment.trials:
            return None
        answer = self._engine.ask()
        if isinstance(answer, Exhausted):
            self.exhausted = answer
        return answer if isinstance(answer, Proposal) else None

    def _begin(self, proposal: Proposal) -> None:
        hyperparameters = self._assignment.space.hyperparameters(proposal.params)
        seed = trial_seed(self._assignment.seed, proposal.number)
        precision = self._assignment.precision
        tags = {"seed": str(seed), "precision": precision.value}
        if proposal.continues is not None:
            tags["continues_trial"] = str(proposal.continues.number)
            if proposal.continues.run_id is not None:
                tags["continues_run"] = proposal.continues.run_id
        params = hyperparameters.model_dump()
        run_id = self._tracker.open_trial(proposal.number, proposal.attempt, params, tags)
        self._trial_storage.begin_attempt(proposal.number, proposal.attempt, run_id)
        if proposal.superseded_run_id is not None:
            self._tracker.supersede(proposal.superseded_run_id, run_id)
        spec = TrialSpec(
            proposal.number, proposal.attempt, hyperparameters, seed, run_id, precision, continues=proposal.continues
        )
        self._running[spec.key] = spec
        self._executor.submit(spec)
        self._observer.trial_started(spec)

    def _handle(self, event: Event) -> None:
        spec = self._running.get((event.number, event.attempt))
        if spec is None:
            return  # From an attempt that was superseded.
        match event:
            case EpochReport():
                prune = self._engine.report(event.number, event.epoch, event.val_accuracy)
                # After the last epoch nothing is left to save: the trial is complete.
                prune = prune and event.epoch < spec.hyperparameters.epochs
                self._executor.answer(event, prune=prune)
                self._epochs += 1
                self._later.append(lambda: self._tracker.log_epoch(spec.run_id, event))
                self._observer.epoch_done(spec, event)
            case TrialResult():
                # One batch, a quarter of what it takes to settle a result; after a kill the next start settles it.
                self._tracker.record_result(spec, event)
                self.busy_seconds += event.seconds
                del self._running[spec.key]
                self._unsettled += 1
                self._later.append(lambda: self._settle(spec, event))
                if event.state is TrialState.COMPLETE:
                    self._store_failures.has_answered()
            case AttemptLost():
                del self._running[spec.key]
                self._lose(spec, event.cause, event.by_store)
                if event.by_store:
                    self._store_failures.has_failed(spec.label, event.cause)

    def _settle(self, spec: TrialSpec, result: TrialResult) -> None:
        # The run first: a trial that the trial storage calls complete always has its evidence.
        self._tracker.close_trial(spec, result)
        self._engine.tell(result)
        self._unsettled -= 1
        self._counted += 1
        if result.objective is not None and (self._best is None or result.objective > self._best[1]):
            self._best = (result.number, result.objective)
            self._tracker.log_best(self._counted, result.objective)
        if (lost := result.tags.get(CONTINUATION_LOST)) is not None:
            self._observer.warn(f"{spec.label} was trained from its first epoch: {lost}")
        self._observer.trial_closed(spec, result, self._best)
        self._after_trial()

    def _lose(self, spec: TrialSpec, cause: str, uncounted_attempts: bool) -> None:
        state = self._trial_storage.release(spec.number, uncounted_attempts=uncounted_attempts)
        self._later.append(lambda: self._tracker.interrupt_trial(spec.number, spec.run_id, cause, state))
        if state is TrialState.FAILED:
            self._counted += 1
        else:
            self.exhausted = None  # It waits to be proposed again.
        self._observer.trial_lost(spec, cause, state)

    def _wind_up(self, uncounted_attempts: bool = False) -> None:
        """Send back to waiting whatever is not finished, and write down the rest."""
        if self._running:
            self._executor.stop()
        for spec in self._running.values():
            self._lose(spec, "the study was stopped", uncounted_attempts)
        self._running.clear()
        if self._next is not None:
            self._trial_storage.requeue_unstarted(self._next.number)
            self._next = None
        while self._later:
            self._later.popleft()()

    def _is_over(self) -> bool:
        """Say whether no trial may be begun any more."""
        deadline, budget = self._assignment.deadline, self._assignment.epoch_budget
        is_late = deadline is not None and time.monotonic() >= deadline
        return is_late or (budget is not None and self._epochs >= budget)
