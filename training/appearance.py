"""Fitting what tells T1, T1Gd, T2 and FLAIR apart by look (`MSTKDSegmentLib.appearance`), and how well it does.

Challenge-ready volumes are seen as they are, and in variants that resemble clinical ones: thick slices along any axis,
blur, noise, a bias field, a cut field of view, tissue around the brain, and a brain mask that errs by up to 4 mm.
Everything is chosen by cross-validation over the training patients.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.appearance import (
    FEATURES,
    FORMAT,
    Look,
    Model,
    doubts,
    features,
    propose_by_look,
    swapped,
)
from MSTKDSegmentLib.modalities import MODALITIES, SUBSETS
from MSTKDSegmentLib.overlap import find_foreground
from MSTKDSegmentLib.pipeline import Source
from MSTKDSegmentLib.volumes import Volume, read_volume
from scipy import ndimage
from scipy.optimize import minimize

from training.cases import LabelledCase
from training.files import write_text
from training.parallel import each

VARIANTS = 4  # clinical ones of each volume, beside the volume itself
FOLDS = 5
PENALTY = 1e-3  # of the squared weights
SHRINKAGE = 0.3  # of the covariance, towards a multiple of the identity
UNLIKE_PERCENTILE = 99.5
CERTAIN = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MOST_WRONG = 0.005  # share of wrong proposals that the least probability of a proposal is chosen for
MARGIN = 8  # voxels kept around the brain

CITATIONS = (
    "Menze et al. 2015, IEEE Transactions on Medical Imaging 34(10)",
    "Bakas et al. 2017, Scientific Data 4:170117",
    "Bakas et al. 2018, arXiv:1811.02629",
    "Baid et al. 2021, arXiv:2107.02314",
)

Told = Callable[[str], None]


@dataclass(frozen=True)
class Example:
    """The features (F,) of one volume: variant 0 is the volume itself."""

    patient: str
    case: str
    sequence: str
    variant: int
    features: np.ndarray


# --- volumes --------------------------------------------------------------------------------------------------------


def examples_of(cases: Sequence[LabelledCase], processes: int = 1, told: Told | None = None) -> list[Example]:
    """All volumes of `cases` and their clinical variants; those that show nothing are left out."""
    found: list[Example] = []
    for number, (case, rows) in enumerate(zip(cases, each(_case_examples, cases, processes)), start=1):
        found += rows
        if told is not None:
            told(f"{number}/{len(cases)} {case.name}")
    return found


def _case_examples(case: LabelledCase) -> list[Example]:
    rows = []
    for sequence, source in case.sources().items():
        image, brain = _around_brain(_read(source))
        outside = _distance(brain, image)
        for variant in range(VARIANTS + 1):
            seen = (image, brain)
            if variant:
                seed = zlib.crc32(f"{case.name} {sequence} {variant}".encode())
                seen = clinical(image, outside, np.random.default_rng(seed))
            values = features(*seen)
            if values is not None:
                rows.append(Example(case.patient, case.name, sequence, variant, values))
    return rows


def _read(source: Source) -> sitk.Image:
    if isinstance(source, (str, Path)):
        return read_volume(source).image
    return source.image if isinstance(source, Volume) else source


def _around_brain(image: sitk.Image) -> tuple[sitk.Image, np.ndarray]:
    mask = sitk.GetImageFromArray(find_foreground(image).mask.astype(np.uint8))
    brain = sitk.GetArrayFromImage(sitk.BinaryFillhole(mask)).astype(bool)
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    box = tuple(slice(max(side.start - MARGIN, 0), side.stop + MARGIN) for side in box)
    return image[tuple(slice(side.start, side.stop) for side in box[::-1])], brain[box]


def _distance(brain: np.ndarray, image: sitk.Image) -> np.ndarray:
    """Millimetres to the border of the mask `brain` (D, H, W), negative inside."""
    mask = sitk.GetImageFromArray(brain.astype(np.uint8))
    mask.SetSpacing(image.GetSpacing())
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(mask, False, False, True))


def clinical(image: sitk.Image, outside: np.ndarray, rng: np.random.Generator) -> tuple[sitk.Image, np.ndarray]:
    """`image` and the mask of its brain (D, H, W) as they might have come from a clinic.

    outside: (D, H, W) millimetres to the brain's border, negative inside.
    """
    brain = outside <= 0
    voxels: np.ndarray = sitk.GetArrayFromImage(image).astype(np.float32)
    spacing = list(image.GetSpacing()[::-1])
    inside = voxels[brain]
    if rng.random() < 0.7:
        around = rng.uniform(0, 1.2) * np.percentile(inside, 99) * (1 + 0.4 * _smooth(rng, voxels.shape, 12))
        voxels[~brain] = np.maximum(around, 0)[~brain]
    if rng.random() < 0.6:
        voxels *= np.exp(rng.uniform(0.05, 0.25) * _smooth(rng, voxels.shape, 3))
    if rng.random() < 0.5:
        voxels = ndimage.gaussian_filter(voxels, rng.uniform(0.4, 1.2))
    brain = outside <= rng.uniform(-4.0, 4.0)  # as a network might judge it
    if rng.random() < 0.2:
        cut = int(rng.integers(10, 40) / spacing[0])
        brain[slice(cut) if rng.random() < 0.5 else slice(len(brain) - cut, None)] = False
    axis, slices = int(rng.choice([0, 0, 1, 2])), int(rng.choice([1, 3, 4, 5, 6]))
    start = int(rng.integers(0, slices))
    voxels, brain = _thick(voxels, axis, slices, start), _thick(brain, axis, slices, start) > 0.5
    spacing[axis] *= slices
    if rng.random() < 0.6:
        noise = rng.uniform(0.01, 0.06) * abs(np.median(inside))
        voxels = voxels + noise * rng.standard_normal(voxels.shape, dtype=np.float32)
    result = sitk.GetImageFromArray(voxels.astype(np.float32))
    result.SetSpacing(spacing[::-1])
    return result, brain


def _smooth(rng: np.random.Generator, shape: Sequence[int], knots: int) -> np.ndarray:
    """Normal values at `knots` places along each axis, linear between them, of `shape` (D, H, W)."""
    values = sitk.GetImageFromArray(rng.normal(size=(knots,) * 3).astype(np.float32))
    grid = sitk.Image([int(side) for side in shape[::-1]], sitk.sitkFloat32)
    grid.SetSpacing([(knots - 1) / max(side - 1, 1) for side in shape[::-1]])
    return sitk.GetArrayFromImage(sitk.Resample(values, grid, sitk.Transform(), sitk.sitkLinear))


def _thick(array: np.ndarray, axis: int, slices: int, start: int) -> np.ndarray:
    """Means of `slices` neighbours along `axis`, from the one at `start` on."""
    moved = np.moveaxis(array, axis, 0)[start:]
    whole = moved[: len(moved) // slices * slices].reshape(-1, slices, *moved.shape[1:])
    return np.moveaxis(whole.mean(axis=1), 0, axis)


# --- fitting --------------------------------------------------------------------------------------------------------


def fit(examples: Sequence[Example]) -> Model:
    """The classifier; its unlike limit is 1 and its least probability 0 until they are chosen."""
    table = np.array([example.features for example in examples])
    labels = np.array([MODALITIES.index(example.sequence) for example in examples])
    count = table.shape[1]
    model = Model(
        mean=table.mean(axis=0),
        scale=table.std(axis=0) + 1e-6,
        weights=np.zeros((count, len(MODALITIES))),
        bias=np.zeros(len(MODALITIES)),
        means=np.zeros((len(MODALITIES), count)),
        precision=np.eye(count),
        unlike_limit=1.0,
        certain=0.0,
    )
    scaled = model.scaled(table)
    weights, bias = _softmax(scaled, labels)
    means = np.array([scaled[labels == index].mean(axis=0) for index in range(len(MODALITIES))])
    away = scaled - means[labels]
    covariance = away.T @ away / len(away)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.eye(count) * np.trace(covariance) / count
    return replace(model, weights=weights, bias=bias, means=means, precision=np.linalg.inv(covariance) / count)


def _softmax(scaled: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (F, 4) and bias (4,) of the least mean cross-entropy plus `PENALTY` / 2 times the squared weights."""
    inputs = np.column_stack([scaled, np.ones(len(scaled))])
    wanted = np.eye(len(MODALITIES))[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(inputs.shape[1], -1)
        scores = inputs @ weights
        scores -= scores.max(axis=1, keepdims=True)
        sums = np.exp(scores).sum(axis=1, keepdims=True)
        penalised = weights.copy()
        penalised[-1] = 0.0
        entropy = float((np.log(sums) - (scores * wanted).sum(axis=1, keepdims=True)).mean())
        slope = inputs.T @ (np.exp(scores) / sums - wanted) / len(inputs) + PENALTY * penalised
        return entropy + PENALTY / 2 * float((penalised**2).sum()), slope.ravel()

    start = np.zeros(inputs.shape[1] * len(MODALITIES))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 400}).x
    weights = found.reshape(inputs.shape[1], -1)
    return weights[:-1], weights[-1]


