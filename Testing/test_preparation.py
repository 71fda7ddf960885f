"""From clinical volumes to what the network knows, and back: the sample patient, moved, in thick slices, with skull."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

pytest.importorskip("torch")

from MSTKDSegmentLib import brain_extraction, brain_search, keep, preparation, specialists
from MSTKDSegmentLib.alignment import rigid_matrix, samples
from MSTKDSegmentLib.bias_field import corrected
from MSTKDSegmentLib.brain_extraction import brain_probability
from MSTKDSegmentLib.cli import main
from MSTKDSegmentLib.errors import Cancelled, GeometryError, InputError, OutputError
from MSTKDSegmentLib.geometry import to_native
from MSTKDSegmentLib.keep import kept_files, write_kept
from MSTKDSegmentLib.look_roles import doubtful_looks
from MSTKDSegmentLib.pipeline import PreparedCase, read_case
from MSTKDSegmentLib.preparation_record import READY, Wishes
from MSTKDSegmentLib.registration import as_transform, centre, composed, distance_mm, inverted
from MSTKDSegmentLib.specialists import SpecialistFailed
from MSTKDSegmentLib.volumes import volume_from_image
from phantom import dice

from training.clinical import ClinicalCase, degraded
from training.discovery import find_case

SAMPLE = Path(__file__).resolve().parents[1] / "Resources" / "sample"
SEED = 2  # with it FLAIR has the thick slices
USED = ("T1Gd", "FLAIR")


@pytest.fixture(scope="module")
def clinical() -> ClinicalCase:
    return degraded(find_case(SAMPLE), SEED, shell=True, sequences=USED)


@pytest.fixture(scope="module")
def images(clinical) -> dict[str, sitk.Image]:
    """On voxels of 2 mm, for speed."""
    return {
        name: sitk.BinShrink(clinical.images[name], [2 if s < 2 else 1 for s in clinical.images[name].GetSpacing()])
        for name in USED
    }


@pytest.fixture(scope="module")
def told() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="module")
def case(images, told) -> PreparedCase:
    return read_case(images, progress=lambda share, text: told.append((share, text)), wishes=Wishes(extractor="own"))


def brain_on(clinical: ClinicalCase, image: sitk.Image, name: str) -> np.ndarray:
    back = as_transform(inverted(clinical.matrices[name]))
    return sitk.GetArrayFromImage(sitk.Resample(clinical.brain, image, back, sitk.sitkNearestNeighbor, 0)) > 0


def test_it_is_degraded_as_it_says(clinical):
    assert clinical.thick == ("T2", "FLAIR")
    assert sorted(clinical.images["FLAIR"].GetSpacing()) == [1.0, 1.0, 5.0]
    assert clinical.images["T1Gd"].GetSpacing() == (1.0, 1.0, 1.0)


def test_skull_movement_and_pose_are_recognised(case):
    record = case.record
    assert not record.challenge_ready and not record.stripped and not record.registered
    assert record.extractor == "own network"
    assert record.turned_degrees == record.head_degrees > 5
    assert record.sequences["FLAIR"].moved and not record.sequences["T1Gd"].moved
    assert record.sequences["FLAIR"].similarity_after > record.sequences["FLAIR"].similarity_before + 0.05
    text = " ".join(case.notices)
    assert "The skull was removed here" in text and "Moved to lie on T1Gd: FLAIR by" in text and "turned by" in text


def test_the_movement_is_undone(clinical, case):
    mask = sitk.GetArrayFromImage(clinical.brain) > 0
    points = samples(clinical.brain, mask, 500).points
    here = points @ clinical.matrices["T1Gd"][:, :3].T + clinical.matrices["T1Gd"][:, 3]
    true = composed(clinical.matrices["FLAIR"], inverted(clinical.matrices["T1Gd"]))
    found = composed(case.matrices["FLAIR"], inverted(case.matrices["T1Gd"]))
    assert distance_mm(found, true, here.tolist()) < 2.0


def test_the_brain_is_found(clinical, case):
    reference = case.reference_image
    found = to_native(case.brain, case.grid, reference, is_label=True, matrix=case.matrix("T1Gd")).astype(bool)
    assert dice(found, brain_on(clinical, reference, "T1Gd")) > 0.92
    assert case.record.brain_ml == pytest.approx(case.brain.sum() / 1000)


def test_the_network_sees_z_scores_in_the_brain_and_nothing_else(case):
    for name, channel in zip(("T1", "T1Gd", "T2", "FLAIR"), case.image):
        assert not channel[~case.brain].any()
        if name in USED:
            assert abs(channel[case.brain].mean()) < 0.3 and 0.6 < channel[case.brain].std() < 1.3
        else:
            assert not channel.any()


def test_points_come_back_to_where_they_were(clinical, case):
    """A ball in canonical space lands on the same spot of both native grids."""
    z, y, x = np.indices(case.grid.shape)
    middle = np.argwhere(case.brain).mean(axis=0)
    ball = ((np.stack([z, y, x], -1) - middle) ** 2).sum(-1) < 12**2
    centres = {}
    for name in USED:
        image = case.volumes[name].image
        native = to_native(ball, case.grid, image, is_label=True, matrix=case.matrix(name))
        index = np.argwhere(native).mean(axis=0)[::-1]
        centres[name] = np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist()))
    back = inverted(clinical.matrices["FLAIR"])
    on_t1gd = composed(clinical.matrices["T1Gd"], back)
    expected = on_t1gd[:, :3] @ centres["FLAIR"] + on_t1gd[:, 3]
    assert np.linalg.norm(centres["T1Gd"] - expected) < 2.5


def test_progress_names_the_stages_and_never_falls(told, case):
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and max(shares) <= case.prepared_share
    texts = [text for _, text in told]
    for stage in ("finding the brain on T1Gd", "registering FLAIR to T1Gd", "finding how the head lies"):
        assert stage in texts


def test_it_can_be_cancelled_in_the_middle(images):
    seen: list[str] = []
    with pytest.raises(Cancelled):
        read_case(
            images,
            progress=lambda _share, text: seen.append(text),
            cancel=lambda: any("registering" in text for text in seen),
            wishes=Wishes(extractor="own"),
        )
    assert not any("how the head lies" in text for text in seen)


def test_the_brain_extraction_is_cancelled_between_two_layers(images):
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 10

    with pytest.raises(Cancelled):
        brain_probability(images["T1Gd"], "head", cancel=stop)
    assert len(asked) == 11  # two before the first look, then one before each layer
    whole = []
    brain_probability(images["T1Gd"], "head", cancel=lambda: bool(whole.append(1)))
    assert len(whole) > 60
    # The network is kept, and asks nobody afterwards.
    assert not any(module._forward_pre_hooks for module in brain_extraction._network().modules())


def test_no_stretch_of_a_preparation_goes_by_without_a_look_at_cancel(images):
    """Of all that takes time, no more than a few percent lie between two looks."""
    looks = [time.perf_counter()]
    read_case(images, cancel=lambda: bool(looks.append(time.perf_counter())), wishes=Wishes(extractor="own"))
    looks.append(time.perf_counter())
    gaps = np.diff(looks)
    assert len(gaps) > 200 and gaps.max() < max(1.0, 0.25 * gaps.sum())


def test_doubts_about_looks_are_cancelled_before_each_volume(images):
    volumes = {name: volume_from_image(images[name], name) for name in USED}
    masks = {name: np.ones(images[name].GetSize()[::-1], bool) for name in USED}
    asked = []
    with pytest.raises(Cancelled):
        doubtful_looks(volumes, masks, lambda: bool(asked.append(1)) or len(asked) == 2)
    assert len(asked) == 2


def test_what_was_done_can_be_kept(case, tmp_path):
    paths = kept_files(tmp_path, case.subset)
    write_kept(case, {path: path for path in paths})
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(path.name for path in paths)
    prepared = sitk.ReadImage(str(tmp_path / "FLAIR_prepared.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(prepared), case.image[3])
    np.testing.assert_allclose(prepared.GetOrigin(), case.grid.origin, atol=1e-3)
    transform = sitk.ReadTransform(str(tmp_path / "canonical_to_FLAIR.tfm"))
    point = np.array([10.0, -20.0, 30.0])
    matrix = case.matrices["FLAIR"]
    np.testing.assert_allclose(
        transform.TransformPoint(point.tolist()), matrix[:, :3] @ point + matrix[:, 3], atol=1e-6
    )
    native = sitk.ReadImage(str(tmp_path / "brain_mask_native.nrrd"))
    assert native.GetSize() == case.reference_image.GetSize()
    expected = to_native(case.brain, case.grid, case.reference_image, is_label=True, matrix=case.matrix("T1Gd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(native), expected)
    assert '"source": "image in memory"' in (tmp_path / "preparation.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("ending", ["_prepared.nii.gz", "brain_mask.nii.gz"])
def test_a_kept_file_that_a_full_disk_cut_short_is_noticed(case, tmp_path, monkeypatch, ending):
    write = sitk.WriteImage

    def cut(image, name, **options):  # without an error, as ITK does it
        write(image * 0 if name.endswith(ending) else image, name, **options)

    monkeypatch.setattr(keep.sitk, "WriteImage", cut)
    with pytest.raises(OutputError, match=rf"{ending} could not be written: what was read back differs"):
        write_kept(case, {path: path for path in kept_files(tmp_path, case.subset)})


def test_the_cpu_stands_in_for_a_gpu_aloud(images, monkeypatch):
    look = brain_extraction._sigmoid

    def full(seen, device, cancel):
        if device == "cuda":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return look(seen, device, cancel)

    monkeypatch.setattr(brain_extraction, "_sigmoid", full)
    case = read_case(images, wishes=Wishes(extractor="own"), device=lambda: "cuda")
    said = [notice for notice in case.notices if "on the CPU" in notice]
    assert said == [
        "The brain was looked for on the CPU, for cuda failed (CUDA out of memory. Tried to allocate 2 GiB)."
    ]


def test_the_brain_of_a_sheared_reference_is_kept_where_it_is(tmp_path):
    image = sitk.BinShrink(sitk.ReadImage(str(SAMPLE / "sample_t1.nii.gz"), sitk.sitkFloat32), [4, 4, 4])
    sheared = sitk.Image(image)
    direction = np.reshape(image.GetDirection(), (3, 3)).copy()
    direction[:, 2] += 0.3 * direction[:, 1]
    sheared.SetDirection((direction / np.linalg.norm(direction, axis=0)).ravel().tolist())
    case = read_case({"T1": sheared}, wishes=READY)
    write_kept(case, {path: path for path in kept_files(tmp_path, case.subset)})
    native = sitk.ReadImage(str(tmp_path / "brain_mask_native.nrrd"))
    corner = [size - 1 for size in sheared.GetSize()]
    np.testing.assert_allclose(
        native.TransformIndexToPhysicalPoint(corner), sheared.TransformIndexToPhysicalPoint(corner), atol=1e-3
    )


# --- how the head lies -----------------------------------------------------------------------------------------------


def test_a_slab_is_not_turned_by_what_its_outline_seems_to_say(images):
    """Its middle is not the head's, so its pose means nothing."""
    whole = images["T1Gd"]
    axis = int(np.abs(np.reshape(whole.GetDirection(), (3, 3))[2]).argmax())
    cut = [slice(None)] * 3
    cut[axis] = slice(int(0.35 * whole.GetSize()[axis]), int(0.65 * whole.GetSize()[axis]))
    slab = read_case({"T1Gd": whole[tuple(cut)]}, wishes=Wishes(extractor="own"))
    assert slab.record.turned_degrees == 0 and slab.record.head_degrees is None
    np.testing.assert_array_equal(slab.matrix("T1Gd"), np.eye(3, 4))


