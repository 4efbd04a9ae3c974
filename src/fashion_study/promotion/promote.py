"""The promotion: a challenger becomes champion when the evidence says so, and the decision is kept."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from pydantic import ValidationError

from fashion_study.data.catalog import KINDS, locate
from fashion_study.errors import BadInputError, DamagedModelError, DataError, ExitCode, StudyError
from fashion_study.libraries import stderr_into
from fashion_study.promotion.decision import Contender, Decision, Outcome, PromotionConfig, utc_now
from fashion_study.promotion.evidence import Examiner, judge_signature, load_verified
from fashion_study.promotion.view import decision_page
from fashion_study.store.failures import store_failures
from fashion_study.store.store import Store
from fashion_study.text import shown, shown_list
from fashion_study.tracking.aliases import (
    ConcurrentUpdateError,
    previous_champion,
    promotion_lock,
    rollback,
    set_champion,
    sync_alias,
)
from fashion_study.tracking.registry import CHALLENGER, ModelRef, RegisteredModel, Registry, Version
from fashion_study.tracking.search import find_run, read_artifact
from fashion_study.trial import BASELINE_NUMBER, DataSource, TrialState

# What a forced promotion does not ask.
STATISTICS = ("accuracy", "recall per class", "parameters", "latency", "fidelity")

PROMOTE_AGAIN = "What was decided before is recorded there; promote again when it answers."


class NoReferenceModelError(StudyError):
    """There is neither a champion nor a complete baseline trial."""

    exit_code = ExitCode.ANSWER_IS_NO


def promote(config: PromotionConfig, store: Store) -> Decision:
    """Compare the challenger with the champion, and make it champion if every gate lets it through.

    Without a champion it has to beat the baseline trial of its study. The decision, a refusal too, is recorded on
    the challenger's run and on both versions; a dry run moves and records nothing, but what it reads of the holdout
    is counted like any other reading. With `rollback` the previous champion becomes champion again.

    Raises:
        BadInputError: nothing in the store fits the options.
        StoreError: the store gives up, another promotion is running, or a model's file is damaged.
        DataError: the images are not those that the challenger was trained on.
        StudyError: there is no model to compare with or to go back to, or another command moved the alias.
    """
    with store_failures(store, PROMOTE_AGAIN):
        # Before the lock: where no server answers, nothing is made.
        registry = Registry(store.client())
        with promotion_lock(store.root), stderr_into(store.root / "logs" / "promotion.log"):
            models = registry.models()
            if config.rollback:
                return _roll_back(registry, _choose_model(models, config.study))
            challenger = choose_challenger(models, config)
            model = next(model for model in models if model.name == challenger.name)
            return _promote(registry, model, challenger, config)


def _promote(registry: Registry, model: RegisteredModel, challenger: Version, config: PromotionConfig) -> Decision:
    champion = model.champion
    if champion is not None and not config.dry_run:
        _complete(registry, model, champion)
    if champion is not None and champion.number == challenger.number:
        if not config.dry_run:
            sync_alias(registry, model)
        return _decision(challenger, outcome=Outcome.NOTHING_TO_DO)
    decide = _judge if config.force is None else _force
    decision = decide(registry, challenger, champion, config)
    if config.dry_run:
        return decision
    if decision.failed:
        return _record(registry, decision, challenger, champion)
    return _carry_out(registry, decision, challenger, champion, lambda: set_champion(registry, model, challenger))


def _judge(registry: Registry, challenger: Version, champion: Version | None, config: PromotionConfig) -> Decision:
    """Decide by every gate."""
    source = _same_images(challenger, config.data_dir)
    reference = _baseline_of(registry.client, challenger) if champion is None else _as_contender(champion, "champion")
    draft = _decision(challenger, reference=reference, limits=config.gates, dry_run=config.dry_run)
    return Examiner(registry, source, config.gates, _parent_run(registry.client, challenger)).judge(draft)


def _force(registry: Registry, challenger: Version, champion: Version | None, config: PromotionConfig) -> Decision:
    """Decide by what no force skips: checksum, safe loading and signature."""
    reference = champion and _as_contender(champion, "champion")
    reason = (config.force or "").strip()
    draft = _decision(challenger, reference=reference, limits=config.gates, forced=reason, skipped=STATISTICS)
    return judge_signature(registry, draft)


def _roll_back(registry: Registry, model: RegisteredModel) -> Decision:
    if model.champion is not None:
        _complete(registry, model, model.champion)
    previous = previous_champion(model)
    # A damaged file is not put back into use.
    load_verified(registry, previous, _dataset(previous))
    reference = model.champion and _as_contender(model.champion, "champion")
    decision = _decision(previous, reference=reference, is_rollback=True)
    return _carry_out(registry, decision, previous, model.champion, lambda: rollback(registry, model))


def _carry_out(
    registry: Registry, decision: Decision, version: Version, champion: Version | None, move: Callable[[], None]
) -> Decision:
    """Move the alias between two records: killed in between, the decision says that it is pending."""
    _log(registry.client, decision)
    try:
        move()
    except ConcurrentUpdateError:
        _record(registry, decision.model_copy(update={"outcome": Outcome.LOST}), version, None)
        raise
    return _record(registry, _carried_out(decision), version, champion)


def _complete(registry: Registry, model: RegisteredModel, champion: Version) -> None:
    """Record how the champion's latest decision ended, where the command was killed after it had moved the alias."""
    try:
        folders = [str(entry.path) for entry in registry.client.list_artifacts(champion.run_id, "decisions")]
        latest = read_artifact(registry.client, champion.run_id, f"{max(folders)}/decision.json") if folders else None
        decision = latest and Decision.model_validate_json(latest)
    except (MlflowException, OSError, ValidationError):
        return  # None that can be read.
    if decision and decision.outcome is Outcome.PENDING:
        replaced = model.version(decision.reference.version) if decision.reference else None
        _record(registry, _carried_out(decision), champion, replaced)


