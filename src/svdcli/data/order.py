"""The order of a dataset: which clip comes at which place, as a pure function of the seed.

What it is: a true shuffle of the whole dataset, every round anew, that holds nothing and remembers nothing: the
clip of step 10,000 is computed, not reached. So a resumed run needs no state, and the ranks share the places
without ever speaking. What it is not: a reader; see `footage`.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

ROUNDS = 6


def permute(number: int, count: int, *key: int) -> int:
    """The place of `number` in a pseudorandom permutation of range(count), one for every key of integers.

    A balanced Feistel network on the next even power of two, walked until it falls into the range (Black and
    Rogaway 2002, Ciphers with arbitrary finite domains): four walks at the most on average.
    """
    if not 0 <= number < count:
        raise ValueError(f"{number} is not in range({count})")
    half = max(1, ceil((count - 1).bit_length() / 2))
    while True:
        left, right = number >> half, number & ((1 << half) - 1)
        for turn in range(ROUNDS):
            left, right = right, left ^ (_mixed(right, turn, key) & ((1 << half) - 1))
        number = left << half | right
        if number < count:
            return number


def _mixed(value: int, turn: int, key: tuple[int, ...]) -> int:
    data = struct.pack(f"<Qq{len(key)}q", value, turn, *key)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Order:
    """Batches, each of one bucket; buckets take turns, evenly, in proportion to how many clips they hold.

    In a bucket, clips come in rounds: all of it in a new order, then all again. With one bucket, batches of B
    at n places are the same clips as batches of n B at one.
    """

    counts: tuple[int, ...]
    """clips in each bucket, none empty"""
    batch_size: int
    seed: int

    def batch(self, number: int) -> tuple[int, list[int]]:
        """Batch `number` of the whole run -> its bucket, and which of the bucket's clips it holds."""
        bucket, turn = whose_turn(number, self.counts)
        return bucket, [
            self.clip(bucket, turn * self.batch_size + sample) for sample in range(self.batch_size)
        ]

    def clip(self, bucket: int, place: int) -> int:
        """The clip at a place in a bucket's endless row of rounds."""
        round_, number = divmod(place, self.counts[bucket])
        return permute(number, self.counts[bucket], self.seed, round_, bucket)


def whose_turn(number: int, counts: tuple[int, ...]) -> tuple[int, int]:
    """Turn `number` of all -> (whose it is, how many that one had before).

    The j-th turn of a bucket of n clips is due at (j + ½) / n; turns are sorted by that. After any number of
    turns, each bucket had its share of them, to within the number of buckets.
    """
    if len(counts) == 1:
        return 0, number
    begin = max(Fraction(0), Fraction(number - len(counts), sum(counts)))  # what lies before is surely past
    end = Fraction(number + len(counts) + 1, sum(counts))
    firsts = [max(0, ceil(begin * n - Fraction(1, 2))) for n in counts]
    due = []
    for bucket, (n, first) in enumerate(zip(counts, firsts, strict=True)):
        last = ceil(end * n - Fraction(1, 2))
        due += [(Fraction(2 * j + 1, 2 * n), bucket, j) for j in range(first, last + 1)]
    _, bucket, turn = sorted(due)[number - sum(firsts)]
    return bucket, turn
