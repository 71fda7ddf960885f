"""Bad inputs end in a warning or an error: made from the sample patient, from phantoms, and from real patients where
they are.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.geometry import array_to_image
from MSTKDSegmentLib.input_checks import (
    check_brain,
    check_orientation,
    check_pair,
    check_ready,
    check_volume,
    slice_correlations,
    together,
)
from MSTKDSegmentLib.orientation import orientation_of, orientations
from MSTKDSegmentLib.overlap import find_foreground
from MSTKDSegmentLib.registration import Registration
from MSTKDSegmentLib.structure import likeness
from MSTKDSegmentLib.volumes import Volume, read_volume, volume_from_image
from phantom import blank_image, brain_on, ellipsoid, voxel_points
from real_patients import labelled, raw, validation_cases
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "Resources" / "sample"
SEQUENCES = ("T1", "T1Gd", "T2", "FLAIR")
UPSIDE_DOWN, BACK_TO_FRONT = np.diag([1.0, 1.0, -1.0]), np.diag([1.0, -1.0, 1.0])
MIRRORED = np.diag([-1.0, 1.0, 1.0])
# The brain's top goes to the header's back, its front to the top.
ON_ITS_BACK = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


@cache
def fine(name: str) -> Volume:
    """A sequence of the sample patient in voxels of 1 mm."""
    image = sitk.ReadImage(str(SAMPLE / f"sample_{name.lower()}.nii.gz"), sitk.sitkFloat32)
    return volume_from_image(image, f"{name}.nii.gz")


@cache
def sample(name: str) -> Volume:
    """A sequence of the sample patient in voxels of 2 mm."""
    return replace(fine(name), image=sitk.Shrink(fine(name).image, [2, 2, 2]))


def mask_of(volume: Volume) -> np.ndarray:
    return find_foreground(volume.image).mask


def changed(volume: Volume, array: np.ndarray, **new: object) -> Volume:
    """`volume` with other voxels (D, H, W)."""
    return replace(volume, image=array_to_image(array.astype(np.float32), volume.image), **new)


def turned(volume: Volume, turn: np.ndarray) -> Volume:
    """The same voxels under a header that is turned or mirrored about the origin."""
    image = sitk.Image(volume.image)
    image.SetDirection((turn @ np.reshape(image.GetDirection(), (3, 3))).ravel().tolist())
    image.SetOrigin((turn @ image.GetOrigin()).tolist())
    return replace(volume, image=image)


def voxels(volume: Volume) -> np.ndarray:
    return sitk.GetArrayFromImage(volume.image)


# --- nothing is wrong ---


def test_nothing_is_said_of_the_sample_patient():
    volumes = {name: sample(name) for name in SEQUENCES}
    masks = {name: mask_of(volume) for name, volume in volumes.items()}
    for name, volume in volumes.items():
        assert check_volume(volume, name) == []
        assert check_orientation(volume, name, masks[name]) == []
    assert check_ready(volumes, masks, "T1Gd") == []


def test_units_offset_and_depth_of_grey_levels_do_not_matter():
    array = voxels(sample("T2"))
    brain = array[array > 0]
    scores = np.where(array > 0, (array - brain.mean()) / brain.std(), -3)
    eight_bits = np.clip(array / np.percentile(brain, 99.9) * 255, 0, 255).round()
    noise = np.abs(np.random.default_rng(0).normal(0, 0.02 * brain.max(), array.shape))
    for other in (array / array.max(), 7 * array, scores, eight_bits, array + noise):
        assert check_volume(changed(sample("T2"), other), "T2") == []


# --- header and name ---


@pytest.mark.parametrize(("modality", "word"), [("CT", "CT"), ("PT", "PET")])
def test_another_machines_picture_is_refused(modality, word):
    with pytest.raises(InputError, match=rf"T1 \(T1.nii.gz\): its DICOM header says {word}, not MRI"):
        check_volume(replace(sample("T1"), tags={"Modality": modality}), "T1")


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ({"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "a localiser"),
        ({"ImageType": "DERIVED\\PRIMARY\\DIFFUSION\\ADC"}, "diffusion map"),
        ({"ScanningSequence": "EP\\SE"}, "echo-planar"),
        ({"SeriesDescription": "AX DWI b1000"}, "diffusion imaging"),
        ({"ProtocolName": "T2 HASTE localizer"}, "localiser"),
        ({"Modality": "MR", "ScanningSequence": "SE\\IR", "ImageType": "ORIGINAL\\PRIMARY\\M", "PatientID": "1"}, ""),
        ({"SeriesDescription": "T1 post gd after perfusion"}, ""),
    ],
)
def test_what_the_dicom_header_says(tags, word):
    warnings = check_volume(replace(sample("T2"), tags=tags), "T2")
    assert len(warnings) == bool(word)
    assert all(word in warning and warning.startswith("T2 (T2.nii.gz): ") for warning in warnings)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("ADC.nii.gz", "diffusion"),
        ("3plane_loc.nii.gz", "localiser"),
        ("flair_dwi.nii.gz", ""),
        ("Locke_01.nii.gz", ""),
    ],
)
def test_what_the_name_says(name, word):
    warnings = check_volume(replace(sample("FLAIR"), source=f"patients/DWI/{name}"), "FLAIR")
    assert len(warnings) == bool(word)
    assert all(word in warning for warning in warnings)


def nifti(path: Path, image: sitk.Image, *codes: int) -> Path:
    """A NIfTI file of `image` with these qform and sform codes."""
    sitk.WriteImage(image, str(path))
    data = bytearray(path.read_bytes())
    data[252:256] = struct.pack("<2h", *codes)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("codes", "told"), [((0, 0), True), ((1, 0), False), ((0, 1), False), ((2, 4), False)])
def test_a_header_that_says_nothing_of_directions_is_told(tmp_path, codes, told):
    path = nifti(tmp_path / "t1.nii", sample("T1").image, *codes)
    by_us, by_itk = read_volume(path), volume_from_image(sitk.ReadImage(str(path)), "t1.nii")
    warnings = check_volume(by_us, "T1")
    assert len(warnings) == told == (not by_us.oriented) == (not by_itk.oriented)
    if told:
        assert warnings[0].startswith(f"T1 ({path}): its header says nothing of the orientation")
        assert "guess, left and right too" in warnings[0]
    whole = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkInt16)  # no metadata, nothing claimed
    assert volume_from_image(whole, "t1.nii").oriented


# --- geometry ---


def thick(volume: Volume, step: int) -> Volume:
    return replace(volume, image=volume.image[:, :, ::step])


def test_slices_far_apart_are_told_and_those_of_the_clinic_are_not():
    assert check_volume(thick(fine("T2"), 6), "T2") == []
    (warning,) = check_volume(thick(fine("T2"), 12), "T2")
    assert "12 mm apart" in warning


@pytest.mark.parametrize(
    ("spacing", "told"),
    [((0.9, 0.9, 5.5), 0), ((1.2, 1.2, 1.2), 0), ((2.0, 2.0, 2.0), 0), ((1.8, 1.8, 5.0), 1), ((3.0, 3.0, 3.0), 1)],
)
def test_voxels_of_echo_planar_imaging(spacing, told):
    image = sample("T2").image
    size = [round(n * s / t) for n, s, t in zip(image.GetSize(), image.GetSpacing(), spacing)]
    coarse = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection(), 0.0
    )
    assert any("echo-planar" in text for text in check_volume(replace(sample("T2"), image=coarse), "T2")) == told


def planes(count: int, gap: int, axes: tuple[int, ...] = (0, 1, 2)) -> Volume:
    """Slices of the sample patient across each of `axes` (of the array) in turn, stacked as a localiser's file is."""
    array = np.pad(voxels(sample("T1")), ((21, 22), (0, 0), (0, 0)))  # 120 voxels a side
    middle = [round(c) for c in ndimage.center_of_mass(array > 0)]
    slices = []
    for axis in axes:
        for k in range(count):
            slices.append(np.take(array, middle[axis] + (k - count // 2) * gap // 2, axis))
    image = sitk.GetImageFromArray(np.stack(slices).astype(np.float32))
    return volume_from_image(image, "three.nii.gz")


@pytest.mark.parametrize(("count", "gap"), [(3, 10), (5, 10), (7, 8), (9, 6)])
def test_three_planes_in_one_stack_are_refused(count, gap):
    with pytest.raises(InputError, match=rf"T1 \(three.nii.gz\): {3 * count} slices in three stacks"):
        check_volume(planes(count, gap), "T1")


def test_a_stack_of_one_plane_is_not_taken_for_a_localiser():
    assert check_volume(planes(15, 6, (0,)), "T1") == []
    for step in (4, 6):
        stack = thick(fine("FLAIR"), step)
        for end in range(3):
            part = stack.image[:, :, : stack.image.GetSize()[2] - end]
            assert check_volume(replace(stack, image=part), "FLAIR") == []


def test_the_correlation_of_slices_is_that_of_their_voxels():
    first = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
    other = np.random.default_rng(1).normal(size=(12, 12)).astype(np.float32)
    image = sitk.GetImageFromArray(np.stack([first, 3 * first + 1, -first, other, np.zeros_like(first)]))
    image.SetSpacing((4.0, 4.0, 6.0))
    expected = np.corrcoef(first.ravel(), -other.ravel())[0, 1]
    np.testing.assert_allclose(slice_correlations(image), [1, -1, expected, 0], atol=1e-5)


def test_few_slices_and_series_of_volumes_are_refused_in_words():
    with pytest.raises(InputError, match=r"x 3 voxels; each axis needs at least 8. A localiser"):
        volume_from_image(sample("T1").image[:, :, 30:33], "a.nii")
    with pytest.raises(InputError, match="4-D with 2 volumes, as diffusion, perfusion or functional imaging"):
        volume_from_image(sitk.JoinSeries([sample("T1").image] * 2), "a.nii")


# --- a CT ---


def hounsfield() -> np.ndarray:
    """A head of 160 x 200 x 170 mm in air, 3 mm voxels: skin, a skull of 7 mm, a brain with texture; noise."""
    image = blank_image(spacing=(3.0, 3.0, 3.0), extent=240)
    points = voxel_points(image) - [12.0, -20.0, 31.0]
    rng = np.random.default_rng(0)
    texture = ndimage.gaussian_filter(rng.normal(size=points.shape[:3]), 1.5)
    head, skull, brain = (ellipsoid(points, 0, np.array([80, 100, 85]) - inset) for inset in (0, 6, 13))
    units = np.where(head, 20.0, -1000.0)
    units[skull] = 1200
    units[brain] = (34 + 6 * texture / texture.std())[brain]
    return units + rng.normal(0, 4, units.shape)


def scan(array: np.ndarray) -> Volume:
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing((3.0, 3.0, 1.5))  # not the coarse voxels that are told of by themselves
    return volume_from_image(image, "scan.nii.gz")


@pytest.mark.parametrize("lowest", [-3024, -1024, -1000])
def test_hounsfield_units_are_refused(lowest):
    with pytest.raises(InputError, match=r"T1 \(scan.nii.gz\): looks like a CT, not MRI: 79 % of its voxels"):
        check_volume(scan(np.maximum(hounsfield(), lowest)), "T1")


@pytest.mark.parametrize(
    ("low", "high", "shift"),
    [(0, 3000, 0), (0, 80, 0), (0, 100, 0), (0, 255, 0), (-40, 120, 40), (-100, 240, 0), (-1024, 3000, 1024)],
)
def test_a_ct_that_was_clipped_or_shifted_is_told(low, high, shift):
    volume = scan(np.clip(hounsfield(), low, high) + shift)
    assert any("as in a CT" in warning for warning in check_volume(volume, "T1"))


def test_a_diffusion_map_in_its_own_unit_is_told():
    array = voxels(sample("T2"))
    adc = array / np.median(array[array > 0]) * 0.0008
    (warning,) = check_volume(changed(sample("T2"), np.minimum(adc, 0.0029)), "T2")
    assert "ADC in mm2/s" in warning


# --- the brain ---


def test_a_brain_of_another_size_is_told_with_its_millilitres():
    small = replace(sample("T1"), image=sitk.Image(sample("T1").image))
    small.image.SetSpacing((1.0, 1.0, 1.0))
    mask = mask_of(small)
    (warning,) = check_brain(small, "T1", mask)
    assert f"the brain measures {np.count_nonzero(mask) / 1000:.0f} ml" in warning
    small.image.SetSpacing((3.0, 3.0, 2.0))
    assert len(check_brain(small, "T1", mask)) == 1


@pytest.mark.parametrize(
    ("cut", "turn", "side"),
    [
        ((slice(None), slice(None), slice(None, 38)), np.eye(3), "top"),
        ((slice(None), slice(None), slice(38, None)), np.eye(3), "bottom"),
        ((slice(None), slice(None, 60), slice(None)), np.eye(3), "back"),
        ((slice(60, None), slice(None), slice(None)), np.eye(3), "right"),
        ((slice(None), slice(None), slice(None, 38)), UPSIDE_DOWN, "bottom"),
    ],
)
def test_half_a_brain_is_told_with_the_side_and_the_area(cut, turn, side):
    whole = sample("T2")
    half = turned(replace(whole, image=whole.image[cut]), turn)
    mask = mask_of(half)
    (warning,) = check_brain(half, "T2", mask)
    axis, end = {"top": (0, -1), "bottom": (0, 0), "back": (1, -1), "right": (2, 0)}[side]
    end = -1 if turn is UPSIDE_DOWN else end
    area = np.count_nonzero(np.take(mask, end, axis)) * 4 / 100
    assert f"cuts through the brain ({area:.0f} cm2 at the {side};" in warning
    assert f"{np.count_nonzero(mask) * 8 / 1000:.0f} ml are shown" in warning
    assert check_orientation(half, "T2", mask) == []  # nothing can be told


def test_a_slab_is_told_with_both_sides():
    slab = replace(sample("T2"), image=sample("T2").image[:, :, 30:45])
    (warning,) = check_brain(slab, "T2", mask_of(slab))
    assert "at the bottom and" in warning and "at the top" in warning


def test_vessels_are_no_brain():
    rng = np.random.default_rng(0)
    array = np.zeros((80, 100, 90), np.float32)
    for _ in range(300):
        path = np.cumsum(rng.integers(-1, 2, (200, 3)), axis=0) + rng.integers(20, 60, 3)
        array[tuple(np.clip(path, 0, 79).T)] = 300
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 2.0))
    vessels = volume_from_image(image, "cta.nii.gz")
    with pytest.raises(InputError, match=r"T1 \(cta.nii.gz\): shows no brain but thin pieces"):
        check_brain(vessels, "T1", array > 0)


# --- orientation ---


@pytest.mark.parametrize(
    ("name", "turn", "words"),
    [
        ("T1", UPSIDE_DOWN, "looks upside down."),
        ("FLAIR", BACK_TO_FRONT, "looks turned back to front."),
        ("T2", UPSIDE_DOWN @ BACK_TO_FRONT, "looks upside down and back to front."),
        ("T1Gd", ON_ITS_BACK, "(its top lies at the header's back, its front at the top)"),
    ],
)
def test_a_wrong_header_is_told_in_words(name, turn, words):
    wrong = turned(sample(name), turn)
    (warning,) = check_orientation(wrong, name, mask_of(wrong))
    assert warning.startswith(f"{name} ({name}.nii.gz): its header does not fit the image")
    assert words in warning
    assert "left and right cannot be told" in warning


def test_left_and_right_are_not_told_apart():
    """A brain mirrored in its header fits as well as the brain itself; nothing may be claimed."""
    mirrored = turned(sample("T1"), MIRRORED)
    assert check_orientation(mirrored, "T1", mask_of(mirrored)) == []
    one, other = (orientation_of(v.image, mask_of(v)) for v in (sample("T1"), mirrored))
    assert one.as_header_says and other.as_header_says
    assert other.best == pytest.approx(one.best, rel=0.15)


def test_a_tilted_head_is_not_a_wrong_header():
    tilt = np.reshape(sitk.Euler3DTransform((0, 0, 0), *np.deg2rad([22, -10, 15])).GetMatrix(), (3, 3))
    tilted = turned(sample("FLAIR"), tilt)
    assert check_orientation(tilted, "FLAIR", mask_of(tilted)) == []


def test_an_ellipsoid_of_noise_has_no_orientation():
    image = blank_image(spacing=(2.0, 2.0, 2.0), extent=220)
    inside = ellipsoid(voxel_points(image), (12, -20, 31), (66, 82, 62))
    noise = np.random.default_rng(0).uniform(50, 150, inside.shape)
    volume = volume_from_image(array_to_image(np.where(inside, noise, 0).astype(np.float32), image), "noise.nii")
    assert check_orientation(volume, "T1", inside) == []


def test_the_orientations_are_the_24_rotations_of_a_cube():
    found = orientations()
    assert np.array_equal(found[0], np.eye(3))
    assert len({turn.tobytes() for turn in (np.rint(turn) + 0.0 for turn in found)}) == 24
    for turn in found:
        np.testing.assert_array_equal(turn @ turn.T, np.eye(3))
        assert np.linalg.det(turn) == pytest.approx(1)


# --- two patients ---


def another_patient(name: str) -> tuple[Volume, np.ndarray]:
    """The sample patient's mirror image, whose folds and tumour lie elsewhere, in the same place."""
    array = voxels(sample(name))[:, :, ::-1]
    return changed(sample(name), array, source=f"other_{name}.nii.gz"), array > 0


@pytest.mark.parametrize(("first", "second"), list(permutations(SEQUENCES, 2))[::2])
def test_two_patients_are_told_and_two_sequences_of_one_are_not(first, second):
    reference, same = sample(first), sample(second)
    mask = mask_of(reference)
    assert check_pair(reference, mask, same, mask_of(same), None) == []
    other, other_mask = another_patient(second)
    (warning,) = check_pair(reference, mask, other, other_mask, None)
    assert warning.startswith(f"other_{second}.nii.gz and {first}.nii.gz: the brains on them do not match")


def test_where_the_registration_laid_them_counts():
    shift = np.column_stack([np.eye(3), [15.0, -9.0, 12.0]])
    reference, moved = sample("T1"), replace(sample("T2"), image=sitk.Image(sample("T2").image))
    moved.image.SetOrigin((np.array(moved.image.GetOrigin()) + shift[:, 3]).tolist())
    masks = mask_of(reference), mask_of(moved)
    right = Registration(shift, 0.1, 0.8, 21.0, 0.0, "scanner")
    assert check_pair(reference, masks[0], moved, masks[1], right) == []
    assert len(check_pair(reference, masks[0], moved, masks[1], None)) == 1


def test_likeness_of_a_volume_with_itself_and_with_a_function_of_it():
    volume = sample("T1")
    mask, array = mask_of(volume), voxels(volume)
    itself = likeness(volume.image, mask, volume.image, mask)
    assert itself is not None and itself.edges == pytest.approx(1)
    inverse = changed(volume, np.where(mask, array.max() - array, 0))
    other = likeness(volume.image, mask, inverse.image, mask)
    assert other is not None and other.edges == pytest.approx(1, abs=1e-3)


def test_of_noise_and_of_slabs_nothing_is_claimed():
    noise = [brain_on(blank_image(), seed=seed) for seed in (0, 1)]
    masks = [find_foreground(image).mask for image in noise]
    assert likeness(noise[0], masks[0], noise[1], masks[1]) is None
    reference, other = sample("T1"), another_patient("T2")[0]
    slab = replace(other, image=other.image[:, :, 36:40])
    assert check_pair(reference, mask_of(reference), slab, voxels(slab) > 0, None) == []


def test_dicom_headers_of_two_patients():
    def tagged(name: str, **tags: str) -> Volume:
        return replace(sample(name), tags=tags)

    one = {"PatientID": "17", "PatientName": "DOE^JANE", "PatientBirthDate": "19600101"}
    first, mask = tagged("T1", **one), mask_of(sample("T1"))

    def warnings(**tags: str) -> list[str]:
        return check_pair(first, mask, tagged("T2", **tags), mask_of(sample("T2")), None)

    assert warnings() == warnings(**one) == warnings(PatientName="Doe Jane") == []
    assert warnings(**{**one, "PatientID": "hospital 2/9"}) == []
    (warning,) = warnings(PatientID="18")
    assert "PatientID differ" in warning
    (warning,) = warnings(**{**one, "PatientName": "ROE^JOHN", "PatientBirthDate": "19710203"})
    assert "(PatientName, PatientBirthDate differ)" in warning
    assert "ROE" not in warning and "1971" not in warning  # a notice names nobody


def test_the_same_warning_is_given_once():
    volumes = {name: sample(name) for name in ("T1", "T2", "FLAIR")}
    said = {
        "T1": ["T1 (T1.nii.gz): is cut."],
        "T2": ["T2 (T2.nii.gz): is cut.", "T2 (T2.nii.gz): is old."],
        "FLAIR": [],
    }
    assert together(volumes, said) == ["T1 (T1.nii.gz), T2 (T2.nii.gz): is cut.", "T2 (T2.nii.gz): is old."]


# --- the whole way ---


def test_the_pipeline_tells_and_refuses():
    pipeline = pytest.importorskip("MSTKDSegmentLib.pipeline", reason="needs torch", exc_type=ImportError)
    with pytest.raises(InputError, match="looks like a CT"):
        pipeline.read_case({"T1": scan(hounsfield())})
    other, _ = another_patient("T2")
    notices = pipeline.read_case({"T1": sample("T1"), "T2": other}).notices
    assert any("do not match" in notice for notice in notices)
    upper = {name: sample(name).image[:, :, 40:] for name in ("T1", "T2")}
    (cut,) = (n for n in pipeline.read_case(upper).notices if "cuts through the brain" in n)
    assert cut.startswith("T1 (image in memory), T2 (image in memory): ")


# --- real patients ---


def patient(case: str, *names: str) -> dict[str, Volume]:
    return {name: volume_from_image(labelled(case, name), f"{case} {name}") for name in names}


def test_real_patients_are_told_apart_and_none_is_warned_of():
    cases = validation_cases()[:4]
    volumes = [patient(case, "T1Gd", "FLAIR") for case in cases]
    masks = [{name: mask_of(volume) for name, volume in one.items()} for one in volumes]
    for one, brains in zip(volumes, masks):
        for name, volume in one.items():
            assert check_volume(volume, name) == []
        assert check_ready(one, brains, "T1Gd") == []
    for k in range(len(cases)):
        other = (k + 1) % len(cases)
        pair = {"T1Gd": volumes[k]["T1Gd"], "FLAIR": volumes[other]["FLAIR"]}
        brains = {"T1Gd": masks[k]["T1Gd"], "FLAIR": masks[other]["FLAIR"]}
        (warning,) = check_ready(pair, brains, "T1Gd")
        assert "do not match" in warning


def test_a_real_patient_upside_down():
    case = validation_cases()[1]
    wrong = turned(patient(case, "FLAIR")["FLAIR"], UPSIDE_DOWN)
    (warning,) = check_orientation(wrong, "FLAIR", mask_of(wrong))
    assert "upside down" in warning


def test_a_raw_patient_and_one_with_a_wrong_header():
    brain_extraction = pytest.importorskip("MSTKDSegmentLib.brain_extraction")
    pytest.importorskip("torch")
    right = volume_from_image(raw("T1"), "t1.nii.gz")
    assert check_volume(right, "T1") == []
    for volume, word in ((right, ""), (turned(right, UPSIDE_DOWN), "upside down")):
        probability = brain_extraction.brain_probability(volume.image, volume.source)
        mask = brain_extraction.mask_on(probability, volume.image)
        assert check_brain(volume, "T1", mask) == []
        warnings = check_orientation(volume, "T1", mask)
        assert len(warnings) == bool(word)
        assert all(word in warning for warning in warnings)
