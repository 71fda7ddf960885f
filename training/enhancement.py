"""A patient's tumour as if it took up no contrast agent: what T1Gd would show of it is estimated from T1.

Gliomas without enhancement are few in small cohorts (3 of 46 here), and a network that has hardly seen any draws
enhancement into them. Here every patient can be one, with the labels to go with it.
"""

from __future__ import annotations

import numpy as np
from MSTKDSegmentLib.modalities import MODALITIES
from MSTKDSegmentLib.regions import ET, NCR
from scipy import ndimage

from training.losses import UNENHANCED
from training.mirror import blended, mirrored, symmetry_plane

# Voxels around the label of the enhancement that are replaced with it, and over which T1Gd goes over into the estimate.
MARGIN_VOXELS = 1
BLEND_VOXELS = 2
# The contrast of healthy tissue: between the outer two, on every `THINNED`-th voxel along each axis, `FEWEST` at least.
QUANTILES = (0.1, 0.5, 0.9)
THINNED = 3
FEWEST = 100
# Anatomy is coarser than so many voxels, noise finer.
FINE_VOXELS = 7
# Healthy tissue ends so many voxels from the tumour's label.
TUMOUR_REACH = 5


def without_enhancement(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """images (4, D, H, W), zero outside the brain, and labels (D, H, W); None without T1, T1Gd or ET.

    The core, ET and NCR, is `UNENHANCED` then: what the ring encloses is told from oedema by the ring. Had it kept its
    label, the network would learn to call oedema core.

    In T1Gd, where ET is, stands T1 with the contrast that T1Gd has in the patient's healthy tissue, plus what is fine
    in the difference of the two at the mirrored place (noise, small vessels; nothing where that is ill), so that T1 and
    T1Gd are no copies of each other. Vessels and meninges elsewhere stay enhanced.
    """
    enhancing = labels == ET
    if not enhancing.any():
        return None
    channel = MODALITIES.index("T1Gd")
    t1, gd = images[MODALITIES.index("T1")].astype(np.float32), images[channel].astype(np.float32)
    brain = (t1 != 0) & (gd != 0)
    healthy = brain & ~ndimage.maximum_filter(labels > 0, 2 * TUMOUR_REACH + 1)
    thin = (slice(None, None, THINNED),) * 3
    sample = healthy[thin]
    if np.count_nonzero(sample) < FEWEST:
        return None
    # By quantiles: a regression's slope is too flat, since both are noisy.
    dark, middle, bright = np.quantile(t1[thin][sample], QUANTILES)
    dark_gd, middle_gd, bright_gd = np.quantile(gd[thin][sample], QUANTILES)
    if bright <= dark:
        return None
    line = (t1 - middle) * ((bright_gd - dark_gd) / (bright - dark)) + middle_gd
    difference = np.where(healthy, gd - line, 0)
    fine = np.where(healthy, difference - ndimage.uniform_filter(difference, FINE_VOXELS), 0)
    plain = np.where(brain, line + mirrored(fine, symmetry_plane(brain)), gd).astype(images.dtype)
    result = images.copy()
    result[channel] = blended(images[channel][None], plain[None], enhancing, MARGIN_VOXELS, BLEND_VOXELS)[0]
    return result, np.where(enhancing | (labels == NCR), UNENHANCED, labels).astype(labels.dtype)
