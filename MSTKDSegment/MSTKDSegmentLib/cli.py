"""The command `mstkd`. Only the standard library is imported before a command starts, so that --help is immediate."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Optional

from . import __version__
from .accelerator import ACCELERATORS, NONE
from .allocation import keep_freed_memory
from .errors import Cancelled, MSTKDError, RoleError
from .terminal import error_json, print_error, print_line, progress_bar, warn

if TYPE_CHECKING:
    from .pipeline import Segmenter
    from .preparation_record import Wishes
    from .segment_command import Settings

SEQUENCE_FLAGS = {"t1": "T1", "t1gd": "T1Gd", "t2": "T2", "flair": "FLAIR"}
# Named here again because the modules that define them import numpy; a test holds them together.
GROUND_TRUTH_CONVENTIONS = ("auto", "brats2023", "brats2021", "brats2024", "msd")
BRAIN_EXTRACTORS = ("auto", "own", "hd-bet", "synthstrip", "deepbet")
BATCH_FORMATS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")
DEBUG_VARIABLE = "MSTKD_DEBUG"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mstkd: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each command's `run` takes the parsed arguments and gives the exit code."""
    parser = _Parser(
        prog="mstkd",
        description="Segment brain tumours from whichever of T1, T1Gd, T2 and FLAIR a patient has.",
        epilog="For research use only. Not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"mstkd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_segment(commands.add_parser("segment", help="segment one patient, or many with --batch"))
    _add_what_if(commands.add_parser("what-if", help="one patient: what if a sequence were missing"))
    _add_evaluate(commands.add_parser("evaluate", help="score many patients that have a ground truth"))
    _add_info(commands.add_parser("info", help="what the weights are and how well they do"))
    _add_bench(commands.add_parser("bench", help="measure speed and memory on this machine"))
    _add_review(commands.add_parser("review", help="look at segmentations in a browser and judge them"))
    return parser


def _add_segment(parser: argparse.ArgumentParser) -> None:
    _add_case(parser, "any non-empty subset of the four sequences")
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument(
        "-o", "--output", action="append", type=Path, required=True, metavar="OUT",
        help="the ending decides the format: .seg.nrrd (for 3D Slicer), .nii.gz, .nii, .nrrd, .mha; may be repeated",
    )  # fmt: skip
    outputs.add_argument(
        "--label-convention", choices=("brats2023", "brats2021"), default="brats2023", help="ET is 3, or 4 in brats2021"
    )
    outputs.add_argument(
        "--segments", choices=("labels", "regions"), default="labels",
        help="NCR, ED, ET, or the overlapping regions WT, TC, ET (.seg.nrrd only)",
    )  # fmt: skip
    outputs.add_argument(
        "--report", action="append", type=Path, metavar="FILE", help="report with pictures: .html or .png; repeatable"
    )
    outputs.add_argument(
        "--quality", action="append", type=Path, metavar="FILE",
        help="how the volumes were prepared, to check it by: .html, .png or .json; repeatable",
    )  # fmt: skip
    outputs.add_argument(
        "--probabilities", type=Path, metavar="FILE", help="probabilities of WT, TC, ET: .nii.gz, .nrrd"
    )
    outputs.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the prepared volumes, brain mask and transforms there"
    )
    outputs.add_argument("--overwrite", action="store_true", help="replace files that exist")
    batch = parser.add_argument_group("many cases")
    batch.add_argument(
        "--batch", type=Path, metavar="FOLDER_OR_CSV",
        help="a folder of case folders, or a CSV with the columns case,t1,t1gd,t2,flair[,reference,ground_truth]; "
        "OUT is then a folder. Cases that are done already are kept",
    )  # fmt: skip
    batch.add_argument("--format", choices=BATCH_FORMATS, default=None, help="format of a batch (default .seg.nrrd)")
    batch.add_argument("--reports", action="store_true", help="two .html reports for each case: result and quality")
    _add_running(parser)
    _add_accelerator(parser)
    parser.add_argument("--window", type=_window, metavar="N", help="run in windows of N voxels (saves memory)")
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    parser.set_defaults(run=_segment, parser=parser)


