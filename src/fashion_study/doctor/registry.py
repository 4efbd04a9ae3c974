"""The model registry: versions compared with their runs and models, aliases with their versions."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fashion_study.data.catalog import KINDS
from fashion_study.doctor.context import CheckContext
from fashion_study.doctor.files import DAMAGED, model_damage
from fashion_study.errors import DamagedModelError
from fashion_study.finding import Finding, Kind, repairing
from fashion_study.store.relocation import local_path
from fashion_study.tracking.aliases import PromotionRunningError, promotion_lock, sync_alias
from fashion_study.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    LINE,
    PREVIOUS_CHAMPION,
    RegisteredModel,
    Registry,
    Version,
)
from fashion_study.tracking.search import dataset_of, find_run


def damaged_registry(context: CheckContext) -> Iterator[Finding]:
    """Compare every registered model of this project with its runs and files, unless a promotion is running."""
    registry = Registry(context.client)
    try:
        # A copy is as it was when it was made, whatever is at work.
        with promotion_lock(context.store.root) if context.store.copies is None else nullcontext():
            for model in registry.models():
                yield from _dangling_aliases(registry, model)
                # Read again: an alias may have been repaired.
                for version in registry.model(model.name).versions:
                    yield from _damaged_version(registry, version)
                yield from _stale_alias(registry, registry.model(model.name))
    except PromotionRunningError:
        context.notes.append("A promotion is at work, or another doctor: the registry is left alone.")


def _dangling_aliases(registry: Registry, model: RegisteredModel) -> Iterator[Finding]:
    """Find aliases whose version is gone, and the alias of a champion that is gone itself."""
    for alias, number in model.aliases.items():
        if model.version(number) is not None:
            continue
        if alias == CHAMPION and (heir := model.by_alias(PREVIOUS_CHAMPION)) is not None:
            remedy = f"points it to the previous champion, version {heir.number}"
            done = f"it points to version {heir.number}"
            repair = repairing(done, registry.move_alias, model.name, alias, heir.number)
        else:
            remedy = "takes the alias away"
            repair = repairing("it is gone", registry.client.delete_registered_model_alias, model.name, alias)
        yield Finding(Kind.ALIAS, f"{model.name}@{alias}", f"points to version {number}, which is gone", remedy, repair)
    former = [str(version.number) for version in model.versions if LINE in version.tags]
    if CHAMPION not in model.aliases and former:
        what = f"is deleted in MLflow; champion before: version {', '.join(former)}"
        remedy = "nothing: only you can choose one (python -m experiments.promote --version N --force REASON)"
        yield Finding(Kind.ALIAS, f"{model.name}@{CHAMPION}", what, remedy)


def _damaged_version(registry: Registry, version: Version) -> Iterator[Finding]:
    run = find_run(registry.client, version.run_id)
    if run is not None and run.info.lifecycle_stage != "active":
        what = f"comes from the run {version.run_id}, which is deleted in MLflow"
        repair = repairing("restored", registry.client.restore_run, version.run_id)
        yield Finding(Kind.DELETED_RUN, str(version), what, "restores the run", repair)
    if run is not None and (lost := _lost_tags(registry, version, run)):
        repair = repairing("they are there again", registry.tag, version, lost)
        what = f"lacks the tags {', '.join(lost)}, which it was registered with"
        yield Finding(Kind.VERSION, str(version), what, "takes them from its run", repair)
    damage = [_model_damage(registry, version)] if version.sha256 else []
    if run is None:
        damage.append("its run is gone")
    found = ", ".join(filter(None, damage))
    if found and CHAMPION in version.aliases:
        remedy = "nothing: only you can choose another champion (python -m experiments.promote, or its --rollback)"
        yield Finding(Kind.VERSION, f"{version}, the champion", found, remedy)
    elif found != version.tags.get(DAMAGED, "") or (found and CHALLENGER in version.aliases):
        yield _damaged(registry, version, found)


def _lost_tags(registry: Registry, version: Version, run: Run) -> dict[str, str]:
    """Return the tags of a version that a user has deleted and that its run, or the one above that, still knows."""
    dataset = dataset_of(registry.client, run)
    known = {"model_sha256": run.data.tags.get("model_sha256"), "dataset": dataset if dataset in KINDS else None}
    return {key: value for key, value in known.items() if value and key not in version.tags}


def _damaged(registry: Registry, version: Version, damage: str) -> Finding:
    if not damage:
        what = f"is sound again, and still says {version.tags[DAMAGED]!r}"
        arguments = version.name, str(version.number), DAMAGED
        repair = repairing("the tag is removed from it", registry.client.delete_model_version_tag, *arguments)
        return Finding(Kind.VERSION, str(version), what, "takes that from the version", repair)
    is_challenger = CHALLENGER in version.aliases

    def mark() -> str:
        registry.tag(version, {DAMAGED: damage})
        if is_challenger:
            registry.remove_alias(version.name, CHALLENGER)
        return "the version has a tag that says so"

    remedy = "writes it on the version" + (", takes the alias challenger from it" if is_challenger else "")
    return Finding(Kind.VERSION, str(version), damage, remedy, mark)


def _model_damage(registry: Registry, version: Version) -> str | None:
    try:
        folder = local_path(registry.folder(version.uri))
    except MlflowException:
        return "logged model missing"
    if folder is not None:
        return model_damage(folder, version.sha256)
    try:
        with TemporaryDirectory() as target:
            registry.fetch(version, Path(target))
    except DamagedModelError:
        return "model.keras missing or altered"
    return None


def _stale_alias(registry: Registry, model: RegisteredModel) -> Iterator[Finding]:
    """Find a `previous-champion` that is not what the champion's tag says: a command was killed between the two."""
    previous, shown = model.previous, model.by_alias(PREVIOUS_CHAMPION)
    if previous == shown:
        return
    repair = repairing(f"it is {previous or 'gone'}", sync_alias, registry, model)
    what = f"points to {shown or 'nothing'}, and {previous or 'no version'} was champion before"
    remedy = f"points it to {previous}" if previous else "takes the alias away"
    yield Finding(Kind.PREVIOUS_CHAMPION, f"{model.name}@{PREVIOUS_CHAMPION}", what, remedy, repair)
