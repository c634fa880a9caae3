"""The stages as work for an engine: a source is split, a batch of clips is measured, and what is journalled of it.

An engine knows `Work` of `workers` and these three: `entries`, what to write down of an outcome; `parts`, what to try
singly where a batch was lost; and that a fault of the machine ends the stage, since it would meet every item too.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from svdcli.curate.journal import ANNOTATE, SPLIT, Entry, read_at
from svdcli.curate.rows import CutClip
from svdcli.curate.run.fetch import local_file
from svdcli.curate.run.inputs import Input
from svdcli.curate.run.workers import Handle, Outcome, Pool, Tell, Work
from svdcli.curate.tables import to_row
from svdcli.errors import InputError, MachineError, SvdError

if TYPE_CHECKING:
    from svdcli.recipe.curation import Annotate, Split

MODELS = frozenset(["clip_embedding", "similarity", "caption_image", "caption_video", "caption_summary"])
"""annotators that load a large model, so that fewer of them run at once"""
Place = tuple[str, int]
_SLOWEST = 1000.0  # bytes a second: headers that claim more footage than this gives are not believed
_CANARY_EVERY = 16  # batches


class Stage(Work, Protocol):
    """What an engine runs."""

    def stage(self, item: Any) -> str:
        """The stage that an item's entries are of."""
        ...

    def entries(self, outcome: Outcome) -> list[Entry]:
        """What the journal says of an outcome."""
        ...

    def parts(self, item: Any) -> Sequence[Any]:
        """The items that a lost one is tried again as; none where it is single."""
        ...

    def keys(self, item: Any) -> Sequence[str]:
        """What the entries of an item are known by."""
        ...


def drain(pool: Pool, stage: Stage, items: Iterable[Any]) -> Iterator[Outcome]:
    """Outcomes of all items; a batch that was lost comes back as its parts. Raises MachineError, SvdError."""
    lost: list[Any] = []
    for outcome in pool.map(items):
        if outcome.fault == "machine":
            raise MachineError(outcome.reason, outcome.hint)
        if outcome.fault == "wrong":
            raise SvdError(outcome.reason, outcome.hint)
        parts = stage.parts(outcome.item) if outcome.fault else ()
        lost += parts
        if not parts:
            yield outcome
    if lost:
        yield from drain(pool, stage, lost)


# ---- split


@dataclass(frozen=True)
class SplitWork:
    """Sources -> clips."""

    folder: Path
    settings: Split
    most: int
    """bytes that a copy of a member or a URL may have"""

    def stage(self, item: Input) -> str:
        return SPLIT

    def open(self) -> Handle:
        import svdcli.curate.split.split  # noqa: F401  (now, not under the first item's deadline)

        return self._split

    def entries(self, outcome: Outcome) -> list[Entry]:
        item: Input = outcome.item
        if outcome.fault:
            return [refused(item, outcome.reason, self.folder)]
        return [Entry(SPLIT, path=item.path, status="done", stamp=item.stamp, **outcome.value)]

    def parts(self, item: Any) -> Sequence[Any]:
        return ()

    def keys(self, item: Input) -> Sequence[str]:
        return (item.path,)

    def _split(self, item: Input, tell: Tell) -> dict[str, Any]:
        from svdcli.curate.split.split import split_source

        with local_file(item, self.folder, self.most) as path:
            tell(_claimed_seconds(path))
            try:
                made = split_source(path, self.folder, self.settings)
            except InputError as error:
                raise InputError(error.message.replace(str(path), item.path), error.hint) from error
        source = replace(made.source, path=item.path)
        rows = [to_row(source), *(to_row(clip) for clip in sorted(made.clips, key=lambda clip: clip.id))]
        return {"item": source.id, "rows": rows, "seconds": source.seconds, "lost": dict(made.lost)}


def refused(item: Input, reason: str, folder: Path) -> Entry:
    """An input that cannot be used."""
    command = f"svd curate split {shell_word(item.path)} {shell_word(str(folder) + '-again')}"
    return Entry(SPLIT, "", item.path, "failed", reason, command, stamp=item.stamp)


def shell_word(text: str) -> str:
    """A word as a shell takes it back, whatever bytes are in it."""
    if text.isprintable():
        return shlex.quote(text)
    data = text.encode("utf-8", "surrogateescape")
    return "$'" + "".join(_byte(byte) for byte in data) + "'"


def _byte(byte: int) -> str:
    plain = 32 <= byte < 127 and byte not in b"'\\"
    return chr(byte) if plain else f"\\x{byte:02x}"


def _claimed_seconds(path: Path) -> float:
    """How much footage a file says that it has, as far as its size bears that out."""
    from svdcli.curate.split.opening import opened

    try:
        with opened(path) as (container, _):
            claimed = (container.duration or 0) / 1e6
    except InputError:  # the split itself says why
        return 0.0
    return float(min(max(claimed, 0.0), path.stat().st_size / _SLOWEST))


# ---- annotate


@dataclass(frozen=True)
class Batch:
    """Clips that an annotator is given in one call."""

    annotator: str
    version: int
    clips: tuple[CutClip, ...]
    needs: Mapping[str, tuple[Place | None, ...]]
    """by annotator, a clip: where its row lies in a journal"""

    @property
    def seconds(self) -> float:
        return sum(clip.end - clip.start for clip in self.clips)


