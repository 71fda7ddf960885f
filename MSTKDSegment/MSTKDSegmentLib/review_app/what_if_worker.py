"""All subsets of a patient's sequences in a process of its own, as `worker` segments: the last argument is the folder.

`python -m MSTKDSegmentLib.review_app.what_if_worker TRUTH FOLDER`; TRUTH: the ground truth's file, "" for none. What it
says and leaves is what `worker` does for the full set, and the result has one key more, `what_if`: `WhatIf.to_dict()`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..diameters import measure
from ..handover import read_request, write_result
from ..pipeline import Segmenter, read_case
from ..regions import REGION_KEYS
from ..review.label_maps import on_grid, read_label_map
from ..review.what_if import what_if
from ..worker import Tell, require_torch, run_child

READ_SHARE = 0.1


def explore(folder: Path, tell: Tell) -> None:
    """Run what `folder` asks for with all subsets of its sequences; `tell` as in `worker`."""
    request = read_request(folder)
    require_torch()
    segmenter = Segmenter(request.weights, request.device)
    device = segmenter.device
    tell("device", name=device.name, reason=device.reason, gpu_expected=device.gpu_expected)
    case = read_case(
        request.volumes,
        request.reference,
        progress=lambda share, text: tell("progress", fraction=READ_SHARE * share, text=text),
        wishes=request.wishes,
        device=lambda: device.name,
    )
    truth, known = None, REGION_KEYS
    if sys.argv[1]:
        label_map = read_label_map(sys.argv[1])
        known = label_map.known
        truth, _lost = on_grid(label_map, case.reference_image)
    found = what_if(
        segmenter,
        case,
        truth,
        known,
        progress=lambda share, text: tell("progress", fraction=READ_SHARE + (1 - READ_SHARE) * share, text=text),
    )
    write_result(folder, found.full)
    tell(
        "result",
        reference=case.reference,
        measurements=measure(found.full.labels, case.reference_image),
        notices=list(found.notices),
        provenance=dict(found.full.provenance),
        seconds=dict(found.full.seconds),
        record=case.record.to_dict(),
        prepared=None,
        what_if=found.to_dict(),
    )


if __name__ == "__main__":
    code = run_child(Path(sys.argv[2]), explore)
    sys.stderr.flush()
    os._exit(code)  # not through the interpreter's end, which would wait for the thread that reads standard input
