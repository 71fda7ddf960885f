"""Splits by patient: seeded, independent of the order of files, never one patient in two parts."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MSTKDSegmentLib.errors import OutputError
from MSTKDSegmentLib.patients import patient_of

from training.cases import LabelledCase
from training.checks import shared_voxels
from training.files import write_text

FORMAT = 1


@dataclass(frozen=True)
class Splits:
    """`parts`: case names by part ("train", "val", "test"; or "fold_0/train", "fold_0/val" ... and "test").

    `patients` and `sha256` are by case name; patients whose cases share voxels have been made one.
    """

    parts: Mapping[str, Sequence[str]]
    seed: int
    fractions: Mapping[str, float]
    folds: int | None = None
    patients: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def make_splits(
    cases: Sequence[LabelledCase],
    seed: int,
    validation: float = 0.1,
    test: float = 0.2,
    folds: int | None = None,
    hashes: Mapping[str, Mapping[str, str]] | None = None,
) -> Splits:
    """Divide `cases` by patient.

    `validation` and `test` are shares of all cases; the paper's 80/20 division leaves the validation part to be taken
    from the 80. With `folds`, what is not test is divided into so many parts, each of which is the validation part
    once, and `validation` is not used. `hashes` (`checks.voxel_hashes`) by case name make patients that share an image
    one. Shares are met as nearly as whole patients allow. Raises ValueError for impossible shares, repeated names and
    too few patients.
    """
    _check_shares(validation, test, folds)
    names = [case.name for case in cases]
    if len(set(names)) != len(names):
        raise ValueError(f"case names occur twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    patients = _merged_patients({case.name: case.patient for case in cases}, hashes or {})
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[patients[name]].append(name)
    order = sorted(groups, key=lambda patient: hashlib.sha256(f"{seed} {patient}".encode()).digest())
    remaining = [groups[patient] for patient in order]
    parts: dict[str, list[str]] = {}
    if test:
        parts["test"], remaining = _taken(remaining, test * len(names))
    if folds is None:
        if validation:
            parts["val"], remaining = _taken(remaining, validation * len(names))
        parts["train"] = sorted(name for group in remaining for name in group)
        fractions = {"validation": validation, "test": test}
    else:
        parts.update(_folds(remaining, folds))
        fractions = {"test": test}
    empty = [part for part, members in parts.items() if not members]
    if empty:
        raise ValueError(f"{len(groups)} patients are too few: nothing is left for {', '.join(empty)}")
    known = {name: dict(hashes[name]) for name in sorted(names) if hashes and name in hashes}
    return Splits(parts, seed, fractions, folds, {name: patients[name] for name in sorted(names)}, known)


def _check_shares(validation: float, test: float, folds: int | None) -> None:
    if not (0 <= test < 1 and 0 <= validation < 1 and test + validation < 1):
        raise ValueError(f"validation {validation:g} and test {test:g} must be shares that leave some for training")
    if folds is not None and folds < 2:
        raise ValueError(f"{folds} folds; cross-validation needs at least 2")


def _merged_patients(patients: Mapping[str, str], hashes: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Case -> patient, where patients whose cases hold identical voxels have become one (the first by name)."""
    parent = {patient: patient for patient in patients.values()}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            patient = parent[patient]
        return patient

    for group in shared_voxels({name: digests for name, digests in hashes.items() if name in patients}):
        roots = sorted({root(patients[name]) for name in group})
        parent.update(dict.fromkeys(roots, roots[0]))
    return {name: root(patient) for name, patient in patients.items()}


def _taken(groups: Sequence[list[str]], wanted: float) -> tuple[list[str], list[list[str]]]:
    """Whole groups, in order, as long as each brings the number of cases nearer to `wanted`; and the others."""
    taken: list[str] = []
    left: list[list[str]] = []
    for group in groups:
        if len(taken) + len(group) / 2 <= wanted:
            taken += group
        else:
            left.append(group)
    return sorted(taken), left


def _folds(groups: Sequence[list[str]], folds: int) -> dict[str, list[str]]:
    """Each group goes to the fold that has the fewest cases so far."""
    members: list[list[str]] = [[] for _ in range(folds)]
    for group in groups:
        min(members, key=len).extend(group)
    everyone = [name for fold in members for name in fold]
    parts = {}
    for number, fold in enumerate(members):
        parts[f"fold_{number}/train"] = sorted(set(everyone) - set(fold))
        parts[f"fold_{number}/val"] = sorted(fold)
    return parts


