"""Datalists: labelled cases listed in a JSON file of MONAI's form or in a CSV table.

JSON: `{"training": [{"image": ..., "label": "a_seg.nii.gz"}, ...]}` ("validation" is read too; a plain list as well).
"image" is a dictionary by sequence, a list of four paths or one 4-D file; instead of it the keys t1, t1gd, t2 and flair
may stand in the entry. A list means T1, T1Gd, T2, FLAIR unless "modalities" at the top gives another order; for a 4-D
file "modalities" is required. CSV: columns case, patient, t1, t1gd, t2, flair, segmentation, convention. In both,
"case", "patient" and "convention" are optional and relative paths start at the datalist's folder.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.modalities import MODALITIES, canonical_modality
from MSTKDSegmentLib.patients import patient_of
from MSTKDSegmentLib.regions import CONVENTIONS
from MSTKDSegmentLib.roles import propose_from_name, split_ending

from training.cases import LabelledCase

_SECTIONS = ("training", "validation")
_LABEL_KEYS = ("label", "segmentation", "seg")
_NAME_KEYS = ("case", "name", "id")


def read_datalist(path: Path) -> tuple[list[LabelledCase], list[str]]:
    """The cases that a datalist names, and a line for each entry that cannot be used; files must exist.

    Raises InputError for a file that is no datalist, and OSError where it cannot be opened.
    """
    try:
        if path.suffix.lower() == ".csv":
            entries, order = _csv_entries(path), None
        else:
            entries, order = _json_entries(path)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a datalist in JSON or CSV ({error}); see the documentation of --data") from error
    cases: list[LabelledCase] = []
    problems: list[str] = []
    for where, entry in entries:
        try:
            cases.append(_case(entry, path.parent, order))
        except InputError as error:
            problems.append(f"{path} {where}: {error}")
    return cases, problems


def _csv_entries(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        header = [(name or "").strip().lower() for name in reader.fieldnames or []]
        unknown = [
            name
            for name in header
            if name not in (*_NAME_KEYS, *_LABEL_KEYS, "patient", "convention") and canonical_modality(name) is None
        ]
        if unknown or not set(header) & set(_LABEL_KEYS):
            problem = f"unknown column {unknown[0]!r}" if unknown else "no column segmentation"
            columns = "case, patient, t1, t1gd, t2, flair, segmentation, convention"
            raise InputError(f"{path} line 1: {problem}; the columns are {columns}")
        reader.fieldnames = header
        return [
            (f"line {reader.line_num}", {key: value.strip() for key, value in row.items() if key and value})
            for row in reader
        ]


def _json_entries(path: Path) -> tuple[list[tuple[str, Mapping[str, Any]]], tuple[str, ...] | None]:
    data = json.loads(path.read_text(encoding="utf-8-sig"))
    top = data if isinstance(data, dict) else {"training": data}
    sections = {name: top[name] for name in _SECTIONS if name in top}
    if not sections or not all(isinstance(entries, list) for entries in sections.values()):
        raise InputError(f'{path}: no list "training" of cases; a datalist is {{"training": [{{"image": ...}}]}}')
    order = None
    if "modalities" in top:
        names = top["modalities"] if isinstance(top["modalities"], list) else []
        order = tuple(canonical_modality(str(name)) or str(name) for name in names)
        if sorted(order) != sorted(MODALITIES):
            wanted = ", ".join(MODALITIES)
            raise InputError(f'{path}: "modalities" must name {wanted}, each once, not {top["modalities"]}')
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for section, items in sections.items():
        for number, item in enumerate(items):
            where = f"{section}[{number}]"
            if not isinstance(item, dict):
                raise InputError(f"{path} {where}: an entry is a dictionary with image and label, not {item!r}")
            shared = {"convention": top["convention"]} if "convention" in top else {}
            entries.append((where, {**shared, **item}))
    return entries, order


def _case(entry: Mapping[str, Any], folder: Path, order: tuple[str, ...] | None) -> LabelledCase:
    label = next((entry[key] for key in _LABEL_KEYS if entry.get(key)), None)
    if not isinstance(label, str):
        raise InputError("no segmentation (key label or column segmentation)")
    segmentation = _file(folder, label)
    images, channels = _images(entry, folder, order)
    missing = [m for m in MODALITIES if m not in images]
    if missing:
        raise InputError(f"{', '.join(missing)} not given; training needs all four sequences")
    convention = entry.get("convention") or None
    if convention is not None and convention not in CONVENTIONS:
        raise InputError(f"unknown label convention {convention!r}; choose one of {', '.join(CONVENTIONS)}")
    given = next((entry[key] for key in _NAME_KEYS if entry.get(key)), None)
    name = str(given) if given else re.sub(r"(?i)[_-]seg(?:m|mentation)?$", "", split_ending(segmentation.name)[0])
    if name.startswith(".") or any(c in name for c in '/\\:*?"<>|') or not name.isprintable():
        raise InputError(f"case name {name!r} cannot be a file name; use letters, digits, '-' and '_'")
    patient = str(entry.get("patient") or patient_of(name))
    return LabelledCase(name, patient, images, segmentation, "datalist", channels, convention)


def _images(
    entry: Mapping[str, Any], folder: Path, order: tuple[str, ...] | None
) -> tuple[dict[str, Path], dict[str, int] | None]:
    image = entry.get("image")
    if isinstance(image, str):
        if order is None:
            raise InputError('one 4-D image needs the order of its channels: add "modalities" at the top')
        return dict.fromkeys(MODALITIES, _file(folder, image)), {m: order.index(m) for m in MODALITIES}
    if isinstance(image, list):
        return _ordered(image, folder, order), None
    named = image if isinstance(image, dict) else entry
    images: dict[str, Path] = {}
    for key, value in named.items():
        modality = canonical_modality(key)
        if modality is None or not value:
            continue
        if modality in images:
            raise InputError(f"{modality} is given twice")
        images[modality] = _file(folder, str(value))
    return images, None


def _ordered(paths: list[Any], folder: Path, order: tuple[str, ...] | None) -> dict[str, Path]:
    chosen = order or MODALITIES
    if len(paths) != len(chosen):
        raise InputError(f"{len(paths)} images; a list holds four, in the order {', '.join(chosen)}")
    images = {modality: _file(folder, str(path)) for modality, path in zip(chosen, paths)}
    for modality, path in images.items():
        # Datalists in circulation start with FLAIR; a wrong order would train in silence on swapped sequences.
        proposal = propose_from_name(path.name)
        if proposal.certainty == "certain" and proposal.modality not in (None, modality):
            raise InputError(
                f"{path.name} stands where {modality} is expected but is named {proposal.modality}; "
                'give the order of the lists as "modalities" at the top'
            )
    return images


def _file(folder: Path, text: str) -> Path:
    path = folder / Path(text).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path
