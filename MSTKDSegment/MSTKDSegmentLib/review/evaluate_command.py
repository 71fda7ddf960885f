"""`mstkd evaluate` on the command line: from its arguments to what it prints."""

from __future__ import annotations

import argparse
import json

from ..terminal import RESEARCH_ONLY, error_json, print_error, print_line, print_table, progress_bar, warn
from .cohort import MEASURES
from .evaluate import EvaluateRequest, EvaluateResult, evaluate, evaluation_error

_PRINTED = ("dice", "hd95_mm")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; gives the exit code."""
    request = EvaluateRequest(
        source=arguments.source,
        output=arguments.output.expanduser(),
        predictions=tuple(arguments.predictions or ()),
        convention=arguments.ground_truth_convention,
        prediction_convention=arguments.prediction_convention,
        device=arguments.device,
        accelerator=arguments.accelerator,
        weights=arguments.weights,
        jobs=arguments.jobs,
        reports=arguments.reports,
        overwrite=arguments.overwrite,
    )
    with progress_bar(not (arguments.quiet or arguments.json)) as progress:
        result = evaluate(request, progress)
    error = evaluation_error(result)
    if arguments.json:
        printed = {**result.to_dict(), **(error_json(error, error.exit_code) if error else {})}
        print(json.dumps(printed, indent=1, ensure_ascii=False))
    elif not arguments.quiet:
        print_evaluation(result)
    if error is not None:
        print_error(error)
        return error.exit_code
    for name, reason in result.failed.items():  # of a rank, which must not end with an error
        warn(f"{name} failed: {reason}")
    return 0


def print_evaluation(result: EvaluateResult) -> None:
    """Means by prediction and region, and what became of the cases, for a person at a terminal."""
    shown = [measure for measure in MEASURES if measure.key in _PRINTED]
    rows = []
    for prediction, regions in result.summary["predictions"].items():
        for region, entry in regions.items():
            cells = [
                f"{found['mean']:.{one.digits}f} [{found['low']:.{one.digits}f}, {found['high']:.{one.digits}f}]"
                for one in shown
                for found in (entry[one.key],)
            ]
            rows.append([prediction, region, str(entry["cases"]), *cells])
    if rows:
        print_table(("prediction", "region", "n", *(one.title for one in shown)), rows, text_columns=2)
    if result.failed:
        print_table(("failed case", "error"), result.failed.items(), text_columns=2)
    waiting = f", {len(result.pending)} left to other processes" if result.pending else ""
    counts = f"{len(result.done)} scored, {len(result.kept)} kept from before, {len(result.failed)} failed{waiting}"
    print_line(counts)
    for path in result.files.values():
        print_line(f"written: {path}")
    print_line(RESEARCH_ONLY)
