"""What is where: the reference, head or brain, overlap, and a volume that was given twice."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.errors import GeometryError, InputError, RoleError
from MSTKDSegmentLib.geometry import array_to_image
from MSTKDSegmentLib.overlap import (
    check_overlap,
    default_reference,
    find_foreground,
    foreground,
    is_skull_stripped,
    same_volume_twice,
)
from MSTKDSegmentLib.volumes import volume_from_image
from phantom import BRAIN_RADII, CENTRE, OBLIQUE, blank_image, brain_on, dice, ellipsoid, volumes_of, voxel_points


def test_default_reference():
    fine, same, coarse = (
        blank_image(spacing=(0.9, 0.9, 1.0)),
        blank_image(spacing=(0.9, 0.9, 1.005)),
        blank_image(spacing=(0.9, 0.9, 5)),
    )
    assert default_reference({"T1": coarse, "T2": fine}) == "T2"
    assert default_reference({"T1": fine, "T2": same, "FLAIR": same, "T1Gd": coarse}) == "FLAIR"
    assert default_reference({"T1": fine, "T1Gd": same}) == "T1Gd"
    assert default_reference({"T1": fine, "other": fine}) == "T1"
    with pytest.raises(InputError, match="at least one"):
        default_reference({})


def _with_skull(image: sitk.Image) -> sitk.Image:
    points = voxel_points(image)
    rng = np.random.default_rng(5)
    noise = np.abs(rng.normal(0, 4, points.shape[:3]))
    head = ellipsoid(points, CENTRE, BRAIN_RADII + 10)
    return array_to_image(np.where(head, rng.uniform(80, 160, head.shape), noise).astype(np.float32), image)


def test_skull_stripped_or_not():
    assert is_skull_stripped(brain_on(blank_image()))
    assert is_skull_stripped(brain_on(blank_image()) * 0.5 - 1)  # a background other than 0
    assert not is_skull_stripped(_with_skull(blank_image(extent=100)))


def _life_size(shape: str) -> sitk.Image:
    """A brain of 140 x 176 x 130 mm or a head of 160 x 200 mm with its neck, both in exact zeros, 2 mm voxels."""
    image = blank_image(spacing=(2.0, 2.0, 2.0), extent=220)
    points = voxel_points(image)
    inside = ellipsoid(points, CENTRE, (70, 88, 65) if shape == "brain" else (80, 100, 95))
    if shape == "head":
        inside |= ((points - CENTRE)[..., :2] ** 2).sum(-1) <= 60**2
        inside &= (points - CENTRE)[..., 2] < 95
    texture = np.random.default_rng(2).uniform(50, 150, inside.shape)
    return array_to_image(np.where(inside, texture, 0).astype(np.float32), image)


def test_a_field_of_view_that_cuts_the_brain_does_not_make_a_skull():
    brain = _life_size("brain")
    assert is_skull_stripped(brain)
    middle = brain.GetSize()[2] // 2
    below_vertex = brain[:, :, : middle + 25]  # 15 mm below the vertex
    assert is_skull_stripped(below_vertex)
    assert find_foreground(below_vertex).mask.any(axis=(1, 2))[-1]
    assert is_skull_stripped(brain[:, :, middle - 15 : middle + 15])  # axial slab
    assert is_skull_stripped(brain[middle - 15 : middle + 15])  # sagittal slab
    # Cut along two axes: four faces show brain, and little background is left to know it by.
    assert not is_skull_stripped(brain[middle - 15 : middle + 15, :, middle - 15 : middle + 15])


def test_a_head_in_zeroed_air_cut_at_the_neck_is_no_stripped_brain():
    head = _life_size("head")
    assert sitk.GetArrayViewFromImage(head)[0].any()
    assert not is_skull_stripped(head)
    middle = head.GetSize()[2] // 2
    assert not is_skull_stripped(head[:, :, middle - 15 : middle + 15])


def test_foreground_and_stripped_flag_come_together():
    stripped, with_skull = brain_on(blank_image()), _with_skull(blank_image(extent=100))
    assert find_foreground(stripped).stripped
    assert not find_foreground(with_skull).stripped
    for image in (stripped, with_skull):
        np.testing.assert_array_equal(find_foreground(image).mask, foreground(image))


def test_known_masks_are_used_and_give_the_same():
    moved = np.add(CENTRE, [1.2 * BRAIN_RADII[0], 0, 0])
    volumes = volumes_of(T1Gd=brain_on(blank_image()), T2=brain_on(blank_image(centre=moved), moved))
    masks = {name: foreground(volume.image) for name, volume in volumes.items()}
    assert check_overlap(volumes, masks) == check_overlap(volumes) != []
    masks["T2"] = np.zeros_like(masks["T2"])
    with pytest.raises(GeometryError, match="do not overlap"):
        check_overlap(volumes, masks)


def test_foreground_of_a_stripped_brain_is_exact_and_keeps_dark_voxels():
    image = brain_on(blank_image()) * -1
    np.testing.assert_array_equal(foreground(image), ellipsoid(voxel_points(image), CENTRE, BRAIN_RADII))


def test_foreground_of_a_head_leaves_out_noise_and_specks():
    image = _with_skull(blank_image(extent=100))
    values = sitk.GetArrayFromImage(image)
    values[2:4, 2:4, 2:4] = 120
    mask = foreground(array_to_image(values, image))
    assert dice(mask, ellipsoid(voxel_points(image), CENTRE, BRAIN_RADII + 10)) > 0.99
    assert not mask[:5, :5, :5].any()


def test_foreground_of_a_constant_volume():
    with pytest.raises(InputError, match="no head"):
        foreground(blank_image())


def test_overlap():
    reference = brain_on(blank_image())
    together = volumes_of(T1Gd=reference, T1=brain_on(blank_image(OBLIQUE, (0.9, 0.9, 5.0))))
    assert check_overlap(together) == []
    assert check_overlap(volumes_of(T1=reference)) == []
    # Half spheres' worth: two ellipsoids of radius r, centres 1.2 r apart, share 1 - 0.9 + 0.108 = 20.8 %.
    moved = np.add(CENTRE, [1.2 * BRAIN_RADII[0], 0, 0])
    warnings = check_overlap(volumes_of(T1Gd=reference, T2=brain_on(blank_image(centre=moved), moved)))
    assert len(warnings) == 1
    assert "T2.nii.gz" in warnings[0]
    assert "T1Gd.nii.gz" in warnings[0]
    assert any(f"{n} %" in warnings[0] for n in (20, 21, 22))
    far = np.add(CENTRE, [200, 0, 0])
    with pytest.raises(GeometryError, match=r"T2\.nii\.gz.*T1Gd\.nii\.gz.*do not overlap"):
        check_overlap(volumes_of(T1Gd=reference, T2=brain_on(blank_image(centre=far), far)))


def test_a_slab_inside_the_reference_is_no_low_overlap():
    brain = brain_on(blank_image())
    assert check_overlap(volumes_of(T1Gd=brain, FLAIR=brain[:, :, 30:60])) == []


def test_same_volume_twice(tmp_path):
    first, other = brain_on(blank_image()), brain_on(blank_image(), seed=9)
    same_volume_twice(volumes_of(T1=first, T2=other))
    with pytest.raises(RoleError, match=r"T1 \(T1.nii.gz\) and FLAIR \(FLAIR.nii.gz\) are the same"):
        same_volume_twice(volumes_of(T1=first, T2=other, FLAIR=sitk.Image(first)))
    (tmp_path / "a.nii").touch()
    (tmp_path / "folder").mkdir()
    paths = (tmp_path / "a.nii", tmp_path / "folder" / ".." / "a.nii")
    with pytest.raises(RoleError, match="are the same"):
        same_volume_twice(
            {"T1": volume_from_image(first, str(paths[0])), "T2": volume_from_image(other, str(paths[1]))}
        )
    # Two scene nodes may carry one name.
    same_volume_twice({"T1": volume_from_image(first, "MR"), "T2": volume_from_image(other, "MR")})
