"""The promotion: a challenger becomes champion when the evidence says so, and the decision is kept."""

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from fashion_study.data.catalog import KINDS, locate
from fashion_study.errors import DamagedModelError, DataError, ExitCode, StudyError
from fashion_study.promotion.contenders import as_contender, baseline_of, choose_challenger, choose_name, parent_run
from fashion_study.promotion.decision import Decision, Outcome, PromotionConfig
from fashion_study.promotion.evidence import Examiner, check_signature
from fashion_study.promotion.view import decision_page
from fashion_study.stderr import stderr_into
from fashion_study.store.failures import store_failures
from fashion_study.store.store import find_store
from fashion_study.tracking.aliases import Champions, ConcurrentUpdateError, promotion_lock
from fashion_study.tracking.registry import CHALLENGER, CHAMPION, Registry, Version
from fashion_study.trial import DataSource

# What a forced promotion does not ask.
STATISTICS = ("accuracy", "recall per class", "parameters", "latency", "fidelity")

PROMOTE_AGAIN = "What was decided before is recorded there; promote again when it answers."


class NoPreviousChampionError(StudyError):
    """Report that no version was champion before this one."""

    exit_code = ExitCode.ANSWER_IS_NO


def promote(config: PromotionConfig) -> Decision:
    """Compare the challenger with the champion, and make it champion if every gate lets it through.

    Without a champion it has to beat the baseline trial of its study. The decision, a refusal too, is recorded on
    the challenger's run and on both versions; a dry run moves and records nothing, but what it reads of the holdout
    is counted like any other reading. With `rollback` the previous champion becomes champion again.

    Raises:
        BadInputError: the options do not fit, or nothing in the store fits them.
        StoreError: there is no store or it gives up, another promotion is running, or a model's file is damaged.
        DataError: the images are not those that the challenger was trained on.
        StudyError: there is nobody to compare with or to go back to, or another command moved the alias.
    """
    config.check()
    store = find_store(config.store)
    # Before the lock: where no server answers, nothing is made.
    store.require_server()
    with store_failures(store, PROMOTE_AGAIN), promotion_lock(store.root):
        client = store.client()
        if config.rollback:
            return _roll_back(client, choose_name(Registry(client), config.study))
        version = choose_challenger(Registry(client), config)
        with stderr_into(store.root / "logs" / "promotion.log"):
            return _promote(client, version, config)


def _promote(client: MlflowClient, version: Version, config: PromotionConfig) -> Decision:
    champions = Champions(client, version.name)
    champion = champions.current()
    if champion is not None and not config.dry_run:
        _complete(client, champion)
    if champion is not None and champion.number == version.number:
        if not config.dry_run:
            champions.sync_alias()
        return _decision(version, Outcome.NOTHING_TO_DO)
    decide = _judged if config.force is None else _forced
    decision = decide(client, version, champion, config)
    if config.dry_run:
        return decision
    if decision.failed:
        return _record(client, decision, version, champion)
    return _carry_out(client, decision, version, champion, lambda: champions.set_champion(version, champion))


def _judged(client: MlflowClient, version: Version, champion: Version | None, config: PromotionConfig) -> Decision:
    """Ask every gate."""
    source = _same_images(version, config.data_dir)
    opponent = baseline_of(client, version) if champion is None else as_contender(champion, CHAMPION)
    examiner = Examiner(client, source, config.gates, parent_run(client, version))
    evidence = examiner.compare(as_contender(version, CHALLENGER), opponent)
    return _decision(
        version,
        Outcome.PENDING if all(gate.passed for gate in evidence.gates) else Outcome.REFUSED,
        challenger=evidence.challenger,
        opponent=evidence.opponent,
        gates=evidence.gates,
        recalls=evidence.recalls,
        holdout=evidence.holdout,
        limits=config.gates,
        dry_run=config.dry_run,
    )


