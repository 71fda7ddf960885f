"""Which volumes and cases are of one patient, as far as DICOM headers and the public collections' names tell."""

from __future__ import annotations

import re
from collections.abc import Mapping

PATIENT_TAGS = ("PatientID", "PatientName", "PatientBirthDate")


def patient_of(name: str) -> str:
    """The patient that a case name tells; a name of no known collection is its own patient.

    Time points of one patient share it (BraTS-GLI-00005-100 and -101). So do the copies of one patient in BraTS 2017
    to 2019 (Brats17_CBICA_AAB_1, Brats18_CBICA_AAB_1; 2018 added site numbers: TCIA10_241), and those of 2021, FeTS and
    2023, which kept the numbers: where that were wrong, a split would only be coarser than it must be.
    """
    if found := re.fullmatch(r"brats1[789]_([a-z]+|2013)\d*_([a-z0-9]+)_\d+", name, re.IGNORECASE):
        return f"{found[1].upper()}_{found[2].upper()}"
    if found := re.fullmatch(r"(?:brats2021|fets20\d\d)_(\d{5})", name, re.IGNORECASE):
        return f"BraTS-GLI-{found[1]}"
    if found := re.fullmatch(r"(brats-[a-z]+-\d+)-\d{3}", name, re.IGNORECASE):
        return found[1]
    if found := re.fullmatch(r"(?:msd_)?(brats_\d+)", name, re.IGNORECASE):
        return found[1].upper()
    return name


def differing_tags(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Those of `PATIENT_TAGS` that two volumes' DICOM tags both hold and that differ.

    No more than the ID differing counts as nothing where name and date of birth are there and the same: hospitals
    number their patients apart.
    """
    known = [tag for tag in PATIENT_TAGS if first.get(tag) and second.get(tag)]
    differing = [tag for tag in known if _plain(first[tag]) != _plain(second[tag])]
    return [] if differing == ["PatientID"] and len(known) == len(PATIENT_TAGS) else differing


def _plain(text: str) -> str:
    return " ".join(text.replace("^", " ").lower().split())
