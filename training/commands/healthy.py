"""Count what a bundle finds where there is no tumour: in patients' brains without theirs, and in real healthy heads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from training.commands.calibrate import add_bundle_arguments

if TYPE_CHECKING:
    from training.healthy import Invented

HELP = "count what is invented in brains without a tumour"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle_arguments(parser, "part whose patients are used (default: val)")
    parser.add_argument(
        "--real",
        action="append",
        default=[],
        metavar="SEQUENCE=FILE",
        help="a volume of somebody without a tumour, such as T1=ch2bet.nii.gz, to be segmented by itself; repeatable",
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON with every volume and their summary")


def run(arguments: argparse.Namespace) -> None:
    import json

    from MSTKDSegmentLib.pipeline import Segmenter

    from training.cache import load_case
    from training.files import write_text
    from training.healthy import KINDS, invented, invented_in_real, real_volumes, summary_of
    from training.mirror import without_tumour
    from training.splits import part, read_splits

    real = real_volumes(arguments.real)
    segmenter = Segmenter(arguments.bundle, arguments.device)
    found: dict[str, list[Invented]] = {kind: [] for kind in KINDS}
    used, left_out = [], []
    for case in part(read_splits(arguments.splits), arguments.split, arguments.splits):
        images, labels = load_case(arguments.cache, case)
        for kind in KINDS:
            healthy = without_tumour(images, labels, place_only=kind == "place")
            if healthy is None:
                left_out.append(case)
                break
            found[kind] += invented(
                segmenter.network, case, healthy, segmenter.decision, segmenter.clean_up, segmenter.device.name
            )
        else:
            used.append(case)
        print(case, flush=True)
    if not used:
        raise ValueError(f"no patient of {arguments.split!r} has its tumour in one hemisphere alone")
    tables = {kind: summary_of(found[kind]) for kind in KINDS}
    in_real = [invented_in_real(segmenter, sequence, path) for sequence, path in real]
    about = {
        "weights_sha256": segmenter.bundle.sha256,
        "split": arguments.split,
        "brains": used,
        "left_out_for_tumour_in_both_halves": left_out,
        "command": "python -m training healthy",
        "replaced": {
            kind: {
                "what": KINDS[kind],
                "by_subset": tables[kind],
                "volumes_ml": [{"case": one.case, "subset": one.subset, **one.volumes_ml} for one in found[kind]],
            }
            for kind in KINDS
        },
        "real": in_real,
    }
    write_text(arguments.out, json.dumps(about, indent=1) + "\n")
    for kind, table in tables.items():
        nothing = sum(one.volumes_ml["WT"] == 0 for one in found[kind])
        print(f"{KINDS[kind]}: nothing in {nothing} of {len(found[kind])} (brain, set of sequences)")
        for name, row in table.items():
            tumour = row["WT"]
            if tumour["largest_ml"]:
                print(f"  {name:17s} WT median {tumour['median_ml']:.2f} ml, largest {tumour['largest_ml']:.2f} ml")
    for one in in_real:
        drawn = one["volumes_ml"]["WT"]
        print(f"{one['file']}, {one['sequence']}: WT {drawn:.1f} ml, left out {one['doubted_ml']:.1f} ml")
    print(f"{len(used)} brains; {arguments.out}")
