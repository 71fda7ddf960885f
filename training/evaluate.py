"""Evaluation over the 15 subsets through the product's own pipeline: native space, whole volume, three regions.

Scores follow the empty-mask policy of `MSTKDSegmentLib.metrics`; no case is ever dropped from a mean. One process, a
pool of them (`processes`) or the ranks of torchrun (`world`) give the same rows, but for the seconds.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.accelerator import NONE, AcceleratedNetwork, choose_accelerated
from MSTKDSegmentLib.decision import NO_DECISION, Decision
from MSTKDSegmentLib.devices import choose_device
from MSTKDSegmentLib.geometry import array_to_image, labels_to_native
from MSTKDSegmentLib.inference import predict
from MSTKDSegmentLib.metrics import RegionScore, region_scores
from MSTKDSegmentLib.modalities import SUBSETS, availability, subset_name
from MSTKDSegmentLib.pipeline import PreparedCase, read_case
from MSTKDSegmentLib.preparation_record import READY
from MSTKDSegmentLib.regions import NO_CLEAN_UP, CleanUp, remove_small_components, voxel_volume_ml
from MSTKDSegmentLib.segmentation_io import atomic_output, check_written
from MSTKDSegmentLib.weights import load_network, read_bundle

from training.cases import LabelledCase
from training.files import write_text
from training.labels import read_labels
from training.parallel import each
from training.scores import REGIONS, Row, merged, read_rows, write_rows
from training.summary import summarise

if TYPE_CHECKING:
    from torch import nn

    from training.distributed import World

CLEAN_UPS: Mapping[str, CleanUp] = {
    "none": NO_CLEAN_UP,
    "small": CleanUp({"WT": 0.1}),
    "medium": CleanUp({"WT": 0.5, "TC": 0.05}, min_total_et_ml=0.1),
    "large": CleanUp({"WT": 1.0, "TC": 0.2}, min_total_et_ml=0.3),
}
"""The rules that validation chooses between, gentlest first; the winner goes into the card."""

LABELS_ENDING = ".nii.gz"
TABLE, SUMMARY, DECISION, PARTS = "per_case.csv", "summary.json", "thresholds.json", "per_case.rank*.csv"
Told = Callable[[str], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is evaluated: `network(x (N, 4, D, H, W), availability (N, 4))` -> logits, on `device` (a torch name).

    `sha256` is that of the weights: a bundle's card names it, a checkpoint's is that of its file; an accelerator is
    named behind it. `source`: the file.
    `decision`: from which probabilities on regions are drawn, as a bundle's card has it.
    """

    name: str
    network: nn.Module | AcceleratedNetwork
    sha256: str
    device: str
    source: str
    decision: Decision = NO_DECISION

    @classmethod
    def from_bundle(cls, path: Path | None = None, device: str = "auto", accelerator: str = NONE) -> Candidate:
        """The network of a bundle (None: the shipped one). Raises WeightsError, DeviceError."""
        bundle = read_bundle(path)
        chosen = choose_accelerated(accelerator, device).name
        name, network, digest = str(bundle.card["name"]), load_network(bundle), bundle.sha256
        decision = Decision.from_dict(bundle.card.get("decision", {}))
        if accelerator == NONE:
            return cls(name, network, digest, chosen, bundle.source, decision)
        # Its scores are not to be mixed with torch's, nor to go into a card.
        return cls(name, AcceleratedNetwork(network), f"{digest} {accelerator}", chosen, bundle.source, decision)

    @classmethod
    def from_checkpoint(cls, path: Path, device: str = "auto") -> Candidate:
        """The averaged network of a training run's checkpoint. Raises WeightsError, DeviceError."""
        from training.files import file_sha256
        from training.networks import network_of, read_checkpoint

        network = network_of(read_checkpoint(path))
        name = path.resolve().parent.name
        return cls(name, network, file_sha256(path), choose_device(device).name, str(path))

    @property
    def window(self) -> int | None:
        """The only input side that the network takes (UNETR's positions belong to one size); None: any."""
        return getattr(self.network, "window", None)


def with_subset(case: PreparedCase, subset: tuple[str, ...]) -> PreparedCase:
    """The prepared case as if only the sequences of `subset` were there: other channels zero, mask 0."""
    mask = availability(subset)
    return replace(
        case,
        volumes={name: volume for name, volume in case.volumes.items() if name in subset},
        reference=case.reference if case.reference in subset else subset[0],
        image=case.image * mask[:, None, None, None],
        availability=mask,
    )


