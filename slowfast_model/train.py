"""Trains a network: ``python -m slowfast_model.train --dataset {ava,kinetics} [--data-root DIR] [--model NAME] ...``"""

from __future__ import annotations

import sys

from slowfast_model.commands import run_command
from slowfast_model.training.config import parse_train_config
from slowfast_model.training.run import train

DESCRIPTION = "Trains and evaluates a Slow-only or SlowFast network on AVA- or Kinetics-format videos."


def main() -> None:
    train(parse_train_config("python -m slowfast_model.train", DESCRIPTION, sys.argv[1:]))


if __name__ == "__main__":
    run_command(main)
