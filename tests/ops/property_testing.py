"""hypothesis; or, on a machine without it, stand-ins that skip the tests it would drive and leave the others alone."""

from __future__ import annotations

from typing import Any

import pytest

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError:

    class _Anything:
        """Takes the place of strategies, which are built as a test file is imported."""

        def __getattr__(self, name: str) -> _Anything:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> _Anything:
            return self

    st = _Anything()  # type: ignore[assignment]

    def settings(*args: Any, **kwargs: Any) -> Any:  # type: ignore[no-redef]
        return lambda test: test

    def given(*args: Any, **kwargs: Any) -> Any:
        def replaced(test: Any) -> Any:
            @pytest.mark.skip(reason="hypothesis is not installed (pip install hypothesis)")
            def skipped() -> None: ...

            skipped.__name__ = test.__name__
            return skipped

        return replaced


__all__ = ["given", "settings", "st"]
