"""What a reader has open: cases, predictions, what was measured, verdicts. No server and no picture; testable alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional

import numpy as np
import SimpleITK as sitk

from ..errors import InputError, MSTKDError, OutputError
from ..regions import REGION_KEYS
from ..review.comparison import Review, review
from ..review.label_maps import LabelMap, read_label_map
from ..review.places import Place, worst_places
from ..review.verdicts import Verdict, append_verdict, latest, one_line, read_verdicts
from ..review.worklist import WorkItem
from ..segmentation_io import write_segmentation
from ..volumes import Volume, read_volume
from .access import require_openable, within


@dataclass(frozen=True)
class Made:
    """A prediction that was made here; `path` once it is written."""

    label_map: LabelMap
    provenance: Mapping[str, str]
    path: Optional[Path] = None


@dataclass
class OpenCase:
    """The case that is shown: its volumes by sequence, ground truth and predictions in our labels, by name.

    reviews: what has been measured so far, by prediction. notices: what could not be read, and doubts.
    """

    index: int
    item: WorkItem
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    truth: Optional[LabelMap] = None
    predictions: dict[str, LabelMap] = field(default_factory=dict)
    reviews: dict[str, Review] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the case."""
        return self.item.name


class ReviewSession:
    """One reader's work on a worklist.

    roots: folders that may be read (`access.roots`); verdicts: the CSV file; results: where predictions made here are
    written. Raises OutputError where `verdicts` is another program's table, InputError where it cannot be read.
    """

    def __init__(self, items: Sequence[WorkItem], roots: Sequence[Path], verdicts: Path, results: Path) -> None:
        self.items = [within(item, roots) for item in items]
        self.results = results
        self._roots = tuple(roots)
        self._file = verdicts
        self._given = latest(read_verdicts(verdicts))
        self._made: dict[str, dict[str, Made]] = {}
        self._reading = threading.Lock()

    # --- cases ---

    def open(self, index: int) -> OpenCase:
        """Read a case; what of it cannot be read becomes a notice. Raises InputError for an index there is not."""
        if not 0 <= index < len(self.items):
            raise InputError(f"there is no case {index + 1}; the worklist has {len(self.items)}")
        item = self.items[index]
        case = OpenCase(index, item, notices=[item.problem] if item.problem else [])
        with self._reading:
            volumes: dict[str, Volume] = {}
            for name, path in item.images.items():
                try:
                    volumes[name] = read_volume(require_openable(path, self._roots))
                except MSTKDError as error:
                    case.notices.append(str(error))
            case.volumes = volumes
            if item.ground_truth is not None:
                case.truth = self._read(item.ground_truth, case)
            for name, path in item.predictions.items():
                found = self._read(path, case)
                if found is not None:
                    case.predictions[name] = found
        case.predictions.update({name: made.label_map for name, made in self.made(item.name).items()})
        return case

    def _read(self, path: Path, case: OpenCase) -> Optional[LabelMap]:
        try:
            return read_label_map(require_openable(path, self._roots))
        except MSTKDError as error:
            case.notices.append(str(error))
            return None

    # --- predictions ---

    def made(self, case: str) -> Mapping[str, Made]:
        """The predictions of a case that were made here, by name."""
        return self._made.get(case, {})

    def add(self, index: int, name: str, labels: np.ndarray, image: sitk.Image, provenance: Mapping[str, str]) -> str:
        """Keep a prediction (D, H, W) on the grid of `image`; gives its name, made different from all of the case."""
        item = self.items[index]
        taken = {*item.predictions, *self.made(item.name)}
        free = next(one for n in range(1, len(taken) + 2) if (one := name if n == 1 else f"{name} ({n})") not in taken)
        label_map = LabelMap(labels, image, f"{item.name} {free}", REGION_KEYS, "segmented here")
        self._made.setdefault(item.name, {})[free] = Made(label_map, dict(provenance))
        return free

    def save(self, case: str, name: str) -> Path:
        """Write a prediction that was made here to RESULTS/NAME/CASE.seg.nrrd, where `--predictions` finds it again.

        Never over a file: where one is there, the folder gets a number. Raises OutputError where it cannot be written,
        InputError where there is no such prediction.
        """
        made = self.made(case).get(name)
        if made is None:
            raise InputError(f"{name}: no prediction of {case} that was made here")
        if made.path is not None:
            return made.path
        for number in range(1, 1000):
            folder = self.results / (name if number == 1 else f"{name} - {number}")
            path = folder / f"{case}.seg.nrrd"
            if not path.exists():
                metadata = {key.replace(" ", "_"): text for key, text in made.provenance.items()}
                write_segmentation(path, made.label_map.labels, made.label_map.image, metadata=metadata)
                self._made[case][name] = replace(made, path=path)
                return path
        raise OutputError(f"{self.results}: holds a thousand results of {case} already; give another with --results")

    def measure(self, case: OpenCase, name: str) -> Review:
        """Figures and worst places of one prediction against the ground truth; slow the first time, and kept.

        Without a ground truth: volumes, and the agreement of all predictions. Raises GeometryError where the two do not
        lie on each other.
        """
        if name not in case.reviews:
            if case.truth is not None:
                case.reviews[name] = review({name: case.predictions[name]}, case.truth)
            else:
                others = {other: one for other, one in case.predictions.items() if other != name}
                case.reviews[name] = review({name: case.predictions[name], **others})
        return case.reviews[name]

    def places(self, case: OpenCase, name: str, order: str) -> list[Place]:
        """The worst places, "volume" or "distance" first; none without a ground truth."""
        found = self.measure(case, name)
        if found.ground_truth is None:
            return []
        one = found.predictions[0]
        if order == "volume":
            return list(one.places)
        known = [score.region for score in one.scores]
        return worst_places(one.labels, found.ground_truth, found.image, order, known)

    # --- verdicts ---

    def knows(self, case: str, name: str) -> bool:
        """Whether there is a prediction `name` of a case of this name."""
        return any(name in item.predictions or name in self.made(case) for item in self.items if item.name == case)

    def verdict(self, case: str, name: str) -> Optional[Verdict]:
        """The last one on a prediction of a case."""
        return self._given.get((one_line(case), one_line(name)))

    def verdicts_of(self, case: str) -> list[Verdict]:
        """The last one on each prediction of a case."""
        return [one for (of, _name), one in self._given.items() if of == one_line(case)]

    def judge(self, verdict: Verdict) -> Verdict:
        """Append a verdict to the file and wait until the disk has it. Raises OutputError where it does not take it."""
        written = append_verdict(self._file, verdict)
        self._given[(written.case, written.prediction)] = written
        return written

    def neighbour(self, index: int, step: int) -> int:
        """The case before or after; the same one at the end of the worklist."""
        return min(max(index + step, 0), len(self.items) - 1)

    def next_open(self, index: int) -> Optional[int]:
        """The next case, after the last from the first on, without any verdict; None where all have one."""
        order = [*range(index + 1, len(self.items)), *range(index + 1)]
        return next((n for n in order if not self.verdicts_of(self.items[n].name)), None)
