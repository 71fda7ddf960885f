"""From a checkpoint to a bundle with its card, checked by running it through the product's own pipeline."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from MSTKDSegmentLib.errors import WeightsError
from MSTKDSegmentLib.network import PRESETS, build_network, count_macs, count_parameters
from MSTKDSegmentLib.regions import CleanUp
from MSTKDSegmentLib.weights import load_network, read_bundle, write_bundle

LICENCE = (
    "Research use only, not a medical device. Trained on BraTS images, which are provided for research; "
    "the code of MSTKDSegment is Apache-2.0."
)
CITATIONS = (
    "Menze et al. 2015, IEEE Transactions on Medical Imaging 34(10)",
    "Bakas et al. 2017, Scientific Data 4:170117",
    "Bakas et al. 2018, arXiv:1811.02629",
    "Baid et al. 2021, arXiv:2107.02314",
)
NO_METRICS: Mapping[str, Any] = {"split": None, "subsets": {}}


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    name: str,
    cases: list[str],
    fingerprint: str,
    commit: str,
    evaluation: Path | None = None,
    clean_up: str = "none",
    clean_up_rules: CleanUp | None = None,
    description: str = "",
) -> Path:
    """Write the EMA weights of `checkpoint` as a bundle; `evaluation` is the summary.json of these very weights.

    Raises WeightsError when the evaluation belongs to other weights, or when the exported network does not give the
    trainer's own output (fp16 storage costs at most 1 % probability).
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    config = state["config"]
    summary = json.loads(evaluation.read_text()) if evaluation else None
    card: dict[str, Any] = {
        "name": name,
        "description": description,
        "preset": config["preset"],
        "network": PRESETS[config["preset"]].to_dict(),
        "licence": LICENCE,
        "citations": list(CITATIONS),
        "training": _training_card(state, cases, fingerprint, commit),
        "clean_up": (clean_up_rules or CleanUp()).to_dict(),
        "metrics": dict(NO_METRICS) if summary is None else _metrics_card(summary, clean_up),
    }
    network = build_network(config["preset"]).eval()
    network.load_state_dict(state["average"])
    card["parameters"] = count_parameters(network)
    card["gmac_160x192x128"] = round(count_macs(network, (160, 192, 128)) / 1e9, 1)
    digest = write_bundle(out, state["average"], card)
    if summary is not None and summary["checkpoint_sha256"] != digest:
        out.unlink()
        raise WeightsError(
            f"{evaluation}: made with weights {summary['checkpoint_sha256'][:12]}..., not {digest[:12]}..."
        )
    _verify(network, out)
    return out


def _training_card(state: Mapping[str, Any], cases: list[str], fingerprint: str, commit: str) -> dict[str, Any]:
    return {
        "data": "46 labelled glioma patients from the BraTS challenges 2013-2023 (T1, T1Gd, T2, FLAIR; 1 mm, "
        "skull-stripped, registered)"
        if len(cases) == 46
        else f"{len(cases)} patients",
        "cases": cases,
        "labels_sha256": fingerprint,
        "steps": state["step"],
        "hours": round(float(state["seconds"]) / 3600, 2),
        "seed": state["config"]["seed"],
        "config": state["config"],
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "commit": commit,
    }


def _metrics_card(summary: Mapping[str, Any], clean_up: str) -> dict[str, Any]:
    chosen = summary["clean_up"][clean_up]
    return {
        "split": "val",
        "cases": summary["cases"],
        "space": "native, whole volume; Dice of an absent region is 1 if nothing was predicted and 0 otherwise",
        "command": "python -m training evaluate",
        "clean_up": clean_up,
        "subsets": chosen["subsets"],
        "mean_over_subsets": chosen["mean_over_subsets"],
        "per_case": chosen["per_case"],
    }


def _verify(network: torch.nn.Module, bundle: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 4, 64, 64, 64, generator=generator)
    mask = torch.ones(1, 4)
    with torch.inference_mode():
        ours = torch.softmax(network(image, mask), 1)
        theirs = torch.softmax(load_network(read_bundle(bundle))(image, mask), 1)
    difference = float((ours - theirs).abs().max())
    if not np.isfinite(difference) or difference > 0.01:
        raise WeightsError(f"{bundle}: the exported network differs from the checkpoint by {difference:.3g}")
