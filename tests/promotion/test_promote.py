"""The promises of a promotion, kept on a real store: who becomes champion, what is counted, what is recorded."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fashion_study.data.dataset import Split
from fashion_study.data.holdout import load_holdout
from fashion_study.errors import BadInputError, DamagedModelError, DataError, ExitCode, StoreError
from fashion_study.promotion.decision import Decision, Outcome, PromotionConfig
from fashion_study.promotion.evidence import PREDICTIONS
from fashion_study.promotion.gates import Gates
from fashion_study.promotion.promote import NoReferenceModelError, choose_challenger, promote
from fashion_study.store.relocation import local_path
from fashion_study.store.store import find_store
from fashion_study.tracking.aliases import ConcurrentUpdateError, NoPreviousChampionError, set_champion
from fashion_study.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, Registry, Version
from fashion_study.trial import DataSource
from tests.faults.table import RecordFault
from tests.support.model_store import ModelStore, digits, trained

ROOT = Path(__file__).parents[2]
# Epochs of training: about 0.1, 0.4 and 0.9 of the digits right.
CHANCE, POOR, GOOD = 0, 2, 8
PROMOTE_AT = """
import sys, time
from fashion_study.promotion.decision import PromotionConfig
from fashion_study.errors import StudyError
from fashion_study.promotion.promote import promote
from fashion_study.store.store import find_store
import fashion_study.training.evaluation, fashion_study.training.model_file

print("ready", flush=True)
time.sleep(max(0.0, float(sys.stdin.readline()) - time.time()))
try:
    print(promote(PromotionConfig(), find_store(sys.argv[1])).outcome.value)
except StudyError as error:
    print(error.exit_code.value, error)
"""


class Scene(ModelStore):
    """A study with a poor baseline trial, and versions added as a test needs them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.study_run = self.study("digits-tiny")
        self.baseline_run = self.trial(self.study_run, 0, trained(POOR))

    def challenger(self, epochs: int = GOOD, seed: int = 0, **tags: str) -> Version:
        number = len(self.registry.model("digits-cnn").versions) + 1
        return self.register(self.trial(self.study_run, number, trained(epochs, seed)), **tags)

    def champion(self, epochs: int) -> Version:
        """Add a champion about which no decision is recorded."""
        version = self.challenger(epochs)
        set_champion(self.registry, self.registry.model(version.name), version)
        return version

    def forced_champion(self, epochs: int) -> Version:
        """Add a champion as a user makes one without a comparison."""
        version = self.challenger(epochs)
        self.promote(version=version.number, force="to begin with")
        return version


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "store")


@dataclass(frozen=True)
class Promotion:
    """A promotion of `new` in the place of `old`; no test changes its store."""

    scene: Scene
    old: Version
    new: Version
    decision: Decision


@pytest.fixture(scope="module")
def promotion(tmp_path_factory: pytest.TempPathFactory) -> Promotion:
    scene = Scene(tmp_path_factory.mktemp("promotion") / "store")
    old, new = scene.forced_champion(POOR), scene.challenger(GOOD)
    return Promotion(scene, old, new, scene.promote())


def test_a_first_champion_has_beaten_its_study_s_baseline_trial(scene: Scene) -> None:
    version = scene.challenger()
    decision = scene.promote()
    assert (decision.outcome, decision.exit_code, decision.failed) == (Outcome.PROMOTED, ExitCode.DONE, ())
    assert scene.aliases() == {CHALLENGER: version.number, CHAMPION: version.number}
    assert decision.reference is not None
    assert (decision.reference.role, decision.reference.run_id) == ("baseline trial", scene.baseline_run)
    assert [gate.name for gate in decision.gates] == [
        "accuracy",
        "recall per class",
        "parameters",
        "latency",
        "fidelity",
        "signature",
    ]


def test_without_a_champion_the_baseline_trial_has_to_be_beaten(scene: Scene) -> None:
    version = scene.challenger(CHANCE)
    decision = scene.promote()
    assert (decision.outcome, decision.exit_code) == (Outcome.REFUSED, ExitCode.ANSWER_IS_NO)
    assert "accuracy" in decision.failed
    assert scene.aliases() == {CHALLENGER: version.number}