def _add_case(parser: argparse.ArgumentParser, which: str) -> None:
    """One case: its sequences, what it is compared with, and what is known of its preparation."""
    inputs = parser.add_argument_group(f"inputs ({which})")
    inputs.add_argument("folder", nargs="?", type=Path, metavar="CASE_FOLDER", help="find the sequences in this folder")
    _add_sequences(inputs)
    inputs.add_argument("--without", default="", metavar="T1,T2", help="sequences of the folder to leave out")
    inputs.add_argument("--by-look", action="store_true", help="where names do not tell, go by the volumes' looks")
    inputs.add_argument("--reference", metavar="T1Gd", help="sequence on whose grid the result lies (default: finest)")
    inputs.add_argument("--ground-truth", type=Path, metavar="FILE", help="compare with this segmentation (Dice)")
    inputs.add_argument("--ground-truth-convention", choices=GROUND_TRUTH_CONVENTIONS, default="auto")
    _add_preparation(parser.add_argument_group("preparation (by default found out; challenge-ready is left alone)"))


def _add_what_if(parser: argparse.ArgumentParser) -> None:
    _add_case(parser, "two or more of the four sequences")
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument(
        "-o", "--output", action="append", type=Path, metavar="FILE",
        help="report with tables and pictures: .html, .png or .json; repeatable",
    )  # fmt: skip
    outputs.add_argument(
        "--uncertainty", type=Path, metavar="FILE",
        help="share of the runs that disagree with all sequences, for WT, TC and ET: .nii.gz, .nrrd",
    )  # fmt: skip
    outputs.add_argument("--overwrite", action="store_true", help="replace files that exist")
    _add_running(parser)
    _add_accelerator(parser)
    parser.add_argument("--window", type=_window, metavar="N", help="run in windows of N voxels (saves memory)")
    parser.set_defaults(run=_what_if, parser=parser)


def _add_preparation(group: argparse._ArgumentGroup) -> None:
    for flag, what in (
        ("registered", "the sequences lie on each other"),
        ("skull-stripped", "the volumes show the brain alone"),
        ("upright", "the head lies as in BraTS"),
    ):
        group.add_argument(f"--{flag}", action="store_true", default=None, help=f"{what}; nothing is done about it")
        group.add_argument(
            f"--not-{flag}", dest=flag.replace("-", "_"), action="store_false", default=None, help="the opposite"
        )
    group.add_argument("--brain-mask", type=Path, metavar="FILE", help="brain mask of the reference, on any grid")
    group.add_argument(
        "--brain-extraction", choices=BRAIN_EXTRACTORS, default="auto",
        help="auto: an installed HD-BET, SynthStrip or deepbet, else our own network",
    )  # fmt: skip
    group.add_argument("--bias-correction", action="store_true", help="N4 bias-field correction of each sequence")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="SOURCE",
        help="a folder of case folders, one case folder, or a CSV with the columns case, ground_truth, and t1, t1gd, "
        "t2, flair or prediction (several: prediction NAME ...)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of all results")
    parser.add_argument(
        "--predictions", action="append", type=Path, metavar="FOLDER",
        help="segmentations to score, CASE.seg.nrrd, CASE.nii.gz ...; repeatable; a case without any is segmented",
    )  # fmt: skip
    parser.add_argument("--ground-truth-convention", choices=GROUND_TRUTH_CONVENTIONS, default="auto")
    parser.add_argument("--prediction-convention", choices=GROUND_TRUTH_CONVENTIONS, default="auto")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes that work on cases at a time")
    parser.add_argument("--reports", action="store_true", help="a page on each case as well, with pictures")
    parser.add_argument("--overwrite", action="store_true", help="do cases again that are done already")
    _add_running(parser)
    _add_accelerator(parser)
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=_evaluate, parser=parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, metavar="FILE", help="another bundle than the shipped one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_info, parser=parser)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    inputs = parser.add_argument_group("inputs (default: a synthetic case of 240 x 240 x 155 voxels)")
    _add_sequences(inputs)
    parser.add_argument("--runs", type=_positive, default=5, metavar="N", help="repetitions; medians are reported")
    parser.add_argument(
        "--growth", action="store_true",
        help="also how cost grows with the volume, the cases of a batch, the subsets and the processes (three "
        "repetitions at most; about ten minutes more on two cores)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="one run at small sizes: tries the command, proves nothing"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write NAME.json, NAME.md and, with --growth, NAME-growth.png there"
    )
    parser.add_argument("--name", default="bench", help="what they are called (default: bench)")
    _add_running(parser)
    parser.set_defaults(run=_bench, parser=parser)