def held_out(examples: Sequence[Example]) -> list[Look]:
    """The look of each example by classifiers that have not seen its patient; the limit of `unlike` is 1."""
    patients = sorted({example.patient for example in examples}, key=lambda name: zlib.crc32(name.encode()))
    fold = {patient: index % FOLDS for index, patient in enumerate(patients)}
    looks: dict[int, Look] = {}
    for number in range(FOLDS):
        rest = [example for example in examples if fold[example.patient] != number]
        model = fit(rest)
        for index, example in enumerate(examples):
            if fold[example.patient] == number:
                looks[index] = model.look(example.features)
    return [looks[index] for index in range(len(examples))]


def choose(examples: Sequence[Example], looks: Sequence[Look]) -> tuple[float, float]:
    """The limit of `unlike` and the least probability of a proposal, from looks held out with a limit of 1."""
    limit = float(np.percentile([look.unlike for look in looks], UNLIKE_PERCENTILE))
    limited = [replace(look, unlike=look.unlike / limit) for look in looks]
    for certain in CERTAIN:
        found = _proposals(_patients(zip(examples, limited)), certain)
        if found["wrong"] <= MOST_WRONG * found["volumes"]:
            break
    return limit, certain


# --- figures --------------------------------------------------------------------------------------------------------


def figures(examples: Sequence[Example], looks: Sequence[Look], certain: float) -> dict[str, Any]:
    """How well it does on the volumes as they are ("as released") and on their clinical variants ("clinical")."""
    result = {}
    for title, wanted in (("as released", range(1)), ("clinical", range(1, VARIANTS + 1))):
        kept = [(example, look) for example, look in zip(examples, looks) if example.variant in wanted]
        sets = _patients(kept)
        result[title] = {
            "single volumes": _share(look.likeliest == example.sequence for example, look in kept),
            "T1 against T1Gd, single": _share(
                (look.probabilities["T1"] > look.probabilities["T1Gd"]) == (example.sequence == "T1")
                for example, look in kept
                if example.sequence in ("T1", "T1Gd")
            ),
            "T1 against T1Gd, pairs": _share(not swapped(s["T1"], s["T1Gd"]) for s in sets if {"T1", "T1Gd"} <= set(s)),
            "proposals, all four": _proposals(sets, certain, SUBSETS[-1:]),
            "proposals, 15 subsets": _proposals(sets, certain),
            "two of one sequence": _doubles(kept, certain),
            "doubts": _doubts(sets),
            "unlike": _share(look.is_unlike for _, look in kept),
        }
    return result


