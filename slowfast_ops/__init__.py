"""Fused operators for two-pathway video networks: each is a function, an nn.Module and a torch.library op.

The contract of each is the docstring of its function; `python -m slowfast_ops.info` shows what runs where and why.
"""

from slowfast_ops.backends import available_backends, requested_backend, use_backend
from slowfast_ops.gather_frames import GatherFrames, YUVFrames, gather_frames, outputs_in_shared_memory
from slowfast_ops.lateral_conv_concat import LateralConvConcat, lateral_conv_concat
from slowfast_ops.roi_align_3d import RoIAlign3D, RoIAlign3DPool, roi_align_3d, roi_align_3d_pool
from slowfast_ops.temporal_gather import TemporalGather, slow_frame_indices, temporal_gather
from slowfast_ops.version import __version__

__all__ = [
    "GatherFrames",
    "LateralConvConcat",
    "RoIAlign3D",
    "RoIAlign3DPool",
    "TemporalGather",
    "YUVFrames",
    "__version__",
    "available_backends",
    "gather_frames",
    "lateral_conv_concat",
    "outputs_in_shared_memory",
    "requested_backend",
    "roi_align_3d",
    "roi_align_3d_pool",
    "slow_frame_indices",
    "temporal_gather",
    "use_backend",
]
