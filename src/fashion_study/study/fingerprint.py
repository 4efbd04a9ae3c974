"""What makes two studies the same one; a study is only ever continued as itself."""

from collections.abc import Mapping

from fashion_study.errors import BadInputError
from fashion_study.space.space import SearchSpace
from fashion_study.trial import TRAINING_VERSION, DataSource

Identity = dict[str, str | int | None]


def identity_of(space: SearchSpace, source: DataSource, seed: int, limit_train: int | None) -> Identity:
    """Collect what must not change while a study goes on, in words that show a difference to a person."""
    parameters: Identity = {
        f"parameter {name}": spec.model_dump_json(exclude={"why", "grid"}) for name, spec in space.parameters.items()
    }
    return parameters | {
        "baseline": space.baseline_point.model_dump_json(),
        "data": f"{source.name} {source.digest}",
        "seed": seed,
        "limit on training images": limit_train,
        "version of the training code": TRAINING_VERSION,
    }


def refuse_difference(study_name: str, stored: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Refuse to continue a study as another one.

    Raises:
        BadInputError: something differs; the message lists it, stored beside asked.
    """
    names = [*stored, *(name for name in asked if name not in stored)]
    differences = [
        f"  {name}: stored {stored.get(name, 'nothing')}, asked for {asked.get(name, 'nothing')}"
        for name in names
        if stored.get(name) != asked.get(name)
    ]
    if differences:
        listed = "\n".join(differences)
        raise BadInputError(
            f"Study {study_name!r} was begun as another study:\n{listed}\n"
            "Expected the same, so that its trials can be compared. "
            "Repeat the stored values, or give the new study a name of its own with --study."
        )