def _patients(kept: Iterable[tuple[Example, Look]]) -> list[dict[str, Look]]:
    """Looks by sequence, for each patient and variant."""
    sets: dict[tuple[str, int], dict[str, Look]] = {}
    for example, look in kept:
        sets.setdefault((example.case, example.variant), {})[example.sequence] = look
    return list(sets.values())


def _share(answers: Iterable[bool]) -> dict[str, Any]:
    values = list(answers)
    return {"share": round(float(np.mean(values)), 4) if values else None, "n": len(values)}


def _proposals(
    sets: Sequence[Mapping[str, Look]], certain: float, subsets: Sequence[Sequence[str]] = SUBSETS
) -> dict[str, Any]:
    """Volumes proposed rightly, wrongly and not at all, and sets of which all volumes were proposed rightly."""
    counts = {"right": 0, "wrong": 0, "none": 0}
    complete = total = 0
    for looks in sets:
        for subset in subsets:
            if set(subset) <= set(looks):
                found = propose_by_look([looks[name] for name in subset], certain=certain)
                answers = ["none" if p is None else _right(p.modality == name) for p, name in zip(found, subset)]
                for answer in answers:
                    counts[answer] += 1
                complete += set(answers) == {"right"}
                total += 1
    volumes = sum(counts.values())
    share = round(counts["right"] / volumes, 4) if volumes else None
    return {**counts, "volumes": volumes, "share right": share, "whole sets right": complete, "sets": total}


