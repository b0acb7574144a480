"""roi_align_3d: RoIAlign of boxes, cuboids and tubelets on video features, and its pooled form for detection heads."""

from slowfast_ops.roi_align_3d.api import RoIAlign3D, RoIAlign3DPool, roi_align_3d, roi_align_3d_pool

__all__ = ["RoIAlign3D", "RoIAlign3DPool", "roi_align_3d", "roi_align_3d_pool"]
