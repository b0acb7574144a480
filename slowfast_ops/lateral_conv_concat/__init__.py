"""lateral_conv_concat: the Fast-to-Slow lateral connection and the concatenation it ends in, as one op."""

from slowfast_ops.lateral_conv_concat.api import LateralConvConcat, lateral_conv_concat

__all__ = ["LateralConvConcat", "lateral_conv_concat"]
