"""Learning rates equal PySlowFast's at every epoch and fraction of one; the torch scheduler follows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from slowfast_model.errors import InputError
from slowfast_model.training.schedules import Schedule, lr_scheduler

POLICIES = {"cosine": "cosine", "steps_with_relative_lrs": "step"}


def test_equals_pyslowfast(shared_data: Path) -> None:
    cases = json.loads((shared_data / "reference" / "data" / "lr.json").read_text())
    for case in cases:
        schedule = Schedule(
            base_lr=case["base_lr"],
            max_epochs=case["max_epoch"],
            policy=POLICIES[case["policy"]],
            warmup_epochs=case["warmup_epochs"],
            warmup_start_lr=case["warmup_start_lr"],
            end_lr=case["cosine_end_lr"],
            cosine_after_warmup=case["cosine_after_warmup"],
            **({"steps": tuple(case["steps"]), "relative_lrs": tuple(case["lrs"])} if case["steps"] else {}),
        )
        assert [schedule.at(epoch) for epoch in range(len(case["epochs"]))] == case["epochs"], case["config"]
        assert [[epoch, schedule.at(epoch)] for epoch, _ in case["fractional"]] == case["fractional"], case["config"]


def test_cosine_without_warmup_runs_from_base_to_end() -> None:
    schedule = Schedule(base_lr=0.4, max_epochs=10, end_lr=0.1)
    assert schedule.at(0) == 0.4
    assert schedule.at(5) == pytest.approx(0.25)
    assert schedule.at(10) == 0.1


def test_steps_begin_at_their_epoch() -> None:
    schedule = Schedule(base_lr=2.0, max_epochs=4, policy="step", steps=(0, 1, 3), relative_lrs=(1, 0.5, 0.25))
    assert [schedule.at(e) for e in (0, 0.99, 1, 2.99, 3, 100)] == [2.0, 2.0, 1.0, 1.0, 0.5, 0.5]


def test_bad_steps_are_named() -> None:
    with pytest.raises(InputError, match=r"lr_steps is \[0, 5, 3\]: expected epochs that ascend from 0"):
        Schedule(base_lr=1, max_epochs=9, policy="step", steps=(0, 5, 3), relative_lrs=(1, 1, 1))
    with pytest.raises(InputError, match=r"relative_lrs has 1 values: expected one for each of the 2 lr_steps"):
        Schedule(base_lr=1, max_epochs=9, policy="step", steps=(0, 5), relative_lrs=(1,))


def test_scheduler_sets_the_rate_of_every_iteration_and_resumes() -> None:
    schedule = Schedule(base_lr=0.1, max_epochs=3, warmup_epochs=1, warmup_start_lr=0.01)
    expected = [schedule.at(step / 4) for step in range(12)]

    def make() -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
        return optimizer, lr_scheduler(optimizer, schedule, steps_per_epoch=4)

    def run(optimizer, scheduler, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return rates

    assert run(*make(), 12) == expected
    optimizer, scheduler = make()
    rates = run(optimizer, scheduler, 5)
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = make()
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert rates + run(optimizer, scheduler, 7) == expected


def test_scheduler_refuses_an_optimizer_with_a_rate_of_its_own() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="lr=1"):
        lr_scheduler(optimizer, Schedule(base_lr=0.1, max_epochs=1), 1)