def _carried_out(decision: Decision) -> Decision:
    outcome = Outcome.ROLLED_BACK if decision.is_rollback else Outcome.PROMOTED
    return decision.model_copy(update={"outcome": outcome})


def _decision(version: Version, **known: Any) -> Decision:
    """Return a decision about a version, pending as long as nothing else is known."""
    return Decision(
        registered_model=version.name,
        dataset=_dataset(version),
        challenger=_as_contender(version, "challenger"),
        code_version=installed_version("fashion-study"),
        **{"outcome": Outcome.PENDING, "at": utc_now(), **known},
    )


def _record(registry: Registry, decision: Decision, version: Version, champion: Version | None) -> Decision:
    """Keep a decision on the challenger's run and, in short, on both versions."""
    _log(registry.client, decision)
    tags = {"decision": decision.outcome.value, "decision_at": decision.at, "decision_folder": decision.folder}
    tags |= {"decision_reason": decision.forced} if decision.forced else {}
    registry.tag(version, tags | ({"decision_against": str(decision.reference)} if decision.reference else {}))
    if champion is not None:
        outcome = "kept" if decision.outcome is Outcome.REFUSED else "replaced"
        told = {"challenged_by": str(version.number), "challenge_outcome": outcome, "challenge_at": decision.at}
        registry.tag(champion, told | {"challenge_run": version.run_id, "challenge_folder": decision.folder})
    return decision


def _log(client: MlflowClient, decision: Decision) -> None:
    run_id, folder = decision.challenger.run_id, decision.folder
    if find_run(client, run_id) is None:
        return  # Of a rollback to a version whose run was deleted for good: the versions' tags say it all the same.
    client.log_text(run_id, decision.model_dump_json(indent=2), f"{folder}/decision.json")
    client.log_text(run_id, decision_page(decision), f"{folder}/decision.html")


def _same_images(version: Version, data_dir: Path | None) -> DataSource:
    source = locate(_dataset(version), data_dir)
    if (digest := version.tags.get("data_digest", source.digest)) != source.digest:
        raise DataError(
            f"{version} was trained on images with the digest {digest[:12]}…, and {source.name} here has "
            f"{source.digest[:12]}…. Expected the same images: a part of these may be among those it was trained on."
        )
    return source


def _dataset(version: Version) -> str:
    if (name := version.tags.get("dataset")) not in KINDS:
        raise DamagedModelError(
            f"{version} has the tag dataset = {name!r}. Expected one of {', '.join(KINDS)}. "
            "python -m experiments.doctor --fix takes a deleted tag from its run."
        )
    return str(name)


def choose_challenger(models: Sequence[RegisteredModel], config: PromotionConfig) -> Version:
    """Return the version that is asked for.

    Raises:
        BadInputError: there is none, or several fit.
        DamagedModelError: it was not registered by this project.
    """
    chosen = _chosen([version for model in models for version in model.versions], config)
    if "dataset" not in chosen.tags or not chosen.sha256:
        raise DamagedModelError(
            f"{chosen} has no tag 'dataset' or 'model_sha256'. Expected both, as this project registers a version; "
            "python -m experiments.doctor --fix takes a deleted tag from its run."
        )
    return chosen


