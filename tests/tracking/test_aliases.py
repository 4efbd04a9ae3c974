"""The promises of the alias `champion`: never unset, one step back at a time, sane after a kill at any write."""

from collections.abc import Callable

import pytest

from fashion_study.tracking.aliases import (
    ConcurrentUpdateError,
    NoPreviousChampionError,
    rollback,
    set_champion,
    sync_alias,
)
from fashion_study.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, RegisteredModel, Registry
from tests.support.model_store import ModelStore, trained

NAME = "digits-cnn"


class KilledError(BaseException):
    """Stands for a kill: nothing after it is written."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    models = ModelStore(tmp_path_factory.mktemp("champions") / "store")
    study = models.study("digits-tiny")
    for number in range(3):
        models.register(models.trial(study, number, trained(0)))
    return models


@pytest.fixture
def models(shared: ModelStore) -> ModelStore:
    """Give three versions of which none is or was champion."""
    for alias in shared.aliases():
        shared.client.delete_registered_model_alias(NAME, alias)
    for version in shared.registry.model(NAME).versions:
        shared.client.delete_model_version_tag(NAME, str(version.number), "champions_before")
    return shared


class Champions:
    """The registered model under test, read again for each step, as each command reads it."""

    def __init__(self, models: ModelStore) -> None:
        self._registry = models.registry

    @property
    def model(self) -> RegisteredModel:
        return self._registry.model(NAME)

    def set(self, number: int, seen: RegisteredModel | None = None) -> None:
        challenger = self.model.version(number)
        assert challenger is not None
        set_champion(self._registry, seen or self.model, challenger)

    def back(self) -> tuple[int, int] | None:
        """Go one step back; return which version went and which came, None where there is no way back."""
        before = self.model.champion
        try:
            rollback(self._registry, self.model)
        except NoPreviousChampionError:
            return None
        after = self.model.champion
        assert before is not None
        assert after is not None
        return before.number, after.number

    def sync(self) -> None:
        sync_alias(self._registry, self.model)


@pytest.fixture
def champions(models: ModelStore) -> Champions:
    return Champions(models)


def test_the_first_champion_has_nobody_before_it(models: ModelStore, champions: Champions) -> None:
    assert champions.model.champion is None
    assert champions.model.previous is None
    champions.set(1)
    assert models.aliases() == {CHAMPION: 1}
    assert champions.back() is None
    assert models.aliases() == {CHAMPION: 1}


def test_each_step_goes_one_back_to_the_first(models: ModelStore, champions: Champions) -> None:
    for number in (1, 2, 3):
        champions.set(number)
    assert models.aliases() == {CHAMPION: 3, PREVIOUS_CHAMPION: 2}
    assert champions.back() == (3, 2)
    assert models.aliases() == {CHAMPION: 2, PREVIOUS_CHAMPION: 1}
    assert champions.back() == (2, 1)
    assert models.aliases() == {CHAMPION: 1}
    assert champions.back() is None


def test_steps_back_end_even_where_a_version_was_champion_twice(models: ModelStore, champions: Champions) -> None:
    for number in (1, 2, 1):
        champions.set(number)
    assert models.aliases() == {CHAMPION: 1, PREVIOUS_CHAMPION: 2}
    assert [champions.back() for _ in range(3)] == [(1, 2), (2, 1), None]
    assert models.aliases() == {CHAMPION: 1}


def test_a_version_that_was_rolled_back_can_come_again(models: ModelStore, champions: Champions) -> None:
    champions.set(1)
    champions.set(2)
    champions.back()
    champions.set(3)
    assert models.aliases() == {CHAMPION: 3, PREVIOUS_CHAMPION: 1}
    champions.set(2)
    assert [champions.back() for _ in range(3)] == [(2, 3), (3, 1), None]


def test_a_champion_made_by_hand_goes_back_by_its_alias(models: ModelStore, champions: Champions) -> None:
    models.registry.move_alias(NAME, CHAMPION, 2)
    assert champions.model.previous is None
    models.registry.move_alias(NAME, PREVIOUS_CHAMPION, 1)
    assert champions.back() == (2, 1)
    assert models.aliases() == {CHAMPION: 1}


def test_a_version_that_was_deleted_is_passed_over(models: ModelStore, champions: Champions) -> None:
    models.client.set_model_version_tag(NAME, "3", "champions_before", "99,2,1")
    models.registry.move_alias(NAME, CHAMPION, 3)
    assert champions.back() == (3, 2)
    assert models.aliases() == {CHAMPION: 2, PREVIOUS_CHAMPION: 1}


def test_other_aliases_stay_where_they_are(models: ModelStore, champions: Champions) -> None:
    models.registry.move_alias(NAME, CHALLENGER, 2)
    champions.set(1)
    champions.set(2)
    assert models.aliases() == {CHALLENGER: 2, CHAMPION: 2, PREVIOUS_CHAMPION: 1}


@pytest.mark.parametrize("writes", range(3))
@pytest.mark.parametrize("is_rollback", [False, True])
def test_a_kill_after_any_write_leaves_a_champion_and_a_way_back(
    is_rollback: bool,
    writes: int,
    models: ModelStore,
    champions: Champions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in (1, 2, 3) if is_rollback else (1, 2):
        champions.set(number)
    before = models.aliases()[CHAMPION]
    left = writes

    def counted(write: Callable[..., None]) -> Callable[..., None]:
        def killed_or_written(*arguments: object) -> None:
            nonlocal left
            if left == 0:
                raise KilledError
            left -= 1
            write(*arguments)

        return killed_or_written

    with monkeypatch.context() as killing:
        for name in ("tag", "move_alias", "remove_alias"):
            killing.setattr(Registry, name, counted(getattr(Registry, name)))
        move = champions.back if is_rollback else lambda: champions.set(3)
        with pytest.raises(KilledError):
            move()

    after = 2 if is_rollback else 3
    assert models.aliases()[CHAMPION] == (before if writes < 2 else after)
    champions.sync()
    reached = models.aliases()[CHAMPION]
    assert models.aliases().get(PREVIOUS_CHAMPION) == reached - 1
    steps = [champions.back() for _ in range(reached)]
    assert steps == [(number, number - 1) for number in range(reached, 1, -1)] + [None]


def test_a_champion_that_changed_before_the_move_is_left_alone(models: ModelStore, champions: Champions) -> None:
    seen = champions.model
    champions.set(1)
    with pytest.raises(ConcurrentUpdateError, match="digits-cnn version 1 is champion now"):
        champions.set(2, seen)
    assert models.aliases() == {CHAMPION: 1}


def test_a_champion_changed_after_the_move_is_reported_and_stays(
    models: ModelStore, champions: Champions, monkeypatch: pytest.MonkeyPatch
) -> None:
    champions.set(1)
    move = Registry.move_alias

    def moved_by_two(registry: Registry, name: str, alias: str, number: int) -> None:
        move(registry, name, alias, number)
        if alias == CHAMPION and number == 2:
            monkeypatch.undo()
            # What a promotion from another machine writes at this very moment.
            champions.set(3)

    monkeypatch.setattr(Registry, "move_alias", moved_by_two)
    with pytest.raises(ConcurrentUpdateError, match="digits-cnn version 3 is champion now"):
        champions.set(2)
    assert models.aliases()[CHAMPION] == 3