def _right(answer: bool) -> str:
    return "right" if answer else "wrong"


def _doubles(kept: Sequence[tuple[Example, Look]], certain: float) -> dict[str, Any]:
    """Two variants of one volume, as of a repeated scan: pairs of which one was proposed as another sequence."""
    versions: dict[tuple[str, str], list[Look]] = {}
    for example, look in kept:
        versions.setdefault((example.case, example.sequence), []).append(look)
    wrong = total = 0
    for (_, sequence), looks in versions.items():
        for pair in combinations(looks, 2):
            found = propose_by_look(pair, certain=certain)
            wrong += any(proposal is not None and proposal.modality != sequence for proposal in found)
            total += 1
    return {"wrong": wrong, "n": total}


def _doubts(sets: Sequence[Mapping[str, Look]]) -> dict[str, Any]:
    """False alarms on right choices in all subsets; and how often wrong choices are found."""
    alarms = volumes = 0
    found: dict[str, list[bool]] = {"T1 and T1Gd swapped": [], "T2 and FLAIR swapped": [], "T1 and FLAIR swapped": []}
    for looks in sets:
        for subset in SUBSETS:
            if set(subset) <= set(looks):
                alarms += len(doubts({name: looks[name] for name in subset}))
                volumes += len(subset)
        for title, answers in found.items():
            first, second = title.split(" swapped")[0].split(" and ")
            if {first, second} <= set(looks):
                answers.append(bool(doubts({first: looks[second], second: looks[first]})))
    for sequence, other in (("T1", "T1Gd"), ("T1Gd", "T1"), ("T2", "FLAIR"), ("FLAIR", "T2")):
        chosen = [looks[other] for looks in sets if other in looks]
        found[f"{other} chosen as {sequence}"] = [bool(doubts({sequence: look})) for look in chosen]
    return {
        "false alarms": {"alarms": alarms, "volumes": volumes},
        "found": {title: _share(answers) for title, answers in found.items()},
    }


# --- all of it ------------------------------------------------------------------------------------------------------


def make_model(known: Sequence[Example], new: Sequence[Example]) -> tuple[Model, dict[str, Any]]:
    """The classifier fitted on the examples `known`, and its card: cross-validation there, then the `new` ones."""
    looks = held_out(known)
    limit, certain = choose(known, looks)
    looks = [replace(look, unlike=look.unlike / limit) for look in looks]
    model = replace(fit(known), unlike_limit=limit, certain=certain)
    card = {
        "purpose": "which of T1, T1Gd, T2 and FLAIR a volume looks like; a hint for a person, never a decision",
        "licence": "Research use only, not a medical device: learnt from images that are provided for research.",
        "data": "patients of the BraTS challenges 2013 to 2023, skull-stripped and registered, 1 mm",
        "citations": CITATIONS,
        "training": {"patients": _count(known), "volumes": len(known), "clinical variants of a volume": VARIANTS},
        "validation": {"patients": _count(new), "volumes": len(new)},
        "method": "softmax regression on grey values, depth and detail inside the brain: MSTKDSegmentLib.appearance",
        "chosen": f"all settings by {FOLDS}-fold cross-validation over training patients",
        "metrics": {
            "cross-validation": figures(known, looks, certain),
            "validation": figures(new, [model.look(example.features) for example in new], certain),
        },
    }
    return model, card


def _count(examples: Sequence[Example]) -> int:
    return len({example.patient for example in examples})


def write_model(path: Path, model: Model, card: Mapping[str, Any]) -> None:
    """The classifier with its card, as `MSTKDSegmentLib.appearance.read_model` reads it."""
    tables = {name: _rounded(value) for name, value in vars(model).items()}
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in tables.items()]
    head = {"format": FORMAT, "card": card, "sequences": list(MODALITIES), "features": list(FEATURES)}
    text = json.dumps(head, indent=1)[:-2] + ',\n "model": {\n' + ",\n".join(lines) + "\n }\n}\n"
    write_text(path, text)


def _rounded(value: Any) -> Any:
    if np.ndim(value):
        return [_rounded(item) for item in value]
    return float(f"{float(value):.5g}")


def shown(card: Mapping[str, Any]) -> list[str]:
    """The figures of a card as lines for a terminal."""
    return [
        f"{part}, {kind}: {title}: {json.dumps(value)}"
        for part, kinds in card["metrics"].items()
        for kind, rows in kinds.items()
        for title, value in rows.items()
    ]
