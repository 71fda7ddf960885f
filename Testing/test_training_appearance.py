"""Fitting what tells the sequences apart by look: on phantoms whose sequences differ, through the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("monai", reason="training needs the `train` extra")
pytest.importorskip("pydantic", reason="training needs the `train` extra")

from MSTKDSegmentLib.appearance import FEATURES, Look, features, look, read_model
from MSTKDSegmentLib.modalities import MODALITIES
from training_phantom import STYLES, write_array

from training import appearance
from training.__main__ import main

SHAPE = (60, 64, 62)


def brain(seed: int) -> dict[str, np.ndarray]:
    """Voxels by sequence: the darker or brighter inwards, with a short or a long bright tail."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1.1, 1.1, side) for side in SHAPE), indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2)
    texture = rng.normal(0, 10, SHAPE)
    vessels = rng.random(SHAPE) < 0.02
    values = {
        "T1": 200 - 60 * radius,
        "T1Gd": 200 - 60 * radius + 300 * vessels,
        "T2": 100 + 80 * radius + 60 * (radius < 0.3),
        "FLAIR": 100 + 80 * radius - 60 * (radius < 0.3),
    }
    return {name: np.where(radius < 1, value + texture, 0).clip(0).astype(np.int16) for name, value in values.items()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    names = [f"BraTS2021_{number:05d}" for number in range(1, 8)]
    for seed, name in enumerate(names):
        case = root / "data" / name
        case.mkdir(parents=True)
        images = brain(seed)
        labels = np.zeros(SHAPE, np.uint8)
        labels[20:24, 20:24, 20:24] = 1
        for array, ending in zip((*images.values(), labels), STYLES["brats2018"]):
            write_array(case / f"{name}{ending}.nii.gz", array)
    splits = root / "splits.json"
    splits.write_text(json.dumps({"train": names[:5], "val": names[5:]}))
    return root / "data", splits


@pytest.fixture(scope="module")
def written(cohort, tmp_path_factory):
    data, splits = cohort
    out = tmp_path_factory.mktemp("out") / "model.json"
    assert main(["appearance", "--data", str(data), "--splits", str(splits), "--out", str(out)]) == 0
    return out


def test_the_command_writes_a_classifier_that_knows_new_patients(written):
    model = read_model(written)
    images = brain(99)
    for name, voxels in images.items():
        image = sitk.GetImageFromArray(voxels.astype(np.float32))
        assert model.look(features(image, voxels != 0)).likeliest == name
    card = json.loads(written.read_text())["card"]
    assert (card["training"]["patients"], card["validation"]["patients"]) == (5, 2)
    # A variant whose field of view is cut may show too little.
    assert 5 * 4 * appearance.VARIANTS < card["training"]["volumes"] <= 5 * 4 * (1 + appearance.VARIANTS)
    figures = card["metrics"]["validation"]["as released"]
    assert figures["single volumes"] == {"share": 1.0, "n": 8}
    assert figures["proposals, all four"]["volumes"] == 8
    assert figures["proposals, 15 subsets"]["sets"] == 2 * 15


def test_the_shipped_classifier_is_not_touched_by_another(written):
    voxels = brain(3)["T2"]
    image = sitk.GetImageFromArray(voxels.astype(np.float32))
    assert look(image, voxels != 0) != read_model(written).look(features(image, voxels != 0))


def test_the_same_case_gives_the_same_variants_and_each_is_another(cohort):
    from training.discovery import discover

    case = discover(cohort[0]).cases[0]
    first, second = appearance.examples_of([case]), appearance.examples_of([case])
    assert {example.variant for example in first} == set(range(appearance.VARIANTS + 1))
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one.features, other.features)
    assert len({example.features.tobytes() for example in first}) == len(first)


def example(patient: str, sequence: str, value: float, variant: int = 0) -> appearance.Example:
    return appearance.Example(patient, patient, sequence, variant, np.full(len(FEATURES), value))


def test_a_patient_is_never_judged_by_itself(monkeypatch):
    known = [example(f"P{number}", sequence, 0.0) for number in range(10) for sequence in MODALITIES]
    seen = []

    class Nothing:
        def look(self, _features):
            return Look(dict.fromkeys(MODALITIES, 0.25), 0.5)

    def fit(examples):
        seen.append({row.patient for row in examples})
        return Nothing()

    monkeypatch.setattr(appearance, "fit", fit)
    assert len(appearance.held_out(known)) == len(known)
    left_out = [{f"P{number}" for number in range(10)} - patients for patients in seen]
    assert len(left_out) == 5 and set.union(*left_out) == {f"P{number}" for number in range(10)}
    assert sum(map(len, left_out)) == 10


def sure(sequence: str, unlike: float = 0.5) -> Look:
    return Look({name: 0.97 if name == sequence else 0.01 for name in MODALITIES}, unlike)


def test_figures_are_counted_by_hand():
    rows = [example("P", sequence, 0.0) for sequence in MODALITIES]
    looks = [sure("T1"), sure("T1"), sure("T2"), sure("FLAIR", unlike=1.5)]  # T1Gd looks like T1, FLAIR like nothing
    found = appearance.figures(rows, looks, 0.9)["as released"]
    assert found["single volumes"] == {"share": 0.75, "n": 4}
    assert found["T1 against T1Gd, single"] == {"share": 0.5, "n": 2}
    assert found["T1 against T1Gd, pairs"] == {"share": 1.0, "n": 1}  # equal is not the wrong way round
    four = found["proposals, all four"]
    assert (four["right"], four["wrong"], four["none"], four["whole sets right"]) == (1, 0, 3, 0)
    assert found["unlike"] == {"share": 0.25, "n": 4}
    # In 15 subsets: FLAIR is unlike in 8; T1Gd without T1 is doubted in 4.
    assert found["doubts"]["false alarms"] == {"alarms": 12, "volumes": 32}
    assert found["doubts"]["found"]["T1Gd chosen as T1"] == {"share": 0.0, "n": 1}


def test_the_limit_lets_one_in_two_hundred_pass():
    rows = [example(f"P{number}", sequence, 0.0) for number in range(50) for sequence in MODALITIES]
    looks = [replace(sure(row.sequence), unlike=float(index)) for index, row in enumerate(rows)]
    limit, certain = appearance.choose(rows, looks)
    assert sum(found.unlike > limit for found in looks) == 1
    assert certain == appearance.CERTAIN[0]


def test_a_clinical_variant_has_thick_slices_and_another_mask():
    voxels = brain(0)["T1"].astype(np.float32)
    image = sitk.GetImageFromArray(voxels)
    outside = appearance._distance(voxels > 0, image)
    sizes, volumes = set(), set()
    for seed in range(12):
        changed, mask = appearance.clinical(image, outside, np.random.default_rng(seed))
        assert mask.shape == changed.GetSize()[::-1]
        assert np.isfinite(sitk.GetArrayFromImage(changed)).all()
        sizes.add(changed.GetSpacing())
        volumes.add(int(mask.sum() * np.prod(changed.GetSpacing())))
    assert len(sizes) > 3 and len(volumes) > 3
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(image))  # the original stays
