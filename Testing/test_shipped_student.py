"""The bundle that ships: its card, its size, and what it finds on the synthetic sample and on one real patient."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("torch")

from MSTKDSegmentLib.metrics import dice
from MSTKDSegmentLib.modalities import SUBSETS, subset_name
from MSTKDSegmentLib.pipeline import Segmenter
from MSTKDSegmentLib.regions import labels_to_regions
from MSTKDSegmentLib.weights import default_bundle_path, read_bundle
from real_patients import labelled

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "Resources" / "sample"


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(device="cpu")


def sample(*names):
    return {name: SAMPLE / f"sample_{name.lower()}.nii.gz" for name in names}


def scores(labels, truth):
    found, expected = labels_to_regions(labels), labels_to_regions(truth)
    return {region: dice(found[region], expected[region]) for region in expected}


def test_the_bundle_is_small_and_its_card_is_complete():
    assert default_bundle_path().stat().st_size <= 16 * 2**20
    card = read_bundle().card
    assert card["preset"] == "compact"
    assert "research use only" in card["licence"].lower()
    assert len(card["citations"]) == 4
    taught = {*card["training"]["cases"], *card["training"]["earlier_cases"]}
    assert len(taught) == 46
    assert not taught & set(card["metrics"]["cases"])
    assert card["training"]["steps"] > 0
    for subset in SUBSETS:
        entry = card["metrics"]["subsets"][subset_name(subset)]
        assert entry["n"] == 10
        for region in ("WT", "TC", "ET"):
            low, high = entry[f"{region}_ci95"]
            assert 0 <= low <= entry[region] <= high <= 1


def test_the_card_on_paper_is_that_of_the_bundle():
    page = (ROOT / "Resources" / "model_card.md").read_text()
    card = read_bundle().card
    assert card["sha256"] in page
    mean = card["metrics"]["mean_over_subsets"]
    assert f"**{mean['WT']:.3f}** | **{mean['TC']:.3f}** | **{mean['ET']:.3f}**" in page


def test_the_starter_reaches_what_it_was_made_for():
    """Floors on validation: WT 0.75 with all four, 0.70 from FLAIR alone, ET 0.45 on average where T1Gd is there."""
    subsets = read_bundle().card["metrics"]["subsets"]
    assert subsets[subset_name(SUBSETS[-1])]["WT"] >= 0.75
    assert subsets["FLAIR"]["WT"] >= 0.70
    with_contrast = [entry["ET"] for name, entry in subsets.items() if "T1Gd" in name.split("+")]
    assert len(with_contrast) == 8
    assert np.mean(with_contrast) >= 0.45


def test_the_sample_patient_from_two_sequences(segmenter):
    result = segmenter.segment(sample("T1Gd", "FLAIR"))
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(SAMPLE / "sample_seg.nii.gz")))
    reached = scores(result.labels, truth)
    assert reached["WT"] > 0.85
    assert reached["TC"] > 0.6
    assert reached["ET"] > 0.6
    assert result.notices == ()


def test_the_sample_patient_from_flair_alone_has_its_lesion_on_the_right_side(segmenter):
    result = segmenter.segment(sample("FLAIR"))
    z, y, x = (axis.mean() for axis in np.nonzero(result.labels))
    left_mm = result.reference_image.TransformContinuousIndexToPhysicalPoint((x, y, z))[0]
    middle_mm = result.reference_image.TransformContinuousIndexToPhysicalPoint((119.5, 0, 0))[0]
    assert left_mm < middle_mm  # LPS: patient's right is the smaller x
    assert result.volumes_ml["WT"] == pytest.approx(135.4, rel=0.25)


@pytest.mark.shared
def test_a_real_validation_patient_from_flair_alone(segmenter):
    truth = sitk.GetArrayFromImage(labelled("BraTS2021_00031", "seg")).astype(np.uint8)
    truth[truth == 4] = 3
    result = segmenter.segment({"FLAIR": labelled("BraTS2021_00031", "FLAIR")})
    assert scores(result.labels, truth)["WT"] > 0.7
