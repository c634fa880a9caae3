"""A study's votes -> the ranking of its models, axis by axis and over all axes, with what it rests on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from svdcli.errors import InputError
from svdcli.evaluate.prefer.ratings import (
    ELO_SCALE,
    ELO_START,
    PRIOR,
    Array,
    Outcomes,
    bootstrap,
    fit_davidson,
    information,
    outcomes_of,
    svd_elo,
    votes_needed,
)
from svdcli.evaluate.prefer.study import Comparison, Study
from svdcli.evaluate.prefer.votes import Vote, failed_checks

Method = Literal["davidson", "svd-elo"]
MOST_FAILED = 1 / 3
"""share of attention checks a rater may fail and still count"""


def rank_study(
    study: Study, votes: Sequence[Vote], method: Method = "davidson", keep_all: bool = False, seed: int = 0
) -> dict[str, Any]:
    """All votes of a study -> ratings by axis and together (`aggregated`: the mean over axes, as in the paper).

    Raters who failed more than a third of their attention checks are left out, and named, unless `keep_all`. Raises InputError
    where no vote is left.
    """
    checks = failed_checks(study, votes)
    excluded = (
        [] if keep_all else sorted(r for r, (failed, seen) in checks.items() if failed > MOST_FAILED * seen)
    )
    kept = [vote for vote in votes if vote.rater not in excluded]
    by_axis, draws = {}, []
    for axis in study.axes:
        outcomes = axis_outcomes(study, kept, axis)
        ratings, result = (rate if method == "davidson" else rate_as_svd)(outcomes, seed)
        by_axis[axis] = result
        draws.append(ratings)
    aggregated = _table(
        tuple(study.models), np.mean([d[0] for d in draws], 0), np.mean([d[1] for d in draws], 0)
    )
    return {
        "kind": "svd-eval-prefer-rank",
        "method": method,
        "axes": by_axis,
        "aggregated": aggregated,
        "num_votes": sum(result["num_votes"] for result in by_axis.values()),
        "num_prompts": len(study.prompts),
        "num_raters": len({vote.rater for vote in kept}),
        "raters_excluded": {
            rater: {"failed": checks[rater][0], "seen": checks[rater][1]} for rater in excluded
        },
        "agreement": agreement(study, kept),
        "notes": study.notes,
    }


def axis_outcomes(study: Study, votes: Iterable[Vote], axis: str) -> Outcomes:
    """The votes on one axis, attention checks left out."""
    known, rows = {c.id: c for c in study.pairs}, []
    for vote in votes:
        asked = known.get(vote.comparison)
        if asked is not None and vote.axis == axis:
            score = {"a": 1.0, "b": 0.0, None: 0.5}[vote.winner]
            rows.append((asked.a, asked.b, score, 1.0 if vote.left == "a" else -1.0, asked.prompt))
    return outcomes_of(rows, tuple(study.models))


def rate(outcomes: Outcomes, seed: int) -> tuple[tuple[Array, Array], dict[str, Any]]:
    """Davidson's model -> ((ratings (M,), their bootstrap (B, M)), the result for JSON)."""
    fit = fit_davidson(outcomes)
    draws = ELO_START + ELO_SCALE * bootstrap(outcomes, seed=seed)
    return (fit.elo, draws), {
        "num_votes": len(outcomes),
        "num_ties": int((outcomes.score == 0.5).sum()),
        "models": _table(outcomes.models, fit.elo, draws),
        "pairs": _pairs(outcomes, fit.elo, draws),
        "left_advantage_elo": ELO_SCALE * fit.side_bias,
        "left_won": float(np.mean(np.where(outcomes.side > 0, outcomes.score, 1 - outcomes.score))),
        "interval": "95 %, bootstrap over prompts",
    }


def rate_as_svd(outcomes: Outcomes, seed: int) -> tuple[tuple[Array, Array], dict[str, Any]]:
    """The paper's Elo -> the same; its interval is over shuffles of the same votes, and so far too short."""
    draws = svd_elo(outcomes, seed=seed)
    return (draws.mean(0), draws), {
        "num_votes": len(outcomes),
        "num_ties": int((outcomes.score == 0.5).sum()),
        "models": _table(outcomes.models, draws.mean(0), draws),
        "interval": "95 %, over 1000 shuffles of the same votes: no measure of certainty; ties are left out",
    }


def _table(models: Sequence[str], ratings: Array, draws: Array) -> list[dict[str, Any]]:
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    order = np.argsort(-ratings, kind="stable")
    return [
        {"model": models[i], "rating": float(ratings[i]), "low": float(low[i]), "high": float(high[i])}
        for i in order
    ]


def _pairs(outcomes: Outcomes, ratings: Array, draws: Array) -> list[dict[str, Any]]:
    """Each pair: what was counted, the gap with its interval, and how many more votes would settle it."""
    found = []
    for i, j in combinations(np.argsort(-ratings, kind="stable").tolist(), 2):
        met = ((outcomes.a == i) & (outcomes.b == j)) | ((outcomes.a == j) & (outcomes.b == i))
        score = np.where(outcomes.a == i, outcomes.score, 1 - outcomes.score)[met]
        gap, gaps = float(ratings[i] - ratings[j]), draws[:, i] - draws[:, j]
        low, high = np.percentile(gaps, [2.5, 97.5])
        needed = 0.0 if low > 0 or high < 0 else votes_needed(gap, float(gaps.std()), len(outcomes))
        found.append(
            {
                "better": outcomes.models[i],
                "worse": outcomes.models[j],
                "won": int((score == 1).sum()),
                "lost": int((score == 0).sum()),
                "tied": int((score == 0.5).sum()),
                "gap": gap,
                "low": float(low),
                "high": float(high),
                "separated": bool(low > 0 or high < 0),
                "more_votes": needed if not np.isfinite(needed) else int(np.ceil(needed)),
            }
        )
    return found


def agreement(study: Study, votes: Sequence[Vote]) -> dict[str, float | int]:
    """How often two raters of one comparison and axis say the same (a, b or a tie); three guesses agree 1 time in 3."""
    pairs, said = {c.id for c in study.pairs}, defaultdict(list)
    for vote in votes:
        if vote.comparison in pairs:
            said[vote.comparison, vote.axis].append(vote.winner)
    met = [x == y for answers in said.values() for x, y in combinations(answers, 2)]
    return {"pairs_of_votes": len(met), "share": float(np.mean(met)) if met else float("nan")}


def active_pick(study: Study) -> Callable[[Iterable[Comparison], list[Vote]], Comparison]:
    """For `VoteStore.next_task`: of the open comparisons one of the pair of models that a vote would teach most about."""
    index = {model: i for i, model in enumerate(study.models)}

    def pick(candidates: Iterable[Comparison], votes: list[Vote]) -> Comparison:
        open_ = list(candidates)
        counts: dict[str, int] = defaultdict(int)
        for vote in votes:
            counts[vote.comparison] += 1
        try:
            gain = information(
                fit_davidson(axis_outcomes(study, votes, votes[0].axis if votes else ""), PRIOR)
            )
        except InputError:  # the first vote of all
            gain = np.ones((len(index), len(index)))
        return max(open_, key=lambda c: (gain[index[c.a], index[c.b]], -counts[c.id]))

    return pick
