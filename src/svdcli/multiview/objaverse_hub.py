"""Objaverse's objects by id: where each lies in its repository on the Hugging Face hub, its licence, its file.

Objaverse 1.0 is the dataset allenai/objaverse: object-paths.json.gz maps ids to glbs/000-023/ID.glb, and
metadata/000-023.json.gz holds what the makers state of the objects in that folder, licences among it. Both are fetched
into the hub's cache when ids are listed, an object when it is worked on; HF_ENDPOINT names a mirror.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from svdcli.errors import InputError, MachineError, SvdError
from svdcli.multiview.items import Item

REPOSITORY = "allenai/objaverse"
_PATHS = "object-paths.json.gz"
_AGAIN = "Check the network or proxy and run the same command again, name a mirror with HF_ENDPOINT, or give a folder of meshes."


def is_id(text: str) -> bool:
    """Whether this is an id of Objaverse: 32 hexadecimal digits."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def look_up(items: Sequence[Item]) -> list[Item]:
    """The items, ids among them with their place in the repository, their licence and their page.

    Raises InputError for an id that Objaverse lacks, MachineError where the hub cannot be reached.
    """
    if not any(is_id(str(item.path)) for item in items):
        return list(items)
    places, stated = _read(_PATHS), dict[str, dict[str, Any]]()
    found = []
    for item in items:
        name = str(item.path)
        if is_id(name):
            if name not in places:
                raise InputError(
                    f"Objaverse has no object {name}.", f"Ids are those of {_PATHS} in {REPOSITORY}."
                )
            part = PurePosixPath(places[name]).parent.name
            if part not in stated:
                stated[part] = _read(f"metadata/{part}.json.gz")
            says = stated[part].get(name) or {}
            licence, page = (
                str(says.get("license") or ""),
                str(says.get("viewerUrl") or says.get("uri") or ""),
            )
            item = replace(
                item, licence=item.licence or licence, source=item.source or page, hub_file=places[name]
            )
        found.append(item)
    return found


def fetch(item: Item) -> Path:
    """The file of an item; of an id it is fetched, unless the hub's cache has it. Raises as `look_up`."""
    return _fetched(item.hub_file) if item.hub_file else item.path


def _read(name: str) -> dict[str, Any]:
    path = _fetched(name)
    try:
        tree = json.loads(gzip.decompress(path.read_bytes()))
        return dict(tree)
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is damaged: {error}.", "Remove it and run the same command again."
        ) from error


def _fetched(name: str) -> Path:
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        return Path(hub.hf_hub_download(REPOSITORY, name, repo_type="dataset"))
    except Exception as error:
        raise _explained(error, name, errors) from error


def _explained(error: Exception, name: str, errors: Any) -> SvdError:
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return InputError(f"{REPOSITORY} has no file {name}.", "Leave this object out.")
    if isinstance(error, errors.RepositoryNotFoundError | errors.GatedRepoError):
        return InputError(
            f"The hub gives no access to {REPOSITORY}.", f"See https://huggingface.co/datasets/{REPOSITORY}."
        )
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return MachineError(f"Objaverse's {name} is not on this machine and cannot be fetched: {reason}.", _AGAIN)