def test_a_better_challenger_makes_the_champion_the_previous_one(promotion: Promotion) -> None:
    old, new, decision = promotion.old, promotion.new, promotion.decision
    assert decision.outcome is Outcome.PROMOTED
    assert decision.reference is not None
    assert (decision.reference.role, decision.reference.version) == ("champion", old.number)
    aliases = promotion.scene.aliases()
    assert aliases == {CHALLENGER: new.number, CHAMPION: new.number, PREVIOUS_CHAMPION: old.number}


def test_a_worse_challenger_is_refused_and_that_is_recorded(scene: Scene) -> None:
    champion, challenger = scene.champion(GOOD), scene.challenger(POOR)
    before = scene.aliases()
    decision = scene.promote()
    assert decision.outcome is Outcome.REFUSED
    assert {"accuracy", "recall per class"} <= set(decision.failed)
    assert scene.aliases() == before
    recorded = scene.decisions(challenger.run_id)
    assert [entry["outcome"] for entry in recorded] == ["refused"]
    assert scene.tags(challenger)["decision"] == "refused"
    told = scene.tags(champion)
    assert (told["challenged_by"], told["challenge_outcome"]) == (str(challenger.number), "kept")


def test_a_decision_is_recorded_with_everything_it_rests_on(promotion: Promotion) -> None:
    scene, old, new, decision = promotion.scene, promotion.old, promotion.new, promotion.decision
    (recorded,) = scene.decisions(new.run_id)
    assert recorded == json.loads(decision.model_dump_json())
    assert Decision.model_validate(recorded) == decision
    holdout: Any = recorded["holdout"]
    assert holdout == {"images": 359, "readings": 1, "counted_on_run": scene.study_run, "read_now": True}
    gates: Any = recorded["gates"]
    assert all(gate["value"] is not None and gate["limit"] is not None for gate in gates)
    tags = scene.tags(new)
    assert (tags["decision"], tags["decision_against"]) == ("promoted", str(old))
    assert tags["decision_folder"] == decision.folder
    assert scene.tags(old)["challenge_outcome"] == "replaced"
    assert scene.tags(old)["decision_reason"] == "to begin with", "its own decision is still told"


def test_the_page_of_a_decision_shows_it_and_needs_nothing_else(promotion: Promotion) -> None:
    decision = promotion.decision
    page = promotion.scene.text(promotion.new.run_id, f"{decision.folder}/decision.html")
    assert decision.sentence in page
    assert all(gate.name in page for gate in decision.gates)
    assert "<svg" in page
    assert not [word for word in ("<script", "src=", "http://", "https://", "@import", "url(") if word in page]


def test_what_a_user_writes_is_text_on_the_page(scene: Scene) -> None:
    version = scene.challenger()
    decision = scene.promote(force="<script>alert(1)</script> & more")
    page = scene.text(version.run_id, f"{decision.folder}/decision.html")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_challenger_that_is_champion_already_is_left_alone(scene: Scene) -> None:
    version = scene.challenger()
    scene.promote()
    before = scene.aliases()
    again = scene.promote()
    assert (again.outcome, again.exit_code, again.gates) == (Outcome.NOTHING_TO_DO, ExitCode.DONE, ())
    assert scene.aliases() == before
    assert len(scene.decisions(version.run_id)) == 1
    assert scene.readings(scene.study_run) == 1


def test_the_holdout_is_read_once_per_challenger_and_counted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    read_with_count: list[int] = []

    def watched(source: DataSource) -> Split:
        read_with_count.append(scene.readings(scene.study_run))
        return load_holdout(source)

    monkeypatch.setattr("fashion_study.promotion.evidence.load_holdout", watched)
    scene.challenger(POOR, seed=1)
    first, again = scene.promote(dry_run=True), scene.promote()
    scene.challenger(GOOD)
    second = scene.promote()

    assert read_with_count == [1, 2], "each is counted before it is made"
    assert scene.readings(scene.study_run) == 2
    readings = [decision.holdout for decision in (first, again, second)]
    assert [(one.readings, one.read_now) for one in readings if one] == [(1, True), (1, False), (2, True)]
    limits = [decision.gates[0].limit for decision in (first, again, second)]
    assert limits == [0.05, 0.05, 0.025]
    assert first.gates[0] == again.gates[0]


