"""temporal_gather: frames of a feature map picked by index along time."""

from slowfast_ops.temporal_gather.api import TemporalGather, slow_frame_indices, temporal_gather

__all__ = ["TemporalGather", "slow_frame_indices", "temporal_gather"]
