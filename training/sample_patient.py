"""A synthetic, redistributable, labelled glioma patient: `python -m training.sample_patient --out FOLDER`.

The brain is the MNI152 template under a random pose and deformation; the tumour is drawn into it with mass effect, rim,
necrosis and oedema; the sequences imitate BraTS files (skull-stripped, 1 mm, 240 x 240 x 155, LPS, background 0).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.errors import MSTKDError, OutputError
from numpy.typing import NDArray

from training.synthetic.anatomy import ORIGIN_LPS_MM, healthy_anatomy, individual_folds, on_grid
from training.synthetic.contrast import SEQUENCES, paint
from training.synthetic.tumour import ED, ET, NCR, TumourParameters, grow

DEFAULT_SEED = 20240
SHIPPED_TUMOUR = TumourParameters(
    centre_mni_mm=(32.0, -24.0, 30.0), core_radius_mm=21.0, oedema_extent_mm=18.0, irregularity=0.16, mass_effect=0.8
)
"""The patient in Resources/sample: right fronto-parietal white matter."""


@dataclass(frozen=True)
class SamplePatient:
    """Arrays (D, H, W), LPS axes: four int16 sequences, uint8 labels (1 NCR, 2 ED, 3 ET); and how they were made."""

    images: Mapping[str, NDArray[np.int16]]
    labels: NDArray[np.uint8]
    spacing_mm: float
    origin_lps_mm: tuple[float, float, float]
    seed: int
    tumour: TumourParameters

    @property
    def brain(self) -> NDArray[np.bool_]:
        """Brain mask (D, H, W)."""
        return self.images["t1"] > 0

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each label in millilitres."""
        voxel_ml = self.spacing_mm**3 / 1000.0
        return {n: float((self.labels == v).sum() * voxel_ml) for n, v in (("NCR", NCR), ("ED", ED), ("ET", ET))}


def generate(
    seed: int = DEFAULT_SEED,
    centre_mni_mm: tuple[float, float, float] | None = None,
    core_radius_mm: float | None = None,
    side: str | None = None,
    *,
    oedema_extent_mm: float | None = None,
    irregularity: float | None = None,
    mass_effect: float | None = None,
    contrast_jitter: float = 0.1,
    spacing_mm: float = 1.0,
) -> SamplePatient:
    """One synthetic patient; parameters left at None are drawn at random from the seed.

    Lengths in mm; `centre_mni_mm` is (x, y, z) in MNI RAS; `side` is the patient's "left" or "right". Head, tumour and
    contrast have random streams of their own: the same seed and spacing give the same head whatever the tumour is.
    Raises ValueError on impossible parameters and InputError where nilearn's template is missing.
    """
    if not 0.5 <= spacing_mm <= 4.0:
        raise ValueError(f"spacing_mm must lie between 0.5 and 4 mm, not {spacing_mm:g}")
    head, site, growth, look = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    asked = TumourParameters(centre_mni_mm, side, core_radius_mm, oedema_extent_mm, irregularity, mass_effect)
    anatomy = healthy_anatomy(head, spacing_mm)
    parameters = asked.resolved(anatomy, site)
    displaced, tumour = grow(anatomy, parameters, growth)
    images = paint(individual_folds(displaced, head), tumour, look, contrast_jitter)
    whole = {name: on_grid(volume, spacing_mm) for name, volume in images.items()}
    return SamplePatient(whole, on_grid(tumour.labels, spacing_mm), spacing_mm, ORIGIN_LPS_MM, seed, parameters)


def write(patient: SamplePatient, folder: Path, prefix: str = "sample") -> list[Path]:
    """Writes `{prefix}_{t1,t1gd,t2,flair,seg}.nii.gz` into the folder; the same voxels give the same bytes.

    Returns the five paths. Raises OutputError where the folder cannot be written.
    """
    volumes: dict[str, NDArray[np.generic]] = {
        **{name: patient.images[name] for name in SEQUENCES},
        "seg": patient.labels,
    }
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, volume in volumes.items():
            image = sitk.GetImageFromArray(volume)
            image.SetSpacing((patient.spacing_mm,) * 3)
            image.SetOrigin(patient.origin_lps_mm)
            path = folder / f"{prefix}_{name}.nii.gz"
            _replace_bytes(path, _gzip_without_time(_nifti_bytes(image)))
            paths.append(path)
    except OSError as error:
        raise OutputError(f"{folder}: cannot write the sample patient ({error}); choose a writable folder.") from error
    return paths


def _nifti_bytes(image: sitk.Image) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "volume.nii"
        sitk.WriteImage(image, str(path))
        return path.read_bytes()


def _gzip_without_time(data: bytes) -> bytes:
    # gzip stores the time of writing and the file's name; fixed ones keep checksums the same from run to run.
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as stream:
        stream.write(data)
    return packed.getvalue()


