"""Checks a data set: ``python -m slowfast_model.doctor --dataset {ava,kinetics} --data-root DIR``"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from slowfast_model.commands import option_value, parse_arguments, run_command
from slowfast_model.data.ava import AvaDataModule
from slowfast_model.data.checks import Finding, check_ava, check_kinetics
from slowfast_model.data.clips import DataConfig
from slowfast_model.data.kinetics import KineticsDataModule
from slowfast_model.errors import InputError
from slowfast_model.models import get_preset
from slowfast_model.training.config import DATA_CONFIGS, TOP_LEVEL_DATA_FIELDS
from slowfast_model.training.environment import RUNS, make_folder, write_json


@dataclass
class DoctorConfig:
    """Fields of a check.

    Attributes:
        dataset: format of the data
        data_root: folder of the data set
        model: preset whose clips are read
        output_dir: where report.json goes, and the record of checked videos that lets a second run continue the first;
            default runs/doctor-<dataset>-<name of the folder>
        num_workers: processes that decode; default one per core
        data: fields of the data set
    """

    dataset: Literal["ava", "kinetics"]
    data_root: Path
    model: str = "slowfast_r50_8x8"
    output_dir: Path | None = None
    num_workers: int | None = None
    data: dict[str, Any] = field(default_factory=dict)


def examine(config: DoctorConfig) -> dict[str, Any]:
    """Checks a data set and writes ``report.json``.

    Returns:
        The report: ``healthy`` (no error), ``findings``, ``facts`` on each split.

    Raises:
        InputError: there is no data set of this format, or no such number of workers.
    """
    if config.num_workers is not None and config.num_workers < 1:
        raise InputError(f"num_workers is {config.num_workers}: expected 1 or more")
    folder = config.output_dir or RUNS / f"doctor-{config.dataset}-{config.data_root.resolve().name}"
    make_folder(folder)
    model = get_preset(config.model)
    data_config = DATA_CONFIGS[config.dataset](root=str(config.data_root), **config.data)
    workers = config.num_workers or os.cpu_count() or 1
    if config.dataset == "ava":
        findings, facts = check_ava(AvaDataModule(data_config, model), folder, workers)
    else:
        findings, facts = check_kinetics(KineticsDataModule(data_config, model), folder, workers)
    report = {
        "dataset": config.dataset,
        "data_root": str(config.data_root),
        "healthy": not any(finding.level == "error" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
        "facts": facts,
    }
    write_json(folder / "report.json", report)
    _print(findings, facts)
    print(f"report in {folder / 'report.json'}")
    return report


def _print(findings: Sequence[Finding], facts: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for name, values in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in values.items()) if isinstance(values, dict) else values
        console.print(escape(f"{name}: {shown}"))
    for finding in sorted(findings, key=lambda finding: finding.level):
        colour = {"error": "red", "warning": "yellow"}[finding.level]
        count = f"{finding.count} " if finding.examples else ""
        console.print(f"[{colour}]{finding.level}[/] {escape(f'{finding.check}: {count}{finding.message}')}")
        for example in finding.examples:
            console.print(escape(f"    {example}"))
        if finding.count > len(finding.examples) > 0:
            console.print(f"    and {finding.count - len(finding.examples)} more")
    if not findings:
        console.print("nothing is wrong")


def parse(argv: Sequence[str]) -> DoctorConfig:
    """Parses the command line; raises InputError for what is wrong with it."""
    data_class = DATA_CONFIGS.get(option_value(argv, "dataset") or "", DataConfig)
    return parse_arguments(
        DoctorConfig,
        "python -m slowfast_model.doctor",
        "Checks an AVA- or Kinetics-format data set: exit status 1 if something would break a training.",
        argv,
        sections={"data": (data_class, TOP_LEVEL_DATA_FIELDS)},
    )


def main() -> None:
    if not examine(parse(sys.argv[1:]))["healthy"]:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
