"""Why two FVDs can, or cannot, be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svdcli.errors import InputError
from svdcli.evaluate.fvd import KIND

_WORDS = {
    "num_frames": "frames a clip",
    "fps": "frame rate of the clips",
    "window": "where in a video the clip is taken",
    "size": "size of the frames",
    "num_videos": "videos that the protocol asks for",
    "equal_numbers": "whether the sets are thinned to one number",
}


def explain(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Two results of `svd eval fvd` -> whether they compare, and what differs: {comparable, differences, notes}.

    `differences` each forbid the comparison; `notes` do not. Raises InputError for anything else.
    """
    for result in (a, b):
        if result.get("kind") != KIND:
            raise InputError(
                "This is not a result of `svd eval fvd`.", "Save one with: svd eval fvd ... --out A.json"
            )
    differences = [
        f"{words}: {_said(a['protocol'][key])} and {_said(b['protocol'][key])}"
        for key, words in _WORDS.items()
        if a["protocol"][key] != b["protocol"][key]
    ]
    if a["network"]["sha256"] != b["network"]["sha256"]:
        differences.append(f"network: {_network(a)} and {_network(b)}")
    for key, words in (("num_real", "real videos"), ("num_generated", "generated videos")):
        if a[key] != b[key]:
            differences.append(f"{words}: {a[key]} and {b[key]}; the bias of FVD falls with their number")
    if a["real"]["digest"] != b["real"]["digest"]:
        differences.append("the real videos are not the same ones")
    notes = []
    if a["generated"]["digest"] == b["generated"]["digest"]:
        notes.append("the generated videos are the same ones")
    for key in sorted(set(a["versions"]) | set(b["versions"])):
        if a["versions"].get(key) != b["versions"].get(key):
            notes.append(f"{key}: {a['versions'].get(key)} and {b['versions'].get(key)}")
    notes += [f"both: {caution}" for caution in a["cautions"] if caution in b["cautions"]]
    for name, result, other in (("first", a, b), ("second", b, a)):
        notes += [f"{name}: {caution}" for caution in result["cautions"] if caution not in other["cautions"]]
    return {
        "comparable": not differences,
        "differences": differences,
        "notes": notes,
        "protocol_hashes": [a["protocol_hash"], b["protocol_hash"]],
        "fvd": [a["fvd"], b["fvd"]],
    }


def _said(value: Any) -> str:
    if value is None:
        return "as the video is"
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _network(result: Mapping[str, Any]) -> str:
    return f"{result['network']['name']} ({result['network']['sha256'][:12]})"
