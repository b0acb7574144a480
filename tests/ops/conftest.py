"""Parametrises the checks of OpTester over the samples of each subclass."""

from __future__ import annotations

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "sample" in metafunc.fixturenames:
        metafunc.parametrize("sample", metafunc.cls.samples, ids=str)
    if "layout" in metafunc.fixturenames:
        metafunc.parametrize("layout", ["contiguous", "channels_last_3d", "sliced"])
