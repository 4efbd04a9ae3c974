"""The promises of a report: one page that loads nothing, escapes everything, and says what the store says."""

import base64
import re
import sys
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import optuna
import pytest
from mlflow import MlflowClient

from experiments._entry import run
from experiments.report import main
from fashion_study.data.catalog import load_dataset, locate
from fashion_study.engines.optuna_engine import OptunaEngine
from fashion_study.errors import StoreError
from fashion_study.report.collect import collect
from fashion_study.report.facts import Size
from fashion_study.report.page import render
from fashion_study.report.publish import publish_report
from fashion_study.space.file import load_space
from fashion_study.store.locks import claim
from fashion_study.store.store import Store, open_store
from fashion_study.store.trials import TrialStorage
from fashion_study.tracking.registry import CHAMPION, Registry
from fashion_study.tracking.runs import StudyMetadata, StudyRuns
from fashion_study.trial import TrialState
from tests.support.finished import copy_store
from tests.support.study_facts import CLASSES, facts, finals, model, record

SMOKE = load_space("smoke")
ATTACK = '<script>alert("x")</script>'
LOADING = {"script", "link", "iframe", "object", "embed", "base", "audio", "video"}
STUDY = "digits-smoke"


@dataclass
class Page(HTMLParser):
    """What a test asks of a page: its tags with their attributes, and the text that a reader sees."""

    html: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.open_tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open_tags[-1:] != ["style"]:
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open_tags:
            del self.open_tags[len(self.open_tags) - 1 - self.open_tags[::-1].index(tag) :]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, *names: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags for name in names if name in attributes]

    def having(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(facts()))


