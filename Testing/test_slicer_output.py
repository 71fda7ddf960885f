"""What a run leaves in the scene, and that a failed one leaves nothing, on Slicer's real MRML."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
vtk = pytest.importorskip("vtk")
from MSTKDSegmentLib import slicer_output  # noqa: E402 - needs slicer
from MSTKDSegmentLib.diameters import measure  # noqa: E402
from MSTKDSegmentLib.errors import OutputError  # noqa: E402
from MSTKDSegmentLib.regions import LABELS, REGIONS  # noqa: E402
from MSTKDSegmentLib.slicer_output import (  # noqa: E402
    PREPARED_TRANSFORMS,
    PROBABILITY_OF,
    TABLE_OF,
    OutputChoice,
    deliver,
    measurements_of,
)
from MSTKDSegmentLib.slicer_scene import volume_from_node  # noqa: E402
from MSTKDSegmentLib.worker_process import WorkerResult  # noqa: E402
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
    node_ids,
    segment_ids,
    shift,
)
from vtk.util.numpy_support import vtk_to_numpy  # noqa: E402

TERMINOLOGY = Path(__file__).parents[1] / "MSTKDSegment" / "Resources" / "Terminologies" / "MSTKDSegment.term.json"


@pytest.fixture(autouse=True)
def converters():
    """As the Segmentations module of the desktop registers them."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    factory.RegisterConverterRule(slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule())


def result_for(reference, labels=None, *, notices=("a notice",)) -> WorkerResult:
    labels = make_labels() if labels is None else labels
    probabilities = np.stack([np.isin(labels, region.labels) for region in REGIONS]).astype(np.float32) * 0.75
    image = volume_from_node(reference).image
    return WorkerResult(
        labels,
        "T1Gd",
        measure(labels, image),
        notices,
        {"device": "cpu", "sequences": "T1Gd+FLAIR", "bundle": "b sha256 123"},
        {},
        probabilities,
    )


def columns(table_node) -> dict:
    table = table_node.GetTable()
    return {
        table.GetColumnName(column): [
            table.GetValue(row, column).ToString()
            if table.GetValue(row, column).IsString()
            else table.GetValue(row, column).ToDouble()
            for row in range(table.GetNumberOfRows())
        ]
        for column in range(table.GetNumberOfColumns())
    }


def test_the_table_holds_volumes_and_diameters_and_belongs_to_the_segmentation(scene):
    reference, _ = make_volume(scene)
    found = deliver(result_for(reference), reference, OutputChoice())
    read = columns(found.table)
    assert read["Structure"] == ["WT", "TC", "ET", "NCR", "ED"]
    assert read["Name"] == [structure.name for structure in (*REGIONS, LABELS[0], LABELS[1])]
    assert found.table.GetColumnTitle("Volume (ml)") == "ml"
    voxel_ml = 0.9 * 1.1 * 3 / 1000
    counts = [np.count_nonzero(np.isin(make_labels(), s.labels)) for s in (*REGIONS, LABELS[0], LABELS[1])]
    assert read["Volume (ml)"] == pytest.approx([count * voxel_ml for count in counts], abs=5e-4)
    assert read["Longest diameter, 3-D (mm)"][0] == pytest.approx(
        np.sqrt((7 * 0.9) ** 2 + (6 * 1.1) ** 2 + (6 * 3) ** 2), abs=1.5
    )
    assert all(
        across <= along <= longest + 0.1
        for longest, along, across in zip(
            read["Longest diameter, 3-D (mm)"],
            read["Longest axial diameter (mm)"],
            read["Axial diameter at right angles (mm)"],
        )
    )
    assert found.node.GetNodeReferenceID(TABLE_OF) == found.table.GetID()
    assert found.table.GetName() == "T1 post tumour measurements"
    assert found.notices == ("a notice",)
    assert attributes(found.node)["MSTKDSegment.sequences"] == "T1Gd+FLAIR"


def test_what_was_done_to_the_volumes_is_written_on_the_result(scene, tmp_path):
    """As JSON, whose colons and commas a scene file must bring back as they were."""
    reference, _ = make_volume(scene)
    record = {"challenge_ready": False, "brain_extraction": "HD-BET 2; fast", "sequences": {"T1Gd": {"moved_mm": 1.25}}}
    found = deliver(replace(result_for(reference), record=record), reference, OutputChoice())
    assert found.record == record
    assert found.prepared is None
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit(str(tmp_path / "scene.mrml"))
    loaded = slicer.vtkMRMLScene()
    loaded.SetURL(str(tmp_path / "scene.mrml"))
    loaded.Connect()
    node = loaded.GetFirstNodeByName(found.node.GetName())
    assert json.loads(node.GetAttribute("MSTKDSegment.preparation")) == record
    loaded.Clear(1)