def _replace_bytes(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


LICENSE_TEXT = """\
The images in this folder are synthetic. They are derived from the ICBM 152 template (ICBM 2009a nonlinear
symmetric: T1, grey-matter and white-matter maps), whose copyright and permission notice follows and must stay with
every copy.

Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
University. Permission to use, copy, modify, and distribute this software and its documentation for any purpose and
without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors and McGill
University make no representations about the suitability of this software for any purpose. It is provided "as is"
without express or implied warranty. The authors are not responsible for any data loss, equipment damage, property
loss, or injury to subjects or patients resulting from the use or misuse of this software package.

(Some distributions of the ICBM 2009 templates print the same notice with the years 1993-2004.)

The template files were taken from the Python package nilearn, itself under the BSD 3-Clause licence; nilearn's
description of the template states no licence of its own for it.

Please cite:
- Fonov V, Evans AC, Botteron K, Almli CR, McKinstry RC, Collins DL, Brain Development Cooperative Group. Unbiased
  average age-appropriate atlases for pediatric studies. NeuroImage 54(1):313-327, 2011.
  doi:10.1016/j.neuroimage.2010.07.033
- Fonov VS, Evans AC, McKinstry RC, Almli CR, Collins DL. Unbiased nonlinear average age-appropriate brain templates
  from birth to adulthood. NeuroImage 47(Supplement 1):S102, 2009. doi:10.1016/S1053-8119(09)70884-5
"""

README_TEXT = """\
# Sample patient (SYNTHETIC)

**This patient does not exist.** The four sequences and the labels were computed; no person was scanned and no
patient's image was used. The pictures are for trying out the software, not for measuring how accurate it is, and
never for diagnosis.

How it was made: the ICBM 152 (MNI152) 2009a T1 template and its grey- and white-matter maps, as shipped with the
Python package nilearn, were brought to the BraTS grid under a random pose and a smooth random deformation, and the
cortex was sharpened. A growing ball pushed the tissue aside (mass effect). A tumour was drawn into it: an irregular
necrotic core, an enhancing rim of 3 to 8 mm, and oedema that spreads fast along white matter, slowly in grey matter
and not in CSF. Each sequence then got its contrast, texture, vessels, bias field, through-plane blur and Rician
noise.

| | |
|---|---|
| Command | `python -m training.sample_patient --out Resources/sample` |
| Seed | {seed} |
| Grid | 240 x 240 x 155 voxels of 1 mm, LPS, skull-stripped, background 0, as in BraTS |
| Lesion | {side} hemisphere, centre MNI {centre} mm, mean core radius {radius:g} mm |
| Labels | 1 = necrosis (NCR) {NCR:.1f} ml, 2 = oedema (ED) {ED:.1f} ml, 3 = enhancing tumour (ET) {ET:.1f} ml |
| Made with | Python package nilearn {nilearn}, numpy {numpy}, scipy {scipy}, SimpleITK {sitk} |

The same seed gives the same files byte for byte; other versions of these packages may round a few voxels
differently.

| File | SHA-256 |
|---|---|
{files}

Licence and citation of the template: [LICENSE.txt](LICENSE.txt).
"""


def describe(patient: SamplePatient, files: Sequence[Path]) -> str:
    """README of a written patient: what it is, how it was made, and the checksum of each file."""
    centre = patient.tumour.centre_mni_mm or (0.0, 0.0, 0.0)
    return README_TEXT.format(
        seed=patient.seed,
        side=patient.tumour.side,
        centre="({:.0f}, {:.0f}, {:.0f})".format(*centre),
        radius=patient.tumour.core_radius_mm,
        **patient.volumes_ml(),
        **{name: version(package) for name, package in _MADE_WITH.items()},
        files="\n".join(f"| `{path.name}` | `{sha256(path)}` |" for path in files),
    )


_MADE_WITH = {"nilearn": "nilearn", "numpy": "numpy", "scipy": "scipy", "sitk": "SimpleITK"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.sample_patient", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to (made where missing)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="default: %(default)s")
    parser.add_argument("--random", action="store_true", help="draw the tumour from the seed, not the shipped one")
    parser.add_argument(
        "--count", type=int, help="so many random patients in folders of their own, for training (about 15 s each)"
    )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.count is not None:
            _write_cohort(chosen.out, chosen.seed, chosen.count)
            return 0
        shape = {} if chosen.random else asdict(SHIPPED_TUMOUR)
        patient = generate(chosen.seed, **shape)
        files = write(patient, chosen.out)
        _replace_bytes(chosen.out / "README.md", describe(patient, files).encode())
        _replace_bytes(chosen.out / "LICENSE.txt", LICENSE_TEXT.encode())
    except MSTKDError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    print(f"{chosen.out}: 5 files, {size_mb:.1f} MB; {_volumes(patient)}")
    return 0


def _write_cohort(out: Path, seed: int, count: int) -> None:
    """`count` random patients `synthetic_SEED` below `out`, labelled as BraTS 2023; those that are there stay."""
    try:
        for number in range(seed, seed + count):
            name = f"synthetic_{number:05d}"
            if (out / name).is_dir():
                print(f"{name} is there")
                continue
            patient = generate(number)
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=out) as scratch:
                write(patient, Path(scratch) / name, name)
                (Path(scratch) / name).rename(out / name)
            print(f"{name}: {_volumes(patient)}", flush=True)
        _replace_bytes(out / "LICENSE.txt", LICENSE_TEXT.encode())
    except OSError as error:
        raise OutputError(f"{out}: cannot write synthetic patients ({error}); choose a writable folder.") from error


def _volumes(patient: SamplePatient) -> str:
    return ", ".join(f"{name} {ml:.1f} ml" for name, ml in patient.volumes_ml().items())


if __name__ == "__main__":
    sys.exit(main())
