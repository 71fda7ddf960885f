"""From tissue and tumour maps to the four MR sequences: class contrast, texture, vessels, bias field, blur, noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.synthetic.anatomy import Anatomy, FloatArray, smooth_noise
from training.synthetic.tumour import ET, NCR, Tumour

SEQUENCES = ("t1", "t1gd", "t2", "flair")


@dataclass(frozen=True)
class Contrast:
    """One sequence: signal = 1 + `spread` * level, with `spread` near the brain's standard deviation over its mean.

    Levels resemble z-scores inside the brain; they were tuned until the z-scores' medians in the finished images lay
    within the range seen in twelve BraTS glioma patients (bias, noise and the tumour itself shift them).
    """

    csf: float
    gm: float
    wm: float
    ncr: float
    ed: float
    et: float
    vessel: float
    spread: float
    texture: float
    """Gain of the template's own T1 texture."""
    noise: float
    """Standard deviation of the Rician noise, relative to a signal of 1."""
    through_plane_mm: float
    """Full width at half maximum of the blur along z: most 2-D sequences have thick slices."""


CONTRASTS: Mapping[str, Contrast] = {
    "t1": Contrast(-2.2, -0.45, 0.08, -0.95, -0.40, -0.55, -0.5, 0.30, 1.0, 0.027, 1.5),
    "t1gd": Contrast(-1.5, -0.50, -0.15, -1.05, -0.65, 1.05, 5.6, 0.38, 0.6, 0.018, 1.2),
    "t2": Contrast(3.8, 0.30, -0.08, 3.00, 2.20, 2.10, -0.6, 0.42, -0.6, 0.041, 2.0),
    "flair": Contrast(-1.1, 0.35, -0.15, 2.25, 2.50, 2.15, -0.5, 0.43, -0.4, 0.054, 2.5),
}


def _vessels(anatomy: Anatomy, rng: np.random.Generator) -> FloatArray:
    """Soft map of enhancing vessels: thin curves over the cortex and the superior sagittal sinus.

    The curves are where two smooth random fields are both nearly 0.
    """
    sigma = 5.0 / anatomy.spacing_mm
    a, b = (smooth_noise(rng, anatomy.csf.shape, sigma) for _ in range(2))
    curves = np.exp(-(a**2 + b**2) / (2 * 0.17**2)) * np.clip(1.0 - anatomy.depth_mm / 22.0, 0, 1)
    sinus = np.exp(-((anatomy.midline_mm / 2.5) ** 2)) * np.clip(1.0 - anatomy.depth_mm / 7.0, 0, 1)
    upper = np.arange(sinus.shape[0])[:, None, None] * anatomy.spacing_mm > anatomy.pose.to_patient((0, -22, 10))[0]
    patchy = np.clip(0.6 + 0.6 * smooth_noise(rng, sinus.shape, 10.0 / anatomy.spacing_mm), 0, 1)
    return np.where(anatomy.brain, np.maximum(curves, sinus * upper * patchy), 0).astype(np.float32)


def _soft(mask: NDArray[np.bool_], spacing_mm: float) -> FloatArray:
    return ndimage.gaussian_filter(mask.astype(np.float32), 0.7 / spacing_mm)


def paint(
    anatomy: Anatomy, tumour: Tumour, rng: np.random.Generator, jitter: float = 0.1, levels: int = 180
) -> dict[str, NDArray[np.int16]]:
    """The four sequences as int16 volumes (D, H, W), background exactly 0, brain at least 1.

    `jitter` is the standard deviation (z-score units) by which each class of each sequence differs from `CONTRASTS`.
    `levels` limits the grey levels below each volume's 99.9th percentile, which keeps the compressed files small.
    """
    ncr, et = _soft(tumour.labels == NCR, anatomy.spacing_mm), _soft(tumour.labels == ET, anatomy.spacing_mm)
    layers = _Layers(
        ncr=ncr,
        et=et,
        wet=(0.88 * tumour.oedema * (1.0 - anatomy.csf)).astype(np.float32),
        vessels=_vessels(anatomy, rng) * (1.0 - np.clip(ncr + et, 0, 1)),
        mottle=smooth_noise(rng, anatomy.csf.shape, 2.5 / anatomy.spacing_mm),
    )
    volumes = {}
    for name in SEQUENCES:
        clean = _clean_signal(CONTRASTS[name], anatomy, layers, rng, jitter)
        volumes[name] = _acquired(clean, CONTRASTS[name], anatomy, rng, levels)
    return volumes


