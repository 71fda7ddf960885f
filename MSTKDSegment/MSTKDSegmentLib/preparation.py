"""From what the scanner made to what the network was trained on: brain found, sequences registered, head turned.

Every movement is rigid, all are composed into one resampling per volume, and `Preparation.matrices` leads back:

canonical space --turn--> reference --registration--> each other sequence
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np
import SimpleITK as sitk

from .alignment import samples
from .bias_field import corrected
from .brain_search import Told, find_brains
from .errors import GeometryError, InputError
from .geometry import CanonicalGrid, array_to_image, grid_around, to_canonical
from .input_checks import check_brain, check_orientation, check_pairs, is_whole, together
from .look_roles import doubtful_looks
from .orientation import gain_of_turn
from .overlap import Foreground, sample_mask
from .preparation_record import GIVEN, NONE_NEEDED, PreparationRecord, Wishes
from .preprocess import Z_RANGE, brain_statistics, fill_holes, largest_piece
from .recognition import Recognition, sequence_records, skull_still_there
from .registration import (
    IDENTITY,
    LEAST_INFORMATION,
    CancelCheck,
    Registration,
    as_transform,
    centre,
    composed,
    inverted,
    register,
    stop_if,
    unmoved,
)
from .template import degrees_of, pose_of, rigid_part
from .volume_checks import voxel_columns
from .volumes import Volume

# Share of the reference's brain that may fall out of the other's by a registration that makes things better.
BRAIN_POINTS, LARGEST_LOSS = 3000, 0.05
# A slab that shares less than this with the reference's brain cannot be registered.
LEAST_SHARED = 0.5
# A movement smaller than both is no movement, but the registration's own error.
SMALLEST_MM, SMALLEST_DEGREES = 0.5, 0.4
# A head that lies as straight as this is not worth a turn.
LEAST_TURN_DEGREES = 5.0
# Mutual information (bits) with the template that the turn must win. Of 16 heads turned by 12 or 25 degrees, found
# to lie 6 to 29 degrees off, 0.075 at least was won; by poses of slabs and halves, up to 13 degrees off, 0.02 at most.
LEAST_TURN_GAIN = 0.05
# Further than patients move between two sequences: the coordinates of one of them are wrong.
FAR_MM = 40.0
FUSION_MM, FUSION_MARGIN_MM = 2.0, 20.0
# Shares of the preparation's progress.
EXTRACTED, REGISTERED, FUSED = 0.3, 0.75, 0.85


@dataclass(frozen=True)
class Preparation:
    """How the canonical grid lies in each sequence, and what the network sees.

    images: (D, H, W) float32 z-scores on `grid` by sequence, 0 outside `brain` (D, H, W) bool. matrices (3, 4) take
    points of the canonical space to each sequence's (LPS mm).
    """

    grid: CanonicalGrid
    images: Mapping[str, np.ndarray]
    brain: np.ndarray
    matrices: Mapping[str, np.ndarray]
    record: PreparationRecord
    notices: tuple[str, ...]


def prepare(
    volumes: Mapping[str, Volume],
    found: Mapping[str, Foreground],
    recognition: Recognition,
    reference: str,
    wishes: Wishes,
    told: Told,
    cancel: Optional[CancelCheck] = None,
    device: Callable[[], str] = lambda: "cpu",
) -> Preparation:
    """Prepare volumes that are not challenge-ready. `told(share, text)` is called with the progress of this part.

    Raises InputError where no brain is found, GeometryError where a sequence shows nothing that the reference shows,
    Cancelled.
    """
    clock = Laps()
    brains = find_brains(
        volumes, found, recognition.stripped, reference, wishes,
        lambda share, text: told(EXTRACTED * share, text), cancel, device,
    )  # fmt: skip
    masks = brains.masks
    run = _Run(volumes, masks, reference, wishes, recognition, told, cancel)
    wrong_headers = run.checked()
    clock.lap("brain extraction")
    registrations = {} if recognition.registered else run.registered(wrong_headers)
    brains = brains.without_lost([name for name, one in registrations.items() if one.failed], reference)
    run.notices += check_pairs(volumes, masks, reference, registrations)
    clock.lap("registration")
    turn, head_degrees, turned_degrees = run.turned()
    matrices = {name: composed(registrations[name].matrix, turn) if name in registrations else turn for name in volumes}
    trusted = {name: (brains.each[name].probability, volumes[name].image) for name in brains.trusted}
    brain_image = _fused(trusted, matrices, turn, volumes[reference].image, masks[reference])
    told(FUSED, "bringing all to the common grid")
    grid, brain = _grid_of(brain_image, _anchor(volumes[reference].image, turn))
    clock.lap("orientation")
    images = {}
    for n, name in enumerate(volumes):
        told(FUSED + (1 - FUSED) * n / len(volumes), f"normalising {name}")
        inside = _on_native(brain_image, volumes[name].image, matrices[name])
        if recognition.stripped[name]:
            inside &= masks[name]
        images[name] = run.normalised(name, inside, grid, brain, matrices[name])
    clock.lap("normalisation")
    record = PreparationRecord(
        reference,
        sequence_records(volumes, masks, recognition, registrations),
        all(recognition.stripped.values()),
        recognition.registered,
        recognition.upright and not turned_degrees,
        recognition.told,
        brains.extractor,
        float(brain.sum()) / 1000.0,
        turned_degrees,
        head_degrees,
        wishes.bias_correction,
        clock.seconds,
    )
    with_skull = [name for name in volumes if recognition.stripped[name] and not found[name].stripped]
    skull = [skull_still_there(with_skull)] if with_skull else []
    doubtful = doubtful_looks(volumes, masks, cancel)
    notices = [*brains.notices, *run.notices, *skull, *_notices(record, volumes), *doubtful]
    return Preparation(grid, images, brain, matrices, record, tuple(notices))


class Laps:
    """Seconds by what was done, from one `lap` to the next; what comes up again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self._last
        self._last = now


