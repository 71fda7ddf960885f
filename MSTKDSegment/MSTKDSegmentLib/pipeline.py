"""The one path from volumes to a segmentation. The command line, Slicer, the browser and training's evaluation call it.

read -> check -> (prepare, where they are not challenge-ready) -> canonical grid -> normalise -> network -> native grid
-> clean-up. Each arrow is one function of this library; front ends hold no image logic.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, TypeVar, Union

import numpy as np
import SimpleITK as sitk

from . import __version__
from .accelerator import NONE, AcceleratedNetwork, choose_accelerated
from .brain_search import unasked
from .decision import Decision
from .errors import GeometryError, InputError, WeightsError
from .geometry import CanonicalGrid, canonical_grid, labels_to_native, to_canonical, to_native
from .input_checks import check_ready, check_volume, together
from .look_roles import doubtful_looks
from .modalities import MODALITIES, availability, subset_name
from .overlap import Foreground, check_overlap, default_reference, find_foreground, same_volume_twice
from .preparation import Laps, prepare
from .preparation_record import PreparationRecord, Wishes
from .preprocess import fill_holes, normalise
from .recognition import Recognition, ready_record, recognise, skull_still_there
from .regions import CleanUp, region_probabilities, remove_small_components, volumes_ml, voxel_volume_ml
from .registration import IDENTITY, as_transform, composed, inverted, stop_if
from .volumes import Volume, read_volume, volume_from_image
from .weights import Bundle, load_network, read_bundle

if TYPE_CHECKING:
    from .inference import Prediction
    from .network import MSTKDNet

Source = Union[str, Path, sitk.Image, Volume]
# (fraction 0..1 that never falls, what is being done)
Progress = Callable[[float, str], None]
CancelCheck = Callable[[], bool]

# Share of the whole run that each stage gets on the progress bar; the network reports its own work inside its share.
READ_SHARE, CHECK_SHARE, PREPARE_SHARE, NETWORK_SHARE = 0.1, 0.05, 0.15, 0.6
# Finding the brain, registration and orientation take most of the time where they are needed.
CLINICAL_PREPARE_SHARE, CLINICAL_NETWORK_SHARE = 0.55, 0.25
# A canonical side beyond this is no head: a body scan, or a header with the wrong unit.
MAX_SIDE_MM = 416


@dataclass(frozen=True)
class PreparedCase:
    """What the network sees: `image` (4, D, H, W) float32 on `grid`, zero where absent; `availability` (4,).

    `matrices` (3, 4) take points of the grid's space to each sequence's (LPS mm): none for volumes that were left
    alone, which share its space. `brain` (D, H, W) bool on the grid. `prepared_share`: of a run's progress, what is
    done. `seconds`: by stage of reading and preparing.
    """

    volumes: Mapping[str, Volume]
    reference: str
    grid: CanonicalGrid
    image: np.ndarray
    availability: np.ndarray
    notices: tuple[str, ...]
    brain: np.ndarray
    record: PreparationRecord
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)
    prepared_share: float = READ_SHARE + CHECK_SHARE + PREPARE_SHARE
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def subset(self) -> tuple[str, ...]:
        """The sequences that the network sees."""
        return tuple(m for m, present in zip(MODALITIES, self.availability) if present)

    @property
    def reference_image(self) -> sitk.Image:
        return self.volumes[self.reference].image

    def matrix(self, name: str) -> np.ndarray:
        """(3, 4) from the grid's space to the sequence's."""
        return self.matrices.get(name, IDENTITY)

    def on_reference_grid(self) -> dict[str, np.ndarray]:
        """The volumes as they were read, (D, H, W) by sequence, where the registration laid them on the reference."""
        images = {}
        for name, volume in self.volumes.items():
            there = as_transform(self.matrix_from_reference(name))
            moved = sitk.Resample(volume.image, self.reference_image, there, sitk.sitkLinear, 0.0)
            images[name] = sitk.GetArrayFromImage(moved)
        return images

    def only(self, subset: Collection[str]) -> PreparedCase:
        """The same case as the network sees it without the sequences that are not in `subset` (not empty)."""
        kept = availability(name for name in self.subset if name in subset)
        image = self.image * kept[:, None, None, None]
        return replace(self, image=image, availability=kept)

    def matrix_from_reference(self, name: str) -> np.ndarray:
        """(3, 4) from the reference's space to the sequence's, as the registration found it."""
        return composed(self.matrix(name), inverted(self.matrix(self.reference)))


@dataclass(frozen=True)
class Segmentation:
    """The result on the reference's grid: `labels` (D, H, W) uint8, 1 NCR, 2 ED, 3 ET; volumes in ml.

    `region_probabilities` (3, D, H, W) float32 of WT, TC, ET, if they were asked for: calibrated on validation patients
    where the card says how, so that their borders are not those of `labels` at one half. `notices` are sentences that
    the user must see; `seconds` by stage. `doubted_ml`: whole tumour that would have been marked and was not, because
    the network was nowhere sure (`Decision.evidence`); `labels` is empty then.
    """

    case: PreparedCase
    labels: np.ndarray
    volumes_ml: Mapping[str, float]
    notices: tuple[str, ...]
    provenance: Mapping[str, str]
    seconds: Mapping[str, float]
    region_probabilities: np.ndarray | None = field(default=None, repr=False)
    doubted_ml: float = 0.0

    @property
    def reference_image(self) -> sitk.Image:
        return self.case.reference_image


def read_case(
    sources: Mapping[str, Source],
    reference: str | None = None,
    progress: Progress | None = None,
    cancel: CancelCheck | None = None,
    wishes: Wishes | None = None,
    device: Callable[[], str] = lambda: "cpu",
) -> PreparedCase:
    """Read, check, prepare and normalise the sequences that exist, given as files or images by T1, T1Gd, T2, FLAIR.

    `wishes` says what the user knows of them (`preparation_record.READY`: that nothing has to be done); the rest is
    found out. `device` is asked, where the brain has to be extracted, on what that runs. Raises InputError (and its
    kinds GeometryError, RoleError) with one line that names the file, Cancelled on request.
    """
    wishes = wishes or Wishes()
    unknown = [name for name in sources if name not in MODALITIES]
    if unknown:
        raise InputError(f"unknown sequence {', '.join(unknown)}; the sequences are {', '.join(MODALITIES)}")
    if not sources:
        raise InputError("no sequence was given; give at least one of T1, T1Gd, T2 and FLAIR")
    if reference is not None and reference not in sources:
        raise InputError(f"the reference {reference} is not among the sequences given ({', '.join(sources)})")
    order = [m for m in MODALITIES if m in sources]
    step = _Steps(progress, cancel)
    clock = Laps()
    volumes: dict[str, Volume] = {}
    for index, name in enumerate(order):
        step(READ_SHARE * index / len(order), f"reading {name}")
        volumes[name] = _volume(sources[name])
    clock.lap("read")
    notices = together(volumes, {name: check_volume(volume, name) for name, volume in volumes.items()})
    same_volume_twice(volumes)
    found: dict[str, Foreground] = {}
    for index, name in enumerate(order):
        step(READ_SHARE + CHECK_SHARE * index / len(order), f"finding the brain on {name}")
        found[name] = find_foreground(volumes[name].image)
    chosen = reference or default_reference({name: v.image for name, v in volumes.items()})
    recognition = recognise(volumes, found, chosen, wishes, cancel)
    clock.lap("recognise")
    if recognition.challenge_ready and not wishes.bias_correction and wishes.brain_mask is None:
        notices += unasked(wishes, recognition.stripped, chosen)
        return _ready_case(volumes, found, chosen, recognition, step, clock, notices)
    before = READ_SHARE + CHECK_SHARE
    prepared = prepare(
        volumes, found, recognition, chosen, wishes,
        lambda share, text: step(before + CLINICAL_PREPARE_SHARE * share, text), cancel, device,
    )  # fmt: skip
    image = np.zeros((len(MODALITIES), *prepared.grid.shape), np.float32)
    for name in order:
        image[MODALITIES.index(name)] = prepared.images[name]
    clock.lap("prepare")
    return PreparedCase(
        volumes, chosen, prepared.grid, image, availability(order), (*notices, *prepared.notices), prepared.brain,
        prepared.record, prepared.matrices, before + CLINICAL_PREPARE_SHARE, clock.seconds,
    )  # fmt: skip


def _ready_case(
    volumes: Mapping[str, Volume],
    found: Mapping[str, Foreground],
    chosen: str,
    recognition: Recognition,
    step: _Steps,
    clock: Laps,
    notices: list[str],
) -> PreparedCase:
    """Challenge-ready volumes: nothing is moved, voxels are copied where the lattices coincide."""
    masks = {name: foreground.mask for name, foreground in found.items()}
    notices = notices + check_overlap(volumes, masks)
    if not recognition.all_told:
        notices += check_ready(volumes, masks, chosen)
        notices += doubtful_looks(volumes, masks, step.cancel)
    clock.lap("check")
    grid = _grid(volumes, chosen, masks)
    order = list(volumes)
    image = np.zeros((len(MODALITIES), *grid.shape), np.float32)
    brain = np.zeros(grid.shape, bool)
    before = READ_SHARE + CHECK_SHARE
    for index, name in enumerate(order):
        step(before + PREPARE_SHARE * index / len(order), f"normalising {name}")
        clock.lap("common grid")
        normalised = _normalised(volumes[name], masks[name])
        clock.lap("normalise")
        step(before + PREPARE_SHARE * (index + 0.5) / len(order), f"bringing {name} to the common grid")
        image[MODALITIES.index(name)] = to_canonical(normalised, grid)
        brain |= image[MODALITIES.index(name)] != 0
    unstripped = [name for name in order if not found[name].stripped]
    if unstripped:
        notices.append(skull_still_there(unstripped))
    clock.lap("common grid")
    record = ready_record(volumes, masks, chosen, recognition)
    clock.lap("check")
    return PreparedCase(
        volumes, chosen, grid, image, availability(order), tuple(notices), brain, record, seconds=clock.seconds
    )


def _volume(source: Source) -> Volume:
    if isinstance(source, Volume):
        return source
    if isinstance(source, sitk.Image):
        return volume_from_image(source, "image in memory")
    return read_volume(source)


def _grid(volumes: Mapping[str, Volume], reference: str, masks: Mapping[str, np.ndarray]) -> CanonicalGrid:
    grid = canonical_grid({name: v.image for name, v in volumes.items()}, reference, masks=masks)
    if max(grid.size) > MAX_SIDE_MM:
        sources = ", ".join(v.source for v in volumes.values())
        raise GeometryError(
            f"{sources}: together they span {' x '.join(map(str, grid.size))} mm, more than a head; check that all are "
            "brain volumes of one patient in one coordinate system"
        )
    return grid


def _normalised(volume: Volume, mask: np.ndarray) -> sitk.Image:
    """Z-scores on the volume's own grid, so that thick slices and odd grids get the statistics of their own voxels."""
    brain = fill_holes(mask)
    try:
        array = normalise(sitk.GetArrayViewFromImage(volume.image), brain)
    except ValueError as error:
        raise InputError(f"{volume.source}: {error}; give the MRI volume itself") from error
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(volume.image)
    return image