def test_probabilities_only_on_request_on_the_references_grid_and_marked(scene):
    reference, _ = make_volume(scene, make_transform(scene, REGISTRATION))
    assert deliver(result_for(reference), reference, OutputChoice()).probabilities == {}
    found = deliver(result_for(reference), reference, OutputChoice(probabilities=True))
    assert list(found.probabilities) == ["WT", "TC", "ET"]
    for region in REGIONS:
        node = found.probabilities[region.key]
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        np.testing.assert_allclose(
            [[matrix.GetElement(i, j) for j in range(4)] for i in range(4)], IJK_TO_RAS, atol=1e-9
        )
        assert node.GetTransformNodeID() == reference.GetTransformNodeID()
        assert node.GetAttribute(PROBABILITY_OF) == region.key
        voxels = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars()).reshape(GRID)
        np.testing.assert_array_equal(voxels, np.isin(make_labels(), region.labels) * np.float32(0.75))


def test_surfaces_are_made_on_demand(scene):
    reference, _ = make_volume(scene)
    flat = deliver(result_for(reference), reference, OutputChoice())
    assert not flat.node.GetSegmentation().ContainsRepresentation("Closed surface")
    found = deliver(result_for(reference), reference, OutputChoice(surface=True))
    for key in segment_ids(found.node):
        surface = vtk.vtkPolyData()
        assert found.node.GetClosedSurfaceRepresentation(key, surface)
        assert surface.GetNumberOfPoints() > 8
    assert found.node.GetSegmentation().GetSourceRepresentationName() == "Binary labelmap"


def test_a_surface_that_cannot_be_made_costs_a_notice_and_not_the_result(scene, monkeypatch):
    reference, _ = make_volume(scene)
    monkeypatch.setattr(slicer_output, "show_surface", lambda node: False)
    found = deliver(result_for(reference), reference, OutputChoice(surface=True))
    assert found.notices[-1].startswith("The 3-D surface could not be made")
    assert binary(found.node, "ED")[0].any()


def test_the_oedema_lets_the_core_shine_through(scene):
    reference, _ = make_volume(scene)
    display = deliver(result_for(reference), reference, OutputChoice()).node.GetDisplayNode()
    assert display.GetSegmentOpacity3D("ED") == pytest.approx(0.3)
    assert display.GetSegmentOpacity3D("ET") == 1.0
    assert display.GetSegmentOpacity2DFill("NCR") == pytest.approx(0.45)


def test_the_users_own_segments_keep_their_looks_also_one_of_our_name(scene):
    reference, _ = make_volume(scene)
    output = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    output.CreateDefaultDisplayNodes()
    add_user_segment(output, "ED")
    output.GetDisplayNode().SetSegmentOpacity3D("ED", 0.8)
    display = deliver(result_for(reference), reference, OutputChoice(output)).node.GetDisplayNode()
    assert display.GetSegmentOpacity3D("ED") == pytest.approx(0.8)
    ours = next(key for key in segment_ids(output) if key.startswith("ED") and key != "ED")
    assert display.GetSegmentOpacity3D(ours) == pytest.approx(0.3)


def test_everything_stands_beside_the_reference_in_the_subject_hierarchy(scene):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    reference, _ = make_volume(scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(patient, "study")
    item = hierarchy.GetItemByDataNode(reference) or hierarchy.CreateItem(study, reference)
    hierarchy.SetItemParent(item, study)
    found = deliver(result_for(reference), reference, OutputChoice(probabilities=True))
    for node in (found.node, found.table, *found.probabilities.values()):
        placed = hierarchy.GetItemByDataNode(node)
        assert placed, node.GetName()
        assert hierarchy.GetItemParent(placed) == study


# --- replacing, failing ---


def test_an_earlier_result_is_replaced_only_when_allowed(scene):
    reference, _ = make_volume(scene)
    first = deliver(result_for(reference), reference, OutputChoice())
    add_user_segment(first.node, "mine")
    before = node_ids(scene)
    with pytest.raises(OutputError, match="T1 post tumour holds an earlier result"):
        deliver(result_for(reference), reference, OutputChoice(first.node))
    assert node_ids(scene) == before
    empty = np.zeros(GRID, np.uint8)
    again = deliver(result_for(reference, empty), reference, OutputChoice(first.node, replace=True))
    assert again.node is first.node
    assert binary(again.node, "mine")[0].sum() == 27
    # The table of what was replaced is gone, and there is one of the new result.
    tables = scene.GetNodesByClass("vtkMRMLTableNode")
    assert tables.GetNumberOfItems() == 1
    assert columns(again.table)["Volume (ml)"] == [0.0] * 5


def test_what_was_made_of_a_replaced_result_goes_with_it(scene):
    reference, _ = make_volume(scene)
    first = deliver(result_for(reference), reference, OutputChoice(probabilities=True))
    names = {node.GetName() for node in first.probabilities.values()}
    again = deliver(result_for(reference), reference, OutputChoice(first.node, probabilities=True, replace=True))
    assert {node.GetName() for node in again.probabilities.values()} == names
    assert again.table.GetName() == "T1 post tumour measurements"
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1 + 3
    deliver(result_for(reference), reference, OutputChoice(first.node, replace=True))
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1
    assert measurements_of(first.node)[1] == "T1 post tumour: T1Gd+FLAIR on cpu, b sha256 123"
    assert measurements_of(scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "other")) == (None, "")


