"""The shared reference values, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.reference import Reference


@pytest.fixture(scope="session")
def reference(shared_data: Path) -> Reference:
    return Reference(shared_data / "reference")
