"""What the network saw, in the scene: every voxel over the patient, and the transforms the right way round."""

from __future__ import annotations

import json

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
vtk = pytest.importorskip("vtk")
import SimpleITK as sitk  # noqa: E402 - needs slicer
from MSTKDSegmentLib import slicer_prepared  # noqa: E402
from MSTKDSegmentLib.diameters import measure  # noqa: E402
from MSTKDSegmentLib.errors import OutputError  # noqa: E402
from MSTKDSegmentLib.handover import Prepared  # noqa: E402
from MSTKDSegmentLib.slicer_mask import brain_mask_from_node  # noqa: E402
from MSTKDSegmentLib.slicer_output import OutputChoice, deliver, made_here  # noqa: E402
from MSTKDSegmentLib.slicer_prepared import add_prepared, places_of, prepared_nodes, prepared_volumes  # noqa: E402
from MSTKDSegmentLib.slicer_scene import volume_from_node  # noqa: E402
from MSTKDSegmentLib.worker_process import WorkerResult  # noqa: E402
from scene_nodes import (  # noqa: E402
    LPS_TO_RAS,
    REGISTRATION,
    as_vtk,
    make_labels,
    make_transform,
    make_volume,
    node_ids,
    rotation,
    shift,
)

SHAPE = (8, 9, 10)
ORIGIN = (-4.5, 3.25, -11.0)
IDENTITY = np.eye(4)
# From the prepared volumes' space to each sequence's in the world, LPS mm.
TO_T1GD = shift(7, -3, 2) @ rotation(2, 15) @ rotation(0, 8)
TO_FLAIR = shift(-11, 4, 9) @ rotation(1, -20) @ TO_T1GD


def prepared_with(**matrices) -> Prepared:
    rng = np.random.default_rng(0)
    brain = rng.random(SHAPE) > 0.4
    images = {name: np.where(brain, rng.normal(size=SHAPE), 0).astype(np.float32) for name in matrices}
    return Prepared(ORIGIN, images, brain, {name: matrix[:3] for name, matrix in matrices.items()})


class Patient:
    """T1Gd (under `parent`) and FLAIR in a scene, and a result on T1Gd's grid."""

    def __init__(self, scene, to_t1gd=TO_T1GD, to_flair=TO_FLAIR, parent=None) -> None:
        self.inputs = {
            "T1Gd": make_volume(scene, parent, "T1 post")[0],
            "FLAIR": make_volume(scene, None, "FLAIR", seed=1)[0],
        }
        self.prepared = prepared_with(T1Gd=to_t1gd, FLAIR=to_flair)
        self.found = prepared_volumes(self.prepared, self.inputs, "T1Gd", places_of(self.inputs))
        self.result = self.deliver(OutputChoice())
        self.node = self.result.node

    def deliver(self, choice: OutputChoice):
        image = volume_from_node(self.inputs["T1Gd"]).image
        said = {"reference": "T1Gd"}
        record = {"reference": "T1Gd", "turned_degrees": 15.0}
        result = WorkerResult(make_labels(), "T1Gd", measure(make_labels(), image), (), said, {}, record=record)
        return deliver(result, self.inputs["T1Gd"], choice)


def world_lps(node, index: np.ndarray) -> np.ndarray:
    """(N, 3) where voxels (N, 3) in i, j, k of a volume node lie in the world."""
    image = volume_from_node(node).image
    return np.array([image.TransformIndexToPhysicalPoint(one.tolist()) for one in index])


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


CORNERS = np.array([(i, j, k) for i in (0, 9) for j in (0, 8) for k in (0, 7)])


