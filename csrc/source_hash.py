"""Hash of the sources that go into the binary: setup.py records it, `python -m slowfast_ops.info` compares it."""

from __future__ import annotations

import hashlib
from pathlib import Path


def source_hash() -> str:
    """16 hexadecimal digits over the names and contents of everything under csrc/ but the tests' own."""
    folder = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in {".h", ".cuh", ".cpp", ".cu"} and "testing" not in name.parts:
            digest.update(name.as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