class _Run:
    """One preparation: the volumes, their brains, and whom to tell."""

    def __init__(
        self,
        volumes: Mapping[str, Volume],
        masks: Mapping[str, np.ndarray],
        reference: str,
        wishes: Wishes,
        recognition: Recognition,
        told: Told,
        cancel: Optional[CancelCheck],
    ) -> None:
        self._volumes, self._masks, self._reference = volumes, masks, reference
        self._wishes, self._recognition, self._told, self._cancel = wishes, recognition, told, cancel
        self.notices: list[str] = []
        self._poses: dict[str, np.ndarray] = {}
        if recognition.pose is not None and wishes.brain_mask is None:
            self._poses[reference] = recognition.pose

    def checked(self) -> list[str]:
        """Notes what is wrong with the brains, and gives the warnings about headers that turn the head wrongly."""
        volumes = self._volumes
        given = {self._reference: self._wishes.mask_source} if self._wishes.brain_mask is not None else {}
        found, turned = {}, {}
        for name, mask in self._masks.items():
            stop_if(self._cancel)
            found[name] = check_brain(volumes[name], name, mask, given.get(name, ""))
            turned[name] = check_orientation(volumes[name], name, mask, self._cancel)
        wrong_headers = together(volumes, turned)
        self.notices += [*together(volumes, found), *wrong_headers]
        return wrong_headers

    # --- where it lies ---

    def registered(self, wrong_headers: Sequence[str]) -> dict[str, Registration]:
        """Each other sequence laid on the reference, or left where it is with a notice."""
        names = [name for name in self._volumes if name != self._reference]
        results = {}
        for n, name in enumerate(names):
            share = EXTRACTED + (REGISTERED - EXTRACTED) * n / len(names)
            self._told(share, f"registering {name} to {self._reference}")
            results[name] = self._registered(name, wrong_headers)
        return results

    def _registered(self, name: str, wrong_headers: Sequence[str]) -> Registration:
        fixed, fixed_mask = self._volumes[self._reference], self._masks[self._reference]
        moving = self._volumes[name]
        between = composed(self._pose(name), inverted(self._pose(self._reference)))
        heads = {"heads": _rigid(between, fixed.image, fixed_mask)}
        found = register(fixed.image, fixed_mask, moving.image, self._masks[name], heads, self._cancel)
        shared = self._shared(name, IDENTITY)
        if found.after < LEAST_INFORMATION and 0 < shared < LEAST_SHARED:
            self.notices.append(
                f"{name} ({moving.source}) shows only {100 * shared:.0f} % of the brain: too little to register, "
                "so it was left where the scanner says. Check that it lies on the others."
            )
            return unmoved(found.before, failed=True)
        if found.after < LEAST_INFORMATION:
            raise GeometryError(
                f"{name} ({moving.source}) and {self._reference} ({fixed.source}) cannot be registered: they show "
                "nothing in common. Check that both are of the brain of one patient."
                + "".join(f" {warning}" for warning in wrong_headers)
            )
        if self._shared(name, found.matrix) < shared - LARGEST_LOSS:
            self.notices.append(
                f"{name} ({moving.source}) could not be registered to {self._reference}: what was found lies worse "
                "and was undone. Check that it shows the same patient, or register it elsewhere and say so."
            )
            return unmoved(found.before, failed=True)
        small = found.moved_mm < SMALLEST_MM and found.degrees < SMALLEST_DEGREES
        return unmoved(found.before) if small else found

    def _shared(self, name: str, matrix: np.ndarray) -> float:
        """Share of the reference's brain that lies in the sequence's, which `matrix` (3, 4) leads to."""
        points = samples(self._volumes[self._reference].image, self._masks[self._reference], BRAIN_POINTS).points
        there = points @ matrix[:, :3].T + matrix[:, 3]
        return float(sample_mask(self._masks[name], self._volumes[name].image, there).mean())

    def _pose(self, name: str) -> np.ndarray:
        """(3, 4) from the template to the volume."""
        if name not in self._poses:
            self._poses[name] = pose_of(self._volumes[name].image, self._masks[name], cancel=self._cancel)
        return self._poses[name]

    def turned(self) -> tuple[np.ndarray, Optional[float], float]:
        """(3, 4) from the canonical space to the reference's; how far the head is turned, and by how much it was.

        A brain that is not whole is turned only where the user says that it does not lie upright: its middle and its
        outline are not the template's.
        """
        if self._wishes.upright or self._recognition.challenge_ready:
            return IDENTITY.copy(), self._recognition.head_degrees, 0.0
        self._told(REGISTERED, "finding how the head lies")
        volume, mask = self._volumes[self._reference], self._masks[self._reference]
        if self._wishes.upright is None and not is_whole(volume.image, mask):
            return IDENTITY.copy(), None, 0.0
        pose = self._pose(self._reference)
        rotation = rigid_part(pose)
        middle = centre(volume.image, mask)
        degrees = degrees_of(rotation)
        if degrees < LEAST_TURN_DEGREES:
            return IDENTITY.copy(), degrees, 0.0
        if gain_of_turn(volume.image, mask, pose) < LEAST_TURN_GAIN:
            self.notices.append(
                f"The head on {self._reference} ({volume.source}) seems to lie {degrees:.0f} degrees from the usual "
                "pose, but turned it fits the template no better: it was left as it is. Check the result with care."
            )
            return IDENTITY.copy(), degrees, 0.0
        return np.column_stack([rotation, middle - rotation @ middle]), degrees, degrees

    # --- what the network sees ---

    def normalised(
        self, name: str, inside: np.ndarray, grid: CanonicalGrid, brain: np.ndarray, matrix: np.ndarray
    ) -> np.ndarray:
        """Z-scores (D, H, W) on `grid`, 0 outside `brain`, of the sequence whose brain is `inside`."""
        stop_if(self._cancel)
        volume = self._volumes[name]
        if not inside.any():
            raise GeometryError(f"{volume.source}: none of the brain is on it; check that all are of one patient")
        image = corrected(volume.image, inside, self._cancel) if self._wishes.bias_correction else volume.image
        voxels = sitk.GetArrayViewFromImage(image)
        mean, deviation = brain_statistics(voxels[inside])
        if not deviation > 0:
            raise InputError(
                f"{volume.source}: the intensities inside the brain are constant; give the MRI volume itself"
            )
        scores = np.clip((voxels - mean) / deviation, *Z_RANGE).astype(np.float32)
        if self._recognition.stripped[name]:  # zero, which is the brain's mean, and not "dark"
            scores[~inside] = 0.0
        canonical = to_canonical(array_to_image(scores, image), grid, matrix=matrix)
        return np.where(brain, canonical, np.float32(0.0))


