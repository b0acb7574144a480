"""The keys of PySlowFast's configuration: defaults of those that we translate, and what the others may be."""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
    "MODEL.ARCH": "slowfast",
    "MODEL.MODEL_NAME": "SlowFast",
    "MODEL.NUM_CLASSES": 400,
    "MODEL.LOSS_FUNC": "cross_entropy",
    "MODEL.DROPOUT_RATE": 0.5,
    "MODEL.HEAD_ACT": "softmax",
    "MODEL.FROZEN_BN": False,
    "MODEL.ACT_CHECKPOINT": False,
    "RESNET.DEPTH": 50,
    "RESNET.ZERO_INIT_FINAL_BN": False,
    "RESNET.NUM_GROUPS": 1,
    "RESNET.WIDTH_PER_GROUP": 64,
    "RESNET.NUM_BLOCK_TEMP_KERNEL": [[3], [4], [6], [3]],
    "RESNET.SPATIAL_STRIDES": [[1], [2], [2], [2]],
    "RESNET.SPATIAL_DILATIONS": [[1], [1], [1], [1]],
    "NONLOCAL.LOCATION": [[[], []]] * 4,
    "NONLOCAL.GROUP": [[1, 1]] * 4,
    "NONLOCAL.INSTANTIATION": "dot_product",
    "NONLOCAL.POOL": [[[1, 2, 2], [1, 2, 2]]] * 4,
    "SLOWFAST.ALPHA": 8,
    "SLOWFAST.BETA_INV": 8,
    "SLOWFAST.FUSION_CONV_CHANNEL_RATIO": 2,
    "SLOWFAST.FUSION_KERNEL_SZ": 5,
    "DETECTION.ENABLE": False,
    "DETECTION.ALIGNED": True,
    "DETECTION.SPATIAL_SCALE_FACTOR": 16,
    "DETECTION.ROI_XFORM_RESOLUTION": 7,
    "DATA.NUM_FRAMES": 8,
    "DATA.SAMPLING_RATE": 8,
    "DATA.TARGET_FPS": 30,
    "DATA.INPUT_CHANNEL_NUM": [3, 3],
    "DATA.TRAIN_JITTER_SCALES": [256, 320],
    "DATA.TRAIN_CROP_SIZE": 224,
    "DATA.TEST_CROP_SIZE": 256,
    "DATA.RANDOM_FLIP": True,
    "DATA.USE_OFFSET_SAMPLING": False,
    "DATA.INV_UNIFORM_SAMPLE": False,
    "AVA.DETECTION_SCORE_THRESH": 0.9,
    "AVA.TRAIN_GT_BOX_LISTS": ["ava_train_v2.2.csv"],
    "AVA.TRAIN_PREDICT_BOX_LISTS": [],
    "AVA.TEST_PREDICT_BOX_LISTS": ["ava_val_predicted_boxes.csv"],
    "AVA.LABEL_MAP_FILE": "ava_action_list_v2.2_for_activitynet_2019.pbtxt",
    "AVA.EXCLUSION_FILE": "ava_val_excluded_timestamps_v2.2.csv",
    "AVA.GROUNDTRUTH_FILE": "ava_val_v2.2.csv",
    "BN.USE_PRECISE_STATS": False,
    "BN.NUM_BATCHES_PRECISE": 200,
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.BASE_LR_SCALE_NUM_SHARDS": False,
    "SOLVER.LR_POLICY": "cosine",
    "SOLVER.STEPS": [],
    "SOLVER.LRS": [],
    "SOLVER.MAX_EPOCH": 300,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": True,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WARMUP_EPOCHS": 0.0,
    "SOLVER.WARMUP_START_LR": 0.01,
    "SOLVER.OPTIMIZING_METHOD": "sgd",
    "SOLVER.CLIP_GRAD_L2NORM": None,
    "TRAIN.DATASET": "kinetics",
    "TRAIN.BATCH_SIZE": 64,
    "TRAIN.EVAL_PERIOD": 10,
    "TRAIN.MIXED_PRECISION": False,
    "TEST.DATASET": "kinetics",
    "TEST.BATCH_SIZE": 8,
    "TEST.NUM_ENSEMBLE_VIEWS": 10,
    "TEST.NUM_SPATIAL_CROPS": 3,
    "DATA_LOADER.NUM_WORKERS": 8,
    "LOG_PERIOD": 10,
    "NUM_GPUS": 1,
    "NUM_SHARDS": 1,
    "RNG_SEED": 1,
}

# Keys with values that we can express; a key that is not in DEFAULTS has the first of them by default.
ONLY_VALUE_OF_MODEL: dict[str, tuple[Any, ...]] = {
    "RESNET.TRANS_FUNC": ("bottleneck_transform",),
    "RESNET.STRIDE_1X1": (False,),
    "DATA.REVERSE_INPUT_CHANNEL": (False,),
    "DATA.MEAN": ([0.45, 0.45, 0.45],),
    "DATA.STD": ([0.225, 0.225, 0.225],),
    "AVA.BGR": (False,),
    "BN.NORM_TYPE": ("batchnorm", "sync_batchnorm", "sync_batchnorm_apex", "sub_batchnorm"),
    "MODEL.DROPCONNECT_RATE": (0.0,),
}

