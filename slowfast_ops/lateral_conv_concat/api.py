"""The public forms of the lateral connection: a function, and a module with batch norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slowfast_ops._arguments import check_floating, checked_integer, described
from slowfast_ops.backends import OpBackends
from slowfast_ops.lateral_conv_concat import ops, reference

BACKENDS = OpBackends("lateral_conv_concat", cpu=True, cuda=True, triton=True)


def lateral_conv_concat(
    slow: Tensor,
    fast: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    alpha: int,
    relu: bool = True,
    residual: Tensor | None = None,
) -> Tensor:
    """Feeds the Fast pathway into the Slow one: a time-strided convolution, its epilogue and the concatenation.

        out[:, :C] = slow                        or relu(slow + residual)
        out[:, C:] = relu(conv(fast) * scale + shift)

    `conv` is the paper's "T-conv" (section 3.4): kernel K x 1 x 1, stride `alpha` along time, padding K // 2. Neither
    its output nor anything between it and the concatenation is stored, and only the frames that a tap reaches are
    read (K=5, alpha=8: five of eight).

    Args:
        slow: floating point [N, C, T, H, W]: what the Slow pathway's stage gives; with `residual`, the output of its
            last block's residual branch before the addition and ReLU.
        fast: [N, Cf, alpha T, H, W], the Fast pathway after the same stage.
        weight: [Co, Cf, K, 1, 1], K odd.
        scale: [Co] of any floating dtype, or None for 1. A folded batch norm: gamma / sqrt(var + eps).
        shift: [Co] of any floating dtype, or None for 0. A folded batch norm (beta - mean * scale), or a bias.
        alpha: speed ratio of the pathways, at least 1; may be smaller or larger than K.
        relu: whether the lateral channels end in a ReLU.
        residual: [N, C, T, H, W], the shortcut of the Slow pathway's last block, or None.

    Returns:
        [N, C + Co, T, H, W], contiguous or channels_last_3d like `slow`, which, with `fast`, `weight` and `residual`,
        shares one dtype. bfloat16 is multiplied and summed in float32 and rounded once. Under autocast the dtype is
        that of the PyTorch composition: the autocast dtype, or float32 if `slow` or `residual` is float32.

        Differentiable in all six tensors, once; every gradient has the same bits each time and for any number of
        threads. The gradient of `slow` is a view of the output's where there is no residual.

    Raises:
        ValueError: a wrong shape, dtype, device, an even K, or alpha T frames that `fast` does not have.
    """
    _check(slow, fast, weight, residual, alpha)
    for name, value in (("scale", scale), ("shift", shift)):
        _check_vector(name, value, weight.shape[0], slow.device)
    return _implementation(slow).lateral_conv_concat(slow, fast, weight, scale, shift, residual, alpha, relu)


def lateral_conv_norm_concat(
    slow: Tensor,
    fast: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    alpha: int,
    relu: bool = True,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    process_group: Any = None,
    synchronize: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The training form: lateral_conv_concat with batch norm by the statistics of this batch.

    Args:
        slow, fast, weight, alpha, relu, residual: as in `lateral_conv_concat`.
        gamma, beta: [Co], the batch norm's weight and bias, or None for 1 and 0.
        eps: added to the variance.
        synchronize: whether the statistics are those of all processes of `process_group` (None: of all processes).

    Returns:
        The output, and what the running statistics take up, without gradient: the batch's mean [Co] and unbiased
        variance [Co].

    Raises:
        ValueError: as `lateral_conv_concat`, or there is only one value per channel.
    """
    _check(slow, fast, weight, residual, alpha)
    for name, value in (("gamma", gamma), ("beta", beta)):
        _check_vector(name, value, weight.shape[0], slow.device)
    per_channel = slow.shape[0] * slow.shape[2] * slow.shape[3] * slow.shape[4]
    if not synchronize and per_channel < 2:
        raise ValueError(
            f"batch norm in training needs more than one value per channel; slow {list(slow.shape)} gives {per_channel}"
        )
    implementation = _implementation(slow)
    conv, mean, var = implementation.lateral_conv_statistics(fast, weight, alpha)
    count: int | Tensor = per_channel
    if synchronize:
        mean, var, count = _over_processes(mean, var, per_channel, process_group)
    output = implementation.lateral_norm_concat(slow, conv, mean, var, gamma, beta, residual, relu, eps)
    return output, mean.detach(), var.detach() * (count / (count - 1))


