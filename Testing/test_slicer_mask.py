"""The user's brain mask as it reaches the preparation, on Slicer's real MRML."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
vtk = pytest.importorskip("vtk")
import SimpleITK as sitk  # noqa: E402 - needs slicer
from MSTKDSegmentLib.errors import InputError  # noqa: E402
from MSTKDSegmentLib.slicer_mask import brain_mask_from_node, brain_mask_obstacle  # noqa: E402
from MSTKDSegmentLib.slicer_scene import volume_from_node  # noqa: E402
from scene_nodes import (  # noqa: E402
    GRID,
    IJK_TO_RAS,
    REGISTRATION,
    add_user_segment,
    as_vtk,
    make_transform,
    make_volume,
    make_warp,
    share_layer,
    shift,
)
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy  # noqa: E402

INSIDE = np.zeros(GRID, bool)
INSIDE[2:7, 3:8, 1:10] = True


def label_map(scene, values: np.ndarray, parent=None):
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "brain")
    image = vtk.vtkImageData()
    image.SetDimensions(*GRID[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(values.ravel(), deep=True))
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(as_vtk(IJK_TO_RAS))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def segmentation(scene, mask: np.ndarray, parent=None, start: int = 0):
    """One segment on the grid of `make_volume`, whose label map holds the voxels from index `start` on only."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "brain segment")
    cut = np.ascontiguousarray(mask[start:, start:, start:]).astype(np.uint8)
    labelmap = slicer.vtkOrientedImageData()
    depth, height, width = mask.shape
    labelmap.SetExtent(start, width - 1, start, height - 1, start, depth - 1)
    labelmap.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    vtk_to_numpy(labelmap.GetPointData().GetScalars())[:] = cut.ravel()
    labelmap.SetImageToWorldMatrix(as_vtk(IJK_TO_RAS))
    segment = slicer.vtkSegment()
    segment.AddRepresentation("Binary labelmap", labelmap)
    node.GetSegmentation().AddSegment(segment, "brain")
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def on(reference, mask: sitk.Image) -> np.ndarray:
    """The mask at the voxels of the volume node `reference`, by their places in the world."""
    image = volume_from_node(reference).image
    return sitk.GetArrayFromImage(sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)) > 0


@pytest.mark.parametrize("values", [INSIDE.astype(np.uint8), INSIDE * 41.5 - 3.0])
def test_a_volume_is_brain_where_it_is_above_zero(scene, values):
    reference, _ = make_volume(scene)
    mask = brain_mask_from_node(label_map(scene, values))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(on(reference, mask), INSIDE)


def test_transforms_of_reference_and_mask_are_honoured(scene):
    """The same place in the world: the mask's own transform, or half of it in the transform of its parent."""
    reference, _ = make_volume(scene, make_transform(scene, REGISTRATION))
    half = make_transform(scene, REGISTRATION @ np.linalg.inv(shift(3, 4, 5)))
    other = make_transform(scene, shift(3, 4, 5), half)
    for node in (label_map(scene, INSIDE.astype(np.uint8), other), segmentation(scene, INSIDE, other)):
        assert np.array_equal(on(reference, brain_mask_from_node(node)), INSIDE)
    unmoved = brain_mask_from_node(label_map(scene, INSIDE.astype(np.uint8)))
    assert not np.array_equal(on(reference, unmoved), INSIDE)


@pytest.mark.parametrize("start", [0, 1])
def test_a_segment_lies_where_it_is_also_when_its_label_map_begins_elsewhere(scene, start):
    reference, _ = make_volume(scene)
    node = segmentation(scene, INSIDE, start=start)
    assert brain_mask_obstacle(node) == ""
    assert np.array_equal(on(reference, brain_mask_from_node(node)), INSIDE)


def test_what_is_no_brain_mask_is_refused_in_words(scene):
    two = segmentation(scene, INSIDE)
    add_user_segment(two, "tumour")
    share_layer(two, "tumour", "brain")
    surface = segmentation(scene, INSIDE)
    surface.GetSegmentation().SetSourceRepresentationName("Closed surface")
    surface.GetSegmentation().GetSegment("brain").RemoveAllRepresentations()
    warped = label_map(scene, INSIDE.astype(np.uint8), make_warp(scene))
    for node, words in (
        (two, "brain segment: has 2 segments. Choose a segmentation with one segment"),
        (scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "new"), "new: has 0 segments"),
        (surface, "its segment has no voxels. Make a binary label map"),
        (warped, "brain: stands under the non-linear transform warp. Harden it"),
        (scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing"), "nothing: holds no voxels"),
        (make_transform(scene, np.eye(4)), "registration: no brain mask"),
    ):
        assert words in brain_mask_obstacle(node)
        with pytest.raises(InputError) as raised:
            brain_mask_from_node(node)
        assert str(raised.value) == brain_mask_obstacle(node)


@pytest.mark.parametrize("make", [label_map, segmentation])
def test_an_empty_mask_is_refused(scene, make):
    node = make(scene, np.zeros(GRID, np.uint8))
    assert brain_mask_obstacle(node) == ""
    with pytest.raises(InputError, match="the brain mask is empty"):
        brain_mask_from_node(node)