def _forced(client: MlflowClient, version: Version, champion: Version | None, config: PromotionConfig) -> Decision:
    """Ask only what no force gets around: checksum, safe loading and signature."""
    opponent = None if champion is None else as_contender(champion, CHAMPION)
    signature = check_signature(Registry(client), as_contender(version, CHALLENGER), opponent)
    return _decision(
        version,
        Outcome.PENDING if signature.passed else Outcome.REFUSED,
        opponent=opponent,
        gates=(signature,),
        skipped=STATISTICS,
        limits=config.gates,
        forced=(config.force or "").strip(),
    )


def _roll_back(client: MlflowClient, name: str) -> Decision:
    champions = Champions(client, name)
    champion, previous = champions.current(), champions.previous()
    if champion is not None:
        _complete(client, champion)
    if champion is None or previous is None:
        raise NoPreviousChampionError(
            f"{champion or name} cannot be rolled back: no version was champion before it. "
            "Expected an earlier promotion. Nothing was moved; promote another version instead."
        )
    _check_file(Registry(client), previous)
    opponent = as_contender(champion, CHAMPION)
    decision = _decision(previous, Outcome.PENDING, opponent=opponent, is_rollback=True)
    return _carry_out(client, decision, previous, champion, champions.rollback)


def _carry_out(
    client: MlflowClient, decision: Decision, version: Version, champion: Version | None, move: Callable[[], object]
) -> Decision:
    """Move the alias between two records: killed in between, the decision says that it is pending."""
    _log(client, decision)
    try:
        move()
    except ConcurrentUpdateError:
        _record(client, decision.model_copy(update={"outcome": Outcome.LOST}), version, None)
        raise
    outcome = Outcome.ROLLED_BACK if decision.is_rollback else Outcome.PROMOTED
    return _record(client, decision.model_copy(update={"outcome": outcome}), version, champion)


def _complete(client: MlflowClient, champion: Version) -> None:
    """Record how the champion's latest decision ended, where the command was killed after it had moved the alias."""
    if (decision := _latest_decision(client, champion)) is None or decision.outcome is not Outcome.PENDING:
        return
    outcome = Outcome.ROLLED_BACK if decision.is_rollback else Outcome.PROMOTED
    against = decision.opponent and decision.opponent.version
    replaced = (version for version in Registry(client).versions(champion.name) if version.number == against)
    _record(client, decision.model_copy(update={"outcome": outcome}), champion, next(replaced, None))


def _latest_decision(client: MlflowClient, version: Version) -> Decision | None:
    """Read the latest decision about a version; None where there is none, or none that can be read."""
    try:
        folders = [str(entry.path) for entry in client.list_artifacts(version.run_id, "decisions")]
        if not folders:
            return None
        with TemporaryDirectory() as folder:
            path = client.download_artifacts(version.run_id, f"{max(folders)}/decision.json", folder)
            return Decision.model_validate_json(Path(path).read_bytes())
    except (MlflowException, OSError, ValidationError):
        return None


def _check_file(registry: Registry, version: Version) -> None:
    """Refuse to put a damaged file back into use."""
    from fashion_study.training.model_file import check_model_file

    with TemporaryDirectory() as folder:
        check_model_file(registry.fetch(version, Path(folder)))


def _decision(version: Version, outcome: Outcome, **evidence: Any) -> Decision:
    known = {
        "outcome": outcome,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "registered_model": version.name,
        "dataset": _dataset(version),
        "challenger": as_contender(version, CHALLENGER),
        "code_version": installed_version("fashion-study"),
    }
    return Decision.model_validate(known | evidence)


def _record(client: MlflowClient, decision: Decision, version: Version, champion: Version | None) -> Decision:
    """Keep a decision on the challenger's run and, in short, on both versions."""
    _log(client, decision)
    registry = Registry(client)
    attrs = {"decision": decision.outcome.value, "decision_at": decision.at, "decision_folder": decision.folder}
    attrs |= {"decision_reason": decision.forced} if decision.forced else {}
    registry.tag(version, attrs | ({"decision_against": str(decision.opponent)} if decision.opponent else {}))
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
    tag = version.tags.get("dataset")
    if tag not in KINDS:
        raise DamagedModelError(
            f"{version} has the tag dataset = {tag!r}. Expected one of {', '.join(KINDS)}. "
            "Run its study again, which registers it anew."
        )
    return tag
