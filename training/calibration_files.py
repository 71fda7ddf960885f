"""What `calibrate` writes: histograms as they come (a stopped run goes on), decision.json, a reliability diagram."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from MSTKDSegmentLib.decision import Decision
from MSTKDSegmentLib.errors import WeightsError

from training.calibrate import Calibration, Histogram, Reliability
from training.figures import COLOURS, new_figure, save_figure
from training.files import replacing, write_text
from training.scores import REGIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTOGRAMS, DECISION, DIAGRAM = "histograms.npz", "decision.json", "reliability.png"


def read_measured(
    folder: Path, digest: str
) -> tuple[dict[tuple[str, str, str], Histogram], dict[tuple[str, str], float]]:
    """Histograms and doubts that an earlier call wrote, empty if none did.

    Raises ValueError if they are of other weights than `digest`, or of an earlier version.
    """
    path = folder / HISTOGRAMS
    if not path.is_file():
        return {}, {}
    with np.load(path) as data:
        if str(data["weights_sha256"]) != digest:
            raise ValueError(f"{path} is of other weights; use another --out, or delete it")
        if "doubts" not in data:
            raise ValueError(f"{path} was written by an earlier version; use another --out, or delete it")
        keys = [tuple(str(key).split("|")) for key in data["keys"]]
        histograms = {
            (case, subset, region): Histogram(voxels, tumour, int(reference))
            for (case, subset, region), voxels, tumour, reference in zip(
                keys, data["voxels"], data["tumour"], data["reference"]
            )
        }
        seen = [tuple(str(key).split("|")) for key in data["seen"]]
        return histograms, {(case, subset): float(doubt) for (case, subset), doubt in zip(seen, data["doubts"])}


def write_measured(
    folder: Path,
    digest: str,
    found: Mapping[tuple[str, str, str], Histogram],
    doubts: Mapping[tuple[str, str], float],
) -> None:
    with replacing(folder / HISTOGRAMS) as temporary:
        np.savez_compressed(
            temporary,
            weights_sha256=digest,
            keys=np.array(["|".join(key) for key in found]),
            voxels=np.stack([one.voxels for one in found.values()]),
            tumour=np.stack([one.tumour for one in found.values()]),
            reference=np.array([one.reference for one in found.values()]),
            seen=np.array(["|".join(key) for key in doubts]),
            doubts=np.array(list(doubts.values())),
        )


def write_calibration(
    folder: Path, calibration: Calibration, *, digest: str, split: str, patient_of: Mapping[str, str]
) -> Path:
    """decision.json (returned) and reliability.png; `patient_of` gives the patient of each case."""
    patients = len(set(patient_of.values()))
    about = {
        "weights_sha256": digest,
        "split": split,
        "cases": list(patient_of),
        "patients": patients,
        "patient_of": dict(patient_of),
        "decision": calibration.decision.to_dict(),
        "figures": calibration.figures,
        "left_out": calibration.left_out,
        "reliability": {
            "voxels": "of probability 0.01 or more, all subsets and patients together",
            "before": {region: vars(one) for region, one in calibration.before.items()},
            "left_out": {region: vars(one) for region, one in calibration.after.items()},
        },
    }
    write_text(folder / DECISION, json.dumps(about, indent=1) + "\n")
    draw_reliability(calibration, patients, folder / DIAGRAM)
    return folder / DECISION


def read_decision(path: Path, digest: str) -> tuple[Decision, dict[str, Any], list[str]]:
    """The decision, what a card tells of it, and its cases. Raises WeightsError if it was chosen for other weights."""
    about = json.loads(path.read_text(encoding="utf-8"))
    if about["weights_sha256"] != digest:
        raise WeightsError(
            f"{path}: chosen for weights {about['weights_sha256'][:12]}..., not {digest[:12]}...; run `calibrate` again"
        )
    error = {
        region: {
            "before": round(about["reliability"]["before"][region]["error"], 4),
            "left_out": round(about["reliability"]["left_out"][region]["error"], 4),
        }
        for region in REGIONS
    }
    told = {"split": about["split"], "patients": about["patients"], "expected_calibration_error": error}
    return Decision.from_dict(about["decision"]), told, list(about["cases"])


def draw_reliability(calibration: Calibration, patients: int, path: Path) -> Path:
    """Claimed against real share of tumour by region, before and after; the size of a dot is its share of voxels."""
    figure = new_figure(3.4 * len(REGIONS), 3.7)
    for axes, region in zip(figure.subplots(1, len(REGIONS), sharey=True), REGIONS):
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
        _dots(axes, calibration.before[region], COLOURS[1], "network")
        _dots(axes, calibration.after[region], COLOURS[0], "calibrated on the others")
        axes.set_title(region)
        axes.set_xlabel("probability")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.legend(loc="upper left", fontsize=7, frameon=False)
        if region == REGIONS[0]:
            axes.set_ylabel("share of voxels that are tumour")
    figure.suptitle(f"Voxels of probability 0.01 or more, 15 subsets, {patients} patients", fontsize=9)
    return save_figure(figure, path)


def _dots(axes: Axes, found: Reliability, colour: str, name: str) -> None:
    voxels = np.array(found.voxels, float)
    shown = voxels > 0
    x, y = np.array(found.probability)[shown], np.array(found.tumour)[shown]
    label = f"{name}: error {found.error:.3f}"
    axes.plot(x, y, color=colour, linewidth=1.2, label=label)
    axes.scatter(x, y, s=8 + 120 * voxels[shown] / voxels.sum(), color=colour, alpha=0.7)