def test_a_page_loads_nothing(full: Page) -> None:
    assert {tag for tag, _ in full.tags} & LOADING == set()
    assert all(source.startswith("data:image/png;base64,") for source in full.values("src"))
    assert all(target.startswith("#") for target in full.values("href", "xlink:href"))
    addresses = re.findall(r"url\(\s*['\"]?(.)", full.html)
    assert set(addresses) <= {"#"}
    assert "@import" not in full.html
    (policy,) = (meta["content"] for meta in full.having("meta") if meta.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_reference_within_a_page_has_its_one_target(full: Page) -> None:
    ids = full.values("id")
    assert len(ids) == len(set(ids))
    wanted = {target[1:] for target in full.values("href", "xlink:href")} | set(full.values("aria-labelledby"))
    wanted |= set(re.findall(r"url\(#([^)]+)\)", full.html))
    assert wanted <= set(ids)


def test_a_warm_started_trial_is_trained_as_far_as_was_asked() -> None:
    rung = record(0, TrialState.COMPLETE, [0.7], epochs=1)
    promoted = replace(record(1, TrialState.COMPLETE, [0.8], epochs=3), curve={2: 0.75, 3: 0.8})
    page = Page(render(facts(records=(promoted, rung))))
    assert "3 trained of 3 asked for" in page.text
    assert "3 of 3" in page.text


def test_headings_are_in_order_under_one_title(full: Page) -> None:
    levels = [int(tag[1]) for tag, _ in full.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert full.having("html")[0]["lang"] == "en"
    assert "fashion-mnist-baseline" in full.html.partition("<title>")[2].partition("</title>")[0]


def test_every_picture_says_in_words_what_it_shows(full: Page) -> None:
    assert len(full.having("img")) == 6
    assert all(picture["alt"] for picture in full.having("img"))
    drawings = full.having("svg")
    assert len(drawings) == 8
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)


def test_pictures_look_the_same_whatever_a_matplotlibrc_has(full: Page) -> None:
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black", "image.origin": "lower", "axes.xmargin": 0.4}):
        assert render(facts()) == full.html


def test_the_text_of_a_figure_stays_text(full: Page) -> None:
    assert full.html.count("<text") > 50
    for word in ("best so far", "learning rate", "Ankle boot", "trial 002", "mean, 95 % interval"):
        assert word in full.text


def test_what_comes_from_a_store_is_shown_and_never_run() -> None:
    settings = {**facts().settings, "command": f"python --trials 4 {ATTACK}", "host": ATTACK, "sampler": ATTACK}
    attacked = facts(
        name=ATTACK,
        settings=settings,
        asked=dict.fromkeys(facts().asked, ATTACK),
        image_counts={ATTACK: 3},
        records=(record(0, TrialState.COMPLETE, [0.8], filters_1=ATTACK), *facts().records),
        best=model(2, 0.89, classes=(ATTACK, *CLASSES[1:])),
        baseline=None,
        reference=None,
        finals=replace(finals(), note=ATTACK),
        pixels_missing=ATTACK,
        importances={ATTACK: 1.0},
    )
    page = Page(render(attacked))
    assert page.having("script") == []
    assert page.html.count("&lt;script&gt;") > 10
    assert page.text.count("<script>") > 10


def test_the_headline_says_how_sure_the_gain_is_and_from_what(full: Page) -> None:
    assert "+3.80 points" in full.text
    assert "joins two Wilson intervals" in full.text
    best, baseline = model(2, 0.89, frozenset(range(1100))), model(0, 0.852, frozenset(range(500, 1980)))
    paired = Page(render(facts(best=best, baseline=baseline)))
    assert "paired, image by image (adjusted Wald): 880 images only the best model has right, 500 only" in paired.text


def test_only_a_best_point_on_the_edge_is_warned_of(full: Page) -> None:
    warning = "The best point lies on the edge of its range"
    assert warning in full.text
    assert "filters_1 = 64, at the highest end (64)" in full.text
    inside = record(2, TrialState.COMPLETE, [0.89], filters_1=40, decay=1e-4, epochs=12)
    assert warning not in Page(render(facts(records=(inside,)))).text


def test_what_size_buys_is_said_and_drawn(full: Page) -> None:
    assert "No model within 0.5 points of the highest score is smaller than its own." in full.text
    near = [record(number, TrialState.COMPLETE, [0.9 - 0.001 * number]) for number in (0, 1)]
    smaller = facts(records=tuple(near), sizes={0: Size(134_178, 0.21), 1: Size(93_322, 0.12)})
    assert (
        "that of trial 001: 93,322 parameters instead of 134,178, 89.90 % instead of 90.00 %, 0.120 ms for an image "
        "instead of 0.210."
    ) in Page(render(smaller)).text.replace("\u2009", " ")
    alike = facts(sizes={number: Size(93_322, 0.12) for number in (0, 1, 2)})
    assert "No two complete trials have models of different sizes yet." in Page(render(alike)).text


def test_the_finalists_show_each_repeat_beside_the_first_score(full: Page) -> None:
    assert "trial 002, 89.00 % on average" in full.text
    row = "002 89.20 % 88.90 %, 89.10 %, 89.00 %"
    assert row in full.text
    assert "do not fit the time left" in full.text
    without = Page(render(facts(finals=None)))
    assert "None were trained again" in without.text


def test_a_long_study_shows_its_first_fifty_trials_and_says_so(full: Page) -> None:
    assert "50 of 63 trials" in full.text


def test_a_pruned_trial_above_the_best_is_pointed_out(full: Page) -> None:
    lucky = record(70, TrialState.PRUNED, [0.9], epochs=15)
    assert "the pruner may have cost more than it saved" in Page(render(facts(records=(*facts().records, lucky)))).text
    assert "the pruner may have cost more than it saved" not in full.text
    paused = replace(lucky, state=TrialState.PAUSED)
    assert "with more trials it may go on" in Page(render(facts(records=(*facts().records, paused)))).text


def test_the_page_says_why_there_are_no_importances() -> None:
    assert "They need 4, and there are 3." in Page(render(facts(importances={}))).text


def test_the_page_says_why_there_are_no_example_images() -> None:
    page = Page(render(facts(pixels={}, pixels_missing="the images are not on this machine")))
    assert page.having("img") == []
    assert "No example images: the images are not on this machine." in page.text


def test_a_baseline_that_nothing_beats_is_called_the_best() -> None:
    baseline = model(0, 0.852)
    page = Page(render(facts(best=baseline, baseline=baseline, finals=None, reference=None)))
    assert "the baseline itself is the best" in page.text
    assert "There is no other model to compare it with yet." in page.text


def test_the_next_command_goes_to_the_total_or_beyond() -> None:
    done = Page(render(facts(trials=61), Path("my store")))
    assert "python -m experiments.run_study --trials 81 --seed 0 --store 'my store'" in done.text
    short = Page(render(facts(trials=100)))
    assert "python -m experiments.run_study --trials 61 --seed 0 More" not in short.text
    assert "python -m experiments.run_study --trials 100 --seed 0" in short.text
    assert "stopped early" in short.text


@dataclass(frozen=True, eq=False)
class Real:
    """A study that was run, with a report of it."""

    root: Path
    opened: Store
    client: MlflowClient
    trial_storage: TrialStorage
    page: Page

    @property
    def store(self) -> Path:
        return self.opened.root

    @property
    def run_id(self) -> str:
        """Return the study's own run."""
        return str(self.trial_storage.attrs["run_id"])


@pytest.fixture(scope="module")
def real(commanded_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Real:
    root = tmp_path_factory.mktemp("report")
    opened = open_store(copy_store(commanded_study / "store", root / "store"))
    report = publish_report(STUDY, opened.root, root / "page.html")
    assert report.is_logged
    trial_storage = TrialStorage(opened.open_optuna_storage(), STUDY)
    return Real(root, opened, opened.client(), trial_storage, Page(report.path.read_text()))


def test_the_file_and_the_study_run_s_artifact_are_the_same(real: Real) -> None:
    logged = Path(real.client.download_artifacts(real.run_id, "report.html", str(real.root))).read_text()
    assert logged == real.page.html


def test_a_real_page_says_what_its_runs_say(real: Real) -> None:
    study = collect(real.trial_storage, real.opened)
    assert study.best is not None
    assert study.best.repeat in (1, 2)
    run_of_best = real.client.get_run(study.best.run_id)
    assert run_of_best.data.metrics["objective"] == pytest.approx(study.best.accuracy)
    assert f"Best model {100 * study.best.accuracy:.2f} %" in real.page.text
    assert "paired, image by image" in real.page.text
    assert "--space smoke" in real.page.text
    assert real.run_id in real.page.text


def test_the_examples_are_images_that_the_best_model_confuses(real: Real) -> None:
    study, data = collect(real.trial_storage, real.opened), load_dataset(locate("digits"))
    assert study.best is not None
    assert study.best.mistakes is not None
    assert study.pixels
    for pair in study.best.pairs:
        assert set(pair.examples) <= study.best.mistakes
        for index in pair.examples:
            assert data.class_names[data.validation.labels[index]] == pair.true
            np.testing.assert_array_equal(study.pixels[index], data.validation.images[index])
    pictures = [base64.b64decode(picture["src"].partition(",")[2]) for picture in real.page.having("img")]
    assert len(pictures) == min(6, len(study.best.pairs))
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_the_matrix_is_compared_with_a_comparable_champion(
    real: Real,
) -> None:
    study = collect(real.trial_storage, real.opened)
    assert study.best is not None
    assert study.reference is not None
    assert (study.reference.model.trial, study.reference.reason) == (0, "no model of this data set is the champion yet")

    other = next(r for r in real.trial_storage.records() if r.objective is not None and r.number != 0)
    assert other.run_id is not None
    registry = Registry(real.client)
    version = registry.register("digits", real.client.get_run(other.run_id), {})
    registry.move_alias(version.name, CHAMPION, version.number)
    against_champion = collect(real.trial_storage, real.opened).reference
    assert against_champion is not None
    assert against_champion.model.run_id == other.run_id
    assert against_champion.name == f"the champion ({version})"

    # As a registered reproduction of the baseline has it: a matrix, but of the holdout.
    real.client.set_tag(other.run_id, "kind", "baseline")
    against_baseline = collect(real.trial_storage, real.opened).reference
    real.client.set_tag(other.run_id, "kind", "trial")
    assert against_baseline is not None
    assert against_baseline.model.trial == 0
    assert "was not evaluated on these validation images" in against_baseline.reason


def test_a_report_needs_no_run_that_others_have_deleted(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collect(real.trial_storage, real.opened)
    champion = next(r.run_id for r in real.trial_storage.records() if r.objective is not None and r.number != 0)
    assert whole.best is not None
    gone = {champion}
    monkeypatch.setattr(
        "fashion_study.report.collect.find_run",
        lambda client, run_id: None if run_id in gone else client.get_run(run_id),
    )
    without_champion = collect(real.trial_storage, real.opened)
    gone.add(whole.best.run_id)
    without_best = collect(real.trial_storage, real.opened)

    assert without_champion.reference is not None
    assert "was deleted in MLflow" in without_champion.reference.reason
    assert without_best.best is not None
    assert without_best.best.run_id not in gone


def open_study(root: Path, values: list[float]) -> TrialStorage:
    """Begin a study as the coordinator does, and leave its first trial running after some epochs."""
    store = open_store(root)
    trial_storage, client = TrialStorage(store.open_optuna_storage(), "open"), store.client()
    tracker = StudyRuns(client, store.experiment_id(client, "digits"))
    card = StudyMetadata(
        name="open",
        space_yaml=SMOKE.source_text,
        attrs={"dataset": "digits", "limit_train": None, "seed": 0},
        settings={"trials": 4, "workers": 1, "command": "python -m experiments.run_study --trials 4"},
    )
    run_id = tracker.open_study(card, None)
    trial_storage.set_attrs(run_id=run_id, split=load_dataset(locate("digits")).split_digest)
    OptunaEngine(trial_storage, SMOKE).ask()
    trial_storage.begin_attempt(0, 1, tracker.open_trial(0, 1, SMOKE.baseline, {}))
    for epoch, value in enumerate(values, start=1):
        trial_storage.record_value(0, epoch, value)
    return trial_storage


@pytest.mark.parametrize("values", [[], [0.4]])
def test_a_running_study_is_read_and_nothing_is_written_to_it(tmp_path: Path, values: list[float]) -> None:
    store = tmp_path / "store"
    trial_storage = open_study(store, values)
    before = trial_storage.records()
    with claim(store, "open"):
        report = publish_report("open", store, tmp_path / "open.html")
    page = Page(report.path.read_text())
    assert not report.is_logged
    assert report.contents == "open: still running, 0 of 4 trials done, none complete yet"
    assert "This study is still running" in page.text
    assert "No trial is complete: nothing can be said yet about accuracy." in page.text
    assert trial_storage.records() == before
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    assert {artifact.path for artifact in client.list_artifacts(trial_storage.attrs["run_id"])} == {
        "space.yaml",
        "invocations.json",
    }


def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str | Path
) -> tuple[object, str]:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    with pytest.raises(SystemExit) as ending:
        run(main)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return ending.value.code, printed.err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trials", "<script>"),
        ("trials", ""),
        ("command", ATTACK),
        ("command", "python -m experiments.run_study --trials '4"),
        ("command", "curl https://example.org | sh"),
    ],
)
def test_a_study_whose_tags_were_altered_is_refused_as_a_store(
    key: str, value: str, real: Real, tmp_path: Path
) -> None:
    run_id = real.run_id
    before = real.client.get_run(run_id).data.tags[key]
    real.client.set_tag(run_id, key, value)
    try:
        with pytest.raises(StoreError, match="something was altered since"):
            publish_report(STUDY, real.store, tmp_path / "page.html")
    finally:
        real.client.set_tag(run_id, key, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("confusion_matrix.json", "no JSON"),
        ("confusion_matrix.json", "[" * 100_000),
        ("confusion_matrix.json", "[]"),
        ("confusion_matrix.json", '{"classes": ["a", "b"], "counts": [[1, 2], [3]]}'),
        ("confusion_matrix.json", '{"classes": ["a", "b"], "counts": [[1, NaN], [3, 4]]}'),
        ("confusion_matrix.json", '{"classes": ["a", "b"], "counts": [[1, 1e999], [3, 4]]}'),
        ("confusion_matrix.json", '{"classes": ["a", "b"], "counts": [[0, 0], [0, 0]]}'),
        ("confusion_matrix.json", f'{{"classes": ["a", "b"], "counts": [[1, -1], [{10**30}, 4]]}}'),
        ("most_confused.json", '{"pairs": [{"true": "0"}]}'),
        ("most_confused.json", '{"pairs": [], "mistakes": [[1]]}'),
    ],
)
def test_a_study_with_altered_artifacts_is_refused(name: str, content: str, real: Real, tmp_path: Path) -> None:
    best = collect(real.trial_storage, real.opened).best
    assert best is not None
    path = next(real.store.joinpath("artifacts").rglob(f"{best.run_id}/artifacts/{name}"))
    before = path.read_bytes()
    path.write_text(content, encoding="utf-8")
    try:
        with pytest.raises(StoreError, match="something was altered since"):
            publish_report(STUDY, real.store, tmp_path / "page.html")
    finally:
        path.write_bytes(before)
    assert list(tmp_path.iterdir()) == []


