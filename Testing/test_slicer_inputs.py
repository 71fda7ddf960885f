"""Volume nodes as facts, and proposals from their names and DICOM headers, on Slicer's real MRML."""

from __future__ import annotations

import re

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("slicer", reason="slicer-core is not installed")
from MSTKDSegmentLib.panel import flags, plan, proposal_tip
from MSTKDSegmentLib.slicer_inputs import InputReader, dicom_tags, of_one_examination, proposals_for
from sample_volumes import sample_volume
from scene_nodes import (
    GRID,
    IJK_TO_RAS,
    REGISTRATION,
    make_transform,
    make_volume,
    make_warp,
    volume_of_image,
)
from vtk.util.numpy_support import vtk_to_numpy

HEADERS = {
    "1.2.3": {"0008,103e": "AX T1 SE", "0018,0010": "GADOVIST", "0010,0020": "A", "0008,0060": "MR"},
    "1.2.4": {"0008,103e": "AX T2 FLAIR", "0010,0020": "B", "0008,0060": "MR"},
    "1.2.5": {"0008,103e": "HEAD", "0008,0060": "CT"},
}


def header_value(uid: str, tag: str) -> str:
    return HEADERS[uid].get(tag, "")


def dicom_volume(scene, uid: str, name: str, seed: int = 0):
    node, _ = make_volume(scene, name=name, seed=seed)
    node.SetAttribute("DICOM.instanceUIDs", f"{uid} {uid}.1 {uid}.2")
    return node


def test_the_facts_of_a_volume_under_a_scaling_transform(scene):
    node, _ = make_volume(scene, make_transform(scene, REGISTRATION @ np.diag([2.0, 2.0, 2.0, 1.0])), "FLAIR")
    facts = InputReader().facts({"FLAIR": node, "T1": None})
    assert list(facts) == ["FLAIR"]
    found = facts["FLAIR"]
    assert (found.name, found.size, found.transform, found.linear) == ("FLAIR", GRID[::-1], "registration", True)
    assert found.spacing == pytest.approx((1.8, 2.2, 6.0))
    assert found.voxel_mm3 == pytest.approx(0.9 * 1.1 * 3 * 8)
    assert found.obstacle == ""
    assert found.proposal.modality == "FLAIR"


def test_the_same_grid_is_recognised_wherever_the_node_stands(scene):
    first, _ = make_volume(scene, name="T1")
    # The same place in the patient: half of the way by a transform, the other half in the volume's own geometry.
    second, _ = make_volume(
        scene, make_transform(scene, REGISTRATION), "T2", np.linalg.inv(REGISTRATION) @ IJK_TO_RAS, seed=1
    )
    moved, _ = make_volume(scene, make_transform(scene, REGISTRATION), "FLAIR", seed=2)
    facts = InputReader().facts({"T1": first, "T2": second, "FLAIR": moved})
    assert facts["T1"].grid == facts["T2"].grid != facts["FLAIR"].grid
    assert "All sequences share it. Parent transforms are applied: T2 (registration)." in plan(
        {key: facts[key] for key in ("T1", "T2")}
    )


def test_what_is_no_volume_and_what_is_warped_is_told_without_raising(scene):
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    warped, _ = make_volume(scene, make_transform(scene, REGISTRATION, make_warp(scene)), "warped")
    facts = InputReader().facts({"T1": labels, "T2": empty, "FLAIR": warped})
    assert "not a greyscale volume" in facts["T1"].obstacle
    assert "holds no voxels" in facts["T2"].obstacle
    assert (facts["FLAIR"].obstacle, facts["FLAIR"].linear) == ("", False)


def test_volumes_are_looked_at_again_when_their_voxels_change(scene):
    node = volume_of_image(scene, sample_volume("T1Gd"), "T1 post")
    reader = InputReader()
    before = reader.facts({"T1": node})["T1"].look
    assert before.likeliest == "T1Gd"
    assert reader.facts({"FLAIR": node})["FLAIR"].stripped
    # Noise up to the border, as air is where the skull is still there.
    with_skull = reader.facts({"T2": make_volume(scene, name="T2")[0]})["T2"]
    assert (with_skull.stripped, with_skull.look) == (False, None)
    voxels = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())
    voxels[:] = sitk.GetArrayViewFromImage(sample_volume("T2")).ravel()
    assert reader.facts({"T1": node})["T1"].look == before  # nobody said that it changed
    node.GetImageData().Modified()
    assert reader.facts({"T1": node})["T1"].look.likeliest == "T2"


