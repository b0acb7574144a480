"""Reading and writing other projects' checkpoints and configurations."""

from slowfast_model.interop.conversion import from_pyslowfast

__all__ = ["from_pyslowfast"]
