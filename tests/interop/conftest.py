"""The shared reference values, and networks small enough for a test of whole state dicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.reference import Reference


@pytest.fixture(scope="session")
def reference(shared_data: Path) -> Reference:
    return Reference(shared_data / "reference")


@pytest.fixture(scope="session")
def yaml_folder(shared_data: Path) -> Path:
    """Six of PySlowFast's YAML files, as their users have them."""
    return shared_data / "reference" / "configs"
