"""Augmentation with MONAI: flips, affine maps, intensity curves, shift and scale, gamma, bias field, noise, blur."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai import transforms as mt

from training.config import AugmentationConfig


def crop_around(array: np.ndarray, centre: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The last three axes of `array` cut to `size` around `centre`, zero where that leaves the volume."""
    out = np.zeros(array.shape[:-3] + tuple(size), array.dtype)
    source, target = [], []
    for middle, side, length in zip(centre, size, array.shape[-3:]):
        start = int(middle) - side // 2
        source.append(slice(max(start, 0), min(start + side, length)))
        target.append(slice(max(-start, 0), max(-start, 0) + max(min(start + side, length) - max(start, 0), 0)))
    z, y, x = target
    out[..., z, y, x] = array[..., source[0], source[1], source[2]]
    return out


class Augmentation:
    """Cuts crops and augments them; the same seed gives the same crop."""

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config
        c, image = config, ["image"]
        angle = float(np.deg2rad(c.rotate_degrees))
        # Left out where they are off: every transform draws, and runs without these two keep their crops.
        curve = [mt.RandHistogramShiftd(image, prob=c.histogram, num_control_points=(4, 10))] if c.histogram else []
        shear = (c.shear,) * 6 if c.shear else None
        self.intensity = mt.Compose(
            [
                *curve,
                # Gamma and the bias field want positive values; z-scores are shifted to start at 0 and back.
                mt.RandAdjustContrastd(image, prob=c.gamma, gamma=(0.7, 1.5)),
                mt.RandBiasFieldd(image, prob=c.bias_field, degree=3, coeff_range=(0.0, 0.1)),
                mt.RandGaussianSmoothd(image, prob=c.blur, sigma_x=(0.4, 1.0), sigma_y=(0.4, 1.0), sigma_z=(0.4, 1.0)),
                mt.RandSimulateLowResolutiond(image, prob=c.low_resolution, zoom_range=(0.4, 1.0)),
                mt.RandGaussianNoised(image, prob=c.noise, std=0.15),
                mt.RandScaleIntensityd(image, factors=0.2, prob=c.shift_scale),
                mt.RandShiftIntensityd(image, offsets=0.2, prob=c.shift_scale),
            ]
        )
        self.flips = mt.Compose(
            [mt.RandFlipd(["image", "label"], prob=c.flip, spatial_axis=axis) for axis in c.flip_axes]
        )
        self.affine = mt.RandAffined(
            ["image", "label"],
            prob=1.0,
            rotate_range=(angle,) * 3,
            scale_range=(c.scale,) * 3,
            shear_range=shear,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        )

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, centre: Sequence[int], crop: Sequence[int], seed: int
    ) -> dict[str, torch.Tensor]:
        """Cut and augment `crop` around voxel `centre`.

        images (C, D, H, W) z-scores, labels (D, H, W) -> {"image": (C, *crop) float32, "label": (*crop) int64}.
        """
        random = np.random.RandomState(seed)
        rotated = random.random_sample() < self.config.affine
        # The margin lets rotated corners hold tissue where there is any.
        sides = [int(side * 1.25) // 2 * 2 for side in crop] if rotated else list(crop)
        item = {
            "image": torch.from_numpy(crop_around(images, centre, sides).astype(np.float32)),
            "label": torch.from_numpy(crop_around(labels, centre, sides)[None]).float(),
        }
        if rotated:
            self.affine.set_random_state(seed=int(random.randint(2**31)))
            self.affine.rand_affine.spatial_size = tuple(crop)
            item = self.affine(item)  # type: ignore[arg-type, assignment]
        self.flips.set_random_state(seed=int(random.randint(2**31)))
        item = self.flips(item)
        brain = (item["image"] != 0).to(torch.float32)
        channels = []
        for channel in item["image"]:
            self.intensity.set_random_state(seed=int(random.randint(2**31)))
            channels.append(self._augment_intensity(channel[None]))
        # Zero outside the brain is part of the network's contract, whatever the transforms did there.
        result = torch.cat(channels).clamp_(-6.0, 10.0) * brain
        return {
            "image": torch.Tensor(result).contiguous(),
            "label": torch.Tensor(item["label"][0]).to(torch.int64),
        }

    def _augment_intensity(self, channel: torch.Tensor) -> torch.Tensor:
        low = channel.min()
        return torch.as_tensor(self.intensity({"image": channel - low})["image"]) + low
