"""The engine's proposals as the work of a loop: each is a trial with a run and a place in the trial storage."""

from collections.abc import Sequence
from dataclasses import replace

from fashion_study.engines.engine import Engine, Exhausted, PutAside
from fashion_study.store.checkpoints import Checkpoints
from fashion_study.store.trials import TrialRecord
from fashion_study.study.loop import Best, TrackedSource, Tracker
from fashion_study.study.progress import Observer
from fashion_study.trial import (
    CONTINUATION_LOST,
    AttemptLost,
    Epoch,
    EpochReport,
    Precision,
    TrialResult,
    TrialSpec,
    TrialState,
    trial_seed,
)


class Proposals(TrackedSource):
    """A study's trials, up to a total that counts those of earlier starts; `exhausted` says why there are no more."""

    def __init__(
        self,
        engine: Engine,
        tracker: Tracker,
        observer: Observer,
        precision: Precision,
        trials: int,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.tracker = tracker
        self.checkpoints = checkpoints
        self._engine = engine
        self._trial_storage = engine.trial_storage
        self._observer = observer
        self._precision = precision
        self._trials = trials
        self._counted = self._trial_storage.counted()
        self._in_flight = 0
        best = self._trial_storage.best()
        self._best: Best | None = (best.number, best.objective or 0.0) if best else None
        self._sizes = self._trial_storage.ranked(self._size)
        self.exhausted: str | None = None

    def next(self) -> TrialSpec | None:
        """Ask the engine for a trial, as long as the total allows one."""
        may_begin = not self.exhausted and self._counted + self._in_flight < self._trials
        if not (may_begin or self._engine.pauses):
            return None
        while isinstance(answer := self._engine.ask(may_begin=may_begin), PutAside):
            self._observer.warn(
                f"trial {answer.number:03d}, which another program has enqueued, is put aside: {answer.reason}"
            )
        if isinstance(answer, Exhausted):
            self.exhausted = answer.reason
            answer = self._engine.ask(may_begin=False)  # The best of the paused trials may go on now.
        if not isinstance(answer, TrialSpec):
            return None
        self._in_flight += 1
        self._counted = self._trial_storage.counted()
        return replace(answer, precision=self._precision)

    def put_back(self, spec: TrialSpec) -> None:
        """Send a trial that no worker has begun back to waiting."""
        self._trial_storage.requeue_unstarted(spec.number)
        self._in_flight -= 1

    def begin(self, spec: TrialSpec) -> TrialSpec:
        """Open the run of an attempt, or that of an earlier one; say where what that has trained is lost."""
        begun = super().begin(spec)
        trained = self._trial_storage.record(spec.number).reached if begun.supersedes is not None else 0
        if self.checkpoints is not None and trained:
            path = self.checkpoints.path(spec.label)
            self._observer.warn(
                f"{spec.label} begins again with its first epoch: {path} is missing, or of another training"
            )
        return begun

    def name_run(self, spec: TrialSpec, epochs: Sequence[Epoch] = ()) -> None:
        """Let the trial storage name the run, and have the objective after each epoch that was trained before."""
        self._trial_storage.begin_attempt(spec.number, spec.attempt, spec.run_id, spec.resumes)
        self._engine.resume(spec.number, {epoch.epoch: epoch.val_accuracy for epoch in epochs})

    def report(self, spec: TrialSpec, report: EpochReport) -> bool:
        """Keep the objective after an epoch, and ask the engine's pruner."""
        return self._engine.report(spec.number, report.epoch, report.val_accuracy)

    def judge(self, spec: TrialSpec, result: TrialResult) -> TrialResult:  # noqa: ARG002
        """Pause a trial that was stopped, where it may go on."""
        is_paused = self._engine.pauses and result.state is TrialState.PRUNED
        return replace(result, state=TrialState.PAUSED) if is_paused else result

    def settle(self, spec: TrialSpec, result: TrialResult) -> Best | None:
        """Close the run, then the trial: one that the trial storage calls complete always has its evidence."""
        self.tracker.close_trial(spec, result)
        self._engine.tell(result)
        self._in_flight -= 1
        self._counted = self._trial_storage.counted()
        if result.objective is not None and (self._best is None or result.objective > self._best[1]):
            self._best = (result.number, result.objective)
            self.tracker.log_best(self._trial_storage.ended(), result.objective)
        if result.state is TrialState.PAUSED or self._engine.continues_trials:
            self.bound_checkpoints()
        else:
            self.discard_checkpoint(spec)
        if (lost := result.tags.get(CONTINUATION_LOST)) is not None:
            self._observer.warn(f"{spec.label} was trained from its first epoch: {lost}")
        return self._best

    def end_paused(self) -> int:
        """End every paused trial; return how many there were."""
        paused = self._paused()
        for record in paused:
            self._end_paused(record)
        return len(paused)

    def _paused(self) -> list[TrialRecord]:
        return [record for record in self._trial_storage.records() if record.state is TrialState.PAUSED]

    def _end_paused(self, record: TrialRecord) -> None:
        """End a paused trial as pruned, its run first: after a kill in between the next start takes that over."""
        params, seed = self._engine.space.hyperparameters(record.params), trial_seed(self._engine.seed, record.number)
        spec = TrialSpec(record.number, record.attempt, params, seed, record.run_id or "")
        result = TrialResult(*spec.key, TrialState.PRUNED, record.paused_at)
        if record.run_id is not None:  # Else somebody has deleted the run for good.
            self.tracker.close_trial(spec, result)
        self._engine.tell(result)
        self.discard_checkpoint(spec)

    def bound_checkpoints(self) -> None:
        """Let the lowest ranked trials go without their checkpoints until those of the others fit the disk.

        A paused trial is pruned by that; a trial that would go on from an ended one trains that one's epochs again.
        """
        kept = self.checkpoints
        if kept is None or sum(size for _, size in self._sizes()) <= kept.disk:
            return
        # Some may have gone since they were measured.
        records = [self._trial_storage.record(number) for number, _ in self._sizes()]
        sized = [(record, kept.size(record.label)) for record in records]
        excess = sum(size for _, size in sized) - kept.disk
        for record, size in sorted(sized, key=lambda each: (each[0].reached, max(each[0].curve.values(), default=0))):
            if excess > 0 and size:
                excess -= size
                self._make_room(record, kept)

    def _size(self, record: TrialRecord) -> tuple[int, int] | None:
        """Return a trial's number and the bytes of its checkpoint, where no training uses that now but one may."""
        ended = self._engine.continues_trials and record.state is TrialState.COMPLETE
        if self.checkpoints is None or not (ended or record.state is TrialState.PAUSED):
            return None
        return record.number, self.checkpoints.size(record.label)

    def _make_room(self, record: TrialRecord, kept: Checkpoints) -> None:
        if record.state is TrialState.PAUSED:
            self._end_paused(record)
            what = f"{record.label} is pruned, paused at {record.paused_at}"
        else:
            kept.discard(record.label)
            what = f"{record.label} has no checkpoint any more: a trial that goes on from it trains its epochs again"
        self._observer.warn(f"{what}; checkpoints take more than --checkpoint-disk")

    def lose(self, spec: TrialSpec, lost: AttemptLost) -> TrialState:
        """Send the trial back to waiting, or give it up; what the store or a checkpoint has failed does not count."""
        if lost.by_checkpoint:
            self.discard_checkpoint(spec)
        return self._release(spec, counted=not (lost.by_store or lost.by_checkpoint), cause=lost.cause)

    def stop(self, spec: TrialSpec, *, counted: bool) -> TrialState:
        """Send the trial back to waiting, or give it up where it was stopped too often."""
        return self._release(spec, counted=counted)

    def extend(self, trials: int) -> None:
        """Let so many trials more begin."""
        self._trials += trials
        self._observer.expect(self._trials)

    def _release(self, spec: TrialSpec, *, counted: bool, cause: str = "") -> TrialState:
        state = self._trial_storage.requeue(spec.number, self.reached(spec), counted=counted, cause=cause)
        self._in_flight -= 1
        self._counted = self._trial_storage.counted()
        if state is not TrialState.FAILED:
            self.exhausted = None  # The trial waits to be proposed again.
        return state
