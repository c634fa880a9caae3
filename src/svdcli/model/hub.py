"""Where bundles are: the names that are known, the folders that are searched, and the one way to fetch.

What it is: a reference (a name, a hub id, a path) -> a path on this machine. What it is not: it opens no
weights. Nothing but `pull` uses the network.
"""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from svdcli.errors import InputError, MachineError, SvdError
from svdcli.shipped import shipped_path

FOLDERS = "SVD_MODELS"
"""Environment variable: folders (separated as in PATH) that hold bundle folders or single files."""
PARTS = ("unet", "vae", "image_encoder")
OTHER_PARTS = ("text_encoder", "mask_latent")
"""Of text-to-video and of interpolation bundles."""
INDEX = "model_index.json"


@dataclass(frozen=True)
class Known:
    """A published model: its hub repository, the name of its single file, and its licence."""

    repo: str
    file: str
    num_frames: int
    licence: str

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repo}"


_STABILITY = "Stability AI licence; read and accept it on the model's page"
KNOWN = {
    "svd-xt-1.1": Known(
        "stabilityai/stable-video-diffusion-img2vid-xt-1-1", "svd_xt_1_1.safetensors", 25, _STABILITY
    ),
    "svd-xt": Known("stabilityai/stable-video-diffusion-img2vid-xt", "svd_xt.safetensors", 25, _STABILITY),
    "svd": Known("stabilityai/stable-video-diffusion-img2vid", "svd.safetensors", 14, _STABILITY),
}
ORBITS = {
    "sv3d-p": Known("stabilityai/sv3d", "sv3d_p.safetensors", 21, _STABILITY),
    "sv3d-u": Known("stabilityai/sv3d", "sv3d_u.safetensors", 21, _STABILITY),
}
"""Multi-view models, for `svd sample --orbit`, the best first; each is a single file."""
NANO, NANO_ORBITS = "nano", "nano-mv"
BEST = (*KNOWN, NANO)
"""The default bundle is the first of these that is on the machine."""


@dataclass(frozen=True)
class Found:
    """A bundle on this machine."""

    name: str
    path: Path
    where: str


def licence_line(name: str, repo: str = "") -> str:
    """What to know about the licence of a bundle, in one line."""
    if name in (NANO, NANO_ORBITS):
        return "trained by this project; ships with it under its licence"
    known = (KNOWN | ORBITS).get(name) or next((k for k in KNOWN.values() if k.repo == repo), None)
    return (
        f"{known.licence}: {known.page}"
        if known
        else f"see https://huggingface.co/{repo}"
        if repo
        else "unknown"
    )


# ---- what is here
# --------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The hub's cache, as huggingface_hub finds it."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a whole diffusers pipeline: an index, and weights for every part."""
    try:
        named = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    parts = [part for part in (*PARTS, *OTHER_PARTS) if part in named] if "unet" in named else PARTS
    return all(any(file.is_file() for file in (folder / part).glob("*.safetensors")) for part in parts)