def test_what_somebody_renamed_or_put_under_our_transform_stays(scene):
    reference, _ = make_volume(scene)
    first = deliver(result_for(reference), reference, OutputChoice(probabilities=True))
    first.probabilities["WT"].SetName("kept")
    alone, carrying = (make_transform(scene, shift(1, 2, 3), name=name) for name in ("alone", "carrying"))
    drawing = scene.AddNewNodeByClass("vtkMRMLModelNode", "drawing")
    drawing.SetAndObserveTransformNodeID(carrying.GetID())
    for transform in (alone, carrying):
        first.node.AddNodeReferenceID(PREPARED_TRANSFORMS, transform.GetID())
    deliver(result_for(reference), reference, OutputChoice(first.node, replace=True))
    assert scene.GetFirstNodeByName("kept") is not None
    assert scene.GetFirstNodeByName("T1 post tumour TC probability") is None
    assert scene.GetFirstNodeByName("alone") is None
    assert drawing.GetParentTransformNode() is carrying


def test_a_segmentation_of_the_users_own_needs_no_permission(scene):
    reference, _ = make_volume(scene)
    output = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    add_user_segment(output, "by hand")
    found = deliver(result_for(reference), reference, OutputChoice(output))
    assert segment_ids(found.node)[0] == "by hand"
    assert len(segment_ids(found.node)) == 4


def test_a_failure_after_the_segmentation_takes_everything_back(scene, monkeypatch):
    reference, _ = make_volume(scene)
    first = deliver(result_for(reference), reference, OutputChoice())
    ids, voxels = segment_ids(first.node), binary(first.node, "ED")[0].sum()
    before = node_ids(scene)

    def broken(*_arguments):
        raise RuntimeError("no table today")

    monkeypatch.setattr(slicer_output, "_table", broken)
    with pytest.raises(RuntimeError, match="no table today"):
        deliver(result_for(reference), reference, OutputChoice(probabilities=True))
    empty = np.zeros(GRID, np.uint8)
    with pytest.raises(RuntimeError, match="no table today"):
        deliver(result_for(reference, empty), reference, OutputChoice(first.node, replace=True))
    assert node_ids(scene) == before
    assert segment_ids(first.node) == ids
    assert binary(first.node, "ED")[0].sum() == voxels
    assert first.node.GetNodeReferenceID(TABLE_OF) == first.table.GetID()


# --- terminology ---


def test_the_terminology_file_is_one_that_slicer_loads_with_our_codes_and_colours(scene):
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    logic.SetMRMLScene(scene)
    name = logic.LoadTerminologyFromFile(str(TERMINOLOGY))
    assert name == "Segmentation category and type - MSTKDSegment"
    stored = json.loads(TERMINOLOGY.read_text())["SegmentationCodes"]["Category"][0]
    colours = {entry["CodeValue"]: entry["recommendedDisplayRGBValue"] for entry in stored["Type"]}
    for structure in LABELS:
        assert colours[structure.type_code] == [round(255 * value) for value in structure.colour]
    category, types = slicer.vtkSlicerTerminologyCategory(), {}
    assert logic.GetNthCategoryInTerminology(name, 0, category)
    for index in range(logic.GetNumberOfTypesInTerminologyCategory(name, category)):
        entry = slicer.vtkSlicerTerminologyType()
        assert logic.GetNthTypeInTerminologyCategory(name, category, index, entry)
        types[entry.GetCodeValue()] = entry.GetCodeMeaning()
    assert types == {structure.type_code: structure.type_meaning for structure in LABELS}
