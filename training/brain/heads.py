"""Heads that never were, to learn brain extraction from: real brains in the skulls of atlases, under any contrast.

Skull-stripped patients lack a skull, and heads with a brain mask are few. So the brain of a patient (any of its four
sequences) or of an atlas is put into the skull of an atlas, scaled to fit and deformed; every tissue outside the brain
gets a random intensity (Hoopes et al. 2022, SynthStrip), and the picture is made as bad as a scanner can make it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from MSTKDSegmentLib.brain_network import SIDE, SPACING_MM, network_input
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.modalities import MODALITIES
from MSTKDSegmentLib.overlap import brain_alone
from MSTKDSegmentLib.preprocess import fill_holes, largest_piece
from MSTKDSegmentLib.volumes import read_volume
from scipy import ndimage
from torch.nn import functional as F

from training.cases import LabelledCase

POOL_MM = 2.0
TISSUES = 6  # classes of an atlas's head outside the brain, from dark to bright
AIR, FLUID = 0, TISSUES + 1  # labels beside the tissues 1 to TISSUES


@dataclass(frozen=True)
class Brain:
    """A brain alone on a grid of `POOL_MM`: `images` (S, D, H, W) scaled to a median of 1 inside `mask` (D, H, W)."""

    images: torch.Tensor
    mask: torch.Tensor

    @property
    def box_mm(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre and half sides (z, y, x) of the mask, mm from the first voxel."""
        index = torch.nonzero(self.mask > 0.5).float() * POOL_MM
        low, high = index.amin(0), index.amax(0)
        return (low + high) / 2, (high - low) / 2


@dataclass(frozen=True)
class Head:
    """An atlas's head: its own `brain`, and `labels` (D, H, W): 0 air, 1 to 6 tissues, 7 fluid in the brain's place."""

    brain: Brain
    labels: torch.Tensor


def read_brain(case: LabelledCase) -> Brain:
    """The four sequences of a skull-stripped case. Raises InputError where one is not skull-stripped."""
    images = {name: sitk.DICOMOrient(read_volume(path).image, "LPS") for name, path in case.images.items()}
    first = images[MODALITIES[0]]
    mask = np.zeros(first.GetSize()[::-1], bool)
    for name, image in images.items():
        found = brain_alone(image)
        if found is None:
            raise InputError(f"{case.images[name]}: not skull-stripped; brains are learnt from stripped volumes")
        mask |= found
    mask = fill_holes(mask)
    pooled = _pooled(mask.astype(np.float32), first)
    stack = []
    for name in MODALITIES:
        array = sitk.GetArrayViewFromImage(images[name])
        stack.append(_pooled(array / max(float(np.median(array[mask])), 1e-6), first))
    return Brain(torch.stack(stack).half(), pooled.half())


def read_head(path: Path, brain_path: Path) -> Head:
    """An atlas's head and, from its skull-stripped copy, its brain mask; tissues: equal shares of its grey levels."""
    image, stripped = (sitk.DICOMOrient(read_volume(p).image, "LPS") for p in (path, brain_path))
    array, inner = sitk.GetArrayFromImage(image), sitk.GetArrayViewFromImage(stripped)
    if array.shape != inner.shape:
        raise InputError(f"{path} and {brain_path} lie on different grids")
    values, counts = np.unique(inner[::4, ::4, ::4], return_counts=True)
    mask = _closed(inner != values[counts.argmax()], image)
    scaled = array / float(np.median(array[mask]))
    head = ndimage.binary_fill_holes(ndimage.binary_closing(scaled > 0.2, iterations=3))
    head = largest_piece(np.asarray(head)) | mask
    outside = head & ~ndimage.binary_dilation(mask, iterations=1)
    edges = np.quantile(scaled[outside], np.linspace(0, 1, TISSUES + 1)[1:-1])
    labels = np.where(outside, 1 + np.digitize(scaled, edges), 0)
    labels[head & ~outside] = FLUID
    step = [POOL_MM / s for s in image.GetSpacing()[::-1]]
    picked = ndimage.zoom(labels, [1 / s for s in step], order=0).astype(np.uint8)
    brain = Brain(_pooled(scaled * mask, image)[None].half(), _pooled(mask.astype(np.float32), image).half())
    shape = brain.mask.shape
    whole = np.zeros(shape, np.uint8)
    common = tuple(slice(0, min(a, b)) for a, b in zip(shape, picked.shape))
    whole[common] = picked[common]
    return Head(brain, torch.from_numpy(whole))