def snapshots(repo: str) -> list[Path]:
    """Cached snapshots of a hub repository, the current one first."""
    home = cache_folder() / f"models--{repo.replace('/', '--')}"
    main = home / "refs" / "main"
    current = main.read_text().strip() if main.is_file() else ""
    found = [path for path in (home / "snapshots").glob("*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.name != current, -path.stat().st_mtime))


def cached(repo: str) -> Path | None:
    """The cached bundle of a hub repository: its folder, or its single file where only that was fetched."""
    file = next((known.file for known in KNOWN.values() if known.repo == repo), "")
    for folder in snapshots(repo):
        if is_bundle(folder):
            return folder
        if file and (folder / file).is_file():
            return folder / file
    return None


def folders() -> list[Path]:
    """The folders that the user has named."""
    return [Path(name).expanduser() for name in os.environ.get(FOLDERS, "").split(os.pathsep) if name]


def _in_folders(name: str) -> Path | None:
    for folder in folders():
        if is_bundle(folder / name):
            return folder / name
        known = (KNOWN | ORBITS).get(name)
        if known and (folder / known.file).is_file():
            return folder / known.file
    return None


def locate(name: str) -> Found | None:
    """A known name on this machine, or None. Raises nothing, fetches nothing."""
    if name in (NANO, NANO_ORBITS):
        try:
            return Found(name, shipped_path("assets", name), "ships with svd")
        except SvdError:
            return None
    if path := _in_folders(name):
        return Found(name, path, FOLDERS)
    path = cached(KNOWN[name].repo) if name in KNOWN else None
    if name in ORBITS:
        files = (folder / ORBITS[name].file for folder in snapshots(ORBITS[name].repo))
        path = next((file for file in files if file.is_file()), None)
    return Found(name, path, "hub cache") if path else None


def best() -> Found:
    """The best bundle on this machine: svd-xt-1.1, svd-xt, svd, else the embedded nano. Downloads nothing."""
    for name in BEST:
        if found := locate(name):
            return found
    raise MachineError(
        "No bundle is on this machine, not even the embedded one.", "Install svdcli again from its wheel."
    )


def best_orbits() -> Found:
    """The best multi-view bundle on this machine: SV3D_p, SV3D_u, else the embedded one. Downloads nothing."""
    for name in (*ORBITS, NANO_ORBITS):
        if found := locate(name):
            return found
    raise InputError(
        "No multi-view bundle is on this machine.",
        "Name one with --bundle: sv3d_p.safetensors, or what `svd finetune multiview` made.",
    )


def available() -> list[Found]:
    """Every bundle found on this machine, the default one first."""
    found = [bundle for name in (*BEST, *ORBITS, NANO_ORBITS) if (bundle := locate(name))]
    seen = {bundle.path for bundle in found}
    for folder in folders():
        for path in sorted(folder.glob("*/")) if folder.is_dir() else []:
            if path not in seen and is_bundle(path):
                found.append(Found(path.name, path, FOLDERS))
    known = {entry.repo for entry in KNOWN.values()}
    for stored in sorted(cache_folder().glob("models--*--*")):
        repo = stored.name.removeprefix("models--").replace("--", "/", 1)
        here = None if repo in known else cached(repo)
        if here and _is_video(here):
            found.append(Found(repo, here, "hub cache"))
    return found


def _is_video(folder: Path) -> bool:
    try:
        index = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError):
        return False
    return "UNetSpatioTemporalConditionModel" in json.dumps(index)


# ---- references
# ----------------------------------------------------------------------------------------------------


def is_hub_id(ref: str) -> bool:
    """Whether a reference has the form OWNER/NAME."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", ref) is not None


def find(ref: str | Path) -> Found:
    """A name, a path or a hub id -> the bundle on this machine.

    Raises InputError, with the command that mends it, where it is not here.
    """
    text = str(ref)
    if found := locate(text):
        return found
    path = Path(text).expanduser()
    if path.exists():
        return Found(path.stem if path.is_file() else path.resolve().name, path, "path")
    if text in KNOWN | ORBITS:
        raise InputError(
            f"{text} is not on this machine.", f"Fetch it with `svd models pull {text}`, or give its path."
        )
    if text == NANO:
        raise MachineError(
            "This installation lacks the embedded bundle nano.", "Install svdcli again from its wheel."
        )
    if is_hub_id(text):
        if cache := cached(text):
            return Found(text, cache, "hub cache")
        part = " as a whole" if snapshots(text) else ""
        raise InputError(
            f"The hub model {text} is not on this machine{part}, and nothing is fetched unasked.",
            f"Fetch it with `svd models pull {text}`, or give the path of its folder.",
        )
    close = get_close_matches(text, BEST, 1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise InputError(
        f"There is no bundle {text}: no known name ({', '.join(BEST)}), no path, no hub id OWNER/NAME.",
        f"{hint}See what is here with `svd models list`.",
    )


# ---- fetching
# ------------------------------------------------------------------------------------------------------


def wanted_files(files: list[str], half: bool) -> list[str]:
    """Of a repository's files, those that a bundle needs; half-precision weights where asked for and
    there.
    """
    wanted = []
    for folder in (*PARTS, *OTHER_PARTS, "tokenizer", "scheduler", "feature_extractor", ""):
        here = [file for file in files if file.rpartition("/")[0] == folder]
        weights = [file for file in here if ".safetensors" in file] if folder else []
        halves = [file for file in weights if ".fp16" in file]
        fulls = [file for file in weights if ".fp16" not in file and ".bf16" not in file]
        wanted += (halves if half and halves else fulls) or halves
        texts = (".json", ".txt") if folder == "tokenizer" else (".json",)
        wanted += [file for file in here if file.endswith(texts) and file not in weights]
    return wanted


def pull(ref: str, mirror: str | None = None, token: str | None = None, half: bool = True) -> Found:
    """Fetch a known name or a hub id into the hub's cache and return it.

    `mirror` stands in for https://huggingface.co. Raises InputError (gated, unknown, no pipeline there) or
    MachineError (offline, out of reach, disk full), each with what to do.
    """
    import huggingface_hub as hub

    if ref == NANO:
        return find(NANO)
    known = KNOWN | ORBITS
    if ref not in known and not is_hub_id(ref):
        raise InputError(
            f"{ref} is neither a known name ({', '.join(known)}) nor a hub id OWNER/NAME.",
            "See `svd models list`.",
        )
    repo = known[ref].repo if ref in known else ref
    endpoint = mirror or os.environ.get("HF_ENDPOINT") or None
    try:
        files = hub.HfApi(endpoint=endpoint, token=token).list_repo_files(repo)
        single = ORBITS[ref].file if ref in ORBITS else ""
        if INDEX not in files and single not in files:
            raise InputError(
                f"{repo} holds no diffusers pipeline ({INDEX}).",
                "Fetch its single file yourself and give the path.",
            )
        folder = hub.snapshot_download(
            repo,
            allow_patterns=[single] if single else wanted_files(files, half),
            endpoint=endpoint,
            token=token,
            cache_dir=cache_folder(),
        )
    except SvdError:
        raise
    except Exception as error:
        raise explain(error, ref, repo, endpoint) from error
    return Found(ref, Path(folder) / single, "hub cache")


def explain(error: Exception, ref: str, repo: str, endpoint: str | None) -> SvdError:
    """An error of the hub's client as one sentence and what to do; the error itself where it is none of
    these.
    """
    from huggingface_hub import errors

    again, page = f"`svd models pull {ref}`", f"https://huggingface.co/{repo}"
    host = endpoint or "https://huggingface.co"
    if isinstance(error, errors.GatedRepoError):
        return InputError(
            f"{repo} is gated: its licence must be accepted before it can be fetched.",
            f"Accept it at {page}, log in with `hf auth login` (or set HF_TOKEN), then run {again} again.",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return MachineError(
            f"{repo} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it.",
            f"Run `HF_HUB_OFFLINE=0 svd models pull {ref}` on a network, or give a copied folder's path.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"{host} has no model {repo}, or not for you: it may be private, or your token no longer valid.",
            f"Check the name at {page}; if it is private, log in with `hf auth login`.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(
            f"The disk is full: {repo} could not be stored in {cache_folder()}.",
            "Free some space (`hf cache prune`), or set HF_HUB_CACHE to a folder on another disk.",
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MachineError(
            f"The hub's cache {cache_folder()} cannot be written.",
            "Set HF_HUB_CACHE to a folder where you may write.",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HfHubHTTPError) and status in (401, 403):
        return InputError(
            f"{host} refuses access to {repo} ({status}).",
            f"Log in with `hf auth login`, accept the licence at {page}, try again.",
        )
    if isinstance(error, (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError)) or is_network(
        error
    ):
        said = f" (status {status})" if status else ""
        return MachineError(
            f"{host} cannot be reached or does not answer{said}, so {repo} was not fetched.",
            f"Check the network or proxy and run {again} again (it resumes), or name a mirror with "
            "--mirror URL or HF_ENDPOINT.",
        )
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{ref} is not a hub id.", "A hub id is OWNER/NAME.")
    raise error


def is_network(error: Exception) -> bool:
    """Whether an error comes from the HTTP client beneath huggingface_hub: requests, httpx or httpx2, by its
    version.
    """
    clients = ("requests", "urllib3", "httpx", "httpcore")
    return any(cls.__module__.startswith(clients) for cls in type(error).__mro__)
