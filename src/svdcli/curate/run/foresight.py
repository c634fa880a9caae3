"""What a recipe's filter wants and nothing here can compute, said before hours of work.

What it is: a look at the recipe and for its models' files. What it is not: a proof; a model that is there may be broken
all the same, and then the filter stops when it comes to it, as `select` says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from svdcli.curate.annotate.models import place
from svdcli.curate.annotate.registry import annotators
from svdcli.errors import MachineError, RecipeError
from svdcli.recipe.annotation import AnnotatorName
from svdcli.recipe.filter import Filter

if TYPE_CHECKING:
    from svdcli.recipe.annotation import Annotate, Captioner
    from svdcli.recipe.curation import Curation

_ALL = get_args(AnnotatorName)


def require_scores(recipe: Curation) -> None:
    """Raises RecipeError where the filter would stop, and names every score that it would stop for."""
    axes = {name: axis for name, axis in recipe.filter.axes.items() if axis.missing == "stop"}
    lacking = absent(recipe.annotate) if axes else {}
    unmet: dict[str, str] = {}
    for annotator in annotators(recipe.annotate.model_copy(update={"run": _ALL}), "cpu") if lacking else ():
        for name, axis in axes.items():
            score = axis.column or name
            of_it = [*annotator.columns, *(f"{annotator.name}.{column}" for column in annotator.columns)]
            if annotator.name in lacking and score in of_it:
                unmet[name] = f"{name} ({lacking[annotator.name]})"
    if unmet:
        places = {name: name if name in Filter.model_fields else f"further.{name}" for name in unmet}
        without = " ".join(f"--set filter.{key}.drop=nothing" for key in places.values())
        raise RecipeError(
            f"The filter wants scores that cannot be computed here: {'; '.join(unmet.values())}.",
            f"Set what is missing, go on without ({without}), or take --recipe nano/curate, which needs no model.",
        )


def absent(settings: Annotate) -> dict[str, str]:
    """Why annotators cannot measure anything here, by name, as far as files tell."""
    captions = settings.captions
    found = {name: "annotate.run leaves it out" for name in _ALL if name not in settings.run}
    reasons: dict[str, Callable[[], str]] = {
        "clip_embedding": lambda: _model(settings.clip.model, "annotate.clip.model"),
        "aesthetic": lambda: _head(settings.aesthetic.head),
        "caption_image": lambda: _captioner(captions.image, "annotate.captions.image"),
        "caption_video": lambda: _captioner(captions.video, "annotate.captions.video"),
        "caption_summary": lambda: _captioner(captions.summary, "annotate.captions.summary"),
    }
    found |= {name: said for name, say in reasons.items() if name not in found and (said := say())}
    written = [name for name in ("caption_image", "caption_video", "caption_summary") if name not in found]
    if "clip_embedding" in found:
        found.setdefault("aesthetic", f"it reads clip_embedding: {found['clip_embedding']}")
        found.setdefault("similarity", f"it reads clip_embedding: {found['clip_embedding']}")
    if not written:
        found.setdefault("similarity", f"there are no captions: {found['caption_image']}")
    return found


def _model(ref: str, key: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    try:
        where = place(ref, "a model")
    except MachineError as error:
        return error.message.rstrip(".")
    here = Path(where).is_dir() or isinstance(try_to_load_from_cache(where, "config.json"), str)
    return "" if here else f"{key} {ref} is not on this machine; `hf download {ref}` fetches it"


def _head(file: Path | None) -> str:
    if file is None:
        return "annotate.aesthetic.head names no file"
    return "" if file.is_file() else f"annotate.aesthetic.head: there is no {file}"


def _captioner(settings: Captioner | None, key: str) -> str:
    if settings is None:
        return f"{key} names no captioner"
    return _model(settings.model, key) if settings.kind == "transformers" else ""