def test_a_turn_that_fits_no_better_is_not_made(images, monkeypatch):
    monkeypatch.setattr(preparation, "gain_of_turn", lambda *_arguments: 0.01)
    left = read_case({"T1Gd": images["T1Gd"]}, wishes=Wishes(extractor="own"))
    assert left.record.turned_degrees == 0 and left.record.head_degrees > 5
    assert any("fits the template no better" in notice for notice in left.notices)


def test_a_turn_towards_the_template_wins_and_one_away_loses(images):
    from MSTKDSegmentLib.orientation import gain_of_turn
    from MSTKDSegmentLib.template import pose_of, rigid_part

    image = sitk.ReadImage(str(SAMPLE / "sample_t1.nii.gz"), sitk.sitkFloat32)
    mask = sitk.GetArrayFromImage(image) > 0
    turned = sitk.Resample(
        image, image, as_transform(rigid_matrix(np.array([0, 0, 0, 0, 14.0, 12.0]), centre(image, mask)))
    )
    mask = sitk.GetArrayFromImage(turned) > 0
    pose = pose_of(turned, mask)
    assert gain_of_turn(turned, mask, pose) > 0.07
    back = rigid_part(pose).T @ rigid_part(pose).T  # as far to the other side
    wrong = np.column_stack([back @ pose[:, :3], pose[:, 3]])
    assert gain_of_turn(turned, mask, wrong) < 0


