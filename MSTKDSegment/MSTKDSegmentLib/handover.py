"""What a parent and its `worker` hand each other through a folder: exact voxels and geometry, no file format between.

request.json      {"sequences": {"T1": {"source", "tags", "spacing", ...}}, "reference", "wishes", ...}
T1.npy ...        (D, H, W) float32
brain_mask.npy    (D, H, W) of the user's mask, where there is one; its geometry is in "wishes"
labels.npy        (D, H, W) uint8 on the reference's grid
probabilities.npy (3, D, H, W) float32 of WT, TC, ET, where they were asked for
prepared_T1.npy ... (D, H, W) float32 z-scores on the canonical grid, where they were asked for, and with them
prepared_brain.npy  (D, H, W) bool
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np
import SimpleITK as sitk

from .errors import OutputError
from .modalities import MODALITIES
from .preparation_record import Wishes
from .volumes import Volume

if TYPE_CHECKING:
    from .pipeline import PreparedCase, Segmentation

REQUEST, LABELS, PROBABILITIES = "request.json", "labels.npy", "probabilities.npy"
BRAIN_MASK, PREPARED, PREPARED_BRAIN = "brain_mask.npy", "prepared_{}.npy", "prepared_brain.npy"
TOLD = ("registered", "skull_stripped", "upright", "extractor", "bias_correction", "mask_source")
"""Those of `Wishes` that are JSON as they are."""


@dataclass(frozen=True)
class Request:
    """What is to be segmented: checked volumes by sequence. reference, weights: None for the default.

    keep: whether the volumes that the network saw are wanted too.
    """

    volumes: Mapping[str, Volume]
    device: str = "auto"
    reference: Optional[str] = None
    weights: Optional[str] = None
    want_probabilities: bool = False
    wishes: Wishes = field(default_factory=Wishes)
    keep: bool = False


@dataclass(frozen=True)
class Prepared:
    """What the network saw: z-scores (D, H, W) float32 by sequence, 0 outside `brain` (D, H, W) bool.

    They lie on a 1 mm grid along the LPS axes with the centre of voxel 0 at `origin` (x, y, z mm). matrices (3, 4) take
    points from there to each sequence's own space, LPS mm: the identity where nothing was moved.
    """

    origin: tuple[float, float, float]
    images: Mapping[str, np.ndarray]
    brain: np.ndarray
    matrices: Mapping[str, np.ndarray]


def write_request(folder: Path, request: Request, given_up: Callable[[], bool] = lambda: False) -> None:
    """Put the request into `folder`; stops between two volumes once `given_up()`.

    Raises OutputError where the disk does not take it.
    """
    about: dict[str, Any] = {
        "device": request.device,
        "reference": request.reference,
        "weights": request.weights,
        "want_probabilities": request.want_probabilities,
        "keep": request.keep,
        "wishes": {name: getattr(request.wishes, name) for name in TOLD},
        "sequences": {},
    }
    try:
        for name, volume in request.volumes.items():
            if given_up():
                return
            np.save(folder / f"{name}.npy", sitk.GetArrayViewFromImage(volume.image))
            about["sequences"][name] = {"source": volume.source, "tags": dict(volume.tags), **_geometry(volume.image)}
        mask = request.wishes.brain_mask
        if mask is not None:
            np.save(folder / BRAIN_MASK, sitk.GetArrayViewFromImage(mask))
            about["wishes"]["brain_mask"] = _geometry(mask)
        (folder / REQUEST).write_text(json.dumps(about), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: the volumes cannot be handed over ({error}). Make room on that disk.") from error


def read_request(folder: Path) -> Request:
    """The request in `folder`, as `write_request` left it."""
    about = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    volumes = {}
    for name, entry in about["sequences"].items():
        volumes[name] = Volume(_image(folder / f"{name}.npy", entry), entry["source"], entry["tags"])
    wishes = about["wishes"]
    mask = _image(folder / BRAIN_MASK, wishes["brain_mask"]) if "brain_mask" in wishes else None
    return Request(
        volumes,
        about["device"],
        about["reference"],
        about["weights"],
        about["want_probabilities"],
        Wishes(brain_mask=mask, **{name: wishes[name] for name in TOLD}),
        about["keep"],
    )


def _geometry(image: sitk.Image) -> dict[str, Any]:
    return {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}


def _image(path: Path, geometry: Mapping[str, Any]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.load(path))
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    return image


def write_result(folder: Path, result: Segmentation, keep: bool = False) -> None:
    """Put the label map, and the probabilities if there are any, into `folder`; OutputError if the disk is full.

    keep: the prepared volumes too; `prepared_geometry` says where they lie.
    """
    try:
        np.save(folder / LABELS, result.labels)
        if result.region_probabilities is not None:
            np.save(folder / PROBABILITIES, result.region_probabilities)
        if keep:
            for name in result.case.subset:
                np.save(folder / PREPARED.format(name), result.case.image[MODALITIES.index(name)])
            np.save(folder / PREPARED_BRAIN, result.case.brain)
    except OSError as error:
        raise OutputError(f"{folder}: the result cannot be handed over ({error}). Make room on that disk.") from error


def prepared_geometry(case: PreparedCase) -> dict[str, Any]:
    """Where the prepared volumes of `case` lie, for JSON: {"origin", "size", "matrices"}, see `Prepared`."""
    return {
        "origin": case.grid.origin,
        "size": case.grid.size,
        "matrices": {name: case.matrix(name).tolist() for name in case.subset},
    }


def read_prepared(folder: Path, geometry: Mapping[str, Any]) -> Prepared:
    """The prepared volumes that `write_result` left; `geometry` as `prepared_geometry` gave it."""
    x, y, z = geometry["origin"]
    return Prepared(
        (x, y, z),
        {name: np.load(folder / PREPARED.format(name)) for name in geometry["matrices"]},
        np.load(folder / PREPARED_BRAIN),
        {name: np.array(matrix) for name, matrix in geometry["matrices"].items()},
    )


def read_result(folder: Path) -> tuple[np.ndarray, Optional[np.ndarray]]:
    """Label map and probabilities (or None) that `write_result` left."""
    probabilities = folder / PROBABILITIES
    return np.load(folder / LABELS), np.load(probabilities) if probabilities.exists() else None
