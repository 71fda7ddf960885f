"""The brain mask that a user chose, a volume or a segmentation with one segment, in world coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from .errors import InputError
from .slicer_scene import (
    as_array,
    has_plain_voxels,
    ijk_to_ras,
    image_of,
    labelmap_name,
    matrix_between,
    non_linear_obstacle,
    voxels_of,
)
from .translation import _


def brain_mask_from_node(node: Any) -> sitk.Image:
    """The mask as an image (LPS mm) of uint8, 1 where the volume is above zero or the segment is.

    Raises InputError for a node that is no such mask, is empty, or stands under a non-linear transform.
    """
    obstacle = brain_mask_obstacle(node)
    if obstacle:
        raise InputError(obstacle)
    voxels, to_node = _of_segmentation(node) if _is_segmentation(node) else (voxels_of(node), ijk_to_ras(node))
    inside = voxels > 0
    if not inside.any():
        raise InputError(_("{name}: the brain mask is empty. Choose another, or none.").format(name=node.GetName()))
    to_world = matrix_between(node.GetParentTransformNode(), None, node.GetName()) @ to_node
    return image_of(inside.astype(np.uint8), to_world, node.GetName())


def brain_mask_obstacle(node: Any) -> str:
    """Why `node` cannot be a brain mask, with what to do; "" where its kind and place are right."""
    name, bent = node.GetName(), non_linear_obstacle(node)
    if bent:
        return bent
    if _is_segmentation(node):
        return _obstacle_of_segmentation(node)
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        return _("{name}: no brain mask. Choose a label map, or a segmentation with one segment.").format(name=name)
    if not has_plain_voxels(node):
        return _("{name}: holds no voxels of one value each. Choose another brain mask.").format(name=name)
    return ""


def _is_segmentation(node: Any) -> bool:
    return bool(node.IsA("vtkMRMLSegmentationNode"))


def _obstacle_of_segmentation(node: Any) -> str:
    segmentation = node.GetSegmentation()
    if segmentation.GetNumberOfSegments() != 1:
        return _("{name}: has {count} segments. Choose a segmentation with one segment, the brain.").format(
            name=node.GetName(), count=segmentation.GetNumberOfSegments()
        )
    if not segmentation.ContainsRepresentation(labelmap_name()):
        return _(
            "{name}: its segment has no voxels. Make a binary label map of it (Segmentations module, Representations)."
        ).format(name=node.GetName())
    return ""


def _of_segmentation(node: Any) -> tuple[np.ndarray, np.ndarray]:
    """The segment's voxels (D, H, W) and the matrix (4, 4) from their indices to the node's coordinates."""
    labelmap, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    node.GetBinaryLabelmapRepresentation(node.GetSegmentation().GetNthSegmentID(0), labelmap)
    scalars = labelmap.GetPointData().GetScalars()
    if scalars is None:
        return np.zeros((1, 1, 1), np.uint8), np.eye(4)
    labelmap.GetImageToWorldMatrix(matrix)
    start = np.eye(4)
    start[:3, 3] = labelmap.GetExtent()[::2]
    return vtk_to_numpy(scalars).reshape(labelmap.GetDimensions()[::-1]), as_array(matrix) @ start
