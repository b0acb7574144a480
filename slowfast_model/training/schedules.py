"""Learning rates as functions of the fractional epoch, the way the published recipes state them."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from slowfast_model.errors import InputError

Policy = Literal["cosine", "step"]


@dataclass(frozen=True)
class Schedule:
    """A learning rate for every moment of a training.

    The paper's half-period cosine (section 4, "Training") or steps of relative learning rates (section 5, AVA), both
    after a linear warm-up. As in PySlowFast, the rate changes with every iteration, and the warm-up rises to the value
    that the policy has at its end, not to the base rate.

    Attributes:
        base_lr: the rate that the policy scales.
        max_epochs: length of the training; the cosine ends there.
        policy: "cosine" or "step".
        warmup_epochs: length of the warm-up; 0 for none.
        warmup_start_lr: rate at epoch 0 when there is a warm-up.
        end_lr: where the cosine ends.
        cosine_after_warmup: start the cosine at the end of the warm-up instead of at epoch 0.
        steps: epochs at which the relative rates begin, ascending from 0.
        relative_lrs: the factor of ``base_lr`` from each step on.
    """

    base_lr: float
    max_epochs: float
    policy: Policy = "cosine"
    warmup_epochs: float = 0.0
    warmup_start_lr: float = 0.0
    end_lr: float = 0.0
    cosine_after_warmup: bool = False
    steps: tuple[float, ...] = (0.0,)
    relative_lrs: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.policy == "step":
            if not self.steps or self.steps[0] != 0 or list(self.steps) != sorted(self.steps):
                raise InputError(f"lr_steps is {list(self.steps)}: expected epochs that ascend from 0")
            if len(self.relative_lrs) < len(self.steps):
                raise InputError(
                    f"relative_lrs has {len(self.relative_lrs)} values: expected one for each of the "
                    f"{len(self.steps)} lr_steps"
                )

    def at(self, epoch: float) -> float:
        """The learning rate at a fractional epoch: 2.5 is half-way through the third epoch."""
        if epoch < self.warmup_epochs:
            slope = (self._policy_lr(self.warmup_epochs) - self.warmup_start_lr) / self.warmup_epochs
            return epoch * slope + self.warmup_start_lr
        return self._policy_lr(epoch)

    def _policy_lr(self, epoch: float) -> float:
        if self.policy == "step":
            return self.relative_lrs[bisect.bisect_right(self.steps, epoch) - 1] * self.base_lr
        start = self.warmup_epochs if self.cosine_after_warmup else 0.0
        angle = math.pi * (epoch - start) / (self.max_epochs - start)
        return self.end_lr + (self.base_lr - self.end_lr) * (math.cos(angle) + 1.0) * 0.5


def lr_scheduler(optimizer: Optimizer, schedule: Schedule, steps_per_epoch: float) -> LambdaLR:
    """A torch scheduler to be stepped after every iteration. The optimiser must have been made with ``lr=1``."""
    if any(group["lr"] != 1.0 for group in optimizer.param_groups):
        raise ValueError("the schedule gives absolute learning rates: make the optimiser with lr=1")
    return LambdaLR(optimizer, lambda step: schedule.at(step / steps_per_epoch))
