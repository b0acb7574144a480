"""PySlowFast's YAML files: the network, and the settings of its training and testing, in our terms.

Every key that PySlowFast knows has one of four parts here. It is translated; it has one value that we can express, and
any other is an error that names it; it is without effect on results; or it belongs to other kinds of networks. A key
that is none of these is an error, too. Keys that only matter in training or testing are judged when these settings are
asked for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import yaml

from slowfast_model.data.protocols import Jitter
from slowfast_model.errors import InputError
from slowfast_model.interop.pyslowfast_keys import (
    DEFAULTS,
    ONLY_VALUE_OF_MODEL,
    ONLY_VALUE_OF_TESTING,
    ONLY_VALUE_OF_TRAINING,
    WITHOUT_EFFECT,
)
from slowfast_model.models import (
    HeadConfig,
    LateralConfig,
    ModelConfig,
    NonLocalConfig,
    PathwayConfig,
    StageConfig,
    StemConfig,
)
from slowfast_model.models.network import HeadType
from slowfast_model.models.presets import (
    C2D_KERNELS,
    FAST_KERNELS,
    FAST_STEM,
    I3D_KERNELS,
    RESNET_DEPTHS,
    SLOW_KERNELS,
)

_DEPTHS = (18, 50, 101)
# By MODEL.ARCH, for each pathway: temporal kernels of its stages, stem, and the frames that are pooled after res2.
_ARCHITECTURES = {
    "slow": ((SLOW_KERNELS, StemConfig(), 1),),
    "slowfast": ((SLOW_KERNELS, StemConfig(), 1), (FAST_KERNELS, FAST_STEM, 1)),
    "c2d": ((C2D_KERNELS, StemConfig(), 2),),
    "i3d": ((I3D_KERNELS, FAST_STEM, 2),),
    "slow_c2d": ((C2D_KERNELS, StemConfig(), 1),),
    "slow_i3d": ((I3D_KERNELS, FAST_STEM, 1),),
}
_AVA_FOLDER = "annotations"


@dataclass(frozen=True)
class PySlowFastConfig:
    """A PySlowFast configuration file. Build it with `read_pyslowfast_config`.

    Attributes:
        path: the file, for error messages.
        given: the keys that the file sets ("DATA.NUM_FRAMES") and their values; the others have PySlowFast's defaults.
    """

    path: Path
    given: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.given.get(key, DEFAULTS.get(key))

    @property
    def head(self) -> HeadType:
        """Detection for AVA, else classification."""
        return "detection" if self["DETECTION.ENABLE"] else "classification"

    @property
    def num_classes(self) -> int:
        return int(self["MODEL.NUM_CLASSES"])

    @property
    def keys_without_effect(self) -> list[str]:
        """Keys of the file that change no result: where files lie, how much is logged, other networks' settings."""
        return [key for key in self.given if re.fullmatch(WITHOUT_EFFECT, key)]

    def model_config(self) -> ModelConfig:
        """The network. A detector's res5 has its stride back: `ModelConfig.for_detection` dilates it again.

        Raises:
            InputError: a key that changes the network has a value that we cannot express.
        """
        self._require_only_values(ONLY_VALUE_OF_MODEL)
        architecture = self["MODEL.ARCH"]
        if architecture not in _ARCHITECTURES:
            self._refuse("MODEL.ARCH", f"one of {', '.join(_ARCHITECTURES)}")
        two_pathways = len(_ARCHITECTURES[architecture]) == 2
        if self["MODEL.MODEL_NAME"] != ("SlowFast" if two_pathways else "ResNet"):
            self._refuse("MODEL.MODEL_NAME", "SlowFast for slowfast, else ResNet")
        if self["RESNET.DEPTH"] not in _DEPTHS:
            self._refuse("RESNET.DEPTH", f"one of {_DEPTHS}")
        if self["MODEL.HEAD_ACT"] not in (("sigmoid",) if self.head == "detection" else ("softmax", "sigmoid")):
            self._refuse("MODEL.HEAD_ACT", "softmax or sigmoid for classification, sigmoid for detection")
        try:
            config = ModelConfig(
                name=self.path.stem,
                num_frames=self["DATA.NUM_FRAMES"],
                sampling_rate=self["DATA.SAMPLING_RATE"],
                crop_size=self["DATA.TRAIN_CROP_SIZE"],
                pathways=tuple(self._pathway(index) for index in range(2 if two_pathways else 1)),
                alpha=self["SLOWFAST.ALPHA"] if two_pathways else 1,
                lateral=self._lateral() if two_pathways else None,
                head=self._head(),
                frozen_norm=self["MODEL.FROZEN_BN"],
                checkpointing=self["MODEL.ACT_CHECKPOINT"],
            )
        except (IndexError, TypeError) as error:  # a number for a list, or too short a list
            raise InputError(f"{self.path}: the values of RESNET, NONLOCAL or DATA make no network ({error})") from None
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None
        if self.head == "detection":
            config = self._undilated(config)
        return config

    def _pathway(self, index: int) -> PathwayConfig:
        _, stem, _ = _ARCHITECTURES[self["MODEL.ARCH"]][index]
        fast = index == 1
        width = self["RESNET.WIDTH_PER_GROUP"]
        inner = width * self["RESNET.NUM_GROUPS"]
        if fast:
            width, inner = width // self["SLOWFAST.BETA_INV"], inner // self["SLOWFAST.BETA_INV"]
        channels = self["DATA.INPUT_CHANNEL_NUM"]
        return PathwayConfig(
            width=width,
            stages=tuple(self._stage(index, stage) for stage in range(4)),
            stem=stem,
            in_channels=channels[index],
            groups=self["RESNET.NUM_GROUPS"],
            inner_width=None if inner == width else inner,
        )

    def _stage(self, pathway: int, stage: int) -> StageConfig:
        depth = RESNET_DEPTHS[self["RESNET.DEPTH"]][stage]
        kernels, _, pooled = _ARCHITECTURES[self["MODEL.ARCH"]][pathway]
        temporal = min(depth, self["RESNET.NUM_BLOCK_TEMP_KERNEL"][stage][pathway])
        after_blocks = tuple(sorted(self["NONLOCAL.LOCATION"][stage][pathway]))
        non_local = None
        if after_blocks:
            if self["NONLOCAL.GROUP"][stage][pathway] != 1:
                self._refuse("NONLOCAL.GROUP", "1 for every stage")
            non_local = NonLocalConfig(
                after_blocks, self["NONLOCAL.INSTANTIATION"], tuple(self["NONLOCAL.POOL"][stage][pathway])
            )
        return StageConfig(
            depth,
            kernels[stage],
            temporal_blocks=None if temporal == depth else temporal,
            stride=self["RESNET.SPATIAL_STRIDES"][stage][pathway],
            dilation=self["RESNET.SPATIAL_DILATIONS"][stage][pathway],
            non_local=non_local,
            temporal_pool=pooled if stage == 0 else 1,
        )

    def _lateral(self) -> LateralConfig:
        return LateralConfig(
            kernel_size=self["SLOWFAST.FUSION_KERNEL_SZ"], channel_ratio=self["SLOWFAST.FUSION_CONV_CHANNEL_RATIO"]
        )

    def _head(self) -> HeadConfig:
        return HeadConfig(
            dropout=float(self["MODEL.DROPOUT_RATE"]),
            roi_size=self["DETECTION.ROI_XFORM_RESOLUTION"],
            roi_aligned=bool(self["DETECTION.ALIGNED"]) if self.head == "detection" else True,
            activation="softmax" if self.head == "detection" else self["MODEL.HEAD_ACT"],
        )

    def _undilated(self, config: ModelConfig) -> ModelConfig:
        if config.spatial_stride != self["DETECTION.SPATIAL_SCALE_FACTOR"]:
            self._refuse("DETECTION.SPATIAL_SCALE_FACTOR", f"{config.spatial_stride}, the stride of the features")
        lasts = [pathway.stages[-1] for pathway in config.pathways]
        if any((last.stride, last.dilation) != (1, 2) for last in lasts):
            return config
        strided = [replace(last, stride=2, dilation=1) for last in lasts]
        pathways = zip(config.pathways, strided, strict=True)
        return replace(config, pathways=tuple(replace(p, stages=(*p.stages[:-1], last)) for p, last in pathways))

    @property
    def dataset(self) -> str:
        """ "ava" or "kinetics".

        Raises:
            InputError: another data set.
        """
        for key in ("TRAIN.DATASET", "TEST.DATASET"):
            if str(self[key]).lower() not in ("ava", "kinetics"):
                self._refuse(key, "ava or kinetics")
        return "ava" if self.head == "detection" else "kinetics"

    def train_settings(self) -> dict[str, Any]:
        """The fields of `TrainConfig` that the file determines, ready for ``train --config``.

        The batch size is that of a process, with one process for each of the file's GPUs.

        Raises:
            InputError: a key that changes the training has a value that we cannot express.
        """
        self._require_only_values(ONLY_VALUE_OF_TRAINING)
        steps = self["SOLVER.LR_POLICY"] == "steps_with_relative_lrs"
        if not steps and self["SOLVER.LR_POLICY"] != "cosine":
            self._refuse("SOLVER.LR_POLICY", "cosine or steps_with_relative_lrs")
        if self["SOLVER.OPTIMIZING_METHOD"] not in ("sgd", "adamw"):
            self._refuse("SOLVER.OPTIMIZING_METHOD", "sgd or adamw")
        dataset = self.dataset
        losses = ("bce", "bce_logit") if dataset == "ava" else ("cross_entropy",)
        if self["MODEL.LOSS_FUNC"] not in losses:
            self._refuse("MODEL.LOSS_FUNC", " or ".join(losses))
        shards = self["NUM_SHARDS"] if self["SOLVER.BASE_LR_SCALE_NUM_SHARDS"] else 1
        settings = {
            "dataset": dataset,
            "seed": self["RNG_SEED"],
            "devices": max(1, self["NUM_GPUS"]),
            "batch_size": self._per_gpu("TRAIN.BATCH_SIZE"),
            "num_workers": self["DATA_LOADER.NUM_WORKERS"],
            "max_epochs": self["SOLVER.MAX_EPOCH"],
            "optimizer": self["SOLVER.OPTIMIZING_METHOD"],
            "lr": self["SOLVER.BASE_LR"] * shards,
            "lr_policy": "step" if steps else "cosine",
            "warmup_epochs": self["SOLVER.WARMUP_EPOCHS"],
            "warmup_start_lr": self["SOLVER.WARMUP_START_LR"] * shards,
            "momentum": self["SOLVER.MOMENTUM"],
            "nesterov": self["SOLVER.NESTEROV"],
            "weight_decay": self["SOLVER.WEIGHT_DECAY"],
            "precise_bn_batches": self["BN.NUM_BATCHES_PRECISE"] if self["BN.USE_PRECISE_STATS"] else 0,
            "gradient_clip": self["SOLVER.CLIP_GRAD_L2NORM"] or 0.0,
            "evaluate_every_epochs": self["TRAIN.EVAL_PERIOD"],
            "log_every_steps": self["LOG_PERIOD"],
            "precision": "16-mixed" if self["TRAIN.MIXED_PRECISION"] else "32-true",
            "data": {
                **self._data_settings(dataset),
                "short_side": list(self["DATA.TRAIN_JITTER_SCALES"]),
                "short_side_jitter": self._jitter(dataset),
                "flip_probability": 0.5 if self["DATA.RANDOM_FLIP"] else 0.0,
            },
        }
        if steps:
            settings |= {"lr_steps": list(self["SOLVER.STEPS"]), "relative_lrs": list(self["SOLVER.LRS"])}
        if dataset == "ava":
            settings["data"] |= self._ava_training_boxes()
        return settings

    def test_settings(self) -> dict[str, Any]:
        """The fields of `TestConfig` that the file determines, ready for ``test --config``.

        Raises:
            InputError: a key that changes the evaluation has a value that we cannot express.
        """
        self._require_only_values(ONLY_VALUE_OF_TESTING)
        dataset = self.dataset
        settings: dict[str, Any] = {
            "dataset": dataset,
            "batch_size": self._per_gpu("TEST.BATCH_SIZE"),
            "num_workers": self["DATA_LOADER.NUM_WORKERS"],
            "data": self._data_settings(dataset),
        }
        if dataset == "ava":
            return settings | {"protocol": "pyslowfast"}
        settings["data"]["views_to_end"] = bool(self["DATA.USE_OFFSET_SAMPLING"])
        return settings | {
            "num_temporal_views": self["TEST.NUM_ENSEMBLE_VIEWS"],
            "num_spatial_crops": self["TEST.NUM_SPATIAL_CROPS"],
        }

    def _data_settings(self, dataset: str) -> dict[str, Any]:
        settings: dict[str, Any] = {"protocol": "pyslowfast", "test_short_side": self["DATA.TEST_CROP_SIZE"]}
        if dataset == "kinetics":
            return settings | {"target_fps": float(self["DATA.TARGET_FPS"])}
        settings |= {"score_threshold": float(self["AVA.DETECTION_SCORE_THRESH"])}
        files = {
            "label_map": "AVA.LABEL_MAP_FILE",
            "val_excluded": "AVA.EXCLUSION_FILE",
            "val_groundtruth": "AVA.GROUNDTRUTH_FILE",
        }
        # A file that the YAML does not name is found by its usual name.
        settings |= {name: f"{_AVA_FOLDER}/{self[key]}" for name, key in files.items() if key in self.given}
        if "AVA.TEST_PREDICT_BOX_LISTS" in self.given:
            settings["val_predicted_boxes"] = self._single_list("AVA.TEST_PREDICT_BOX_LISTS")
        return settings

    def _jitter(self, dataset: str) -> Jitter:
        # For AVA the key has no effect: its own loader draws the inverse.
        return "inverse" if dataset == "ava" or self["DATA.INV_UNIFORM_SAMPLE"] else "uniform"

    def _ava_training_boxes(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"train_groundtruth": self._single_list("AVA.TRAIN_GT_BOX_LISTS")}
        # The ground truth is often listed a second time, among the predicted boxes.
        predicted = set(self["AVA.TRAIN_PREDICT_BOX_LISTS"]) - set(self["AVA.TRAIN_GT_BOX_LISTS"])
        if len(predicted) > 1:
            self._refuse("AVA.TRAIN_PREDICT_BOX_LISTS", "one file beside the ground truth")
        if predicted:
            (name,) = predicted
            settings |= {"train_predicted_boxes": f"{_AVA_FOLDER}/{name}", "include_negatives": True}
        return settings

    def _single_list(self, key: str) -> str:
        if len(self[key]) != 1:
            self._refuse(key, "one file")
        return f"{_AVA_FOLDER}/{self[key][0]}"

    def _per_gpu(self, key: str) -> int:
        return max(1, self[key] // max(1, self["NUM_GPUS"]))

    def _require_only_values(self, only_values: Mapping[str, tuple[Any, ...]]) -> None:
        for key, values in only_values.items():
            if self.given.get(key, DEFAULTS.get(key, values[0])) not in values:
                self._refuse(key, " or ".join(map(str, values)))

    def _refuse(self, key: str, expected: str) -> NoReturn:
        raise InputError(f"{self.path}: {key} is {self[key]!r}, which has no counterpart here: expected {expected}")


def read_pyslowfast_config(path: str | PathLike[str]) -> PySlowFastConfig:
    """Reads a PySlowFast YAML file.

    Raises:
        InputError: not a readable YAML file, or a key that PySlowFast's own configuration does not have.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a readable YAML file ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected PySlowFast's sections (MODEL, DATA, ...), got {content!r}"[:300])
    given = _flatten(content)
    known = {*DEFAULTS, *ONLY_VALUE_OF_MODEL, *ONLY_VALUE_OF_TRAINING, *ONLY_VALUE_OF_TESTING}
    unknown = [key for key in given if key not in known and not re.fullmatch(WITHOUT_EFFECT, key)]
    if unknown:
        raise InputError(f"{path}: {', '.join(unknown)}: not a key of PySlowFast's SlowFast networks that we know")
    return PySlowFastConfig(path, given)


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _literal(value)
    return flat


def _literal(value: Any) -> Any:
    """YAML takes 1e-4 for a text; PySlowFast reads texts as Python literals where they are ones."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