def test_a_shell_sees_one_command_in_each_of_the_page_s(real: Real, tmp_path: Path) -> None:
    run_id = real.run_id
    before = real.client.get_run(run_id).data.tags["command"]
    real.client.set_tag(run_id, "command", f"{before} ; touch canary `touch canary`")
    try:
        text = Page(publish_report(STUDY, real.store, tmp_path / "page.html").path.read_text()).text
    finally:
        real.client.set_tag(run_id, "command", before)
    assert "';' touch canary '`touch' 'canary`'" in text


def test_a_study_of_a_hostile_name_gets_no_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "working" / "directory"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    names = ["../../evil", "/etc/evil", ATTACK, "two\nlines", "\x1b[2J", "x" * 300]
    for name in names:
        TrialStorage(open_store(tmp_path / "store").open_optuna_storage(), name).set_attrs(run_id="0" * 32)

    def files() -> list[Path]:
        # SQLite's -wal and -shm come and go with the connections, which end when the collector finds them.
        return sorted(path for path in tmp_path.rglob("*") if not path.name.endswith((".db-wal", ".db-shm")))

    before = files()
    for name in names:
        code, message = refusal(monkeypatch, capsys, name, "--store", tmp_path / "store")
        assert code == 2
        assert "a name that is no file's" in message
        assert "".join(message.splitlines()).isprintable()
        code, message = refusal(monkeypatch, capsys, f"{name}s", "--store", tmp_path / "store")
        assert code == 2
        assert "There is no study" in message
        assert "".join(message.splitlines()).isprintable()
    assert files() == before