def test_unnamed_volumes_are_proposed_by_their_look_and_the_tip_says_so(scene):
    nodes = [volume_of_image(scene, sample_volume(modality), f"series {modality[-1]}") for modality in ("T1", "FLAIR")]
    nodes.append(make_volume(scene, name="series with skull")[0])
    nodes.append(volume_of_image(scene, sample_volume("T2"), "ADC"))
    nodes.append(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"))
    reader = InputReader()
    tip = "series 1: no word in the name names a sequence."
    assert proposal_tip(reader.facts({"T1": nodes[0]})["T1"]) == tip
    proposals = reader.propose(nodes)
    assert [proposal.modality for proposal in proposals] == ["T1", "FLAIR", None, None, None]
    assert proposals[0].certainty == "likely"
    tip = proposal_tip(reader.facts({"T1": nodes[0]})["T1"])
    assert re.fullmatch(r"series 1: proposed as T1, by its look \(p 0\.\d\d\), please check\.", tip)
    assert flags(reader.facts({"T1": nodes[0], "FLAIR": nodes[1]})) == {}
    nodes[0].SetName("T1 mprage")  # a name wins
    assert "by its look" not in proposal_tip(reader.facts({"T1": nodes[0]})["T1"])
    nodes[0].SetName("series")
    nodes[0].GetImageData().Modified()
    assert "by its look" not in proposal_tip(reader.facts({"T1": nodes[0]})["T1"])


def test_dicom_headers_decide_where_there_are_any(scene):
    nodes = [
        dicom_volume(scene, "1.2.3", "5: unnamed"),
        dicom_volume(scene, "1.2.4", "6: unnamed", 1),
        dicom_volume(scene, "1.2.5", "7: T2", 2),
        make_volume(scene, name="T2 TSE", seed=3)[0],
    ]
    proposals = proposals_for(nodes, header_value)
    assert [proposal.modality for proposal in proposals] == ["T1Gd", "FLAIR", None, "T2"]
    assert "series description" in proposals[1].reason
    assert "GADOVIST" in proposals[0].reason
    assert "CT" in proposals[2].reason
    assert "in the name" in proposals[3].reason
    # Without a database the names are all there is.
    assert [proposal.modality for proposal in proposals_for(nodes[:2])] == [None, None]
    assert dicom_tags(nodes[3], header_value) == {}


@pytest.mark.parametrize(
    ("first", "second"),
    [("AX T1 W/O CONTRAST", "AX T1 W/ CONTRAST"), ("T1/pre", "T1/post"), ("3: T1 w/o", "4: T1 W/GAD")],
)
def test_a_slash_in_a_nodes_name_is_no_folder(scene, first, second):
    nodes = [make_volume(scene, name=name)[0] for name in (first, second)]
    assert [proposal.modality for proposal in proposals_for(nodes)] == ["T1", "T1Gd"]


def test_volumes_of_the_same_name_are_told_apart(scene):
    nodes = [dicom_volume(scene, "1.2.3", "series"), dicom_volume(scene, "1.2.4", "series", 1)]
    assert [proposal.modality for proposal in proposals_for(nodes, header_value)] == ["T1Gd", "FLAIR"]
    facts = InputReader(header_value).facts({"T1Gd": nodes[0], "FLAIR": nodes[1]})
    assert [facts[key].patient for key in facts] == ["A", "B"]


# --- one examination ---


def came_from(scene, node, path):
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(path)
    node.SetAndObserveStorageNodeID(storage.GetID())
    return node


def test_dicom_studies_are_not_mixed(scene):
    def value(uid, tag):
        return {"0020,000d": f"study {uid[:3]}"}.get(tag, "")

    first = [dicom_volume(scene, "1.1.1", "a"), dicom_volume(scene, "1.1.2", "b", 1)]
    second = dicom_volume(scene, "1.2.1", "c", 2)
    made = make_volume(scene, name="from nowhere", seed=3)[0]
    assert of_one_examination([*first, made], [], value) == ([*first, made], "")
    nodes, sentence = of_one_examination([*first, second, made], [], value)
    assert nodes == []
    assert sentence.startswith("Volumes of 2 examinations are loaded (with a, c).")
    assert of_one_examination([first[1], second, made], [first[0]], value) == ([first[1], made], "")
    # Without a database nothing is known of studies.
    assert of_one_examination([*first, second], []) == ([*first, second], "")


def test_folders_tell_patients_apart_where_they_hold_several_volumes(scene):
    nodes = [make_volume(scene, name=name, seed=seed)[0] for seed, name in enumerate("abcd")]
    for node in nodes:  # each in a folder of its own: nothing can be told
        came_from(scene, node, f"/patient/{node.GetName()}/volume.nii.gz")
    assert of_one_examination(nodes, []) == (nodes, "")
    for node, folder in zip(nodes, ("P001", "P001", "P002", "P002")):
        came_from(scene, node, f"/cohort/{folder}/{node.GetName()}.nii.gz")
    assert of_one_examination(nodes, [])[0] == []
    assert of_one_examination([nodes[0], nodes[1], nodes[3]], [nodes[2]]) == ([nodes[3]], "")
    assert of_one_examination(nodes[:2], []) == (nodes[:2], "")
