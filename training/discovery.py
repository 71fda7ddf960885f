"""Finding labelled cases: BraTS 2017 to 2024 and FeTS folders, MSD Task01_BrainTumour, and datalists."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from MSTKDSegmentLib.case_roles import roles_in_folder
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.file_checks import VOLUME_ENDINGS, os_errors_as_input_errors
from MSTKDSegmentLib.modalities import MODALITIES, canonical_modality
from MSTKDSegmentLib.patients import patient_of
from MSTKDSegmentLib.regions import CONVENTIONS
from MSTKDSegmentLib.roles import propose_from_name, split_ending

from training.cases import Discovery, LabelledCase, collection_of
from training.datalist import read_datalist

__all__ = ["LAYOUTS", "Discovery", "LabelledCase", "discover", "find_case", "find_cases"]

LAYOUTS = ("auto", "folders", "msd", "datalist")
_SEGMENTATION = re.compile(r"(?i)(?:^|[_-])seg$")
# BraTS20_Training_355 was published with W39_1998.09.19_Segm.nii in the place of its _seg file.
_OTHER_SEGMENTATION = re.compile(r"(?i)(?:^|[_-])segm(?:entation)?$")


def find_cases(root: Path, layout: str = "auto", convention: str | None = None) -> list[LabelledCase]:
    """All labelled cases below `root`, sorted by name; InputError when one of them cannot be used or there is none."""
    return discover(root, layout, convention).complete()


def discover(root: Path, layout: str = "auto", convention: str | None = None) -> Discovery:
    """The labelled cases in `root`: a folder, or a datalist (.json, .csv); nothing is read but names and lists.

    `layout` is one of `LAYOUTS`; "auto" takes a file for a datalist and looks for both kinds of folders. `convention`
    overrides every other evidence about label values. Something that looks like a case and lacks a part becomes a
    problem of the result. Hidden files and folders (`._*`, `.DS_Store`) are passed over, and so are folders without a
    sequence, such as those of results. Raises InputError for a root that cannot be read or an unknown name.
    """
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    if convention is not None and convention not in CONVENTIONS:
        raise InputError(f"unknown label convention {convention!r}; choose one of {', '.join(CONVENTIONS)}")
    with os_errors_as_input_errors(root):
        if root.is_file() and layout in ("auto", "datalist"):
            cases, problems = read_datalist(root)
        elif root.is_dir() and layout != "datalist":
            cases, problems = _in_folder(root, layout)
        else:
            wanted = "datalist (.json, .csv)" if layout == "datalist" else "folder of cases"
            raise InputError(f"{root}: no such {wanted}; check the path and --layout")
    unique: dict[str, LabelledCase] = {}
    for case in sorted(cases, key=lambda case: (case.name, str(case.segmentation))):
        first = unique.setdefault(case.name, case)
        if first is not case:
            problems.append(f"{case.segmentation}: a second case {case.name}, beside {first.segmentation}")
    if convention is not None:
        unique = {name: replace(case, convention=convention) for name, case in unique.items()}
    return Discovery(root, tuple(unique.values()), tuple(problems))


def find_case(folder: Path) -> LabelledCase:
    """The labelled four-sequence case in a BraTS-style folder.

    Raises InputError (RoleError) naming the folder and the sequence or segmentation that is missing.
    """
    images, _ = roles_in_folder(folder)
    missing = [m for m in MODALITIES if m not in images]
    if missing:
        raise InputError(f"{folder}: {', '.join(missing)} not found; training needs all four sequences")
    stems = {path: split_ending(path.name)[0] for path in _volume_files(folder)}
    segmentations = [path for path, stem in stems.items() if _SEGMENTATION.search(stem)]
    segmentations = segmentations or [path for path, stem in stems.items() if _OTHER_SEGMENTATION.search(stem)]
    if len(segmentations) != 1:
        names = f" ({', '.join(path.name for path in segmentations)})" if segmentations else ""
        raise InputError(f"{folder}: {len(segmentations)} files end in _seg.nii.gz or -seg.nii.gz{names}; expected one")
    name = folder.resolve().name
    return LabelledCase(name, patient_of(name), images, segmentations[0], collection_of(name) or "folder")


# --- folders --------------------------------------------------------------------------------------------------------


def _in_folder(root: Path, layout: str) -> tuple[list[LabelledCase], list[str]]:
    cases: list[LabelledCase] = []
    problems: list[str] = []
    patients: dict[str, str] = {}
    for folder in _folders(root, layout, set()):
        if layout != "folders" and _is_msd(folder):
            found, troubles = _msd_cases(folder)
            cases += found
            problems += troubles
        elif layout != "msd" and _looks_like_case(folder):
            try:
                cases.append(find_case(folder))
            except InputError as error:
                problems.append(str(error))
        else:
            for table in sorted(folder.glob("name_mapping*.csv")):
                patients.update(_patients_by_name(table))
    return [replace(case, patient=patients.get(case.name, case.patient)) for case in cases], problems


def _folders(folder: Path, layout: str, seen: set[Path]) -> Iterator[Path]:
    """`folder` and those below it, sorted; not below a case or data set, and each once however it is linked."""
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    yield folder
    if _is_msd(folder) or (layout != "msd" and _looks_like_case(folder)):
        return
    for below in sorted(folder.iterdir()):
        if below.is_dir() and not below.name.startswith("."):
            yield from _folders(below, layout, seen)


def _volume_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(VOLUME_ENDINGS) and not path.name.startswith(".") and path.is_file()
    )


def _looks_like_case(folder: Path) -> bool:
    """Whether a sequence lies in it, or just the segmentation that is named after the folder."""
    names = [path.name for path in _volume_files(folder)]
    if any(propose_from_name(name).modality for name in names):
        return True
    return any(_SEGMENTATION.sub("", split_ending(name)[0]) == folder.name for name in names)


def _patients_by_name(table: Path) -> dict[str, str]:
    """Case name -> patient from BraTS's name_mapping.csv, where a line holds one patient's names of several years."""
    patients = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                names = [v.strip() for k, v in row.items() if k and v and re.match(r"(?i)brats.*subject_?id", k)]
                known = [name for name in names if name.upper() not in ("", "NA", "N/A")]
                patients.update({name: patient_of(known[0]) for name in known})
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: not a CSV text file in UTF-8 ({error}); repair it or move it away") from error
    return patients


# --- Medical Segmentation Decathlon, Task01 -------------------------------------------------------------------------


def _is_msd(folder: Path) -> bool:
    return (folder / "dataset.json").is_file() and (folder / "imagesTr").is_dir()


def _msd_cases(folder: Path) -> tuple[list[LabelledCase], list[str]]:
    """The cases of `labelsTr`; the order of the channels comes from dataset.json."""
    path = folder / "dataset.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        channels = _msd_channels(description, path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        return [], [f"{path}: not JSON ({error})"]
    except InputError as error:
        return [], [str(error)]
    images = {split_ending(file.name)[0]: file for file in _volume_files(folder / "imagesTr")}
    labels_folder = folder / "labelsTr"
    labels = {split_ending(f.name)[0]: f for f in _volume_files(labels_folder)} if labels_folder.is_dir() else {}
    problems = [f"{images[name]}: no segmentation in labelsTr" for name in sorted(set(images) - set(labels))]
    problems += [f"{labels[name]}: no images in imagesTr" for name in sorted(set(labels) - set(images))]
    cases = [
        LabelledCase(name, patient_of(name), dict.fromkeys(MODALITIES, images[name]), labels[name], "msd", channels)
        for name in sorted(set(images) & set(labels))
    ]
    return cases, problems


def _msd_channels(description: Any, path: Path) -> Mapping[str, int]:
    table = description.get("modality") if isinstance(description, dict) else None
    if not isinstance(table, dict):
        raise InputError(f'{path}: no "modality" table; it must say which channel is which sequence')
    channels: dict[str, int] = {}
    for index, name in table.items():
        modality = canonical_modality(str(name))
        if modality is not None and str(index).isdigit():
            channels[modality] = int(index)
    missing = [m for m in MODALITIES if m not in channels]
    if missing:
        raise InputError(f'{path}: "modality" does not name {", ".join(missing)}; training needs all four sequences')
    return {m: channels[m] for m in MODALITIES}
