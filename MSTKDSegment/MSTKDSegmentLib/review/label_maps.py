"""Segmentations of any maker as our labels: the convention is recognised from values, names, terminology or colours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np
import SimpleITK as sitk

from ..errors import GeometryError, InputError
from ..file_checks import os_errors_as_input_errors
from ..geometry import array_to_image
from ..header_checks import check_nrrd_header
from ..regions import LABELS, REGION_KEYS, bounding_box, from_convention, regions_to_labels
from ..volume_checks import check_axes, itk_errors_as_input_errors, mask_ml, same_grid, voxel_columns
from ..volumes import read_volume

AUTO = "auto"
CAVITY = "RC"
# A segmentation that loses more than this share of its tumour on another grid lies partly outside it.
LARGEST_LOSS = 0.1
# Squared distance in RGB (0 to 1) within which a colour is taken for one of ours.
COLOUR_DISTANCE = 0.12
# The oedema lies outermost: a larger share of its border than of the necrosis' touches background. On 53 real tumours
# necrosis had 0.67 of the oedema's share at most; where the two are as close as this, there is a doubt.
CLOSE = 0.8
# Values that are whole numbers but for rounding; so many are named in a message.
ROUNDING, MOST_NAMED = 1e-3, 8

_WORDS: tuple[tuple[str, str], ...] = (
    (CAVITY, r"\brc\b|resection|cavity"),
    ("NCR", r"\bncr\b|\bnetc?\b|\bnec\b|necro|(?:non|not|un)[- ]?enhanc"),
    ("ED", r"\bed\b|o?edema|\bsnfh\b|hyperintens|infiltrat"),
    ("WT", r"\bwt\b|\b(?:whole|complete|entire) (?:tumou?r|lesion|glioma)"),
    ("ET", r"\bet\b|enhanc|\bactive\b"),
    ("TC", r"\btc\b|\bcore\b|\bgtv\b"),
)
_LEFT_OUT = r"\b(?:without|excluding|except)\b.*"
_CODES = {"79654002": "ED", "6574001": "NCR"}


@dataclass(frozen=True)
class LabelMap:
    """A segmentation in our labels: `labels` (D, H, W) uint8, 0 to 3, on the grid of `image` (its voxels are unused).

    known: those of WT, TC, ET that it says anything about. how: what it was recognised as. doubts: sentences to show.
    """

    labels: np.ndarray
    image: sitk.Image
    source: str
    known: tuple[str, ...]
    how: str
    doubts: tuple[str, ...] = ()


def read_label_map(path: Union[str, Path], convention: str = AUTO) -> LabelMap:
    """The segmentation in a file (NIfTI, NRRD, MetaImage, `.seg.nrrd`).

    convention: "auto", or one of `regions.CONVENTIONS` for label values. Raises InputError and GeometryError as
    `volumes.read_volume` does, and InputError for values or segments that are none of a brain tumour's.
    """
    path = Path(path)
    if convention == AUTO and path.name.lower().endswith((".nrrd", ".nhdr")):
        segments = _read_segments(path)
        if segments is not None:
            return segments
    volume = read_volume(path, is_label=True)
    return label_map_from_values(sitk.GetArrayViewFromImage(volume.image), volume.image, str(path), convention)


# --- label values ----------------------------------------------------------------------------------------------------


def label_map_from_values(values: np.ndarray, image: sitk.Image, source: str, convention: str = AUTO) -> LabelMap:
    """The label map `values` (D, H, W) on the grid of `image`. Raises InputError for values that no convention has."""
    doubts: tuple[str, ...] = ()
    known = REGION_KEYS
    whole = np.rint(values)
    if values.dtype.kind == "f" and np.abs(values - whole).max(initial=0.0) <= ROUNDING:
        values = whole
    if convention == AUTO:
        convention, how, doubt = _recognised(values, source)
        doubts = (doubt,) if doubt else ()
    else:
        how = f"{convention}, as you said"
    if convention == "mask":
        return LabelMap((values != 0).astype(np.uint8) * 2, image, source, ("WT",), how, doubts)
    try:
        labels = from_convention(values, convention)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return LabelMap(labels, image, source, known, how, doubts)


def _recognised(values: np.ndarray, source: str) -> tuple[str, str, str]:
    """Convention ("mask" for a mask of the whole tumour), what to call it, and a doubt or ""."""
    present = {float(value) for value in np.unique(values)} - {0.0}
    shown = ", ".join(f"{value:g}" for value in sorted(present)[:MOST_NAMED])
    if len(present) > MOST_NAMED:
        shown += f" and {len(present) - MOST_NAMED} more"
    if len(present) == 1 and not present <= {2.0, 3.0, 4.0}:
        doubt = f"{source}: it holds one value ({shown}) and was taken as a mask of the whole tumour."
        return "mask", "mask of the whole tumour", doubt
    if not present <= {1.0, 2.0, 3.0, 4.0}:
        raise InputError(
            f"{source}: it holds the values {shown}; known are 1, 2, 3 (BraTS 2023, Medical Segmentation Decathlon), "
            "1, 2, 4 (BraTS up to 2021), 1 to 4 (BraTS 2024) and a mask of one value. Give the tumour's segmentation."
        )
    if {3.0, 4.0} <= present:
        return "brats2024", "BraTS 2024 (1 NCR, 2 ED, 3 ET, 4 resection cavity)", ""
    if 4.0 in present:
        doubt = (
            f"{source}: its values {shown} were taken as BraTS up to 2021, where 4 is the enhancing tumour; if it is "
            "the resection cavity of BraTS 2024, choose that convention."
        )
        return "brats2021", "BraTS up to 2021 (1 NCR, 2 ED, 4 ET)", "" if present == {1.0, 2.0, 4.0} else doubt
    return _brats_or_decathlon(values, present, source)


def _brats_or_decathlon(values: np.ndarray, present: set[float], source: str) -> tuple[str, str, str]:
    """`_recognised` for the values 1, 2 and 3, of which not all need be there: who has 1 and who 2 for oedema?"""
    ours = ("brats2023", "BraTS 2023 (1 NCR, 2 ED, 3 ET)")
    if present in ({1.0, 2.0}, {1.0, 3.0}):
        # In BraTS too core that does not enhance may lie outermost: two values do not settle it.
        other = max(present)
        doubt = (
            f"{source}: its value 1 lies around {other:g} and was taken as necrotic core (BraTS); if it is oedema "
            "(Medical Segmentation Decathlon), choose that convention."
        )
        return *ours, doubt if _outermost(values, 1) > _outermost(values, int(other)) else ""
    if present != {1.0, 2.0, 3.0}:
        return *ours, ""
    first, second = _outermost(values, 1), _outermost(values, 2)
    if first > second:
        doubt = (
            f"{source}: its value 1 lies around the others, so it was taken as oedema (Medical Segmentation Decathlon);"
            " if it is the necrotic core, choose the convention."
        )
        return "msd", "Medical Segmentation Decathlon (1 ED, 2 NCR, 3 ET)", doubt
    doubt = (
        f"{source}: its values 1 and 2 lie about equally far out; 1 was taken as necrotic core, 2 as oedema (BraTS). "
        "If it is the other way round (Medical Segmentation Decathlon), choose that convention."
    )
    return *ours, doubt if first > CLOSE * second else ""


def _outermost(values: np.ndarray, value: int) -> float:
    """The share of the faces of `value` towards others that lie towards the background."""
    box = bounding_box(values != 0)
    inside = np.pad(values[box] if box else values, 1)
    mask = inside == value
    outside = to_others = 0
    for axis in range(3):
        for step in (1, -1):
            neighbour = np.roll(inside, step, axis)[mask]
            outside += int(np.count_nonzero(neighbour == 0))
            to_others += int(np.count_nonzero(neighbour != value))
    return outside / to_others if to_others else 0.0


# --- segments --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """One segment of a segmentation: its mask (D, H, W), and what is written about it."""

    name: str
    mask: np.ndarray
    identifier: str = ""
    colour: Optional[tuple[float, ...]] = None
    tags: str = ""


def label_map_from_segments(segments: Sequence[Segment], image: sitk.Image, source: str) -> LabelMap:
    """Segments, exclusive (NCR, ED, ET) or nested (WT, TC, ET), by name, terminology or colour, as our labels.

    Raises InputError where none can be recognised.
    """
    keys, how = _keys(segments)
    found: dict[str, np.ndarray] = {}
    for segment, key in zip(segments, keys):
        if key is not None and key != CAVITY:
            found[key] = segment.mask | found[key] if key in found else segment.mask
    left = [
        segment.name or segment.identifier or f"number {n} (unnamed)"
        for n, (segment, key) in enumerate(zip(segments, keys), start=1)
        if key is None
    ]
    if not found and len(segments) == 1 and not left:
        raise InputError(f"{source}: its only segment is a resection cavity. Give the tumour's segmentation.")
    doubts = []
    if not found and len(segments) == 1:
        doubts.append(f"{source}: its only segment ({left[0]}) was taken as the whole tumour.")
        found, left = {"WT": segments[0].mask}, []
        how = "one segment, the whole tumour"
    if not found:
        raise InputError(
            f"{source}: none of its segments ({', '.join(left) or 'it has none'}) is known as necrotic core, oedema, "
            "enhancing tumour, tumour core or whole tumour; rename them (NCR, ED, ET, or WT, TC, ET)."
        )
    if left:
        doubts.append(f"{source}: the segments {', '.join(left)} are no part of a tumour that is known, and left out.")
    empty = np.zeros(image.GetSize()[::-1], bool)
    masks = {key: found.get(key, empty) for key in ("NCR", "ED", "ET", "TC", "WT")}
    core = masks["NCR"] | masks["ET"] | masks["TC"]
    labels = regions_to_labels(core | masks["ED"] | masks["WT"], core, masks["ET"])
    return LabelMap(labels, image, source, _known(set(found), bool(left)), how, tuple(doubts))


def _known(keys: set[str], left_out: bool) -> tuple[str, ...]:
    """The regions that segments of these kinds say anything about: what nobody drew is unknown, not absent.

    left_out: whether some segment was not understood. It may be the part that a sum of parts lacks.
    """
    if left_out and not keys >= {"NCR", "ED", "ET"}:
        return tuple(key for key in REGION_KEYS if key in keys)
    # Oedema and enhancing tumour without necrosis: the core enhances throughout.
    core = keys & {"TC", "NCR"} or ({"ED", "ET"} <= keys and "WT" not in keys)
    known = {"WT": keys & {"WT", "ED"}, "TC": core, "ET": "ET" in keys}
    return tuple(key for key in REGION_KEYS if known[key])


def _keys(segments: Sequence[Segment]) -> tuple[list[Optional[str]], str]:
    by_name = [_by_words(f"{segment.name} {segment.identifier}") for segment in segments]
    if any(by_name):
        return by_name, "segments by name"
    by_code = [next((key for code, key in _CODES.items() if f"^{code}^" in one.tags), None) for one in segments]
    by_colour = [_by_colour(one.colour) for one in segments]
    found: list[Optional[str]] = [code or colour for code, colour in zip(by_code, by_colour)]
    # Green and yellow stand for ED and NCR, or for WT and TC, which hold the red ET.
    for outer, label in (("WT", "ED"), ("TC", "NCR")):
        if label in by_colour and "ET" in by_colour and label not in by_code:
            inner = segments[by_colour.index("ET")].mask
            mask = segments[by_colour.index(label)].mask
            if inner.any() and np.count_nonzero(mask & inner) > 0.5 * np.count_nonzero(inner):
                found = [outer if key == label else key for key in found]
    return found, "segments by terminology" if any(by_code) else "segments by colour"


def _by_words(text: str) -> Optional[str]:
    plain = re.sub(_LEFT_OUT, "", re.sub(r"[_/.,;:()\[\]]+", " ", text.lower()))
    return next((key for key, pattern in _WORDS if re.search(pattern, plain)), None)


def _by_colour(colour: Optional[Sequence[float]]) -> Optional[str]:
    if colour is None:
        return None
    distances = {one.key: sum((a - b) ** 2 for a, b in zip(colour, one.colour)) for one in LABELS}
    nearest = min(distances, key=lambda key: distances[key])
    return nearest if distances[nearest] <= COLOUR_DISTANCE else None


def _read_segments(path: Path) -> Optional[LabelMap]:
    """The segments of Slicer's `.seg.nrrd`; None for a NRRD file without any."""
    with os_errors_as_input_errors(path):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder. Check the path.")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty (0 bytes).")
        check_nrrd_header(path)
        with itk_errors_as_input_errors(str(path)):
            image = sitk.ReadImage(str(path))
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    if image.GetDimension() != 3:
        raise InputError(f"{path}: a {image.GetDimension()}-D segmentation. Give a 3-D one.")
    numbers = sorted({int(found.group(1)) for key in fields if (found := re.match(r"Segment(\d+)_ID$", key))})
    if not numbers:
        return None
    check_axes(voxel_columns(image), str(path))
    array = sitk.GetArrayViewFromImage(image)
    layers = array[..., None] if array.ndim == 3 else array
    segments = [_segment(fields, number, layers, str(path)) for number in numbers]
    return label_map_from_segments(segments, _geometry_of(image), str(path))