def _rigid(matrix: np.ndarray, image: sitk.Image, mask: np.ndarray) -> np.ndarray:
    """`matrix` (3, 4) without its scaling; the centre of `mask` (D, H, W) of `image` still goes where it went."""
    rotation, middle = rigid_part(matrix), centre(image, mask)
    return np.column_stack([rotation, matrix[:, :3] @ middle + matrix[:, 3] - rotation @ middle])


def _fused(
    trusted: Mapping[str, tuple[sitk.Image, sitk.Image]],
    matrices: Mapping[str, np.ndarray],
    turn: np.ndarray,
    reference: sitk.Image,
    reference_mask: np.ndarray,
) -> sitk.Image:
    """The mean of the probabilities in canonical space, float32, 2 mm, cut to the largest piece without holes.

    trusted: by sequence the probability of brain and the sequence's own image, which says where it has voxels.
    """
    points = np.argwhere(reference_mask)[::11, ::-1] @ voxel_columns(reference).T + reference.GetOrigin()
    back = inverted(turn)
    canonical = points @ back[:, :3].T + back[:, 3]
    low, high = canonical.min(axis=0) - FUSION_MARGIN_MM, canonical.max(axis=0) + FUSION_MARGIN_MM
    size = np.ceil((high - low) / FUSION_MM).astype(int).tolist()
    total, weight = np.zeros(size[::-1], np.float32), np.zeros(size[::-1], np.float32)
    for name, (probability, image) in trusted.items():
        there = sitk.Resample(
            probability, size, as_transform(matrices[name]), sitk.sitkLinear, low.tolist(), [FUSION_MM] * 3,
            np.eye(3).ravel().tolist(), -1.0,
        )  # fmt: skip
        values = sitk.GetArrayViewFromImage(there)
        # Where a sequence has no voxels it says nothing, whatever the network made of the emptiness.
        seen = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
        seen.CopyInformation(image)
        covered = sitk.Resample(seen, there, as_transform(matrices[name]), sitk.sitkNearestNeighbor, 0)
        known = (values >= 0) & (sitk.GetArrayViewFromImage(covered) > 0)
        total[known] += values[known]
        weight[known] += 1
    mean = total / np.maximum(weight, 1)
    piece = fill_holes(largest_piece(mean > 0.5))
    # Interpolation between voxels keeps the border where it is, but nothing else is brain and no hole is left.
    fused = sitk.GetImageFromArray(np.where(piece, np.maximum(mean, 0.51), np.minimum(mean, 0.49)))
    fused.SetOrigin(low.tolist())
    fused.SetSpacing([FUSION_MM] * 3)
    return fused


