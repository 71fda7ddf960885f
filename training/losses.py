"""Losses as pure functions of tensors. Equation numbers are the paper's; region order is WT, TC, ET everywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor


def region_probabilities(logits: Tensor) -> Tensor:
    """(N, 4, ...) logits over background, NCR, ED, ET -> (N, 3, ...) probabilities of WT, TC, ET (nested)."""
    p = torch.softmax(logits.float(), dim=1)
    return torch.stack((1 - p[:, 0], p[:, 1] + p[:, 3], p[:, 3]), dim=1)


def region_targets(labels: Tensor) -> Tensor:
    """(N, ...) labels 0..3 -> (N, 3, ...) float masks of WT, TC, ET."""
    return torch.stack((labels > 0, (labels == 1) | (labels == 3), labels == 3), dim=1).float()


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice over the nested regions plus cross entropy over the exclusive labels (the Dice term of eq. 12).

    Regions come from one softmax, so they stay nested; smoothing of one voxel keeps an absent region finite.
    """
    dice = DiceLoss(smooth_nr=1.0, smooth_dr=1.0, batch=True)(region_probabilities(logits), region_targets(labels))
    return dice + F.cross_entropy(logits.float(), labels)