ONLY_VALUE_OF_TRAINING: dict[str, tuple[Any, ...]] = {
    "BN.NORM_TYPE": ("batchnorm",),
    "BN.WEIGHT_DECAY": (0.0,),
    "BN.GLOBAL_SYNC": (False,),
    "RESNET.ZERO_INIT_FINAL_BN": (True,),
    "RESNET.ZERO_INIT_FINAL_CONV": (False,),
    "MODEL.FC_INIT_STD": (0.01,),
    "MODEL.DETACH_FINAL_FC": (False,),
    "MULTIGRID.SHORT_CYCLE": (False,),
    "MULTIGRID.LONG_CYCLE": (False,),
    "AUG.ENABLE": (False,),
    "AUG.NUM_SAMPLE": (1,),
    "MIXUP.ENABLE": (False,),
    "AVA.TRAIN_USE_COLOR_AUGMENTATION": (False,),
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": ([],),
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": ([],),
    "DATA.TRAIN_JITTER_MOTION_SHIFT": (False,),
    "DATA.TRAIN_JITTER_FPS": (0.0,),
    "DATA.TRAIN_CROP_NUM_TEMPORAL": (1,),
    "DATA.TRAIN_CROP_NUM_SPATIAL": (1,),
    "DATA.MULTI_LABEL": (False,),
    "SOLVER.COSINE_END_LR": (0.0,),
    "SOLVER.COSINE_AFTER_WARMUP": (False,),
    "SOLVER.DAMPENING": (0.0,),
    "SOLVER.ZERO_WD_1D_PARAM": (False,),
    "SOLVER.CLIP_GRAD_VAL": (None,),
    "SOLVER.LARS_ON": (False,),
    "SOLVER.LAYER_DECAY": (1.0,),
    "SOLVER.BETAS": ((0.9, 0.999),),
    "TRAIN.CHECKPOINT_INFLATE": (False,),
    "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN": ((),),
    "TASK": ("",),
}

ONLY_VALUE_OF_TESTING: dict[str, tuple[Any, ...]] = {
    "DATA.ENSEMBLE_METHOD": ("sum",),
    "DATA.MULTI_LABEL": (False,),
    "AVA.TEST_FORCE_FLIP": (False,),
    "TEST.NUM_TEMPORAL_CLIPS": ([],),
}

# Where files are, how much is written, how fast it goes; settings of steps that were refused above or are off; and the
# sections of other networks.
WITHOUT_EFFECT = (
    r"(BENCHMARK|DEMO|TENSORBOARD|X3D|MVIT|CONTRASTIVE|MASK|ASYNC|VIS_MASK)\..*"
    r"|(AUG|MIXUP)\.(?!ENABLE|NUM_SAMPLE).*|MULTIGRID\.(?!SHORT_CYCLE$|LONG_CYCLE$).*"
    r"|MODEL\.(SINGLE_PATHWAY_ARCH|MULTI_PATHWAY_ARCH)|RESNET\.INPLACE_RELU"
    r"|BN\.(NUM_SPLITS|NUM_SYNC_DEVICES)|SOLVER\.(GAMMA|STEP_SIZE|WARMUP_FACTOR)"
    r"|(TRAIN|TEST)\.(ENABLE|CHECKPOINT_FILE_PATH|CHECKPOINT_TYPE|SAVE_RESULTS_PATH)"
    r"|TRAIN\.(CHECKPOINT_PERIOD|CHECKPOINT_EPOCH_RESET|CHECKPOINT_IN_INIT|AUTO_RESUME|KILL_LOSS_EXPLOSION_FACTOR)"
    r"|DATA\.(PATH_TO_DATA_DIR|PATH_LABEL_SEPARATOR|PATH_PREFIX|PATH_TO_PRELOAD_IMDB|DECODING_BACKEND|DECODING_SHORT_SIZE"
    r"|TRAIN_PCA_EIGVAL|TRAIN_PCA_EIGVEC|LOADER_CHUNK_SIZE|LOADER_CHUNK_OVERALL_SIZE|SKIP_ROWS)"
    r"|AVA\.(FRAME_DIR|FRAME_LIST_DIR|ANNOTATION_DIR|TRAIN_LISTS|TEST_LISTS|TRAIN_PCA_JITTER_ONLY|FULL_TEST_ON_VAL"
    r"|IMG_PROC_BACKEND)"
    r"|DATA_LOADER\.(PIN_MEMORY|ENABLE_MULTI_THREAD_DECODE)"
    r"|SHARD_ID|OUTPUT_DIR|LOG_MODEL_INFO|DIST_BACKEND|USE_TQDM"
)
