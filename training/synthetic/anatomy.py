"""A healthy synthetic brain in BraTS space: the MNI152 template under a random pose and a smooth random deformation."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.errors import InputError
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

GRID_MM = (155.0, 240.0, 240.0)
"""Extent of the BraTS grid in mm, (D, H, W)."""
ORIGIN_LPS_MM = (0.0, -239.0, 0.0)
"""Physical position (x, y, z) of the first voxel in BraTS files."""

# The brain is built in a box of the grid that holds every pose; its corner divides by the usual spacings.
_BOX_CORNER_MM = (0.0, 36.0, 36.0)
_BOX_MM = (155.0, 192.0, 168.0)
# Median centre of mass of BraTS brains (grid position 75, 134, 119) in the box, and the template's own in MNI RAS mm.
_PATIENT_CENTRE_MM = (75.0, 98.0, 83.0)
_TEMPLATE_CENTRE_RAS_MM = (0.0, -22.0, 9.5)
# The MNI brain holds about 1.9 l; BraTS brains, stripped and in SRI24 space, about 1.4 l: (1.4 / 1.9) ** (1 / 3).
_TEMPLATE_TO_PATIENT = 0.905
# Median template T1 (0..255) in pure CSF, GM and WM.
_T1_OF_TISSUE = (79.0, 167.0, 222.0)


@dataclass(frozen=True)
class Pose:
    """Affine relation between patient and MNI space; rows map patient offsets (z, y, x, mm) to template offsets."""

    matrix: NDArray[np.float64]

    @staticmethod
    def sample(rng: np.random.Generator) -> Pose:
        """Head size within 3 % an axis and rotations within about 3 degrees of the BraTS average."""
        scale = _TEMPLATE_TO_PATIENT * (1.0 + rng.uniform(-0.03, 0.03, 3))
        rotation = np.eye(3)
        for axis in range(3):
            angle = np.deg2rad(rng.uniform(-3.0, 3.0))
            a, b = (axis + 1) % 3, (axis + 2) % 3
            turn = np.eye(3)
            turn[a, a] = turn[b, b] = np.cos(angle)
            turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
            rotation = rotation @ turn
        return Pose(np.diag(1.0 / scale) @ rotation)

    def to_patient(self, mni_ras_mm: tuple[float, float, float]) -> NDArray[np.float64]:
        """Position (z, y, x) in mm from the box's first voxel of an MNI RAS point (x, y, z) in mm."""
        dx, dy, dz = np.subtract(mni_ras_mm, _TEMPLATE_CENTRE_RAS_MM)
        return np.asarray(_PATIENT_CENTRE_MM) + np.linalg.solve(self.matrix, np.array([dz, -dy, -dx]))

    def to_mni(self, patient_mm: NDArray[np.float64]) -> tuple[float, float, float]:
        """MNI RAS point (x, y, z) in mm of a position (z, y, x) in mm from the box's first voxel."""
        dz, dy, dx = self.matrix @ (np.asarray(patient_mm) - np.asarray(_PATIENT_CENTRE_MM))
        x, y, z = _TEMPLATE_CENTRE_RAS_MM
        return float(x - dx), float(y - dy), float(z + dz)


@dataclass(frozen=True)
class Anatomy:
    """Maps of one brain in a box of the BraTS grid (`on_grid` puts them back), all (D, H, W), LPS axes.

    `csf`, `gm` and `wm` are probabilities that sum to 1 inside `brain` and are 0 outside; `texture` is the template's
    T1 beyond what the three tissues explain, relative to white matter; `depth_mm` is the distance to the brain's
    surface; `midline_mm` is the signed distance to the mid-sagittal plane (positive on the patient's right).
    """

    spacing_mm: float
    pose: Pose
    csf: FloatArray
    gm: FloatArray
    wm: FloatArray
    texture: FloatArray
    brain: BoolArray
    depth_mm: FloatArray
    midline_mm: FloatArray

    def with_tissue(self, csf: FloatArray, gm: FloatArray, wm: FloatArray, texture: FloatArray) -> Anatomy:
        """The same head with other tissue maps, renormalised to sum to 1 inside the brain."""
        total = np.maximum(csf + gm + wm, 1e-6)
        return replace(
            self,
            csf=_in(csf / total, self),
            gm=_in(gm / total, self),
            wm=_in(wm / total, self),
            texture=_in(texture, self),
        )


def _in(values: FloatArray, anatomy: Anatomy) -> FloatArray:
    return np.where(anatomy.brain, values, 0).astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma_voxels: float) -> FloatArray:
    """Gaussian random field of zero mean and unit variance with correlation length `sigma_voxels`.

    Long correlations are drawn on a coarser grid and interpolated: same statistics at a fraction of the work.
    """
    step = max(1.0, sigma_voxels / 2.0)
    coarse = tuple(int(np.ceil(n / step)) + 4 for n in shape)
    field = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma_voxels / step, mode="wrap")
    field = (field - field.mean()) / max(float(field.std()), 1e-6)
    if step > 1.0:
        field = ndimage.affine_transform(field, np.full(3, 1.0 / step), offset=1.0, output_shape=shape, order=1)
    return field[tuple(slice(0, n) for n in shape)].astype(np.float32)


