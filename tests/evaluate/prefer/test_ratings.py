"""Elo by hand, Davidson's model against its closed form and against simulated raters whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from svdcli.errors import InputError
from svdcli.evaluate.prefer.ratings import (
    ELO_SCALE,
    PRIOR,
    Outcomes,
    bootstrap,
    fit_davidson,
    information,
    outcomes_of,
    svd_elo,
    votes_needed,
)


def simulate(
    rng: np.random.Generator,
    elo: list[float],
    prompts: int,
    votes: int,
    tie: float = 0.5,
    side: float = 0.0,
    spread: float = 0.0,
) -> Outcomes:
    """Raters who follow Davidson's model; `spread` is the standard deviation of what a prompt adds to a model, Elo."""
    num = len(elo)
    pairs = np.array([(i, j) for i in range(num) for j in range(i + 1, num)])
    cluster = np.repeat(np.arange(prompts), len(pairs) * votes)
    a, b = np.tile(np.repeat(pairs, votes, 0), (prompts, 1)).T
    strength = np.array(elo) + rng.normal(0, spread, (prompts, num))
    sides = rng.choice([-1.0, 1.0], len(a))
    d = (strength[cluster, a] - strength[cluster, b] + side * sides) / ELO_SCALE
    chances = np.stack([np.exp(d / 2), np.exp(-d / 2), np.full(len(d), tie)], 1)
    drawn = (rng.random((len(d), 1)) * chances.sum(1, keepdims=True) > chances.cumsum(1)).sum(1)
    return Outcomes(tuple(map(str, range(num))), a, b, np.array([1.0, 0.0, 0.5])[drawn], sides, cluster)


def test_elo_by_hand() -> None:
    """One vote: 0.5 points change hands. Two in a row for the same: 0.5 and then 1 - 1 / (1 + 10^(-1/400))."""
    once = outcomes_of([("x", "y", 1.0, 1.0, "p")], ["x", "y"])
    assert svd_elo(once, shuffles=3).tolist() == [[1000.5, 999.5]] * 3
    twice = outcomes_of([("x", "y", 1.0, 1.0, "p"), ("y", "x", 0.0, 1.0, "q")], ["x", "y"])
    second = 1 - 1 / (1 + 10 ** (-1 / 400))
    assert svd_elo(twice, shuffles=2)[0] == pytest.approx([1000.5 + second, 999.5 - second], abs=1e-12)


def test_elo_depends_on_the_order_which_shuffles_average() -> None:
    """x beats y, y beats z: z first or y first gives two results, both by hand."""
    rows = [("x", "y", 1.0, 1.0, "p"), ("y", "z", 1.0, 1.0, "p")]
    found = svd_elo(outcomes_of(rows, ["x", "y", "z"]), shuffles=200)
    later = 1 - 1 / (1 + 10 ** (0.5 / 400))  # y has lost 0.5 already, or x meets a y that has won 0.5
    first = [1000.5, 999.5 + (1 - 1 / (1 + 10 ** (0.5 / 400))), 1000 - (1 - 1 / (1 + 10 ** (0.5 / 400)))]
    other = [1000 + later, 1000.5 - later, 999.5]
    assert {tuple(np.round(row, 9)) for row in found} == {
        tuple(np.round(first, 9)),
        tuple(np.round(other, 9)),
    }


def test_elo_leaves_ties_out_as_the_paper_has_none() -> None:
    rows = [("x", "y", 1.0, 1.0, "p"), ("x", "y", 0.5, 1.0, "p")]
    assert svd_elo(outcomes_of(rows, ["x", "y"]), shuffles=1).tolist() == [[1000.5, 999.5]]
    with pytest.raises(InputError, match="ties"):
        svd_elo(outcomes_of(rows[1:], ["x", "y"]))


def test_two_models_have_their_closed_form() -> None:
    """60 won, 20 lost, 40 tied: d = ln 3, and nu = tied / sqrt(won lost); the ridge pulls a little."""
    rows = [
        ("x", "y", s, side, "p")
        for s, n in ((1.0, 30), (0.0, 10), (0.5, 20))
        for side in (1.0, -1.0)
        for _ in range(n)
    ]
    fit = fit_davidson(outcomes_of(rows, ["x", "y"]))
    assert fit.strengths[0] - fit.strengths[1] == pytest.approx(np.log(3), rel=2e-3)
    assert np.exp(fit.log_tie) == pytest.approx(40 / np.sqrt(60 * 20), rel=2e-3)
    assert fit.side_bias == pytest.approx(0, abs=1e-9)
    assert fit.strengths.sum() == pytest.approx(0, abs=1e-12)


def test_without_ties_it_is_bradley_terry() -> None:
    rows = [
        ("x", "y", s, side, "p") for s, n in ((1.0, 30), (0.0, 10)) for side in (1.0, -1.0) for _ in range(n)
    ]
    fit = fit_davidson(outcomes_of(rows, ["x", "y"]))
    assert fit.strengths[0] - fit.strengths[1] == pytest.approx(np.log(3), rel=2e-3)
    assert fit.log_tie == -np.inf


def test_a_model_that_always_wins_keeps_a_finite_rating() -> None:
    fit = fit_davidson(outcomes_of([("x", "y", 1.0, 1.0, "p")] * 50, ["x", "y", "z"]))
    assert np.isfinite(fit.elo).all() and fit.elo.argmax() == 0


