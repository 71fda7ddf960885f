"""Nodes for tests on Slicer's real MRML (slicer-core): volumes, transforms, segments, and what is read back."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
vtk = pytest.importorskip("vtk")
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy  # noqa: E402 - needs slicer

GRID = (9, 10, 12)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(axis: int, degrees: float) -> np.ndarray:
    matrix = np.eye(4)
    first, second = [index for index in range(3) if index != axis]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[[first, first, second, second], [first, second, first, second]] = cosine, -sine, sine, cosine
    return matrix


def shift(*millimetres: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = millimetres
    return matrix


# Thick slices (0.9 x 1.1 x 3 mm), oblique, then turned again by a registration.
IJK_TO_RAS = shift(-20, 15, 40) @ rotation(0, 17) @ rotation(2, 8) @ np.diag([0.9, -1.1, 3.0, 1.0])
REGISTRATION = shift(5, -7, 2) @ rotation(1, 25) @ rotation(2, -12)


def as_vtk(matrix: np.ndarray):
    result = vtk.vtkMatrix4x4()
    result.DeepCopy(matrix.ravel())
    return result


def make_labels() -> np.ndarray:
    labels = np.zeros(GRID, np.uint8)
    labels[2:8, 2:8, 3:10] = 2
    labels[3:6, 3:7, 4:8] = 3
    labels[4, 4:6, 5:7] = 1
    return labels


def make_transform(scene, matrix: np.ndarray, parent=None, name: str = "registration"):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(as_vtk(matrix))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def make_volume(scene, parent=None, name: str = "T1 post", matrix: np.ndarray = IJK_TO_RAS, seed: int = 0):
    array = np.random.default_rng(seed).integers(1, 1000, GRID).astype(np.int16)
    image = vtk.vtkImageData()
    image.SetDimensions(*GRID[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(array.ravel(), deep=True))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(as_vtk(matrix))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node, array


def add_user_segment(node, segment_id: str, name: str = "by hand") -> None:
    image = slicer.vtkOrientedImageData()
    image.SetExtent(0, 2, 0, 2, 0, 2)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.GetPointData().GetScalars().Fill(1)
    segment = slicer.vtkSegment()
    segment.SetName(name)
    segment.AddRepresentation("Binary labelmap", image)
    node.GetSegmentation().AddSegment(segment, segment_id)


def share_layer(node, segment_id: str, with_segment: str) -> None:
    """As the Segment Editor does: a segment becomes the value 7 in another's label map (27 voxels at its corner)."""
    segmentation = node.GetSegmentation()
    labelmap = segmentation.GetSegment(with_segment).GetRepresentation("Binary labelmap")
    vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(GRID)[:3, :3, :3] = 7
    segment = segmentation.GetSegment(segment_id)
    segment.SetLabelValue(7)
    segment.AddRepresentation("Binary labelmap", labelmap)


def node_ids(scene) -> list:
    return [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]


def segment_ids(node) -> list:
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]


def binary(node, segment_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Mask (D, H, W) of a segment and the matrix from its voxels to the node's coordinates."""
    labelmap, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    node.GetBinaryLabelmapRepresentation(segment_id, labelmap)
    labelmap.GetImageToWorldMatrix(matrix)
    mask = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(labelmap.GetDimensions()[::-1]) != 0
    values = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
    return mask, values @ shift(*labelmap.GetExtent()[::2])


def attributes(node) -> dict:
    return {name: node.GetAttribute(name) for name in node.GetAttributeNames()}


def make_warp(scene):
    grid = vtk.vtkImageData()
    grid.SetDimensions(4, 4, 4)
    grid.SetSpacing(20, 20, 20)
    grid.AllocateScalars(vtk.VTK_DOUBLE, 3)
    vtk_to_numpy(grid.GetPointData().GetScalars())[:] = np.random.default_rng(0).random((64, 3))
    warp = vtk.vtkGridTransform()
    warp.SetDisplacementGridData(grid)
    node = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "warp")
    node.SetAndObserveTransformToParent(warp)
    return node


def volume_of_image(scene, image: sitk.Image, name: str, transform=None):
    """A volume node with the voxels and the place of `image`."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    data = vtk.vtkImageData()
    data.SetDimensions(*image.GetSize())
    data.GetPointData().SetScalars(numpy_to_vtk(sitk.GetArrayViewFromImage(image).ravel(), deep=True))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetIJKToRASMatrix(as_vtk(LPS_TO_RAS @ matrix))
    node.SetAndObserveImageData(data)
    if transform is not None:
        node.SetAndObserveTransformNodeID(transform.GetID())
    return node