@dataclass(frozen=True)
class _Layers:
    """Soft maps (D, H, W) painted over the tissues, the same for every sequence."""

    ncr: FloatArray
    et: FloatArray
    wet: FloatArray
    """Oedema; it lets the tissue beneath shine through faintly and does not fill the sulci."""
    vessels: FloatArray
    mottle: FloatArray
    """Fine unevenness of all tissue, of unit variance."""


def _clean_signal(
    contrast: Contrast, anatomy: Anatomy, layers: _Layers, rng: np.random.Generator, jitter: float
) -> FloatArray:
    """Noise-free signal around 1 in the brain and 0 outside."""
    csf, gm, wm, ed, ncr, et = (
        level + jitter * float(rng.standard_normal())
        for level in (contrast.csf, contrast.gm, contrast.wm, contrast.ed, contrast.ncr, contrast.et)
    )
    z = csf * anatomy.csf + gm * anatomy.gm + wm * anatomy.wm
    z += contrast.texture * anatomy.texture / contrast.spread + 0.07 * layers.mottle
    fine = smooth_noise(rng, z.shape, 2.0 / anatomy.spacing_mm)
    coarse = smooth_noise(rng, z.shape, 5.0 / anatomy.spacing_mm)
    z += layers.wet * (ed + 0.35 * layers.mottle - z)
    z += layers.ncr * (ncr + 0.40 * coarse + 0.20 * fine - z)
    z += layers.et * (et + 0.2 * (1.0 + abs(et)) * (coarse + 0.5 * fine) - z)
    z += 0.8 * layers.vessels * (contrast.vessel - z)
    return np.where(anatomy.brain, np.maximum(1.0 + contrast.spread * z, 0.03), 0).astype(np.float32)


def _acquired(
    clean: FloatArray, contrast: Contrast, anatomy: Anatomy, rng: np.random.Generator, levels: int
) -> NDArray[np.int16]:
    """What a scanner makes of the clean signal: coil bias, partial volume, Rician noise, an arbitrary scale."""
    spacing = anatomy.spacing_mm
    bias = np.exp(0.08 * smooth_noise(rng, clean.shape, 35.0 / spacing))
    blur = np.array([contrast.through_plane_mm / 2.355, 0.45, 0.45]) / spacing
    inside = anatomy.brain.astype(np.float32)
    # Normalised by the blurred mask: a stripped image is cut after the blur, its edge voxels are not mixed with air.
    signal = ndimage.gaussian_filter(clean * bias, blur) / np.maximum(ndimage.gaussian_filter(inside, blur), 1e-3)
    real, imaginary = (
        ndimage.gaussian_filter(rng.standard_normal(clean.shape, dtype=np.float32), 0.45) for _ in range(2)
    )
    grain = contrast.noise / float(real.std())
    noisy = np.sqrt((signal + grain * real) ** 2 + (grain * imaginary) ** 2)
    top = float(np.percentile(noisy[anatomy.brain], 99.9))
    maximum = float(np.exp(rng.uniform(np.log(500.0), np.log(3000.0))))
    step = maximum / levels
    stored = np.round(np.round(noisy / top * levels) * step)
    return np.where(anatomy.brain, np.clip(stored, 1, 32000), 0).astype(np.int16)
