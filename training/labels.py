"""What the values of a segmentation mean: one explicit label convention for each case, and the reason for it."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.geometry import array_to_image
from MSTKDSegmentLib.regions import CAVITY, CONVENTIONS, from_convention
from MSTKDSegmentLib.volumes import read_volume

from training.cases import LabelledCase, collection_of

_ET_IS_4 = ("brats2017", "brats2018", "brats2019", "brats2020", "brats2021", "fets")


def convention_of(case: LabelledCase, values: Iterable[int]) -> tuple[str, str]:
    """Which of `regions.CONVENTIONS` a segmentation follows, and why: (name, reason).

    `values` are those that occur in it. In order of weight: what the user named; the collection that the case's name
    tells; the values. ET is 4 up to BraTS 2021 and 3 later, where 4 is the resection cavity of post-treatment cases;
    MSD's Task01 swaps 1 and 2. Decisions where evidence is thin: names of 2023 were also given to copies with 2021's
    values, so a 4 without a 3 is a cavity only from time point 100 on; in a name of no known collection it is ET.
    Raises InputError where a value fits no convention, and where the name and the values contradict each other.
    """
    present = sorted(set(values))
    shown = ", ".join(map(str, present))
    if case.convention is not None:
        return case.convention, "named by the user"
    foreign = [value for value in present if value not in range(5)]
    if foreign:
        raise InputError(
            f"{case.segmentation}: the value {foreign[0]:g} is of no known label convention (values: {shown}); "
            "give a segmentation with the labels of BraTS or MSD"
        )
    collection = case.layout if case.layout == "msd" else collection_of(case.name)
    if collection == "msd":
        return "msd", "a case of MSD's Task01_BrainTumour: 1 oedema, 2 non-enhancing, 3 enhancing"
    if re.match(r"(?i)brats-ped-", case.name):
        raise InputError(
            f"{case.segmentation}: paediatric BraTS labels changed their meaning between years; name theirs with "
            "--convention"
        )
    return _brats_convention(case, collection, present, shown)


def _brats_convention(case: LabelledCase, collection: str | None, present: list[int], shown: str) -> tuple[str, str]:
    if collection in _ET_IS_4:
        if 3 in present:
            raise InputError(
                f"{case.segmentation}: holds the value 3, which {collection} does not have (values: {shown}), so it "
                f"was relabelled; name its convention with --convention: {', '.join(CONVENTIONS)}"
            )
        return "brats2021", f"a name of {collection}: ET is 4"
    if collection == "brats2024":
        return "brats2024", "a post-treatment case (time point 100 or more): ET is 3, 4 is the resection cavity"
    if 3 in present and 4 in present:
        return "brats2024", "holds both 3 and 4: ET and resection cavity"
    if 4 in present:
        return "brats2021", "holds 4 without 3 and is not known to be post-treatment: ET is 4"
    if 3 in present:
        return "brats2023", "holds 3 without 4: ET is 3"
    return "brats2023", "no enhancing tumour; 1 and 2 mean the same in every BraTS convention"


def label_convention(case: LabelledCase, values: Iterable[int]) -> str:
    """The name alone of `convention_of`."""
    return convention_of(case, values)[0]


def read_label_values(case: LabelledCase) -> sitk.Image:
    """The segmentation as it is in the file, uint8, on its own grid.

    Raises InputError for a file that cannot be read and for values that are no whole numbers from 0 to 255.
    """
    image = read_volume(case.segmentation, is_label=True).image
    array = sitk.GetArrayViewFromImage(image)
    whole = np.clip(array, 0, 255).astype(np.uint8)
    if not np.array_equal(whole, array):
        odd = array[whole != array].flat[0]
        raise InputError(
            f"{case.segmentation}: holds the value {odd:g}, but labels are small whole numbers; resample label maps "
            "with nearest-neighbour interpolation"
        )
    return array_to_image(whole, image)


def read_labels(case: LabelledCase, keep_cavity: bool = False) -> sitk.Image:
    """The segmentation on its own grid in our labels, uint8: 1 NCR, 2 ED, 3 ET and, if kept, `CAVITY`.

    Without `keep_cavity`, as for evaluation, the resection cavity is background. Raises InputError for a file or values
    that cannot be used.
    """
    return our_labels(case, read_label_values(case), keep_cavity)


def our_labels(case: LabelledCase, values: sitk.Image, keep_cavity: bool = False) -> sitk.Image:
    """`read_labels` for a segmentation that `read_label_values` has read."""
    array = sitk.GetArrayViewFromImage(values)
    convention = label_convention(case, np.unique(array).tolist())
    try:
        labels = from_convention(array, convention)
    except InputError as error:
        raise InputError(f"{case.segmentation}: {error}") from error
    if keep_cavity and convention == "brats2024":
        labels[array == 4] = CAVITY
    return array_to_image(labels, values)
