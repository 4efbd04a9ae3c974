"""The recording worker, answering as a real one does where the store fails it, instead of dying of it."""

from collections.abc import Callable

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from fashion_study.testing.training import work_with
from fashion_study.trial import AttemptLost, EpochReport, TrialResult, TrialSpec
from tests.faults.recording_worker import RecordingTrainer


class AnsweringTrainer(RecordingTrainer):
    def train(self, spec: TrialSpec, go_on: Callable[[EpochReport], bool]) -> TrialResult | AttemptLost:
        try:
            return super().train(spec, go_on)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            return AttemptLost(*spec.key, f"the store failed: {error}", by_store=True)


if __name__ == "__main__":
    work_with(AnsweringTrainer)