def test_another_champion_is_compared_from_kept_predictions(scene: Scene) -> None:
    first, second = scene.challenger(GOOD), scene.challenger(GOOD, seed=1)
    for version in (first, second):
        scene.promote(version=version.number, dry_run=True)
    scene.promote(version=first.number, force="another champion")
    decision = scene.promote(version=second.number, dry_run=True)
    assert decision.holdout is not None
    assert (decision.holdout.readings, decision.holdout.read_now) == (2, False)


def test_kept_predictions_of_another_model_are_made_anew(scene: Scene) -> None:
    version = scene.challenger()
    first = scene.promote(dry_run=True)
    sha256, digest = version.sha256, digits().source.digest
    kept = (
        "no JSON",
        json.dumps({"model_sha256": "0", "data_digest": digest, "labels": [1], "predicted": [1]}),
        json.dumps({"model_sha256": sha256, "data_digest": digest, "labels": [1], "predicted": [10]}),
        json.dumps({"model_sha256": sha256, "data_digest": digest, "labels": [1], "predicted": [1]}),
    )
    for readings, content in enumerate(kept, start=2):
        scene.client.log_text(version.run_id, content, PREDICTIONS)
        again = scene.promote(dry_run=True)
        assert again.holdout is not None
        assert (again.holdout.readings, again.holdout.read_now) == (readings, True), content
        assert [again.challenger.right, again.holdout.images] == [first.challenger.right, 359], content


def test_a_count_that_is_no_count_is_refused(scene: Scene) -> None:
    scene.challenger()
    scene.client.set_tag(scene.study_run, "holdout_readings", "often")
    with pytest.raises(StoreError, match="holdout_readings = 'often'"):
        scene.promote()
    assert CHAMPION not in scene.aliases()


def test_a_dry_run_moves_and_records_nothing_but_counts(scene: Scene) -> None:
    version = scene.challenger()
    tags = scene.tags(version)
    decision = scene.promote(dry_run=True)
    assert (decision.outcome, decision.exit_code) == (Outcome.PENDING, ExitCode.DONE)
    assert "would become champion" in decision.sentence
    assert scene.aliases() == {CHALLENGER: version.number}
    assert scene.tags(version) == tags
    assert scene.decisions(version.run_id) == []
    assert scene.readings(scene.study_run) == 1


def test_a_dry_run_that_would_be_refused_ends_as_a_refusal(scene: Scene) -> None:
    scene.challenger(CHANCE)
    decision = scene.promote(dry_run=True)
    assert (decision.outcome, decision.exit_code) == (Outcome.REFUSED, ExitCode.ANSWER_IS_NO)


def test_each_limit_refuses_alone(scene: Scene) -> None:
    scene.challenger()
    wide = {"max_latency_ms": 1e9}
    for limits, refusing in (
        ({"alpha": 1e-300}, "accuracy"),
        ({"max_parameters": 1707}, "parameters"),
        ({"max_latency_ms": 1e-9}, "latency"),
    ):
        decision = scene.promote(gates=Gates.model_validate(wide | limits))
        assert decision.failed == (refusing,)
        assert refusing in decision.sentence
        assert CHAMPION not in scene.aliases()


