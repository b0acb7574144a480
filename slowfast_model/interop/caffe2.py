"""The names that Caffe2 gave the tensors of SlowFast networks, in the .pkl files of PySlowFast's model zoo."""

from __future__ import annotations

from slowfast_model.interop.names import KeyTable

_PREFIX = {"slow": "", "fast": "t_"}  # of the Fast pathway's blobs
_BATCH_NORM = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}

# From Caffe2 to us only: a lateral connection's blob is named after the last block of the stage that it follows, and
# our name does not say which that is.
CAFFE2 = KeyTable(
    "Caffe2",
    (
        ("pathways.{pathway}.stem.conv.weight", "{pathway}conv1_w"),
        ("pathways.{pathway}.stem.bn.{norm}", "{pathway}res_conv1_bn_{norm}"),
        ("pathways.{pathway}.{level}.{block}.{unit}.conv.weight", "{pathway}res{level}_{block}_branch{unit}_w"),
        ("pathways.{pathway}.{level}.{block}.{unit}.bn.{norm}", "{pathway}res{level}_{block}_branch{unit}_bn_{norm}"),
        ("pathways.slow.{level}.non_local{block}.bn.{norm}", "nonlocal_conv{level}_{block}_bn_{norm}"),
        (
            "pathways.slow.{level}.non_local{block}.{projection}.{affine}",
            "nonlocal_conv{level}_{block}_{projection}_{affine}",
        ),
        ("lateral.stem.conv.weight", "t_pool1_subsample_w"),
        ("lateral.stem.bn.{norm}", "t_pool1_subsample_bn_{norm}"),
        ("lateral.{level}.conv.weight", "t_res{level}_{block}_branch2c_bn_subsample_w"),
        ("lateral.{level}.bn.{norm}", "t_res{level}_{block}_branch2c_bn_subsample_bn_{norm}"),
        ("head.projection.{affine}", "pred_{affine}"),
    ),
    {
        "pathway": _PREFIX,
        "level": {f"res{stage}": str(stage) for stage in (2, 3, 4, 5)},
        "unit": {"a": "2a", "b": "2b", "c": "2c", "shortcut": "1"},
        "norm": _BATCH_NORM,
        "projection": {name: name for name in ("theta", "phi", "g", "out")},
        "affine": {"weight": "w", "bias": "b"},
    },
)


def is_solver_state(blob: str) -> bool:
    """Whether a blob belongs to the training and not to the network: momenta, the learning rate, the iteration."""
    return blob.endswith("_momentum") or blob in ("lr", "model_iter", "lr_momentum")
