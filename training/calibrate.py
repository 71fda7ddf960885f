"""Thresholds, evidence and calibration for a bundle's card, chosen on validation patients in one pass over 15 subsets.

Everything is read from histograms: for each patient, subset and region, how many voxels have which probability, and how
many of these are tumour. Dice at any threshold, calibration errors and fits follow from them. What is reported is
honest about so few patients: each is scored with what was chosen on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

import numpy as np
from MSTKDSegmentLib.accelerator import AcceleratedNetwork
from MSTKDSegmentLib.decision import MARGIN, Decision, surest_background
from MSTKDSegmentLib.modalities import SUBSETS, subset_name
from MSTKDSegmentLib.regions import CAVITY, labels_to_regions, region_probabilities
from scipy.optimize import minimize
from torch import nn

from training.scores import REGIONS
from training.validation import predicted_probabilities

BINS = 200
PROBABILITIES = np.arange(BINS + 1) / BINS
# Voxels of lower probability are nearly all healthy brain and would hide every error in the mean.
LEAST_COUNTED = 2
# Thresholds that are tried. Lower ones gained under a point of mean Dice on validation, but drew several times the real
# volume of regions that the sequences do not show.
TRIED = range(int(0.2 * BINS), int(0.7 * BINS) + 1)
# Of thresholds whose mean Dice differs by less than this the one nearest to one half is taken.
WORTH = 0.002
# Share of the logit of the least sure patient that is asked for: the largest simple one that, chosen on the other nine
# validation patients, leaves out no more tumours than one half does (one of 150, at 0.75 four).
EVIDENCE = 2 / 3
# A bin that no voxel reaches.
NOTHING = BINS + 1
RELIABILITY_BINS = 10


@dataclass(frozen=True)
class Histogram:
    """Of one patient, subset and region: voxels by probability (201,), those of them in the reference, its size."""

    voxels: np.ndarray
    tumour: np.ndarray
    reference: int

    def dice(self, threshold: int) -> float:
        """Where voxels of `threshold` / 200 and more are drawn; 1 if both are empty."""
        drawn = int(self.voxels[threshold:].sum())
        if drawn + self.reference == 0:
            return 1.0
        return float(2 * self.tumour[threshold:].sum() / (drawn + self.reference))


Histograms = Mapping[tuple[str, str, str], Histogram]
"""By (case, subset, region)."""
Doubts = Mapping[tuple[str, str], float]
"""By (case, subset): `decision.surest_background`, how unsure the network is even of what it is surest of."""


def histogram(probabilities: np.ndarray, reference: np.ndarray) -> Histogram:
    """From probabilities 0..1 and a mask of the same shape."""
    binned = np.rint(np.clip(probabilities, 0, 1) * BINS).astype(np.uint8)
    voxels = np.bincount(binned.ravel(), minlength=BINS + 1)
    tumour = np.bincount(binned[reference], minlength=BINS + 1)
    return Histogram(voxels, tumour, int(np.count_nonzero(reference)))


def measured(
    network: nn.Module | AcceleratedNetwork,
    images: np.ndarray,
    labels: np.ndarray,
    device: str,
    subsets: Sequence[tuple[str, ...]] = SUBSETS,
) -> tuple[dict[tuple[str, str], Histogram], dict[str, float]]:
    """Histograms by (subset, region) and doubts by subset of a prepared case: images (4, D, H, W), labels (D, H, W)."""
    truth = labels_to_regions(np.where(labels == CAVITY, 0, labels))
    found, doubts = {}, {}
    for subset in subsets:
        probabilities, _ = predicted_probabilities(network, images, subset, device)
        doubts[subset_name(subset)] = surest_background(probabilities[0])
        for region, probability in zip(REGIONS, region_probabilities(probabilities)):
            found[subset_name(subset), region] = histogram(probability, truth[region])
    return found, doubts


# --- thresholds ---


def best_threshold(group: Sequence[Histogram]) -> int:
    """The bin with the highest mean Dice over `group`, near one half where it makes no difference."""
    means = {threshold: float(np.mean([one.dice(threshold) for one in group])) for threshold in TRIED}
    top = max(means.values())
    return min((t for t, mean in means.items() if mean >= top - WORTH), key=lambda t: abs(t - BINS // 2))


def least_evidence(doubts: Sequence[float]) -> float:
    """How sure the network must be of a tumour: `EVIDENCE` of the logit of the patient that it is least sure of.

    doubts: `surest_background` of patients with a tumour. Each of them keeps it, as would one of whom the network is a
    third less sure than of the least sure; 1 - `MARGIN` at most. 0 (no rule) where it is not sure of them all.
    """
    most = max(doubts, default=1.0)
    return 0.0 if most >= 0.5 else float(min(1 / (1 + (most / (1 - most)) ** EVIDENCE), 1 - MARGIN))


def _asked_for(cases: Sequence[tuple[float, bool]]) -> float:
    """`least_evidence` of those that have a tumour: (doubt, whether they have one)."""
    return least_evidence([doubt for doubt, ill in cases if ill])


T = TypeVar("T")
Chosen = TypeVar("Chosen")


def _left_out(group: Sequence[T], patients: Sequence[str], chosen: Callable[[Sequence[T]], Chosen]) -> list[Chosen]:
    """What `chosen` gives for each member of `group` from those of other patients."""
    known = {one: chosen([h for h, other in zip(group, patients) if other != one]) for one in set(patients)}
    return [known[one] for one in patients]


# --- calibration ---


def fitted_curve(group: Sequence[Histogram]) -> tuple[float, float]:
    """Slope and offset that make the probabilities of `group` true: logistic regression on their logits.

    Patients count by their voxels of probability 0.01 or more; a weak pull towards leaving them as they are.
    """
    p = np.clip(PROBABILITIES, MARGIN, 1 - MARGIN)[LEAST_COUNTED:]
    x = np.log(p / (1 - p))
    voxels = sum(one.voxels[LEAST_COUNTED:].astype(float) for one in group)
    tumour = sum(one.tumour[LEAST_COUNTED:].astype(float) for one in group)
    total = max(float(np.sum(voxels)), 1.0)

    def loss(curve: np.ndarray) -> float:
        z = curve[0] * x + curve[1]
        misfit = (np.logaddexp(0, z) * voxels - z * tumour).sum() / total
        return float(misfit + 1e-3 * ((curve[0] - 1) ** 2 + curve[1] ** 2))

    slope, offset = minimize(loss, np.array([1.0, 0.0]), method="L-BFGS-B", bounds=[(0.05, 5), (-6, 6)]).x
    return float(slope), float(offset)


def curve_at_bins(curve: tuple[float, float]) -> np.ndarray:
    """(201,) calibrated probability of each bin."""
    p = np.clip(PROBABILITIES, MARGIN, 1 - MARGIN)
    return 1 / (1 + np.exp(-(curve[0] * np.log(p / (1 - p)) + curve[1])))


@dataclass(frozen=True)
class Reliability:
    """Expected calibration error, and by tenth of probability: voxels, their mean probability, the share of tumour."""

    error: float
    voxels: tuple[int, ...]
    probability: tuple[float, ...]
    tumour: tuple[float, ...]


def reliability(group: Sequence[Histogram], claimed: Sequence[np.ndarray]) -> Reliability:
    """Of all voxels of `group` with a network probability of 0.01 or more; `claimed` (201,) is what each bin says.

    The expected calibration error is the mean difference between claimed and real share of tumour over the tenths,
    weighted by their voxels (Guo et al. 2017).
    """
    sums = np.zeros((3, RELIABILITY_BINS))
    for one, claims in zip(group, claimed):
        voxels, tumour, values = (a[LEAST_COUNTED:] for a in (one.voxels, one.tumour, claims))
        tenth = np.minimum((values * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
        for row, weights in enumerate((voxels, voxels * values, tumour)):
            sums[row] += np.bincount(tenth, weights, RELIABILITY_BINS)
    count = sums[0]
    says, real = (np.divide(part, count, out=np.zeros_like(part), where=count > 0) for part in sums[1:])
    error = float((np.abs(says - real) * count).sum() / max(count.sum(), 1))
    return Reliability(error, tuple(int(c) for c in count), tuple(says.tolist()), tuple(real.tolist()))


# --- all together ---


@dataclass(frozen=True)
class Calibration:
    """What the card gets, and how good it is: figures by subset and region, reliability by region over all subsets.

    left_out: by subset, region and case, Dice with what the other patients chose.
    """

    decision: Decision
    figures: dict[str, dict[str, dict[str, float]]]
    before: dict[str, Reliability]
    after: dict[str, Reliability]
    left_out: dict[str, dict[str, dict[str, float]]]


def calibrate(histograms: Histograms, doubts: Doubts, patient_of: Mapping[str, str]) -> Calibration:
    """Thresholds, evidence and curves for each subset; `patient_of` gives the patient of each case.

    `figures` by subset and region: Dice at one half, with the chosen threshold and evidence, and with those chosen on
    the other patients; cases whose tumour the others' evidence would miss; calibration error before, and after with
    curves fitted on the others. Raises ValueError for fewer than three patients.
    """
    cases = sorted({case for case, _, _ in histograms})
    patients = [patient_of.get(case, case) for case in cases]
    names = [name for name in map(subset_name, SUBSETS) if any(key[1] == name for key in histograms)]
    if len(set(patients)) < 3:
        raise ValueError(f"{len(set(patients))} patients are too few to choose thresholds on; at least 3")
    thresholds: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, tuple[float, float]]] = {}
    evidence: dict[str, float] = {}
    figures: dict[str, dict[str, dict[str, float]]] = {}
    left_out: dict[str, dict[str, dict[str, float]]] = {}
    pooled: dict[str, tuple[list[Histogram], list[np.ndarray]]] = {region: ([], []) for region in REGIONS}
    for name in names:
        thresholds[name], curves[name], figures[name], left_out[name] = {}, {}, {}, {}
        unsure = [doubts[case, name] for case in cases]
        ill = [histograms[case, name, "WT"].reference > 0 for case in cases]
        seen = list(zip(unsure, ill))
        least, others_least = _asked_for(seen), _left_out(seen, patients, _asked_for)
        if least:
            evidence[name] = least
        drawn = [doubt <= 1 - least for doubt in unsure]
        drawn_left_out = [doubt <= 1 - other for doubt, other in zip(unsure, others_least)]
        missed = sum(there and not found for there, found in zip(ill, drawn_left_out))
        for region in REGIONS:
            group = [histograms[case, name, region] for case in cases]
            chosen, curve = best_threshold(group), fitted_curve(group)
            others_chosen = _left_out(group, patients, best_threshold)
            others = [curve_at_bins(one) for one in _left_out(group, patients, fitted_curve)]
            thresholds[name][region] = chosen / BINS
            curves[name][region] = (round(curve[0], 4), round(curve[1], 4))
            pooled[region][0].extend(group)
            pooled[region][1].extend(others)
            left_out[name][region] = {
                case: round(one.dice(threshold if there else NOTHING), 4)
                for case, one, threshold, there in zip(cases, group, others_chosen, drawn_left_out)
            }
            figures[name][region] = {
                "dice_at_half": _mean(one.dice(BINS // 2) for one in group),
                "dice": _mean(one.dice(chosen if there else NOTHING) for one, there in zip(group, drawn)),
                "dice_left_out": _mean(left_out[name][region].values()),
                "missed_left_out": missed,
                "calibration_error": round(reliability(group, [PROBABILITIES] * len(group)).error, 4),
                "calibration_error_left_out": round(reliability(group, others).error, 4),
            }
    before = {region: reliability(group, [PROBABILITIES] * len(group)) for region, (group, _) in pooled.items()}
    after = {region: reliability(group, claimed) for region, (group, claimed) in pooled.items()}
    return Calibration(Decision(thresholds, curves, evidence), figures, before, after, left_out)


def _mean(values: Any) -> float:
    return round(float(np.mean(list(values))), 4)