@pytest.mark.parametrize("parent", [None, REGISTRATION])
def test_the_prepared_volumes_lie_over_the_patient(scene, parent):
    patient = Patient(scene, parent=None if parent is None else make_transform(scene, parent))
    nodes = add_prepared(patient.found, patient.node)
    expected = moved(CORNERS + np.array(ORIGIN), TO_T1GD)
    for name in ("T1Gd", "FLAIR"):
        assert np.allclose(world_lps(nodes.volumes[name], CORNERS), expected, atol=1e-5)
        voxels = sitk.GetArrayFromImage(volume_from_node(nodes.volumes[name]).image)
        assert np.array_equal(voxels, patient.prepared.images[name])
    assert nodes.volumes["T1Gd"].GetName() == "T1 post preprocessed"
    assert nodes.overlay is nodes.volumes["T1Gd"]
    assert nodes.native is patient.inputs["T1Gd"]
    # Without our transform they lie upright in their own space.
    nodes.volumes["T1Gd"].SetAndObserveTransformNodeID(None)
    assert np.allclose(world_lps(nodes.volumes["T1Gd"], CORNERS), CORNERS + np.array(ORIGIN))


def test_each_transform_takes_the_prepared_volume_to_its_sequence(scene):
    patient = Patient(scene, parent=make_transform(scene, REGISTRATION))
    nodes = add_prepared(patient.found, patient.node)
    assert {name: node.GetName() for name, node in nodes.transforms.items()} == {
        "T1Gd": "preprocessed to T1 post",
        "FLAIR": "preprocessed to FLAIR",
    }
    for name, matrix in (("T1Gd", TO_T1GD), ("FLAIR", TO_FLAIR)):
        to_world = vtk.vtkMatrix4x4()
        nodes.transforms[name].GetMatrixTransformToWorld(to_world)
        point = to_world.MultiplyPoint((*(LPS_TO_RAS[:3, :3] @ ORIGIN), 1.0))
        assert np.allclose(LPS_TO_RAS[:3, :3] @ point[:3], moved(np.array([ORIGIN]), matrix)[0], atol=1e-9)


def test_they_follow_a_reference_whose_registration_is_corrected_later(scene):
    """The result stands under the reference's transform; so do the volumes, also when it changes during the run."""
    parent = make_transform(scene, REGISTRATION)
    patient = Patient(scene, parent=parent)
    correction = shift(1, 2, 3) @ rotation(0, 5)
    parent.SetMatrixTransformToParent(as_vtk(correction @ REGISTRATION))
    nodes = add_prepared(patient.found, patient.node)
    corrected = LPS_TO_RAS @ correction @ LPS_TO_RAS @ TO_T1GD
    expected = moved(CORNERS + np.array(ORIGIN), corrected)
    assert np.allclose(world_lps(nodes.volumes["FLAIR"], CORNERS), expected, atol=1e-5)


def test_volumes_that_were_left_alone_need_no_transform(scene):
    patient = Patient(scene, IDENTITY, IDENTITY)
    nodes = add_prepared(patient.found, patient.node)
    assert nodes.transforms == {}
    assert scene.GetNumberOfNodesByClass("vtkMRMLLinearTransformNode") == 0
    assert np.allclose(world_lps(nodes.volumes["T1Gd"], CORNERS), CORNERS + np.array(ORIGIN))
    moved_one = Patient(scene, IDENTITY, TO_FLAIR)
    assert list(add_prepared(moved_one.found, moved_one.node).transforms) == ["FLAIR"]