def _anchor(reference: sitk.Image, turn: np.ndarray) -> np.ndarray:
    """A voxel of the reference in canonical space: where nothing was turned, the grid then copies its voxels."""
    middle = np.array(reference.TransformIndexToPhysicalPoint([n // 2 for n in reference.GetSize()]))
    back = inverted(turn)
    return back[:, :3] @ middle + back[:, 3]


def _grid_of(brain: sitk.Image, anchor: np.ndarray) -> tuple[CanonicalGrid, np.ndarray]:
    """The canonical grid around the brain, and the mask (D, H, W) bool on it."""
    inside = np.argwhere(sitk.GetArrayViewFromImage(brain) > 0.5)[:, ::-1] * FUSION_MM + brain.GetOrigin()
    if not inside.size:
        raise InputError(
            "no brain was found where the sequences overlap; check that all are of the head of one patient"
        )
    grid = grid_around(inside.min(axis=0), inside.max(axis=0), anchor)
    return grid, to_canonical(brain, grid) > 0.5


def _on_native(brain: sitk.Image, image: sitk.Image, matrix: np.ndarray) -> np.ndarray:
    """The mask (D, H, W) on the voxels of `image`, to whose space `matrix` takes points of the brain's."""
    there = sitk.Resample(brain, image, as_transform(inverted(matrix)), sitk.sitkLinear, 0.0)
    return np.asarray(sitk.GetArrayViewFromImage(there) > 0.5)


def _notices(record: PreparationRecord, volumes: Mapping[str, Volume]) -> list[str]:
    """What a user must know: what was done to the volumes, and what looks wrong with them."""
    notices = []
    if record.extractor not in (NONE_NEEDED, GIVEN):
        notices.append(
            f"The skull was removed here ({record.extractor}; brain {record.brain_ml:.0f} ml). Check the brain's "
            "outline before you rely on the result."
        )
    moved = [
        f"{name} by {one.moved_mm:.1f} mm and {one.degrees:.1f} degrees"
        for name, one in record.sequences.items()
        if one.moved
    ]
    if moved:
        notices.append(f"Moved to lie on {record.reference}: {', '.join(moved)}.")
    for name, one in record.sequences.items():
        if one.moved_mm > FAR_MM:
            notices.append(
                f"{name} ({volumes[name].source}) lay {one.moved_mm:.0f} mm away from {record.reference}: its "
                "coordinates are not the scanner's, or it is of another patient. Check it."
            )
    if record.turned_degrees >= 1:
        notices.append(
            f"The head was turned by {record.turned_degrees:.0f} degrees to the pose that the network knows."
        )
    if record.bias_corrected:
        notices.append("The bias field of each sequence was corrected (N4).")
    return notices