def _add_review(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="SOURCE",
        help="a folder of case folders, a case folder, or a CSV (case, t1, t1gd, t2, flair, ground_truth, prediction)",
    )  # fmt: skip
    parser.add_argument(
        "--predictions", action="append", type=Path, default=[], metavar="FOLDER",
        help="a folder with a segmentation for each case, CASE.seg.nrrd or the like; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--allow", action="append", type=Path, default=[], metavar="FOLDER",
        help="open files in this folder too; by default only those in SOURCE (or the CSV's folder) and --predictions",
    )  # fmt: skip
    parser.add_argument("--verdicts", type=Path, default=Path("verdicts.csv"), metavar="FILE", help="(verdicts.csv)")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER",
        help="write what is segmented here there at once; without it, on request, beside the verdicts",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (this computer); others need a token")
    parser.add_argument("--port", type=_port, default=0, metavar="N", help="default: any that is free")
    parser.add_argument("--token", action="store_true", help="ask for a token on this computer too (several users)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    parser.add_argument("--picture", choices=("jpeg", "png"), default="jpeg", help="png: exact colours, more traffic")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="another bundle than the shipped one")
    parser.set_defaults(run=_review, parser=parser, json=False)


def _add_sequences(group: argparse._ArgumentGroup) -> None:
    for flag, name in SEQUENCE_FLAGS.items():
        group.add_argument(f"--{flag}", type=Path, metavar="F", help=f"{name}: NIfTI, NRRD, MetaImage or DICOM folder")


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="another bundle than the shipped one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_accelerator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accelerator", choices=ACCELERATORS, default=NONE,
        help="run the network on the CPU by OpenVINO, which takes seconds to start: for many runs (default: none)",
    )  # fmt: skip


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not a port (0 to 65535)")
    return value


def _window(text: str) -> int:
    value = int(text)
    if value < 32 or value % 32:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of 32 (32, 64, 96 ...)")
    return value


# --- commands --------------------------------------------------------------------------------------------------------


def _named(arguments: argparse.Namespace) -> dict[str, Path]:
    given = {name: getattr(arguments, flag) for flag, name in SEQUENCE_FLAGS.items()}
    return {name: path for name, path in given.items() if path is not None}


def _segment(arguments: argparse.Namespace) -> int:
    return _segment_many(arguments) if arguments.batch is not None else _segment_one(arguments)