def _choose_model(models: Sequence[RegisteredModel], study: str | None) -> RegisteredModel:
    """Return the registered model to roll back: the only one with a champion, or that of a study.

    Raises:
        BadInputError: there is none, or several fit.
    """
    if study is not None:
        name = _latest_of_study([version for model in models for version in model.versions], study).name
        return next(model for model in models if model.name == name)
    found = [model for model in models if model.champion is not None]
    if len(found) > 1:
        names = " and ".join(model.name for model in found)
        raise BadInputError(f"{names} have a champion each. Name a study of one of them with --study.")
    if not found:
        raise BadInputError(
            "No registered model has a champion. Expected one to go back from; promote a version first."
        )
    return found[0]


def _as_contender(version: Version, role: Literal["challenger", "champion"]) -> Contender:
    tags = {key: version.tags.get(key, "") for key in ("trial", "parameter_count")}
    numbers = {key: int(number) for key, number in tags.items() if number.isdecimal()}
    return _contender(role, version, version=version.number, study=version.study, **numbers)


def _contender(role: str, model: ModelRef, **known: str | int | None) -> Contender:
    own = {"role": role, "title": model.title, "run_id": model.run_id, "sha256": model.sha256, "model_uri": model.uri}
    return Contender.model_validate(own | known)


def _baseline_of(client: MlflowClient, challenger: Version) -> Contender:
    """Return the baseline trial of the challenger's study, which a first champion has to beat.

    Raises:
        NoReferenceModelError: the challenger has no study, or its baseline trial is not complete.
    """
    study_run = _parent_run(client, challenger)
    condition = (
        f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{study_run}' and tags.kind = 'trial' "
        f"and tags.trial = '{BASELINE_NUMBER}' and tags.state = '{TrialState.COMPLETE}'"
    )
    runs = client.search_runs([client.get_run(study_run).info.experiment_id], condition)
    run = next((run for run in runs if "model_uri" in run.data.tags), None)
    if run is None:
        raise NoReferenceModelError(
            f"There is no champion, and {challenger} comes from no study with a complete baseline trial. Expected one "
            'of them to compare with. Promote it without a comparison: --force "the reason".'
        )
    study = run.data.tags["study"]
    model = replace(ModelRef.of_run(run), title=f"the baseline trial of study {study}")
    return _contender("baseline trial", model, study=study, trial=BASELINE_NUMBER)


def _parent_run(client: MlflowClient, version: Version) -> str:
    """Return the run above a version's run, its study's where it has one: readings of the holdout are counted there.

    Raises:
        DamagedModelError: the version's run is gone.
    """
    try:
        tags = client.get_run(version.run_id).data.tags
    except MlflowException as error:
        raise DamagedModelError(
            f"The run {version.run_id!r} of {version} is gone: {error}. Expected the evidence that it was registered "
            "with. Register a fresh model, by running its study again."
        ) from error
    return str(tags.get(MLFLOW_PARENT_RUN_ID) or version.tags.get("study_run", version.run_id))


def _chosen(versions: list[Version], config: PromotionConfig) -> Version:
    if config.study is not None:
        return _latest_of_study(versions, config.study)
    if config.run is not None:
        found = [version for version in versions if version.run_id == config.run]
        nothing, option = f"No version was registered from the run {shown(config.run)}", "--version"
    elif config.version is not None:
        found = [version for version in versions if version.number == config.version]
        nothing, option = f"No registered model has a version {config.version}", "--run"
    else:
        found = [version for version in versions if CHALLENGER in version.aliases]
        listed = shown_list(tuple(version.number for version in versions)) or "none is there"
        nothing = f"No version has the alias 'challenger'; with --version one can be named ({listed})"
        option = "--study"
    if not found:
        raise BadInputError(f"{nothing}. Run a study first, whose end registers one, or name its store with --store.")
    if len(found) > 1:
        raise BadInputError(f"{' and '.join(map(str, found))} could be meant. Name the one with {option}.")
    return found[0]


def _latest_of_study(versions: list[Version], study: str) -> Version:
    """Return the challenger of a study where it still is the challenger, else the study's latest version."""
    own = [version for version in versions if version.study == study]
    if not own:
        studies = sorted({version.study for version in versions if version.study})
        raise BadInputError(
            f"No version comes from a study {shown(study)}. "
            f"Expected one of {shown_list(tuple(studies)) or 'none: run a study'}."
        )
    return max(own, key=lambda version: (CHALLENGER in version.aliases, version.number))
