"""What looks say of a patient's volumes: a sequence where names say nothing, a doubt where they say something else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Callable, Optional

import numpy as np

from .appearance import MOST_LOOKED_AT, Look, doubts, look, propose_by_look
from .modalities import MODALITIES
from .registration import CancelCheck, stop_if
from .roles import RoleProposal
from .translation import _
from .volumes import Volume


def doubtful_looks(
    volumes: Mapping[str, Volume], brains: Mapping[str, np.ndarray], cancel: Optional[CancelCheck] = None
) -> list[str]:
    """Sentences about volumes that do not look like the sequence they are given as; `brains`: masks (D, H, W) bool.

    Raises Cancelled.
    """
    looks = {}
    for name, volume in volumes.items():
        stop_if(cancel)
        looks[name] = look(volume.image, brains[name])
    found = doubts({name: seen for name, seen in looks.items() if seen is not None})
    return [f"{name} ({volumes[name].source}): {sentence}" for name, sentence in found.items()]


def settled_by_look(
    proposals: Sequence[RoleProposal],
    look_of: Callable[[int], Optional[Look]],
    taken: Collection[str] = (),
    ambiguous_too: bool = False,
) -> list[RoleProposal]:
    """`proposals` of one patient, in which those that say "unknown" name a sequence where the look is clear.

    `look_of` is asked for the look of a volume by its index. Sequences that are `taken`, or proposed already, are not
    given again. `ambiguous_too`: also settles the questions that names leave open, among their candidates. Of more than
    `MOST_LOOKED_AT` such volumes none is looked at.
    """
    asked = ("unknown", "ambiguous") if ambiguous_too else ("unknown",)
    open_ones = [index for index, proposal in enumerate(proposals) if proposal.certainty in asked]
    given = {*taken, *(proposal.modality for proposal in proposals)}
    free = [modality for modality in MODALITIES if modality not in given]
    settled = list(proposals)
    if not free or len(open_ones) > MOST_LOOKED_AT:
        return settled
    allowed = [[modality for modality in free if modality in _candidates(proposals[index])] for index in open_ones]
    found = propose_by_look([look_of(index) for index in open_ones], allowed)
    for index, by_look in zip(open_ones, found):
        if by_look is not None:
            # A sure thing is not claimed: the figures of validation allow for one wrong volume in a hundred.
            reason = _("by its look (p {probability:.2f}), please check").format(
                probability=min(by_look.probability, 0.99)
            )
            settled[index] = replace(
                proposals[index], modality=by_look.modality, certainty="likely", reason=reason, candidates=MODALITIES
            )
    return settled


def _candidates(proposal: RoleProposal) -> Collection[str]:
    if not proposal.candidates:
        return MODALITIES
    # Where only the times of the scan say T1, contrast agent may have been given.
    with_contrast = ("T1Gd",) if proposal.certainty == "unknown" and "T1" in proposal.candidates else ()
    return (*proposal.candidates, *with_contrast)
