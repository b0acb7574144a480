"""Reading other projects' weight files: what a file is comes from its content, and nothing in it is executed.

Three kinds of files hold the peers' weights, under any name: the zip archives and the older streams of ``torch.save``,
which torch reads with ``weights_only=True``; safetensors; and Caffe2's pickles of ``{"blobs": {name: array}}``, mostly
written by Python 2, which an unpickler of our own reads. The latter never touches a class that the file names: arrays
are described by stand-ins and rebuilt from their bytes afterwards.
"""

from __future__ import annotations

import collections
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from slowfast_model.errors import InputError

_TORCH_STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a torch.save file that is not a zip archive
_STATE_DICT_FIELDS = ("model_state", "state_dict", "blobs", "model")  # PySlowFast; Lightning, mmengine; Caffe2; others
UNPICKLING_ERRORS = (  # what reading a file that is damaged, or no weights at all, has been seen to raise
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError,
    OverflowError, MemoryError, RecursionError, RuntimeError, OSError, struct.error, SafetensorError,
)  # fmt: skip


def read_tensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weight file by the names that the file gives them; of a training checkpoint, the model's.

    Entries that are not arrays (iteration counters, configurations) are left out, and so is ``module.``, which
    DistributedDataParallel puts in front of every name.

    Args:
        path: a ``torch.save`` file (.pyth, .pth, .pt, .ckpt, .pkl ...), a Caffe2 pickle, or safetensors.

    Raises:
        InputError: the file is missing or damaged, holds no weights, or wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = _read(path)
        tensors = _tensors_of(content)
    except UNPICKLING_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a readable weight file ({reason})") from None
    if not tensors:
        fields = f" (its fields are {', '.join(map(str, list(content)[:8]))})" if isinstance(content, Mapping) else ""
        raise InputError(f"{path}: no weights in it{fields}: expected names and tensors, or a checkpoint with them")
    return tensors


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(16)
        if zipfile.is_zipfile(path):
            return _torch_load(path)
        if _is_safetensors(start, path.stat().st_size):
            return load_file(path)
        file.seek(0)
        content = _unpickle(file)
    return _torch_load(path) if content == _TORCH_STREAM_MAGIC else content


def _is_safetensors(start: bytes, size: int) -> bool:
    return len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8


def _torch_load(path: Path) -> Any:
    with warnings.catch_warnings():  # about other pickle protocols: an error will follow
        warnings.simplefilter("ignore")
        with path.open("rb") as file:  # and not the path, whose extension torch would believe
            return torch.load(file, map_location="cpu", weights_only=True)


def _tensors_of(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for field in _STATE_DICT_FIELDS:
        if isinstance(content.get(field), Mapping):
            content = content[field]
            break
    tensors = {str(name).removeprefix("module."): _to_tensor(value) for name, value in content.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _to_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    return torch.from_numpy(value.to_array()) if isinstance(value, _Array) else None


class _Stand:
    """What the unpickler builds in place of a numpy object. Its own state is all that a file can set."""

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.arguments = arguments
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(state)


class _Type(_Stand):
    """numpy.ndarray, as the argument of `_Array`."""


class _DType(_Stand):
    """numpy.dtype(code, align, copy) with the state (version, byte order, ...)."""

    def to_dtype(self) -> np.dtype[Any]:
        code = str(self.arguments[0])
        order = str(self.state[1]) if len(self.state) > 1 else "="
        dtype = np.dtype(code)
        if dtype.kind not in "fiub" or order not in "<>=|":
            raise pickle.UnpicklingError(f"an array of type {code!r}")
        return dtype.newbyteorder("=" if order == "|" else order)  # type: ignore[arg-type]


class _Array(_Stand):
    """numpy's _reconstruct(ndarray, shape, code) with the state (version, shape, dtype, Fortran order, data)."""

    def to_array(self) -> npt.NDArray[Any]:
        _, shape, dtype, fortran_order, data = self.state
        return _make_array(data, dtype, shape, "F" if fortran_order else "C")


class _BufferArray(_Array):
    """numpy's _frombuffer(data, dtype, shape, order) of newer pickles."""

    def to_array(self) -> npt.NDArray[Any]:
        data, dtype, shape, order = self.arguments
        return _make_array(data, dtype, shape, order)


class _Scalar(_Array):
    """numpy's scalar(dtype, data)."""

    def to_array(self) -> npt.NDArray[Any]:
        dtype, data = self.arguments
        return _make_array(data, dtype, (), "C")


class _Encoded(_Stand):
    """_codecs.encode(text, "latin1"): how Python 3 writes bytes for Python 2."""

    def to_bytes(self) -> bytes:
        return str(self.arguments[0]).encode("latin1")


def _make_array(data: Any, dtype: _DType, shape: Any, order: Any) -> npt.NDArray[Any]:
    if isinstance(data, _Encoded):
        data = data.to_bytes()
    elif isinstance(data, str):  # bytes of Python 2
        data = data.encode("latin1")
    flat = np.frombuffer(data, dtype.to_dtype())
    array = flat.reshape(tuple(shape), order="F" if order == "F" else "C")
    return np.array(array, dtype=array.dtype.newbyteorder("="))  # a copy: torch wants native byte order and may write


_STANDS = {
    **{
        (f"numpy.{core}.multiarray", name): stand
        for core in ("core", "_core")
        for name, stand in (("_reconstruct", _Array), ("scalar", _Scalar))
    },
    ("numpy.core.numeric", "_frombuffer"): _BufferArray,
    ("numpy._core.numeric", "_frombuffer"): _BufferArray,
    ("numpy", "ndarray"): _Type,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Encoded,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    """Builds plain containers, strings, numbers and stand-ins; anything else that a pickle names is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDS:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}, and only arrays are allowed")
        return _STANDS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of itself")


def _unpickle(file: BinaryIO) -> Any:
    return _Unpickler(file, encoding="latin1").load()
