"""gather_frames: from decoded uint8 frames to the clips of both pathways in one pass."""

from slowfast_ops.gather_frames.api import GatherFrames, gather_frames

__all__ = ["GatherFrames", "gather_frames"]
