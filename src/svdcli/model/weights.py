"""Weights on disk: safetensors files, mapped, checked, read one tensor at a time, and written the same way.

What it is: the only reader and writer of weight files. What it is not: it knows no network and no layout; a
layout hands it `Source`s, which say from what stored tensors a tensor is made. Pickles are refused here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from svdcli.errors import InputError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
MAX_HEADER_BYTES = 100 << 20
NUM_NAMED = 4
"""So many keys are named in an error; the rest is counted."""


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: where its bytes lie."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Source:
    """From which stored tensors a tensor is made, and how. `take` must work on meta tensors too, for the
    shape.
    """

    keys: tuple[str, ...]
    take: Callable[..., Tensor] | None = None

    def make(self, *stored: Tensor) -> Tensor:
        return stored[0] if self.take is None else self.take(*stored)


def refuse_pickle(path: Path) -> None:
    """Raise InputError if the file is a pickle, by its name or by its first bytes."""
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(4)
    zipped = start == b"PK\x03\x04"
    if (
        path.suffix.lower() in PICKLES
        or zipped
        or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05")
    ):
        raise InputError(
            f"{path.name} is a pickle: opening one can run whatever its author put in, so it is refused.",
            "Take the .safetensors file of the same model, or convert this one in a throw-away environment: "
            "`safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)` and give the result.",
        )


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a safetensors file and its metadata, without reading any weights.

    Raises InputError where the file is missing, a pickle, not safetensors, damaged or cut short.
    """
    if not path.is_file():
        raise InputError(
            f"There is no weights file {path}.",
            "Check the path, or list what is here with `svd models list`.",
        )
    refuse_pickle(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length_bytes = file.read(8)
            length = struct.unpack("<Q", length_bytes)[0] if len(length_bytes) == 8 else -1
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise InputError(
                    f"{path.name} is not a safetensors file{_what_instead(path)}.", _fetch_again(path)
                )
            header_bytes = file.read(length)
        if len(header_bytes) < length:
            raise InputError(
                f"{path.name} is cut short: its header ends before it should.", _fetch_again(path)
            )
        header = json.loads(header_bytes)
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        tensors = {name: _entry(path, 8 + length, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path.name} is damaged: its safetensors header does not parse.", _fetch_again(path)
        ) from error
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read ({error.strerror}).", "Check the file's permissions."
        ) from error
    end = max((t.stop for t in tensors.values()), default=8 + length)
    if end != size:
        what = "is cut short" if size < end else "has bytes that belong to nothing"
        raise InputError(
            f"{path.name} {what}: it has {size:,} bytes, and its header counts {end:,}.", _fetch_again(path)
        )
    return tensors, metadata


def _entry(path: Path, offset: int, entry: Mapping) -> Stored:
    dtype = DTYPES[entry["dtype"]]
    shape = tuple(int(n) for n in entry["shape"])
    start, stop = (int(n) for n in entry["data_offsets"])
    count = 1
    for n in shape:
        count *= n
    if min(shape, default=0) < 0 or start < 0 or stop - start != count * dtype.itemsize:
        raise ValueError("offsets")
    return Stored(path, dtype, shape, offset + start, offset + stop)


def _what_instead(path: Path) -> str:
    start = path.open("rb").read(64).lstrip().lower()
    if not start:
        return " but an empty one"
    if start.startswith((b"<!doctype", b"<html")):
        return " but a web page, probably a login page saved in its place"
    if start.startswith(b"version https://git-lfs"):
        return " but a Git LFS pointer to one"
    return ""


def _fetch_again(path: Path) -> str:
    if path.is_file() and path.open("rb").read(23) == b"version https://git-lfs":
        return "Run `git lfs pull` in its folder."
    return (
        "Fetch it again with `svd models pull`, or copy it once more; `svd models verify` checks the result."
    )


