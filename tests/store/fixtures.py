"""The store that several tests share."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fashion_study.store.store import Store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> "Store":
    """Give a store with both databases and the experiment of the digits."""
    # Not above: what it sets for MLflow must not be there when the user's own settings are taken away.
    from tests.support.empty_store import empty_store

    store = empty_store(tmp_path_factory.mktemp("study") / "a new store")
    store.experiment_id(store.client(), "digits")
    with store.optuna_storage():
        return store
