"""Losses as pure functions of tensors. Equation numbers are the paper's; region order is WT, TC, ET everywhere.

Every loss is the mean of its samples' losses, so that several processes with a part of the batch each (DDP) get the
gradients of one process with all of it. Distillation losses compute in float32 and detach the teacher.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import DistillationConfig

# Voxels with this label do not count in the segmentation loss (the resection cavity, where it is to be ignored).
IGNORE = -1
# Voxels with this label are tumour that does not enhance: core or oedema, nobody can say (`enhancement`).
UNENHANCED = 5
# The terms of eq. 12, in the order in which logs and tables show them.
TERMS = ("segmentation", "evd", "mst", "logit_mse", "logit_kl", "adversarial", "gram")


# --- segmentation (the Dice term of eq. 12) ---


def region_probabilities(probabilities: Tensor) -> Tensor:
    """(N, 4 or 5, ...) softmax over background, NCR, ED, ET (and cavity) -> (N, 3, ...) of WT, TC, ET.

    All come from one softmax, so the regions are nested; the cavity is part of none.
    """
    # Taken apart at once: the gradient of each index by itself would be a whole tensor of zeros, filled and added.
    _, ncr, ed, et, *_ = probabilities.unbind(1)
    core = ncr + et
    return torch.stack((core + ed, core, et), dim=1)


def region_targets(labels: Tensor) -> Tensor:
    """(N, ...) labels 0..3 (4: cavity, 5: `UNENHANCED`, -1: ignored) -> (N, 3, ...) float masks of WT, TC, ET."""
    ncr, ed, et = labels == 1, labels == 2, labels == 3
    return torch.stack((ncr | ed | et | (labels == UNENHANCED), ncr | et, et), dim=1).float()


def region_dice_loss(probabilities: Tensor, labels: Tensor, absent_smoothing: float = 1.0) -> Tensor:
    """1 - soft Dice, mean over samples and the three regions; one voxel of smoothing keeps absent regions finite.

    probabilities: (N, 4 or 5, ...) after the softmax. Where a label is `UNENHANCED`, TC is not counted.
    absent_smoothing: voxels, instead of the one, where a sample has nothing of a region. The gradient there is
    smoothing / (drawn + smoothing)^2: with one voxel it is gone once some hundred are drawn (1e-6 a voxel for 1,000,
    where a region of that size has 5e-4), and nothing but the cross entropy speaks against what is made up; with 1,000
    it is 2.5e-4.
    """
    known = labels != IGNORE
    counted = torch.stack((known, known & (labels != UNENHANCED), known), dim=1)
    p, target = region_probabilities(probabilities) * counted, region_targets(labels)
    axes = tuple(range(2, p.ndim))
    overlap, sizes = (p * target).sum(axes), p.sum(axes) + target.sum(axes)
    smoothing = torch.where(target.sum(axes) > 0, 1.0, absent_smoothing)
    return (1 - (2 * overlap + smoothing) / (sizes + smoothing)).mean()


def segmentation_loss(logits: Tensor, labels: Tensor, absent_smoothing: float = 1.0) -> Tensor:
    """Dice over the nested regions plus cross entropy over the exclusive labels; `IGNORE` voxels count in neither.

    `UNENHANCED` voxels have the cross entropy of "NCR or oedema".
    """
    log_probabilities = torch.log_softmax(logits.float(), dim=1)  # one softmax for both terms
    either = labels == UNENHANCED
    per_voxel = F.nll_loss(log_probabilities, labels.masked_fill(either, 1), ignore_index=IGNORE, reduction="none")
    # A GPU would have to be waited for to answer whether there are any.
    if labels.is_cuda or either.any():
        _, ncr, ed, *_ = log_probabilities.unbind(1)
        per_voxel = torch.where(either, -torch.logaddexp(ncr, ed), per_voxel)
    per_voxel = per_voxel.flatten(1)
    counted = (labels != IGNORE).flatten(1).sum(1).clamp_min(1)
    return region_dice_loss(log_probabilities.exp(), labels, absent_smoothing) + (per_voxel.sum(1) / counted).mean()


# --- MS-TKD, eq. 2-4 ---


def extreme_value_sequences(attentions: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 2 and 3: L attention maps (N, heads, t, t) -> EV_1, EV_2, EV_3, each (N, L, heads, t, t).

    Maximum, minimum and mean are taken over the L tapped layers ("along C"); they multiply the maps element by element.
    Attention is multiplied by the token count t first, so that its mean is 1 whatever the size of the volume: the
    published code's weight of 1e8 makes up for values near 1/t.
    """
    stacked = torch.stack([a.float() * a.shape[-1] for a in attentions], dim=1)
    over_taps = (stacked.amax(1, keepdim=True), stacked.amin(1, keepdim=True), stacked.mean(1, keepdim=True))
    first, second, third = (weights * stacked for weights in over_taps)
    return first, second, third


