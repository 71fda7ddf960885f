"""Volume nodes in, segmentation nodes out, on Slicer's real MRML (slicer-core)."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.errors import GeometryError, InputError, OutputError
from MSTKDSegmentLib.regions import LABELS, REGIONS, labels_to_regions

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
vtk = pytest.importorskip("vtk")
from MSTKDSegmentLib.slicer_scene import (  # noqa: E402
    SEGMENTS_MADE,
    add_segmentation,
    check_output_node,
    earlier_result,
    volume_from_node,
)
from scene_nodes import (  # noqa: E402
    GRID,
    IJK_TO_RAS,
    REGISTRATION,
    add_user_segment,
    attributes,
    binary,
    make_labels,
    make_transform,
    make_volume,
    make_warp,
    node_ids,
    rotation,
    segment_ids,
    share_layer,
    shift,
)
from vtk.util.numpy_support import vtk_to_numpy  # noqa: E402

# --- volumes in -----------------------------------------------------------------------------------------------------


def check_world_geometry(image: sitk.Image, ijk_to_ras: np.ndarray) -> None:
    for index in [(0, 0, 0), (11, 0, 0), (0, 9, 0), (0, 0, 8), (5, 3, 7)]:
        expected = np.diag([-1, -1, 1, 1]) @ ijk_to_ras @ (*index, 1)
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), expected[:3], atol=1e-9)


def test_a_volume_under_a_rotation_is_read_in_world_coordinates(scene):
    node, array = make_volume(scene, make_transform(scene, REGISTRATION))
    volume = volume_from_node(node)
    assert volume.source == "T1 post"
    assert volume.image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_allclose(volume.image.GetSpacing(), (0.9, 1.1, 3.0))
    check_world_geometry(volume.image, REGISTRATION @ IJK_TO_RAS)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume.image), array)


def test_nested_transforms_with_scaling_and_shear_are_composed(scene):
    shear = np.eye(4)
    shear[0, 1] = 0.2
    outer = make_transform(scene, shear @ np.diag([1.1, 0.9, 1.2, 1.0]), name="outer")
    node, _ = make_volume(scene, make_transform(scene, REGISTRATION, outer))
    check_world_geometry(
        volume_from_node(node).image, shear @ np.diag([1.1, 0.9, 1.2, 1.0]) @ REGISTRATION @ IJK_TO_RAS
    )


def test_the_voxels_are_a_copy(scene):
    node, array = make_volume(scene)
    image = volume_from_node(node).image
    vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())[:] = 0
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)


def test_a_non_linear_transform_is_refused_also_above_a_linear_one(scene):
    node, _ = make_volume(scene, make_transform(scene, REGISTRATION, make_warp(scene)))
    with pytest.raises(InputError, match=r"T1 post: stands under the non-linear transform registration\. Harden it"):
        volume_from_node(node)


def test_nodes_that_are_no_usable_volume_are_refused(scene):
    label_map, _ = make_volume(scene)
    wrong = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    wrong.SetAndObserveImageData(label_map.GetImageData())
    with pytest.raises(InputError, match="labels: not a greyscale volume"):
        volume_from_node(wrong)
    with pytest.raises(InputError, match="nothing: the volume holds no voxels"):
        volume_from_node(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing"))
    colour = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colour")
    image = vtk.vtkImageData()
    image.SetDimensions(9, 9, 9)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    colour.SetAndObserveImageData(image)
    with pytest.raises(InputError, match="colour: a colour or vector volume"):
        volume_from_node(colour)


def test_a_transform_that_flattens_the_volume_is_refused(scene):
    node, _ = make_volume(scene, make_transform(scene, np.diag([1.0, 0.0, 1.0, 1.0])))
    with pytest.raises(GeometryError, match="T1 post: its axes"):
        volume_from_node(node)


# --- segmentations out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registered", [False, True])
def test_labels_come_back_voxel_for_voxel_on_the_references_grid(scene, registered):
    reference, _ = make_volume(scene, make_transform(scene, REGISTRATION) if registered else None)
    node = add_segmentation(make_labels(), reference)
    assert node.GetName() == "T1 post tumour"
    assert node.GetTransformNodeID() == reference.GetTransformNodeID()
    assert node.GetDisplayNode() is not None
    assert node.GetSegmentation().GetNumberOfLayers() == 1
    for structure in LABELS:
        mask, matrix = binary(node, structure.key)
        assert mask.sum() == (make_labels() == structure.labels[0]).sum()
        expected = IJK_TO_RAS @ np.append(np.argwhere(make_labels() == structure.labels[0]).mean(axis=0)[::-1], 1)
        np.testing.assert_allclose(matrix @ np.append(np.argwhere(mask).mean(axis=0)[::-1], 1), expected, atol=1e-6)
    exported = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "exported")
    ids = vtk.vtkStringArray()
    for structure in LABELS:
        ids.InsertNextValue(structure.key)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.ExportSegmentsToLabelmapNode(node, ids, exported, reference)
    back = vtk_to_numpy(exported.GetImageData().GetPointData().GetScalars()).reshape(GRID)
    np.testing.assert_array_equal(back, make_labels())  # exported values are 1, 2, 3 in the segments' order


def test_regions_overlap_in_three_layers(scene):
    reference, _ = make_volume(scene)
    node = add_segmentation(make_labels(), reference, segments="regions", name="regions")
    assert segment_ids(node) == ["WT", "TC", "ET"]
    assert node.GetSegmentation().GetNumberOfLayers() == len(REGIONS)
    for key, region in labels_to_regions(make_labels()).items():
        assert binary(node, key)[0].sum() == region.sum()


def test_names_colours_terminology_and_reference_geometry(scene):
    reference, _ = make_volume(scene, make_transform(scene, REGISTRATION))
    node = add_segmentation(make_labels(), reference)
    for structure in LABELS:
        segment = node.GetSegmentation().GetSegment(structure.key)
        assert segment.GetName() == structure.title
        assert segment.GetColor() == pytest.approx(structure.colour)
        assert segment.GetLabelValue() == structure.labels[0]
        tag, entry = vtk.reference(""), slicer.vtkSlicerTerminologyEntry()
        assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
        assert slicer.vtkSlicerTerminologiesModuleLogic().DeserializeTerminologyEntry(str(tag), entry)
        assert entry.GetTypeObject().GetCodeValue() == structure.type_code
    assert node.GetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole()) == reference.GetID()
    parameter = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    geometry, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    text = node.GetSegmentation().GetConversionParameter(parameter)
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, geometry, False)
    geometry.GetImageToWorldMatrix(matrix)
    stored = [[matrix.GetElement(row, column) for column in range(4)] for row in range(4)]
    np.testing.assert_allclose(stored, IJK_TO_RAS, atol=1e-9)
    assert geometry.GetExtent() == (0, 11, 0, 9, 0, 8)


def test_an_empty_result_still_has_its_segments(scene):
    reference, _ = make_volume(scene)
    node = add_segmentation(np.zeros(GRID, np.uint8), reference)
    assert segment_ids(node) == ["NCR", "ED", "ET"]


def test_provenance_survives_saving_the_scene(scene):
    reference, _ = make_volume(scene)
    provenance = {"input T1": 'a;b:c "d" & <e> ü', "device": "cpu (no GPU is used: torch has no CUDA)"}
    node = add_segmentation(make_labels(), reference, provenance=provenance)
    assert attributes(node)["MSTKDSegment.device"] == provenance["device"]
    scene.SetSaveToXMLString(1)
    scene.Commit()
    copy = slicer.vtkMRMLScene()
    copy.RegisterNodeClass(slicer.vtkMRMLSegmentationNode())
    copy.SetLoadFromXMLString(1)
    copy.SetSceneXMLString(scene.GetSceneXMLString())
    copy.Import()
    read = copy.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    assert attributes(read)["MSTKDSegment.input_T1"] == provenance["input T1"]


def test_an_existing_node_keeps_its_place_and_the_users_segments(scene):
    own = make_transform(scene, shift(30, 0, 0) @ rotation(0, 40), name="own")
    reference, _ = make_volume(scene, make_transform(scene, REGISTRATION))
    output = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    output.SetAndObserveTransformNodeID(own.GetID())
    add_user_segment(output, "ET", "my own ET")
    add_segmentation(make_labels(), reference, output_node=output, provenance={"old": "1"})
    node = add_segmentation(make_labels(), reference, output_node=output, provenance={"new": "2"})
    assert node is output
    assert output.GetTransformNodeID() == own.GetID()
    assert {key for key in attributes(output) if key != SEGMENTS_MADE} == {"MSTKDSegment.new"}
    names = [output.GetSegmentation().GetSegment(key).GetName() for key in segment_ids(output)]
    assert names == ["my own ET", *(structure.title for structure in LABELS)]
    assert binary(output, "ET")[0].sum() == 27
    mask, matrix = binary(output, "ED")
    assert mask.sum() == (make_labels() == 2).sum()
    to_world = shift(30, 0, 0) @ rotation(0, 40) @ matrix
    expected = REGISTRATION @ IJK_TO_RAS @ np.append(np.argwhere(make_labels() == 2).mean(axis=0)[::-1], 1)
    np.testing.assert_allclose(to_world @ np.append(np.argwhere(mask).mean(axis=0)[::-1], 1), expected, atol=1e-6)


def copy_segment(source, segment_id: str, target, new_id: str, name: str) -> None:
    """As Slicer's buttons copy: tags and all."""
    segment = slicer.vtkSegment()
    segment.DeepCopyMetadata(source.GetSegmentation().GetSegment(segment_id))
    labelmap = slicer.vtkOrientedImageData()
    source.GetBinaryLabelmapRepresentation(segment_id, labelmap)
    segment.AddRepresentation("Binary labelmap", labelmap)
    segment.SetName(name)
    segment.SetLabelValue(1)
    target.GetSegmentation().AddSegment(segment, new_id)


