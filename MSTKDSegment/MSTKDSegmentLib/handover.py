"""What a parent and its `worker` hand each other through a folder: exact voxels and geometry, no file format between.

request.json      {"sequences": {"T1": {"source", "size", "spacing", "origin", "direction"}}, "reference", ...}
T1.npy ...        (D, H, W) float32
labels.npy        (D, H, W) uint8 on the reference's grid
probabilities.npy (3, D, H, W) float32 of WT, TC, ET, where they were asked for
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np
import SimpleITK as sitk

from .errors import OutputError
from .volumes import Volume

if TYPE_CHECKING:
    from .pipeline import Segmentation

REQUEST, LABELS, PROBABILITIES = "request.json", "labels.npy", "probabilities.npy"


@dataclass(frozen=True)
class Request:
    """What is to be segmented: checked volumes by sequence. reference, weights: None for the default."""

    volumes: Mapping[str, Volume]
    device: str = "auto"
    reference: Optional[str] = None
    weights: Optional[str] = None
    want_probabilities: bool = False


def write_request(folder: Path, request: Request, given_up: Callable[[], bool] = lambda: False) -> None:
    """Put the request into `folder`; stops between two volumes once `given_up()`.

    Raises OutputError where the disk does not take it.
    """
    about: dict[str, Any] = {
        "device": request.device,
        "reference": request.reference,
        "weights": request.weights,
        "want_probabilities": request.want_probabilities,
        "sequences": {},
    }
    try:
        for name, volume in request.volumes.items():
            if given_up():
                return
            image = volume.image
            np.save(folder / f"{name}.npy", sitk.GetArrayViewFromImage(image))
            about["sequences"][name] = {
                "source": volume.source,
                "spacing": image.GetSpacing(),
                "origin": image.GetOrigin(),
                "direction": image.GetDirection(),
            }
        (folder / REQUEST).write_text(json.dumps(about), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: the volumes cannot be handed over ({error}). Make room on that disk.") from error


def read_request(folder: Path) -> Request:
    """The request in `folder`, as `write_request` left it."""
    about = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    volumes = {}
    for name, entry in about["sequences"].items():
        image = sitk.GetImageFromArray(np.load(folder / f"{name}.npy"))
        image.SetSpacing(entry["spacing"])
        image.SetOrigin(entry["origin"])
        image.SetDirection(entry["direction"])
        volumes[name] = Volume(image, entry["source"])
    return Request(volumes, about["device"], about["reference"], about["weights"], about["want_probabilities"])


def write_result(folder: Path, result: Segmentation) -> None:
    """Put the label map, and the probabilities if there are any, into `folder`; OutputError if the disk is full."""
    try:
        np.save(folder / LABELS, result.labels)
        if result.region_probabilities is not None:
            np.save(folder / PROBABILITIES, result.region_probabilities)
    except OSError as error:
        raise OutputError(f"{folder}: the result cannot be handed over ({error}). Make room on that disk.") from error


def read_result(folder: Path) -> tuple[np.ndarray, Optional[np.ndarray]]:
    """Label map and probabilities (or None) that `write_result` left."""
    probabilities = folder / PROBABILITIES
    return np.load(folder / LABELS), np.load(probabilities) if probabilities.exists() else None