def test_a_habit_of_one_side_is_told_apart_from_strength() -> None:
    """x stands left in 9 of 10 votes, and raters favour the left by 80 points; the two models are equal."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(4000):
        side = 1.0 if rng.random() < 0.9 else -1.0
        rows.append(("x", "y", float(rng.random() < 1 / (1 + np.exp(-side * 80 / ELO_SCALE))), side, "p"))
    fit = fit_davidson(outcomes_of(rows, ["x", "y"]))
    assert abs(fit.elo[0] - fit.elo[1]) < 40
    assert fit.side_bias * ELO_SCALE == pytest.approx(80, abs=20)
    naive = 2 * np.mean([row[2] for row in rows]) - 1
    assert naive > 0.15  # what counting wins would have said


def test_the_true_order_is_recovered() -> None:
    """Four models 40 points apart, 2016 votes: at least 18 of 20 studies put all four in order."""
    rng, right = np.random.default_rng(1), 0
    for _ in range(20):
        fit = fit_davidson(simulate(rng, [60, 20, -20, -60], prompts=64, votes=5))
        right += np.argsort(-fit.elo).tolist() == [0, 1, 2, 3]
    assert right >= 18


def test_intervals_over_prompts_cover_the_truth_where_those_over_shuffles_do_not() -> None:
    """The paper's size (64 prompts, 3 votes), prompts of sd 80 Elo: the truth is the fit to very many prompts."""
    rng, models = np.random.default_rng(2), [60.0, -60.0]
    settings = {"votes": 3, "spread": 80.0}
    large = fit_davidson(simulate(rng, models, prompts=40_000, **settings)).elo  # type: ignore[arg-type]
    truth, covered, covered_by_shuffles = large[0] - large[1], 0, 0
    for _ in range(60):
        outcomes = simulate(rng, models, prompts=64, **settings)  # type: ignore[arg-type]
        gaps = ELO_SCALE * bootstrap(outcomes, num=200)
        low, high = np.percentile(gaps[:, 0] - gaps[:, 1], [2.5, 97.5])
        covered += low <= truth <= high
        shuffled = svd_elo(outcomes, shuffles=100)
        low, high = np.percentile(shuffled[:, 0] - shuffled[:, 1], [2.5, 97.5])
        covered_by_shuffles += low <= truth <= high
    assert covered >= 52, covered
    assert covered_by_shuffles <= 6


def test_votes_needed_follow_the_square_of_the_error() -> None:
    assert votes_needed(100, 10, 500) == 0
    assert votes_needed(28.01585, 20, 500) == pytest.approx(
        1500, abs=1
    )  # twice too wide: four times the votes
    assert votes_needed(0, 10, 500) == np.inf


def test_the_number_of_votes_it_asks_for_does_separate() -> None:
    """20 prompts leave two models unseparated; with as many as it asks for, most studies separate them."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        few = simulate(rng, [15, -15], prompts=20, votes=3)
        fit, draws = fit_davidson(few), bootstrap(few, num=300)
        gap, error = fit.strengths[0] - fit.strengths[1], float((draws[:, 0] - draws[:, 1]).std())
        if 25 < gap * ELO_SCALE < 35:  # a draw near the truth
            break
    prompts = int(np.ceil((len(few) + votes_needed(gap, error, len(few))) / 3))
    separated = 0
    for _ in range(20):
        draws = bootstrap(simulate(rng, [15, -15], prompts=prompts, votes=3), num=100)
        separated += np.percentile(draws[:, 0] - draws[:, 1], 2.5) > 0
    assert 12 <= separated <= 20


def test_a_settled_pair_teaches_less_than_an_open_one() -> None:
    sides = (1.0, -1.0)
    rows = [("x", "y", float(won), side, "p") for won in (0, 1) for side in sides for _ in range(10)]
    rows += [("x", "z", 1.0, side, "p") for side in sides for _ in range(20)]
    gain = information(fit_davidson(outcomes_of(rows, ["x", "y", "z"]), PRIOR))
    assert gain[0, 1] > gain[0, 2]
    assert gain == pytest.approx(gain.T) and not gain.diagonal().any()


def test_active_choice_ranks_with_fewer_votes_than_an_equal_share() -> None:
    """Two close models and two far ones: in as many votes, the close pair comes out right more often."""

    def run(active: bool, seed: int) -> bool:
        rng, elo = np.random.default_rng(seed), np.array([300.0, 30.0, 0.0, -300.0])
        pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
        rows = [(str(i), str(j), 0.5, 1.0, "p") for i, j in pairs]
        for step in range(120):
            i, j = pairs[step % 6]
            if active and step % 6 == 0 or step == 0:
                gain = information(fit_davidson(outcomes_of(rows, list("0123")), PRIOR))
                best = max(pairs, key=lambda pair: gain[pair])
            i, j = best if active else (i, j)
            won = rng.random() < 1 / (1 + np.exp(-(elo[i] - elo[j]) / ELO_SCALE))
            rows.append((str(i), str(j), float(won), rng.choice([-1.0, 1.0]), "p"))
        fit = fit_davidson(outcomes_of(rows, list("0123")))
        return bool(fit.elo[1] > fit.elo[2])

    equal, chosen = (sum(run(active, seed) for seed in range(24)) for active in (False, True))
    assert chosen >= equal + 2, (equal, chosen)
