"""Real patients for tests where they lie beside the checkout; each function skips with the reason where they do not."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RAW = SHARED / "raw" / "TCGA-FG-6692"
FILES = {"T1": "t1", "T1Gd": "t1ce", "T2": "t2", "FLAIR": "flair"}


def validation_cases() -> list[str]:
    """The names of the validation patients."""
    if not (SHARED / "splits.json").is_file():
        pytest.skip("the labelled patients are not beside this checkout (../shared/data)")
    return json.loads((SHARED / "splits.json").read_text())["val"]


@cache
def labelled(case: str, name: str) -> sitk.Image:
    """A sequence of a labelled, challenge-ready patient, or its segmentation ("seg")."""
    folder = SHARED / "packed" / case
    if not folder.is_dir():
        pytest.skip("the labelled patients are not beside this checkout (../shared/data)")
    codecs = pytest.importorskip("imagecodecs", reason="needs imagecodecs to unpack the labelled patients")
    meta = json.loads((folder / "meta.json").read_text())
    (x0, y0, z0), (x1, y1, z1) = meta["box"]
    flat = codecs.jpegxl_decode((folder / f"{FILES.get(name, name)}.jxl").read_bytes())
    whole = np.zeros(meta["shape"][::-1], np.float32)
    whole[z0:z1, y0:y1, x0:x1] = flat.reshape(z1 - z0, y1 - y0, x1 - x0)
    image = sitk.GetImageFromArray(whole)
    image.SetOrigin((0.0, -239.0, 0.0))
    return image


@cache
def raw(name: str, atlas: bool = False) -> sitk.Image:
    """A sequence of the raw clinical patient as the scanner made it, or skull-stripped in atlas space."""
    if not RAW.is_dir():
        pytest.skip("the raw clinical patient is not beside this checkout (../shared/data/raw)")
    file = f"{'t1c' if name == 'T1Gd' else FILES.get(name, name)}.nii.gz"
    return sitk.ReadImage(str((RAW / "atlas_space" if atlas else RAW) / file), sitk.sitkFloat32)