def _segment_one(arguments: argparse.Namespace) -> int:
    if arguments.format or arguments.reports:
        arguments.parser.error("--format and --reports go with --batch")
    from .case_inputs import find_inputs
    from .segment_command import CaseRequest, print_result, segment_case

    inputs = find_inputs(
        arguments.folder, _named(arguments), _without(arguments), "named on the command line", arguments.by_look
    )
    request = CaseRequest(
        title=arguments.folder.resolve().name if arguments.folder else arguments.output[0].name.partition(".")[0],
        inputs=inputs,
        outputs=tuple(arguments.output),
        settings=_settings(arguments),
        reference=_reference(arguments),
        reports=tuple(arguments.report or ()),
        quality=tuple(arguments.quality or ()),
        probabilities=arguments.probabilities,
        ground_truth=arguments.ground_truth,
        brain_mask=arguments.brain_mask,
        keep=arguments.keep,
    )
    with progress_bar(not (arguments.quiet or arguments.json)) as progress:
        result = segment_case(request, lambda: _segmenter(arguments), progress)
    if arguments.json:
        _print_json(result.to_dict())
    elif arguments.quiet:
        for notice in result.notices:
            warn(notice)
    else:
        print_result(result)
    return 0


def _segment_many(arguments: argparse.Namespace) -> int:
    single = {
        "CASE_FOLDER": arguments.folder, "--report": arguments.report, "--probabilities": arguments.probabilities,
        "--ground-truth": arguments.ground_truth, "--brain-mask": arguments.brain_mask, "--quality": arguments.quality,
        **{f"--{flag}": getattr(arguments, flag) for flag in SEQUENCE_FLAGS},
    }  # fmt: skip
    for name, value in single.items():
        if value is not None:
            arguments.parser.error(f"{name} does not go with --batch")
    if len(arguments.output) > 1:
        arguments.parser.error("--batch takes one -o, the folder of the results")
    if arguments.segments == "regions" and arguments.format not in (None, ".seg.nrrd"):
        arguments.parser.error("--segments regions goes with --format .seg.nrrd only")
    from .batch import BatchRequest, batch_error, print_batch, run_batch

    request = BatchRequest(
        cases=arguments.batch,
        output=arguments.output[0].expanduser(),
        settings=_settings(arguments),
        ending=arguments.format or ".seg.nrrd",
        reports=arguments.reports,
        reference=_reference(arguments),
        without=_without(arguments),
        keep=arguments.keep,
        by_look=arguments.by_look,
    )
    with progress_bar(not (arguments.quiet or arguments.json)) as progress:
        result = run_batch(request, lambda: _segmenter(arguments), progress)
    error = batch_error(result)
    if arguments.json:
        _print_json({**result.to_dict(), **(error_json(error, error.exit_code) if error else {})})
    elif not arguments.quiet:
        print_batch(result)
    if error is not None:
        print_error(error)
        return error.exit_code
    return 0


def _what_if(arguments: argparse.Namespace) -> int:
    from .case_inputs import find_inputs
    from .review.what_if_command import WhatIfRequest, print_what_if, run_what_if

    inputs = find_inputs(
        arguments.folder, _named(arguments), _without(arguments), "named on the command line", arguments.by_look
    )
    first = next(iter(inputs.sources.values()), Path("case"))
    request = WhatIfRequest(
        title=arguments.folder.resolve().name if arguments.folder else first.name.partition(".")[0],
        inputs=inputs,
        outputs=tuple(arguments.output or ()),
        uncertainty=arguments.uncertainty,
        ground_truth=arguments.ground_truth,
        convention=arguments.ground_truth_convention,
        reference=_reference(arguments),
        brain_mask=arguments.brain_mask,
        wishes=_wishes(arguments),
        overwrite=arguments.overwrite,
    )
    with progress_bar(not arguments.json) as progress:
        outcome = run_what_if(request, lambda: _segmenter(arguments), progress)
    if arguments.json:
        _print_json(outcome.to_dict())
    else:
        print_what_if(outcome)
    return 0


def _segmenter(arguments: argparse.Namespace) -> Segmenter:
    from .pipeline import Segmenter

    return Segmenter(arguments.weights, arguments.device, arguments.window, arguments.accelerator)


def _wishes(arguments: argparse.Namespace) -> Wishes:
    from .preparation_record import Wishes

    return Wishes(
        registered=arguments.registered,
        skull_stripped=arguments.skull_stripped,
        upright=arguments.upright,
        extractor=arguments.brain_extraction,
        bias_correction=arguments.bias_correction,
    )


