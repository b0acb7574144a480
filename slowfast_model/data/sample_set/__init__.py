"""The built-in sample set: synthetic action videos in AVA's and Kinetics' formats, generated on first use.

`motions` says which actions there are and which of them only a high frame rate can tell apart, `rendering` draws
them, `scenes` puts actors together, and `writing` encodes the videos and writes the annotations.
"""

from __future__ import annotations

import os
from pathlib import Path

from slowfast_model.data.sample_set.writing import VERSION, write_sample_set

__all__ = ["ensure_sample_set"]


def ensure_sample_set(
    dataset: str, root: str | os.PathLike[str] | None = None, seed: int = 0, progress: bool = True
) -> Path:
    """The folder of the sample set, laid out like a real --data-root; generated if it is not there yet (some seconds).

    Args:
        dataset: "ava" or "kinetics".
        root: the folder that holds sample sets; default `$SLOWFAST_CACHE`, else `~/.cache/slowfast`.
        seed: the annotations are a function of it, to the bit; so are the videos with the same FFmpeg.
        progress: show a progress bar while generating.

    Raises:
        InputError: wrong data set or seed, a folder that cannot be written, or FFmpeg without a video encoder.
    """
    root = Path(root or os.environ.get("SLOWFAST_CACHE") or "~/.cache/slowfast").expanduser()
    folder = root / f"sample_{dataset}_v{VERSION}_seed{seed}"
    write_sample_set(dataset, folder, seed, progress, replace_broken=True)
    return folder
