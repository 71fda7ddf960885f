"""`mstkd what-if`: one patient, all subsets of what there is, in a table, a report and a map of what is uncertain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from ..case_inputs import CaseInputs
from ..output_set import refuse_collisions, staged_outputs
from ..pipeline import PreparedCase, Progress, Segmenter, read_case
from ..preparation_record import Wishes
from ..regions import REGION_KEYS
from ..segmentation_io import PROBABILITY_ENDINGS, check_output, write_probabilities
from ..terminal import RESEARCH_ONLY, print_line, print_table, region_text
from ..volumes import read_volume
from .comparison import Review, review
from .label_maps import AUTO, LabelMap, on_grid, read_label_map
from .report import REVIEW_ENDINGS, write_review_report
from .report_text import without_folders
from .what_if import WhatIf, what_if

FULL = "all sequences"
# Share of the progress bar for reading and preparing.
READ_SHARE = 0.1


@dataclass(frozen=True)
class WhatIfRequest:
    """One case, its ground truth if there is one, and the files to write. uncertainty: shares of runs that disagree."""

    title: str
    inputs: CaseInputs
    outputs: tuple[Path, ...] = ()
    uncertainty: Optional[Path] = None
    ground_truth: Optional[Path] = None
    convention: str = AUTO
    reference: Optional[str] = None
    brain_mask: Optional[Path] = None
    wishes: Wishes = field(default_factory=Wishes)
    overwrite: bool = False


@dataclass(frozen=True)
class WhatIfOutcome:
    """What was found, and what to show of it."""

    request: WhatIfRequest
    found: WhatIf
    compared: Review
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The object that --json prints."""
        files = [*self.request.outputs, *([self.request.uncertainty] if self.request.uncertainty else [])]
        return {
            "case": self.request.title,
            **self.found.to_dict(),
            "notices": list(self.notices),
            "outputs": [str(path) for path in files],
            "provenance": dict(self.found.full.provenance),
        }


def run_what_if(
    request: WhatIfRequest, load_segmenter: Callable[[], Segmenter], progress: Optional[Progress] = None
) -> WhatIfOutcome:
    """Run all subsets and write the files that were asked for, all of them or none.

    Outputs are checked before anything is read. Raises the errors of `errors`.
    """
    request = _checked(request, None)
    segmenter = load_segmenter()
    wishes = request.wishes
    if request.brain_mask is not None:
        mask = read_volume(request.brain_mask, is_label=True)
        wishes = wishes.with_mask(mask.image, mask.source)
    case = read_case(
        request.inputs.sources, request.reference, _part(progress, 0.0, READ_SHARE), None, wishes,
        lambda: segmenter.device.name,
    )  # fmt: skip
    _checked(request, case)
    truth, labels = _ground_truth(request, case)
    known = REGION_KEYS if truth is None else truth.known
    found = what_if(segmenter, case, labels, known, progress=_part(progress, READ_SHARE, 1.0))
    full = LabelMap(found.full.labels, case.reference_image, FULL, REGION_KEYS, "what the network found")
    compared = review({FULL: full}, truth, case.reference_image)
    notices = tuple(dict.fromkeys([*found.notices, *compared.notices]))
    outcome = WhatIfOutcome(request, found, compared, notices)
    _write(outcome, case)
    return outcome


def _part(progress: Optional[Progress], start: float, end: float) -> Optional[Progress]:
    if progress is None:
        return None
    return lambda share, text: progress(start + (end - start) * share, text)


def _checked(request: WhatIfRequest, case: Optional[PreparedCase]) -> WhatIfRequest:
    """The request with usable outputs; given the case, their geometry is checked as well."""
    outputs = tuple(check_output(path, request.overwrite, endings=REVIEW_ENDINGS) for path in request.outputs)
    uncertainty = request.uncertainty
    if uncertainty is not None:
        image = None if case is None else case.reference_image
        uncertainty = check_output(uncertainty, request.overwrite, endings=PROBABILITY_ENDINGS, reference_image=image)
    request = replace(request, outputs=outputs, uncertainty=uncertainty)
    refuse_collisions(_files(request), _inputs(request))
    return request


def _inputs(request: WhatIfRequest) -> list[Path]:
    others = (request.ground_truth, request.brain_mask)
    return [*request.inputs.sources.values(), *(path for path in others if path is not None)]


def _files(request: WhatIfRequest) -> list[Path]:
    return [*request.outputs, *([request.uncertainty] if request.uncertainty is not None else [])]


def _ground_truth(request: WhatIfRequest, case: PreparedCase) -> tuple[Optional[LabelMap], Optional[np.ndarray]]:
    if request.ground_truth is None:
        return None, None
    truth = read_label_map(request.ground_truth, request.convention)
    return truth, on_grid(truth, case.reference_image, case.reference)[0]


def _write(outcome: WhatIfOutcome, case: PreparedCase) -> None:
    request, found = outcome.request, outcome.found
    sources = _inputs(request)
    provenance = {key: without_folders(text, sources) for key, text in found.full.provenance.items()}
    with staged_outputs(_files(request), request.overwrite) as temporary:
        for path in request.outputs:
            write_review_report(
                temporary[path],
                outcome.compared,
                case.on_reference_grid(),
                title=request.title,
                provenance=provenance,
                what_if=found,
                files=sources,
            )
        if request.uncertainty is not None:
            maps = np.stack([found.maps[key] for key in REGION_KEYS])
            write_probabilities(
                temporary[request.uncertainty],
                maps,
                case.reference_image,
                metadata={key.replace(" ", "_"): text for key, text in provenance.items()},
            )


def print_what_if(outcome: WhatIfOutcome) -> None:
    """The tables for a person at a terminal."""
    found, known = outcome.found, [key for key in REGION_KEYS if key in outcome.found.results[-1].dice]
    against = "the ground truth" if found.against == "ground truth" else "what all sequences together give"
    print_line(f"Dice of WT, TC, ET against {against}, and volumes in ml")
    print_table(
        ("sequences", *known, *(f"{key} ml" for key in REGION_KEYS)),
        [
            (one.name, *(region_text(one.dice, key) for key in known),
             *(f"{one.volumes_ml[key]:.1f}" for key in REGION_KEYS))
            for one in found.results
        ],
    )  # fmt: skip
    carried = {key: found.carried_by(key) for key in known}
    if any(carried.values()):
        print_line("Dice that is lost when one sequence is missing")
        print_table(
            ("left out", *known),
            [(name, *(f"{carried[key][name]:+.3f}" for key in known)) for name in found.results[-1].subset],
        )
    for key, change in found.changes.items():
        shares = {"mirrored": change.flips, "sequences left out": change.subsets}
        told = [f"{100 * share:.0f} % ({what})" for what, share in shares.items() if share is not None]
        if told:
            print_line(f"{key}: of its volume changes in the mean {', '.join(told)}")
    for notice in outcome.notices:
        print_line(f"note: {notice}", style="yellow")
    for path in _files(outcome.request):
        print_line(f"written: {path}")
    print_line(RESEARCH_ONLY)
