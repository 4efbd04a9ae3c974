"""A ranking that is told what has changed, so that nobody has to walk over all that is ranked."""

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Ranking(Generic[T]):
    """The keys of numbered things, in rising order; what has None as its key is left out."""

    def __init__(self, key: Callable[[T], Any], things: Mapping[int, T]) -> None:
        self._key = key
        self._known = {number: known for number, thing in things.items() if (known := key(thing)) is not None}
        self.keys = sorted(self._known.values())

    def update(self, number: int, thing: T | None) -> None:
        """Take a thing as it is now, None where it is gone."""
        before, now = self._known.pop(number, None), None if thing is None else self._key(thing)
        if now is not None:
            self._known[number] = now
        if now == before:
            return
        if before is not None:
            del self.keys[bisect_left(self.keys, before)]
        if now is not None:
            insort(self.keys, now)