def _segment(fields: Mapping[str, str], number: int, layers: np.ndarray, source: str) -> Segment:
    def text(name: str, default: str) -> str:
        return fields.get(f"Segment{number}_{name}", default)

    try:
        layer, value = int(text("Layer", "0")), float(text("LabelValue", "1"))
        colour = tuple(float(part) for part in text("Color", "").split())
        mask = layers[..., layer] == value
    except (ValueError, IndexError) as error:
        raise InputError(f"{source}: what it says of its segment {number} cannot be used ({error}).") from error
    return Segment(text("Name", ""), mask, text("ID", ""), colour if len(colour) == 3 else None, text("Tags", ""))


def _geometry_of(image: sitk.Image) -> sitk.Image:
    plain = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    plain.SetSpacing(image.GetSpacing())
    plain.SetOrigin(image.GetOrigin())
    plain.SetDirection(image.GetDirection())
    return plain


# --- on another grid -------------------------------------------------------------------------------------------------


def on_grid(label_map: LabelMap, reference: sitk.Image, name: str = "the reference") -> tuple[np.ndarray, list[str]]:
    """The labels (D, H, W) at the voxels of `reference`, each looked up by its place in the patient, and notices.

    Raises GeometryError where the whole tumour lies outside `reference`, which the message calls `name`.
    """
    if same_grid(label_map.image, reference):
        return label_map.labels, []
    image = array_to_image(label_map.labels, label_map.image)
    moved = sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0))
    before, after = mask_ml(label_map.labels > 0, label_map.image), mask_ml(moved > 0, reference)
    if before and not after:
        if not _reaches(label_map, reference):
            raise GeometryError(
                f"{label_map.source}: its tumour lies outside {name}; check that both are of one patient"
            )
        return moved, [
            f"{label_map.source}: its tumour ({before:.1f} ml) falls between the voxels of {name}, so nothing of it is "
            "compared; compare on its own grid."
        ]
    if after < (1 - LARGEST_LOSS) * before:
        return moved, [
            f"{label_map.source}: of {before:.1f} ml tumour only {after:.1f} ml lie on the grid of {name}; the rest is "
            "not compared"
        ]
    return moved, []


def _reaches(label_map: LabelMap, reference: sitk.Image) -> bool:
    """Whether a voxel of the tumour lies within `reference`, be it between the centres of its voxels."""
    index = np.argwhere(label_map.labels)[:, ::-1]
    points = index @ voxel_columns(label_map.image).T + label_map.image.GetOrigin()
    there = (points - reference.GetOrigin()) @ np.linalg.inv(voxel_columns(reference)).T
    return bool(((there > -0.5) & (there < np.array(reference.GetSize()) - 0.5)).all(axis=1).any())
