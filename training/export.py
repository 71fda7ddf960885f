"""From a checkpoint to a bundle with its card, checked by running it through the product's own pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from MSTKDSegmentLib.decision import Decision
from MSTKDSegmentLib.errors import WeightsError
from MSTKDSegmentLib.geometry import labels_to_native
from MSTKDSegmentLib.inference import predict
from MSTKDSegmentLib.metrics import region_dice
from MSTKDSegmentLib.modalities import SUBSETS, subset_name
from MSTKDSegmentLib.network import PRESETS, MSTKDNet, count_macs, count_parameters
from MSTKDSegmentLib.patients import patient_of
from MSTKDSegmentLib.pipeline import PreparedCase, Segmenter, read_case
from MSTKDSegmentLib.preparation_record import READY
from MSTKDSegmentLib.regions import CleanUp, remove_small_components, voxel_volume_ml
from MSTKDSegmentLib.weights import weights_sha256, write_bundle
from torch import Tensor

from training.calibration_files import read_decision
from training.evaluate import with_subset
from training.networks import known_cases, network_of, read_checkpoint, trained_state

TEXTS = ("name", "description", "data", "licence", "citations")
NO_METRICS: Mapping[str, Any] = {"split": None, "subsets": {}}
# The bundle stores half precision: so much may the segmentations of the trainer and of the bundle differ.
LEAST_AGREEMENT = 0.99
# The exported bundle is tried with everything there is, with the clinical minimum, and with one sequence alone.
TRIED_SUBSETS = (SUBSETS[-1], ("T1Gd", "FLAIR"), ("FLAIR",))


def read_texts(path: Path) -> dict[str, Any]:
    """The part of a card that people write: name, description, data, licence, citations.

    Raises ValueError naming what is missing or unknown.
    """
    texts = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
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
    trial: Mapping[str, Any],
    evaluation: Path | None = None,
    clean_up: str = "none",
    clean_up_rules: CleanUp | None = None,
    decision: Path | None = None,
    blend: Blend | None = None,
) -> dict[str, float]:
    """Write the averaged weights of `checkpoint` as a bundle at `out`; its agreement with the trainer on one patient.

    `blend`: other weights that they are interpolated with first.
    `trial`: that patient's volumes by sequence, as `read_case` takes them; both the trainer's network and the bundle,
    read back through the product's own pipeline, segment it from several subsets. `evaluation` is the summary.json and
    `decision` the decision.json (`calibrate`) of these very weights. A bundle that stands at `out` is replaced only
    when all is well. Returns the Dice between the two segmentations by subset and region. Raises WeightsError when
    evaluation or decision belong to other weights, the evaluation to other thresholds or to patients of the training,
    when the two segmentations differ, or for a baseline, which the product does not run, and as `blended` does.
    Patients of the training are those of the teacher and of the initial weights too.
    """
    state = read_checkpoint(checkpoint)
    config = state["config"]
    if config["preset"] not in PRESETS:
        raise WeightsError(
            f"{checkpoint}: a {config['preset']} network is a baseline for tables; no bundle is made of it"
        )
    known = known_cases(cases, state.get("earlier_cases", ()))
    blend_card = {}
    if blend is not None:
        state["average"], source = blended(state, blend, known or cases)
        blend_card = {"blend": {"weights_sha256": source, "share_of_this_run": blend.share}}
    summary = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation else None
    network = network_of(state)
    card: dict[str, Any] = {
        **texts,
        "preset": config["preset"],
        "network": network.config.to_dict(),
        "parameters": count_parameters(network),
        "gmac_160x192x128": round(count_macs(network, (160, 192, 128)) / 1e9, 1),
        "training": {
            "cases": cases,
            **_earlier(known, cases),
            "labels_sha256": fingerprint,
            "steps": state["step"],
            "hours": round(float(state["seconds"]) / 3600, 2),
            "history": state["history"],
            **blend_card,
        },
        "clean_up": (clean_up_rules or CleanUp()).to_dict(),
        "metrics": dict(NO_METRICS) if summary is None else _metrics_card(summary, clean_up),
    }
    digest = weights_sha256(state["average"])
    if decision is not None:
        chosen, about, seen = read_decision(decision, digest)
        _require_unseen(seen, known, str(decision))
        card |= {"decision": chosen.to_dict(), "confidence": about}
    if summary is not None:
        _require_fitting(summary, digest, known, str(evaluation))
        evaluated, carried = (Decision.from_dict(one.get("decision", {})) for one in (summary, card))
        if evaluated != carried:
            raise WeightsError(f"{evaluation}: made with other thresholds than the card's; evaluate again")
    draft = out.with_name(f".{out.name}.draft")
    try:
        write_bundle(draft, state["average"], card)
        agreement = _verify(network, draft, read_case(trial, wishes=READY))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return agreement


@dataclass(frozen=True)
class Blend:
    """`share` (0 to 1) of a run's weights, the rest from the bundle or checkpoint `source` that the run came from."""

    source: Path
    share: float