def evd_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Extreme-value distillation, the alpha term of eq. 4, between 0 (equal) and 1 (a student that has nothing).

    For each sample |EV^f - EV^m|^2 / (|EV^f|^2 + |EV^m|^2), each norm over EV_1, EV_2 and EV_3 together; mean over
    samples. The plain mean square of eq. 4 runs over eight orders of magnitude with the sharpness of attention (one
    sharp head gives t^3), so that no fixed alpha would fit and single crops would drown all other terms.
    Raises ValueError when student and teacher were tapped differently.
    """
    _same_taps(student, teacher)
    theirs = torch.stack(extreme_value_sequences([a.detach() for a in teacher]), dim=1).flatten(1)
    mine = torch.stack(extreme_value_sequences(student), dim=1).flatten(1)
    error, size = (mine - theirs).square().sum(1), mine.square().sum(1) + theirs.square().sum(1)
    return (error / size).mean()


def mst_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The beta term of eq. 4: mean-square differences of the tapped tokens z_i (N, embed, d, h, w), summed over taps.

    The z_i are those after convolution and normalisation (section 2.1), whose size does not grow with depth. Raises
    ValueError when student and teacher were tapped differently.
    """
    _same_taps(student, teacher)
    pairs = zip(student, teacher)
    return torch.stack([F.mse_loss(mine.float(), other.detach().float()) for mine, other in pairs]).sum()


def _same_taps(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    mine, theirs = [tuple(t.shape) for t in student], [tuple(t.shape) for t in teacher]
    if mine != theirs:
        raise ValueError(f"student and teacher were tapped differently: {mine} and {theirs}")


# --- DMLD, eq. 5-8 ---


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Eq. 5: mean-square difference of the logits (N, C, D, H, W)."""
    return F.mse_loss(student.float(), teacher.detach().float())


def standardise(logits: Tensor) -> Tensor:
    """Z-score over the class axis (eq. 6 without tau); population standard deviation, zero where all classes agree.

    (N, C, ...) -> the same shape, float32. The published code takes the depth axis, which mixes voxels: a mistake.
    """
    centred = logits.float() - logits.float().mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    # The floor stops the infinite slope of the root at zero; it lies far below any variance of real logits.
    return centred / (variance.clamp_min(1e-14).sqrt() + 1e-7)


def standardised_kl(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Eq. 6 and 7: KL(teacher || student) of the standardised logits at temperature `tau`.

    Summed over the classes, mean over voxels and samples; eq. 8's factor tau^2 is `term_weights`'s.
    """
    theirs = F.log_softmax(standardise(teacher.detach()) / tau, dim=1)
    mine = F.log_softmax(standardise(student) / tau, dim=1)
    return (theirs.exp() * (theirs - mine)).sum(dim=1).mean()


# --- GSME, eq. 9-11 ---


def cross_gram(a: Tensor, b: Tensor) -> Tensor:
    """Eq. 10: G_a G_b^T of two features (N, C, D, H, W), normalised by D*H*W -> (N, C, C)."""
    flat_a, flat_b = a.float().flatten(2), b.float().flatten(2)
    # Without autocast: half precision would round the sum over thousands of voxels.
    with torch.autocast(a.device.type, enabled=False):
        return flat_a @ flat_b.transpose(1, 2) / flat_a.shape[2]


def gram_loss(student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The theta term of eq. 11: a quarter of the summed mean-square differences of M_1, M_2 and M_3.

    `student`, `teacher`: f_enc, f_t, f_dec, each (N, C, D, H, W).
    """
    terms = []
    for first, second in ((0, 2), (0, 1), (2, 1)):  # enc & dec, enc & t, dec & t
        mine = cross_gram(student[first], student[second])
        terms.append(F.mse_loss(mine, cross_gram(teacher[first].detach(), teacher[second].detach())))
    return torch.stack(terms).sum() / 4


def discriminator_loss(on_teacher: Tensor, on_student: Tensor) -> Tensor:
    """Eq. 9 for the discriminator: binary cross entropy from its raw outputs, complete = 1, missing = 0."""
    return F.softplus(-on_teacher.float()).mean() + F.softplus(on_student.float()).mean()


def adversarial_loss(on_student: Tensor) -> Tensor:
    """Eq. 9 for the student, non-saturating: -log D of its fused features, from the raw outputs."""
    return F.softplus(-on_student.float()).mean()


# --- total, eq. 12 ---


def term_weights(config: DistillationConfig) -> dict[str, float]:
    """The product of all factors in front of each term in eq. 4, 8, 11 and 12, by the names of `TERMS`."""
    return {
        "segmentation": config.lambda_4,
        "evd": config.lambda_1 * config.alpha,
        "mst": config.lambda_1 * config.beta,
        "logit_mse": config.lambda_2 * config.lambda_mse,
        "logit_kl": config.lambda_2 * config.lambda_kd * config.tau**2,
        "adversarial": config.lambda_3 * config.epsilon,
        "gram": config.lambda_3 * config.theta,
    }


def weighted_total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 12: the sum of the terms with their `weights`, and each weighted term."""
    weighted = {name: value * weights[name] for name, value in terms.items()}
    return torch.stack(list(weighted.values())).sum(), weighted


def shares(weighted: Mapping[str, float]) -> dict[str, float]:
    """Each weighted term's share of their sum; all 0 where that is 0."""
    total = sum(weighted.values())
    return {name: value / total if total else 0.0 for name, value in weighted.items()}


def needed_terms(config: DistillationConfig) -> tuple[str, ...]:
    """The terms with a weight; the others are not computed."""
    weights = term_weights(config)
    return tuple(itertools.filterfalse(lambda name: weights[name] == 0, TERMS))
