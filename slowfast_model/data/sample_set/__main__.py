"""Writes a built-in sample set to a folder: python -m slowfast_model.data.sample_set --dataset ava --output DIR."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from slowfast_model.data.sample_set import writing
from slowfast_model.errors import InputError


def main() -> None:
    """Writes the sample set that the command line asks for; status 2 and one line on standard error if that fails."""
    parser = argparse.ArgumentParser(prog="python -m slowfast_model.data.sample_set", description=__doc__)
    parser.add_argument("--dataset", choices=sorted(writing.DATASETS), required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder, usable as --data-root")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        writing.write_sample_set(arguments.dataset, arguments.output, arguments.seed, progress=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(arguments.output)


if __name__ == "__main__":
    main()
