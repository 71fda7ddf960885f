"""What a difference between two networks is worth: Wilcoxon signed-rank test, Holm correction, paired bootstrap.

As in `MSTKDSegmentLib.statistics` the patient is the unit: the Wilcoxon test sees one mean difference a patient.
Sources: Wilcoxon 1945, Holm 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from MSTKDSegmentLib.statistics import Estimate, estimate, patient_numbers


@dataclass(frozen=True)
class PairedComparison:
    """Method minus reference: mean difference over cases with its interval, and the Wilcoxon p over patients."""

    difference: Estimate
    p: float


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
    clusters = patient_numbers(differences.size, patients)
    by_patient = np.bincount(clusters, differences) / np.bincount(clusters)
    return PairedComparison(estimate(differences, patients, seed=seed), wilcoxon_p(by_patient))