def test_a_store_in_the_home_folder_is_found_by_its_tilde(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(real.root))
    report = publish_report(STUDY, "~/store", tmp_path / "page.html")
    assert "--store '~/store'" in Page(report.path.read_text()).text


def test_an_unknown_study_is_refused_with_the_known_ones(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    known = optuna.get_all_study_names(f"sqlite:///{real.store}/optuna.db")
    code, message = refusal(monkeypatch, capsys, "digits-smok", "--store", real.store)
    assert code == 2
    assert "There is no study 'digits-smok'" in message
    assert "(did you mean digits-smoke?)" in message
    assert list(tmp_path.iterdir()) == []
    assert optuna.get_all_study_names(f"sqlite:///{real.store}/optuna.db") == known


def test_a_study_that_ended_before_its_first_trial_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    TrialStorage(open_store(tmp_path).open_optuna_storage(), "stillborn")
    code, message = refusal(monkeypatch, capsys, "stillborn", "--store", tmp_path)
    assert code == 2
    assert "ended before its first trial was begun" in message


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_store_without_a_study_is_refused_and_stays_as_it_is(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    code, message = refusal(monkeypatch, capsys, STUDY, "--store", tmp_path / name)
    assert code == 3
    assert "it has no optuna.db" in message
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize(("option", "code"), [("--store", 3), ("--output", 2)])
def test_a_name_that_no_file_can_have_is_refused(
    option: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / ("x" * 300)
    given = refusal(monkeypatch, capsys, STUDY, option, long)
    assert given[0] == code
    assert "File name too long" in given[1]


def test_an_unwritable_path_is_refused_before_anything_is_read(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for output in (tmp_path, tmp_path / "nowhere" / "page.html"):
        code, message = refusal(monkeypatch, capsys, STUDY, "--store", real.store, "--output", output)
        assert code == 2
        assert f"cannot be written to {output}" in message


def test_the_command_writes_to_the_working_directory(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", STUDY, "--store", str(real.store)])
    with pytest.raises(SystemExit) as ending:
        run(main)
    assert ending.value.code == 0
    path, contents = capsys.readouterr().out.splitlines()
    assert path == "digits-smoke.html"
    assert Page(Path(path).read_text()).having("h1")
    assert re.match(r"digits-smoke: 4 of 4 trials done, best trial 00\d with 0\.\d{4} validation accuracy", contents)
    assert contents.endswith("also on the study's run as report.html")
