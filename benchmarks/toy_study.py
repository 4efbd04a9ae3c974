"""A toy study: the coordinator, the engine and both stores are real, and nothing is trained."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from fashion_study.config import PrunerName, SamplerName, StudyConfig
from fashion_study.data.catalog import load_dataset
from fashion_study.engines.engine import Engine
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.executors.executor import Executor
from fashion_study.store.checkpoints import Checkpoints
from fashion_study.store.store import Store, open_store
from fashion_study.store.trials import TrialStorage
from fashion_study.study.loop import Loop, Tracker
from fashion_study.study.plan import Plan, plan_study
from fashion_study.study.progress import Observer
from fashion_study.study.proposals import Proposals
from fashion_study.study.reconcile import reconcile
from fashion_study.trial import Precision

PRECISION = Precision.FLOAT32
# What a real worker's result carries: MLflow's work on a trial depends on how much there is to write.
FINAL = ("objective", "macro_f1", "parameter_count", "train_seconds", "ms_per_image", "best_val_accuracy")
METRICS = dict.fromkeys((*FINAL, *(f"recall_{digit}" for digit in range(10))), 0.5)
TAGS = {"model_uri": f"models:/m-{'0' * 32}", "model_sha256": "0" * 64, "weights_sha256": "0" * 64}


@dataclass(frozen=True)
class ToyStudy:
    """An open study; `resumed` is how many seconds it took to resume it, once the stores were open."""

    plan: Plan
    store: Store
    trial_storage: TrialStorage
    engine: OptunaEngine
    tracker: Tracker
    resumed: float

    def run(
        self,
        trials: int,
        executor: Executor,
        engine: Any = None,
        tracker: Any = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        """Run so many trials more; `engine` and `tracker` may stand between the coordinator and the study's own."""
        total = self.trial_storage.counted() + trials
        observer = Observer()
        used = cast(Engine, engine or self.engine)
        proposals = Proposals(used, cast(Tracker, tracker or self.tracker), observer, PRECISION, total, checkpoints)
        Loop(proposals, executor, observer).run()


def open_toy_study(
    root: Path,
    epochs: int,
    sampler: SamplerName = "tpe",
    pruner: PrunerName = "successive-halving",
    name: str = "toy",
) -> ToyStudy:
    """Open the study `name` in the store at `root`, as a study opens, all of whose trials have so many epochs."""
    from fashion_study.tracking.runs import StudyRuns

    store = open_store(root)
    space = root / "space.yaml"
    space.write_text(yaml.safe_dump(toy_space(epochs)), encoding="utf-8")
    plan = plan_study(
        StudyConfig(
            space=str(space),
            dataset="digits",
            trials=1_000_000,
            sampler=sampler,
            pruner=pruner,
            study=name,
            store=root,
        )
    )
    client = store.client()
    experiment = store.experiment_id(client, plan.source.name)
    data = load_dataset(plan.source)
    storage = store.open_optuna_storage()
    began = time.perf_counter()
    trial_storage = TrialStorage(storage, plan.name)
    tracker = StudyRuns(client, experiment, trial_storage.attrs.get("run_id"))
    run_id = tracker.open_study(plan.metadata(PRECISION, plan.config.trials), data)
    trial_storage.set_attrs(
        identity=plan.fingerprint, split=data.split_digest, run_id=run_id, precision=PRECISION.value
    )
    reconcile(trial_storage, tracker)
    engine = OptunaEngine(trial_storage, plan.space, sampler, pruner, plan.config.seed)
    return ToyStudy(plan, store, trial_storage, engine, tracker, time.perf_counter() - began)


def toy_space(epochs: int) -> dict[str, Any]:
    """Return the baseline space with its epochs fixed."""
    space: dict[str, Any] = yaml.safe_load(Path("search_spaces/baseline.yaml").read_text(encoding="utf-8"))
    del space["baseline"]["epochs"], space["parameters"]["epochs"]
    space["fixed"]["epochs"] = epochs
    return space
