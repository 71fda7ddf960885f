"""What lies between the scanner's volumes and the result, for those who want to look at it or go on from there.

T1_prepared.nii.gz ...        z-scores on the canonical 1 mm grid, 0 outside the brain, as the network saw them
brain_mask.nii.gz             the brain on that grid
brain_mask_native.nrrd        the brain on the reference's own grid, which NIfTI cannot always hold
canonical_to_T1.tfm ...       ITK transforms that take points of the canonical space to the sequence's
preparation.json              what was found and done
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from .geometry import array_to_image, to_native
from .modalities import MODALITIES
from .registration import as_transform
from .segmentation_io import check_written

if TYPE_CHECKING:
    from .pipeline import PreparedCase

RECORD, BRAIN, NATIVE_BRAIN = "preparation.json", "brain_mask.nii.gz", "brain_mask_native.nrrd"
ENDINGS = (".nii.gz", ".nrrd", ".tfm", ".json")


def kept_files(folder: Path, sequences: Iterable[str]) -> list[Path]:
    """The files that `write_kept` writes."""
    names = [name for sequence in sequences for name in _names_of(sequence)]
    return [folder / name for name in [*names, BRAIN, NATIVE_BRAIN, RECORD]]


def stale_files(folder: Path, sequences: Iterable[str]) -> list[Path]:
    """Files in `folder` that `write_kept` wrote for other sequences: they lie on another grid than what comes now."""
    others = sorted(set(MODALITIES) - set(sequences))
    paths = [folder / name for sequence in others for name in _names_of(sequence)]
    return [path for path in paths if path.exists()]


def _names_of(sequence: str) -> tuple[str, str]:
    """The prepared volume and the transform."""
    return f"{sequence}_prepared.nii.gz", f"canonical_to_{sequence}.tfm"


def write_kept(case: PreparedCase, paths: Mapping[Path, Path]) -> None:
    """Write each of `kept_files` to the place that `paths` gives for it. Raises OutputError for a full disk."""
    places = {path.name: place for path, place in paths.items()}
    final = {path.name: path for path in paths}

    def write(image: sitk.Image, name: str) -> None:
        sitk.WriteImage(image, str(places[name]), useCompression=True)
        check_written(places[name], image, final[name])

    for name in case.subset:
        prepared, transform = _names_of(name)
        write(canonical_image(case, case.image[MODALITIES.index(name)]), prepared)
        sitk.WriteTransform(as_transform(case.matrix(name)), str(places[transform]))
    write(canonical_image(case, case.brain.astype(np.uint8)), BRAIN)
    native = to_native(
        case.brain.astype(np.uint8), case.grid, case.reference_image, is_label=True, matrix=case.matrix(case.reference)
    )
    write(array_to_image(native, case.reference_image), NATIVE_BRAIN)
    record = case.record.to_dict()
    for one in record["sequences"].values():  # folders may be called by a patient's name
        one["source"] = Path(one["source"]).name
    places[RECORD].write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")


def canonical_image(case: PreparedCase, array: np.ndarray) -> sitk.Image:
    """`array` (D, H, W) of the case's canonical grid as an image in canonical space."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetOrigin(case.grid.origin)
    return image
