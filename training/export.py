"""From a checkpoint to a bundle with its card, checked by running it through the product's own pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from MSTKDSegmentLib.errors import WeightsError
from MSTKDSegmentLib.network import PRESETS, build_network, count_macs, count_parameters
from MSTKDSegmentLib.regions import CleanUp
from MSTKDSegmentLib.weights import load_network, read_bundle, write_bundle

TEXTS = ("name", "description", "data", "licence", "citations")
NO_METRICS: Mapping[str, Any] = {"split": None, "subsets": {}}


def read_texts(path: Path) -> dict[str, Any]:
    """The part of a card that people write: name, description, data, licence, citations.

    Raises ValueError naming what is missing or unknown.
    """
    texts = yaml.safe_load(path.read_text()) or {}
    wrong = sorted(set(TEXTS) ^ set(texts))
    if wrong:
        raise ValueError(f"{path}: missing or unknown: {', '.join(wrong)}; a card needs {', '.join(TEXTS)}")
    return texts


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    texts: Mapping[str, Any],
    cases: list[str],
    fingerprint: str,
    evaluation: Path | None = None,
    clean_up: str = "none",
    clean_up_rules: CleanUp | None = None,
) -> Path:
    """Write the EMA weights of `checkpoint` as a bundle; `evaluation` is the summary.json of these very weights.

    A bundle that stands at `out` is replaced only when all is well. Raises WeightsError when the evaluation belongs to
    other weights or to patients of the training, or when the exported network does not give the trainer's own output
    (fp16 storage costs at most 1 % probability).
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    config = state["config"]
    summary = json.loads(evaluation.read_text()) if evaluation else None
    network = build_network(config["preset"]).eval()
    network.load_state_dict(state["average"])
    card: dict[str, Any] = {
        **texts,
        "preset": config["preset"],
        "network": PRESETS[config["preset"]].to_dict(),
        "parameters": count_parameters(network),
        "gmac_160x192x128": round(count_macs(network, (160, 192, 128)) / 1e9, 1),
        "training": {
            "cases": cases,
            "labels_sha256": fingerprint,
            "steps": state["step"],
            "hours": round(float(state["seconds"]) / 3600, 2),
            "history": state["history"],
        },
        "clean_up": (clean_up_rules or CleanUp()).to_dict(),
        "metrics": dict(NO_METRICS) if summary is None else _metrics_card(summary, clean_up),
    }
    draft = out.with_name(f".{out.name}.draft")
    try:
        digest = write_bundle(draft, state["average"], card)
        if summary is not None:
            _require_fitting(summary, digest, cases, str(evaluation))
        _verify(network, draft)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return out


def _require_fitting(summary: Mapping[str, Any], digest: str, cases: list[str], source: str) -> None:
    if summary["checkpoint_sha256"] != digest:
        raise WeightsError(f"{source}: made with weights {summary['checkpoint_sha256'][:12]}..., not {digest[:12]}...")
    seen = sorted(set(summary["cases"]) & set(cases))
    if seen:
        raise WeightsError(f"{source}: the network was trained on {', '.join(seen)}; evaluate other patients")


def _metrics_card(summary: Mapping[str, Any], clean_up: str) -> dict[str, Any]:
    chosen = summary["clean_up"][clean_up]
    return {
        "split": summary["split"],
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