# --- other ways to a brain -------------------------------------------------------------------------------------------


def test_a_mask_that_the_user_gives_is_taken(clinical, images):
    mask = sitk.GetImageFromArray(brain_on(clinical, images["T1Gd"], "T1Gd").astype(np.uint8))
    mask.CopyInformation(images["T1Gd"])
    case = read_case({"T1Gd": images["T1Gd"]}, wishes=Wishes(brain_mask=mask))
    assert case.record.extractor == "mask given by the user"
    found = to_native(case.brain, case.grid, case.reference_image, is_label=True, matrix=case.matrix("T1Gd"))
    assert dice(found.astype(bool), sitk.GetArrayFromImage(mask).astype(bool)) > 0.97


def test_a_mask_for_volumes_that_are_ready_is_taken_and_nothing_moved():
    image = sitk.BinShrink(sitk.ReadImage(str(SAMPLE / "sample_t1.nii.gz"), sitk.sitkFloat32), [2, 2, 2])
    half = sitk.GetImageFromArray((sitk.GetArrayFromImage(image) > 0).astype(np.uint8))
    half.CopyInformation(image)
    half[:, :, : image.GetSize()[2] // 2] = 0
    case = read_case({"T1": image}, wishes=Wishes(brain_mask=half))
    assert case.record.extractor == "mask given by the user" and case.record.turned_degrees == 0
    found = to_native(case.brain, case.grid, image, is_label=True, matrix=case.matrix("T1"))
    assert dice(found.astype(bool), sitk.GetArrayFromImage(half).astype(bool)) > 0.97


def test_what_one_sequence_does_not_cover_the_other_still_shows(images):
    """Two skulls, the FLAIR without its upper half: the brain is that of the T1Gd."""
    whole = images["T1Gd"]
    axis = int(np.abs(np.reshape(whole.GetDirection(), (3, 3))[2]).argmax())
    cut = [slice(None)] * 3
    cut[axis] = slice(0, whole.GetSize()[axis] // 2)
    lower = sitk.Cast(whole[tuple(cut)] * 2 + 5, sitk.sitkFloat32)
    alone = read_case({"T1Gd": whole}, wishes=Wishes(extractor="own"))
    both = read_case({"T1Gd": whole, "FLAIR": lower}, wishes=Wishes(extractor="own", registered=True))
    assert both.record.brain_ml > 0.95 * alone.record.brain_ml


def test_a_mask_beside_the_brain_is_refused(images):
    mask = sitk.Cast(images["T1Gd"] * 0 + 1, sitk.sitkUInt8)
    mask.SetOrigin((5000.0, 0.0, 0.0))
    words = r"brain.nii.gz: the brain mask does not overlap the reference T1Gd \(image in memory\)"
    with pytest.raises(GeometryError, match=words):
        read_case({"T1Gd": images["T1Gd"]}, wishes=Wishes().with_mask(mask, "brain.nii.gz"))


def marked_box(image: sitk.Image, *sides: slice) -> sitk.Image:
    """A mask on the voxels of `image`: 1 in the box `sides` (z, y, x)."""
    box = np.zeros(image.GetSize()[::-1], np.uint8)
    box[sides] = 1
    mask = sitk.GetImageFromArray(box)
    mask.CopyInformation(image)
    return mask


@pytest.mark.parametrize(
    ("sides", "kind", "words"),
    [
        ((slice(0),) * 3, InputError, "brain.nrrd: the brain mask is empty"),
        ((slice(50, 60),) * 3, InputError, "brain.nrrd: the brain mask marks 8 ml on the reference T1Gd .*too little"),
        ((slice(None), slice(60, 61)), InputError, "brain.nrrd: the brain mask on T1Gd .* is no brain but thin pieces"),
    ],
)
def test_a_mask_that_is_no_brain_is_refused_by_its_own_name(images, sides, kind, words):
    mask = marked_box(images["T1Gd"], *sides)
    with pytest.raises(kind, match=words) as raised:
        read_case({"T1Gd": images["T1Gd"]}, wishes=Wishes().with_mask(mask, "brain.nrrd"))
    assert type(raised.value) is kind


def test_the_command_line_names_the_masks_file(tmp_path, case_files, random_bundle, capsys):
    path = tmp_path / "empty mask.nii.gz"
    sitk.WriteImage(sitk.Cast(sitk.ReadImage(str(case_files["flair"])) * 0, sitk.sitkUInt8), str(path))
    arguments = ["segment", "--flair", case_files["flair"], "--brain-mask", path, "--weights", random_bundle]
    code = main([*map(str, arguments), "-o", str(tmp_path / "out.nii.gz"), "--quiet"])
    assert code == InputError.exit_code and f"{path}: the brain mask is empty" in capsys.readouterr().err


def test_a_mask_that_lies_mostly_beside_the_reference_is_refused_as_such(images):
    mask = marked_box(images["T1Gd"], slice(40, 90), slice(40, 90))
    mask.SetOrigin(mask.TransformIndexToPhysicalPoint((mask.GetSize()[0] - 2, 0, 0)))
    with pytest.raises(GeometryError, match=r"brain mask: only \d+ of the 2400 ml of the brain mask lie on"):
        read_case({"T1Gd": images["T1Gd"]}, wishes=Wishes(brain_mask=mask))


def test_a_mask_of_odd_size_is_told_with_its_name(images):
    mask = marked_box(images["T1Gd"], *(slice(40, 75),) * 3)
    case = read_case({"T1Gd": images["T1Gd"]}, wishes=Wishes().with_mask(mask, "small.nii.gz"))
    ml = 35**3 * 8 / 1000
    assert any(f"{ml:.0f} ml" in text and "the brain mask small.nii.gz;" in text for text in case.notices)


class Program:
    key, title, sequences = "hd-bet", "HD-BET 9", ("T1Gd",)


def test_a_specialists_mask_serves_all_that_follows(clinical, images, monkeypatch):
    """The reference's brain is theirs in the registration and the pose too; ours is not asked for it."""
    mask = brain_on(clinical, images["T1Gd"], "T1Gd")
    ours: list[str] = []

    def counted(image, source, *others):
        ours.append("FLAIR" if image.GetSize() == images["FLAIR"].GetSize() else "T1Gd")
        return brain_probability(image, source, *others)

    told: list[str] = []

    def marked(_program, _image, _device, _cancel, progress):
        progress("HD-BET 9 looks for the brain (1 s)")
        return mask

    monkeypatch.setattr(specialists, "installed", lambda: [Program()])
    monkeypatch.setattr(brain_search, "extract", marked)
    monkeypatch.setattr(brain_search, "brain_probability", counted)
    case = read_case(images, progress=lambda _share, text: told.append(text))
    assert case.record.extractor == "HD-BET 9" and ours == ["FLAIR"]
    assert told.count("extracting the brain with HD-BET 9") == 2  # at its start, and while it worked
    found = to_native(case.brain, case.grid, case.reference_image, is_label=True, matrix=case.matrix("T1Gd"))
    assert dice(found.astype(bool), mask) > 0.97


class T1Program(Program):
    title, sequences = "deepbet 9", ("FLAIR",)  # that it takes FLAIR alone is made up


def test_a_specialist_that_does_not_take_the_reference_marks_another_sequence(clinical, images, monkeypatch):
    """Its mask there is what the final one is made of; ours, on the reference, serves the registration only."""
    mask = ndimage.binary_erosion(brain_on(clinical, images["FLAIR"], "FLAIR"), iterations=2)  # unlike ours
    asked: list[tuple[int, ...]] = []

    def marked(_program, image, *_more):
        asked.append(image.GetSize())
        return mask

    told: list[str] = []
    monkeypatch.setattr(specialists, "installed", lambda: [T1Program()])
    monkeypatch.setattr(brain_search, "extract", marked)
    case = read_case(images, progress=lambda _share, text: told.append(text))
    assert case.reference == "T1Gd" and asked == [images["FLAIR"].GetSize()]
    assert case.record.extractor == "deepbet 9 on FLAIR"
    assert any("removed here (deepbet 9 on FLAIR;" in notice for notice in case.notices)
    assert {"extracting the brain with deepbet 9 on FLAIR", "finding the brain on T1Gd"} <= set(told)
    found = to_native(case.brain, case.grid, images["FLAIR"], is_label=True, matrix=case.matrix("FLAIR")).astype(bool)
    assert dice(found, mask) > 0.95
    assert dice(found, brain_on(clinical, images["FLAIR"], "FLAIR")) < dice(found, mask) - 0.03


def test_what_no_program_takes_is_found_by_our_own_network(images, monkeypatch):
    monkeypatch.setattr(specialists, "installed", lambda: [T1Program()])
    monkeypatch.setattr(brain_search, "extract", lambda *_: pytest.fail("it takes no T1Gd"))
    assert read_case({"T1Gd": images["T1Gd"]}).record.extractor == "own network"
    with pytest.raises(InputError, match="deepbet is not installed here or takes no T1Gd; install it"):
        read_case({"T1Gd": images["T1Gd"]}, wishes=Wishes(extractor="deepbet"))


def test_a_brain_on_a_sequence_that_could_not_be_registered_is_of_no_use():
    brains = brain_search.Brains({}, ("T1",), "deepbet on T1", ("said before",))
    assert brains.without_lost(["FLAIR"], "T1Gd") is brains
    left = brains.without_lost(["T1", "FLAIR"], "T1Gd")
    assert (left.trusted, left.extractor) == (("T1Gd",), "own network")
    assert left.notices[0] == "said before" and left.notices[1].startswith("T1 could not be laid on T1Gd")
    some = replace(brains, trusted=("T1", "T1Gd"))
    assert some.without_lost(["T1"], "T1Gd") is some


def test_a_program_that_is_named_is_not_run_where_the_skull_is_gone(monkeypatch):
    image = sitk.BinShrink(sitk.ReadImage(str(SAMPLE / "sample_t1.nii.gz"), sitk.sitkFloat32), [4, 4, 4])
    monkeypatch.setattr(specialists, "installed", lambda: [])
    for wishes in (Wishes(extractor="hd-bet"), Wishes(extractor="hd-bet", bias_correction=True)):
        case = read_case({"T1": image}, wishes=wishes)
        assert any("brain extraction that you chose was not run" in notice for notice in case.notices)
        assert case.record.extractor == "none: skull-stripped already"


def test_of_partly_stripped_cases_it_is_said_where_the_brain_comes_from(clinical, images):
    alone = sitk.GetImageFromArray(
        np.where(brain_on(clinical, images["T1Gd"], "T1Gd"), sitk.GetArrayFromImage(images["T1Gd"]), 0)
    )
    alone.CopyInformation(images["T1Gd"])
    case = read_case({"T1Gd": alone, "FLAIR": images["FLAIR"]})
    assert case.record.extractor == "outline of the skull-stripped sequences"
    assert not case.record.stripped and case.record.sequences["T1Gd"].stripped


def test_a_specialist_that_fails_is_named_and_our_own_is_used(images, monkeypatch):
    def fails(*_arguments):
        raise SpecialistFailed("HD-BET 9 failed: no room on the disk.")

    monkeypatch.setattr(specialists, "installed", lambda: [Program()])
    monkeypatch.setattr(brain_search, "extract", fails)
    case = read_case({"T1Gd": images["T1Gd"]})
    assert case.record.extractor == "own network"
    assert any("HD-BET 9 failed" in notice and "Our own" in notice for notice in case.notices)
    with pytest.raises(SpecialistFailed, match=r"T1Gd \(image in memory\): HD-BET 9 failed"):  # named: nothing else
        read_case({"T1Gd": images["T1Gd"]}, wishes=Wishes(extractor="hd-bet"))


def test_of_two_specialists_the_second_is_used_and_said(clinical, images, monkeypatch):
    mask = brain_on(clinical, images["FLAIR"], "FLAIR")

    def extract(program, *_more):
        if program.sequences == ("T1Gd",):
            raise SpecialistFailed("HD-BET 9 wrote no brain mask.")
        return mask

    monkeypatch.setattr(specialists, "installed", lambda: [T1Program(), Program()])
    monkeypatch.setattr(brain_search, "extract", extract)
    case = read_case(images)
    said = "T1Gd (image in memory): HD-BET 9 wrote no brain mask. deepbet 9 on FLAIR was used instead."
    assert said in case.notices and case.record.extractor == "deepbet 9 on FLAIR"


def test_a_specialist_that_is_not_there_is_an_error(images, monkeypatch):
    monkeypatch.setattr(specialists, "installed", list)
    with pytest.raises(InputError, match="synthstrip is not installed"):
        read_case({"T1Gd": images["T1Gd"]}, wishes=Wishes(extractor="synthstrip"))


def test_other_patients_organs_cannot_be_registered(images):
    rng = np.random.default_rng(0)
    reference = images["T1Gd"]
    noise = sitk.GetImageFromArray(rng.normal(100, 5, reference.GetSize()[::-1]).astype(np.float32))
    noise.CopyInformation(reference)
    with pytest.raises(InputError):  # no brain on it, or nothing in common
        read_case({"T1Gd": reference, "T2": noise}, wishes=Wishes(extractor="own"))


# --- bias field ------------------------------------------------------------------------------------------------------


def test_a_bias_field_is_taken_away():
    image = sitk.BinShrink(sitk.ReadImage(str(SAMPLE / "sample_t1.nii.gz"), sitk.sitkFloat32), [3, 3, 3])
    voxels = sitk.GetArrayFromImage(image)
    brain = voxels > 0
    ramp = np.exp(np.linspace(-0.5, 0.5, voxels.shape[2]))[None, None, :]
    biased = sitk.GetImageFromArray((voxels * ramp).astype(np.float32))
    biased.CopyInformation(image)
    mended = sitk.GetArrayFromImage(corrected(biased, brain))

    def slope(array: np.ndarray) -> float:
        x = np.broadcast_to(np.linspace(-0.5, 0.5, voxels.shape[2]), voxels.shape)[brain]
        return float(np.polyfit(x, np.log(np.maximum(array[brain], 1.0)), 1)[0])

    before, after = slope(voxels * ramp) - slope(voxels), slope(mended) - slope(voxels)
    assert before == pytest.approx(1.0, abs=0.05)
    assert abs(after) < 0.3 * before


def test_bias_correction_can_be_cancelled():
    image = sitk.BinShrink(sitk.ReadImage(str(SAMPLE / "sample_t1.nii.gz"), sitk.sitkFloat32), [3, 3, 3])
    calls: list[None] = []

    def stop() -> bool:
        calls.append(None)
        return len(calls) > 2

    with pytest.raises(Cancelled):
        corrected(image, sitk.GetArrayFromImage(image) > 0, stop)
    assert len(calls) < 20  # it ended there, and not after all iterations


def test_bias_correction_ends_being_left_alone():
    image = sitk.BinShrink(sitk.ReadImage(str(SAMPLE / "sample_t1.nii.gz"), sitk.sitkFloat32), [4, 4, 4])
    plain = read_case({"T1": image})
    mended = read_case({"T1": image}, wishes=Wishes(bias_correction=True))
    assert plain.record.challenge_ready and not plain.matrices
    assert mended.record.bias_corrected and not mended.record.challenge_ready
    assert "bias field" in " ".join(mended.notices)
    assert replace(mended.record, bias_corrected=False, upright=True).challenge_ready
