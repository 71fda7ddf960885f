"""What is wrong with a volume or a pair of volumes, told before anybody relies on the result.

An InputError where a volume cannot be what it was given as, else warnings: a sentence or two that name the file, what
is wrong and what to do. Geometry, header and grey levels decide here; what a sequence looks like is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .brain_extraction import BRAIN_ML
from .errors import InputError
from .orientation import orientation_of
from .patients import differing_tags
from .registration import CancelCheck, Registration
from .sequence_words import read_words
from .structure import likeness
from .volume_checks import mask_ml, voxel_columns
from .volumes import Volume

# --- any volume ---

# What DICOM calls other machines than MRI, whose pictures could be taken for it.
OTHER_MODALITIES = {"CT": "CT", "PT": "PET", "NM": "nuclear medicine", "US": "ultrasound", "XA": "angiography (X-ray)"}
# Of DICOM's ImageType: what is no plain picture.
IMAGE_TYPES = {
    "LOCALIZER": "a localiser",
    "ADC": "a diffusion map (ADC)",
    "DIFFUSION": "diffusion imaging",
    "TRACEW": "diffusion imaging (trace)",
    "PERFUSION": "perfusion imaging",
    "PROJECTION IMAGE": "a projection (angiography)",
    "SUBTRACTION": "a subtraction",
}
# Slices further apart than any of the four sequences is acquired in; 2-D series of the clinic: 3 to 7.5 mm.
LARGEST_GAP_MM = 8.5
# Voxels as in echo-planar imaging: in the plane of thick slices, and where all three sides are alike. Planes of T1, T2
# and FLAIR have 0.4 to 1.2 mm.
COARSE_IN_PLANE_MM, COARSE_MM, THICK = 1.6, 2.2, 1.4
# Correlation of neighbouring slices where a stack of one plane ends and the next begins: 0.3 to 0.75 in stacks made of
# nine real volumes; a stack of more slices is no localiser.
BETWEEN_PLANES, MOST_LOCALISER_SLICES = 0.8, 60
LOOK_MM, LOOK_VOXELS = 4.0, 150_000

# Hounsfield units: air, soft tissue between fat and blood.
AIR_HU, SOFT_HU, BONE_HU = (-3100.0, -900.0), (-120.0, 120.0), 200.0
LEAST_AIR = 0.05
BRAIN_HU = (10.0, 65.0)
STORED_OFFSET = 1024.0
# The share of head voxels that hold exactly the largest value: 0.1 % at most on 224 volumes of BraTS.
LEAST_CLIPPED = 0.05
# Mean diffusivity of brain and CSF in mm2/s.
ADC_MM2_S = (3e-4, 3e-3)

# --- a brain ---

# Of 224 masks of BraTS, 1084 to 1747 ml, the field of view cuts off up to 37 cm2, always at the brain stem.
LARGEST_CUT_CM2 = 40.0
CORE_STEP_MM = 4.0
# Share of the mask that is left when its outermost 4 mm go: 4/5 of a brain, next to nothing of vessels.
LEAST_CORE = 0.3

# Mutual information (bits) that another orientation must win. 222 of 224 wrong headers of 28 patients of BraTS won it,
# 40 of 42 of six raw volumes with the mask of our own network; none of 224 right ones, nor of 112 tilted heads.
TURNED_GAIN = 0.15

_DIRECTIONS = (("left", "right"), ("back", "front"), ("top", "bottom"))


def check_volume(volume: Volume, name: str) -> list[str]:
    """Warnings about a volume as it was read: a localiser, echo-planar imaging, a CT; from header and grey levels.

    Raises InputError for what cannot be one of the sequences: a CT or another machine's picture, or three planes in one
    stack.
    """
    who = f"{name} ({volume.source})"
    _refuse_other_machines(volume, who)
    _refuse_three_planes(volume, who)
    from_header = [*_orientation_warnings(volume, who), *_header_warnings(volume, who)]
    return [*from_header, *_geometry_warnings(volume, who), *_grey_level_warnings(volume, who)]


def _refuse_other_machines(volume: Volume, who: str) -> None:
    modality = volume.tags.get("Modality", "").upper()
    if modality in OTHER_MODALITIES:
        raise InputError(f"{who}: its DICOM header says {OTHER_MODALITIES[modality]}, not MRI. Give the MRI volume.")


def _orientation_warnings(volume: Volume, who: str) -> list[str]:
    if volume.oriented:
        return []
    return [
        f"{who}: its header says nothing of the orientation (NIfTI, qform and sform code 0), so its directions are a "
        "guess, left and right too. Convert it again from DICOM, or check every side."
    ]


def _header_warnings(volume: Volume, who: str) -> list[str]:
    """From the words of its name and the DICOM header; one warning says it all."""
    tags = volume.tags
    kinds = {value.strip().upper() for value in tags.get("ImageType", "").split("\\")}
    for word, kind in IMAGE_TYPES.items():
        if word in kinds:
            return [f"{who}: its DICOM header says that it is {kind}, not one of the four sequences. Check the choice."]
    if "EP" in tags.get("ScanningSequence", "").upper().split("\\"):
        return [f"{who}: {_echo_planar('its DICOM header says that it is')}"]
    texts = {
        "its name": Path(volume.source).name,
        "its series description": tags.get("SeriesDescription", ""),
        "its protocol": tags.get("ProtocolName", ""),
    }
    for what, text in texts.items():
        words = read_words(text)
        localiser = words.not_input_kind.startswith("a localiser")
        if words.not_input and (localiser or not (words.t1 or words.t2 or words.flair)):
            return [f"{who}: {what} ({words.not_input!r}) says: {words.not_input_kind}. Check the choice."]
    return []


def _echo_planar(how: str) -> str:
    return (
        f"{how} echo-planar (diffusion, perfusion or functional imaging), not T1, T2 or FLAIR. Check the choice; "
        "without this volume the result is better."
    )


def _geometry_warnings(volume: Volume, who: str) -> list[str]:
    first, second, third = sorted(volume.image.GetSpacing())
    shown = " x ".join(f"{side:.3g}" for side in volume.image.GetSpacing())
    if third > LARGEST_GAP_MM:
        return [
            f"{who}: its slices are {third:.3g} mm apart, as in a localiser or scout; what lies between them cannot be "
            "seen. Give the full series."
        ]
    coarse = first >= COARSE_MM or (first >= COARSE_IN_PLANE_MM and third >= THICK * second)
    if coarse:
        return [f"{who}: {_echo_planar(f'voxels of {shown} mm are those of a localiser or of something')}"]
    return []


def _refuse_three_planes(volume: Volume, who: str) -> None:
    """Three stacks of equal size one after another: the two places at which the slices change most are the thirds."""
    alike = slice_correlations(volume.image)
    count = len(alike) + 1
    if count % 3 or count > MOST_LOCALISER_SLICES:
        return
    thirds = {count // 3 - 1, 2 * count // 3 - 1}
    lowest = np.argsort(alike)[:2]
    if {int(k) for k in lowest} == thirds and alike[lowest].max() < BETWEEN_PLANES:
        raise InputError(
            f"{who}: {count} slices in three stacks of different content, as in a localiser of three planes. Give a "
            "series of one plane."
        )


def slice_correlations(image: sitk.Image) -> np.ndarray:
    """(N - 1,): correlation of each of N slices with the next.

    Slices follow each other along the axis of the largest spacing or, where all are alike, of the fewest voxels.
    """
    voxels, spacing = sitk.GetArrayViewFromImage(image), image.GetSpacing()[::-1]
    thick = max(spacing) > 1.2 * min(spacing)
    axis = int(np.argmax(spacing)) if thick else int(np.argmin(voxels.shape))
    steps = [1 if k == axis else max(1, round(LOOK_MM / spacing[k])) for k in range(3)]
    slices = np.moveaxis(voxels[:: steps[0], :: steps[1], :: steps[2]], axis, 0)
    flat = slices.reshape(len(slices), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1)
    products = lengths[1:] * lengths[:-1]
    return np.where(products > 0, (flat[1:] * flat[:-1]).sum(axis=1) / np.where(products > 0, products, 1), 0.0)


def _grey_level_warnings(volume: Volume, who: str) -> list[str]:
    """Raises InputError for Hounsfield units."""
    voxels = sitk.GetArrayViewFromImage(volume.image)
    step = max(1, int((voxels.size / LOOK_VOXELS) ** (1 / 3)))
    some = voxels[::step, ::step, ::step].ravel()
    if _hounsfield(some):
        raise InputError(
            f"{who}: looks like a CT, not MRI: {100 * _share(some, *AIR_HU):.0f} % of its voxels have the value of air "
            "in Hounsfield units. Give the MRI volume."
        )
    reason = _like_ct(some, float(voxels.max()))
    if reason:
        return [
            f"{who}: {reason}, as in a CT or a picture windowed for viewing. Give the MRI volume as it was scanned."
        ]
    signal = some[some > 0]
    if signal.size and some.min() >= 0 and ADC_MM2_S[0] < np.median(signal) < np.percentile(signal, 95) < ADC_MM2_S[1]:
        return [
            f"{who}: its values are those of a diffusion map (ADC in mm2/s), not of T1, T2 or FLAIR. Check the choice."
        ]
    return []


def _share(values: np.ndarray, low: float, high: float) -> float:
    return float(np.mean((values >= low) & (values <= high))) if values.size else 0.0


def _hounsfield(values: np.ndarray) -> bool:
    """Air near -1000 (or a scanner's padding below it), and what is no air is soft tissue in the mean."""
    tissue = values[values > -500]
    return (
        _share(values, *AIR_HU) >= LEAST_AIR
        and tissue.size > 0
        and SOFT_HU[0] <= float(np.median(tissue)) <= SOFT_HU[1]
    )


def _like_ct(values: np.ndarray, largest: float) -> str:
    """Why grey levels could be a CT's that was clipped or shifted; "" where they could not."""
    least = float(values.min())
    head = values[values > least + 0.02 * (largest - least)]
    clipped = float(np.mean(head >= largest)) if head.size else 0.0
    # A volume of a few grey levels is a label map or a phantom.
    if clipped >= LEAST_CLIPPED and len(np.unique(head)) > 30:
        return f"{100 * clipped:.0f} % of the head hold exactly the largest value ({largest:g})"
    if least == 0 and _share(values, 0, 0) >= 0.2:
        rest = values[values > 0]
        bone = float(np.mean(rest > BONE_HU))
        if largest > 2 * BONE_HU and _share(rest, *BRAIN_HU) >= 0.4 and bone >= 0.04:
            return f"most values lie between {BRAIN_HU[0]:g} and {BRAIN_HU[1]:g} and {100 * bone:.0f} % far above"
    if -500 <= least <= -50 and _share(values, least, least) >= 0.1:
        rest = values[values > least]
        if SOFT_HU[0] <= float(np.median(rest)) <= SOFT_HU[1]:
            return f"its background is {least:g} and its middle {float(np.median(rest)):g}, in Hounsfield units"
    soft = _share(head, STORED_OFFSET + SOFT_HU[0] / 2, STORED_OFFSET + SOFT_HU[1] / 2)
    if least >= 0 and _share(values, 0, 100) >= 0.1 and soft >= 0.5 and largest > 2 * STORED_OFFSET:
        return f"{100 * soft:.0f} % of the head have values around {STORED_OFFSET:g}, water in stored Hounsfield units"
    return ""


def check_brain(volume: Volume, name: str, mask: np.ndarray, given: str = "") -> list[str]:
    """Warnings about the brain `mask` (D, H, W) of a volume: cut by the field of view, too small, too large.

    given: what the user's brain mask is called, where `mask` is that. Raises InputError where the mask is no solid
    body: vessels or a contour on a background of zeros.
    """
    who = f"{name} ({volume.source})"
    core = _core_share(volume.image, mask)
    if core < LEAST_CORE and given:
        raise InputError(f"{given}: the brain mask on {who} is no brain but thin pieces. Mark the whole brain.")
    if core < LEAST_CORE:
        raise InputError(
            f"{who}: shows no brain but thin pieces (of vessels, of a contour?). Give the MRI volume of the head."
        )
    ml = mask_ml(mask, volume.image)
    cuts = cut_faces(volume.image, mask)
    if cuts:
        faces = " and ".join(f"{area:.0f} cm2 at the {face}" for face, area in cuts.items())
        return [
            f"{who}: the field of view cuts through the brain ({faces}; {ml:.0f} ml are shown). What lies outside is "
            "not segmented, and volumes are too small; give a volume of the whole head where there is one."
        ]
    if not BRAIN_ML[0] <= ml <= BRAIN_ML[1]:
        return [
            f"{who}: the brain measures {ml:.0f} ml, an adult's {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} ml. Check the "
            f"voxel size in the header and {f'the brain mask {given}' if given else 'its outline'}; of children the "
            "network knows little."
        ]
    return []


def _core_share(image: sitk.Image, mask: np.ndarray) -> float:
    """The share of `mask` (D, H, W) that has mask on all sides at a distance of `CORE_STEP_MM` or a voxel."""
    x, y, z = (max(1, round(CORE_STEP_MM / spacing)) for spacing in image.GetSpacing())
    coarse = mask[::z, ::y, ::x]
    count = np.count_nonzero(coarse)
    # What lies beyond the field of view is not known to be outside.
    core = ndimage.binary_erosion(coarse, border_value=1)
    return float(np.count_nonzero(core) / count) if count else 0.0


def cut_faces(image: sitk.Image, mask: np.ndarray) -> dict[str, float]:
    """Area in cm2 of `mask` (D, H, W) on each face of the image that cuts through it, by the name of the side."""
    columns = voxel_columns(image)
    found = {}
    for axis in range(3):
        sides = [np.linalg.norm(columns[:, k]) for k in range(3) if k != axis]
        for end, sign in ((0, -1), (-1, 1)):
            area = np.count_nonzero(np.take(mask, end, 2 - axis)) * float(np.prod(sides)) / 100.0
            if area > LARGEST_CUT_CM2:
                found[_direction(sign * columns[:, axis])] = area
    return found


def _direction(vector: np.ndarray) -> str:
    """The side of the head to which an LPS vector points, by the header."""
    axis = int(np.argmax(np.abs(vector)))
    return _DIRECTIONS[axis][0 if vector[axis] > 0 else 1]


def is_whole(image: sitk.Image, mask: np.ndarray) -> bool:
    """Whether `mask` (D, H, W) has the size of an adult's brain and the field of view does not cut through it."""
    return BRAIN_ML[0] <= mask_ml(mask, image) <= BRAIN_ML[1] and not cut_faces(image, mask)


def check_orientation(volume: Volume, name: str, mask: np.ndarray, cancel: Optional[CancelCheck] = None) -> list[str]:
    """A warning where the brain `mask` (D, H, W) clearly lies in another orientation than the header says.

    Nothing is said of a brain that is not whole, and nothing of left and right. Raises Cancelled.
    """
    if not is_whole(volume.image, mask):
        return []
    found = orientation_of(volume.image, mask, cancel)
    if found.as_header_says or found.best - found.here < TURNED_GAIN:
        return []
    top, front = found.turn @ (0, 0, 1), found.turn @ (0, -1, 0)
    return [
        f"{name} ({volume.source}): its header does not fit the image, which looks {_how_turned(top, front)}. Correct "
        "the header or export the volume again; left and right cannot be told from the image, so check them too."
    ]


def _how_turned(top: np.ndarray, front: np.ndarray) -> str:
    """In words, where LPS vectors say to which side of the header the brain's top and front point."""
    sides = _direction(top), _direction(front)
    plain = {
        ("bottom", "front"): "upside down",
        ("top", "back"): "turned back to front",
        ("bottom", "back"): "upside down and back to front",
    }
    return plain.get(
        sides, f"turned by 90 degrees or more (its top lies at the header's {sides[0]}, its front at the {sides[1]})"
    )


def check_pair(
    reference: Volume,
    reference_mask: np.ndarray,
    other: Volume,
    other_mask: np.ndarray,
    registration: Optional[Registration],
) -> list[str]:
    """Warnings where two volumes seem to be of two patients, by their DICOM headers or by their brains' inside.

    The masks (D, H, W) are those of the brains; `registration` lays `other` on `reference`, None where they lie right.
    """
    pair = f"{other.source} and {reference.source}"
    warnings = []
    differing = differing_tags(reference.tags, other.tags)
    if differing:
        warnings.append(
            f"{pair}: their DICOM headers name two patients ({', '.join(differing)} differ). Check that both are "
            "of one."
        )
    matrix = None if registration is None else registration.matrix
    found = likeness(reference.image, reference_mask, other.image, other_mask, matrix)
    if found is not None and not found.same:
        warnings.append(
            f"{pair}: the brains on them do not match. They are of two patients, do not lie on each other, or one is "
            "mirrored; check both."
        )
    return warnings


def check_pairs(
    volumes: Mapping[str, Volume],
    masks: Mapping[str, np.ndarray],
    reference: str,
    registrations: Mapping[str, Registration],
) -> list[str]:
    """`check_pair` of each sequence with the reference; `registrations` of those that were moved."""
    return [
        warning
        for name, volume in volumes.items()
        if name != reference
        for warning in check_pair(volumes[reference], masks[reference], volume, masks[name], registrations.get(name))
    ]


def check_ready(volumes: Mapping[str, Volume], masks: Mapping[str, np.ndarray], reference: str) -> list[str]:
    """All warnings about the brains `masks` (D, H, W) of stripped volumes that lie on each other as they are."""
    brains = together(volumes, {name: check_brain(volume, name, masks[name]) for name, volume in volumes.items()})
    header = check_orientation(volumes[reference], reference, masks[reference])  # the others lie as it does
    return [*brains, *header, *check_pairs(volumes, masks, reference, {})]


def together(volumes: Mapping[str, Volume], warnings: Mapping[str, Sequence[str]]) -> list[str]:
    """The `warnings` by sequence as one list; what is the same for several volumes is said once, with all names."""
    names: dict[str, list[str]] = {}
    for name, said in warnings.items():
        who = f"{name} ({volumes[name].source})"
        for warning in said:
            names.setdefault(warning[len(who) :], []).append(who)
    return [", ".join(who) + text for text, who in names.items()]
