"""The cases of a worklist in Slicer: load one, take away what was loaded for the one before, and say how far one is."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import slicer

from .background import Background
from .errors import InputError, MSTKDError
from .modalities import MODALITIES
from .regions import LABELS, REGIONS
from .review.label_maps import LabelMap, read_label_map
from .review.verdicts import Verdict, latest
from .review.worklist import WorkItem
from .slicer_scene import ATTRIBUTE_PREFIX, LPS_FROM_RAS, labelmap_name, oriented_labelmap, segment_of
from .translation import _

CASE_OF, PREDICTION_OF = f"{ATTRIBUTE_PREFIX}reviewCase", f"{ATTRIBUTE_PREFIX}reviewPrediction"
"""Attributes of what was loaded here: the case, and of predictions what they are called."""
BACKGROUNDS = ("T1Gd", "FLAIR", "T2", "T1")
VERDICTS_FILE = "review-verdicts.csv"


class LoadedCase:
    """What was loaded for one case: nodes by sequence, predictions by name, ground truth (None without).

    notices: what could not be read or is in doubt, a sentence each.
    """

    def __init__(self, item: WorkItem) -> None:
        self.item = item
        self.images: dict[str, Any] = {}
        self.predictions: dict[str, Any] = {}
        self.truth: Optional[Any] = None
        self.notices: list[str] = [item.problem] if item.problem else []

    @property
    def nodes(self) -> list[Any]:
        """All of them."""
        return [*self.images.values(), *self.predictions.values(), *([self.truth] if self.truth is not None else [])]

    @property
    def background(self) -> Optional[Any]:
        """The volume to look at first."""
        return next((self.images[name] for name in BACKGROUNDS if name in self.images), None)


# --- loading ----------------------------------------------------------------------------------------------------------


def load_steps(scene: Any, item: WorkItem, into: LoadedCase) -> Generator[str, None, None]:
    """Load a case step by step into `into`; each step says what is being done, and takes a fraction of a second.

    A file that cannot be read is a notice; the others are loaded.
    """
    for name in (name for name in MODALITIES if name in item.images):
        yield _("reading {name}").format(name=item.images[name].name)
        _try(into, lambda name=name: _load_image(scene, item, name, into))  # type: ignore[misc]
    for name, path in item.predictions.items():
        yield from _load_labels(scene, path, f"{item.name} {name}", into, lambda node, n=name: _keep(into, node, n))
    if item.ground_truth is not None:
        title = f"{item.name} " + _("ground truth")
        yield from _load_labels(scene, item.ground_truth, title, into, lambda node: setattr(into, "truth", node))
    for node in into.nodes:
        node.SetAttribute(CASE_OF, item.name)
    for name, node in into.predictions.items():
        node.SetAttribute(PREDICTION_OF, name)
    under = into.background
    if under is not None:
        for node in (*into.predictions.values(), *([into.truth] if into.truth is not None else [])):
            # The node only: its grid as the parameter would be the one that an edit resamples the segments to.
            node.SetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole(), under.GetID())
    if not item.predictions:
        into.notices.append(
            _("{case}: has no prediction. Choose the folder of predictions, or segment it.").format(case=item.name)
        )


def _keep(into: LoadedCase, node: Any, name: str) -> None:
    into.predictions[name] = node


def _try(into: LoadedCase, load: Any) -> None:
    try:
        load()
    except MSTKDError as error:
        into.notices.append(str(error))


def _load_image(scene: Any, item: WorkItem, sequence: str, into: LoadedCase) -> None:
    path = item.images[sequence]
    if path.is_dir():  # a DICOM series: any of its files stands for all
        path = next((one for one in sorted(path.iterdir()) if one.is_file()), path)
    if not path.is_file():
        raise InputError(_("{path}: no such file. Check the worklist.").format(path=path))
    node = _volumes_logic(scene).AddArchetypeVolume(str(path), f"{item.name} {sequence}")
    if node is None:
        raise InputError(_("{path}: cannot be read as a volume; see Slicer's error log.").format(path=path))
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        remove(scene, [node])
        raise InputError(_("{path}: a colour or vector volume. Give a greyscale volume.").format(path=path))
    into.images[sequence] = node


def _volumes_logic(scene: Any) -> Any:
    """Slicer's own, which knows the colours that new volumes get; without Slicer's window one for this scene."""
    module = getattr(getattr(slicer, "modules", None), "volumes", None)
    if module is not None and module.logic().GetMRMLScene() is scene:
        return module.logic()
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(scene)
    return logic


def _load_labels(scene: Any, path: Path, title: str, into: LoadedCase, keep: Any) -> Generator[str, None, None]:
    """A segmentation file: Slicer's own as it is, any other in our names and colours."""
    yield _("reading {name}").format(name=path.name)
    read = Background(lambda: read_label_map(path))
    while read.poll():
        yield _("reading {name}").format(name=path.name)
    if read.error is not None:
        if not isinstance(read.error, MSTKDError):
            raise read.error
        into.notices.append(str(read.error))
        return
    found: LabelMap = read.outcome
    into.notices.extend(found.doubts)
    native = path.name.lower().endswith(".seg.nrrd")
    _try(into, lambda: keep(_native(scene, path, title) if native else _segmentation(scene, found, title)))