def template_folder() -> Path:
    """Folder of the nilearn package that holds the MNI152 files; InputError where nilearn is not installed."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise InputError(
            "The MNI152 template is missing: the package nilearn is not installed; run `pip install nilearn`."
        )
    return Path(spec.origin).parent / "datasets" / "data"


def _read_template(kind: str) -> FloatArray:
    path = template_folder() / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise InputError(
            f"{path}: the MNI152 template is missing from this version of nilearn; install nilearn >= 0.10."
        )
    # RAS storage -> (z, y, x) array with LPS axes, like every other array here.
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat32))[:, ::-1, ::-1]


# First voxel of the LPS-ordered template in offsets (z, -y, -x) of MNI RAS mm: z = -72, y = 98, x = 98.
_TEMPLATE_FIRST = np.array([-72.0, -98.0, -98.0])


def _patient_box_coordinates(
    shape: tuple[int, ...], spacing_mm: float, pose: Pose, rng: np.random.Generator
) -> FloatArray:
    """Template voxel coordinates (3, D, H, W) of every patient voxel: pose plus a smooth deformation of about 2 mm."""
    offsets = [np.arange(n, dtype=np.float32) * spacing_mm - c for n, c in zip(shape, _PATIENT_CENTRE_MM)]
    bend = [2.0 * smooth_noise(rng, shape, 18.0 / spacing_mm) for _ in range(3)]
    x0, y0, z0 = _TEMPLATE_CENTRE_RAS_MM
    centre = np.array([z0, -y0, -x0]) - _TEMPLATE_FIRST
    coordinates = np.empty((3, *shape), np.float32)
    for row in range(3):
        m = pose.matrix[row]
        plane = m[0] * offsets[0][:, None, None] + m[1] * offsets[1][None, :, None] + m[2] * offsets[2][None, None, :]
        coordinates[row] = plane + centre[row] + bend[row]
    return coordinates


def healthy_anatomy(rng: np.random.Generator, spacing_mm: float = 1.0) -> Anatomy:
    """A healthy brain at `spacing_mm` on the BraTS field of view.

    Source: ICBM 2009a nonlinear symmetric template (Fonov et al. 2009, 2011) as shipped with nilearn; InputError where
    it is missing. CSF is what grey and white matter leave of the brain, plus what is too dark on T1 to be cortex: the
    average of 152 brains blurs the sulci into the grey matter.
    """
    shape = tuple(int(np.ceil(extent / spacing_mm)) for extent in _BOX_MM)
    pose = Pose.sample(rng)
    coordinates = _patient_box_coordinates(shape, spacing_mm, pose, rng)
    t1, gm, wm = (ndimage.map_coordinates(_read_template(k), coordinates, order=1) for k in ("t1", "gm", "wm"))
    brain = _stripped(t1 > 25.0, spacing_mm, rng)
    gm, wm = np.clip(gm / 255.0, 0, 1), np.clip(wm / 255.0, 0, 1)
    csf = np.maximum(np.clip(1.0 - gm - wm, 0, 1), np.clip((150.0 - t1) / 65.0, 0, 1))
    gm, wm = gm * (1.0 - csf), wm * (1.0 - csf)
    total = np.maximum(csf + gm + wm, 1e-6)
    explained = sum(level * part / total for level, part in zip(_T1_OF_TISSUE, (csf, gm, wm)))
    texture = np.clip((t1 - explained) / _T1_OF_TISSUE[2], -0.15, 0.15)
    depth = ndimage.distance_transform_edt(brain, sampling=spacing_mm)
    midline = coordinates[2] + _TEMPLATE_FIRST[2]
    head = Anatomy(spacing_mm, pose, csf, gm, wm, texture, brain, depth.astype(np.float32), -midline)
    return head.with_tissue(csf, gm, wm, texture)


def individual_folds(anatomy: Anatomy, rng: np.random.Generator) -> Anatomy:
    """Sharpens the cortex that averaging blurred: random fine structure decides between tissues where they compete.

    Deep grey matter, where white and grey really mix, keeps its probabilities.
    """
    superficial = np.clip((26.0 - anatomy.depth_mm) / 12.0, 0, 1)
    maps = []
    for part, level in ((anatomy.csf, 0.9), (anatomy.gm, 0.5), (anatomy.wm, 0.7)):
        noise = smooth_noise(rng, part.shape, 1.6 / anatomy.spacing_mm)
        sharp = part**2 * np.exp(level * noise)
        maps.append(sharp)
    total = np.maximum(sum(maps), 1e-9)
    csf, gm, wm = (
        superficial * sharp / total + (1.0 - superficial) * part
        for sharp, part in zip(maps, (anatomy.csf, anatomy.gm, anatomy.wm))
    )
    return anatomy.with_tissue(csf, gm, wm, anatomy.texture)


def on_grid(box: NDArray[Any], spacing_mm: float) -> NDArray[Any]:
    """The box's array padded with 0 to the whole BraTS grid."""
    shape = tuple(int(np.ceil(extent / spacing_mm)) for extent in GRID_MM)
    padded = np.zeros(shape, box.dtype)
    corner = [round(c / spacing_mm) for c in _BOX_CORNER_MM]
    region = tuple(slice(c, min(c + n, total)) for c, n, total in zip(corner, box.shape, shape))
    padded[region] = box[tuple(slice(0, r.stop - r.start) for r in region)]
    return padded


def _stripped(head: BoolArray, spacing_mm: float, rng: np.random.Generator) -> BoolArray:
    """Brain mask as skull stripping leaves it: cut here and there up to 4 mm into the outer CSF."""
    filled = _largest_component(ndimage.binary_fill_holes(head))
    depth = ndimage.distance_transform_edt(filled, sampling=spacing_mm)
    cut = np.clip(1.8 + 1.2 * smooth_noise(rng, head.shape, 9.0 / spacing_mm), 0, 4)
    return _largest_component(ndimage.binary_opening(depth > cut))


def _largest_component(mask: BoolArray) -> BoolArray:
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask.astype(bool)
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
