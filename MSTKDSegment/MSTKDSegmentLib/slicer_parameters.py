# ruff: noqa: N815 - Slicer's names are camelCase
"""The panel's choices as Slicer's parameter node, so that a saved scene restores them."""

import enum
from typing import Optional, Union

from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import parameterNodeWrapper

from .translation import _


class Segments(enum.Enum):
    """What the segments are; the value is what `slicer_output.OutputChoice.segments` takes."""

    LABELS = "labels"
    REGIONS = "regions"

    def label(self) -> str:
        """For the combo box."""
        return {
            Segments.LABELS: _("Labels: necrotic core, oedema, enhancing tumour"),
            Segments.REGIONS: _("Regions: whole tumour, tumour core, enhancing tumour"),
        }[self]


class Reference(enum.Enum):
    """The sequence whose grid the result gets; the value is what `slicer_logic.Job.reference` takes."""

    FINEST = ""
    T1 = "T1"
    T1GD = "T1Gd"
    T2 = "T2"
    FLAIR = "FLAIR"

    def label(self) -> str:
        """For the combo box."""
        return self.value or _("The finest sequence (T1Gd preferred)")


class Device(enum.Enum):
    """Where the network runs; the value is what `devices.choose_device` takes."""

    AUTO = "auto"
    CPU = "cpu"
    GPU0 = "cuda:0"
    GPU1 = "cuda:1"
    GPU2 = "cuda:2"
    GPU3 = "cuda:3"
    MPS = "mps"

    def label(self) -> str:
        """For the combo box."""
        if self is Device.AUTO:
            return _("Automatic")
        if self is Device.CPU:
            return _("CPU")
        if self is Device.MPS:
            return _("Apple GPU (MPS)")
        return _("GPU {number} (CUDA)").format(number=self.value.split(":")[1])


class Answer(enum.Enum):
    """What the user says of the volumes; the value is what `preparation_plan.PreparationChoice` takes."""

    FIND_OUT = None
    YES = True
    NO = False

    def label(self) -> str:
        """For the combo box."""
        return {Answer.FIND_OUT: _("Find out"), Answer.YES: _("Yes"), Answer.NO: _("No")}[self]


class Extractor(enum.Enum):
    """What removes the skull; the value is one of `preparation_record.EXTRACTORS`."""

    AUTO = "auto"
    OWN = "own"
    HD_BET = "hd-bet"
    SYNTHSTRIP = "synthstrip"
    DEEPBET = "deepbet"

    def label(self) -> str:
        """For the combo box."""
        return {
            Extractor.AUTO: _("Automatic"),
            Extractor.OWN: _("Our own network"),
            Extractor.HD_BET: _("HD-BET"),
            Extractor.SYNTHSTRIP: _("SynthStrip"),
            Extractor.DEEPBET: _("deepbet (T1 only)"),
        }[self]


@parameterNodeWrapper
class MSTKDSegmentParameterNode:
    """The four inputs (None: the patient does not have it), the output, how to prepare and how to run.

    weights: "" for the shipped.
    """

    t1: vtkMRMLScalarVolumeNode
    t1gd: vtkMRMLScalarVolumeNode
    t2: vtkMRMLScalarVolumeNode
    flair: vtkMRMLScalarVolumeNode
    outputSegmentation: vtkMRMLSegmentationNode
    segments: Segments = Segments.LABELS
    surface: bool = False
    probabilities: bool = False
    reference: Reference = Reference.FINEST
    device: Device = Device.AUTO
    registered: Answer = Answer.FIND_OUT
    skullStripped: Answer = Answer.FIND_OUT
    brainMask: Optional[Union[vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode]]
    extractor: Extractor = Extractor.AUTO
    biasCorrection: bool = False
    weights: str = ""
