"""The bright tail of a T1 after contrast agent: on phantoms with a known tail, and on real patients where they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.contrast_check import ContrastLook, contrast_look, swapped
from phantom import blank_image, brain_on

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(__file__).resolve().parents[1] / "data"


def t1(bright_share: float = 0.0, bright: float = 400.0) -> sitk.Image:
    """A brain of values 50 to 150, of which a share is much brighter."""
    image = brain_on(blank_image())
    voxels = sitk.GetArrayFromImage(image)
    inside = np.flatnonzero(voxels)
    chosen = np.random.default_rng(1).choice(inside, int(bright_share * inside.size), replace=False)
    voxels.ravel()[chosen] = bright
    changed = sitk.GetImageFromArray(voxels)
    changed.CopyInformation(image)
    return changed


def test_the_tails_are_those_of_the_distribution():
    look = contrast_look(t1())  # uniform from 50 to 150: quartiles at 75, 100 and 125
    assert look.tail_999 == pytest.approx((149.9 - 100) / 50, abs=0.02)
    assert look.tail_995 == pytest.approx((149.5 - 100) / 50, abs=0.02)
    assert look.enhanced is False


def test_a_bright_half_percent_is_enhancement():
    look = contrast_look(t1(0.005))
    assert look.tail_999 == pytest.approx((400 - 100) / 50, rel=0.02)
    assert look.enhanced is True


def test_between_the_limits_nothing_is_claimed():
    assert ContrastLook(3.5, 2.0).enhanced is None


def test_a_pair_in_the_wrong_order_is_told():
    plain, enhanced = contrast_look(t1()), contrast_look(t1(0.01))
    assert swapped(enhanced, plain)
    assert not swapped(plain, enhanced)


def test_units_and_offset_do_not_matter():
    image = t1(0.005)
    scaled = contrast_look(image * 37.0)
    assert (scaled.tail_999, scaled.tail_995) == pytest.approx(
        (contrast_look(image).tail_999, contrast_look(image).tail_995), rel=1e-4
    )


def test_with_the_skull_on_nothing_is_claimed():
    noise = np.random.default_rng(0).normal(20, 5, (64, 64, 64)).astype(np.float32)
    noise[8:56, 8:56, 8:56] += 200
    assert contrast_look(sitk.GetImageFromArray(noise)) is None


@pytest.mark.skipif(not (SHARED / "splits.json").is_file() or not DATA.is_dir(), reason="no real patients here")
def test_no_validation_patient_raises_a_false_alarm():
    cases = json.loads((SHARED / "splits.json").read_text())["val"]
    folders = [DATA / case for case in cases if (DATA / case).is_dir()]
    if not folders:
        pytest.skip("the validation patients are not unpacked in data/")
    for folder in folders:
        plain, enhanced = (
            contrast_look(sitk.ReadImage(str(folder / f"{folder.name}_{name}.nii.gz"), sitk.sitkFloat32))
            for name in ("t1", "t1ce")
        )
        assert not swapped(plain, enhanced), folder.name
        assert plain.enhanced is not True, folder.name
        assert enhanced.enhanced is not False, folder.name