def blended(state: Mapping[str, Any], blend: Blend, cases: Sequence[str]) -> tuple[dict[str, Tensor], str]:
    """The interpolated weights, and the sha256 of the others.

    Between a network and what it was fine-tuned to, both often are surpassed (WiSE-FT, Wortsman et al. 2022,
    arXiv:2109.01903). Raises WeightsError for another network, or one that saw cases that are not among `cases` or
    does not name its cases.
    """
    source, share = blend.source, blend.share
    if not 0 <= share <= 1:
        raise WeightsError(f"a share of {share} of the run's weights: it must lie between 0 and 1")
    preset, others, digest, seen = trained_state(source)
    mine: Mapping[str, Tensor] = state["average"]
    shapes, wanted = ({name: value.shape for name, value in weights.items()} for weights in (others, mine))
    if preset != state["config"]["preset"] or shapes != wanted:
        raise WeightsError(f"{source}: a network of preset {preset!r} that is not the run's cannot be blended with it")
    if seen is None:
        raise WeightsError(f"{source}: does not say what it was trained on; the card could not say it")
    further = sorted(set(seen) - set(cases))
    if further:
        raise WeightsError(
            f"{source}: trained on {len(further)} further cases ({further[0]} ...); the card would not name them"
        )
    return {
        name: torch.lerp(others[name].float(), value.float(), share) if value.is_floating_point() else value
        for name, value in mine.items()
    }, digest


def trained_cases(checkpoint: Path, named: list[str] | None) -> list[str]:
    """The cases that a checkpoint was trained on: its own list, or `named` for one of before there was a list.

    Raises ValueError when `named` contradicts the checkpoint, or when neither tells.
    """
    own = read_checkpoint(checkpoint).get("cases", {}).get("training")
    if own is None and named is None:
        raise ValueError(f"{checkpoint} does not say what it was trained on; name the part with --splits and --split")
    if own is not None and named is not None and set(own) != set(named):
        raise ValueError(f"{checkpoint} was trained on {len(own)} other cases than the {len(named)} of that part")
    return sorted(own if own is not None else named or [])


def _earlier(known: Sequence[str] | None, cases: Sequence[str]) -> dict[str, Any]:
    """For the card: the cases of teacher and initial weights that are not the run's, None where they are unknown."""
    if known is None:
        return {"earlier_cases": None}
    further = sorted(set(known) - set(cases))
    return {"earlier_cases": further} if further else {}


def _require_fitting(summary: Mapping[str, Any], digest: str, known: Sequence[str] | None, source: str) -> None:
    if summary["checkpoint_sha256"] != digest:
        raise WeightsError(f"{source}: made with weights {summary['checkpoint_sha256'][:12]}..., not {digest[:12]}...")
    _require_unseen(summary["cases"], known, source)


def _require_unseen(used: Sequence[str], known: Sequence[str] | None, source: str) -> None:
    """Raises WeightsError where a patient of `used` taught the network, its teacher or what it started from."""
    if known is None:
        raise WeightsError(
            f"{source}: the run's teacher or initial weights do not say what they were trained on; figures could be of "
            "patients that they know"
        )
    taught = {patient_of(case) for case in known}
    seen = sorted(case for case in used if case in known or patient_of(case) in taught)
    if seen:
        raise WeightsError(
            f"{source}: the network, its teacher or its initial weights were trained on {', '.join(seen)}; use other "
            "patients"
        )


def _metrics_card(summary: Mapping[str, Any], clean_up: str) -> dict[str, Any]:
    if clean_up not in summary["clean_up"]:
        known = ", ".join(summary["clean_up"])
        raise ValueError(
            f"the evaluation has no clean-up {clean_up!r} (it has {known}); run `evaluate` for all of them"
        )
    chosen = summary["clean_up"][clean_up]
    return {
        "split": summary["split"],
        "cases": summary["cases"],
        "patients": summary["patients"],
        "space": "native, whole volume; Dice of an absent region is 1 if nothing was predicted and 0 otherwise",
        "command": "python -m training evaluate",
        "clean_up": clean_up,
        "subsets": chosen["subsets"],
        "mean_over_subsets": chosen["mean_over_subsets"],
        "per_case": chosen["per_case"],
    }


def _verify(network: MSTKDNet, bundle: Path, case: PreparedCase) -> dict[str, float]:
    """Dice between the trainer's and the bundle's segmentation of `case`, by subset and region.

    Raises WeightsError when they differ by more than half precision explains.
    """
    segmenter = Segmenter(bundle, "cpu")
    # What is in doubt would be empty on both sides, and alike whatever the networks say.
    segmenter.decision = replace(segmenter.decision, evidence={})
    agreement: dict[str, float] = {}
    for subset in TRIED_SUBSETS:
        seen = with_subset(case, subset)
        product = segmenter.segment_prepared(seen)
        reference = seen.reference_image
        prediction = predict(network, seen.image, seen.availability)
        thresholds = segmenter.decision.thresholds_of(subset_name(subset))
        native = labels_to_native(prediction.probabilities, seen.grid, reference, thresholds=thresholds)
        voxel_ml = voxel_volume_ml(reference.GetSpacing(), reference.GetDirection())
        trainers = remove_small_components(native, segmenter.clean_up, voxel_ml)
        same = float(np.mean(product.labels == trainers))
        for region, value in region_dice(product.labels, trainers).items():
            agreement[f"{subset_name(subset)} {region}"] = value
        if same < LEAST_AGREEMENT or region_dice(product.labels, trainers)["WT"] < LEAST_AGREEMENT:
            raise WeightsError(
                f"{bundle.name}: the exported network segments {seen.reference_image.GetSize()} voxels from "
                f"{subset_name(subset)} differently from the checkpoint ({100 * (1 - same):.2f} % of all voxels)"
            )
    return agreement
