"""What a mean over cases is worth: percentile bootstrap by patient.

Cases of one patient (several time points) are not independent, so the patient is the unit: the bootstrap draws patients
with all their cases. Source: Efron and Tibshirani 1993.
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
    weights = _drawn_weights(tuple(patient_numbers(values.size, patients).tolist()), seed, samples)
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
    return Estimate(value, low, high, values.size, len(np.unique(patient_numbers(values.size, patients))))


def patient_numbers(count: int, patients: Sequence[str] | None) -> np.ndarray:
    """(count,) the number 0, 1, ... of each value's patient; ValueError for another length of `patients`."""
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
