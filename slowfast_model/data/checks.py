"""What can be wrong with a data set, found before a training finds it: rows, boxes, labels, videos."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from slowfast_model.data.ava import NO_VIDEO, TIME_SLACK, AvaDataModule, AvaDataset
from slowfast_model.data.ava_annotations import NO_LABEL, KeyFrames, check_boxes
from slowfast_model.data.clips import ClipDataset
from slowfast_model.data.kinetics import KineticsDataModule, KineticsDataset
from slowfast_model.data.video import VideoError
from slowfast_model.data.video_cache import VideoCache
from slowfast_model.data.video_list import find_malformed_rows as find_malformed_list_rows
from slowfast_model.errors import InputError
from slowfast_model.evaluation.ava_csv import (
    LabelledBoxes,
    find_malformed_rows,
    read_groundtruth,
    read_predicted_boxes,
)
from slowfast_model.evaluation.frame_keys import FrameKey

_EXAMPLES = 5
_RECALL_IOU = 0.5


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        level: "error": a training would not start, or stop; "warning": it would run, perhaps on less than was meant.
        check: which check found it, in a word or two.
        message: what it is, in a line.
        count: how often.
        examples: the first few places.
    """

    level: Literal["error", "warning"]
    check: str
    message: str
    count: int = 1
    examples: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, level: Literal["error", "warning"], check: str, message: str, places: Iterable[object]
    ) -> Iterator[Finding]:
        """One finding for all places, or none if there are none."""
        found = [str(place) for place in places]
        if found:
            yield cls(level, check, message, len(found), found[:_EXAMPLES])


@dataclass(frozen=True)
class VideoFacts:
    """What decoding the first, the middle and the last clip of a video showed.

    Attributes:
        path: the file.
        size_bytes, modified: of the file; a check of the same file is not repeated.
        clips: what was asked for, so that other annotations ask again.
        failures: (clip, reason) of those that cannot be read; clip -1: the file cannot be opened.
        fps, duration, height, width: of the video, seconds and pixels; None if it cannot be opened.
    """

    path: str
    size_bytes: int
    modified: int
    clips: list[int]
    failures: list[tuple[int, str]] = field(default_factory=list)
    fps: float | None = None
    duration: float | None = None
    height: int | None = None
    width: int | None = None


_data: ClipDataset  # in a worker process: the data set that it reads


def _start_worker(data: ClipDataset) -> None:
    global _data
    _data = data


def _check_video(path: str, clips: list[int]) -> VideoFacts:
    stamp = _stamp(path)
    try:
        with VideoCache(0, _data.config.frames_fps).open(path) as video:
            fps, duration, (height, width) = video.fps, video.duration, video.size
    except VideoError as error:
        return VideoFacts(path, *stamp, clips, [(-1, error.reason)])
    failures = [(clip, reason) for clip in clips for _, reason in _data[clip].bad_videos]
    return VideoFacts(path, *stamp, clips, failures, fps, duration, height, width)


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # not there, or no possible name
        return 0, 0
    return status.st_size, status.st_mtime_ns


def check_videos(
    data: ClipDataset, clips_of: dict[Path, list[int]], record: Path, num_workers: int, title: str
) -> dict[Path, VideoFacts]:
    """Decodes some clips of every video, in parallel.

    Args:
        data: an evaluation data set.
        clips_of: the clips to decode, by video file.
        record: a file that gains a line per checked video; what it has of unchanged files is not checked again, so an
            interrupted check continues.
        num_workers: processes.
        title: for the progress bar.
    """
    known: dict[tuple[str, tuple[int, ...]], VideoFacts] = {}
    if record.exists():
        for line in record.read_text(encoding="utf-8").splitlines():
            try:
                facts = VideoFacts(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the line at which a killed check broke off
            known[facts.path, tuple(facts.clips)] = facts
    found: dict[Path, VideoFacts] = {}
    for path, clips in clips_of.items():
        before = known.get((str(path), tuple(clips)))
        if before is not None and (before.size_bytes, before.modified) == _stamp(str(path)):
            found[path] = before
    left = {path: clips for path, clips in clips_of.items() if path not in found}
    with (
        record.open("a", encoding="utf-8") as file,
        ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(data,)) as pool,
        tqdm(total=len(clips_of), initial=len(found), desc=title, unit="video", disable=None) as bar,
    ):
        running = {pool.submit(_check_video, str(path), clips): path for path, clips in left.items()}
        for future in as_completed(running):
            facts = found[running[future]] = future.result()
            file.write(json.dumps(asdict(facts)) + "\n")
            file.flush()
            bar.update()
    return found


def _video_findings(split: str, videos: dict[Path, VideoFacts], max_bad_share: float) -> Iterator[Finding]:
    bad = [f"{facts.path}: {facts.failures[0][1]}" for facts in videos.values() if facts.failures]
    stops = len(bad) > max_bad_share * len(videos) or (split == "train" and len(bad) == len(videos))
    message = f"{split} videos of {len(videos)} are missing or cannot be read"
    if stops:
        message += f", more than data.max_bad_share={max_bad_share} allows"
    yield from Finding.of("error" if stops else "warning", "videos", message, bad)


