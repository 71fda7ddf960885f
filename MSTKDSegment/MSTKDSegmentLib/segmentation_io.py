"""Writing segmentations and probability maps in the grid of a reference image, without ever harming a user's file.

A result is written under a temporary name in the target's folder, read back and compared, and only then renamed.
The Slicer fields of a .seg.nrrd file: https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np
import SimpleITK as sitk

from .errors import InputError, OutputError
from .file_checks import is_unicode, printable
from .regions import LABELS, REGIONS, Structure, convention_values, labels_to_regions, require_labels, to_convention
from .volume_checks import voxel_columns

SEGMENTATION_ENDINGS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")
REGION_ENDINGS = (".seg.nrrd",)  # overlapping segments: only this format holds them
PROBABILITY_ENDINGS = (".nii.gz", ".nii", ".nrrd")
METADATA_PREFIX = "MSTKDSegment_"
# A twentieth of a millimetre: far below a voxel, far above what single precision in a NIfTI header loses.
GEOMETRY_TOLERANCE_MM = 0.05

PathLike = Union[str, "os.PathLike[str]"]


def output_ending(path: PathLike, endings: Sequence[str]) -> str:
    """The ending of `path`, the longest one of `endings` that fits. Raises OutputError if there is none."""
    name = Path(path).name.lower()
    fitting = [ending for ending in endings if name.endswith(ending) and len(name) > len(ending)]
    if not fitting:
        raise OutputError(f"{path}: unknown file ending; use {', '.join(endings)}.")
    return max(fitting, key=len)


def check_output(
    path: PathLike,
    overwrite: bool = False,
    *,
    endings: Sequence[str] = SEGMENTATION_ENDINGS,
    reference_image: Optional[sitk.Image] = None,
) -> Path:
    """The output's path, if it could be written now; call this before a long computation. Nothing is created.

    Missing folders are fine where they can be created. Raises OutputError for an unknown ending, a folder in the
    place of the file or a file in the place of a folder, a folder that cannot be written to, a file that exists
    (unless `overwrite`), and, given the reference image, a format that cannot hold its geometry.
    """
    path = Path(path).expanduser()
    ending = output_ending(path, endings)
    if not is_unicode(path):
        raise OutputError(f"{printable(str(path))}: a name that is not UTF-8 cannot be written; choose another.")
    folder = path.parent
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give a file name.")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists already; choose another name or allow overwriting.")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        # Permission bits and os.access do not tell the truth on network and read-only file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot write to {folder} ({error.strerror or error}); choose another.") from error
    if reference_image is not None:
        _check_geometry_fits(path, ending, reference_image)
    return path


@contextlib.contextmanager
def atomic_output(path: PathLike, overwrite: bool, ending: str) -> Iterator[Path]:
    """Yields a temporary name beside `path`, with its ending; on success it takes the place of `path`.

    Creates missing folders. If the block fails, the temporary file is removed and `path` is as it was; OSError and
    SimpleITK's RuntimeError become OutputError.
    """
    path = Path(path).expanduser()
    temporary = path.with_name(f".{path.name[: -len(ending)]}.{uuid.uuid4().hex[:8]}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.exists() and not overwrite:  # it may have appeared during the computation
            raise OutputError(f"{path} exists already; choose another name or allow overwriting.")
        os.replace(temporary, path)  # noqa: PTH105 - the atomic call by its name
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise OutputError(f"{path} could not be written ({reason}); check free space and permissions.") from error
    finally:
        with contextlib.suppress(OSError):  # a drive that went away: the error above says so
            temporary.unlink(missing_ok=True)


def write_segmentation(
    path: PathLike,
    labels: np.ndarray,
    reference_image: sitk.Image,
    *,
    segments: str = "labels",
    label_convention: str = "brats2023",
    metadata: Optional[Mapping[str, str]] = None,
    overwrite: bool = False,
) -> Path:
    """Writes a label map in the grid of `reference_image`; the path's ending decides the format. Returns the path.

    labels: (D, H, W), 0 background, 1 NCR, 2 ED, 3 ET. `.seg.nrrd` is a segmentation for 3D Slicer with names, colours
    and terminology: segments "labels" = NCR, ED, ET in one layer, "regions" = WT, TC, ET overlapping in three layers.
    `.nii.gz`, `.nii`, `.nrrd` and `.mha` are label maps in the values of `label_convention` ("brats2021": ET = 4).
    metadata: provenance, stored in the header under keys that start with "MSTKDSegment_" (not in NIfTI, which has no
    place for it). Nothing else of the reference's header is copied, so no patient's name travels along.
    Raises OutputError (see `check_output`) and ValueError for labels that do not fit the reference.
    """
    if segments not in ("labels", "regions"):
        raise ValueError(f"segments must be 'labels' or 'regions', not {segments!r}")
    endings = SEGMENTATION_ENDINGS if segments == "labels" else REGION_ENDINGS
    path = check_output(path, overwrite, endings=endings, reference_image=reference_image)
    labels = require_labels(labels)
    if segments == "labels":
        image = _image(to_convention(labels, label_convention), reference_image)
    else:
        masks = labels_to_regions(labels)
        image = _image(np.stack([masks[region.key] for region in REGIONS]).astype(np.uint8), reference_image)
    ending = output_ending(path, endings)
    if ending == ".seg.nrrd":
        for key, text in _slicer_fields(reference_image, segments, convention_values(label_convention)).items():
            image.SetMetaData(key, text)
    _write_image(path, ending, image, metadata or {}, overwrite)
    return path


def read_provenance(path: PathLike) -> dict[str, str]:
    """What `write_segmentation` stored as metadata, by key; empty for files of others and for formats without a place.

    Raises InputError for a file that cannot be read.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read as an image; check the file.") from error
    keys = [key for key in reader.GetMetaDataKeys() if key.startswith(METADATA_PREFIX)]
    return {key[len(METADATA_PREFIX) :]: reader.GetMetaData(key) for key in keys}


