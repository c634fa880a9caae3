"""The aesthetic score: LAION's heads on CLIP embeddings of the three key frames (SVD app. C).

Both heads that LAION published take the embedding at length 1: the linear ones (aesthetic-predictor), and the MLP of
improved-aesthetic-predictor, which has no activations between its layers. Scores lie about 1 to 10.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate import View
from svdcli.curate.annotate.clip_embedding import frame_embeddings
from svdcli.curate.annotate.models import Once, load_tensors, stamp
from svdcli.errors import InputError, MachineError

Weights = npt.NDArray[np.float64]
_WHERE = (
    "Fetch sac+logos+ava1-l14-linearMSE.pth from github.com/christophschuhmann/improved-aesthetic-predictor, for CLIP "
    "ViT-L/14, and name it as annotate.aesthetic.head."
)


@dataclass(frozen=True)
class Head:
    """Layers without activations: (out, in) and (out,) each, the last to one number."""

    layers: tuple[tuple[Weights, Weights], ...]

    @property
    def width(self) -> int:
        """Numbers of an embedding that it takes."""
        return int(self.layers[0][0].shape[1])

    def score(self, embeddings: npt.NDArray[Any]) -> Weights:
        """(N, D) of any length -> (N,); they are brought to length 1 first."""
        values = np.asarray(embeddings, np.float64)
        values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        for weight, bias in self.layers:
            values = values @ weight.T + bias
        return values[:, 0]


def load_head(path: Path) -> Head:
    """A safetensors or .pth file with `weight`, `bias`, or with `layers.N.weight`, `layers.N.bias`.

    Raises MachineError where the file is missing, and InputError where it is no head.
    """
    found = load_tensors(path, "an aesthetic head", _WHERE)
    tensors = {name: np.asarray(value.double().numpy()) for name, value in found.items()}
    numbers = {name: re.fullmatch(r"(?:layers\.(\d+)\.)?(weight|bias)", name) for name in tensors}
    strange = sorted(name for name, match in numbers.items() if not match)
    order = sorted({int(match[1] or 0) for match in numbers.values() if match})
    prefix = "layers.{}." if any(name.startswith("layers.") for name in tensors) else ""
    try:
        layers = tuple(
            (tensors[f"{prefix.format(n)}weight"], tensors[f"{prefix.format(n)}bias"]) for n in order
        )
    except KeyError as error:
        strange.append(f"no {error.args[0]}")
        layers = ()
    shapes = [weight.shape for weight, _ in layers]
    chained = all(len(shape) == 2 for shape in shapes) and all(
        later[1] == earlier[0] for earlier, later in zip(shapes, shapes[1:], strict=False)
    )
    if strange or not layers or not chained or shapes[-1][0] != 1:
        raise InputError(
            f"{path.name} is no aesthetic head: {', '.join(strange) or f'its layers are {shapes}'}.", _WHERE
        )
    return Head(layers)


class AestheticAnnotator:
    """Columns: `aesthetic`, the mean of the three frames; `aesthetic_frames`, the three."""

    name = "aesthetic"
    columns: Mapping[str, type] = {"aesthetic": float, "aesthetic_frames": list}
    needs: tuple[str, ...] = ("clip_embedding",)
    batch = 1024

    def __init__(self, head: Path | None, clip_version: int) -> None:
        self.path = head
        self.version = stamp(1, str(head), clip_version)
        self._head = Once(self._load)

    def _load(self) -> Head:
        if self.path is None:
            raise MachineError("No head for the aesthetic score is named.", _WHERE)
        try:
            return load_head(self.path)
        except InputError as error:  # no clip's fault
            raise MachineError(error.message, error.hint) from error

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises MachineError where the head is absent or does not fit the CLIP model, or no embeddings are there."""
        head: Head = self._head()
        rows = []
        for view in views:
            embeddings = frame_embeddings(view)
            if embeddings.shape[1] != head.width:
                raise MachineError(
                    f"The aesthetic head takes embeddings of {head.width} numbers, and this CLIP model gives "
                    f"{embeddings.shape[1]}.",
                    "Name the head that was made for the CLIP model: 768 numbers are ViT-L/14, 512 are ViT-B.",
                )
            scores = head.score(embeddings)
            rows.append(
                {"clip": view.clip.id, "aesthetic": float(scores.mean()), "aesthetic_frames": scores.tolist()}
            )
        return rows