def _label_findings(split: str, labels: Sequence[int], names: dict[int, str]) -> Iterator[Finding]:
    without = sorted(set(names) - set(labels))
    yield from Finding.of(
        "warning", "classes", f"classes have no example in {split}", (f"{k} {names[k]}" for k in without)
    )


def _facts(videos: dict[Path, VideoFacts]) -> dict[str, Any]:
    """Numbers on the videos that can be read."""
    readable = [facts for facts in videos.values() if not facts.failures]
    if not readable:
        return {"videos": len(videos), "readable": 0}
    durations = np.array([facts.duration for facts in readable])
    rates = sorted({round(facts.fps or 0, 2) for facts in readable})
    return {
        "videos": len(videos),
        "readable": len(readable),
        "hours": round(float(durations.sum()) / 3600, 3),
        "shortest_seconds": round(float(durations.min()), 3),
        "longest_seconds": round(float(durations.max()), 3),
        "fps": rates if len(rates) <= 10 else [rates[0], "...", rates[-1]],
        "smallest_side": min(min(facts.height or 0, facts.width or 0) for facts in readable),
    }


# ---- Kinetics


def check_kinetics(data: KineticsDataModule, folder: Path, num_workers: int) -> tuple[list[Finding], dict[str, Any]]:
    """Checks a Kinetics-format data set.

    Args:
        data: not set up yet.
        folder: where the record of the videos is kept.
        num_workers: processes that decode.

    Returns:
        What is wrong, and facts by split.
    """
    root, config = Path(data.config.root), data.config
    findings: list[Finding] = []
    for name in (config.train_list, config.val_list):
        if (root / name).is_file():
            rows = find_malformed_list_rows(root / name)
            findings += Finding.of("error", "rows", f"rows of {root / name} cannot be read", rows)
    if findings:
        return findings, {}
    try:
        data.setup()
    except InputError as error:
        return [Finding("error", "labels", str(error))], {}
    facts: dict[str, Any] = {"classes": data.num_classes}
    paths: dict[str, list[str]] = {}
    for split, dataset in (("train", data.train_data), ("val", data.val_data)):
        # Three clips of every video: at its beginning, in the middle and at its end.
        clips = KineticsDataset(dataset.videos, config, data.model_config, views=(3, 1), views_to_end=True)
        rows_of: dict[Path, list[int]] = {}
        for row in range(len(dataset.videos)):
            rows_of.setdefault(clips.locate(row), []).append(row)
        paths[split] = [str(path) for path in rows_of]
        repeated = [f"{path}: rows {rows}" for path, rows in rows_of.items() if len(rows) > 1]
        findings += Finding.of("warning", "duplicates", f"videos are more than once in {split}", repeated)
        clips_of = {path: [3 * rows[0] + view for view in range(3)] for path, rows in rows_of.items()}
        videos = check_videos(clips, clips_of, folder / "videos.jsonl", num_workers, split)
        findings += _video_findings(split, videos, config.max_bad_share)
        findings += _label_findings(split, dataset.videos.labels.tolist(), data.class_names)
        facts[split] = _facts(videos)
    both = sorted(set(paths["train"]) & set(paths["val"]))
    findings += Finding.of("warning", "duplicates", "videos are in train and in val", both)
    return findings, facts


# ---- AVA


