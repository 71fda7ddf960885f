"""A picture like the paper's Fig. 2: patients by rows; image, ground truth and the segmentation from each subset.

Takes the label maps that `evaluate --save-labels` kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.commands.check import add_data_arguments

HELP = "a picture like the paper's Fig. 2 from kept label maps"
DEFAULT_SUBSETS = ("FLAIR", "T1Gd", "T1Gd+FLAIR", "T1+T1Gd+T2+FLAIR")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--labels", type=Path, required=True, help="folder `labels` of an evaluation")
    parser.add_argument("--cases", nargs="+", required=True, metavar="CASE", help="names of the patients to show")
    parser.add_argument("--subsets", nargs="+", metavar="SUBSET", default=list(DEFAULT_SUBSETS), help="columns")
    parser.add_argument("--background", default="FLAIR", help="sequence below the outlines (default: FLAIR)")
    parser.add_argument("--out", type=Path, required=True, help="the picture (.png)")


def run(arguments: argparse.Namespace) -> None:
    import SimpleITK as sitk
    from MSTKDSegmentLib.modalities import MODALITIES, parse_subset, subset_name
    from MSTKDSegmentLib.pipeline import read_case
    from MSTKDSegmentLib.preparation_record import READY

    from training.discovery import discover
    from training.figures import case_panel, panel_case
    from training.labels import read_labels

    if arguments.background not in MODALITIES:
        raise ValueError(f"--background {arguments.background}: the sequences are {', '.join(MODALITIES)}")
    subsets = [subset_name(parse_subset(text)) for text in arguments.subsets]
    rows = []
    for case in discover(arguments.data, arguments.layout, arguments.convention).select(arguments.cases):
        paths = {subset: arguments.labels / case.name / f"{subset}.nii.gz" for subset in subsets}
        missing = [str(path) for path in paths.values() if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing: run `evaluate --save-labels` for this case and subset")
        predictions = {subset: sitk.ReadImage(str(path), sitk.sitkUInt8) for subset, path in paths.items()}
        background = read_case(
            {arguments.background: case.sources()[arguments.background]}, wishes=READY
        ).reference_image
        rows.append(panel_case(case.name, background, read_labels(case), predictions))
    print(case_panel(rows, arguments.out))
