"""Where the tumour sits, what it pushes aside, and which voxels are necrosis, enhancing rim and oedema."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from training.synthetic.anatomy import Anatomy, BoolArray, FloatArray, smooth_noise

NCR, ED, ET = 1, 2, 3
"""Labels: necrosis, oedema, enhancing tumour (BraTS 2023 convention)."""


@dataclass(frozen=True)
class TumourParameters:
    """What a tumour looks like; lengths in mm, `None` means drawn at random by `resolved`."""

    centre_mni_mm: tuple[float, float, float] | None = None
    """Centre of the lesion before mass effect, MNI RAS."""
    side: str | None = None
    """Patient's "left" or "right" hemisphere; taken from the centre where that is given."""
    core_radius_mm: float | None = None
    """Mean radius of necrosis and rim together."""
    oedema_extent_mm: float | None = None
    """How far oedema runs from the core along white matter."""
    irregularity: float | None = None
    """Standard deviation of the core's radius relative to its mean."""
    mass_effect: float | None = None
    """Radius of the tissue-free ball whose growth pushed the brain, relative to the core's radius (0: no push)."""

    def resolved(self, anatomy: Anatomy, rng: np.random.Generator) -> TumourParameters:
        """The same tumour with every `None` replaced by a plausible draw; ValueError on impossible arguments."""
        # Every value is drawn even where it is given, so that fixing one parameter leaves the others as they were.
        drawn_side = str(rng.choice(["left", "right"]))
        drawn_radius, drawn_extent = float(rng.uniform(10.0, 23.0)), float(rng.uniform(8.0, 26.0))
        drawn_irregularity, drawn_push = float(rng.uniform(0.10, 0.2)), float(rng.uniform(0.5, 0.95))
        radius = drawn_radius if self.core_radius_mm is None else self.core_radius_mm
        side = self.side or drawn_side
        if side not in ("left", "right"):
            raise ValueError(f"side must be 'left' or 'right', not {side!r}")
        if not 2.0 <= radius <= 40.0:
            raise ValueError(f"core_radius_mm must lie between 2 and 40 mm, not {radius:g}")
        centre = self.centre_mni_mm
        if centre is None:
            centre = _white_matter_site(anatomy, side, radius, rng)
        elif self.side is not None and (centre[0] > 0) != (side == "right"):
            raise ValueError(f"centre_mni_mm {centre} does not lie in the {side} hemisphere (MNI x > 0 is right)")
        return replace(
            self,
            centre_mni_mm=centre,
            side="right" if centre[0] > 0 else "left",
            core_radius_mm=radius,
            oedema_extent_mm=drawn_extent if self.oedema_extent_mm is None else self.oedema_extent_mm,
            irregularity=drawn_irregularity if self.irregularity is None else self.irregularity,
            mass_effect=drawn_push if self.mass_effect is None else self.mass_effect,
        )


@dataclass(frozen=True)
class Tumour:
    """Masks and soft maps (D, H, W) of one tumour; `oedema` is 0..1 and fades at the margin."""

    labels: NDArray[np.uint8]
    oedema: FloatArray


def _white_matter_site(
    anatomy: Anatomy, side: str, radius_mm: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    """A random cerebral white-matter point deep enough for the core to fit between cortex and falx."""
    lateral = anatomy.midline_mm if side == "right" else -anatomy.midline_mm
    # Above the temporal poles, so that neither brainstem nor cerebellum is drawn.
    floor_mm = anatomy.pose.to_patient((0.0, -20.0, 2.0))[0]
    above = np.arange(anatomy.wm.shape[0])[:, None, None] * anatomy.spacing_mm > floor_mm
    for fit in (0.9, 0.7, 0.5, 0.3):
        site = (anatomy.wm > 0.8) & above & (anatomy.depth_mm > fit * radius_mm) & (lateral > fit * radius_mm + 3.0)
        candidates = np.flatnonzero(site)
        if candidates.size:
            break
    else:
        raise ValueError(f"a core of radius {radius_mm:g} mm does not fit into the {side} hemisphere")
    voxel = np.unravel_index(int(rng.choice(candidates)), site.shape)
    return anatomy.pose.to_mni(np.array(voxel) * anatomy.spacing_mm)


def _offsets_mm(anatomy: Anatomy, centre_mm: np.ndarray) -> list[np.ndarray]:
    """Open grid of offsets (z, y, x) in mm from the centre."""
    axes = [np.arange(n, dtype=np.float32) * anatomy.spacing_mm - c for n, c in zip(anatomy.wm.shape, centre_mm)]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def push_aside(anatomy: Anatomy, centre_mm: np.ndarray, ball_mm: float) -> Anatomy:
    """The brain after a ball of `ball_mm` radius grew at the centre: incompressible radial flow, fading at the skull.

    Volume conservation moves tissue from radius s to r with r^3 = s^3 + ball^3 (the classical mass-effect model of an
    expanding cavity); the displacement is damped to 0 at the brain's surface, so that the mask stays as it is.
    """
    if ball_mm <= 0:
        return anatomy
    offsets = _offsets_mm(anatomy, centre_mm)
    r = np.sqrt(sum(o**2 for o in offsets))
    source = np.cbrt(np.maximum(r**3 - ball_mm**3, 0.0))
    damping = np.clip(anatomy.depth_mm / 12.0, 0, 1)
    pull = (damping * (source - r) / np.maximum(r, 1e-3)) / anatomy.spacing_mm
    grid = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in r.shape), indexing="ij", sparse=True)
    coordinates = np.stack([g + pull * o for g, o in zip(grid, offsets)])
    warped = (
        ndimage.map_coordinates(m, coordinates, order=1) for m in (anatomy.csf, anatomy.gm, anatomy.wm, anatomy.texture)
    )
    return anatomy.with_tissue(*warped)


