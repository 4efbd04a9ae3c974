"""The model registry: versions compared with their runs and models, aliases with their versions."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.exceptions import MlflowException

from fashion_study.doctor.context import CheckContext
from fashion_study.doctor.files import DAMAGED, model_damage
from fashion_study.errors import DamagedModelError
from fashion_study.finding import Finding, Kind, repairing
from fashion_study.store.relocation import local_path
from fashion_study.tracking.aliases import PromotionRunningError, promotion_lock, sync_alias
from fashion_study.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, RegisteredModel, Registry, Version
from fashion_study.tracking.search import find_run


def damaged_registry(context: CheckContext) -> Iterator[Finding]:
    """Compare every registered model of this project with its runs and files, unless a promotion is running."""
    with ExitStack() as alone:
        try:
            alone.enter_context(promotion_lock(context.store.root))
        except PromotionRunningError:
            context.notes.append("A promotion is at work, or another doctor: the registry is left alone.")
            return
        registry = Registry(context.client)
        for model in registry.models():
            yield from _dangling_aliases(registry, model)
            # Read again: an alias may have been repaired.
            for version in registry.model(model.name).versions:
                yield from _damaged_version(registry, version)
            yield from _stale_alias(registry, registry.model(model.name))


def _dangling_aliases(registry: Registry, model: RegisteredModel) -> Iterator[Finding]:
    """Find aliases whose version is gone."""
    for alias, number in model.aliases.items():
        if model.version(number) is None:
            heir = model.by_alias(PREVIOUS_CHAMPION) if alias == CHAMPION else None
            yield _dangling_alias(registry, model.name, alias, number, heir)


def _dangling_alias(registry: Registry, name: str, alias: str, number: int, heir: Version | None) -> Finding:
    def repair() -> str:
        if heir is not None:
            registry.move_alias(name, alias, heir.number)
            return f"it points to version {heir.number}"
        registry.client.delete_registered_model_alias(name, alias)
        return "it is gone"

    remedy = "takes the alias away" if heir is None else f"points it to the previous champion, version {heir.number}"
    return Finding(Kind.ALIAS, f"{name}@{alias}", f"points to version {number}, which is gone", remedy, repair)


def _damaged_version(registry: Registry, version: Version) -> Iterator[Finding]:
    run = find_run(registry.client, version.run_id)
    if run is not None and run.info.lifecycle_stage != "active":
        yield _deleted(registry, version)
    damage = [_model_damage(registry, version)] if version.model.sha256 else []
    if run is None:
        damage.append("its run is gone")
    found = ", ".join(filter(None, damage))
    if found and CHAMPION in version.aliases:
        remedy = "nothing: only you can choose another champion (python -m experiments.promote, or its --rollback)"
        yield Finding(Kind.VERSION, f"{version}, the champion", found, remedy)
    elif found != version.tags.get(DAMAGED, "") or (found and CHALLENGER in version.aliases):
        yield _damaged(registry, version, found)


def _deleted(registry: Registry, version: Version) -> Finding:
    what = f"comes from the run {version.run_id}, which is deleted in MLflow"
    repair = repairing("restored", registry.client.restore_run, version.run_id)
    return Finding(Kind.DELETED_RUN, str(version), what, "restores the run", repair)


def _damaged(registry: Registry, version: Version, damage: str) -> Finding:
    is_challenger = bool(damage) and CHALLENGER in version.aliases

    def repair() -> str:
        if not damage:
            registry.client.delete_model_version_tag(version.name, str(version.number), DAMAGED)
            return "the tag is removed from it"
        registry.tag(version, {DAMAGED: damage})
        if is_challenger:
            registry.remove_alias(version.name, CHALLENGER)
        return "the version has a tag that says so"

    if not damage:
        what = f"is sound again, and still says {version.tags[DAMAGED]!r}"
        return Finding(Kind.VERSION, str(version), what, "takes that from the version", repair)
    remedy = "writes it on the version" + (", takes the alias challenger from it" if is_challenger else "")
    return Finding(Kind.VERSION, str(version), damage, remedy, repair)


def _model_damage(registry: Registry, version: Version) -> str | None:
    model_id = version.model.uri.removeprefix("models:/")
    try:
        is_logged = model_id.startswith("m-")
        address = registry.client.get_logged_model(model_id).artifact_location if is_logged else model_id
    except MlflowException:
        return "logged model missing"
    if (folder := local_path(address)) is not None:
        return model_damage(folder, version.model.sha256)
    try:
        with TemporaryDirectory() as target:
            registry.fetch(version.model, Path(target))
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
