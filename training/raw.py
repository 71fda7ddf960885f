"""A patient as the scanner made it against a segmentation of the same patient in atlas space: what the product finds.

The atlas's own volume is laid on the raw reference by the product's registration, and the reference segmentation comes
back with it; so the figures hold the errors of that registration too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.case_inputs import find_inputs
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.geometry import to_native
from MSTKDSegmentLib.metrics import dice, region_dice
from MSTKDSegmentLib.overlap import find_foreground
from MSTKDSegmentLib.pipeline import Segmentation, Segmenter
from MSTKDSegmentLib.preparation_record import Wishes
from MSTKDSegmentLib.preprocess import fill_holes
from MSTKDSegmentLib.regions import volumes_ml
from MSTKDSegmentLib.registration import as_transform, register
from MSTKDSegmentLib.review.label_maps import AUTO, read_label_map
from MSTKDSegmentLib.review.worklist import find_ground_truth
from MSTKDSegmentLib.volume_checks import mask_ml
from MSTKDSegmentLib.volumes import read_volume


@dataclass(frozen=True)
class Atlas:
    """A skull-stripped patient in atlas space: its volume of the sequence `name`, brain mask and labels (D, H, W)."""

    name: str
    image: sitk.Image
    brain: np.ndarray
    labels: sitk.Image

    @classmethod
    def read(cls, folder: Path, name: str, convention: str = AUTO) -> Atlas:
        """From a folder with skull-stripped sequences and one segmentation.

        Raises InputError where the sequence or the segmentation is missing or the volume still has its skull.
        """
        found = find_inputs(folder, {}).sources
        truth = find_ground_truth(folder)
        if name not in found or truth is None:
            raise InputError(f"{folder}: holds no {name} or no segmentation; give the patient in atlas space")
        volume = read_volume(found[name])
        foreground = find_foreground(volume.image)
        if not foreground.stripped:
            raise InputError(f"{found[name]}: still has its skull; give the skull-stripped volume in atlas space")
        labels = read_label_map(truth, convention)
        image = sitk.GetImageFromArray(labels.labels)
        image.CopyInformation(labels.image)
        return cls(name, volume.image, fill_holes(foreground.mask), image)


def measure(folder: Path, atlas_folder: Path, segmenter: Segmenter, convention: str = AUTO) -> dict[str, Any]:
    """Segment the raw patient in `folder` and compare with the one in `atlas_folder`, for JSON.

    Dice by region and of the brain, volumes (ml) of both, registrations, notices, seconds by stage.
    """
    started = time.perf_counter()
    result = segmenter.segment(dict(find_inputs(folder, {}).sources), wishes=Wishes(extractor="own"))
    seconds = time.perf_counter() - started
    case = result.case
    atlas = Atlas.read(atlas_folder, case.reference, convention)
    truth, true_brain, there = _brought_back(atlas, result)
    brain = _brain(result)
    voxel_ml = mask_ml(np.ones((1, 1, 1), bool), result.reference_image)
    return {
        "patient": folder.name,
        "sequences": list(case.subset),
        "reference": case.reference,
        "dice": region_dice(result.labels, truth),
        "brain_dice": dice(brain, true_brain),
        "volumes_ml": dict(result.volumes_ml),
        "reference_volumes_ml": volumes_ml(truth, voxel_ml),
        "brain_ml": mask_ml(brain, result.reference_image),
        "reference_brain_ml": mask_ml(true_brain, result.reference_image),
        "similarity_to_atlas_bits": there,
        "registrations": _registrations(result),
        "seconds": {**result.seconds, "preparation": dict(case.record.seconds), "total": seconds},
        "notices": list(result.notices),
    }


def _brain(result: Segmentation) -> np.ndarray:
    case = result.case
    native = to_native(case.brain, case.grid, case.reference_image, is_label=True, matrix=case.matrix(case.reference))
    return np.asarray(native, bool)


def _brought_back(atlas: Atlas, result: Segmentation) -> tuple[np.ndarray, np.ndarray, float]:
    """The atlas's labels and brain (D, H, W) on the raw reference, and the similarity of the two volumes (bits)."""
    reference = result.reference_image
    found = register(reference, _brain(result), atlas.image, atlas.brain)
    way = as_transform(found.matrix)
    labels = sitk.Resample(atlas.labels, reference, way, sitk.sitkNearestNeighbor, 0)
    brain = sitk.GetImageFromArray(atlas.brain.astype(np.uint8))
    brain.CopyInformation(atlas.image)
    mask = sitk.GetArrayFromImage(sitk.Resample(brain, reference, way, sitk.sitkNearestNeighbor, 0)) > 0
    return sitk.GetArrayFromImage(labels), mask, found.after


def _registrations(result: Segmentation) -> Mapping[str, Mapping[str, Any]]:
    keys = ("similarity_before", "similarity_after", "moved_mm", "degrees", "start", "failed")
    return {
        name: {key: getattr(one, key) for key in keys}
        for name, one in result.case.record.sequences.items()
        if name != result.case.reference
    }
