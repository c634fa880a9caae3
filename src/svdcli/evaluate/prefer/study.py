"""A study: every pair of models on every prompt, blinded, its sides balanced, with checks that raters look."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from svdcli.errors import InputError, UsageError
from svdcli.evaluate.prefer.media import blind_copy, blind_picture, spoil
from svdcli.evaluate.videos import different_shapes, pair_videos, read_whole
from svdcli.io.files import atomic_folder, require_file
from svdcli.io.manifest import read_manifest, sidecar_path
from svdcli.io.video import write_video

STUDY, MEDIA, VOTES = "study.json", "media", "votes.sqlite"
KIND, VERSION = "svd-eval-prefer", 1
QUALITY, FOLLOWING = "quality", "following"
QUESTIONS = {
    QUALITY: "Which video looks better?",
    FOLLOWING: "Which video follows the prompt better?",
}
CHECK_EVERY = 12
"""one attention check for as many comparisons, and two at least"""
Side = Literal["a", "b"]


@dataclass(frozen=True)
class Comparison:
    """Two videos of one prompt. Its nth vote shows `a` on the left where `turn` + n is even."""

    id: str
    prompt: str
    a: str
    b: str
    """models; of an attention check, "" """
    media_a: str
    media_b: str
    turn: int
    check: str = ""
    """the axis of an attention check, whose right answer is always a; else "" """

    def left(self, num_votes: int) -> Side:
        """Which of the two stands left for the vote after `num_votes` others."""
        return "a" if (self.turn + num_votes) % 2 == 0 else "b"


@dataclass(frozen=True)
class Prompt:
    """What the videos were made of, as far as it is known."""

    text: str = ""
    picture: str = ""
    """a medium's id"""


@dataclass
class Study:
    """All of study.json."""

    title: str
    axes: dict[str, str]
    """axis: the question that is asked"""
    votes: int
    """wanted for each comparison and axis"""
    seed: int
    models: dict[str, str]
    """name: the folder it was planned from"""
    prompts: dict[str, Prompt]
    comparisons: list[Comparison]
    media: dict[str, str]
    """id: file name under media/"""
    notes: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> list[Comparison]:
        return [c for c in self.comparisons if not c.check]

    def checks(self, axis: str) -> list[Comparison]:
        return [c for c in self.comparisons if c.check == axis]

    def by_id(self) -> dict[str, Comparison]:
        return {c.id: c for c in self.comparisons}


def plan_study(
    folders: Mapping[str, Path],
    out: Path,
    axes: Sequence[str] = (QUALITY,),
    votes: int = 3,
    prompts: Mapping[str, str] | None = None,
    pictures: Mapping[str, Path] | None = None,
    seed: int = 0,
    title: str = "Video preferences",
    on_video: Callable[[], None] = lambda: None,
) -> Study:
    """Folders of videos by model, a video of one name being of one prompt -> the study folder `out`, and the study.

    Prompt texts and pictures by video name; where none is given, `prompt` and `source` of the videos' sidecars.
    Raises InputError for fewer than two models, no common name, an unreadable video or an axis that needs a prompt or a
    picture and has none; UsageError where `out` exists.
    """
    _check(folders, out, axes, votes)
    names, tables, lacking = pair_videos(list(folders.values()))
    rng = np.random.default_rng(seed)
    study = Study(
        title,
        {a: QUESTIONS[a] for a in axes},
        votes,
        seed,
        {m: str(f) for m, f in folders.items()},
        {},
        [],
        {},
    )
    if lacking:
        study.notes.append(f"left out, as some folder lacks them: {', '.join(lacking)}")
    with atomic_folder(out) as folder:
        home = folder / MEDIA
        home.mkdir()
        ids: dict[tuple[str, str], str] = {}
        for name in names:
            for model, table in zip(folders, tables, strict=True):
                ids[model, name] = _add(study, blind_copy(table[name], home, _opaque(seed, model, name)))
                on_video()
            study.prompts[name] = _prompt(
                name, [t[name] for t in tables], prompts or {}, pictures or {}, study, home
            )
        if FOLLOWING in axes and (bare := [n for n, p in study.prompts.items() if not (p.text or p.picture)]):
            message = f"Nothing says what {bare[0]} should show, so the axis `{FOLLOWING}` cannot be asked."
            raise InputError(message, "Give --prompts or --pictures, or ask for quality alone.")
        study.comparisons = _comparisons(study, names, ids, rng)
        study.comparisons += _checks(study, tables[0], names, ids, home, list(folders)[0])
        study.notes += _differences(tables, list(folders), names)
        (folder / STUDY).write_text(json.dumps(_to_json(study), indent=1) + "\n", encoding="utf-8")
    return study


