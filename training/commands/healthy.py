"""Count what a bundle finds where there is no tumour: in brains whose tumour was replaced by their own other half."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.commands.calibrate import add_bundle_arguments

HELP = "count what is invented in brains without a tumour"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle_arguments(parser, "part whose patients are used (default: val)")
    parser.add_argument("--out", type=Path, required=True, help="JSON with every volume and their summary")


def run(arguments: argparse.Namespace) -> None:
    import json

    from MSTKDSegmentLib.pipeline import Segmenter

    from training.cache import load_case
    from training.files import write_text
    from training.healthy import invented, summary_of
    from training.mirror import without_tumour
    from training.scores import REGIONS
    from training.splits import part, read_splits

    segmenter = Segmenter(arguments.bundle, arguments.device)
    found, used, left_out = [], [], []
    for case in part(read_splits(arguments.splits), arguments.split, arguments.splits):
        healthy = without_tumour(*load_case(arguments.cache, case))
        if healthy is None:
            left_out.append(case)
            continue
        used.append(case)
        found += invented(
            segmenter.network, case, healthy, segmenter.decision, segmenter.clean_up, segmenter.device.name
        )
        print(case, flush=True)
    if not used:
        raise ValueError(f"no patient of {arguments.split!r} has its tumour in one hemisphere alone")
    table = summary_of(found)
    about = {
        "weights_sha256": segmenter.bundle.sha256,
        "split": arguments.split,
        "brains": used,
        "left_out_for_tumour_in_both_halves": left_out,
        "command": "python -m training healthy",
        "by_subset": table,
        "volumes_ml": [{"case": one.case, "subset": one.subset, **one.volumes_ml} for one in found],
    }
    write_text(arguments.out, json.dumps(about, indent=1) + "\n")
    for name, row in table.items():
        print(
            f"{name:17s}"
            + "; ".join(
                f"{region} median {row[region]['median_ml']:.2f} ml, largest {row[region]['largest_ml']:.2f} ml"
                for region in REGIONS
            )
        )
    print(f"{len(used)} brains; {arguments.out}")
