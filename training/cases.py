"""A labelled case, its files, its patient, and the collection that its name tells."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.file_checks import os_errors_as_input_errors
from MSTKDSegmentLib.modalities import MODALITIES
from MSTKDSegmentLib.pipeline import Source
from MSTKDSegmentLib.volume_checks import EXPORT_AGAIN, itk_errors_as_input_errors
from MSTKDSegmentLib.volumes import volume_from_image

# Names of the public collections. From 2023 on a name ends in the time point; post-treatment ones start at 100.
_COLLECTIONS = (
    ("brats2017", r"brats17_\w+"),
    ("brats2018", r"brats18_\w+"),
    ("brats2019", r"brats19_\w+"),
    ("brats2020", r"brats20_\w+"),
    ("brats2021", r"brats2021_\d+"),
    ("fets", r"fets20\d\d_\d+"),
    ("brats2024", r"brats-[a-z]+-\d+-[1-9]\d\d"),
    ("brats2023", r"brats-[a-z]+-\d+-0\d\d"),
    ("msd", r"(?:msd_)?brats_\d+"),
)


@dataclass(frozen=True)
class LabelledCase:
    """Files of one labelled case: `images` by modality (T1, T1Gd, T2, FLAIR), and `segmentation`.

    `layout` is the collection ("brats2017" ... "brats2024", "fets", "msd"), else "folder" or "datalist". Where all
    sequences stand in one 4-D file, `channels` gives the index of each. `convention` is a label convention that the
    user named; None leaves it to the evidence (`labels.convention_of`).
    """

    name: str
    patient: str
    images: Mapping[str, Path]
    segmentation: Path
    layout: str
    channels: Mapping[str, int] | None = None
    convention: str | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The case's files by what they are; a 4-D file is named once, as "images"."""
        images = dict(self.images) if self.channels is None else {"images": next(iter(self.images.values()))}
        return {**images, "segmentation": self.segmentation}

    def sources(self) -> dict[str, Source]:
        """What `MSTKDSegmentLib.pipeline.read_case` takes: paths, or the volumes of a 4-D file.

        Raises InputError for a 4-D file that is damaged or lacks a channel.
        """
        if self.channels is None:
            return dict(self.images)
        path = self.files["images"]
        image = _read_4d(path)
        count = image.GetSize()[3]
        lacking = [f"{m} ({index})" for m, index in self.channels.items() if not 0 <= index < count]
        if lacking:
            raise InputError(f"{path}: {count} channels, but {', '.join(lacking)} was asked for; correct the datalist")
        return {
            modality: volume_from_image(image[:, :, :, index], f"{path} channel {index} ({modality})")
            for modality, index in self.channels.items()
        }


def _read_4d(path: Path) -> sitk.Image:
    with os_errors_as_input_errors(path):
        if path.suffix == ".gz":
            _check_gzip(path)
        elif not path.is_file():
            raise InputError(f"{path}: no such file; check the data set")
    with itk_errors_as_input_errors(str(path)):
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    if image.GetDimension() != 4:
        raise InputError(f"{path}: {image.GetDimension()}-D; expected the four sequences in one 4-D file")
    return image


def _check_gzip(path: Path) -> None:
    """ITK fills a truncated file with zeros; gzip's own checksum at the end of the stream tells."""
    try:
        with gzip.open(path) as stream:
            while stream.read(1 << 22):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the file is damaged or cut short ({error}). {EXPORT_AGAIN}") from error


def collection_of(name: str) -> str | None:
    """The public collection that a case name belongs to, None if it is none that is known."""
    return next((layout for layout, pattern in _COLLECTIONS if re.fullmatch(pattern, name, re.IGNORECASE)), None)


@dataclass(frozen=True)
class Discovery:
    """What was found: `cases` sorted by name, and `problems`, one line for each case that cannot be used."""

    root: Path
    cases: tuple[LabelledCase, ...]
    problems: tuple[str, ...] = ()

    def select(self, names: Iterable[str]) -> list[LabelledCase]:
        """The cases of these names, in this order; InputError naming those that are not there, with the reason."""
        known = {case.name: case for case in self.cases}
        wanted = list(names)
        missing = [name for name in wanted if name not in known]
        if missing:
            why = [problem for problem in self.problems if any(name in problem for name in missing)]
            raise InputError(
                f"{self.root}: {_some(missing)} not found among {len(known)} cases"
                + (f" ({'; '.join(why[:3])})" if why else "; check --data and the split file")
            )
        return [known[name] for name in wanted]

    def complete(self) -> list[LabelledCase]:
        """All cases; InputError when there are none or when something that looks like a case cannot be used."""
        if self.problems:
            lines = "; ".join(self.problems[:5]) + (f"; and {len(self.problems) - 5} more" if self.problems[5:] else "")
            raise InputError(f"{self.root}: {len(self.problems)} cases cannot be used: {lines}")
        if not self.cases:
            raise InputError(
                f"{self.root}: no labelled case found; expected folders with {', '.join(MODALITIES)} and a "
                "segmentation (BraTS, FeTS), MSD's Task01_BrainTumour, or a datalist (.json, .csv)"
            )
        return list(self.cases)


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
