"""Fixtures every room of the house may use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

_CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides, or a skip with a visible reason."""
    folder = Path(os.environ.get("MSAMIL_TEST_DATA", _CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder} (set MSAMIL_TEST_DATA)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(20261121)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test gets a cache folder of its own."""
    monkeypatch.setenv("MSAMIL_CACHE", str(tmp_path_factory.mktemp("cache")))