def test_copies_and_renamed_segments_are_the_users_and_never_replaced(scene):
    reference, _ = make_volume(scene)
    result = add_segmentation(make_labels(), reference)
    copy_segment(result, "ET", result, "Segment_1", "ET corrected by Dr. A")
    plan = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "my planning")
    copy_segment(result, "ET", plan, "ET", "Enhancing tumour (ET)")  # not even renamed, but made by nobody here
    assert earlier_result(plan) == []
    result.GetSegmentation().GetSegment("ED").SetName("oedema, checked")
    assert earlier_result(result) == ["NCR", "ET"]
    for node in (result, plan):
        add_segmentation(np.zeros(GRID, np.uint8), reference, output_node=node)
    names = [result.GetSegmentation().GetSegment(key).GetName() for key in segment_ids(result)]
    assert names[:2] == ["oedema, checked", "ET corrected by Dr. A"]
    assert binary(result, "ED")[0].sum() == (make_labels() == 2).sum()
    assert binary(result, "Segment_1")[0].sum() == (make_labels() == 3).sum()
    assert binary(plan, "ET")[0].sum() == (make_labels() == 3).sum()


def test_outputs_that_cannot_take_the_result_are_refused_early(scene):
    volume, _ = make_volume(scene)
    with pytest.raises(InputError, match="T1 post: not a segmentation"):
        check_output_node(volume)
    warped = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "warped")
    warped.SetAndObserveTransformNodeID(make_warp(scene).GetID())
    with pytest.raises(InputError, match="warped: stands under the non-linear transform"):
        check_output_node(warped)
    surface = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surface")
    add_user_segment(surface, "a")
    surface.GetSegmentation().SetSourceRepresentationName("Closed surface")
    with pytest.raises(InputError, match="surface: its segments are closed surfaces"):
        check_output_node(surface)


