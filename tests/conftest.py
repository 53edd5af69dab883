"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real models and photos that are not part of the project: ``$ONNXFIX_DATA``, or ``../shared/data``."""
    folder = Path(os.environ.get("ONNXFIX_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("the shared models and photos are absent (set ONNXFIX_DATA)")
    return folder