def test_a_class_that_falls_refuses_a_challenger_better_overall(scene: Scene) -> None:
    # Blind to one class and otherwise as good: against a champion at chance it gains more than it loses.
    blind = trained(GOOD)
    kernel, bias = blind.layers[-1].get_weights()
    bias[0] = -1e6
    twin = type(blind).from_config(blind.get_config())
    twin.set_weights(blind.get_weights())
    twin.layers[-1].set_weights([kernel, bias])
    only_zeros = type(blind).from_config(blind.get_config())
    only_zeros.set_weights([weights * 0 for weights in blind.get_weights()])
    champion = scene.register(scene.trial(scene.study_run, 1, only_zeros))
    set_champion(scene.registry, scene.registry.model(champion.name), champion)
    scene.register(scene.trial(scene.study_run, 2, twin))
    decision = scene.promote(gates=Gates(max_latency_ms=1e9))
    assert decision.failed == ("recall per class",)
    assert "class 0: -100.00 points" in decision.gates[1].sentence


def test_a_model_that_predicts_other_than_was_logged_is_refused(scene: Scene) -> None:
    version = scene.challenger()
    logged = json.loads(scene.text(version.run_id, "confusion_matrix.json"))["counts"]
    logged[3] = [logged[3][-1], *logged[3][:-1]]
    scene.client.log_dict(version.run_id, {"counts": logged}, "confusion_matrix.json")
    assert scene.promote().failed == ("fidelity",)


def test_a_confusion_matrix_that_is_none_counts_as_not_logged(scene: Scene) -> None:
    version = scene.challenger()
    for table in ('{"counts": [[0.5]]}', "[]"):
        scene.client.log_text(version.run_id, table, "confusion_matrix.json")
        decision = scene.promote()
        assert decision.failed == ("fidelity",), table
        assert decision.gates[4].sentence.startswith("not logged"), table


def test_another_signature_is_refused_even_by_force(scene: Scene) -> None:
    scene.champion(POOR)
    version = scene.challenger()
    card = scene.card_file(version)
    card.write_text(re.sub(r"28,(\s+)28", r"32,\g<1>32", card.read_text()))
    before = scene.aliases()
    assert scene.promote().failed == ("signature",)
    forced = scene.promote(force="I know better")
    assert (forced.outcome, forced.failed) == (Outcome.REFUSED, ("signature",))
    assert scene.aliases() == before


def test_a_tampered_model_file_is_refused_before_it_is_loaded(scene: Scene) -> None:
    scene.champion(POOR)
    version = scene.challenger()
    path = scene.model_file(version)
    path.write_bytes(path.read_bytes() + b"\0")
    before, readings = scene.aliases(), scene.readings(scene.study_run)
    for force in (None, "I know better"):
        with pytest.raises(DamagedModelError, match="altered since"):
            scene.promote(force=force)
    assert scene.aliases() == before
    assert scene.readings(scene.study_run) == readings


def test_a_file_swapped_with_its_digest_is_still_checked(scene: Scene) -> None:
    version = scene.challenger()
    path = scene.model_file(version)
    path.write_bytes(b"no model")
    scene.registry.tag(version, {"model_sha256": hashlib.sha256(b"no model").hexdigest()})
    with pytest.raises(DamagedModelError, match="not one that this project saves"):
        scene.promote()
    assert CHAMPION not in scene.aliases()


def test_a_champion_whose_run_is_gone_is_compared_all_the_same(scene: Scene) -> None:
    old, new = scene.champion(POOR), scene.challenger()
    delete_for_good(scene, old.run_id)

    assert scene.promote().outcome is Outcome.PROMOTED
    assert scene.aliases()[CHAMPION] == new.number
    assert scene.promote(rollback=True).outcome is Outcome.ROLLED_BACK
    assert scene.aliases()[CHAMPION] == old.number


def test_a_deleted_study_run_is_named_with_how_to_restore_it(scene: Scene) -> None:
    scene.challenger()
    scene.client.delete_run(scene.study_run)

    with pytest.raises(StoreError, match=f"mlflow runs restore --run-id {scene.study_run}"):
        scene.promote()
    assert CHAMPION not in scene.aliases()


def delete_for_good(scene: Scene, run_id: str) -> None:
    """Delete a run and its artifacts, as `mlflow gc` does; the logged model stays."""
    scene.client.delete_run(run_id)
    shutil.rmtree(str(local_path(scene.client.get_run(run_id).info.artifact_uri)))
    scene.client._tracking_client.store._hard_delete_run(run_id)


