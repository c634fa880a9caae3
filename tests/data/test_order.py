"""The order of clips: each once a round, ranks apart, resumed where it stopped, buckets in proportion."""

from __future__ import annotations

import itertools

import pytest

from svdcli.data.order import Order, permute, whose_turn


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 100, 1000])
def test_a_permutation_for_every_key(count: int) -> None:
    rounds = [[permute(i, count, 5, round_, 0) for i in range(count)] for round_ in range(3)]
    assert all(sorted(numbers) == list(range(count)) for numbers in rounds)
    if count >= 16:
        assert len({tuple(numbers) for numbers in rounds}) == 3
        assert rounds[0] != [permute(i, count, 6, 0, 0) for i in range(count)]


def test_the_shuffle_is_global() -> None:
    """Not a window that slides: the first tenth comes from everywhere, neighbours do not stay together."""
    numbers = [permute(i, 10_000, 0, 0, 0) for i in range(1000)]
    tenths = [sum(1 for n in numbers if n // 1000 == tenth) for tenth in range(10)]
    assert min(tenths) > 60 and max(tenths) < 145
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(numbers)) < 5


def test_half_a_billion_clips_are_not_held() -> None:
    assert 0 <= permute(123_456_789, 577_000_000, 1, 2, 0) < 577_000_000
    with pytest.raises(ValueError):
        permute(3, 3, 0)


def test_every_clip_once_a_round_and_ranks_apart() -> None:
    order = Order((24,), 2, seed=3)
    world, steps = 3, 4
    seen = [order.batch(step * world + rank)[1] for step in range(steps) for rank in range(world)]
    assert sorted(itertools.chain(*seen)) == list(range(24))
    following = [order.batch(steps * world + k)[1] for k in range(12)]
    assert sorted(itertools.chain(*following)) == list(range(24)) and following != seen


def test_one_process_of_a_doubled_batch_sees_the_same() -> None:
    two, one = Order((37,), 2, seed=0), Order((37,), 4, seed=0)
    for step in range(40):
        assert two.batch(2 * step)[1] + two.batch(2 * step + 1)[1] == one.batch(step)[1]


def test_a_resumed_run_goes_on() -> None:
    straight = [Order((10, 5), 3, seed=1).batch(k) for k in range(30)]
    assert [Order((10, 5), 3, seed=1).batch(k) for k in range(17, 30)] == straight[17:]
    assert [Order((10, 5), 3, seed=2).batch(k) for k in range(30)] != straight


@pytest.mark.parametrize("counts", [(1,), (1, 1), (100, 7, 1, 33), (5, 5, 5), (1, 1000)])
def test_turns_are_fair_at_any_time(counts: tuple[int, ...]) -> None:
    had = [0] * len(counts)
    for number in range(2 * sum(counts)):
        bucket, turn = whose_turn(number, counts)
        assert turn == had[bucket]
        had[bucket] += 1
        for n, count in zip(had, counts, strict=True):
            assert abs(n - (number + 1) * count / sum(counts)) < len(counts)
    assert had == [2 * count for count in counts]


def test_a_batch_is_of_one_bucket_whose_clips_all_come() -> None:
    order, seen = Order((8, 4), 2, seed=0), {0: [], 1: []}  # type: ignore[var-annotated]
    for number in range(6):
        bucket, clips = order.batch(number)
        seen[bucket] += clips
    assert sorted(seen[0]) == list(range(8)) and sorted(seen[1]) == list(range(4))
