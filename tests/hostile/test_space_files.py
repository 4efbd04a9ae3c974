"""The promises about hostile search-space files: refused at once, cheaply, and nothing is written."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fashion_study.errors import BadInputError
from fashion_study.space.file import MAX_BYTES, load_space
from fashion_study.space.space import SearchSpace
from fashion_study.trial import Hyperparameters

ROOT = Path(__file__).parents[2]
BASELINE = (ROOT / "search_spaces" / "baseline.yaml").read_text(encoding="utf-8")
NAME = "name: baseline"
LOW = "low: 3e-5"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)
CHOICES = f"{{type: categorical, why: x, choices: [{', '.join(map(str, range(3_000)))}]}}"


def long(piece: str) -> str:
    """Repeat a piece as often as a file may hold it."""
    return piece * (MAX_BYTES // len(piece.encode()) - 1)


def named(name: str) -> str:
    return BASELINE.replace(NAME, f"name: {name}")


# Every file that stands for a class of attack, and those on which a parser of YAML spends the most.
HOSTILE: dict[str, str] = {
    "an alias bomb": BOMB,
    "an alias to itself": "a: &a [*a]\n",
    "a python object": "name: !!python/object/apply:os.system ['true']\n",
    "a python name": "name: !!python/name:os.system\n",
    "a binary": "name: !!binary aGVsbG8=\n",
    "a tag of its own": "%TAG ! tag:yaml.org,2002:python/object/apply:\n---\nname: !os.system ['true']\n",
    "a thousand million choices": f"parameters: {{batch_size: {CHOICES}}}",
    "a range of a thousand million": BASELINE.replace("high: 64", "high: 1_000_000_000"),
    "a step of nothing": BASELINE.replace("step: 8", "step: 0", 1),
    "a bound that is no number": BASELINE.replace(LOW, "low: .nan"),
    "a bound without end": BASELINE.replace(LOW, "low: -.inf"),
    "a bound that overflows": BASELINE.replace(LOW, "low: 1e999"),
    "a bound that is nothing": BASELINE.replace(LOW, "low: 1e-999"),
    "a huge whole number": BASELINE.replace("high: 64", "high: " + "9" * 5_000),
    "a name that climbs": named("../../evil"),
    "a name from the root": named("/etc/cron.d/evil"),
    "a name with an end of line": named('"baseline\\n"'),
    "a name with a null": named('"base\\0line"'),
    "a name of another script": named("אבג"),
    "a name that turns round": named("\N{RIGHT-TO-LEFT OVERRIDE}enilesab"),
    "a name with nothing to see": named("base\N{ZERO WIDTH SPACE}line"),
    "a name that is markup": named("<script>alert(1)</script>"),
    "a key with nothing to see": BASELINE.replace("purpose:", "pur\N{WORD JOINER}pose:"),
    "a key that looks alike": BASELINE.replace("epochs:", "epo\N{CYRILLIC SMALL LETTER ES}hs:"),
    "a key without a glyph": BASELINE.replace("  filters_2:\n", "  \U00018d09filters_2:\n"),
    "a key with a space that is none": BASELINE.replace("  filters_2:", "  \N{NO-BREAK SPACE}filters_2:"),
    "two byte-order marks": "\N{ZERO WIDTH NO-BREAK SPACE}" * 2 + BASELINE,
    "a null": BASELINE.replace("name", "na\0me"),
    "an escape in a comment": BASELINE + "# \x1b]0;evil\x07\n",
    "the same key twice": BASELINE + "name: other\n",
    "a merge": BASELINE + "<<: {fixed: {}}\n",
    "a key of one megabyte": "k" * 1_000_000 + ": 1\n",
    "the longest key": long("k") + ": 1",
    "the longest explicit key": "? " + long("k") + "\n: 1",
    "deep lists": long("["),
    "deep mappings": long("{"),
    "deep blocks": long("- "),
    "a flat list without an end": "[" + long("a,"),
    "a flat mapping without an end": "{" + long("a,"),
    "as many names as fit": "".join(f"a{i}: 1\n" for i in range(1_700)),
    "as many parameters as fit": "parameters:\n" + "".join(f" p{i}: 1\n" for i in range(1_500)),
    "as many fixed values as fit": BASELINE + "".join(f"  filter_{i}: 1\n" for i in range(800)),
    "as many lines as fit": "a: b" + long("\n"),
    "as many documents as fit": long("---\n"),
    "as many anchors as fit": long("&a "),
    "as many directives as fit": long("%TAG ! x\n"),
    "a long folded text": "a: >\n" + long(" x\n"),
}

CHILD = """
import json, pathlib, resource, sys
from fashion_study.errors import BadInputError
from fashion_study.space.file import load_space
paths = sorted(pathlib.Path(sys.argv[1]).iterdir())
for limit, most in ((resource.RLIMIT_AS, 1 << 29), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CPU, 60)):
    resource.setrlimit(limit, (most, most))
said = {}
for path in paths:
    try:
        load_space(str(path))
    except BadInputError as error:
        said[path.name] = str(error)
