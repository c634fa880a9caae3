"""Which clips of a whole table are the same, in less than quadratic time.

Candidates come from locality-sensitive hashing by bit sampling (Indyk and Motwani 1998): clips that agree in log2 N
drawn bits share a bucket, and as many such draws are made as it takes to meet a pair of the designed distance with
the designed certainty; that is N^1.24 for hashes of which 15 % of the bits differ. Embeddings become bits by random
hyperplanes (Charikar 2002). Each candidate is then compared in full.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate.duplicates import CHANGE_BITS, MOMENTS, PICTURE_BITS, to_bits

DESIGNED, CERTAINTY = 0.15, 0.95
"""share of bits in which copies may differ, and how surely such a pair is met"""
CROWD = 64
"""in a bucket of more clips than this, each is compared with that many that stand next to it"""
PLANES = 256
"""bits of an embedding"""


@dataclass(frozen=True)
class Limits:
    """How much copies may differ."""

    picture: float = 0.22
    """share of the bits of `phash`: a crop of 5 % a side differs by about 0.16"""
    change: float = 0.22
    """share of the bits of `change_hash`: copies differ by 0.16 at most, takes of one scene by 0.30 at least"""
    still: float = 0.1
    """share of the bits of `phash` where too little changes for `change_hash` to tell"""
    cosine: float = 0.97
    """least mean cosine similarity of the embeddings of the three key frames"""
    shared: int = 2
    """moments that must show something, and steps that must change, in both clips, for a hash to count; and steps at
    most that change in one clip alone"""


@dataclass(frozen=True)
class Group:
    """Clips that are the same."""

    keeper: str
    """the one to keep: of most pixels, then longest, then with the smallest id"""
    others: tuple[str, ...]
    """ids, in that order"""


def groups(
    rows: Sequence[Mapping[str, Any]],
    embeddings: Mapping[str, Sequence[float]] | None = None,
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
) -> list[Group]:
    """Rows of `duplicates`, with `clip`, and the `clip_embedding` of those that have one, by id -> the groups of two or
    more, by keeper. The order of the rows changes nothing. Every other member is near the keeper itself, not only near
    another member.
    """
    if not rows:
        return []
    order = sorted(rows, key=lambda row: (-row["pixels"], -row["seconds"], row["clip"]))
    table = _Table(order, embeddings or {}, limits)
    links: dict[int, set[int]] = defaultdict(set)
    for a, b in table.pairs():
        links[a].add(b)
        links[b].add(a)
    found, taken = [], set()
    for index in range(len(order)):  # best first: whoever is not taken yet is a keeper
        if index in taken or not links.get(index):
            continue
        members = sorted(other for other in links[index] if other > index and other not in taken)
        if members:
            taken.update(members)
            found.append(Group(order[index]["clip"], tuple(order[other]["clip"] for other in members)))
    return sorted(found, key=lambda group: group.keeper)


class _Table:
    """Hashes by place in the order of keeping."""

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], embeddings: Mapping[str, Sequence[float]], limits: Limits
    ) -> None:
        self.limits = limits
        self.packets = [row["packets"] for row in rows]
        self.pictures = to_bits([row["phash"] for row in rows], PICTURE_BITS)
        self.changes = to_bits([row["change_hash"] for row in rows], CHANGE_BITS)
        self.shows: npt.NDArray[np.bool_] = np.asarray(self.pictures.any(2))
        self.moves: npt.NDArray[np.bool_] = np.asarray(self.changes.any(2))
        self.embedded = np.array([i for i, row in enumerate(rows) if row["clip"] in embeddings], np.int64)
        vectors = [embeddings[rows[i]["clip"]] for i in self.embedded]
        self.vectors = np.asarray(vectors, np.float32)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Places of clips that are the same, the better one first; a pair may come more than once."""
        yield from self._same_packets()
        seen = np.flatnonzero(self.shows.sum(1) >= self.limits.shared)
        flat = self.pictures[seen].reshape(len(seen), MOMENTS * PICTURE_BITS)
        for a, b in candidates(flat):
            near = self._look_alike(seen[a], seen[b])
            yield from zip(seen[a[near]].tolist(), seen[b[near]].tolist(), strict=True)
        if len(self.embedded):
            planes = (
                np.random.default_rng(0).standard_normal((self.vectors.shape[1], PLANES)).astype(np.float32)
            )
            for a, b in candidates(self.vectors @ planes > 0):
                near = self._embed_alike(a, b)
                yield from zip(self.embedded[a[near]].tolist(), self.embedded[b[near]].tolist(), strict=True)

    def _same_packets(self) -> Iterator[tuple[int, int]]:
        first: dict[str, int] = {}
        for index, digest in enumerate(self.packets):
            if first.setdefault(digest, index) != index:
                yield first[digest], index

    def _look_alike(self, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        picture, enough = _distance(self.pictures, self.shows, a, b, self.limits.shared)
        change, tells = _distance(self.changes, self.moves, a, b, self.limits.shared)
        moving = (picture <= self.limits.picture) & (change <= self.limits.change)
        alone = (self.moves[a] ^ self.moves[b]).sum(1)
        return enough & (alone <= self.limits.shared) & np.where(tells, moving, picture <= self.limits.still)

    def _embed_alike(self, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Takes from one tripod embed alike, too: what changes must not speak against it."""
        x, y = (self.vectors[side].reshape(len(side), 3, -1) for side in (a, b))
        lengths = np.linalg.norm(x, axis=2) * np.linalg.norm(y, axis=2)
        cosine = ((x * y).sum(2) / np.maximum(lengths, 1e-12)).mean(1)
        places = self.embedded[a], self.embedded[b]
        change, tells = _distance(self.changes, self.moves, *places, self.limits.shared)
        return np.asarray((cosine >= self.limits.cosine) & (~tells | (change <= self.limits.change)))


def _distance(
    bits: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.bool_],
    a: npt.NDArray[np.int64],
    b: npt.NDArray[np.int64],
    shared: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Share of bits that differ where both count, and whether enough parts do."""
    both = counts[a] & counts[b]
    differ = ((bits[a] ^ bits[b]).sum(2) * both).sum(1)
    return differ / np.maximum(both.sum(1) * bits.shape[2], 1), both.sum(1) >= shared


def candidates(
    bits: npt.NDArray[np.bool_],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(N, B) -> pairs of rows that may be near, the smaller row first, in arrays, one draw of bits after another."""
    number, width = bits.shape
    if number < 2:
        return
    drawn = min(62, width, max(8, math.ceil(math.log2(number))))
    draws = math.ceil(math.log(1 / (1 - CERTAINTY)) / (1 - DESIGNED) ** drawn)
    rng = np.random.default_rng(0)
    weights = 1 << np.arange(drawn, dtype=np.int64)
    for _ in range(draws):
        keys = bits[:, rng.choice(width, drawn, replace=False)] @ weights
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for gap in range(1, min(CROWD, number - 1) + 1):
            same = np.flatnonzero(keys[gap:] == keys[:-gap])
            if not len(same):
                break  # keys are sorted: whoever differs from a neighbour differs from all beyond
            yield order[same], order[same + gap]
