"""The card of a bundle as a page that people read: `python -m training card`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from MSTKDSegmentLib.decision import MARGIN

from training.scores import REGIONS


def card_markdown(card: Mapping[str, Any]) -> str:
    """Markdown of a bundle's card: what it is, how it was trained, Dice by subset and by patient."""
    training, metrics = card["training"], card["metrics"]
    lines = [
        f"# Model card: {card['name']}",
        "",
        card["description"],
        "",
        f"**{card['licence']}**",
        "",
        "| | |",
        "|---|---|",
        f"| Preset | `{card['preset']}`, {card['parameters'] / 1e6:.2f} M parameters, "
        f"{card['gmac_160x192x128']} GMAC at 160x192x128 |",
        f"| Weights | fp16, sha256 `{card['sha256']}` |",
        f"| Training data | {card['data']}; labels sha256 `{training['labels_sha256'][:16]}...` |",
        *_earlier_line(training),
        f"| Training | {training['steps']} steps, {training['hours']} h of computing |",
        *(_stretch(entry) for entry in training["history"]),
        *_blend_line(training),
        f"| Clean-up | {card['clean_up']} |",
        "",
        "Cite with the data: " + "; ".join(card["citations"]) + ".",
        "",
    ]
    if metrics["subsets"]:
        lines += _figures(metrics)
    if card.get("decision", {}).get("thresholds"):
        lines += _decision(card["decision"], card["confidence"])
    return "\n".join(lines) + "\n"


def _stretch(entry: Mapping[str, Any]) -> str:
    config = entry["config"]
    phases = ", ".join(f"{p['steps']} of {p['batch']} x {'x'.join(map(str, p['crop']))}" for p in config["phases"])
    # Bundles from before distillation have no teacher, and torch's version by itself.
    teacher = config.get("teacher", {}).get("mode", "none")
    torch_version = entry["versions"]["torch"] if "versions" in entry else entry["torch"]
    parts = [f"planned steps by crop: {phases}", f"seed {config['seed']}", f"teacher: {teacher}"]
    for key, words in (("initial_weights_sha256", "starts from weights"), ("teacher_sha256", "teacher's file")):
        if key in entry:
            parts.append(f"{words} sha256 `{entry[key][:16]}...`")
    parts += [entry["hardware"], f"torch {torch_version}", f"commit `{entry['commit'][:12]}`"]
    return f"| From step {entry['from_step']} | {'; '.join(parts)} |"


def _earlier_line(training: Mapping[str, Any]) -> list[str]:
    if "earlier_cases" not in training:
        return []
    earlier = training["earlier_cases"]
    said = "unknown" if earlier is None else f"{len(earlier)} ({', '.join(earlier)})"
    return [f"| Further cases that taught its teacher or first weights | {said} |"]


def _blend_line(training: Mapping[str, Any]) -> list[str]:
    if "blend" not in training:
        return []
    share, source = training["blend"]["share_of_this_run"], training["blend"]["weights_sha256"][:16]
    return [
        f"| Blend | {share:g} of the weights after these steps, {round(1 - share, 6):g} of those that they came from, "
        f"sha256 `{source}...` (WiSE-FT, arXiv:2109.01903) |"
    ]


def subset_rows(subsets: Mapping[str, Any]) -> list[str]:
    """A Markdown table's head and one line for each subset: n, and mean Dice with its interval by region."""
    lines = ["| sequences | n | WT | TC | ET |", "|---|---|---|---|---|"]
    for name, entry in subsets.items():
        cells = (f"{entry[r]:.3f} [{entry[f'{r}_ci95'][0]:.2f}, {entry[f'{r}_ci95'][1]:.2f}]" for r in REGIONS)
        lines.append(f"| {name} | {entry['n']} | " + " | ".join(cells) + " |")
    return lines


def _sample(metrics: Mapping[str, Any]) -> str:
    cases = len(metrics["cases"])
    patients = metrics.get("patients", cases)
    return f"{patients} patients" if patients == cases else f"{cases} cases of {patients} patients"


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    lines = [
        f"## Dice on the {metrics['split']} split (n = {_sample(metrics)})",
        "",
        f"Mean [95 % bootstrap interval over patients]; {metrics['space']}. Command: `{metrics['command']}`.",
        "",
        *subset_rows(metrics["subsets"]),
    ]
    mean = metrics["mean_over_subsets"]
    count = len(metrics["subsets"])
    lines += [
        f"| **mean over the {count} subsets** | | " + " | ".join(f"**{mean[r]:.3f}**" for r in REGIONS) + " |",
        "",
    ]
    for subset, cases in metrics["per_case"].items():
        lines += [f"### Each patient, {subset}", "", "| case | WT | TC | ET |", "|---|---|---|---|"]
        for case, scores in cases.items():
            lines.append(f"| {case} | " + " | ".join(f"{scores[r]:.3f}" for r in REGIONS) + " |")
        lines.append("")
    return lines


def _decision(decision: Mapping[str, Any], confidence: Mapping[str, Any]) -> list[str]:
    error = confidence["expected_calibration_error"]
    lines = [
        "## From which probability on a region is drawn",
        "",
        f"Chosen on the {confidence['split']} split (n = {confidence['patients']} patients), as were the curves that "
        "calibrate probabilities. Command: `python -m training calibrate`.",
        "",
    ]
    evidence = decision.get("evidence", {})
    if evidence:
        lines += [
            "Nothing is drawn where the network is nowhere sure: of the voxels that are more likely tumour than not, "
            "a tenth must reach the probability of whole tumour in the last column. It is a fixed share of the logit "
            f'of the patient of whom the network is least sure, {1 - MARGIN} at most; "-": everything is drawn.',
            "",
        ]

    def row(name: str, figures: list[str], last: str) -> str:
        return "| " + " | ".join([name, *figures, *([last] if evidence else [])]) + " |"

    lines += [row("sequences", list(REGIONS), "a tenth at"), "|---" * (5 if evidence else 4) + "|"]
    for name, chosen in decision["thresholds"].items():
        least = f"{evidence[name]:.4f}" if name in evidence else "-"
        lines.append(row(name, [f"{chosen[r]:.2f}" for r in REGIONS], least))
    for key, words in (("before", "expected calibration error"), ("left_out", "... with the curves of the others")):
        lines.append(row(f"*{words}*", [f"*{error[r][key]:.3f}*" for r in REGIONS], ""))
    return [*lines, ""]
