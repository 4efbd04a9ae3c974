"""The files of runs: models, and the evidence of complete trials, checked by their digests."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow.entities import LoggedModel, Run

from fashion_study.doctor.context import CheckContext, run_title
from fashion_study.finding import Finding, Kind, repairing
from fashion_study.store.relocation import local_path
from fashion_study.study.retention import REMOVED
from fashion_study.tracking.registry import CARD_FILE, MODEL_FILE, file_sha256
from fashion_study.tracking.search import all_pages, pending_models, run_tree
from fashion_study.trial import TrialState

# On a run, and on a version: what is wrong with its files, as the doctor has recorded it.
DAMAGED = "damaged_files"
EVIDENCE = (
    "classification_report.json",
    "confusion_matrix.json",
    "confusion_matrix.png",
    "most_confused.json",
    "predictions.png",
)


def damaged_files(context: CheckContext) -> Iterator[Finding]:
    """Find runs whose files are missing or altered, and models whose logging was cut off."""
    logged = all_pages(context.client.search_logged_models, context.experiments)
    models = {model.model_id: model for model in logged}
    runs = {run.info.run_id: run for run in context.runs()}
    remote = 0
    for run in runs.values():
        if run.info.lifecycle_stage != "active" or run.info.status == "RUNNING":
            continue
        damage = _damage(run, models)
        if damage is None:
            remote += 1
        elif damage != run.data.tags.get(DAMAGED, ""):
            yield _damaged(context, run, damage)
    if remote:
        context.notes.append(f"The files of {remote} runs do not lie on this machine: not looked at.")

    def is_abandoned(run_id: str) -> bool:
        return run_id in runs and run_tree(runs[run_id]) not in context.alive

    yield from pending_models(context.client, context.experiments, is_abandoned)


def model_damage(folder: Path, sha256: str) -> str | None:
    """Return what is wrong with a logged model in its folder; None where it is what was logged."""
    file = folder / MODEL_FILE
    if not file.is_file():
        return f"{file.name} missing"
    if file_sha256(file) != sha256:
        return f"{file.name} altered"
    return None if (folder / CARD_FILE).is_file() else f"{CARD_FILE} missing"


def _damage(run: Run, models: Mapping[str, LoggedModel]) -> str | None:
    """Return what is wrong with the files of a run, '' for nothing; None where they are on another machine."""
    folder = local_path(run.info.artifact_uri)
    if folder is None:
        return None
    tags = run.data.tags
    found: list[str | None] = []
    if tags["kind"] in ("trial", "finalist") and tags.get("state") == TrialState.COMPLETE:
        found += _damaged_evidence(folder, tags.get("evidence_sha256", ""))
        found += [f"tag {name} missing" for name in ("model_uri", "model_sha256") if name not in tags]
    if "model_sha256" in tags and REMOVED not in tags:
        model = models.get(tags.get("model_uri", "").removeprefix("models:/"))
        address = local_path(model.artifact_location) if model else None
        found.append(model_damage(address, tags["model_sha256"]) if address else "logged model missing")
    return ", ".join(filter(None, found))


def _damaged_evidence(folder: Path, sums: str) -> Iterator[str]:
    """Compare the evidence with its recorded sums; a run of an earlier version has none."""
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in sums.splitlines())}
    for name in EVIDENCE:
        if not (folder / name).is_file():
            yield f"{name} missing"
        elif name in expected and file_sha256(folder / name) != expected[name]:
            yield f"{name} altered"


def _damaged(context: CheckContext, run: Run, damage: str) -> Finding:
    client, run_id, where = context.client, run.info.run_id, run_title(run)
    if damage:
        repair = repairing("the run has a tag that says so", client.set_tag, run_id, DAMAGED, damage)
        return Finding(Kind.FILES, where, damage, "writes it on the run; bring the file back from a copy", repair)
    what = f"its files are back, and it still says {run.data.tags[DAMAGED]!r}"
    repair = repairing("the tag is removed from the run", client.delete_tag, run_id, DAMAGED)
    return Finding(Kind.FILES, where, what, "takes that from the run", repair)
