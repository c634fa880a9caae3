"""Safetensors read lazily, written deterministically, and refused in one sentence when they are not what
they say.
"""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from svdcli.errors import InputError
from svdcli.model.weights import (
    MappedWeights,
    Source,
    ToWrite,
    check_weights,
    load_module,
    read_header,
    write_weights,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    tensors = {
        "a.w": torch.randn(3, 4),
        "a.b": torch.randn(4).half(),
        "n": torch.arange(5),
        "s": torch.tensor(2.0),
    }
    save_file(tensors, path, {"who": "me"})
    return path


def test_reads_what_safetensors_wrote(file: Path) -> None:
    weights = MappedWeights(file)
    for name, tensor in load_file(file).items():
        assert torch.equal(weights.tensor(name), tensor)
        assert weights.shape(name) == tuple(tensor.shape)
        assert weights.dtype(name) == tensor.dtype
    assert weights.metadata["who"] == "me"
    assert set(weights.tensors("a")) == {"w", "b"}


def test_cast_leaves_integers_alone(file: Path) -> None:
    weights = MappedWeights(file)
    assert weights.tensor("a.w", torch.bfloat16).dtype == torch.bfloat16
    assert weights.tensor("n", torch.bfloat16).dtype == torch.int64


def test_same_dtype_is_a_view_of_the_map(file: Path) -> None:
    weights = MappedWeights(file)
    a, b = weights.tensor("a.w"), weights.tensor("s")
    assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    a.zero_()  # the map is private: training in place never reaches the file
    assert MappedWeights(file).tensor("a.w").abs().sum() > 0


def test_layout_makes_tensors_from_stored_ones(file: Path) -> None:
    weights = MappedWeights(
        file, {"t": Source(("a.w",), torch.t), "sum": Source(("a.w", "a.b"), lambda w, b: w @ b.to(w))}
    )
    assert weights.shape("t") == (4, 3)
    assert torch.equal(weights.tensor("t"), load_file(file)["a.w"].t())
    assert weights.shape("sum") == (3,)
    assert "t" in weights and "a.w" not in weights


def test_writes_what_safetensors_reads_and_always_the_same(tmp_path: Path) -> None:
    tensors = {
        "x": torch.randn(2, 3),
        "h": torch.randn(5).bfloat16(),
        "i": torch.arange(3),
        "e": torch.zeros(0, 4),
    }
    for name in ("one", "two"):
        order = tensors.items() if name == "one" else reversed(tensors.items())
        entries = {k: ToWrite(tuple(t.shape), t.dtype, lambda t=t: t) for k, t in order}
        write_weights(tmp_path / name, entries, {"k": "v"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = load_file(tmp_path / "one")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "one", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "k": "v"}


def test_a_misaligned_tensor_is_read(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "f": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
        }
    ).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x07" + struct.pack("<f", 1.5))
    assert MappedWeights(path).tensor("f").item() == 1.5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>login", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (struct.pack("<Q", 1000) + b"{}", "cut short"),
        (struct.pack("<Q", 8) + b"not json", "damaged"),
        (
            struct.pack("<Q", 64)
            + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'.ljust(64)
            + b"1234",
            "damaged",
        ),
        (
            struct.pack("<Q", 64)
            + b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}'.ljust(64)
            + b"1234",
            "damaged",
        ),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"PK\x03\x04zip of torch.save", "pickle"),
    ],
)
def test_what_is_no_safetensors_is_refused_in_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_header(path)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_truncated_file_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"w\.safetensors is cut short"):
        read_header(file)
    with pytest.raises(InputError, match="no weights file"):
        read_header(file.with_name("none.safetensors"))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_pickles_are_refused_by_name_without_opening(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"svd{suffix}"
    path.write_bytes(b"whatever")
    with pytest.raises(InputError, match="pickle"):
        read_header(path)


def test_wrong_keys_are_named_and_counted(file: Path) -> None:
    expected = {"a.w": (4, 3), "a.b": (4,), "s": ()} | {f"gone.{i}": (1,) for i in range(6)}
    with pytest.raises(InputError) as caught:
        check_weights(MappedWeights(file), expected, "the unet")
    message = caught.value.message
    assert "6 missing (gone.0, gone.1, gone.2, gone.3 and 2 more)" in message
    assert "1 not part of it (n)" in message
    assert "a.w is [3, 4], not [4, 3]" in message


def test_a_module_gets_the_mapped_tensors_themselves(tmp_path: Path) -> None:
    path = tmp_path / "lin.safetensors"
    save_file(torch.nn.Linear(3, 2).state_dict(), path)
    with torch.device("meta"):
        module = torch.nn.Linear(3, 2)
    weights = MappedWeights(path)
    load_module(module, weights)
    assert module.weight.untyped_storage().data_ptr() == weights.tensor("bias").untyped_storage().data_ptr()
    assert module.weight.requires_grad and torch.equal(module.weight, load_file(path)["weight"])


MEMORY = """
import resource, sys, threading, torch
from pathlib import Path
from torch import nn
from svdcli.model.weights import MappedWeights, load_module
def rss(kind):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind)) / 1024
with torch.device("meta"):
    module = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(32)))
torch.zeros(4).half().float()
before = rss("VmRSS")
load_module(module, MappedWeights(Path(sys.argv[1])), dtype=getattr(torch, sys.argv[2]))
print(rss("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "most_mib"), [("float32", 24), ("float16", 64 + 24)])
def test_loading_never_holds_the_weights_twice(tmp_path: Path, dtype: str, most_mib: float) -> None:
    """128 MiB of float32: mapped they cost nothing until used; cast to half they cost their 64 MiB and one
    tensor.
    """
    path = tmp_path / "big.safetensors"
    save_file({f"{i}.weight": torch.zeros(1024, 1024) for i in range(32)}, path)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), dtype], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < most_mib
