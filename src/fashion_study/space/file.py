"""A search space's file: found by its name or its path, read, and refused in one message."""

from pathlib import Path

from pydantic import ValidationError

from fashion_study.errors import BadInputError
from fashion_study.space import plain_yaml
from fashion_study.space.space import SearchSpace, problems_of
from fashion_study.text import did_you_mean, printable, shown

# PyYAML takes half a second for the worst text of this length, and the project's own files have a tenth of it.
MAX_BYTES = 16_384
MAX_PROBLEMS_SHOWN = 8


def load_space(name_or_file: str) -> SearchSpace:
    """Read a search space: one of the project's own by its name, or any YAML file by its path.

    A name has no path separator and no suffix; it means the same from every working directory.
    Raise BadInputError with one message: the file, the parameter, what was found and what is allowed.
    """
    path = _own_file(name_or_file) if _is_name(name_or_file) else Path(name_or_file)
    try:
        text = _read_text(path)
        space = _space_from(plain_yaml.parse(text))
    except BadInputError as error:
        raise BadInputError(f"Search space {printable(str(path))}: {error}") from None
    space._source_text = text
    return space


def _is_name(name_or_file: str) -> bool:
    path = Path(name_or_file)
    return path.name == name_or_file and path.suffix.lower() not in {".yaml", ".yml"}


def _own_file(name: str) -> Path:
    own = {path.stem: path for path in sorted(_own_directory().glob("*.yaml"))}
    if name not in own:
        raise BadInputError(
            f"There is no search space named {shown(name)}{did_you_mean(name, own)}. "
            f"Available: {', '.join(own)}. A file of your own is given by its path, such as ./my_space.yaml."
        )
    return own[name]


def _own_directory() -> Path:
    # An installed wheel has the folder beside the package; a checkout has it beside `src`.
    here = Path(__file__).resolve()
    beside_package = here.parents[2] / "search_spaces"
    return beside_package if beside_package.is_dir() else here.parents[3] / "search_spaces"


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            raise BadInputError("found no regular file there; allowed: the path of a YAML file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInputError(f"cannot be read: {error.__class__.__name__}; allowed: a readable YAML file") from error
    if len(raw) > MAX_BYTES:
        raise BadInputError(f"found more than {MAX_BYTES} bytes; allowed: at most {MAX_BYTES}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(f"found a byte that is not UTF-8 at offset {error.start}; allowed: UTF-8 text") from error


def _space_from(data: object) -> SearchSpace:
    if not isinstance(data, dict):
        raise BadInputError(f"found {shown(data)}; allowed: {', '.join(SearchSpace.model_fields)}, each with its value")
    try:
        return SearchSpace.model_validate(data)
    except ValidationError as error:
        problems = problems_of(error)
    more = len(problems) - MAX_PROBLEMS_SHOWN
    rest = [f"and {more} more"] if more > 0 else []
    raise BadInputError("\n  ".join([*problems[:MAX_PROBLEMS_SHOWN], *rest]))