def _settings(arguments: argparse.Namespace) -> Settings:
    from .segment_command import Settings

    return Settings(
        label_convention=arguments.label_convention,
        segments=arguments.segments,
        ground_truth_convention=arguments.ground_truth_convention,
        overwrite=arguments.overwrite,
        wishes=_wishes(arguments),
    )


def _without(arguments: argparse.Namespace) -> tuple[str, ...]:
    from .modalities import parse_subset

    return parse_subset(arguments.without) if arguments.without else ()


def _reference(arguments: argparse.Namespace) -> Optional[str]:
    from .modalities import canonical_modality

    name = canonical_modality(arguments.reference) if arguments.reference else None
    if arguments.reference and name is None:
        raise RoleError(f"unknown reference {arguments.reference!r}; use T1, T1Gd, T2 or FLAIR")
    return name


def _evaluate(arguments: argparse.Namespace) -> int:
    from .review.evaluate_command import run

    return run(arguments)


def _info(arguments: argparse.Namespace) -> int:
    from .info_command import bundle_info, print_info

    info = bundle_info(arguments.weights)
    if arguments.json:
        _print_json(info)
    else:
        print_info(info)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from .bench.command import BenchRequest, checked_folder, print_bench, run_bench, write_bench

    if Path(arguments.name).name != arguments.name:
        arguments.parser.error("--name is a name; the folder goes with --out")
    out = None if arguments.out is None else checked_folder(arguments.out)
    request = BenchRequest(
        _named(arguments), arguments.weights, arguments.device, arguments.runs, arguments.quick, arguments.growth
    )
    with progress_bar(not arguments.json) as progress:
        measured = run_bench(request, progress)
    written = [] if out is None else write_bench(measured, out, arguments.name)
    if arguments.json:
        _print_json(measured)
    else:
        print_bench(measured)
        for path in written:
            print_line(f"written: {path}")
    return 0


def _review(arguments: argparse.Namespace) -> int:
    from .review_app.command import ReviewRequest, run_review

    run_review(
        ReviewRequest(
            arguments.source, arguments.predictions, arguments.allow, arguments.verdicts, arguments.results,
            arguments.host, arguments.port, arguments.token, not arguments.no_browser, arguments.device,
            arguments.weights, arguments.picture,
        )
    )  # fmt: skip
    return 0


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


# --- main ------------------------------------------------------------------------------------------------------------


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run `mstkd` with `argv` (default: the process's arguments) and give its exit code; errors print one line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a path that the console's encoding lacks must not end the run
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        if not os.environ.get(DEBUG_VARIABLE):  # other libraries' advice to programmers, several lines each
            warnings.simplefilter("ignore")
        return _run(argv)


def _run(argv: Optional[Sequence[str]]) -> int:
    as_json = False
    keep_freed_memory()
    try:
        arguments = build_parser().parse_args(argv)
        as_json = arguments.json
        return int(arguments.run(arguments))
    except SystemExit as request:  # argparse: --help, --version, wrong arguments
        return request.code if isinstance(request.code, int) else 0
    except KeyboardInterrupt:
        return _failed(Cancelled("cancelled; nothing was written"), Cancelled.exit_code, as_json)
    except MSTKDError as error:
        return _failed(error, error.exit_code, as_json)
    except BrokenPipeError:  # the reader (`| head`) has gone; the interpreter's own flush would complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # whatever it is, the user gets one line and a way to report it
        hint = "" if os.environ.get(DEBUG_VARIABLE) else f"; set {DEBUG_VARIABLE}=1 and run again for the traceback"
        described = RuntimeError(f"this is a bug in mstkd: {type(error).__name__}: {error}{hint}")
        return _failed(described, 1, as_json)


def _failed(error: BaseException, exit_code: int, as_json: bool) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    if as_json:
        _print_json(error_json(error, exit_code))
    print_error(error)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
