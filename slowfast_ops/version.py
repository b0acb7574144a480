"""The version of the distribution, which holds both slowfast_ops and slowfast_model."""

__version__ = "0.1.0"