def test_a_damaged_champion_can_be_replaced_only_by_force(scene: Scene) -> None:
    old, new = scene.champion(POOR), scene.challenger()
    shutil.rmtree(scene.card_file(old).parent)
    with pytest.raises(DamagedModelError, match=str(old)):
        scene.promote()
    assert scene.promote(force="the champion's file is gone").outcome is Outcome.PROMOTED
    assert scene.aliases()[CHAMPION] == new.number


def test_force_skips_statistics_and_holdout_and_has_a_reason(scene: Scene) -> None:
    version = scene.challenger(CHANCE)
    decision = scene.promote(force="  first look ")
    assert (decision.outcome, decision.forced) == (Outcome.PROMOTED, "first look")
    assert "first look" in decision.sentence
    assert [gate.name for gate in decision.gates] == ["signature"]
    assert set(decision.skipped) == {"accuracy", "recall per class", "parameters", "latency", "fidelity"}
    assert scene.aliases()[CHAMPION] == version.number
    assert scene.tags(version)["decision_reason"] == "first look"
    assert scene.readings(scene.study_run) == 0
    assert PREDICTIONS not in {entry.path for entry in scene.client.list_artifacts(version.run_id)}


def test_rollback_goes_one_step_back_and_is_recorded(scene: Scene) -> None:
    old = scene.forced_champion(POOR)
    new = scene.challenger()
    scene.promote()
    decision = scene.promote(rollback=True)
    assert (decision.outcome, decision.exit_code) == (Outcome.ROLLED_BACK, ExitCode.DONE)
    assert decision.sentence == f"Rolled back: {old} is champion again, after {new}."
    assert scene.aliases() == {CHALLENGER: new.number, CHAMPION: old.number}
    assert [entry["outcome"] for entry in scene.decisions(old.run_id)] == ["promoted", "rolled back"]
    assert scene.tags(old)["decision"] == "rolled back"
    assert scene.tags(new)["challenge_outcome"] == "replaced"
    assert "comes back" in scene.text(old.run_id, f"{decision.folder}/decision.html")


def test_rollback_with_nothing_to_go_back_to_says_so(scene: Scene) -> None:
    version = scene.champion(POOR)
    with pytest.raises(NoPreviousChampionError, match="no version was champion before it") as refused:
        scene.promote(rollback=True)
    assert refused.value.exit_code == 1
    assert scene.aliases()[CHAMPION] == version.number


def test_rollback_never_puts_a_damaged_file_back_into_use(scene: Scene) -> None:
    old = scene.champion(POOR)
    scene.challenger()
    scene.promote()
    before = scene.aliases()
    scene.model_file(old).write_bytes(b"altered")
    with pytest.raises(DamagedModelError):
        scene.promote(rollback=True)
    assert scene.aliases() == before