def _closed(mask: np.ndarray, image: sitk.Image, radius_mm: float = 6.0) -> np.ndarray:
    """`mask` with its sulci: atlases are often stripped along the gyri, patients along the dura."""
    rounds = max(1, round(radius_mm / min(image.GetSpacing())))
    around = np.pad(mask, rounds)
    closed = np.asarray(ndimage.binary_closing(around, iterations=rounds))
    inner = (slice(rounds, -rounds),) * 3
    return fill_holes(closed[inner])


def _pooled(array: np.ndarray, image: sitk.Image) -> torch.Tensor:
    """`array` of `image` averaged to a grid of `POOL_MM`."""
    size = [max(1, round(n * s / POOL_MM)) for n, s in zip(array.shape, image.GetSpacing()[::-1])]
    whole = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
    return F.interpolate(whole, size=size, mode="area")[0, 0]


class HeadMaker:
    """Makes pairs of a head (1, SIDE, SIDE, SIDE) as the network sees it, and its brain mask, for ever different."""

    def __init__(self, brains: Sequence[Brain], heads: Sequence[Head], seed: int) -> None:
        if not heads:
            raise InputError("no head with a brain mask was given; brains alone do not teach what a skull is")
        self._brains, self._heads = list(brains), list(heads)
        self._rng = np.random.default_rng(seed)
        self._torch = torch.Generator().manual_seed(seed)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        while True:
            image, mask = self._one()
            if mask.sum() < 500:  # the field of view left nothing of the brain
                continue
            try:
                seen = network_input(image.numpy())
            except ValueError:
                continue
            return torch.from_numpy(seen)[None], mask[None]

    def _one(self) -> tuple[torch.Tensor, torch.Tensor]:
        rng = self._rng
        head = self._heads[rng.integers(len(self._heads))]
        own = not self._brains or rng.random() < 0.25
        brain = head.brain if own else self._brains[rng.integers(len(self._brains))]
        points = self._points(brain)
        mask = _sample(brain.mask[None], points)[0] > 0.5
        tissue = brain.images[rng.integers(len(brain.images))]
        inside = _sample(tissue[None], points)[0]
        if own or rng.random() < 0.2:
            inside = self._recoloured(inside)
        if rng.random() < 0.06:  # stripped already: nothing to do
            image = torch.where(mask, inside, torch.zeros(()))
        else:
            image = self._with_head(head, brain, points, mask, inside)
        return self._scanned(image, mask)

    def _points(self, brain: Brain) -> torch.Tensor:
        """(D, H, W, 3) mm (z, y, x) in the brain's space of each voxel of the cube: a pose, a size, a deformation."""
        rng = self._rng
        index = (torch.arange(SIDE) - (SIDE - 1) / 2) * SPACING_MM
        grid = torch.stack(torch.meshgrid(index, index, index, indexing="ij"), -1)
        turn = np.eye(3)
        for axis in range(3):
            angle = np.deg2rad(rng.normal(0, 12 if axis else 8))
            c, s = np.cos(angle), np.sin(angle)
            a, b = (k for k in range(3) if k != axis)
            one = np.eye(3)
            one[a, a], one[b, b], one[a, b], one[b, a] = c, c, -s, s
            turn = turn @ one
        scale = rng.uniform(0.88, 1.15) * rng.uniform(0.94, 1.06, 3)
        flip = np.array([1.0, 1.0, -1.0 if rng.random() < 0.5 else 1.0])
        matrix = torch.tensor(turn @ np.diag(flip / scale), dtype=torch.float32)
        shift = torch.tensor([rng.uniform(-45, 30), rng.uniform(-22, 22), rng.uniform(-18, 18)], dtype=torch.float32)
        knots = torch.randn(1, 3, 6, 6, 6, generator=self._torch) * rng.uniform(0, 4.5)
        bent = F.interpolate(knots, size=(SIDE,) * 3, mode="trilinear", align_corners=True)[0].permute(1, 2, 3, 0)
        centre, _ = brain.box_mm
        return (grid + shift) @ matrix.T + bent + centre

    def _recoloured(self, values: torch.Tensor) -> torch.Tensor:
        """Another contrast: a random curve, which need not rise, over the intensities."""
        levels = torch.rand(7, generator=self._torch) * 1.2 + 0.2
        if self._rng.random() < 0.6:
            levels = torch.sort(levels, descending=bool(self._rng.random() < 0.5)).values
        place = (values.clamp(0, 1.999) / 2) * 6
        low = place.long()
        return levels[low] + (place - low) * (levels[(low + 1).clamp(max=6)] - levels[low])

    def _with_head(
        self, head: Head, brain: Brain, points: torch.Tensor, mask: torch.Tensor, inside: torch.Tensor
    ) -> torch.Tensor:
        rng = self._rng
        centre, half = brain.box_mm
        own_centre, own_half = head.brain.box_mm
        room = rng.uniform(1.0, 1.07)  # between brain and skull
        there = (points - centre) / (half * room) * own_half + own_centre
        labels = _sample(head.labels[None].float(), there, mode="nearest")[0].long()
        levels = torch.rand(FLUID + 1, generator=self._torch) * 1.6
        kind = rng.random()
        if kind < 0.5:  # as on most sequences: bone dark, fat bright
            levels[1 : TISSUES + 1] = torch.sort(levels[1 : TISSUES + 1]).values * rng.uniform(0.8, 2.0)
            levels[1] *= 0.3
        elif kind < 0.75:
            levels[1] *= 0.2
        levels[AIR] = 0.0
        levels[FLUID] = rng.choice([rng.uniform(0.05, 0.5), rng.uniform(0.05, 0.5), rng.uniform(1.2, 2.5)])
        image = levels[labels]
        coarse = torch.randn(1, 1, 24, 24, 24, generator=self._torch)
        texture = F.interpolate(coarse, size=(SIDE,) * 3, mode="trilinear", align_corners=True)[0, 0]
        fine = torch.randn(SIDE, SIDE, SIDE, generator=self._torch)
        image = image * (1 + rng.uniform(0, 0.25) * texture + rng.uniform(0, 0.15) * fine).clamp(min=0)
        return torch.where(mask, inside, image)

    def _scanned(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Blur, thick slices, bias field, noise and a field of view that may cut the head; the mask is cut as well."""
        rng = self._rng
        blur = rng.uniform(0, 0.6)
        image = torch.from_numpy(ndimage.gaussian_filter(image.numpy(), blur)) if blur > 0.2 else image
        if rng.random() < 0.6:
            axis, slices = int(rng.choice([0, 0, 1, 2])), int(SIDE * SPACING_MM / rng.uniform(3, 8))
            size = [SIDE] * 3
            size[axis] = slices
            thick = F.interpolate(image[None, None], size=size, mode="area")
            if rng.random() < 0.5:
                image = F.interpolate(thick, size=(SIDE,) * 3, mode="trilinear", align_corners=False)[0, 0]
            else:
                image = F.interpolate(thick, size=(SIDE,) * 3, mode="nearest")[0, 0]
        knots = torch.randn(1, 1, 4, 4, 4, generator=self._torch) * rng.uniform(0, 0.35)
        image = image * torch.exp(F.interpolate(knots, size=(SIDE,) * 3, mode="trilinear", align_corners=True)[0, 0])
        image = image.clamp(min=0) ** rng.uniform(0.75, 1.35)
        noise = torch.randn(SIDE, SIDE, SIDE, generator=self._torch) * rng.uniform(0, 0.08)
        other = torch.randn(SIDE, SIDE, SIDE, generator=self._torch) * rng.uniform(0, 0.08)
        noisy = torch.sqrt((image + noise) ** 2 + other**2)
        image = noisy if rng.random() < 0.7 else torch.where(image > 0, noisy, image)
        for axis in range(3):
            for end in (0, 1):
                if rng.random() < (0.35 if axis == 0 else 0.12):
                    cut = int(rng.integers(1, 34 if axis == 0 else 22))
                    part = [slice(None)] * 3
                    part[axis] = slice(0, cut) if end == 0 else slice(SIDE - cut, SIDE)
                    image[tuple(part)] = 0
                    mask[tuple(part)] = False
        return image, mask.float()


def _sample(volumes: torch.Tensor, points_mm: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """`volumes` (C, D, H, W) of `POOL_MM` at `points_mm` (..., 3) (z, y, x); 0 outside."""
    size = torch.tensor(volumes.shape[1:], dtype=torch.float32)
    unit = 2 * (points_mm / POOL_MM) / (size - 1) - 1
    picked = F.grid_sample(
        volumes.float()[None], unit.flip(-1)[None], mode=mode, padding_mode="zeros", align_corners=True
    )
    return picked[0]
