"""Which of T1, T1Gd, T2 and FLAIR a volume looks like: a hint for the person who assigns sequences, no more.

Inside the brain, on voxels of about 2 mm and without the outermost 4 mm, `features` describes the histogram, how the
grey values go with depth, and the fine detail. A linear classifier turns them into probabilities; its weights, limits
and figures are in Resources/Models/sequence-appearance.json, which `python -m training appearance` makes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, Optional

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .errors import WeightsError
from .modalities import MODALITIES
from .shipped_files import shipped_file
from .translation import _

MODEL = "sequence-appearance.json"
FORMAT = 1
STEP_MM = 2.0
RIM_MM = 4.0  # not looked at: brain masks err there
DETAIL_MM = 4.0  # detail is what a Gaussian of this sigma removes
FEWEST_VOXELS = 500
PERCENTILES = (0.5, 1, 2, 5, 10, 25, 75, 90, 95, 98, 99, 99.5, 99.9)
LAYERS_MM = (RIM_MM, 7.0, 11.0, 16.0, 24.0, 1000.0)
LAYER_PERCENTILES = (3, 50, 97)
DEPTH_SHARES = (0.0, 0.01, 0.03, 0.08, 0.2, 0.4, 0.6, 0.8, 0.92, 0.97, 0.99, 0.997, 1.0)
DETAIL_PERCENTILES = (0.5, 2, 5, 95, 98, 99.5, 99.9)
DETAIL_SHARES = (0.0, 0.03, 0.2, 0.4, 0.6, 0.8, 0.97, 1.0)
FEATURES = (
    *(f"grey {percent} %" for percent in PERCENTILES),
    *(f"grey {percent} % below {layer:g} mm" for layer in LAYERS_MM[:-1] for percent in LAYER_PERCENTILES),
    *(f"depth from rank {share:g}" for share in DEPTH_SHARES[:-1]),
    "detail",
    *(f"detail {percent} %" for percent in DETAIL_PERCENTILES),
    *(f"detail from rank {share:g}" for share in DETAIL_SHARES[:-1]),
)
FARTHEST = 5.0  # standard deviations: beyond them a feature says no more
# Weight of "none of the four, or a second volume of one of them" beside the probabilities of the sequences.
NONE_WEIGHT = 0.02
MOST_LOOKED_AT = 12  # volumes of one patient; reading more of them would take longer than naming the files
DOUBTED, BELIEVED = 0.05, 0.9


@dataclass(frozen=True)
class Look:
    """What a volume looks like: a probability for each sequence, and how unlike all training volumes it is.

    unlike: the Mahalanobis distance to the nearest sequence in units of a limit that 1 of 200
    training volumes passed.
    """

    probabilities: Mapping[str, float]
    unlike: float

    @property
    def is_unlike(self) -> bool:
        """Whether it looks like none of the four: then the probabilities mean nothing."""
        return self.unlike > 1.0

    @property
    def likeliest(self) -> str:
        return max(MODALITIES, key=lambda modality: self.probabilities[modality])


@dataclass(frozen=True)
class LookProposal:
    """A sequence by look, and the probability of that among all ways to give the patient's volumes their sequences."""

    modality: str
    probability: float