def test_the_brain_is_an_outline_that_can_be_corrected_and_given_back(scene):
    patient = Patient(scene, parent=make_transform(scene, REGISTRATION))
    nodes = add_prepared(patient.found, patient.node)
    assert nodes.brain.GetName() == "T1 post brain"
    display = nodes.brain.GetDisplayNode()
    assert (display.GetSegmentOpacity2DFill("brain"), display.GetSegmentOpacity2DOutline("brain")) == (0.0, 1.0)
    image = volume_from_node(nodes.volumes["T1Gd"]).image
    mask = sitk.Resample(brain_mask_from_node(nodes.brain), image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    assert np.array_equal(sitk.GetArrayFromImage(mask) > 0, patient.prepared.brain)


def test_what_is_there_is_not_made_twice_and_comes_back_with_a_scene(scene, tmp_path):
    patient = Patient(scene)
    assert prepared_nodes(patient.node) is None
    nodes = add_prepared(patient.found, patient.node)
    count = len(node_ids(scene))
    assert add_prepared(patient.found, patient.node) == nodes == prepared_nodes(patient.node)
    assert len(node_ids(scene)) == count
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit(str(tmp_path / "scene.mrml"))
    loaded = slicer.vtkMRMLScene()
    loaded.SetURL(str(tmp_path / "scene.mrml"))
    loaded.Connect()
    segmentation = loaded.GetFirstNodeByName("T1 post tumour")
    again = prepared_nodes(segmentation)
    assert {name: node.GetName() for name, node in again.volumes.items()} == {
        name: node.GetName() for name, node in nodes.volumes.items()
    }
    assert list(again.transforms) == ["T1Gd", "FLAIR"]
    assert again.overlay.GetName() == "T1 post preprocessed"
    assert json.loads(segmentation.GetAttribute("MSTKDSegment.preparation"))["turned_degrees"] == 15.0
    loaded.Clear(1)


def test_a_part_that_was_deleted_is_made_again_and_nothing_is_there_twice(scene):
    patient = Patient(scene)
    nodes = add_prepared(patient.found, patient.node)
    scene.RemoveNode(nodes.volumes["FLAIR"])
    assert list(prepared_nodes(patient.node).volumes) == ["T1Gd"]
    again = add_prepared(patient.found, patient.node)
    assert again.volumes["FLAIR"].GetScene() is scene
    assert nodes.volumes["T1Gd"].GetScene() is None
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 4
    assert scene.GetNumberOfNodesByClass("vtkMRMLLinearTransformNode") == 2


def test_they_are_no_inputs_and_are_marked(scene):
    patient = Patient(scene)
    nodes = add_prepared(patient.found, patient.node)
    assert all(made_here(node) for node in nodes.volumes.values())
    assert not any(made_here(node) for node in patient.inputs.values())


def test_a_replaced_result_takes_its_volumes_away_but_not_a_brain_that_somebody_may_have_corrected(scene):
    patient = Patient(scene)
    nodes = add_prepared(patient.found, patient.node)
    matrix = LPS_TO_RAS @ TO_T1GD
    patient.deliver(OutputChoice(patient.node, replace=True))
    assert prepared_nodes(patient.node) is None
    for node in (*nodes.volumes.values(), *nodes.transforms.values()):
        assert node.GetScene() is None
    assert nodes.brain.GetScene() is scene
    # It has not moved, although the transform is gone.
    origin = sitk.Image(brain_mask_from_node(nodes.brain)).GetOrigin()
    assert np.allclose(LPS_TO_RAS[:3, :3] @ origin, moved(np.array([ORIGIN]), matrix)[0], atol=1e-5)


def test_a_reference_that_is_gone_is_told_and_nothing_is_made(scene):
    patient = Patient(scene)
    scene.RemoveNode(patient.inputs["T1Gd"])
    before = node_ids(scene)
    with pytest.raises(OutputError, match="T1 post was removed from the scene; segment again"):
        add_prepared(patient.found, patient.node)
    assert node_ids(scene) == before


def test_another_sequence_may_be_gone(scene):
    patient = Patient(scene)
    scene.RemoveNode(patient.inputs["FLAIR"])
    nodes = add_prepared(patient.found, patient.node)
    assert list(nodes.transforms) == ["T1Gd"]
    assert nodes.volumes["FLAIR"].GetName() == "FLAIR preprocessed"


def test_a_failure_leaves_the_scene_as_it_was(scene, monkeypatch):
    patient = Patient(scene)
    before = node_ids(scene)

    def broken(_found):
        raise RuntimeError("no brain today")

    monkeypatch.setattr(slicer_prepared, "_brain", broken)
    with pytest.raises(RuntimeError, match="no brain today"):
        add_prepared(patient.found, patient.node)
    assert node_ids(scene) == before
    assert prepared_nodes(patient.node) is None
