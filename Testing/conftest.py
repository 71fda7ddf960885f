"""Shared by the tests of the front ends: a small skull-stripped case and a bundle with random weights."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.modalities import SUBSETS, subset_name

SHAPE = (32, 36, 34)  # (D, H, W); at 2 mm the canonical grid is 64 x 64 x 64
SPACING_MM = 2.0
EXPECTED_DICE = {"WT": 0.9, "TC": 0.8, "ET": 0.7, "n": 10}


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """A process that does not end after its tests is a defect: show where it waits, and fail."""
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)


def ellipsoid(scale: float = 1.0) -> np.ndarray:
    """(D, H, W) bool of `SHAPE`: a brain of 52 x 56 x 54 mm in the middle, times `scale`."""
    axes = (np.arange(side) - (side - 1) / 2 for side in SHAPE)
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return (z / 13) ** 2 + (y / 14) ** 2 + (x / 13.5) ** 2 < scale**2


def brain_image(seed: int, origin=(0.0, 0.0, 0.0)) -> sitk.Image:
    """A noisy brain in a background of zeros, `SHAPE` voxels of `SPACING_MM`, float32."""
    noise = np.random.default_rng(seed).normal(300 + 20 * seed, 40, SHAPE).clip(1)
    return image_of(np.where(ellipsoid(), noise, 0).astype(np.float32), origin)


def image_of(array: np.ndarray, origin=(0.0, 0.0, 0.0)) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([SPACING_MM] * 3)
    image.SetOrigin(origin)
    return image


def write_case(folder: Path, **roles: int) -> dict[str, Path]:
    """Writes `<role>.nii.gz` for each role=seed into `folder`; gives the paths by role."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {role: folder / f"{role}.nii.gz" for role in roles}
    for role, seed in roles.items():
        sitk.WriteImage(brain_image(seed), str(paths[role]))
    return paths


def write_dicom_series(folder, image, **tags):
    """One file a slice, as a scanner would; `tags` by group and element ("0008_103e")."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    image = sitk.Cast(image, sitk.sitkInt16)
    for index in range(image.GetSize()[2]):
        part = image[:, :, index]
        position = "\\".join(f"{value:g}" for value in image.TransformIndexToPhysicalPoint((0, 0, index)))
        fixed = {
            **{"0008|0060": "MR", "0020|000d": "1.2.3", "0020|000e": f"1.2.3.{folder.name}", "0020|0013": str(index)},
            **{"0008|0018": f"1.2.3.{folder.name}.{index}", "0020|0032": position, "0020|0037": "1\\0\\0\\0\\1\\0"},
        }
        for key, text in {**fixed, **{key.replace("_", "|"): text for key, text in tags.items()}}.items():
            part.SetMetaData(key, text)
        writer.SetFileName(str(folder / f"{index:03d}.dcm"))
        writer.Execute(part)


def files_below(folder: Path) -> list[str]:
    """Every file and folder below `folder`, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="session")
def case_files(tmp_path_factory) -> Mapping[str, Path]:
    """Paths of one patient's t1, t1gd, t2 and flair, alone in their folder; read only."""
    return write_case(tmp_path_factory.mktemp("patients") / "Doe", t1=1, t1gd=2, t2=3, flair=4)


@pytest.fixture(scope="session")
def random_bundle(tmp_path_factory) -> Path:
    """A bundle of preset compact with random weights that find every label somewhere; read only."""
    torch = pytest.importorskip("torch")
    from MSTKDSegmentLib.network import PRESETS, build_network
    from MSTKDSegmentLib.weights import write_bundle

    torch.manual_seed(0)
    network = build_network("compact")
    with torch.no_grad():
        # So that the image, not the bias, decides the class.
        network.head.bias.zero_()
        network.head.weight.mul_(8)
    card = {
        "name": "random",
        "preset": "compact",
        "network": PRESETS["compact"].to_dict(),
        "licence": "for tests",
        "training": {"data": "none", "steps": 0},
        "metrics": {"split": "none", "subsets": {subset_name(subset): EXPECTED_DICE for subset in SUBSETS}},
    }
    path = tmp_path_factory.mktemp("weights") / "random.zip"
    write_bundle(path, network.state_dict(), card)
    return path


@pytest.fixture
def scene():
    """An empty scene of Slicer's real MRML."""
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    result = slicer.vtkMRMLScene()
    yield result
    result.Clear(1)
