"""A prediction and a ground truth as nodes of a scene, on grids of their own, for the tests of the Review section."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer
from MSTKDSegmentLib.regions import LABELS
from MSTKDSegmentLib.slicer_scene import labelmap_name, oriented_labelmap, segment_of
from scene_nodes import LPS_TO_RAS, as_vtk, volume_of_image

SHAPE = (20, 24, 28)
SPACING = (1.0, 1.2, 2.0)
ORIGIN = (-10.0, 5.0, 30.0)


def truth_labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:14, 5:17, 6:20] = 2
    labels[6:12, 8:14, 9:17] = 3
    labels[8:10, 10:12, 11:15] = 1
    return labels


def predicted_labels() -> np.ndarray:
    """As the truth, but with 24 voxels of ET missed at a corner and 3 x 4 x 5 of oedema invented far off."""
    labels = truth_labels()
    labels[6:8, 8:11, 9:13] = 2
    labels[16:19, 1:5, 22:27] = 2
    return labels


def image_of(labels: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    return image


def matrix_of(image: sitk.Image) -> np.ndarray:
    """From indices (i, j, k) to RAS mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ matrix


def label_volume(scene, labels: np.ndarray, name: str = "truth", values=(0, 1, 2, 3), transform=None):
    """A label map volume node; `values`: what stands for our labels 0 to 3."""
    volume = volume_of_image(scene, image_of(np.array(values, np.int16)[labels]), name)
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", name)
    node.SetAndObserveImageData(volume.GetImageData())
    matrix = as_vtk(matrix_of(image_of(labels)))
    node.SetIJKToRASMatrix(matrix)
    scene.RemoveNode(volume)
    if transform is not None:
        node.SetAndObserveTransformNodeID(transform.GetID())
    return node


def segmentation(scene, labels: np.ndarray, name: str = "prediction", matrix=None, names=None, colours=None):
    """A segmentation node with NCR, ED and ET in one layer; names and colours: others than ours, by key."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.GetSegmentation().SetSourceRepresentationName(labelmap_name())
    shared = oriented_labelmap(labels, matrix_of(image_of(labels)) if matrix is None else matrix)
    for structure in LABELS:
        segment = segment_of(structure)
        if names is not None:
            segment.SetName(names[structure.key])
            segment.RemoveTag(slicer.vtkSegment.GetTerminologyEntryTagName())
        if colours is not None:
            segment.SetColor(*colours[structure.key])
        segment.SetLabelValue(structure.labels[0])
        segment.AddRepresentation(labelmap_name(), shared)
        node.GetSegmentation().AddSegment(segment, structure.key if names is None else f"Segment_{structure.labels[0]}")
    node.CreateDefaultDisplayNodes()
    return node


def write_worklist(folder: Path, cases: int = 3) -> Path:
    """Cases A, B, C ... with T1Gd and FLAIR, a ground truth (label values of BraTS 2021) and predictions; a CSV."""
    lines = ["case,t1gd,flair,ground_truth,prediction"]
    for number in range(cases):
        name = chr(ord("A") + number)
        place = folder / name
        place.mkdir(parents=True)
        noise = np.random.default_rng(number).integers(1, 500, SHAPE).astype(np.int16)
        files = {"t1gd": image_of(noise), "flair": image_of(noise[::-1].copy())}
        files["truth"] = image_of(np.array([0, 1, 2, 4], np.uint8)[truth_labels()])
        files["found"] = image_of(predicted_labels())
        for key, image in files.items():
            sitk.WriteImage(image, str(place / f"{name}_{key}.nii.gz"))
        lines.append(",".join([name, *(f"{name}/{name}_{key}.nii.gz" for key in files)]))
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
