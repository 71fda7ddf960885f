"""Are the volumes challenge-ready: skull-stripped, registered to each other, the head upright? With the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional

import numpy as np
import SimpleITK as sitk

from .alignment import Misalignment, misalignment, samples
from .overlap import Foreground
from .preparation_record import PreparationRecord, SequenceRecord, Wishes
from .registration import CancelCheck, Registration, stop_if
from .template import degrees_of, pose_of, rigid_part
from .volume_checks import mask_ml, same_grid
from .volumes import Volume


class _Limits(NamedTuple):
    """Bits to be won, and the distance or the turn that go with it, beyond which a sequence counts as moved."""

    gain: float
    mm: float
    degrees: float

    @classmethod
    def of(cls, image: sitk.Image, reference: sitk.Image) -> _Limits:
        return SAME_GRID if same_grid(image, reference) else OTHER_GRID


# Sequences that share one grid and are stripped were registered by somebody: only plain evidence speaks against it.
# The mutual information of such pairs of 56 patients of BraTS is highest up to 6 mm or 3 degrees away, and up to 0.3
# bits higher there, but never both 3 mm or 3 degrees away and more than 0.1 bits higher.
SAME_GRID, OTHER_GRID = _Limits(0.1, 3.0, 3.0), _Limits(0.03, 2.0, 1.5)
# Heads of those patients lie up to 9 degrees from the template's pose (one, whose pose is not found, 19), and MNI's own
# 13 degrees: the network copes.
UPRIGHT_DEGREES = 20.0


@dataclass(frozen=True)
class Recognition:
    """What the volumes are. pose: (3, 4) from the template to the reference; head_degrees: how far the head is turned
    from the template's pose. Both None where not asked.
    """

    stripped: Mapping[str, bool]
    registered: bool
    upright: bool
    head_degrees: Optional[float]
    misalignments: Mapping[str, Misalignment]
    told: tuple[str, ...]
    pose: Optional[np.ndarray] = None

    @property
    def all_told(self) -> bool:
        """Whether the user vouches for the volumes, so that nothing has to be looked at."""
        return len(self.told) == 3

    @property
    def challenge_ready(self) -> bool:
        """Whether nothing has to be done."""
        return all(self.stripped.values()) and self.registered and self.upright


def recognise(
    volumes: Mapping[str, Volume],
    found: Mapping[str, Foreground],
    reference: str,
    wishes: Wishes,
    cancel: Optional[CancelCheck] = None,
) -> Recognition:
    """Skull-stripped or not, registered or not, upright or not: from the volumes, unless `wishes` say it."""
    said = {"skull-stripped": wishes.skull_stripped, "registered": wishes.registered, "upright": wishes.upright}
    told = tuple(f"{'' if value else 'not '}{name}" for name, value in said.items() if value is not None)
    stripped = {
        name: found[name].stripped if wishes.skull_stripped is None else wishes.skull_stripped for name in volumes
    }
    offsets: dict[str, Misalignment] = {}
    alone = len(volumes) == 1
    registered = alone or bool(wishes.registered)
    if wishes.registered is None and not alone and all(stripped.values()):
        offsets = _misalignments(volumes, found, reference, cancel)
        registered = not any(_moved(offsets[name], volumes[name], volumes[reference]) for name in offsets)
    pose: Optional[np.ndarray] = None
    degrees: Optional[float] = None
    upright = True if wishes.upright is None else wishes.upright
    if wishes.upright is None and all(stripped.values()):
        image = volumes[reference].image
        pose = pose_of(image, found[reference].mask, cancel=cancel)
        degrees = degrees_of(rigid_part(pose))
        upright = degrees <= UPRIGHT_DEGREES
    return Recognition(stripped, registered, upright, degrees, offsets, told, pose)


def _misalignments(
    volumes: Mapping[str, Volume],
    found: Mapping[str, Foreground],
    reference: str,
    cancel: Optional[CancelCheck],
) -> dict[str, Misalignment]:
    probe = samples(volumes[reference].image, found[reference].mask)
    offsets = {}
    for name, volume in volumes.items():
        if name != reference:
            stop_if(cancel)
            # Far below what speaks against the registration, a closer look would change nothing.
            worth = _Limits.of(volume.image, volumes[reference].image).gain / 2
            offsets[name] = misalignment(probe, volume.image, worth_a_round=worth)
    return offsets


def _moved(offset: Misalignment, volume: Volume, reference: Volume) -> bool:
    limits = _Limits.of(volume.image, reference.image)
    if limits is OTHER_GRID and offset.here == 0.0:
        return True
    far = offset.millimetres > limits.mm or offset.degrees > limits.degrees
    return far and offset.best - offset.here > limits.gain


def skull_still_there(names: Sequence[str]) -> str:
    """What to tell of volumes that the user calls skull-stripped and that do not look so."""
    return (
        f"{', '.join(names)}: the skull seems to be still there, though you said that it is not. The network was "
        "trained on skull-stripped images; check the result with great care."
    )


def ready_record(
    volumes: Mapping[str, Volume], masks: Mapping[str, np.ndarray], reference: str, recognition: Recognition
) -> PreparationRecord:
    """The record of volumes that are left alone."""
    mask, image = masks[reference], volumes[reference].image
    return PreparationRecord(
        reference,
        sequence_records(volumes, masks, recognition, {}),
        True,
        recognition.registered,
        recognition.upright,
        recognition.told,
        brain_ml=mask_ml(mask, image),
        head_degrees=recognition.head_degrees,
    )


def sequence_records(
    volumes: Mapping[str, Volume],
    masks: Mapping[str, np.ndarray],
    recognition: Recognition,
    registrations: Mapping[str, Registration],
) -> dict[str, SequenceRecord]:
    """What is known of each sequence; `masks` (D, H, W): its brain, `registrations`: of those that were registered."""
    records = {}
    for name, volume in volumes.items():
        voxels = sitk.GetArrayViewFromImage(volume.image)
        outside = voxels[~masks[name]][::17]
        background = float(np.mean(outside == np.median(outside)) * (1 - masks[name].mean())) if outside.size else 0.0
        record = SequenceRecord(volume.source, recognition.stripped[name], background)
        if name in registrations:
            one = registrations[name]
            record = replace(
                record, similarity_before=one.before, similarity_after=one.after, moved_mm=one.moved_mm,
                degrees=one.degrees, start=one.start, failed=one.failed,
            )  # fmt: skip
        elif name in recognition.misalignments:
            here = recognition.misalignments[name].here
            record = replace(record, similarity_before=here, similarity_after=here)
        records[name] = record
    return records
