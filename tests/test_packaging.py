"""A source distribution can be compiled and tested, and it installs the two packages and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"slowfast_model", "slowfast_ops"}
FOLDERS = {"benchmarks", "csrc", "docs", "tests"} | PACKAGES
FILES = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
MADE_IN_PLACE = {".pyc", ".so"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The contents of a source distribution by file name."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"  # setuptools writes beside setup.py: not into the repository, which others test, too
    source.mkdir()
    for name in FOLDERS | FILES:
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (archive,) = folder.glob("slowfast_ops-*.tar.gz")
    with tarfile.open(archive) as tar:
        return {m.name.partition("/")[2]: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}


def test_source_distribution_has_every_file(sdist):
    expected = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = {path.relative_to(ROOT).as_posix() for path in expected if path.suffix not in MADE_IN_PLACE}
    assert "csrc/include/slowfast/tensor_view.h" in names
    assert (names | FILES) - sdist.keys() == set()


def test_only_the_packages_are_installed(sdist):
    assert set(sdist["slowfast_ops.egg-info/top_level.txt"].decode().split()) == PACKAGES