def write_splits(splits: Splits, path: Path, overwrite: bool = False) -> None:
    """Write the split file, all or nothing.

    An existing one stays as it is unless `overwrite`: results that were made with it would lose their meaning.
    Raises OutputError when it exists or cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; choose another name, or --overwrite if nothing was trained with it")
    plain = {part: list(members) for part, members in splits.parts.items() if "/" not in part}
    folds = [
        {kind: list(splits.parts[f"fold_{number}/{kind}"]) for kind in ("train", "val")}
        for number in range(splits.folds or 0)
    ]
    data = {
        "format": FORMAT,
        "seed": splits.seed,
        "fractions": dict(splits.fractions),
        "parts": plain,
        **({"folds": folds} if folds else {}),
        "patients": dict(splits.patients),
        "sha256": {name: dict(digests) for name, digests in splits.sha256.items()},
    }
    write_text(path, json.dumps(data, indent=1))


def read_splits(path: Path) -> dict[str, list[str]]:
    """Part -> case names, of a file of `write_splits` or of the plain form {"train": [...], "val": [...]}.

    Folds come as "fold_0/train", "fold_0/val" ... Raises ValueError for a file of another form, for a case in two parts
    that must not share any, and for a patient in two of them (as the file names patients, else by the case's name).
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a split file ({error})") from error
    parts = _parts(data, path)
    folds = sorted({part.split("/")[0] for part in parts if "/" in part})
    common = [part for part in parts if "/" not in part]
    patients = data.get("patients", {}) if "format" in data else {}
    for together in [[*common, *(p for p in parts if p.startswith(f"{fold}/"))] for fold in folds] or [common]:
        _check_disjoint({part: parts[part] for part in together}, patients, path)
    return parts


def read_patients(path: Path) -> dict[str, str]:
    """Case -> patient as a split file knows them (cases that share voxels are one); empty for the plain form."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return dict(data.get("patients", {})) if "format" in data else {}


def require_disjoint(training: Sequence[str], others: Sequence[str], patients: Mapping[str, str], part: str) -> None:
    """ValueError when the cases `others` of `part` share a patient with those of training."""
    taught = {patients.get(name) or patient_of(name) for name in training}
    shared = sorted(name for name in others if (patients.get(name) or patient_of(name)) in taught)
    if shared:
        raise ValueError(
            f"{part!r} shares patients with the training part ({', '.join(shared[:5])}); choose one of other patients"
        )


def part(splits: Mapping[str, Sequence[str]], name: str, path: Path) -> list[str]:
    """The cases of one part of the split file `path`; ValueError naming the parts that it has."""
    if name not in splits:
        raise ValueError(f"{path}: no part {name!r}; it has {', '.join(splits)}")
    if not splits[name]:
        raise ValueError(f"{path}: the part {name!r} holds no case")
    return list(splits[name])


def _parts(data: Any, path: Path) -> dict[str, list[str]]:
    if not isinstance(data, dict):
        raise ValueError(f'{path}: not a split file; expected {{"train": [case, ...], "val": [...]}}')
    if "format" in data:
        if data["format"] != FORMAT:
            raise ValueError(f"{path}: split file of format {data['format']}, this version reads {FORMAT}")
        parts = dict(data.get("parts", {}))
        for number, fold in enumerate(data.get("folds", [])):
            parts.update({f"fold_{number}/{kind}": members for kind, members in fold.items()})
    else:
        parts = dict(data)
    for part, members in parts.items():
        if not isinstance(members, list) or not all(isinstance(name, str) for name in members):
            raise ValueError(f"{path}: {part!r} is no list of case names")
    return parts


def _check_disjoint(parts: Mapping[str, Sequence[str]], patients: Mapping[str, str], path: Path) -> None:
    cases: dict[str, set[str]] = defaultdict(set)
    persons: dict[str, set[str]] = defaultdict(set)
    for part, members in parts.items():
        for name in members:
            if part in cases[name] or len(members) != len(set(members)):
                doubled = sorted({n for n in members if members.count(n) > 1})
                raise ValueError(f"{path}: twice in {part}: {', '.join(doubled)}")
            cases[name].add(part)
            persons[patients.get(name) or patient_of(name)].add(part)
    doubled = sorted(name for name, owners in cases.items() if len(owners) > 1)
    if doubled:
        raise ValueError(f"{path}: in more than one split: {', '.join(doubled)}")
    doubled = sorted(person for person, owners in persons.items() if len(owners) > 1)
    if doubled:
        raise ValueError(f"{path}: patients with cases in more than one split: {', '.join(doubled)}")