@dataclass(frozen=True)
class Model:
    """The classifier: features are brought to zero mean and unit scale, then (F, 4) `weights` and (4,) `bias` apply.

    means: (4, F) of the scaled features by sequence; precision: (F, F), the inverse of their covariance within a
    sequence, divided by F; unlike_limit: in the same units; certain: least probability of a proposal.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    means: np.ndarray
    precision: np.ndarray
    unlike_limit: float
    certain: float

    def scaled(self, features: np.ndarray) -> np.ndarray:
        """(..., F) features in standard deviations of the training volumes'."""
        return np.asarray(np.clip((features - self.mean) / self.scale, -FARTHEST, FARTHEST))

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(..., 4) in the order of `MODALITIES`."""
        scores = self.scaled(features) @ self.weights + self.bias
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return np.asarray(scores / scores.sum(-1, keepdims=True))

    def unlike(self, features: np.ndarray) -> np.ndarray:
        """(...,) distances to the nearest sequence in units of the limit."""
        away = self.scaled(features)[..., None, :] - self.means
        squares = np.einsum("...i,ij,...j->...", away, self.precision, away)
        return np.asarray(np.sqrt(squares.min(-1)) / self.unlike_limit)

    def look(self, features: np.ndarray) -> Look:
        """The look of one volume, given its features (F,)."""
        probabilities = dict(zip(MODALITIES, self.probabilities(features).tolist()))
        return Look(probabilities, float(self.unlike(features)))


# --- the model that ships -------------------------------------------------------------------------------------------


def model_path() -> Path:
    """The classifier that ships. Raises WeightsError where it is missing."""
    return shipped_file("Models", MODEL)


@lru_cache(maxsize=1)
def shipped_model() -> Model:
    """The classifier that ships, read once. Raises WeightsError where it is missing or damaged."""
    return read_model(model_path())


def read_model(path: Path) -> Model:
    """Raises WeightsError for a file that is no classifier of these features, or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT or tuple(data["features"]) != FEATURES or tuple(data["sequences"]) != MODALITIES:
            raise WeightsError(f"{path}: made for other features than this version's; reinstall the software")
        model = Model(**{name: _numbers(value) for name, value in data["model"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: no classifier of sequences, or damaged ({error}); reinstall the software"
        ) from error
    count, shapes = (
        len(FEATURES),
        [np.shape(getattr(model, name)) for name in ("mean", "weights", "means", "precision")],
    )
    if shapes != [(count,), (count, len(MODALITIES)), (len(MODALITIES), count), (count, count)]:
        raise WeightsError(f"{path}: damaged, its tables have other sizes; reinstall the software")
    return model


def _numbers(value: Any) -> Any:
    return np.array(value, float) if isinstance(value, list) else float(value)


# --- one volume -----------------------------------------------------------------------------------------------------


def look(image: sitk.Image, brain: np.ndarray) -> Optional[Look]:
    """What `image` looks like inside the mask `brain` (D, H, W) bool; None where there is no contrast, or too little.

    Raises WeightsError where the shipped classifier is missing or damaged.
    """
    found = features(image, brain)
    return None if found is None else shipped_model().look(found)


def features(image: sitk.Image, brain: np.ndarray) -> Optional[np.ndarray]:
    """The `FEATURES` of `image` inside `brain` (D, H, W) bool: free of units and offset; None as of `look`."""
    if not brain.any():
        return None
    voxels, mask, spacing = _coarse(image, brain)
    depth = np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing), np.float32)
    core = np.asarray(depth > RIM_MM)
    values, depths = voxels[core], depth[core]
    if len(values) < FEWEST_VOXELS:
        return None
    order = np.argsort(values)
    low, middle, high = _at(values[order], (25, 50, 75))
    detail = values - _surroundings(voxels, core, spacing)
    detail_range = float(np.subtract(*np.percentile(detail, (84, 16))))
    if not (high > low and detail_range > 0):
        return None
    relative = np.minimum(depths / np.percentile(depths, 98), 1.0)
    found = np.concatenate(
        [
            _log((_at(values[order], PERCENTILES) - middle) / (high - low)),
            _log((_layers(values, depths, middle) - middle) / (high - low)),
            _means((relative - relative.mean())[order], DEPTH_SHARES),
            [np.log(detail_range / (high - low))],
            _log(np.percentile(detail, DETAIL_PERCENTILES) / detail_range),
            _log(_means(detail[order], DETAIL_SHARES) / detail_range),
        ]
    )
    return found if np.isfinite(found).all() else None


