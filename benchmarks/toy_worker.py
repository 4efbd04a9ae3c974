"""A real worker process that trains nothing and answers with as many figures as a real one."""

from collections.abc import Callable
from dataclasses import replace

from benchmarks.toy_study import METRICS, TAGS
from fashion_study.testing.training import ToyTrainer, work_with
from fashion_study.trial import AttemptLost, EpochReport, TrialResult, TrialSpec


class FullToyTrainer(ToyTrainer):
    """A toy trainer that adds final metrics and tags."""

    def train(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult | AttemptLost:
        """Return what the toy reached, as a real result would carry it."""
        end = super().train(spec, go_on)
        return replace(end, metrics=METRICS, tags=TAGS) if isinstance(end, TrialResult) else end


if __name__ == "__main__":
    work_with(FullToyTrainer)
