"""The address of a model, as a user types it."""

import re
from dataclasses import dataclass
from typing import Self

from fashion_study.errors import BadInputError
from fashion_study.text import printable, shown

PATTERN = re.compile(
    r"models:/(?:(?P<model_id>m-[0-9a-f]{32})|(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d{1,9})))"
)


@dataclass(frozen=True)
class ModelUri:
    """The address of a logged model by its id, or of a registered one by its name with an alias or a version number."""

    text: str
    model_id: str | None
    name: str | None
    alias: str | None
    number: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/m-ID`.

        Raises:
            BadInputError: the text is something else.
        """
        if (parts := PATTERN.fullmatch(text)) is None:
            raise BadInputError(
                f"--model is {shown(text)}. Expected models:/NAME@ALIAS, models:/NAME/VERSION or models:/m-ID, "
                "for instance models:/fashion-mnist-cnn@champion."
            )
        number = parts["number"]
        return cls(text, parts["model_id"], parts["name"], parts["alias"], int(number) if number else None)

    def __str__(self) -> str:
        return printable(self.text)
