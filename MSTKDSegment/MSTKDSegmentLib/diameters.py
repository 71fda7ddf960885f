"""How large a lesion is, as radiologists measure it: the longest diameter, and the two axial ones of RANO.

Diameters are measured between the midpoints of neighbouring voxels inside and outside, where a surface through the
label map at half height would lie. RANO: the longest diameter on any axial slice and the longest one perpendicular to
it on the same slice (Wen et al. 2010, J Clin Oncol 28:1963); of the largest connected piece, across indentations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import ConvexHull, distance

from .regions import LABELS, REGIONS, bounding_box, components, require_labels, volumes_ml, voxel_volume_ml
from .volume_checks import voxel_columns

SUPERIOR = 2


@dataclass(frozen=True)
class Diameters:
    """Millimetres; all 0 where there is nothing. The axial two lie on one slice and stand at right angles."""

    longest_mm: float = 0.0
    axial_longest_mm: float = 0.0
    axial_perpendicular_mm: float = 0.0


def measure(labels: np.ndarray, image: sitk.Image) -> dict[str, dict[str, float]]:
    """Volume (ml) and diameters (mm) of WT, TC, ET, NCR and ED in a label map (D, H, W) on the grid of `image`.

    {"WT": {"volume_ml": ..., "longest_mm": ..., "axial_longest_mm": ..., "axial_perpendicular_mm": ...}, ...}
    """
    labels = require_labels(labels)
    millilitres = volumes_ml(labels, voxel_volume_ml(image.GetSpacing(), image.GetDirection()))
    columns = voxel_columns(image)
    measured: dict[str, dict[str, float]] = {}
    for structure in (*REGIONS, *LABELS):
        if structure.key not in measured:
            diameters = lesion_diameters(np.isin(labels, structure.labels), columns)
            measured[structure.key] = {"volume_ml": millilitres[structure.key], **asdict(diameters)}
    return measured


def lesion_diameters(mask: np.ndarray, columns: np.ndarray) -> Diameters:
    """Diameters of the largest 26-connected piece of `mask` (D, H, W).

    columns: (3, 3), the steps in the patient (LPS mm) from one voxel to the next along x, y and z, one a column. Axial
    slices are those of the voxel grid that lie nearest to the axial plane.
    """
    box = bounding_box(mask)
    if box is None:
        return Diameters()
    numbered, counts = components(mask[box])
    piece = numbered == counts.argmax()
    longest, _ = _longest(_surface_points(piece) @ columns.T)
    steps = columns / np.linalg.norm(columns, axis=0)
    across = int(np.abs(steps[SUPERIOR]).argmax())  # the grid's axis (x, y or z) that runs most nearly upwards
    slices = np.moveaxis(piece, 2 - across, 0)
    in_plane = _plane_coordinates(np.delete(columns, across, axis=1))
    axial, perpendicular = 0.0, 0.0
    outlines = [(outline, _reach(outline, in_plane)) for outline in _pieces(slices)]
    largest, _reached = max(outlines, key=lambda one: one[1])
    known, _ = _longest(_surface_points(largest) @ in_plane.T)
    for outline, reach in outlines:
        if reach < known - 1e-6:  # cannot be the longest
            continue
        points = _surface_points(outline) @ in_plane.T
        length, direction = _longest(points)
        if length > axial:
            axial, perpendicular = length, _longest_across(points, direction)
    return Diameters(longest, axial, perpendicular)


def _pieces(slices: np.ndarray) -> Iterable[np.ndarray]:
    """Each 8-connected piece of each slice, cut to the box around it."""
    for one in slices:
        numbered, _count = ndimage.label(one, structure=np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(numbered), start=1):
            yield numbered[box] == number


def _reach(outline: np.ndarray, in_plane: np.ndarray) -> float:
    """mm of the longer diagonal of a piece's box, which no diameter of the piece exceeds; `in_plane` (2, 2)."""
    height, width = outline.shape
    first, second = in_plane @ (width, height), in_plane @ (width, -height)
    return float(max(np.linalg.norm(first), np.linalg.norm(second)))


def _surface_points(mask: np.ndarray) -> np.ndarray:
    """(N, dimensions) of x, y(, z) in voxels: the midpoints between voxels inside and their neighbours outside."""
    padded = np.pad(mask, 1).astype(np.int8)
    points = []
    for axis in range(mask.ndim):
        index = np.argwhere(np.diff(padded, axis=axis)).astype(float) - 1.0
        index[:, axis] += 0.5
        points.append(index[:, ::-1])
    return np.concatenate(points)


def _plane_coordinates(steps: np.ndarray) -> np.ndarray:
    """(2, 2): from steps along a slice's two axes, `steps` (3, 2) in mm, to millimetres at right angles within it."""
    _, coordinates = np.linalg.qr(steps)
    return np.asarray(coordinates)


def _longest(points: np.ndarray) -> tuple[float, np.ndarray]:
    """The greatest distance between two of the points, and the direction from one to the other."""
    corners = points[ConvexHull(points).vertices]
    distances = distance.squareform(distance.pdist(corners))
    first, second = np.unravel_index(distances.argmax(), distances.shape)
    length = float(distances[first, second])
    return length, (corners[second] - corners[first]) / length


def _longest_across(points: np.ndarray, direction: np.ndarray) -> float:
    """The longest chord of the points' convex hull at right angles to `direction`; all in one plane.

    Along `direction` the chord's length is concave and changes its slope only at corners, so it is greatest at one.
    """
    corners = points[ConvexHull(points).vertices]  # in order around the outline
    along, across = corners @ direction, corners @ np.array([-direction[1], direction[0]])
    begin, end = along, np.roll(along, -1)
    longest = 0.0
    for place in along:
        crossed = (np.minimum(begin, end) <= place) & (place <= np.maximum(begin, end)) & (begin != end)
        share = (place - begin[crossed]) / (end - begin)[crossed]
        heights = across[crossed] + share * (np.roll(across, -1) - across)[crossed]
        level = across[along == place]  # an edge that runs along the chord itself
        longest = max(longest, float(np.ptp(np.concatenate([heights, level]))))
    return longest
