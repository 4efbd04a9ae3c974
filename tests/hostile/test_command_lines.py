"""The promises about words on a command line that mean harm: one message, exit code 2, nothing written."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import predict, promote, report, run_study
from experiments._entry import run

WORDS = {
    "a path that climbs": "../../evil",
    "a path from the root": "/etc/cron.d/evil",
    "a script": "<script>alert(1)</script>",
    "a shell's": "$(touch canary); `touch canary` | touch canary",
    "two lines": "first\nPromoted: second",
    "an escape sequence": "\x1b[2J\x1b]0;evil\x07",
    "a text that turns round": "\N{RIGHT-TO-LEFT OVERRIDE}ydutS",
    "a text without width": "stu\N{ZERO WIDTH SPACE}dy",
    "another script": "לימוד",
    "bytes that are no text": "caf\udce9",
    "a format": "{0.__class__} %s %n",
    "markup of the terminal": "[link=https://example.org]study[/link]",
    "ten thousand letters": "s" * 10_000,
    "a database's": "x'; DROP TABLE runs; --",
    "nothing": "",
}


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Give a function that runs a command in an empty folder and returns its one message."""

    def refused(main: Callable[..., None], *words: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["command", *words])
        with pytest.raises(SystemExit) as ending:
            run(main)
        printed = capsys.readouterr()
        assert ending.value.code == 2
        assert printed.out == ""
        assert "Traceback" not in printed.err
        assert printed.err.count("Error") == 1
        assert list(tmp_path.iterdir()) == []
        return printed.err

    return refused


def require_harmless(message: str) -> None:
    assert "".join(message.splitlines()).isprintable()


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS.keys())
def test_a_hostile_name_of_a_study_is_refused(word: str, refuse: Callable[..., str]) -> None:
    message = refuse(run_study.main, "--space", "smoke", "--dataset", "digits", f"--study={word}")
    assert "study is " in message
    assert "letters" in message
    require_harmless(message)


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS.keys())
def test_a_hostile_name_of_a_space_is_refused(word: str, refuse: Callable[..., str]) -> None:
    message = refuse(run_study.main, "--dataset", "digits", f"--space={word}")
    assert len(message) < 1_000
    require_harmless(message)


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS.keys())
def test_a_hostile_address_of_a_model_is_refused(word: str, refuse: Callable[..., str], picture: Path) -> None:
    for address in (word, f"models:/{word}", f"models:/{word}/{word}@{word}", f"file:///{word}", f"http://{word}"):
        message = refuse(predict.main, str(picture), f"--model={address}")
        assert "--model is " in message
        assert len(message) < 1_000
        require_harmless(message)


@pytest.fixture
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    path.write_text("not looked at, since the model is refused first")
    return path


DEEP = 20_000
POINTS = {
    "deep lists": "[" * DEEP + "]" * DEEP,
    "deep objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "a deep value": '{"epochs": ' + "[" * 900 + "]" * 900 + "}",
    "a value as deep as a parser bears": '{"epochs": ' + "[" * 970 + "]" * 970 + "}",
    "a number too long to be read": '{"epochs": ' + "9" * 5_000 + "}",
    "a number too long to be stored": '{"epochs": ' + "9" * 4_000 + "}",
    "a number beyond all numbers": '{"learning_rate": 1e999}',
    "no number": '{"learning_rate": NaN}',
    "a name as long as can be typed": json.dumps({"e" * 100_000: 1}),
    "ten thousand names": json.dumps({f"epoch{number}": 1 for number in range(8_000)}),
    "a lone surrogate": '{"\\ud800": 1}',
    "a text that turns round": '{"\\u202e": 1}',
    "an escape sequence": '{"optimizer": "\\u001b[2J"}',
    "a null": '{"epochs\\u0000": 1}',
    "a property of objects": '{"__class__": 1, "__proto__": 1}',
    "a script": '{"<script>alert(1)</script>": 1}',
    "a name twice": '{"epochs": 1, "epochs": "x"}',
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS.keys())
def test_a_hostile_point_to_try_is_refused(point: str, refuse: Callable[..., str]) -> None:
    message = refuse(run_study.main, "--space", "smoke", "--dataset", "digits", "--try", point)
    require_harmless(message)


@pytest.mark.parametrize("word", [WORDS["ten thousand letters"], WORDS["an escape sequence"], WORDS["two lines"]])
def test_contradicting_promotion_options_show_no_hostile_text(word: str, refuse: Callable[..., str]) -> None:
    message = refuse(promote.main, f"--study={word}", f"--run={word}")
    assert word not in message


@pytest.mark.parametrize("word", [word for word in WORDS.values() if word])
def test_a_report_is_written_to_no_folder_that_is_not_there(word: str, refuse: Callable[..., str]) -> None:
    message = refuse(report.main, "study", "--output", f"nowhere/{word}/page.html")
    assert "cannot be written" in message
    require_harmless(message)
    assert len(message) < 2_000