def load_study(folder: Path) -> Study:
    """The study of a folder. Raises InputError."""
    tree = read_manifest(require_file(folder / STUDY, "study"))
    if tree.get("kind") != KIND or tree.get("version") != VERSION:
        raise InputError(
            f"{folder / STUDY} is no study of this version.", "Plan one with: svd eval prefer plan"
        )
    tree = {key: value for key, value in tree.items() if key not in ("kind", "version")}
    tree["prompts"] = {name: Prompt(**value) for name, value in tree["prompts"].items()}
    tree["comparisons"] = [Comparison(**value) for value in tree["comparisons"]]
    return Study(**tree)


# ---- parts


def _check(folders: Mapping[str, Path], out: Path, axes: Sequence[str], votes: int) -> None:
    if len(folders) < 2:
        raise UsageError("A preference needs two models at least.", "Give a folder of videos for each.")
    if unknown := [axis for axis in axes if axis not in QUESTIONS]:
        raise UsageError(f"There is no axis {unknown[0]}.", f"Axes are {', '.join(QUESTIONS)}.")
    if not axes or votes < 1:
        raise UsageError(
            "A study needs an axis, and a vote for each comparison.", "Try --axis quality --votes 3."
        )
    if out.exists():
        raise UsageError(f"{out} exists, and may hold votes.", "Give another name, or remove it yourself.")


def _opaque(seed: int, *parts: str) -> str:
    return hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).hexdigest()


def _add(study: Study, file: Path) -> str:
    study.media[file.stem] = file.name
    return file.stem


def _prompt(
    name: str, videos: list[Path], texts: Mapping[str, str], pictures: Mapping[str, Path], study: Study, home: Path
) -> Prompt:  # fmt: skip
    sidecars = [read_manifest(p) for video in videos if (p := sidecar_path(video)).is_file()]
    text = texts.get(name) or next((str(s["prompt"]) for s in sidecars if s.get("prompt")), "")
    picture = pictures.get(name)
    sources = [Path(str(s["source"])) for s in sidecars if s.get("source")]
    picture = picture or next((source for source in sources if source.is_file()), None)
    return Prompt(
        text,
        _add(study, blind_picture(picture, home, _opaque(study.seed, "picture", name))) if picture else "",
    )


def _comparisons(
    study: Study, names: list[str], ids: Mapping[tuple[str, str], str], rng: np.random.Generator
) -> list[Comparison]:
    """All pairs on all prompts, in random order; of each pair as many begin with `a` left as with `b`."""
    found = []
    for a, b in combinations(study.models, 2):
        turns = rng.permutation(np.arange(len(names)) % 2)
        found += [
            Comparison(_opaque(study.seed, a, b, name), name, a, b, ids[a, name], ids[b, name], int(turn))
            for name, turn in zip(names, turns, strict=True)
        ]
    return [found[i] for i in rng.permutation(len(found))]


def _checks(
    study: Study, table: Mapping[str, Path], names: list[str], ids: Mapping[tuple[str, str], str], home: Path, model: str
) -> list[Comparison]:  # fmt: skip
    """Quality: a video against a spoilt copy of itself. Following: against the video of another prompt."""
    num = min(len(names), max(2, round(len(study.comparisons) / CHECK_EVERY)))
    found = []
    for axis in study.axes:
        for index, name in enumerate(names[:num]):
            mark = _opaque(study.seed, "check", axis, name)
            if axis == QUALITY:
                frames, fps = read_whole(table[name], 600)
                spoilt = home / f"{_opaque(study.seed, 'spoilt', name)}.mp4"
                write_video(spoilt, spoil(frames, index), fps, {}, "mp4")
                other = _add(study, spoilt)
            elif len(names) > 1:
                other = ids[model, names[(index + 1) % len(names)]]
            else:
                study.notes.append("one prompt only: no attention checks on following it")
                continue
            found.append(Comparison(mark, name, "", "", ids[model, name], other, index % 2, axis))
    return found


def _differences(tables: list[dict[str, Path]], models: list[str], names: list[str]) -> list[str]:
    """What besides the model tells the videos apart: size, length, rate."""
    told = different_shapes(dict(zip(models, tables, strict=True)), names[0])
    return [f"the models' videos differ in size, length or rate, which raters see: {told}"] if told else []


def _to_json(study: Study) -> dict[str, Any]:
    return {"kind": KIND, "version": VERSION, **asdict(study)}
