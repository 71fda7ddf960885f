"""The brain mask of a volume that still has its skull: by our own network, on any of the four contrasts."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np
import SimpleITK as sitk

from .errors import InputError, WeightsError, first_line
from .overlap import brain_alone, find_foreground
from .registration import CancelCheck, coarser, stop_if
from .shipped_files import shipped_file
from .volume_checks import voxel_columns
from .weights import read_bundle

if TYPE_CHECKING:
    from .brain_network import BrainNet

Said = Callable[[str], object]

BUNDLE, PRESET = "brain-extraction.zip", "brain-extraction"
ABOVE_HEAD_MM = 12.0
# The largest and the smallest brain of an adult that is wholly in the picture.
BRAIN_ML = (700.0, 2200.0)


def bundle_path() -> Path:
    """The weights that ship. Raises WeightsError where they are missing."""
    return shipped_file("Models", BUNDLE)


@lru_cache(maxsize=1)
def _network() -> BrainNet:
    import torch

    from .brain_network import BrainNet

    bundle = read_bundle(bundle_path())
    if bundle.card["preset"] != PRESET:
        raise WeightsError(f"{bundle.source}: made for {bundle.card['preset']!r}, not for {PRESET}; reinstall")
    network = BrainNet(tuple(bundle.card["network"]["widths"]))
    state = torch.load(io.BytesIO(bundle.weights), map_location="cpu", weights_only=True)
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network.requires_grad_(False).eval()


def brain_probability(
    image: sitk.Image,
    source: str,
    device: str = "cpu",
    cancel: Optional[CancelCheck] = None,
    said: Said = lambda _sentence: None,
) -> sitk.Image:
    """Probability of brain, float32, on a cube of 2.5 mm voxels (LPS axes) around the brain of `image`.

    The network looks twice: at the head, then at where it found the brain. Raises InputError for a volume without
    contrast, in which there is no head; `source` is what the message calls it. Raises Cancelled: `cancel` is asked
    at each layer. `said` gets a sentence where the CPU had to stand in for `device`.
    """
    stop_if(cancel)
    from .brain_network import SIDE, SPACING_MM

    smooth = coarser(image, SPACING_MM)
    span = SIDE * SPACING_MM
    stop_if(cancel)
    low, high = _box(image, find_foreground(image).mask)
    middle = (low + high) / 2
    if high[2] - low[2] > span - 2 * ABOVE_HEAD_MM:  # neck and shoulders: the brain is at the top
        middle[2] = high[2] + ABOVE_HEAD_MM - span / 2
    probability = _look(smooth, middle, source, device, cancel, said)
    found = sitk.GetArrayViewFromImage(probability) > 0.5
    if found.any():
        probability = _look(smooth, np.add(*_box(probability, found)) / 2, source, device, cancel, said)
    return probability


def _box(image: sitk.Image, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest LPS coordinates (mm) of voxel centres in `mask` (D, H, W)."""
    points = np.argwhere(mask)[:, ::-1] @ voxel_columns(image).T + image.GetOrigin()
    return points.min(axis=0), points.max(axis=0)


def _look(
    image: sitk.Image, middle: np.ndarray, source: str, device: str, cancel: Optional[CancelCheck], said: Said
) -> sitk.Image:
    from .brain_network import SIDE, SPACING_MM, network_input

    origin = middle - (SIDE - 1) / 2 * SPACING_MM
    axes = np.eye(3).ravel().tolist()
    cube = sitk.Resample(
        image, [SIDE] * 3, sitk.Transform(), sitk.sitkLinear, origin.tolist(), [SPACING_MM] * 3, axes, 0.0
    )
    try:
        seen = network_input(sitk.GetArrayViewFromImage(cube))
    except ValueError as error:
        raise InputError(f"{source}: no head was found ({error}). Give a volume of the whole head.") from error
    try:
        values = _sigmoid(seen, device, cancel)
    except RuntimeError as error:  # a GPU's memory is full, or it lacks a layer; the CPU takes a second
        if device == "cpu":
            raise
        said(f"The brain was looked for on the CPU, for {device} failed ({first_line(error)}).")
        values = _sigmoid(seen, "cpu", cancel)
    probability = sitk.GetImageFromArray(values)
    probability.CopyInformation(cube)
    return probability


def _sigmoid(seen: np.ndarray, device: str, cancel: Optional[CancelCheck]) -> np.ndarray:
    import torch

    network: Any = _network().to(device)
    with torch.inference_mode(), _heard(network, cancel):
        logits = network(torch.from_numpy(seen).to(device)[None, None])
    return np.asarray(torch.sigmoid(logits)[0, 0].float().cpu().numpy())


@contextlib.contextmanager
def _heard(network: Any, cancel: Optional[CancelCheck]) -> Iterator[None]:
    """While open, each layer of `network` asks `cancel` before it computes."""
    handles = []
    try:
        for module in network.modules() if cancel is not None else ():
            handles.append(module.register_forward_pre_hook(lambda *_: stop_if(cancel)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def brain_of(image: sitk.Image) -> Optional[np.ndarray]:
    """Mask (D, H, W) bool of the brain of any volume, with its skull or without; None where no brain is found."""
    alone = brain_alone(image)
    if alone is not None:
        return alone
    try:
        mask = mask_on(brain_probability(image, "volume"), image)
    except InputError:
        return None
    return mask if mask.any() else None


def mask_on(probability: sitk.Image, image: sitk.Image) -> np.ndarray:
    """(D, H, W) bool on the voxels of `image`: brain where `probability` says so."""
    there = sitk.Resample(probability, image, sitk.Transform(), sitk.sitkLinear, 0.0)
    return np.asarray(sitk.GetArrayViewFromImage(there) > 0.5)