Rules = TypeVar("Rules")


def _from_card(bundle: Bundle, name: str, read: Callable[[Mapping[str, Any]], Rules]) -> Rules:
    """The card's entry `name`, as `read` understands it; empty where the card has none."""
    try:
        return read(bundle.card.get(name.replace("-", "_"), {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{bundle.source}: the card's {name} is unusable ({error})") from error


def doubt_notices(doubted_ml: float, subset: str) -> tuple[str, ...]:
    """What the user is told when nothing is marked because the network is nowhere sure, with `subset` by its name."""
    if doubted_ml == 0:
        return ()
    sequences = subset.split("+")
    more = "" if len(sequences) == len(MODALITIES) else "another sequence may tell; "
    return (
        f"No tumour is marked: on {', '.join(sequences)} the network takes {doubted_ml:.1f} ml for one, but is nowhere "
        f"as sure as it was of real tumours. A faint tumour can be missed in this way; {more}the probability maps, if "
        "you ask for them, show what it saw.",
    )


class Segmenter:
    """A bundle on a device, ready for one case after another: weights are read once and stay on the device.

    accelerator: what runs the network in the place of torch, one of `accelerator.ACCELERATORS`. `seconds` says how long
    making it took. Raises WeightsError (damaged or foreign bundle) and DeviceError (a device or accelerator that is not
    there).
    """

    def __init__(
        self,
        weights: str | Path | Bundle | None = None,
        device: str = "auto",
        window: int | None = None,
        accelerator: str = NONE,
    ) -> None:
        clock = Laps()
        self.bundle = weights if isinstance(weights, Bundle) else read_bundle(weights)
        clock.lap("read the weights")
        import torch  # noqa: F401 - comes with the next line anyway; here it is timed

        clock.lap("import torch")
        self.device = choose_accelerated(accelerator, device)
        clock.lap("choose the device")
        self.window, self.accelerator = window, accelerator
        self.clean_up = _from_card(self.bundle, "clean-up", CleanUp.from_dict)
        self.decision = _from_card(self.bundle, "decision", Decision.from_dict)
        self.network: MSTKDNet | AcceleratedNetwork = load_network(self.bundle)
        if accelerator != NONE:
            self.network = AcceleratedNetwork(self.network)
            self.network.prepare()
        clock.lap("make the network")
        self.seconds: Mapping[str, float] = clock.seconds

    def segment(
        self,
        sources: Mapping[str, Source],
        *,
        reference: str | None = None,
        want_probabilities: bool = False,
        progress: Progress | None = None,
        cancel: CancelCheck | None = None,
        wishes: Wishes | None = None,
    ) -> Segmentation:
        """Segment one patient from the sequences in `sources` (any non-empty subset); `wishes` as in `read_case`.

        The result lies on the grid of `reference` (default: the finest sequence, T1Gd preferred). `progress` is called
        with a fraction that never falls. A true `cancel()` ends the run with Cancelled at the next look at it. On two
        cores and a raw patient of four sequences looks are 0.5 s apart at most; what a busy computer makes slow is not
        interrupted.
        """
        start = time.perf_counter()
        case = read_case(sources, reference, progress, cancel, wishes, lambda: self.device.name)
        prepared = time.perf_counter()
        return self.segment_prepared(
            case,
            want_probabilities=want_probabilities,
            progress=progress,
            cancel=cancel,
            seconds={"read and prepare": prepared - start},
        )

    def segment_prepared(
        self,
        case: PreparedCase,
        *,
        want_probabilities: bool = False,
        progress: Progress | None = None,
        cancel: CancelCheck | None = None,
        seconds: Mapping[str, float] | None = None,
        flipped: Sequence[int] = (),
    ) -> Segmentation:
        """The part of `segment` after reading, for callers that run one case several times (subsets, what-if).

        flipped: axes (of D, H, W) along which the network sees the case mirrored; the result is mirrored back.
        """
        from .inference import predict

        start = time.perf_counter()
        step = _Steps(progress, cancel)
        before = case.prepared_share
        mirrored = tuple(1 + axis for axis in flipped)
        network_share = NETWORK_SHARE if before < 0.5 else CLINICAL_NETWORK_SHARE
        prediction = predict(
            self.network,
            np.ascontiguousarray(np.flip(case.image, mirrored)) if mirrored else case.image,
            case.availability,
            device=self.device.name,
            window=self.window,
            progress=lambda share: step(before + network_share * share, "running the network"),
            cancel=cancel,
        )
        after_network = time.perf_counter()
        reference = case.reference_image
        classes = prediction.probabilities
        if mirrored:
            classes = np.ascontiguousarray(np.flip(classes, mirrored))

        def between() -> None:
            step(before + network_share, "bringing the result to the reference's grid")

        between()
        matrix = case.matrix(case.reference)
        subset = subset_name(case.subset)
        thresholds = self.decision.thresholds_of(subset)
        labels = labels_to_native(classes, case.grid, reference, between, matrix, thresholds)
        between()
        voxel_ml = voxel_volume_ml(reference.GetSpacing(), reference.GetDirection())
        labels = remove_small_components(labels, self.clean_up, voxel_ml)
        doubted_ml = 0.0
        if self.decision.doubts(classes, subset):
            doubted_ml = volumes_ml(labels, voxel_ml)["WT"]
            labels = np.zeros_like(labels)
        probabilities = None
        if want_probabilities:
            native = []
            for region in self.decision.calibrated(region_probabilities(classes), subset):
                between()
                native.append(to_native(region, case.grid, reference, is_label=False, matrix=matrix))
            probabilities = np.stack(native)
        done = time.perf_counter()
        step(1.0, "done")
        return Segmentation(
            case=case,
            labels=labels,
            volumes_ml=volumes_ml(labels, voxel_ml),
            notices=case.notices + tuple(prediction.notices) + doubt_notices(doubted_ml, subset),
            provenance=self._provenance(case, prediction, doubted_ml),
            seconds={
                **(seconds or {}),
                "network": after_network - start,
                "native grid and clean-up": done - after_network,
            },
            region_probabilities=probabilities,
            doubted_ml=doubted_ml,
        )

    def _provenance(self, case: PreparedCase, prediction: Prediction, doubted_ml: float) -> dict[str, str]:
        import torch

        device, window = prediction.device, prediction.window

        return {
            "software": f"MSTKDSegment {__version__}",
            "bundle": f"{self.bundle.card['name']} sha256 {self.bundle.sha256}",
            "sequences": subset_name(case.subset),
            **{f"input {name}": volume.source for name, volume in case.volumes.items()},
            "reference": case.reference,
            "device": f"{device} ({self.device.reason})" if device == self.device.name else device,
            **({"accelerator": prediction.accelerator} if prediction.accelerator else {}),
            **({"not marked": f"{doubted_ml:.2f} ml, for want of certainty"} if doubted_ml else {}),
            "window": "whole volume" if window is None else f"{window} voxels",
            "versions": f"Python {platform.python_version()}, torch {torch.__version__}, SimpleITK "
            f"{sitk.Version_VersionString()}, numpy {np.__version__}",
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


class _Steps:
    """Reports a fraction and a text, and raises Cancelled where the user asked to stop."""

    def __init__(self, progress: Progress | None, cancel: CancelCheck | None) -> None:
        self._progress, self.cancel = progress, cancel

    def __call__(self, fraction: float, text: str) -> None:
        stop_if(self.cancel)
        if self._progress is not None:
            self._progress(fraction, text)
