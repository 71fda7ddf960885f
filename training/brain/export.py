"""The brain-extraction network as a bundle: weights, and a card that says what it learnt from and how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from MSTKDSegmentLib.brain_network import SIDE, SPACING_MM, WIDTHS, BrainNet
from MSTKDSegmentLib.weights import write_bundle

from training.provenance import current_commit, describe_hardware, package_versions

CARD = {
    "name": "MSTKD brain extraction",
    "preset": "brain-extraction",
    "description": "Brain mask of one T1, T1Gd, T2 or FLAIR volume of a whole head.",
    "licence": (
        "Research use only: learnt from images of the BraTS challenges (Menze et al. 2015, Bakas et al. 2017 and 2018, "
        "Baid et al. 2021), the SRI24 atlas (Rohlfing et al. 2010, CC BY-SA 3.0) and the Colin 27 average brain "
        "(Holmes et al. 1998, Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal "
        "Neurological Institute, McGill University)."
    ),
}


def export_brain_network(
    path: Path, network: BrainNet, training: Mapping[str, Any], scores: Mapping[str, float]
) -> None:
    """Write the bundle; `training`: what it learnt from, `scores`: Dice on synthetic heads of other brains."""
    card = {
        **CARD,
        "network": {"widths": list(WIDTHS), "side": SIDE, "spacing_mm": SPACING_MM},
        "training": {
            **training,
            "hardware": describe_hardware(torch.device("cpu")),
            "versions": package_versions(),
            "commit": current_commit(),
        },
        "metrics": {"dice_on_synthetic_heads": dict(scores)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(path, network.state_dict(), card)