def _core_mask(
    anatomy: Anatomy, tumour: TumourParameters, centre_mm: np.ndarray, rng: np.random.Generator
) -> BoolArray:
    """An ellipsoid with a noisy surface, kept inside its hemisphere and out of the ventricles."""
    radius, shape = float(tumour.core_radius_mm or 0), anatomy.wm.shape
    axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = np.exp(rng.normal(0.0, 0.12, 3))
    frame = (axes / (stretch / np.cbrt(np.prod(stretch)))[:, None]) / radius
    offsets = _offsets_mm(anatomy, centre_mm)
    rho = np.sqrt(sum(sum(frame[i, j] * offsets[j] for j in range(3)) ** 2 for i in range(3)))
    voxels = radius / anatomy.spacing_mm
    bumps = 0.85 * smooth_noise(rng, shape, max(0.45 * voxels, 1.0)) + 0.5 * smooth_noise(
        rng, shape, max(0.18 * voxels, 1.0)
    )
    lateral = anatomy.midline_mm if tumour.side == "right" else -anatomy.midline_mm
    inside = rho < 1.0 + float(tumour.irregularity or 0) * bumps
    core = inside & (anatomy.depth_mm > 2.0) & (lateral > 1.5) & ~((anatomy.csf > 0.7) & (anatomy.depth_mm > 10.0))
    return _one_piece(ndimage.binary_opening(core) if voxels > 4 else core, centre_mm / anatomy.spacing_mm)


def _one_piece(mask: BoolArray, voxel: np.ndarray) -> BoolArray:
    """The largest connected component without holes; ValueError where there is none (centre outside the brain)."""
    labels, count = ndimage.label(mask)
    if count == 0:
        raise ValueError(
            f"no room for a tumour at voxel {np.round(voxel).astype(int).tolist()}: the centre lies outside the brain"
        )
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return ndimage.binary_fill_holes(labels == largest)


def _necrosis_mask(core: BoolArray, radius_mm: float, spacing_mm: float, rng: np.random.Generator) -> BoolArray:
    """What lies deeper in the core than the rim, 3 to 8 mm thick (thinner in small tumours), varying around it."""
    depth = ndimage.distance_transform_edt(core, sampling=spacing_mm)
    thick = float(np.clip(0.4 * radius_mm, 3.0, 8.0))
    noise = smooth_noise(rng, core.shape, max(0.35 * radius_mm / spacing_mm, 1.0))
    thickness = np.clip(3.0 + 0.2 * (thick - 3.0) + 0.5 * (thick - 3.0) * noise, 3.0, thick)
    # A necrotic focus always exists: the innermost voxels where the rim would fill a small core.
    return depth > np.minimum(thickness, 0.7 * depth.max())


def _oedema_map(anatomy: Anatomy, core: BoolArray, extent_mm: float, rng: np.random.Generator) -> FloatArray:
    """Soft extent (0..1) of oedema: travel time from the core, fast in white matter, slow in grey, none in CSF."""
    speed = anatomy.wm**2 + 0.08 * anatomy.gm
    speed *= np.exp(0.35 * smooth_noise(rng, core.shape, 6.0 / anatomy.spacing_mm))
    speed = np.where(anatomy.brain & (anatomy.csf < 0.6), np.maximum(speed, 0.02), 0.0)
    image = sitk.GetImageFromArray(np.where(core, 1.0, speed).astype(np.float32))
    image.SetSpacing((anatomy.spacing_mm,) * 3)
    front = core & ~ndimage.binary_erosion(core)
    march = sitk.FastMarchingImageFilter()
    march.SetTrialPoints([[int(i) for i in v[::-1]] for v in np.argwhere(front)])
    march.SetStoppingValue(1.6 * extent_mm + 4.0)
    arrival = np.minimum(sitk.GetArrayFromImage(march.Execute(image)), 1e4)
    fade_mm = 1.5
    soft = np.where(anatomy.brain, 1.0 / (1.0 + np.exp(np.clip((arrival - extent_mm) / fade_mm, -20, 20))), 0.0)
    soft = ndimage.gaussian_filter(soft.astype(np.float32), 0.8 / anatomy.spacing_mm)
    return np.where(anatomy.brain, np.maximum(soft, core), 0).astype(np.float32)


def grow(anatomy: Anatomy, tumour: TumourParameters, rng: np.random.Generator) -> tuple[Anatomy, Tumour]:
    """The displaced brain and the tumour in it; `tumour` must be resolved. ValueError where it does not fit."""
    if tumour.centre_mni_mm is None or tumour.core_radius_mm is None or tumour.oedema_extent_mm is None:
        raise ValueError("the tumour's parameters are not resolved; call `resolved` first")
    centre = anatomy.pose.to_patient(tumour.centre_mni_mm)
    displaced = push_aside(anatomy, centre, float(tumour.mass_effect or 0) * tumour.core_radius_mm)
    core = _core_mask(displaced, tumour, centre, rng)
    necrosis = _necrosis_mask(core, tumour.core_radius_mm, anatomy.spacing_mm, rng)
    oedema = _oedema_map(displaced, core, tumour.oedema_extent_mm, rng)
    swollen = (oedema > 0.5) & (displaced.csf < 0.5) & displaced.brain
    labels = np.zeros(core.shape, np.uint8)
    connected, _ = ndimage.label(swollen | core)
    labels[connected == connected[core][0]] = ED
    labels[core] = ET
    labels[necrosis] = NCR
    return displaced, Tumour(labels, oedema)
