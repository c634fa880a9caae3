"""A finished run's model put on the hub, with its card, in one commit: all of it or nothing.

Whether that can work is asked before training begins, which may take days; nothing is sent before the last step is done.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svdcli.engine.adapter import COMFYUI, LORA, PEFT
from svdcli.engine.card import model_card, without_paths
from svdcli.errors import InputError, MachineError, SvdError, UsageError
from svdcli.io.files import atomic_path
from svdcli.model import hub
from svdcli.model.lora import METADATA
from svdcli.model.weights import MappedWeights, ToWrite, write_weights
from svdcli.recipe.recipe import Recipe

CARD = "README.md"
BUNDLE = "bundle"


def require_access(repo: str) -> None:
    """Raise UsageError, InputError or MachineError where nothing could be put in that repository: a wrong name, no token,
    no network.
    """
    if not hub.is_hub_id(repo):
        raise UsageError(f"--push-to-hub {repo} is no hub id.", "Write it as OWNER/NAME.")
    try:
        _api().whoami()
    except Exception as error:
        raise _explain(error, repo) from error


def push(recipe: Recipe, repo: str, private: bool, num_videos: int, num_held_out: int) -> str:
    """Put the result of a finished run, its card, its recipe and its figures in the repository -> the address of the commit.

    The card is kept in the run folder too. Raises InputError where the run has no result, and as `require_access`.
    """
    import huggingface_hub

    card = model_card(recipe, repo, num_videos, num_held_out)
    path = recipe.run.folder / CARD
    with atomic_path(path) as temporary:
        temporary.write_text(card, encoding="utf-8")
    files = [(CARD, card.encode()), *_result(recipe)]
    operations = [huggingface_hub.CommitOperationAdd(name, content) for name, content in files]
    try:
        api = _api()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(
            repo, operations, commit_message=f"Trained by svdcli, {recipe.run.num_steps} steps"
        )
    except Exception as error:
        raise _explain(error, repo) from error
    return str(commit.commit_url)


def _api() -> Any:
    import huggingface_hub

    return huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def _result(recipe: Recipe) -> Iterator[tuple[str, bytes | str]]:
    """Name in the repository, and content or path, of each file of the result; what names paths of this machine is cut."""
    folder = recipe.run.folder
    if recipe.adapter is not None:
        found = [folder / LORA, folder / COMFYUI, *sorted((folder / PEFT).glob("*"))]
        root = folder
    else:
        found, root = sorted(p for p in (folder / BUNDLE).rglob("*") if p.is_file()), folder / BUNDLE
    found = [path for path in found if path.is_file()]
    if not found:
        raise InputError(
            f"The run in {folder} has no result to be published.", "Train it to its last step first."
        )
    for path in found:
        name = path.relative_to(root).as_posix()
        if path.suffix == ".json":
            yield name, without_paths(path.read_text(encoding="utf-8"), recipe).encode()
        elif path in (folder / LORA, folder / COMFYUI):
            yield name, _told_less(path, recipe)
        else:
            yield name, str(path)
    yield "recipe.json", without_paths(recipe.model_dump_json(indent=1), recipe).encode()
    yield "metrics.csv", str(folder / "metrics.csv")


def _told_less(path: Path, recipe: Recipe) -> bytes:
    """A LoRA's file with paths of this machine cut to names in what it says of itself."""
    weights = MappedWeights(path)
    said = dict(weights.metadata)
    if METADATA in said:
        info = {key: without_paths(str(value), recipe) for key, value in json.loads(said[METADATA]).items()}
        said[METADATA] = json.dumps(info, sort_keys=True)
    entries = {n: ToWrite(weights.shape(n), weights.dtype(n), lambda n=n: weights.tensor(n)) for n in weights}  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        write_weights(copy := Path(folder) / path.name, entries, said)
        return copy.read_bytes()


def _explain(error: Exception, repo: str) -> SvdError:
    """An error of the hub's client as one sentence and what to do; the error itself where it is none of these."""
    from huggingface_hub import errors

    if isinstance(error, SvdError):
        return error
    host = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return MachineError(
            f"HF_HUB_OFFLINE forbids to put anything in {repo}.",
            "Set HF_HUB_OFFLINE=0, or leave --push-to-hub out.",
        )
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return InputError(
            f"{host} knows nobody here who could put a model in {repo}: there is no valid token.",
            "Log in with `hf auth login`, with a token that may write, or set HF_TOKEN.",
        )
    if status == 403 or isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"{host} does not let you write to {repo}.",
            "Use a name of your own, and a token that may write: `hf auth login`.",
        )
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{repo} is no hub id.", "Write it as OWNER/NAME.")
    if isinstance(error, errors.HfHubHTTPError | OSError) or hub.is_network(error):
        said = f" (status {status})" if status else ""
        return MachineError(
            f"{host} cannot be reached or does not answer{said}, so nothing was put in {repo}.",
            "Check the network or proxy, then run the same command again: what is trained is kept.",
        )
    raise error
