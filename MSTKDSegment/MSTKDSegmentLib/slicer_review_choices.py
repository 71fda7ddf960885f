"""What a reader has chosen in the Review section, kept in a node of the scene, so that a saved scene restores it."""

from __future__ import annotations

import json
from typing import Any, Optional

import slicer

from .regions import REGION_KEYS
from .review.places import ORDERS

TAG = "MSTKDSegmentReview"
PREDICTION, TRUTH, OVERLAY, TABLE = "prediction", "truth", "overlay", "table"
ROLES = (PREDICTION, TRUTH, OVERLAY, TABLE)
LOADED = "loaded"
"""Node reference role to all that was loaded for the present case."""
TEXTS = ("worklist", "case", "caseLeft", "predictionsFolder", "verdictsFile", "reader")


class ReviewChoices:
    """The scene's one node of choices, made where there is none; nodes that have left the scene are None."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene

    @property
    def node(self) -> Any:
        """A `vtkMRMLScriptedModuleNode`."""
        found = self._scene.GetSingletonNode(TAG, "vtkMRMLScriptedModuleNode")
        if found is None:
            made = slicer.vtkMRMLScriptedModuleNode()
            made.SetSingletonTag(TAG)
            made.SetModuleName("MSTKDSegment")
            made.SetName(TAG)
            made.SetHideFromEditors(True)
            found = self._scene.AddNode(made)
        return found

    def get(self, role: str) -> Optional[Any]:
        """The node chosen (`PREDICTION`, `TRUTH`) or made (`OVERLAY`, `TABLE`)."""
        return self.node.GetNodeReference(role)

    def choose(self, role: str, node: Optional[Any]) -> None:
        """Point to `node`, or to none."""
        if self.get(role) is not node:
            self.node.SetNodeReferenceID(role, node.GetID() if node is not None else None)

    def forget(self, node: Any) -> None:
        """`node` leaves the scene: point to it no more."""
        for role in ROLES:
            if self.get(role) is node:
                self.choose(role, None)

    @property
    def loaded(self) -> list[Any]:
        """What was loaded for the present case and is still there."""
        node = self.node
        found = [node.GetNthNodeReference(LOADED, n) for n in range(node.GetNumberOfNodeReferences(LOADED))]
        return [one for one in found if one is not None]

    @loaded.setter
    def loaded(self, nodes: list[Any]) -> None:
        node = self.node
        node.RemoveNodeReferenceIDs(LOADED)
        for one in nodes:
            node.AddNodeReferenceID(LOADED, one.GetID())

    def text(self, name: str) -> str:
        """One of `TEXTS`; "" where nothing was said."""
        return self.node.GetParameter(name) or ""

    def say(self, name: str, text: str) -> None:
        """Set one of `TEXTS`."""
        if self.text(name) != text:
            self.node.SetParameter(name, text)

    @property
    def region(self) -> str:
        """The region whose errors are shown."""
        return self._one_of("region", REGION_KEYS)

    @property
    def order(self) -> str:
        """How the worst places are ranked."""
        return self._one_of("order", ORDERS)

    def set(self, name: str, value: str) -> None:
        """Set "region" or "order"."""
        self.node.SetParameter(name, value)

    def _one_of(self, name: str, known: tuple[str, ...]) -> str:
        text = self.text(name)
        return text if text in known else known[0]

    @property
    def looks(self) -> dict[str, Any]:
        """What `slicer_review_views.side_by_side` gave, while both are shown so; {} else."""
        try:
            found = json.loads(self.text("formerLooks") or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @looks.setter
    def looks(self, looks: dict[str, Any]) -> None:
        self.say("formerLooks", json.dumps(looks) if looks else "")
