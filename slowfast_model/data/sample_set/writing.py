"""Writes a sample set: H.264 files and annotations in the layout of the real data sets, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from slowfast_model.data.sample_set.motions import AVA_ACTIONS, FPS, KINETICS_ACTIONS
from slowfast_model.data.sample_set.scenes import HEIGHT, KEY_FRAMES, WIDTH, Scene, ava_scene, kinetics_scene
from slowfast_model.errors import InputError

VERSION = 1  # of the contents: raise it with any change of what is written, so that no old cache is taken for it
MANIFEST = "manifest.json"
AVA_VIDEOS = {"train": 24, "val": 10}
KINETICS_VIDEOS_PER_ACTION = {"train": 40, "val": 12}
SPLITS = ("train", "val")
EXCLUDED_SHARE = 0.02  # of the key frames
FALSE_POSITIVE_SHARE = 0.2  # of the key frames have a detected box, of a low score, where nobody need be

# Tried in this order. The quality is constant and high, and intra-coded frames are frequent: what an encoder loses
# depends on the motion, and must not tell the aliased actions apart.
ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "qp": "16", "bf": "0", "x264-params": "aq-mode=0:mbtree=0:scenecut=0"},
    "libopenh264": {"b": "4000000"},
    "mpeg4": {"qmin": "1", "qmax": "2", "b": "8000000", "bf": "0"},
}
GROUP_OF_PICTURES = 15


def find_encoder() -> str:
    """The first encoder of `ENCODERS` that PyAV's FFmpeg has.

    Raises:
        InputError: FFmpeg was built with none of them.
    """
    for name in ENCODERS:
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            if av.codec.Codec(name, "w").type == "video":
                return name
    raise InputError(
        f"the sample set needs one of the video encoders {', '.join(ENCODERS)}, and PyAV {av.__version__} has none of "
        "them: install PyAV from its wheel (pip install av), or give --data-root"
    )


def write_video(path: Path, scene: Scene, encoder: str) -> None:
    """Writes the scene as an MP4 file of `FPS` frames a second."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(encoder, rate=FPS, options=ENCODERS[encoder])
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        stream.codec_context.gop_size = GROUP_OF_PICTURES
        stream.codec_context.thread_count = 1  # one thread per video: the videos themselves are written in parallel
        for number, image in enumerate(scene.render()):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _ava_scenes(folder: Path, seed: int) -> Iterator[tuple[Path, Scene]]:
    """Writes the AVA annotations and yields the videos to be written, as (path, scene)."""
    annotations = folder / "annotations"
    annotations.mkdir()
    items = [f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in enumerate(AVA_ACTIONS, 1)]
    (annotations / "ava_action_list_sample.pbtxt").write_text("".join(items))
    for split_number, split in enumerate(SPLITS):
        truth, predicted, excluded = [], [], []
        for number in range(AVA_VIDEOS[split]):
            rng = np.random.default_rng([seed, split_number, number])
            scene, video = ava_scene(rng), f"{split}_{number:02d}"
            yield folder / "videos" / f"{video}.mp4", scene
            boxes = scene.boxes()
            for second in KEY_FRAMES:
                key = f"{video},{second:04d}"
                # A key frame whose annotators did not agree: it has no ground truth, and must not count in evaluation.
                is_excluded = rng.random() < EXCLUDED_SHARE
                if is_excluded:
                    excluded.append(f"{key}\n")
                for person, performance in enumerate(scene.performances):
                    box = boxes[person, second * FPS]
                    if not is_excluded:
                        for name in performance.activity_at(second * FPS).actions:
                            truth.append(f"{key},{_numbers(box)},{AVA_ACTIONS.index(name) + 1},{person}\n")
                    detected = np.clip(rng.normal(box, 0.02 * np.tile(box[2:] - box[:2], 2)), 0, 1)
                    predicted.append(f"{key},{_numbers(detected)},,{rng.uniform(0.85, 1):.3f}\n")
                if rng.random() < FALSE_POSITIVE_SHARE:
                    corner, size = rng.uniform(0, 0.6, 2), rng.uniform(0.2, 0.4, 2)
                    detected = np.concatenate([corner, corner + size])
                    predicted.append(f"{key},{_numbers(detected)},,{rng.uniform(0.05, 0.6):.3f}\n")
        (annotations / f"ava_{split}_v2.2.csv").write_text("".join(truth))
        (annotations / f"ava_{split}_excluded_timestamps_v2.2.csv").write_text("".join(excluded))
        if split == "val":
            (annotations / "ava_val_predicted_boxes.csv").write_text("".join(predicted))


