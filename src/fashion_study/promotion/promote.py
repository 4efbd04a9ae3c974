"""The promotion: a challenger becomes champion when the evidence says so, and the decision is kept."""

from collections.abc import Callable
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from fashion_study.data.catalog import KINDS, locate
from fashion_study.errors import DamagedModelError, DataError
from fashion_study.promotion.contenders import as_contender, baseline_of, choose_challenger, choose_model, parent_run
from fashion_study.promotion.decision import Decision, Outcome, PromotionConfig, utc_now
from fashion_study.promotion.evidence import Examiner, judge_signature, load_verified
from fashion_study.promotion.view import decision_page
from fashion_study.stderr import stderr_into
from fashion_study.store.failures import store_failures
from fashion_study.store.mlflow_server import check_server_reachable
from fashion_study.store.store import Store
from fashion_study.tracking.aliases import (
    ConcurrentUpdateError,
    previous_champion,
    promotion_lock,
    rollback,
    set_champion,
    sync_alias,
)
from fashion_study.tracking.registry import CHALLENGER, CHAMPION, RegisteredModel, Registry, Version
from fashion_study.tracking.search import read_artifact
from fashion_study.trial import DataSource

# What a forced promotion does not ask.
STATISTICS = ("accuracy", "recall per class", "parameters", "latency", "fidelity")

PROMOTE_AGAIN = "What was decided before is recorded there; promote again when it answers."


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
    # Before the lock: where no server answers, nothing is made.
    check_server_reachable(store.tracking_uri)
    with store_failures(store, PROMOTE_AGAIN), promotion_lock(store.root):
        registry = Registry(store.client())
        models = registry.models()
        with stderr_into(store.root / "logs" / "promotion.log"):
            if config.rollback:
                return _roll_back(registry, choose_model(models, config.study))
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
    reference = baseline_of(registry.client, challenger) if champion is None else as_contender(champion, CHAMPION)
    draft = _decision(challenger, reference=reference, limits=config.gates, dry_run=config.dry_run)
    return Examiner(registry, source, config.gates, parent_run(registry.client, challenger)).judge(draft)


def _force(registry: Registry, challenger: Version, champion: Version | None, config: PromotionConfig) -> Decision:
    """Decide by what no force skips: checksum, safe loading and signature."""
    reference = champion and as_contender(champion, CHAMPION)
    reason = (config.force or "").strip()
    draft = _decision(challenger, reference=reference, limits=config.gates, forced=reason, skipped=STATISTICS)
    return judge_signature(registry, draft)


def _roll_back(registry: Registry, model: RegisteredModel) -> Decision:
    if model.champion is not None:
        _complete(registry, model, model.champion)
    previous = previous_champion(model)
    # A damaged file is not put back into use.
    load_verified(registry, previous, _dataset(previous))
    reference = model.champion and as_contender(model.champion, CHAMPION)
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
    decision = _latest_decision(registry.client, champion)
    if decision is not None and decision.outcome is Outcome.PENDING:
        replaced = model.version(decision.reference.version) if decision.reference else None
        _record(registry, _carried_out(decision), champion, replaced)


def _carried_out(decision: Decision) -> Decision:
    outcome = Outcome.ROLLED_BACK if decision.is_rollback else Outcome.PROMOTED
    return decision.model_copy(update={"outcome": outcome})


def _latest_decision(client: MlflowClient, version: Version) -> Decision | None:
    """Read the latest decision about a version; None where there is none, or none that can be read."""
    try:
        folders = [str(entry.path) for entry in client.list_artifacts(version.run_id, "decisions")]
        text = read_artifact(client, version.run_id, f"{max(folders)}/decision.json") if folders else None
        return None if text is None else Decision.model_validate_json(text)
    except (MlflowException, OSError, ValidationError):
        return None


def _decision(version: Version, **known: Any) -> Decision:
    """Return a decision about a version, pending as long as nothing else is known."""
    draft = {
        "outcome": Outcome.PENDING,
        "at": utc_now(),
        "registered_model": version.name,
        "dataset": _dataset(version),
        "challenger": as_contender(version, CHALLENGER),
        "code_version": installed_version("fashion-study"),
    }
    return Decision.model_validate(draft | known)


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
            "Run its study again, which registers it."
        )
    return str(name)
