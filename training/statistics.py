"""What a difference between two networks is worth: bootstrap by patient, Wilcoxon signed-rank test, Holm correction.

Cases of one patient (several time points) are not independent, so the patient is the unit everywhere: the bootstrap
draws patients with all their cases, and the Wilcoxon test sees one mean difference a patient.
Sources: Efron and Tibshirani 1993 (percentile bootstrap), Wilcoxon 1945, Holm 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BOOTSTRAP_SAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic over cases with its 95 % bootstrap interval by patient."""

    value: float
    low: float
    high: float
    cases: int
    patients: int


@dataclass(frozen=True)
class PairedComparison:
    """Method minus reference: mean difference over cases with its interval, and the Wilcoxon p over patients."""

    difference: Estimate
    p: float


def bootstrap_interval(
    values: np.ndarray,
    patients: Sequence[str] | None = None,
    statistic: str = "mean",
    seed: int = 0,
    samples: int = BOOTSTRAP_SAMPLES,
) -> tuple[float, float]:
    """95 % percentile interval of the mean or median of (cases,) `values`, drawing patients with replacement.

    `patients` names each value's patient (None: every case is its own); all cases of a patient are drawn together.
    Raises ValueError for no values, another length of `patients` or another statistic. NaN gives NaN.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not values.size:
        raise ValueError("an interval needs at least one value in one dimension")
    weights = _drawn_weights(tuple(_cluster_numbers(values.size, patients).tolist()), seed, samples)
    if statistic == "mean":
        drawn = weights @ values / weights.sum(axis=1)
    elif statistic == "median":
        drawn = _weighted_medians(values, weights)
    else:
        raise ValueError(f"unknown statistic {statistic!r}; known: mean, median")
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, (tail, 100 - tail))
    return float(low), float(high)


def estimate(
    values: np.ndarray, patients: Sequence[str] | None = None, statistic: str = "mean", seed: int = 0
) -> Estimate:
    """Mean or median of (cases,) `values` with its interval; errors as in `bootstrap_interval`."""
    values = np.asarray(values, float)
    low, high = bootstrap_interval(values, patients, statistic, seed)
    value = float(np.mean(values) if statistic == "mean" else np.median(values))
    return Estimate(value, low, high, values.size, len(np.unique(_cluster_numbers(values.size, patients))))


def _cluster_numbers(count: int, patients: Sequence[str] | None) -> np.ndarray:
    if patients is None:
        return np.arange(count)
    if len(patients) != count:
        raise ValueError(f"{count} values but {len(patients)} patients")
    order = {name: number for number, name in enumerate(dict.fromkeys(patients))}
    return np.array([order[name] for name in patients])


@lru_cache(maxsize=2)
def _drawn_weights(clusters: tuple[int, ...], seed: int, samples: int) -> np.ndarray:
    """(samples, cases): how often each case is in each bootstrap sample. A table asks for the same draws many times."""
    count = max(clusters) + 1
    draws = np.random.default_rng(seed).integers(0, count, (samples, count))
    flat = draws + count * np.arange(samples)[:, None]
    return np.bincount(flat.ravel(), minlength=samples * count).reshape(samples, count)[:, list(clusters)].astype(float)


def _weighted_medians(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The median of each row's sample, in which value i stands weights[row, i] times."""
    if np.isnan(values).any():
        return np.full(len(weights), np.nan)
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(weights[:, order], axis=1)
    total = upto[:, -1:]
    lower, upper = np.floor((total - 1) / 2), np.floor(total / 2)
    first, second = ((upto <= rank).sum(axis=1) for rank in (lower, upper))
    return (values[order][first] + values[order][second]) / 2


def wilcoxon_p(differences: np.ndarray) -> float:
    """Two-sided p of the Wilcoxon signed-rank test that paired differences lie around 0 (zeros are left out of ranks).

    All differences zero: p = 1, for nothing speaks against equality. NaN gives NaN; ValueError without a value.
    """
    from scipy.stats import wilcoxon

    # Rounding keeps equal differences equal: 0.3 - 0.2 and 0.2 - 0.1 must tie.
    differences = np.round(np.asarray(differences, float), 12)
    if not differences.size:
        raise ValueError("the Wilcoxon test needs at least one pair")
    if np.isnan(differences).any():
        return float("nan")
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences, zero_method="wilcox", alternative="two-sided").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values of one family, in the order given.

    The k-th smallest of m (k from 0) is multiplied by m - k, made no smaller than its predecessor and at most 1. NaN
    stays NaN and still counts in m. Raises ValueError for values outside 0..1.
    """
    p = np.asarray(p_values, float)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p-values lie between 0 and 1")
    order = np.argsort(p, kind="stable")  # NaN last
    stepped = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def compare_paired(
    values: np.ndarray, reference: np.ndarray, patients: Sequence[str] | None = None, seed: int = 0
) -> PairedComparison:
    """`values` against `reference`, (cases,) each, in the same order of cases.

    Raises ValueError when the two differ in length, or as in `bootstrap_interval`.
    """
    values, reference = np.asarray(values, float), np.asarray(reference, float)
    if values.shape != reference.shape:
        raise ValueError(f"paired values differ in number: {values.shape} and {reference.shape}")
    differences = values - reference
    clusters = _cluster_numbers(differences.size, patients)
    by_patient = np.bincount(clusters, differences) / np.bincount(clusters)
    return PairedComparison(estimate(differences, patients, seed=seed), wilcoxon_p(by_patient))