def _numbers(box: np.ndarray) -> str:
    return ",".join(f"{value:.3f}" for value in box)


def _kinetics_scenes(folder: Path, seed: int) -> Iterator[tuple[Path, Scene]]:
    """Writes the Kinetics lists and yields the videos to be written, as (path, scene)."""
    (folder / "label_map.txt").write_text("".join(f"{name}\n" for name in KINETICS_ACTIONS))
    for split_number, split in enumerate(SPLITS):
        rows = []
        for number in range(KINETICS_VIDEOS_PER_ACTION[split] * len(KINETICS_ACTIONS)):
            label = number % len(KINETICS_ACTIONS)
            path = f"videos/{split}_{number:03d}.mp4"
            rows.append(f"{path} {label}\n")
            yield folder / path, kinetics_scene(np.random.default_rng([seed, split_number, number]), label)
        (folder / f"{split}.csv").write_text("".join(rows))


DATASETS: dict[str, Callable[[Path, int], Iterator[tuple[Path, Scene]]]] = {
    "ava": _ava_scenes,
    "kinetics": _kinetics_scenes,
}


def is_complete(folder: Path, dataset: str, seed: int) -> bool:
    """Whether `folder` holds this version's sample set: the manifest says so and all files in it have their sizes."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        key = {"dataset": dataset, "version": VERSION, "seed": seed}
        return key.items() <= manifest.items() and all(
            (folder / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def write_sample_set(dataset: str, folder: Path, seed: int, progress: bool, replace_broken: bool = False) -> None:
    """Writes the sample set to `folder`; does nothing if it is there already.

    It is written to a temporary folder next to `folder` that is then renamed, so `folder` is there whole or not at
    all. Several processes may do this at once: the first to finish wins, and the others drop their equal copies.

    Args:
        dataset: "ava" or "kinetics".
        folder: a path where nothing is yet, or this sample set.
        seed: an integer >= 0.
        progress: show a progress bar.
        replace_broken: replace whatever else is at `folder` (for caches) instead of raising.

    Raises:
        InputError: wrong data set or seed, something else at `folder`, no right to write there, or no video encoder.
    """
    if dataset not in DATASETS:
        raise InputError(f"dataset={dataset!r}: there is a sample set for {' and '.join(DATASETS)} only")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r}: must be an integer >= 0")
    if is_complete(folder, dataset, seed):
        return
    encoder = find_encoder()
    try:
        if not replace_broken and folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty, and not this sample set: name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as workspace:
            content = Path(workspace) / "content"
            _fill(content, dataset, seed, encoder, progress)
            if replace_broken and folder.exists() and not is_complete(folder, dataset, seed):
                os.rename(folder, Path(workspace) / "broken")
            try:
                os.rename(content, folder)
            except OSError:
                if not is_complete(folder, dataset, seed):
                    raise
    except (OSError, av.error.FFmpegError) as error:
        raise InputError(
            f"cannot write the {dataset} sample set to {folder}: {error}; "
            "give another folder (the environment variable SLOWFAST_CACHE, or --output)"
        ) from error


def _fill(folder: Path, dataset: str, seed: int, encoder: str, progress: bool) -> None:
    (folder / "videos").mkdir(parents=True)
    scenes = list(DATASETS[dataset](folder, seed))
    bar = tqdm(total=len(scenes), desc=f"Generating the {dataset} sample set", unit="video", disable=not progress)
    # Threads are enough: numpy and FFmpeg release the interpreter's lock.
    with bar, ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(write_video, path, scene, encoder) for path, scene in scenes]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*.*"))}
    key = {"dataset": dataset, "version": VERSION, "seed": seed}
    manifest = {**key, "encoder": encoder, "pyav": av.__version__, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _remove_leftovers(folder: Path) -> None:
    """Removes the temporary folders of generations that were killed; one still at work is younger than an hour."""
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 3600:
                shutil.rmtree(leftover)
