"""The network that tells the brain from all else in a head, on any of the four contrasts: a volume in, a mask out.

It works on a cube of 96 x 96 x 96 voxels of 2.5 mm around the head, LPS axes. How it was trained, and on what, is in
its card (`Resources/Models/brain-extraction.zip`) and in `training/brain`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SIDE, SPACING_MM = 96, 2.5
WIDTHS = (8, 16, 32, 64, 96)
# What the network sees runs from 0 at the lower to 1 at the upper percentile of the voxels that are not exactly 0.
INPUT_PERCENTILES = (0.5, 99.0)
BRIGHTEST = 1.5


def network_input(cube: np.ndarray) -> np.ndarray:
    """Intensities (D, H, W) of any scale as the network was trained to see them, float32 within 0 and `BRIGHTEST`.

    Voxels of value 0 (outside the image, zeroed air) do not count. Raises ValueError for a volume without contrast.
    """
    inside = cube[cube != 0]
    low, high = np.percentile(inside, INPUT_PERCENTILES) if inside.size else (0.0, 0.0)
    if not high > low:
        raise ValueError("the volume has no contrast")
    low = min(low, 0.0) if cube.min() < 0 else 0.0
    return np.clip((cube - low) / (high - low), 0.0, BRIGHTEST).astype(np.float32)


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, after, 3, padding=1, bias=False),
        nn.InstanceNorm3d(after, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


class BrainNet(nn.Module):
    """A U-Net of five levels, narrow where voxels are many: 1.2 M parameters, 7 GMAC for its cube."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.first = _block(1, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, 2, stride=2), _block(b, b), _block(b, b)) for a, b in zip(widths, widths[1:])
        )
        steps = list(zip(widths[::-1], widths[-2::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose3d(a, b, 2, stride=2) for a, b in steps)
        self.merge = nn.ModuleList(_block(2 * b, b) for _, b in steps)
        self.last = nn.Conv3d(widths[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1, D, H, W) of `x` of the same shape; sides are multiples of 16."""
        features = [self.first(x)]
        for stage in self.down:
            features.append(stage(features[-1]))
        x = features.pop()
        for up, merge in zip(self.up, self.merge):
            x = merge(torch.cat([up(x), features.pop()], dim=1))
        logits: torch.Tensor = self.last(x)
        return logits


def brain_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Dice plus binary cross entropy of `logits` against `mask`, both (N, 1, D, H, W)."""
    probability = torch.sigmoid(logits)
    axes = (1, 2, 3, 4)
    dice = 1 - (2 * (probability * mask).sum(axes) + 1) / (probability.sum(axes) + mask.sum(axes) + 1)
    return dice.mean() + F.binary_cross_entropy_with_logits(logits, mask)
