"""gather_frames: from decoded uint8 frames to the clips of both pathways in one pass."""

from slowfast_ops.gather_frames.api import GatherFrames, gather_frames
from slowfast_ops.gather_frames.native import outputs_in_shared_memory
from slowfast_ops.gather_frames.yuv import YUVFrames

__all__ = ["GatherFrames", "YUVFrames", "gather_frames", "outputs_in_shared_memory"]