def evaluate_case(
    candidate: Candidate,
    labelled: LabelledCase,
    clean_ups: Mapping[str, CleanUp],
    subsets: Sequence[tuple[str, ...]] = SUBSETS,
    labels_out: Path | None = None,
) -> list[Row]:
    """Scores of one patient for every subset and clean-up, on the grid of the reference segmentation.

    `labels_out`: folder that gets `<case>/<subset>.nii.gz`, the label maps after the first clean-up.
    """
    prepared = read_case(labelled.sources(), wishes=READY)
    truth = read_labels(labelled)
    reference = sitk.GetArrayFromImage(truth)
    voxel_ml = voxel_volume_ml(truth.GetSpacing(), truth.GetDirection())
    rows: list[Row] = []
    for subset in subsets:
        native, seconds = _native_labels(candidate, with_subset(prepared, subset), truth)
        scored: list[tuple[np.ndarray, list[RegionScore]]] = []
        for name, clean_up in clean_ups.items():
            labels = remove_small_components(native, clean_up, voxel_ml)
            # Most clean-ups change nothing in most cases, and surface distances cost more than comparing.
            scores = next((known for same, known in scored if np.array_equal(same, labels)), None)
            if scores is None:
                scores = region_scores(labels, reference, truth.GetSpacing()[::-1])
                scored.append((labels, scores))
            rows += [
                Row(
                    case=labelled.name,
                    patient=labelled.patient,
                    subset=subset_name(subset),
                    seconds=round(seconds, 3),
                    checkpoint_sha256=candidate.sha256,
                    clean_up=name,
                    **vars(score),
                )
                for score in scores
            ]
        if labels_out is not None:
            _write_labels(_labels_path(labels_out, labelled.name, subset), scored[0][0], truth)
    return rows


def _native_labels(candidate: Candidate, case: PreparedCase, truth: sitk.Image) -> tuple[np.ndarray, float]:
    """Labels on the grid of `truth`, and the seconds that the network took."""
    start = time.perf_counter()
    prediction = predict(
        candidate.network,  # type: ignore[arg-type]  # anything that is called like MSTKDNet
        case.image,
        case.availability,
        device=candidate.device,
        window=candidate.window,
    )
    seconds = time.perf_counter() - start
    for notice in prediction.notices:
        _log.warning("%s: %s", next(iter(case.volumes.values())).source, notice)
    name = subset_name(case.subset)
    if candidate.decision.doubts(prediction.probabilities, name):
        return np.zeros(truth.GetSize()[::-1], np.uint8), seconds
    thresholds = candidate.decision.thresholds_of(name)
    return labels_to_native(prediction.probabilities, case.grid, truth, thresholds=thresholds), seconds


def _labels_path(folder: Path, case: str, subset: tuple[str, ...]) -> Path:
    return folder / case / f"{subset_name(subset)}{LABELS_ENDING}"


def _write_labels(path: Path, labels: np.ndarray, grid: sitk.Image) -> None:
    image = array_to_image(labels, grid)
    with atomic_output(path, overwrite=True, ending=LABELS_ENDING) as temporary:
        sitk.WriteImage(image, str(temporary))
        check_written(temporary, image, path)