def write_probabilities(
    path: PathLike,
    region_probabilities: np.ndarray,
    reference_image: sitk.Image,
    *,
    metadata: Optional[Mapping[str, str]] = None,
    overwrite: bool = False,
) -> Path:
    """Writes the probabilities of WT, TC and ET, (3, D, H, W), as one float32 image with three components per voxel.

    Endings: .nii.gz, .nii (nibabel shows the components as the fifth axis) and .nrrd. Raises OutputError and
    ValueError as `write_segmentation` does.
    """
    path = check_output(path, overwrite, endings=PROBABILITY_ENDINGS, reference_image=reference_image)
    if region_probabilities.ndim != 4 or len(region_probabilities) != len(REGIONS):
        raise ValueError(f"region probabilities must be (3, D, H, W), not {region_probabilities.shape}")
    image = _image(np.asarray(region_probabilities, np.float32), reference_image)
    components = {"components": " ".join(region.key for region in REGIONS), **(metadata or {})}
    _write_image(path, output_ending(path, PROBABILITY_ENDINGS), image, components, overwrite)
    return path


def _image(array: np.ndarray, reference: sitk.Image) -> sitk.Image:
    """(D, H, W), or (C, D, H, W) as a vector image, with the reference's geometry and none of its other metadata."""
    grid = array.shape[-3:]
    if grid != reference.GetSize()[::-1]:
        raise ValueError(f"the array's grid {grid} is not the reference's {reference.GetSize()[::-1]}")
    is_vector = array.ndim == 4
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(array, 0, -1)) if is_vector else array, is_vector)
    image.SetSpacing(reference.GetSpacing())
    image.SetOrigin(reference.GetOrigin())
    image.SetDirection(reference.GetDirection())
    return image


def _slicer_fields(reference: sitk.Image, segments: str, values: Mapping[int, int]) -> dict[str, str]:
    last = [size - 1 for size in reference.GetSize()]
    # The full extent for every segment: Slicer crops a layer to the extent of its first segment, so a tight one there
    # would cut the others off.
    extent = f"0 {last[0]} 0 {last[1]} 0 {last[2]}"
    fields = {
        # Slicer reads the first of these two; its file format documentation names the second.
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        "Segmentation_ConversionParameters": f"Reference image geometry|{_slicer_geometry(reference)}|&",
    }
    structures = LABELS if segments == "labels" else REGIONS
    for index, item in enumerate(structures):
        value, layer = (values[item.labels[0]], 0) if segments == "labels" else (1, index)
        for key, text in _segment_fields(item, value, layer, extent).items():
            fields[f"Segment{index}_{key}"] = text
    return fields