class FailingText:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_failure_leaves_no_node_behind(scene):
    reference, _ = make_volume(scene, make_transform(scene, REGISTRATION))
    before = node_ids(scene)
    with pytest.raises(ValueError, match="the labels' grid"):
        add_segmentation(make_labels()[1:], reference)
    with pytest.raises(RuntimeError, match="no text"):
        add_segmentation(make_labels(), reference, provenance={"key": FailingText()})
    with pytest.raises(ValueError, match="segments must be"):
        add_segmentation(make_labels(), reference, segments="both")
    assert node_ids(scene) == before


def test_a_failure_leaves_an_existing_node_as_it_was(scene):
    first, _ = make_volume(scene, name="first")
    second, _ = make_volume(scene, name="second")
    output = add_segmentation(make_labels(), first, provenance={"run": "1"})
    add_user_segment(output, "mine")
    share_layer(output, "mine", "ED")
    ids, role, parameters = segment_ids(output), output.GetReferenceImageGeometryReferenceRole(), attributes(output)
    with pytest.raises(RuntimeError, match="no text"):
        add_segmentation(
            np.zeros(GRID, np.uint8), second, output_node=output, provenance={"other": "2", "key": FailingText()}
        )
    assert segment_ids(output) == ids
    assert attributes(output) == parameters
    assert output.GetNodeReferenceID(role) == first.GetID()
    segments = [output.GetSegmentation().GetSegment(key) for key in ids]
    assert [segment.GetName() for segment in segments] == [*(structure.title for structure in LABELS), "by hand"]
    assert [segment.HasTag("MSTKDSegment.structure") for segment in segments] == [True, True, True, False]
    assert [binary(output, key)[0].sum() for key in ids] == [*((make_labels() == v).sum() for v in (1, 2, 3)), 27]


def test_a_reference_that_was_removed_meanwhile_is_named(scene):
    reference, _ = make_volume(scene)
    scene.RemoveNode(reference)
    with pytest.raises(OutputError, match="T1 post: was removed from the scene meanwhile"):
        add_segmentation(make_labels(), reference)
