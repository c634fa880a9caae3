"""Small pictures of clips for a page, taken from their proxies, within the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from svdcli.curate.proxy import Proxy
from svdcli.errors import InputError

WIDTH = 168
"""pixels, at most; twice as many as the narrowest column shows, for sharp screens"""


def proxy_path(folder: Path, clip: str) -> Path:
    """Where the proxy of a clip lies in a curation folder."""
    return folder / "proxies" / clip[:2] / f"{clip}.npz"


def thumbnails(folder: Path, clip: str, which: Sequence[int] = (1,)) -> list[str]:
    """Of first, middle and last frame (0, 1, 2) those that are asked for, as data URLs; none where the proxy is gone."""
    try:
        keys = Proxy.load(proxy_path(folder, clip)).keys
    except InputError:
        return []
    return [data_url(keys[index]) for index in which]


def data_url(frame: npt.NDArray[np.uint8], width: int = WIDTH) -> str:
    """A frame (H, W, 3) as a JPEG in a data URL."""
    picture = Image.fromarray(np.ascontiguousarray(frame))
    if picture.width > width:
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=78)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