def _over_processes(mean: Tensor, var: Tensor, count: int, process_group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count over the values of all processes; differentiable in the first two."""
    from torch.distributed.nn.functional import all_reduce

    wide = mean.double()  # float64: the squares of the means are about to cancel
    moments = torch.cat([wide, var.double() + wide.square(), torch.ones_like(wide[:1])]) * count
    moments = all_reduce(moments, group=torch.distributed.group.WORLD if process_group is None else process_group)
    total = moments[-1].detach()
    wide, square = (moments[:-1] / total).chunk(2)
    return wide.to(mean.dtype), (square - wide.square()).clamp(min=0).to(var.dtype), total.to(var.dtype)


def _implementation(slow: Tensor) -> Any:
    backend = BACKENDS.select(slow)
    return reference if backend == "reference" else ops.triton if backend == "triton" else ops.compiled


def _check(slow: Tensor, fast: Tensor, weight: Tensor, residual: Tensor | None, alpha: int) -> None:
    check_floating("slow", slow, "[N, C, T, H, W]")
    check_floating("fast", fast, "[N, Cf, alpha T, H, W]")
    check_floating("weight", weight, "[Co, Cf, K, 1, 1]")
    checked_integer("alpha", alpha, 1)
    kernel_size = weight.shape[2]
    if weight.shape[3] != 1 or weight.shape[4] != 1 or weight.shape[1] != fast.shape[1]:
        raise ValueError(
            f"weight must be [Co, Cf, K, 1, 1] with the Cf={fast.shape[1]} channels of fast, got {list(weight.shape)}"
        )
    if weight.shape[0] < 1 or weight.shape[1] < 1:
        raise ValueError(f"weight must have at least one output and one input channel, got {list(weight.shape)}")
    if kernel_size % 2 == 0:
        raise ValueError(f"weight has K={kernel_size} taps: K must be odd, else padding K // 2 gives T + 1 frames")
    if fast.shape[2] != alpha * slow.shape[2]:
        raise ValueError(
            f"fast has {fast.shape[2]} frames, expected alpha T = {alpha} * {slow.shape[2]} = {alpha * slow.shape[2]}"
        )
    if fast.shape[0] != slow.shape[0] or fast.shape[3:] != slow.shape[3:]:
        raise ValueError(f"fast must have the N, H, W of slow, got {list(fast.shape)} for slow {list(slow.shape)}")
    if residual is not None:
        check_floating("residual", residual, "[N, C, T, H, W]")
        if residual.shape != slow.shape:
            raise ValueError(f"residual must have the shape of slow {list(slow.shape)}, got {list(residual.shape)}")
    # Autocast settles the dtypes itself, unless there is a float64, which it leaves alone.
    dtypes = [x.dtype for x in (slow, fast, weight, residual) if x is not None]
    may_cast = slow.device.type != "meta" and torch.is_autocast_enabled(slow.device.type)
    settled = may_cast and torch.float64 not in dtypes
    for name, value in (("fast", fast), ("weight", weight), ("residual", residual)):
        if value is None:
            continue
        if value.device != slow.device:
            raise ValueError(f"{name} is on {value.device}, slow on {slow.device}; they must be on one device")
        if value.dtype != slow.dtype and not settled:
            raise ValueError(f"{name} is {value.dtype}, slow is {slow.dtype}; they must share one dtype")


def _check_vector(name: str, value: Tensor | None, channels: int, device: torch.device) -> None:
    if value is None:
        return
    check_floating(name, value, "[Co]")
    if value.shape[0] != channels:
        raise ValueError(f"{name} must be [Co={channels}], one per output channel of weight, got {described(value)}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, slow on {device}; they must be on one device")


class LateralConvConcat(nn.Module):
    """A lateral connection of the paper's "T-conv" kind with batch norm and ReLU, concatenated to the Slow pathway.

    The submodules are a plain convolution and batch norm, so that checkpoints have the names of the unfused pair
    (conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.num_batches_tracked) and
    `nn.SyncBatchNorm.convert_sync_batchnorm` works; both are read, never called, so their own hooks do not run.

    In evaluation (and with `bn.eval()` in training: frozen batch norm) the running statistics are folded into the
    convolution's epilogue. In training the batch's statistics are taken in that epilogue; the convolution's output is
    kept for the backward, one normalisation pass writes the result, and the running statistics change exactly as
    `nn.BatchNorm3d` changes them. Where `bn` is an `nn.SyncBatchNorm`, statistics are those of all processes, on any
    device.

    Args:
        fast_channels: Cf, channels of the Fast pathway.
        lateral_channels: Co, channels added to the Slow pathway (the paper: 2 Cf).
        kernel_size: K, odd. The paper's text says 5; its 8x8 models have 7.
        alpha: speed ratio of the pathways.
        norm: whether there is a batch norm; without it the convolution's output is concatenated as it is.
        relu: whether the lateral channels end in a ReLU.
        eps, momentum: of the batch norm; momentum None averages the statistics of all batches.
    """

    def __init__(
        self,
        fast_channels: int,
        lateral_channels: int,
        *,
        kernel_size: int = 5,
        alpha: int = 8,
        norm: bool = True,
        relu: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("fast_channels", fast_channels), ("lateral_channels", lateral_channels), ("alpha", alpha)):
            checked_integer(name, value, 1)
        if checked_integer("kernel_size", kernel_size, 1) % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd, else padding K // 2 gives a frame too many")
        self.alpha = alpha
        self.relu = relu
        self.conv = nn.Conv3d(
            fast_channels,
            lateral_channels,
            (kernel_size, 1, 1),
            stride=(alpha, 1, 1),
            padding=(kernel_size // 2, 0, 0),
            bias=False,
        )
        self.bn = nn.BatchNorm3d(lateral_channels, eps=eps, momentum=momentum) if norm else None

    def forward(self, slow: Tensor, fast: Tensor, residual: Tensor | None = None) -> Tensor:
        """slow [N, C, T, H, W], fast [N, Cf, alpha T, H, W] -> [N, C + Co, T, H, W]; see `lateral_conv_concat`."""
        weight, bn = self.conv.weight, self.bn
        options: dict[str, Any] = {"alpha": self.alpha, "relu": self.relu, "residual": residual}
        if bn is None:
            return lateral_conv_concat(slow, fast, weight, None, self.conv.bias, **options)
        if not isinstance(bn, (nn.BatchNorm3d, nn.SyncBatchNorm)):
            raise TypeError(
                f"bn is a {type(bn).__name__}: LateralConvConcat needs an nn.BatchNorm3d or nn.SyncBatchNorm"
            )
        if not bn.training and bn.running_mean is not None and bn.running_var is not None:
            return lateral_conv_concat(slow, fast, weight, *_folded(bn), **options)
        group = getattr(bn, "process_group", None)
        output, mean, var = lateral_conv_norm_concat(
            slow,
            fast,
            weight,
            bn.weight,
            bn.bias,
            eps=bn.eps,
            synchronize=isinstance(bn, nn.SyncBatchNorm) and bn.training and _world_size(group) > 1,
            process_group=group,
            **options,
        )
        if bn.training and bn.track_running_stats:
            _update_running_statistics(bn, mean, var)
        return output

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, relu={self.relu}"


def _folded(bn: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm by its running statistics, computed in float32 at least."""
    dtype = torch.promote_types(bn.running_var.dtype, torch.float32)
    scale = (bn.running_var.to(dtype) + bn.eps).rsqrt()
    scale = scale if bn.weight is None else scale * bn.weight
    shift = -bn.running_mean * scale
    return scale, shift if bn.bias is None else shift + bn.bias


def _world_size(group: Any) -> int:
    distributed = torch.distributed
    return distributed.get_world_size(group) if distributed.is_available() and distributed.is_initialized() else 1


@torch.no_grad()
def _update_running_statistics(bn: Any, mean: Tensor, var: Tensor) -> None:
    """As nn.BatchNorm3d does; momentum None is the average over all batches."""
    bn.num_batches_tracked.add_(1)
    momentum = 1.0 / bn.num_batches_tracked.item() if bn.momentum is None else bn.momentum
    for running, value in ((bn.running_mean, mean), (bn.running_var, var)):
        running.mul_(1 - momentum).add_(value, alpha=momentum)