def check_ava(data: AvaDataModule, folder: Path, num_workers: int) -> tuple[list[Finding], dict[str, Any]]:
    """Checks an AVA-format data set; as `check_kinetics`."""
    config = data.config
    files = {split: config.files(split) for split in ("train", "val")}  # an InputError if there are none
    findings: list[Finding] = []
    for split in files:
        for path, scored in ((files[split].groundtruth, False), (files[split].predicted_boxes, True)):
            if path is not None:
                rows = find_malformed_rows(path, scored=scored)
                findings += Finding.of("error", "rows", f"rows of {path} cannot be read", rows)
    if findings:
        return findings, {}
    truths = {split: read_groundtruth(files[split].groundtruth) for split in files}
    for split, table in truths.items():
        findings += _box_findings(table, files[split].groundtruth)
    try:
        data.setup()
    except InputError as error:
        if not any(finding.level == "error" for finding in findings):
            findings.append(Finding("error", "annotations", str(error)))
        return findings, {}
    names = data.class_names
    evaluated = {k: names[k] for k in data.evaluated_classes}
    facts: dict[str, Any] = {"classes": data.num_classes, "evaluated_classes": len(evaluated)}
    video_ids = {}
    for split, table in truths.items():
        has_box = set(np.unique(table.frames).tolist())
        empty = [key for frame, key in enumerate(table.keys) if frame not in has_box]
        findings += Finding.of("warning", "key frames", f"key frames of {split} have no box", empty)
        unlabelled = (table.keys[frame] for frame in table.frames[table.labels == NO_LABEL])
        findings += Finding.of("warning", "labels", f"boxes of {split} have no label", unlabelled)
        findings += _label_findings(split, table.labels.tolist(), evaluated)
        unknown = sorted(set(table.labels.tolist()) - set(evaluated) - {NO_LABEL})
        findings += Finding.of("warning", "labels", f"class ids of {split} are not in the action list", unknown)
        key_frames = KeyFrames.from_tables([table])
        video_ids[split] = set(key_frames.video_ids)
        num_classes = max(data.num_classes, int(table.labels.max(initial=1)))  # those that only val has included
        dataset = AvaDataset(key_frames, data.videos, config, data.model_config, num_classes, [(256, False)])
        videos, outside = _check_ava_videos(dataset, folder, num_workers, split)
        findings += _video_findings(split, videos, config.max_bad_share)
        findings += Finding.of("warning", "timestamps", f"key frames of {split} lie outside their videos", outside)
        facts[split] = {**_facts(videos), "key_frames": len(key_frames), "boxes": len(key_frames.boxes)}
        path = files[split].predicted_boxes
        if path is not None:
            predicted = read_predicted_boxes(path)
            recall, lacking = _detector_recall(key_frames, predicted, config.score_threshold)
            facts[split]["detector_recall"] = recall
            findings += Finding.of(
                "warning", "detector", f"key frames of {split} with boxes have no predicted box", lacking
            )
            if recall < 0.5:
                message = f"predicted boxes of {split} find only {recall:.1%} of the boxes at IoU {_RECALL_IOU}"
                findings.append(Finding("warning", "detector", message))
    findings += Finding.of(
        "warning", "duplicates", "videos are in train and in val", sorted(video_ids["train"] & video_ids["val"])
    )
    return findings, facts


def _box_findings(table: LabelledBoxes, path: Path) -> Iterator[Finding]:
    def places(rows: np.ndarray) -> Iterator[str]:
        return (f"{table.keys[table.frames[row]]}: {table.boxes[row].tolist()}" for row in np.flatnonzero(rows))

    boxes = table.boxes
    try:
        check_boxes(table, path)
    except InputError as error:
        yield Finding("error", "boxes", str(error))
    outside = (boxes < 0).any(axis=1) | (boxes > 1).any(axis=1)
    yield from Finding.of("warning", "boxes", f"boxes of {path} reach out of the frame", places(outside))
    flat = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    yield from Finding.of("warning", "boxes", f"boxes of {path} have no area", places(flat))


def _check_ava_videos(
    data: AvaDataset, folder: Path, num_workers: int, split: str
) -> tuple[dict[Path, VideoFacts], list[FrameKey]]:
    """Checks the clips at the first, the middle and the last key frame of each video; finds key frames outside them."""
    key_frames, videos = data.key_frames, data.videos
    clips_of: dict[Path, list[int]] = {}
    found: dict[Path, VideoFacts] = {}
    for number, video_id in enumerate(key_frames.video_ids):
        clips = np.flatnonzero(key_frames.videos == number).tolist()
        path = videos.paths.get(video_id)
        if path is not None:
            clips_of[path] = sorted({clips[0], clips[len(clips) // 2], clips[-1]})
        else:
            path = videos.folder / video_id
            found[path] = VideoFacts(str(path), 0, 0, [], [(-1, NO_VIDEO)])
    found |= check_videos(data, clips_of, folder / "videos.jsonl", num_workers, split)
    durations = {
        video_id: facts.duration
        for video_id, path in videos.paths.items()
        if (facts := found.get(path)) is not None and facts.duration is not None
    }
    outside = set()
    for clip in range(len(key_frames)):
        video_id, timestamp = key_frames.key(clip)
        if video_id in durations:
            time = timestamp - videos.first_second_of(video_id, durations[video_id])
            if not 0 <= time <= durations[video_id] + TIME_SLACK:
                outside.add(clip)
    # A key frame outside its video is a fault of the annotations: it makes no bad video.
    for path, facts in found.items():
        found[path] = replace(facts, failures=[failure for failure in facts.failures if failure[0] not in outside])
    return found, [key_frames.key(clip) for clip in sorted(outside)]


def _detector_recall(truth: KeyFrames, predicted: LabelledBoxes, threshold: float) -> tuple[float, list[FrameKey]]:
    """The share of the true boxes that a predicted one overlaps, and the key frames that have none predicted."""
    candidates: dict[FrameKey, list[int]] = {}
    for row in np.flatnonzero(predicted.scores >= threshold).tolist():
        candidates.setdefault(predicted.keys[predicted.frames[row]], []).append(row)
    found = 0
    lacking = []
    for index in range(len(truth)):
        boxes, rows = truth.boxes_of(index), candidates.get(truth.key(index))
        if rows is None:
            lacking.append(truth.key(index))
            continue
        others = predicted.boxes[rows]
        corners = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
        shared = corners.clip(0).prod(axis=2)
        areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others)]
        union = areas[0][:, None] + areas[1] - shared
        found += int((shared >= _RECALL_IOU * union).any(axis=1).sum())
    return found / max(len(truth.boxes), 1), lacking