def _segment_fields(item: Structure, value: int, layer: int, extent: str) -> dict[str, str]:
    return {
        "ID": item.key,
        "Name": item.title,
        "NameAutoGenerated": "0",
        "Color": " ".join(f"{channel:g}" for channel in item.colour),
        "ColorAutoGenerated": "0",
        "LabelValue": str(value),
        "Layer": str(layer),
        "Extent": extent,
        "Tags": f"TerminologyEntry:{item.terminology}|",
    }


def _slicer_geometry(reference: sitk.Image) -> str:
    """IJK to RAS (4x4, by rows) and extent, as vtkSegmentationConverter serialises a geometry."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = voxel_columns(reference), reference.GetOrigin()
    matrix[:2] *= -1  # LPS to RAS
    extent = [bound for size in reference.GetSize() for bound in (0, size - 1)]
    return "".join(f"{number:.17g};" for number in (*(matrix.ravel() + 0.0), *extent))  # + 0.0: no "-0"


def _write_image(path: Path, ending: str, image: sitk.Image, metadata: Mapping[str, str], overwrite: bool) -> None:
    is_nifti = ending in (".nii", ".nii.gz")
    for key, text in metadata.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise ValueError(f"metadata key {key!r} may hold letters, digits, '_', '.' and '-' only")
        if not is_nifti:
            # One line each: a line break ends the header field of a .mha file and makes it unreadable.
            image.SetMetaData(METADATA_PREFIX + key, " ".join(str(text).split()))
    if is_nifti:
        image.SetMetaData("ITK_FileNotes", "MSTKDSegment")  # NIfTI's 80-character description
    with atomic_output(path, overwrite, ending) as temporary:
        sitk.WriteImage(image, str(temporary), ending != ".nii")
        check_written(temporary, image, path)


def check_written(place: Path, image: sitk.Image, path: PathLike) -> None:
    """Raises OutputError, about `path`, unless the file at `place` holds `image`.

    A full disk or a format's limits do not always raise an error in ITK: its NIfTI files end wherever the disk did.
    """
    written = sitk.ReadImage(str(place))
    if not np.array_equal(sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(written)):
        raise OutputError(f"{path} could not be written: what was read back differs; check free space.")
    if _largest_shift_mm(image, written) > GEOMETRY_TOLERANCE_MM:
        raise OutputError(f"{path}: this format cannot hold the image's geometry; write .seg.nrrd or .nrrd instead.")


def _check_geometry_fits(path: Path, ending: str, reference: sitk.Image) -> None:
    """NIfTI's readers expect perpendicular axes, and ITK silently straightens others when it writes NIfTI."""
    if ending not in (".nii", ".nii.gz"):
        return
    u, _, vt = np.linalg.svd(np.reshape(reference.GetDirection(), (3, 3)))
    straight = sitk.Image([1, 1, 1], sitk.sitkUInt8)
    straight.SetSpacing(reference.GetSpacing())
    straight.SetOrigin(reference.GetOrigin())
    straight.SetDirection((u @ vt).ravel())
    if _largest_shift_mm(reference, straight) > GEOMETRY_TOLERANCE_MM:
        raise OutputError(
            f"{path}: the image's axes are not perpendicular (a tilted gantry?), which NIfTI cannot hold reliably; "
            "write .seg.nrrd or .nrrd instead."
        )


def _largest_shift_mm(reference: sitk.Image, other: sitk.Image) -> float:
    """How far apart the two geometries put a corner of the reference's grid, at most."""
    shift = np.subtract(reference.GetOrigin(), other.GetOrigin())
    steps = voxel_columns(reference) - voxel_columns(other)
    corners: tuple[np.ndarray, ...] = np.meshgrid(*([0, size - 1] for size in reference.GetSize()))
    indices = np.stack([corner.ravel() for corner in corners])
    return float(np.linalg.norm(shift[:, None] + steps @ indices, axis=0).max())