@dataclass(frozen=True)
class AnnotateWork:
    """Clips -> scores, of whichever annotator a batch names; models are loaded when they are first needed."""

    folder: Path
    settings: Annotate
    device: str

    def stage(self, item: Batch) -> str:
        return ANNOTATE + item.annotator

    def open(self) -> Handle:
        from svdcli.curate.annotate.registry import annotators

        measuring = {one.name: Measuring(one, self.folder) for one in annotators(self.settings, self.device)}
        return lambda batch, tell: measuring[batch.annotator](batch, tell)

    def entries(self, outcome: Outcome) -> list[Entry]:
        batch: Batch = outcome.item
        results = outcome.value
        if outcome.fault:
            results = [(clip.id, None, outcome.reason) for clip in batch.clips]
        clips = {clip.id: clip for clip in batch.clips}
        return [self._entry(batch, clips[name], row, reason) for name, row, reason in results]

    def parts(self, item: Batch) -> Sequence[Batch]:
        if len(item.clips) == 1:
            return ()
        return [
            replace(item, clips=(clip,), needs={name: (places[n],) for name, places in item.needs.items()})
            for n, clip in enumerate(item.clips)
        ]

    def keys(self, item: Batch) -> Sequence[str]:
        return [clip.id for clip in item.clips]

    def _entry(self, batch: Batch, clip: CutClip, row: Mapping[str, Any] | None, reason: str) -> Entry:
        entry = Entry(
            self.stage(batch),
            clip.id,
            clip.path,
            "done",
            seconds=clip.end - clip.start,
            stamp=str(batch.version),
        )
        if row is not None:
            return replace(entry, rows=[{**row, "version": batch.version}])
        words = ("svd", "curate", "annotate", str(self.folder), "--only", batch.annotator, "--clip", clip.id)
        return replace(entry, status="failed", reason=reason, command=" ".join(map(shell_word, words)))


class Measuring:
    """One annotator in a worker: batches in, a row or a reason a clip out."""

    def __init__(self, annotator: Any, folder: Path) -> None:
        self._annotator, self._folder, self._batches = annotator, folder, 0

    def __call__(self, batch: Batch, tell: Tell) -> list[tuple[str, dict[str, Any] | None, str]]:
        tell(batch.seconds)
        results: dict[str, tuple[dict[str, Any] | None, str]] = {}
        views = []
        for number, clip in enumerate(batch.clips):
            try:
                views.append(self._view(clip, {name: places[number] for name, places in batch.needs.items()}))
            except InputError as error:
                results[clip.id] = None, error.message
        try:
            results |= {name: (row, "") for name, row in self._rows(views).items()}
            self._check_canary(views, results)
        except SvdError as error:
            if not isinstance(error, InputError):
                raise
            results |= self._one_by_one(views)
        return [(clip.id, *results[clip.id]) for clip in batch.clips]

    def _view(self, clip: CutClip, needs: Mapping[str, Place | None]) -> Any:
        from svdcli.curate.annotate import View
        from svdcli.curate.proxy import Proxy

        scores = {name: read_at(place).rows[0] for name, place in needs.items() if place}
        proxy = Proxy.load(proxy_path(self._folder, clip.id))
        return View(clip, self._folder / clip.path, proxy, scores)

    def _rows(self, views: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """A row a clip. Raises SvdError where not exactly the clips that went in came out."""
        rows = self._annotator.annotate(views) if views else []
        found = {row["clip"]: dict(row) for row in rows}
        if len(rows) != len(views) or set(found) != {view.clip.id for view in views}:
            raise MixedUp(self._annotator.name)
        return found

    def _one_by_one(self, views: Sequence[Any]) -> dict[str, tuple[dict[str, Any] | None, str]]:
        results: dict[str, tuple[dict[str, Any] | None, str]] = {}
        for view in views:
            try:
                results[view.clip.id] = self._rows([view])[view.clip.id], ""
            except InputError as error:
                results[view.clip.id] = None, error.message
        return results

    def _check_canary(self, views: Sequence[Any], results: Mapping[str, tuple[Any, str]]) -> None:
        """Measure one clip of some batches again, alone: its row must be nearer to its own than to a neighbour's."""
        self._batches += 1
        if len(views) < 2 or self._batches % _CANARY_EVERY != 1:
            return
        canary = views[self._batches // _CANARY_EVERY % len(views)]
        alone = self._rows([canary])[canary.clip.id]
        own = _distance(alone, results[canary.clip.id][0])
        if any(_distance(alone, results[view.clip.id][0]) < own for view in views if view is not canary):
            raise MixedUp(self._annotator.name)


class MixedUp(SvdError):
    """An annotator gave a clip the scores of another."""

    def __init__(self, annotator: str) -> None:
        super().__init__(
            f"The annotator {annotator} gave clips the results of others; nothing of it was kept.",
            "This is a bug of the annotator or of its model server: report it.",
        )


def proxy_path(folder: Path, clip: str) -> Path:
    """Where the proxy of a clip lies."""
    return folder / "proxies" / clip[:2] / f"{clip}.npz"


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How unlike two rows are, 0 where they agree."""
    return sum(_unlike(one[name], other[name]) for name in one if name != "clip")


def _unlike(one: Any, other: Any) -> float:
    if isinstance(one, bool | str) or isinstance(other, bool | str) or one is None or other is None:
        return float(one != other)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) / (abs(one) + abs(other) + 1e-6)
    pairs = list(zip(one, other, strict=False))
    return sum(_unlike(a, b) for a, b in pairs) / len(pairs) if pairs else 0.0