def evaluate(
    candidate: Candidate,
    cases: Sequence[LabelledCase],
    out: Path,
    split: str,
    clean_ups: Mapping[str, CleanUp] | None = None,
    *,
    subsets: Sequence[tuple[str, ...]] = SUBSETS,
    told: Told = print,
    processes: int = 1,
    world: World | None = None,
    paper_legacy: bool = False,
    labels_out: Path | None = None,
) -> Path:
    """Evaluate `cases`; writes `<out>/per_case.csv` after each of them and `<out>/summary.json` (returned) at the end.

    A case that is already there in full is not run again; the summary is of `cases` and `subsets` alone. With a `world`
    of several ranks each takes every size-th case into a file of its own, and rank 0 brings them together.
    `paper_legacy` adds the flattering HD95 of the published code to the summary, beside the right one.

    Raises ValueError when there is no case, or when `out` holds scores of other weights or of another version.
    """
    if not cases:
        raise ValueError(f"split {split!r} has no cases to evaluate")
    out.mkdir(parents=True, exist_ok=True)
    rules = clean_ups or {"none": NO_CLEAN_UP}
    rank, size = (world.rank, world.size) if world else (0, 1)
    wait = _meeting_point(size)
    names = [case.name for case in cases]
    known = _known_rows(out, candidate, names)
    _require_same_decision(out, candidate, bool(known), rank)
    wanted = {(subset_name(s), region, rule) for s in subsets for region in REGIONS for rule in rules}
    missing = [case for case in cases[rank::size] if not _is_done(case.name, known, wanted, subsets, labels_out)]
    place = out / (TABLE if size == 1 else PARTS.replace("*", str(rank)))
    rows = known if size == 1 else read_rows(place)
    work = partial(evaluate_case, candidate, clean_ups=rules, subsets=subsets, labels_out=labels_out)
    if processes > 1:
        work = partial(_on_threads, max((os.cpu_count() or 1) // processes, 1), work)
    for fresh in each(work, missing, processes):
        # With what is there now: a second evaluation in the same folder must not lose its cases to this one.
        rows = merged([rows, read_rows(place), fresh], names)
        write_rows(place, rows)
        told(_line(fresh))
    wait()
    path = out / SUMMARY
    if rank == 0:
        rows = _gather(out, candidate, names)
        chosen = [row for row in rows if row.case in set(names) and (row.subset, row.region, row.clean_up) in wanted]
        summary = {**summarise(chosen, split, paper_legacy), "decision": candidate.decision.to_dict()}
        write_text(path, json.dumps(summary, indent=1))
    wait()
    return path


def _known_rows(out: Path, candidate: Candidate, names: Sequence[str]) -> list[Row]:
    """Everything that earlier calls left in `out`, files of single ranks included."""
    files = [out / TABLE, *sorted(out.glob(PARTS))]
    rows = merged(map(read_rows, files), names)
    others = sorted({row.checkpoint_sha256 for row in rows} - {candidate.sha256})
    if others:
        raise ValueError(
            f"{out / TABLE}: scores of other weights (sha256 {others[0][:12]}..., now {candidate.sha256[:12]}...); "
            "give another folder, or move these away"
        )
    return rows


def _require_same_decision(out: Path, candidate: Candidate, has_rows: bool, rank: int) -> None:
    """Scores in `out` must have been made with the thresholds that `candidate` has now; remembers them."""
    place, mine = out / DECISION, candidate.decision
    known = Decision.from_dict(json.loads(place.read_text(encoding="utf-8"))) if place.is_file() else NO_DECISION
    if has_rows and known != mine:
        raise ValueError(f"{out / TABLE}: scores with other thresholds; give another folder, or move these away")
    if rank == 0 and known != mine:
        write_text(place, json.dumps(mine.to_dict(), indent=1) + "\n")


def _is_done(
    name: str,
    rows: Iterable[Row],
    wanted: set[tuple[str, str, str]],
    subsets: Sequence[tuple[str, ...]],
    labels_out: Path | None,
) -> bool:
    there = {(row.subset, row.region, row.clean_up) for row in rows if row.case == name}
    saved = labels_out is None or all(_labels_path(labels_out, name, subset).exists() for subset in subsets)
    return wanted <= there and saved


def _gather(out: Path, candidate: Candidate, names: Sequence[str]) -> list[Row]:
    """One table of everything; the ranks' own files go only once it is written."""
    parts = sorted(out.glob(PARTS))
    rows = _known_rows(out, candidate, names)
    write_rows(out / TABLE, rows)
    for part in parts:
        part.unlink()
    return rows


def _meeting_point(size: int) -> Callable[[], object]:
    """A function that returns once all ranks have called it."""
    if size == 1:
        return lambda: None
    from datetime import timedelta

    from torch import distributed

    # A group of its own: the default one gives up after minutes, and ranks may end hours apart.
    group = distributed.new_group(backend="gloo", timeout=timedelta(days=7))
    return partial(distributed.barrier, group)


def _on_threads(count: int, work: Callable[[LabelledCase], list[Row]], labelled: LabelledCase) -> list[Row]:
    """In a process of a pool: the cores are shared out, or every process would start a thread for each."""
    import torch

    torch.set_num_threads(count)
    return work(labelled)


def _line(rows: Sequence[Row]) -> str:
    """What is told of a case: its richest subset without clean-up, if that was scored."""
    richest = max(rows, key=lambda row: row.subset.count("+")).subset
    shown = [row for row in rows if (row.subset, row.clean_up) == (richest, rows[0].clean_up)]
    return f"{rows[0].case} ({richest}): " + ", ".join(f"{r.region} {r.dice:.3f} ({r.status})" for r in shown)