class MappedWeights:
    """Named tensors of one or several safetensors files, read when asked for.

    A tensor in its stored dtype, wanted on the CPU, is a view of the mapped file: it costs no memory until
    it is touched, and the system may drop it again. A cast or a move reads the file instead of the map, one
    tensor at a time, so that loading never holds the weights twice. With `layout` the names are those of the
    layout, made from stored tensors by its `Source`s.
    """

    def __init__(self, paths: Path | Iterable[Path], layout: Mapping[str, Source] | None = None) -> None:
        self.paths = (paths,) if isinstance(paths, Path) else tuple(paths)
        self.stored: dict[str, Stored] = {}
        self.metadata: dict[str, str] = {}
        for path in self.paths:
            tensors, metadata = read_header(path)
            self.stored.update(tensors)
            self.metadata.update(metadata)
        self.layout = dict(layout) if layout is not None else {name: Source((name,)) for name in self.stored}
        self._maps: dict[Path, torch.UntypedStorage] = {}

    def arranged(self, layout: Mapping[str, Source]) -> MappedWeights:
        """The same files under another layout. The map is shared."""
        other = object.__new__(MappedWeights)
        other.paths, other.stored, other.metadata, other._maps = (
            self.paths,
            self.stored,
            self.metadata,
            self._maps,
        )
        other.layout = dict(layout)
        return other

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        return len(self.layout)

    def __contains__(self, name: object) -> bool:
        return name in self.layout and all(key in self.stored for key in self.layout[name].keys)  # type: ignore[index]

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the header alone."""
        source = self.layout[name]
        if source.take is None:
            return self.stored[source.keys[0]].shape
        stored = (self.stored[key] for key in source.keys)
        return tuple(source.make(*(torch.empty(s.shape, dtype=s.dtype, device="meta") for s in stored)).shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which the tensor is stored; that of the file for one that is made up."""
        keys = self.layout[name].keys
        return self.stored[keys[0]].dtype if keys else next(iter(self.stored.values())).dtype

    def num_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(
            self.stored[key].stop - self.stored[key].start
            for key in {k for s in self.layout.values() for k in s.keys}
        )

    def tensor(
        self, name: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """One tensor. Floating-point tensors are cast to `dtype` where it is given; others keep theirs."""
        source, stored_dtype = self.layout[name], self.dtype(name)
        dtype = dtype if dtype is not None and stored_dtype.is_floating_point else stored_dtype
        view = dtype == stored_dtype and torch.device(device).type == "cpu"
        out = source.make(
            *(self._mapped(self.stored[key]) if view else _read(self.stored[key]) for key in source.keys)
        )
        return out.to(device=device, dtype=dtype).contiguous()

    def tensors(
        self, prefix: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """All tensors of one block, named from below `prefix`: what a streaming executor fetches."""
        start = prefix + "."
        return {n[len(start) :]: self.tensor(n, dtype, device) for n in self.layout if n.startswith(start)}

    def _mapped(self, stored: Stored) -> Tensor:
        if stored.start % stored.dtype.itemsize:
            return _read(stored)
        if stored.path not in self._maps:
            size = stored.path.stat().st_size
            self._maps[stored.path] = torch.UntypedStorage.from_file(
                str(stored.path),
                shared=False,
                nbytes=size,  # type: ignore[assignment]
            )
        out = torch.empty(0, dtype=stored.dtype)
        strides = torch.empty(stored.shape, device="meta").stride()
        return out.set_(self._maps[stored.path], stored.start // stored.dtype.itemsize, stored.shape, strides)

    def close(self) -> None:
        """Forget the maps. Tensors handed out keep theirs alive."""
        self._maps.clear()


def _read(stored: Stored) -> Tensor:
    if stored.stop == stored.start:
        return torch.empty(stored.shape, dtype=stored.dtype)
    buffer = bytearray(stored.stop - stored.start)
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        if file.readinto(buffer) != len(buffer):
            raise InputError(f"{stored.path.name} is cut short.", _fetch_again(stored.path))
    return torch.frombuffer(buffer, dtype=stored.dtype).view(stored.shape)


def some(names: Iterable[str], total: int | None = None) -> str:
    """The first few names and the count of the rest: "a, b and 7 more"."""
    names = list(names)
    total = len(names) if total is None else total
    shown = names[:NUM_NAMED]
    rest = total - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def check_weights(weights: MappedWeights, expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise InputError, naming keys, unless the weights are exactly the expected ones in name and shape."""
    missing = [name for name in expected if name not in weights]
    extra = [name for name in weights if name not in expected]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({some(missing)})")
    if extra:
        problems.append(f"{len(extra)} not part of it ({some(extra)})")
    here = [(name, weights.shape(name), shape) for name, shape in expected.items() if name in weights]
    wrong = [f"{name} is {list(got)}, not {list(want)}" for name, got, want in here if got != tuple(want)]
    if wrong:
        problems.append(f"{len(wrong)} of the wrong shape ({some(wrong)})")
    if problems:
        raise InputError(
            f"The weights of {what} do not fit its configuration: {'; '.join(problems)}.",
            "It is of another model or saved in part: check the config.json beside it, or fetch it again.",
        )


def load_module(
    module: nn.Module,
    weights: MappedWeights,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Give a module made on the meta device its weights: mapped, or cast one by one, and assigned, never
    copied.

    The weights must have passed `check_weights` against it.
    """
    for name in list(module.state_dict()):
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        tensor = weights.tensor(name, dtype, device)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        else:
            owner._buffers[leaf] = tensor
    return module


@dataclass(frozen=True)
class ToWrite:
    """One tensor to be written: its final shape and dtype, and the function that fetches it when its turn
    comes.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    fetch: Callable[[], Tensor]


def write_weights(
    path: Path, tensors: Mapping[str, ToWrite], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file tensor by tensor: memory for one at a time. `path` should be a temporary one.

    Deterministic: the same tensors give the same bytes. Raises OSError as the disk does.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name in order:
        entry = tensors[name]
        size = entry.dtype.itemsize * int(torch.Size(entry.shape).numel())
        header[name] = {
            "dtype": CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            tensor = tensors[name].fetch().detach().to("cpu", tensors[name].dtype).contiguous()
            assert tuple(tensor.shape) == tuple(tensors[name].shape), name
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
