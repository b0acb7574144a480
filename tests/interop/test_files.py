"""Weight files of any origin: told apart by content, read without running anything."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from slowfast_model.errors import InputError
from slowfast_model.interop.files import read_tensors

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float64)}


def check(path: Path) -> None:
    tensors = read_tensors(path)
    assert list(tensors) == list(WEIGHTS)
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert all(tensors[name].dtype == WEIGHTS[name].dtype for name in WEIGHTS)


@pytest.mark.parametrize("name", ["x.pyth", "x.pkl", "x.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("field", ["model_state", "state_dict", "model", None])
def test_torch_files_under_any_name(tmp_path: Path, name: str, zipped: bool, field: str | None) -> None:
    content: Any = collections.OrderedDict(WEIGHTS) if field is None else {"epoch": 3, field: WEIGHTS, "cfg": "..."}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    check(tmp_path / name)


def test_names_of_distributed_training_lose_their_prefix(tmp_path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in WEIGHTS.items()}, tmp_path / "x.pth")
    check(tmp_path / "x.pth")


def test_safetensors_under_any_name(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "x.pkl")
    assert torch.equal(read_tensors(tmp_path / "x.pkl")["a.weight"], WEIGHTS["a.weight"])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_caffe2_files(tmp_path: Path, protocol: int) -> None:
    blobs = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    content = {"blobs": {**blobs, "note": "not an array"}, "cfg": "MODEL: ..."}
    (tmp_path / "x.pyth").write_bytes(pickle.dumps(content, protocol=protocol))
    check(tmp_path / "x.pyth")


def test_caffe2_files_of_python_2(tmp_path: Path) -> None:
    """Its strings are bytes: the array of two float32 numbers 1 and -2, written out opcode by opcode."""
    pickled = (
        b"\x80\x02}U\x05blobs}U\x06pred_bcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x80\x3f\x00\x00\x00\xc0tbss."
    )
    (tmp_path / "x.pkl").write_bytes(pickled)
    assert read_tensors(tmp_path / "x.pkl")["pred_b"].tolist() == [1.0, -2.0]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_arrays_of_any_byte_order_and_layout(tmp_path: Path, order: str, layout: Any) -> None:
    array = np.arange(24, dtype=f"{order}f4").reshape(2, 3, 4).copy(order=layout)
    scalar = np.float32(0.5)
    (tmp_path / "x").write_bytes(pickle.dumps({"blobs": {"w": array, "lr": scalar}}, protocol=2))
    tensors = read_tensors(tmp_path / "x")
    assert torch.equal(tensors["w"], torch.arange(24.0).reshape(2, 3, 4))
    assert tensors["lr"].item() == 0.5
    tensors["w"] += 1  # a tensor of its own, not a window into the file


class Malicious:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"blobs": {"w": evil}}], ids=["bare", "in blobs"])
def test_a_malicious_pickle_raises_and_runs_nothing(tmp_path: Path, protocol: int, wrap: Any) -> None:
    proof = tmp_path / "executed"
    for function, arguments in ((os.system, (f"touch {proof}",)), (eval, (f"open({str(proof)!r}, 'w')",))):
        path = tmp_path / "evil.pkl"
        path.write_bytes(pickle.dumps(wrap(Malicious(function, *arguments)), protocol=protocol))
        with pytest.raises(InputError, match=r"evil\.pkl: not a readable weight file \(it wants to use \w+\.\w+"):
            read_tensors(path)
    assert not proof.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_torch_file_raises_and_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "executed"
    evil = Malicious(os.system, f"touch {proof}")
    torch.save({"model_state": evil}, tmp_path / "evil.pkl", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"evil\.pkl: not a readable weight file"):
        read_tensors(tmp_path / "evil.pkl")
    assert not proof.exists()


def test_object_arrays_and_impossible_shapes_are_refused(tmp_path: Path) -> None:
    for array in (np.array([{}, []], dtype=object), np.array([(1, 2.0)], dtype="i4,f4"), np.array(["text"])):
        (tmp_path / "x").write_bytes(pickle.dumps({"blobs": {"w": array}}, protocol=2))
        with pytest.raises(InputError, match="not a readable weight file"):
            read_tensors(tmp_path / "x")
    honest = pickle.dumps({"blobs": {"w": np.zeros(3, dtype="f4")}}, protocol=2)
    (tmp_path / "x").write_bytes(honest.replace(b"K\x03\x85", b"K\x09\x85"))
    with pytest.raises(InputError, match="cannot reshape"):
        read_tensors(tmp_path / "x")


def test_what_is_no_weight_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.pkl: no such file"):
        read_tensors(tmp_path / "gone.pkl")
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    for content in (b"", b"not weights", buffer.getvalue()[:300], pickle.dumps([1, 2])[:-1]):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(InputError, match=r"x: not a readable weight file \(.+\)$"):
            read_tensors(tmp_path / "x")
    (tmp_path / "x").write_bytes(pickle.dumps({"epoch": 1, "blobs": {}}))
    with pytest.raises(InputError, match=r"x: no weights in it \(its fields are epoch, blobs\)"):
        read_tensors(tmp_path / "x")


@given(st.data())
def test_damaged_pickles_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    honest = bytearray(pickle.dumps({"blobs": {"w": np.arange(4.0)}}, protocol=data.draw(st.sampled_from([0, 2, 4]))))
    for _ in range(data.draw(st.integers(1, 4))):
        honest[data.draw(st.integers(0, len(honest) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(honest))
    with contextlib.suppress(InputError):
        read_tensors(path)