def test_a_kill_before_the_move_leaves_a_pending_decision(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.champion(POOR)
    version = scene.challenger()
    before = scene.aliases()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killing:
        killing.setattr(Registry, "move_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            scene.promote()
    assert scene.aliases() == before
    (pending,) = scene.decisions(version.run_id)
    assert pending["outcome"] == "pending"
    assert str(pending["sentence"]).startswith("Decided and not carried out yet")

    again = scene.promote()
    assert again.outcome is Outcome.PROMOTED
    assert scene.readings(scene.study_run) == 1, "the predictions were kept"
    assert [entry["outcome"] for entry in scene.decisions(version.run_id)] == ["pending", "promoted"]


def kill_before_recording(scene: Scene, monkeypatch: pytest.MonkeyPatch, **asked: object) -> None:
    """Move the alias, and be killed before the decision says so."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killing:
        killing.setattr("fashion_study.promotion.promote._record", killed)
        with pytest.raises(KeyboardInterrupt):
            scene.promote(**asked)


def test_a_kill_after_the_move_is_completed_by_the_next_command(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    champion, version = scene.champion(POOR), scene.challenger()
    kill_before_recording(scene, monkeypatch)
    assert scene.aliases()[CHAMPION] == version.number
    assert scene.decisions(version.run_id)[-1]["outcome"] == "pending"

    assert scene.promote(dry_run=True).outcome is Outcome.NOTHING_TO_DO
    assert scene.decisions(version.run_id)[-1]["outcome"] == "pending", "a dry run records nothing"

    assert scene.promote().outcome is Outcome.NOTHING_TO_DO
    (completed,) = scene.decisions(version.run_id)
    assert completed["outcome"] == "promoted"
    assert scene.tags(version)["decision"] == "promoted"
    told = scene.tags(champion)
    assert (told["challenge_outcome"], told["challenged_by"]) == ("replaced", str(version.number))


def test_a_rollback_killed_after_the_move_is_completed_too(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    old = scene.forced_champion(POOR)
    scene.challenger()
    scene.promote()
    kill_before_recording(scene, monkeypatch, rollback=True)
    assert scene.aliases()[CHAMPION] == old.number
    scene.challenger(CHANCE)
    scene.promote()
    assert [entry["outcome"] for entry in scene.decisions(old.run_id)] == ["promoted", "rolled back"]


def test_a_race_lost_on_a_server_is_reported_and_recorded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    champion, other = scene.champion(POOR), scene.challenger(POOR, seed=1)
    version = scene.challenger()
    move = Registry.move_alias

    def overtaken(registry: Registry, name: str, alias: str, number: int) -> None:
        move(registry, name, alias, number)
        if alias == CHAMPION and number == version.number:
            # What another machine's promotion writes right after ours.
            move(registry, name, alias, other.number)

    monkeypatch.setattr(Registry, "move_alias", overtaken)
    with pytest.raises(ConcurrentUpdateError, match=f"{other} is champion now") as lost:
        scene.promote()
    assert lost.value.exit_code == 1
    assert scene.aliases()[CHAMPION] == other.number
    assert [entry["outcome"] for entry in scene.decisions(version.run_id)] == ["lost"]
    assert scene.tags(champion).get("challenge_outcome") is None


@pytest.fixture
def promote_at(scene: Scene) -> Iterator[Callable[[], list[str]]]:
    """Start two promotions in processes of their own that begin at the same moment."""
    command = [sys.executable, "-c", PROMOTE_AT, str(scene.root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(2)]  # type: ignore[call-overload]

    def begin() -> list[str]:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        moment = time.time() + 0.5
        for process in processes:
            process.stdin.write(f"{moment}\n")
            process.stdin.flush()
        return sorted(process.communicate()[0] for process in processes)

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.faults
def test_of_two_promotions_at_once_one_wins_and_tells_the_other(
    scene: Scene, promote_at: Callable[[], list[str]], record_fault: RecordFault
) -> None:
    version = scene.challenger()
    refused, promoted = promote_at()
    assert promoted == "promoted\n"
    assert refused.startswith("3 Another promotion is running")
    assert scene.aliases()[CHAMPION] == version.number
    assert scene.readings(scene.study_run) == 1
    record_fault("two promotions at once", "I4 I6 I8")


def test_a_reproduced_baseline_can_be_beaten(scene: Scene) -> None:
    baseline = scene.register(scene.baseline(trained(POOR)))
    set_champion(scene.registry, scene.registry.model(baseline.name), baseline)
    version = scene.challenger()
    decision = scene.promote()
    assert decision.outcome is Outcome.PROMOTED
    assert decision.reference is not None
    assert (decision.reference.role, decision.reference.study) == ("champion", None)
    assert scene.aliases()[CHAMPION] == version.number


def test_a_reproduced_baseline_is_checked_by_its_own_log(scene: Scene) -> None:
    scene.champion(CHANCE)
    version = scene.register(scene.baseline(trained(GOOD)))
    decision = scene.promote(version=version.number)
    assert decision.outcome is Outcome.PROMOTED
    fidelity = decision.gates[4]
    assert fidelity.sentence.startswith("Validation images: not logged")
    assert "0 of 359 holdout images predicted otherwise" in fidelity.sentence
    assert decision.holdout is not None
    assert decision.holdout.readings == 3, "the reproduction itself has read it twice"


def test_without_a_reference_model_force_is_named_as_the_way_on(scene: Scene) -> None:
    scene.register(scene.baseline(trained(POOR)))
    with pytest.raises(NoReferenceModelError, match="--force") as refused:
        scene.promote()
    assert refused.value.exit_code == 1


def test_a_version_trained_on_other_images_is_not_compared(scene: Scene) -> None:
    scene.challenger(data_digest="0" * 64)
    with pytest.raises(DataError, match="Expected the same images"):
        scene.promote()
    assert scene.readings(scene.study_run) == 0


def test_a_version_without_its_data_set_is_refused(scene: Scene) -> None:
    version = scene.challenger()
    scene.client.delete_model_version_tag(version.name, str(version.number), "dataset")
    with pytest.raises(DamagedModelError, match="no tag 'dataset'"):
        scene.promote()


def test_the_challenger_is_chosen_by_study_run_or_version(scene: Scene) -> None:
    first = scene.challenger(POOR)
    other_study = scene.study("digits-other")
    scene.trial(other_study, 0, trained(CHANCE))
    second = scene.register(scene.trial(other_study, 1, trained(POOR)))
    third = scene.register(scene.trial(other_study, 2, trained(POOR, seed=1)))
    scene.registry.move_alias(first.name, CHALLENGER, second.number)

    def chosen(**asked: object) -> int:
        return choose_challenger(scene.registry.models(), PromotionConfig.model_validate(asked)).number

    assert chosen() == second.number
    assert chosen(study="digits-tiny") == first.number
    assert chosen(study="digits-other") == second.number, "the alias says which one of a study's"
    assert chosen(run=third.run_id) == third.number
    assert chosen(version=first.number) == first.number
    scene.registry.move_alias(first.name, CHALLENGER, first.number)
    assert chosen(study="digits-other") == third.number


@pytest.fixture(scope="module")
def unregistered(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    return Scene(tmp_path_factory.mktemp("unregistered") / "store")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "No version has the alias 'challenger'"),
        ({"study": "digits-tiny"}, "No version comes from a study 'digits-tiny'"),
        ({"run": "0"}, "No version was registered from the run '0'"),
        ({"version": 1}, "No registered model has a version 1"),
        ({"rollback": True}, "No registered model has a champion"),
    ],
)
def test_what_is_not_there_is_bad_input(unregistered: ModelStore, asked: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        unregistered.promote(**asked)
    assert unregistered.registry.models() == []


def test_of_the_challengers_of_two_data_sets_one_has_to_be_named(scene: Scene) -> None:
    own = scene.challenger(POOR)
    run = scene.client.get_run(own.run_id).data.tags
    # The name of the other data set is enough: it is refused before anything of it is read.
    made = scene.client.create_registered_model("fashion-mnist-cnn")
    tags = {"model_sha256": run["model_sha256"], "dataset": "fashion-mnist", "study": "fashion-mnist-wide"}
    scene.client.create_model_version(made.name, source="file:///nowhere", run_id=own.run_id, tags=tags)
    for alias in (CHALLENGER, CHAMPION):
        scene.registry.move_alias(made.name, alias, 1)
    with pytest.raises(BadInputError, match=r"digits-cnn version 1 and fashion-mnist-cnn version 1 .* --study"):
        scene.promote()
    with pytest.raises(BadInputError, match="could be meant"):
        scene.promote(version=1)
    scene.promote(study="digits-tiny", force="first look")
    with pytest.raises(BadInputError, match="a champion each"):
        scene.promote(rollback=True)
    with pytest.raises(NoPreviousChampionError, match="digits-cnn version 1"):
        scene.promote(rollback=True, study="digits-tiny")


def test_a_folder_without_a_store_is_no_store_and_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store in"):
        promote(PromotionConfig(), find_store(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