# Not getrusage: its peak is inherited from the process that forked this one.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"said": said, "peak": int(status["VmHWM"].split()[0])}))
"""


def test_hostile_files_are_refused_in_200_mb_writing_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "spaces"
    folder.mkdir()
    for number, text in enumerate(HOSTILE.values()):
        (folder / f"{number:02d}.yaml").write_text(text, encoding="utf-8")
    (folder / "utf-16.yaml").write_bytes(BASELINE.encode("utf-16"))
    (folder / "surrogate.yaml").write_bytes(b"name: \xed\xa0\x80\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    # The child may write no byte into any file.
    child = subprocess.run(
        [sys.executable, "-B", "-c", CHILD, folder],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    loaded = [name for number, name in enumerate(HOSTILE) if f"{number:02d}.yaml" not in found["said"]]
    assert loaded == []
    assert len(found["said"]) == len(HOSTILE) + 2
    assert found["peak"] < 200_000, "in KiB"
    assert [path.name for path in tmp_path.iterdir()] == ["spaces"]


@pytest.mark.parametrize("name", list(HOSTILE))
def test_the_refusal_of_a_hostile_file_is_harmless_to_print(name: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(HOSTILE[name], encoding="utf-8")
    with pytest.raises(BadInputError) as refused:
        load_space(str(path))
    require_harmless(str(refused.value), path)


@pytest.mark.parametrize("kind", ["python object", "long key", "pipe", "device"])
def test_the_command_ends_with_2_and_makes_no_store(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    match kind:
        case "python object":
            path.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/canary']\n")
        case "long key":
            path.write_text("k" * 1_000_000 + ": 1\n")
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")

    done = subprocess.run(
        [sys.executable, "-m", "experiments.run_study", "--space", str(path), "--store", str(tmp_path / "store")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"Error: Search space {path}: ")
    assert "Traceback" not in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["space.yaml"]


def require_harmless(message: str, path: Path) -> None:
    """Check that a message names its file, fits a screen and holds nothing that moves a cursor."""
    assert str(path) in message
    assert len(message) < 3_000
    assert "".join(message.splitlines()).isprintable()


def load_or_refuse(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "space.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            space = load_space(str(path))
        except BadInputError as error:
            require_harmless(str(error), path)
        else:
            require_valid(space)
        assert [entry.name for entry in Path(folder).iterdir()] == ["space.yaml"]


def require_valid(space: SearchSpace) -> None:
    """Check that a space that was let in can be searched: its ends and its baseline make models."""
    point = dict(space.baseline)
    for name, parameter in space.parameters.items():
        ends = parameter.choices if parameter.type == "categorical" else (parameter.low, parameter.high)
        for end in ends:
            assert isinstance(space.hyperparameters(point | {name: end}), Hyperparameters)
    assert space.max_epochs >= 1
    assert yaml.safe_load(space.source_text) is not None


# The syntax of YAML, and what attackers put into it.
PIECES = st.sampled_from(
    [
        *(
            "name: baseline\n",
            "purpose: x\n",
            "parameters:\n",
            "baseline:\n",
            "fixed:\n",
            "  epochs: 3\n",
            "  low: 1\n",
        ),
        *(
            "    type: int\n",
            "    high: 9\n",
            "    choices: [1, 2]\n",
            "    why: x\n",
            "    log: true\n",
            "  filters_1:\n",
        ),
        *(
            "- ",
            "? ",
            ": ",
            ", ",
            "[",
            "]",
            "{",
            "}",
            "&a ",
            "*a",
            "!",
            "!!python/object/apply:os.system ",
            "<<: ",
            "|\n",
            ">\n",
        ),
        *(
            "---\n",
            "...\n",
            "%YAML 1.1\n",
            "%TAG ! tag:yaml.org,2002:\n",
            "#",
            "'",
            '"',
            "\\",
            "\\x",
            "\\U0010ffff",
            '"\\Uffffffff"',
            "\n",
            "  ",
            "\t",
        ),
        *(
            ".nan",
            ".inf",
            "1e999",
            "-1e-999",
            "0x10",
            "0o7",
            "1_000",
            "9" * 30,
            "1:30",
            "null",
            "~",
            "yes",
            "true",
            "2026-01-01",
        ),
        *(
            "\N{RIGHT-TO-LEFT OVERRIDE}",
            "\N{ZERO WIDTH SPACE}",
            "\N{ZERO WIDTH NO-BREAK SPACE}",
            "\0",
            "\x1b[2J",
            "\x85",
        ),
        *("\N{LINE SEPARATOR}", "\ud800", "\N{ARABIC LETTER ALEF}", "../../x", "<script>", "$(true)", "k" * 2_000),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=6), max_size=40).map("".join)
PLACES = st.integers(0, len(BASELINE))


@settings(max_examples=120)
@given(text=TEXTS)
def test_any_mixture_of_yaml_and_malice_loads_or_is_refused(text: str) -> None:
    load_or_refuse(text)


@settings(max_examples=150)
@given(changes=st.lists(st.tuples(PLACES, st.integers(0, 30), PIECES | st.text(max_size=6)), min_size=1, max_size=4))
def test_the_baseline_space_with_edits_loads_or_is_refused(
    changes: list[tuple[int, int, str]],
) -> None:
    text = BASELINE
    for place, cut, piece in changes:
        text = text[:place] + piece + text[place + cut :]
    load_or_refuse(text)


@settings(max_examples=40)
@given(order=st.lists(st.sampled_from(BASELINE.splitlines(keepends=True)), max_size=70))
def test_the_lines_of_the_baseline_space_in_any_order(order: list[str]) -> None:
    load_or_refuse("".join(order))