def _native(scene: Any, path: Path, title: str) -> Any:
    """With Slicer's reader, so that the names stay and an edited segmentation is saved to its file."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(title))
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    if not storage.ReadData(node):
        remove(scene, [storage, node])
        raise InputError(_("{path}: Slicer cannot read it; see its error log.").format(path=path))
    node.SetAndObserveStorageNodeID(storage.GetID())
    node.CreateDefaultDisplayNodes()
    return node


def _segmentation(scene: Any, found: LabelMap, title: str) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(title))
    segmentation = node.GetSegmentation()
    segmentation.SetSourceRepresentationName(labelmap_name())
    matrix = np.eye(4)
    columns = np.reshape(found.image.GetDirection(), (3, 3)) * found.image.GetSpacing()
    matrix[:3, :3], matrix[:3, 3] = LPS_FROM_RAS @ columns, LPS_FROM_RAS @ np.array(found.image.GetOrigin())
    whole_only = found.known == ("WT",)
    labelmap = oriented_labelmap((found.labels > 0).astype(np.uint8) if whole_only else found.labels, matrix)
    for structure in REGIONS[:1] if whole_only else LABELS:
        segment = segment_of(structure)
        segment.SetLabelValue(1 if whole_only else structure.labels[0])
        segment.AddRepresentation(labelmap_name(), labelmap)
        segmentation.AddSegment(segment, structure.key)
    node.CreateDefaultDisplayNodes()
    return node


def remove(scene: Any, nodes: Sequence[Any]) -> None:
    """Take nodes out of `scene` with the display and storage nodes that were theirs alone."""
    for node in nodes:
        if node.GetScene() is not scene:
            continue
        own = []
        if node.IsA("vtkMRMLDisplayableNode"):
            own += [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
        if node.IsA("vtkMRMLStorableNode"):
            own += [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
        scene.RemoveNode(node)
        for one in own:
            if one is not None and one.GetScene() is scene and not _referred(scene, one):
                scene.RemoveNode(one)


def _referred(scene: Any, node: Any) -> bool:
    others = (scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes()))
    return any(scene.IsNodeReferencingNodeID(one, node.GetID()) for one in others)


# --- how far one is ---------------------------------------------------------------------------------------------------


def with_verdict(items: Sequence[WorkItem], verdicts: Sequence[Verdict]) -> set[str]:
    """Names of the cases that somebody gave a verdict on."""
    said = {one.case for one in verdicts}
    return {item.name for item in items if as_written(item.name) in said}


def as_written(name: str) -> str:
    """A name as it stands in the file of verdicts: with single blanks."""
    return " ".join(name.split())


def next_open(items: Sequence[WorkItem], index: int, verdicts: Sequence[Verdict]) -> Optional[int]:
    """The number of the next case without a verdict after `index`, round the end; None where all have one."""
    done = with_verdict(items, verdicts)
    order = [*range(index + 1, len(items)), *range(index + 1)]
    return next((n for n in order if items[n].name not in done), None)


def last_verdict(verdicts: Sequence[Verdict], case: str, prediction: str) -> Optional[Verdict]:
    """The newest on this prediction of this case."""
    return latest(list(verdicts)).get((case, prediction))


def default_verdicts_file(worklist: str) -> Path:
    """Beside the worklist (in the folder of cases, beside the CSV), else in the user's documents."""
    if worklist:
        source = Path(worklist)
        return source / VERDICTS_FILE if source.is_dir() else source.with_name(f"{source.stem}-verdicts.csv")
    documents = Path.home() / "Documents"
    return (documents if documents.is_dir() else Path.home()) / f"MSTKDSegment-{VERDICTS_FILE}"