def _coarse(image: sitk.Image, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Voxels and mask (D, H, W) averaged to about `STEP_MM` around the brain, with a border, and their spacing."""
    lines = [np.asarray(brain.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    box = tuple(slice(int(line.argmax()), len(line) - int(line[::-1].argmax())) for line in lines)
    steps = [max(1, round(STEP_MM / length)) for length in image.GetSpacing()]

    def shrunk(array: np.ndarray) -> np.ndarray:
        part = sitk.GetImageFromArray(array[box].astype(np.float32))
        return np.pad(sitk.GetArrayFromImage(sitk.BinShrink(part, steps)), 1)

    spacing = tuple(length * step for length, step in zip(image.GetSpacing(), steps))
    return shrunk(sitk.GetArrayViewFromImage(image)), shrunk(brain) > 0.5, spacing[::-1]


def _surroundings(voxels: np.ndarray, core: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """For each voxel of the mask `core` the mean of those around it that are in the mask."""
    sigma = [DETAIL_MM / length for length in spacing]

    def smooth(array: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(array, sigma, mode="constant", truncate=3.0)[core])

    inside = core.astype(np.float32)
    return smooth(np.where(core, voxels, np.float32(0))) / np.maximum(smooth(inside), 1e-3)


def _at(ordered: np.ndarray, percentiles: Sequence[float]) -> np.ndarray:
    """The percentiles of values that are in order already."""
    index = (np.asarray(percentiles) / 100 * len(ordered)).astype(int)
    return np.asarray(ordered[np.minimum(index, len(ordered) - 1)], float)


def _layers(values: np.ndarray, depths: np.ndarray, absent: float) -> np.ndarray:
    """`LAYER_PERCENTILES` of the values in each of `LAYERS_MM`; `absent` for layers that the brain is too small for."""
    found: list[float] = []
    for near, far in zip(LAYERS_MM, LAYERS_MM[1:]):
        layer = values[(depths > near) & (depths <= far)]
        found += np.percentile(layer, LAYER_PERCENTILES).tolist() if len(layer) > 20 else [absent] * 3
    return np.array(found)


def _means(ordered: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Means of the pieces of an array that `shares` of its length divide it into."""
    ends = (np.asarray(shares) * len(ordered)).astype(int)
    return np.array([ordered[start : max(stop, start + 1)].mean() for start, stop in zip(ends, ends[1:])])


def _log(values: np.ndarray) -> np.ndarray:
    """Long tails made short, the sign kept."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


# --- the volumes of one patient -------------------------------------------------------------------------------------


def propose_by_look(
    looks: Sequence[Optional[Look]],
    allowed: Optional[Sequence[Collection[str]]] = None,
    certain: Optional[float] = None,
) -> list[Optional[LookProposal]]:
    """A sequence for each volume of one patient, none of them twice; None where that is not certain enough.

    Every way to give each sequence to one volume at most is weighed by the product of the volumes' probabilities, so
    of two T1-weighted volumes the one with more contrast agent is T1Gd. `allowed`: the sequences that each volume may
    be proposed as, default all; what it looks like beside them counts as none. `certain`: the least probability,
    default the shipped classifier's.
    """
    least = max(shipped_model().certain if certain is None else certain, 0.5)
    shares = _shares([_weights(found, MODALITIES if allowed is None else allowed[i]) for i, found in enumerate(looks)])
    proposals: list[Optional[LookProposal]] = []
    for row in shares:
        best = int(row.argmax())
        # Above a half no two volumes can have the same sequence.
        sure = row[best] > least
        proposals.append(LookProposal(MODALITIES[best], float(row[best])) if sure else None)
    return proposals


def _weights(found: Optional[Look], allowed: Collection[str]) -> np.ndarray:
    """(5,): the weight of each sequence, and last of none."""
    weights = np.zeros(len(MODALITIES) + 1)
    weights[-1] = 1.0
    if found is not None and not found.is_unlike:
        probabilities = [found.probabilities[modality] for modality in MODALITIES]
        may = np.array([modality in allowed for modality in MODALITIES])
        weights[:-1] = np.where(may, probabilities, 0.0)
        weights[-1] = NONE_WEIGHT + np.where(may, 0.0, probabilities).sum()
    return weights


def _shares(weights: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 4): the share of each sequence for each volume in the weight of all assignments; `weights` (5,) each."""
    if not len(weights):
        return np.zeros((0, len(MODALITIES)))
    table = np.array(weights)
    # One axis a sequence: the volume that has it, or at the end nobody. Volumes without one contribute factor 1.
    odds = np.append(table[:, :-1] / table[:, -1:], np.ones((1, len(MODALITIES))), axis=0).T
    joint = np.einsum("a,b,c,d->abcd", *odds)
    different = 1.0 - np.diag(np.append(np.ones(len(table)), 0.0))
    for pair in combinations("abcd", 2):
        joint = np.einsum(f"abcd,{''.join(pair)}->abcd", joint, different)
    axes = range(len(MODALITIES))
    sums = [joint.sum(axis=tuple(other for other in axes if other != axis))[:-1] for axis in axes]
    return np.array(sums).T / joint.sum()


# --- chosen volumes -------------------------------------------------------------------------------------------------


def doubts(roles: Mapping[str, Look]) -> dict[str, str]:
    """By sequence a sentence about the volume chosen for it, for those only that clearly look like something else."""
    found = {modality: sentence for modality, look in roles.items() if (sentence := _doubt(modality, look))}
    pair = [roles.get(modality) for modality in ("T1", "T1Gd")]
    if all(look is not None and looks_t1_weighted(look) for look in pair):
        # Two of a kind are compared with each other, which tells more than either alone.
        both = _("T1 and T1Gd may be the wrong way round: this T1 looks more contrast-enhanced than this T1Gd.")
        for modality in ("T1", "T1Gd"):
            found.pop(modality, None)
            if swapped(roles["T1"], roles["T1Gd"]):
                found[modality] = both
    return found


def _doubt(modality: str, look: Look) -> str:
    if look.is_unlike:
        return _("This volume looks like none of {sequences}. Is it the right one?").format(
            sequences=", ".join(MODALITIES)
        )
    other = look.likeliest
    if look.probabilities[modality] >= DOUBTED or look.probabilities[other] <= BELIEVED:
        return ""
    if (modality, other) == ("T1", "T1Gd"):
        return _("This T1 looks contrast-enhanced. If contrast agent was given, choose it as T1Gd.")
    if (modality, other) == ("T1Gd", "T1"):
        return _("This T1Gd looks like a T1 without contrast agent. If none was given, choose it as T1.")
    return _("This volume looks like {other}, not {sequence}. Please check.").format(other=other, sequence=modality)


def looks_t1_weighted(look: Look) -> bool:
    """Whether it looks T1-weighted, with contrast agent or without."""
    return not look.is_unlike and look.probabilities["T1"] + look.probabilities["T1Gd"] > 0.5


def swapped(t1: Look, t1gd: Look) -> bool:
    """Whether of two T1-weighted volumes the one given as T1 looks more enhanced than the one given as T1Gd."""
    right = t1.probabilities["T1"] * t1gd.probabilities["T1Gd"]
    return t1.probabilities["T1Gd"] * t1gd.probabilities["T1"] > right
