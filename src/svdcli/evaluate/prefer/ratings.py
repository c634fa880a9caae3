"""From votes to ratings: Elo as in the SVD paper, and Bradley-Terry with ties and a side bias (Davidson 1970).

Why two: with K = 1 and 1000 votes Elo has not converged, its spread over shuffles is not the spread over studies, and
it knows neither ties nor a preference for one side. It is here to be compared with the paper, not to be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from svdcli.errors import InputError

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ELO_SCALE = 400 / np.log(10)
"""Elo points a unit of log-odds."""
ELO_START = 1000.0
RIDGE = 0.02
"""Pull of each strength towards the mean, in votes: a model that won every vote keeps a finite rating."""
PRIOR = 0.3
"""The same where the next pair is chosen: before a few votes nothing is taken for settled, or for wide open."""
BOOTSTRAPS = 1000
POWER_95_80 = 1.959964 + 0.841621
"""Standard errors between two models for a 95 % interval that leaves out 0 in 80 of 100 studies."""


@dataclass(frozen=True)
class Outcomes:
    """Votes as numbers, one row each; `a` and `b` index `models`."""

    models: tuple[str, ...]
    a: Ints
    b: Ints
    score: Array
    """1 where a won, 0 where b did, 0.5 for a tie"""
    side: Array
    """+1 where a stood left, -1 where it stood right"""
    cluster: Ints
    """the prompt"""

    def __post_init__(self) -> None:
        if not len(self.a):
            raise InputError(
                "There are no votes to rank.", "Ask some people first: svd eval prefer serve STUDY"
            )

    def __len__(self) -> int:
        return len(self.a)


# ---- Elo, as in the paper


def svd_elo(
    outcomes: Outcomes, shuffles: int = 1000, k: float = 1.0, start: float = ELO_START, seed: int = 0
) -> Array:
    """Ratings after each of `shuffles` random orders of the votes: (shuffles, M); the paper reports their mean.

    E_a = 1 / (1 + 10^((R_b - R_a) / 400)), R += K (S - E), S in {0, 1} (SVD app. E.1): ties are left out, as the paper has
    none. Raises InputError where nothing but ties is left.
    """
    decided = np.flatnonzero(outcomes.score != 0.5)
    if not len(decided):
        raise InputError(
            "All votes are ties, which Elo of the paper does not know.", "Use the default method."
        )
    a, b, score = outcomes.a[decided], outcomes.b[decided], outcomes.score[decided]
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(len(decided)) for _ in range(shuffles)], axis=1)
    ratings, rows = np.full((shuffles, len(outcomes.models)), float(start)), np.arange(shuffles)
    for order in orders:
        first, second = a[order], b[order]
        gap = ratings[rows, second] - ratings[rows, first]
        change = k * (score[order] - 1 / (1 + 10 ** (gap / 400)))
        ratings[rows, first] += change
        ratings[rows, second] -= change
    return ratings


# ---- Bradley-Terry with ties


@dataclass(frozen=True)
class Fit:
    """Strengths in log-odds, their sum 0; how much the left side gains; log of the tie parameter (-inf: no ties)."""

    strengths: Array
    side_bias: float
    log_tie: float
    covariance: Array
    """(M, M), of the strengths, from the curvature; votes of one prompt counted as independent"""

    @property
    def elo(self) -> Array:
        return ELO_START + ELO_SCALE * self.strengths


def fit_davidson(outcomes: Outcomes, ridge: float = RIDGE) -> Fit:
    """Maximum likelihood, with a weak ridge on every parameter.

    With d = theta_a - theta_b + side * gamma: P(a) : P(b) : P(tie) = e^(d/2) : e^(-d/2) : nu.
    """
    cells = _Cells.of(outcomes)
    return cells.fit(cells.counts(np.ones(len(outcomes))), ridge)


@dataclass(frozen=True)
class _Cells:
    """Votes that differ in nothing but the prompt, counted together: a refit then costs next to nothing."""

    num_models: int
    design: Array
    """(cells, M + 1): +1 and -1 for the two models, the side"""
    score: Array
    inverse: Ints
    """cell of each vote"""

    @classmethod
    def of(cls, outcomes: Outcomes) -> _Cells:
        rows = np.stack([outcomes.a, outcomes.b, outcomes.score * 2, outcomes.side], 1)
        unique, inverse = np.unique(rows, axis=0, return_inverse=True)
        num_models = len(outcomes.models)
        design = np.zeros((len(unique), num_models + 1))
        index = np.arange(len(unique))
        design[index, unique[:, 0].astype(int)] = 1
        design[index, unique[:, 1].astype(int)] = -1
        design[:, -1] = unique[:, 3]
        return cls(num_models, design, unique[:, 2] / 2, inverse.reshape(-1))

    def counts(self, weights: Array) -> Array:
        return np.asarray(np.bincount(self.inverse, weights, minlength=len(self.score)), dtype=np.float64)

    def fit(self, counts: Array, ridge: float = RIDGE) -> Fit:
        x, curvature = self.maximise(counts[None], ridge)
        num, tied = self.num_models, x.shape[1] > self.num_models + 1
        theta, spread = x[0, :num], np.linalg.inv(curvature[0])[:num, :num]
        log_tie = float(x[0, -1]) if tied else -np.inf
        return Fit(theta - theta.mean(), float(x[0, num]), log_tie, np.asarray(spread, dtype=np.float64))

    def maximise(
        self, counts: Array, ridge: float, start: Array | None = None, steps: int = 60
    ) -> tuple[Array, Array]:
        """Counts (B, cells) -> B maxima (B, P), strengths first, and the curvature there (B, P, P).

        Newton's method on all at once, a step halved where it would overshoot; the likelihood is concave.
        """
        tied = bool(counts[:, self.score == 0.5].any())
        x = np.zeros((len(counts), self.num_models + 1 + tied)) if start is None else start.copy()
        value, gradient, curvature = self._likelihood(x, counts, ridge)
        for _ in range(steps):
            step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
            for _ in range(20):
                trial = self._likelihood(x + step, counts, ridge)
                worse = trial[0] < value - 1e-12 * np.abs(value)
                if not worse.any():
                    break
                step[worse] /= 2
            x = x + step
            value, gradient, curvature = trial
            if np.abs(step).max() < 1e-9:
                break
        return x, curvature

    def _likelihood(self, x: Array, counts: Array, ridge: float) -> tuple[Array, Array, Array]:
        """Penalised log-likelihood (B,), its gradient (B, P), and minus its Hessian (B, P, P)."""
        size, tied = self.num_models + 1, x.shape[1] > self.num_models + 1
        d = x[:, :size] @ self.design.T
        log_nu = x[:, size:] if tied else np.full((len(x), 1), -np.inf)
        peak = np.maximum(np.abs(d) / 2, log_nu)  # of the three exponents, so that none overflows
        up, down, nu = np.exp(d / 2 - peak), np.exp(-d / 2 - peak), np.exp(log_nu - peak)
        total = up + down + nu
        p_tie, lead, is_tie = nu / total, (up - down) / total, self.score == 0.5
        said = np.where(is_tie, log_nu if tied else 0.0, d * (self.score - 0.5))
        value = (counts * (said - np.log(total) - peak)).sum(1) - 0.5 * ridge * np.square(x).sum(1)
        gradient = (counts * (self.score - 0.5 - lead / 2)) @ self.design
        curvature = np.einsum("bc,ci,cj->bij", counts * (1 - p_tie - lead**2) / 4, self.design, self.design)
        if tied:
            gradient = np.concatenate([gradient, (counts * (is_tie - p_tie)).sum(1, keepdims=True)], 1)
            cross = (-counts * p_tie * lead / 2) @ self.design
            corner = (counts * p_tie * (1 - p_tie)).sum(1)[:, None, None]
            top = np.concatenate([curvature, cross[..., None]], 2)
            curvature = np.concatenate([top, np.concatenate([cross[:, None], corner], 2)], 1)
        return value, gradient - ridge * x, curvature + ridge * np.eye(x.shape[1])


def bootstrap(outcomes: Outcomes, num: int = BOOTSTRAPS, seed: int = 0) -> Array:
    """Strengths (num, M) refitted to prompts drawn with replacement, all votes of a prompt together.

    Prompts, not votes, are what another study would draw anew: resampling votes alone gives intervals that are too short.
    """
    rng, cells = np.random.default_rng(seed), _Cells.of(outcomes)
    names, cluster = np.unique(outcomes.cluster, return_inverse=True)
    table = np.zeros((len(names), len(cells.score)))
    np.add.at(table, (cluster.reshape(-1), cells.inverse), 1)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num) @ table
    whole, _ = cells.maximise(cells.counts(np.ones(len(outcomes)))[None], RIDGE)
    found, _ = cells.maximise(draws, RIDGE, np.repeat(whole, num, axis=0))
    strengths = found[:, : cells.num_models]
    return np.asarray(strengths - strengths.mean(1, keepdims=True), dtype=np.float64)


def votes_needed(gap: float, standard_error: float, num_votes: int) -> float:
    """How many more votes of the same design separate two models, `gap` apart, in 80 of 100 studies.

    Standard errors shrink with the root of the number of votes, prompts growing along. 0 where there are enough already.
    """
    if gap == 0:
        return float("inf")
    return max(0.0, num_votes * ((POWER_95_80 * standard_error / abs(gap)) ** 2 - 1))


def information(fit: Fit) -> Array:
    """(M, M): how much one more vote on a pair would sharpen the ranking.

    The variance of their difference times that of the vote itself, less where the two are far apart in standard errors: pairs
    that are settled need no more votes. Fit with PRIOR.
    """
    diagonal = np.diag(fit.covariance)
    variance = diagonal[:, None] + diagonal[None] - 2 * fit.covariance
    gap = fit.strengths[:, None] - fit.strengths[None]
    decided = 1 / (1 + np.exp(-gap))
    with np.errstate(divide="ignore", invalid="ignore"):
        doubt = np.exp(-0.5 * np.where(variance > 0, gap**2 / variance, 0))
    gain = variance * decided * (1 - decided) * (0.05 + doubt)
    np.fill_diagonal(gain, 0)
    return np.asarray(gain)


def outcomes_of(rows: Sequence[tuple[str, str, float, float, str]], models: Sequence[str]) -> Outcomes:
    """Rows (model a, model b, score, side, prompt) -> Outcomes. Raises InputError where there are none."""
    index = {model: i for i, model in enumerate(models)}
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(row[4] for row in rows))}
    return Outcomes(
        tuple(models),
        np.array([index[row[0]] for row in rows], np.int64),
        np.array([index[row[1]] for row in rows], np.int64),
        np.array([row[2] for row in rows], float),
        np.array([row[3] for row in rows], float),
        np.array([prompts[row[4]] for row in rows], np.int64),
    )
