"""Choose, on validation patients, from which probability on a region is drawn, how sure the network must be of a tumour
if anything is to be drawn, and how sure a probability really is.

Writes decision.json for `export --decision`, a reliability diagram, and what every patient gave; run it again to go on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "choose thresholds and calibrate probabilities on the validation part"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle_arguments(parser, "part to choose on, never a test part (default: val)")
    parser.add_argument("--out", type=Path, required=True, help="folder for decision.json and reliability.png")


def add_bundle_arguments(parser: argparse.ArgumentParser, split: str) -> None:
    """A bundle, a device to run it on, and the part of the prepared cases that it is run on."""
    parser.add_argument("--bundle", type=Path, help="bundle (.zip); default: the one that the product ships")
    parser.add_argument("--splits", type=Path, required=True, help="JSON that `split` wrote")
    parser.add_argument("--split", default="val", help=split)
    parser.add_argument("--cache", type=Path, required=True, help="folder that `prepare` wrote")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")


def run(arguments: argparse.Namespace) -> None:
    from training.cache import load_case
    from training.calibrate import calibrate, measured
    from training.calibration_files import read_measured, write_calibration, write_measured
    from training.evaluate import Candidate
    from training.splits import part, read_patients, read_splits

    cases = list(part(read_splits(arguments.splits), arguments.split, arguments.splits))
    candidate = Candidate.from_bundle(arguments.bundle, arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    digest = candidate.sha256
    found, doubts = read_measured(arguments.out, digest)
    for number, case in enumerate(cases, start=1):
        if not any(key[0] == case for key in found):
            images, labels = load_case(arguments.cache, case)
            mine, unsure = measured(candidate.network, images, labels, candidate.device)
            found |= {(case, subset, region): one for (subset, region), one in mine.items()}
            doubts |= {(case, subset): doubt for subset, doubt in unsure.items()}
            write_measured(arguments.out, digest, found, doubts)
        print(f"{number}/{len(cases)} {case}", flush=True)
    known = read_patients(arguments.splits)
    patient_of = {case: known.get(case, case) for case in cases}
    chosen_on = {key: one for key, one in found.items() if key[0] in patient_of}
    calibration = calibrate(chosen_on, doubts, patient_of)
    path = write_calibration(
        arguments.out,
        calibration,
        digest=digest,
        split=arguments.split,
        patient_of=patient_of,
    )
    for name, row in calibration.figures.items():
        print(
            f"{name:17s}"
            + "; ".join(
                f"{region} at {calibration.decision.thresholds[name][region]:.2f}: Dice {one['dice_at_half']:.3f} -> "
                f"{one['dice']:.3f} (left out {one['dice_left_out']:.3f})"
                for region, one in row.items()
            )
            + f"; nothing unless a tenth reaches {calibration.decision.evidence.get(name, 0):.4f} "
            f"(left out: {row['WT']['missed_left_out']} missed)"
        )
    for region, one in calibration.before.items():
        print(f"{region}: calibration error {one.error:.3f}, left out {calibration.after[region].error:.3f}")
    print(path)
