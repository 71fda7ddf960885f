"""The whole path with a network of known behaviour: bright on T1Gd is marked as ET, bright on FLAIR as ED."""

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")

from MSTKDSegmentLib import geometry, overlap, pipeline  # noqa: E402
from MSTKDSegmentLib.errors import Cancelled, GeometryError, InputError, RoleError  # noqa: E402
from MSTKDSegmentLib.modalities import MODALITIES  # noqa: E402
from MSTKDSegmentLib.network import PRESETS, build_network  # noqa: E402
from MSTKDSegmentLib.overlap import find_foreground  # noqa: E402
from MSTKDSegmentLib.pipeline import Segmenter, read_case  # noqa: E402
from MSTKDSegmentLib.regions import CleanUp  # noqa: E402
from MSTKDSegmentLib.weights import write_bundle  # noqa: E402


class BrightMeansTumour(torch.nn.Module):
    """ET where T1Gd is above 3 standard deviations, ED where FLAIR is; one pointwise convolution does it."""

    def __init__(self):
        super().__init__()
        self.config = PRESETS["compact"]
        self.layer = torch.nn.Conv3d(4, 4, 1)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        with torch.no_grad():
            for label, name in ((3, "T1Gd"), (2, "FLAIR")):
                self.layer.weight[label, MODALITIES.index(name)] = 20.0
                self.layer.bias[label] = -60.0 - label * 1e-3

    def forward(self, x, availability):
        return self.layer(x)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "rule.zip"
    card = {
        "name": "rule", "preset": "compact", "network": PRESETS["compact"].to_dict(), "licence": "test",
        "training": {}, "metrics": {"subsets": {}},
    }  # fmt: skip
    torch.manual_seed(0)
    write_bundle(path, build_network("compact").state_dict(), card)
    result = Segmenter(path, "cpu")
    result.network = BrightMeansTumour()
    return result


LESION_MM, LESION_RADIUS_MM = np.array([14.0, -9.0, 6.0]), 16.0


def volume(size=(80, 96, 72), spacing=(1.5, 1.5, 1.5), angles=(0.0, 0.0, 0.0), lesion=True, seed=0):
    """A stripped "brain" (ellipsoid around the origin, noise) with a bright sphere, on a grid of any orientation."""
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing)
    turn = sitk.Euler3DTransform((0, 0, 0), *np.deg2rad(angles))
    image.SetDirection(turn.GetMatrix())
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size])
    image.SetOrigin(-np.array(middle))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), -1).reshape(-1, 3)
    columns = np.reshape(image.GetDirection(), (3, 3)) * spacing
    points = (index @ columns.T + image.GetOrigin()).reshape(*size, 3).transpose(2, 1, 0, 3)
    brain = ((points / (48, 58, 44)) ** 2).sum(-1) < 1
    array = np.where(brain, np.random.default_rng(seed).normal(100, 10, brain.shape), 0)
    sphere = ((points - LESION_MM) ** 2).sum(-1) < LESION_RADIUS_MM**2
    if lesion:
        array[sphere] = 260
    filled = sitk.GetImageFromArray(array.astype(np.float32))
    filled.CopyInformation(image)
    return filled, sphere


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def centre_mm(mask, image):
    z, y, x = (axis.mean() for axis in np.nonzero(mask))
    return np.array(image.TransformContinuousIndexToPhysicalPoint((x, y, z)))


@pytest.mark.parametrize(
    ("spacing", "size", "angles"),
    [
        ((1.0, 1.0, 1.0), (110, 128, 100), (0, 0, 0)),
        ((1.5, 1.5, 1.5), (80, 96, 72), (0, 0, 0)),
        ((1.2, 1.2, 4.0), (90, 104, 26), (0, 0, 0)),
        ((1.5, 1.5, 1.5), (88, 100, 80), (12, -17, 20)),
    ],
    ids=["1 mm", "1.5 mm", "thick slices", "oblique"],
)
def test_a_lesion_is_found_where_it_is_on_the_references_own_grid(segmenter, spacing, size, angles):
    image, sphere = volume(size, spacing, angles)
    result = segmenter.segment({"T1Gd": image})
    assert result.labels.shape == sphere.shape
    assert result.labels.dtype == np.uint8
    enhancing = result.labels == 3
    assert dice(enhancing, sphere) > (0.9 if max(spacing) > 2 else 0.96)
    assert np.linalg.norm(centre_mm(enhancing, image) - LESION_MM) < 0.5
    expected_ml = 4 / 3 * np.pi * LESION_RADIUS_MM**3 / 1000
    assert result.volumes_ml["ET"] == pytest.approx(expected_ml, rel=0.1)
    parts = sum(result.volumes_ml[label] for label in ("NCR", "ED", "ET"))
    assert result.volumes_ml["WT"] == pytest.approx(parts)


def test_sequences_on_different_grids_meet_in_physical_space(segmenter):
    fine, _ = volume((110, 128, 100), (1.0, 1.0, 1.0), lesion=False)
    oblique, _ = volume((88, 100, 80), (1.5, 1.5, 1.5), (12, -17, 20), seed=1)
    result = segmenter.segment({"FLAIR": oblique, "T1Gd": fine})
    assert result.case.reference == "T1Gd"
    assert result.case.subset == ("T1Gd", "FLAIR")
    assert np.linalg.norm(centre_mm(result.labels == 2, fine) - LESION_MM) < 0.5
    chosen = segmenter.segment({"FLAIR": oblique, "T1Gd": fine}, reference="FLAIR")
    assert chosen.labels.shape == oblique.GetSize()[::-1]
    assert np.linalg.norm(centre_mm(chosen.labels == 2, oblique) - LESION_MM) < 0.5


def test_absent_sequences_are_zero_and_named_in_the_mask():
    image, _ = volume()
    case = read_case({"T2": image})
    assert case.availability.tolist() == [0, 0, 1, 0]
    assert not case.image[[0, 1, 3]].any()
    assert case.image[2].any()
    assert all(side % 32 == 0 for side in case.grid.shape)
    inside = case.image[2] != 0
    assert case.image[2][inside].mean() == pytest.approx(0, abs=0.1)


def test_progress_is_one_rising_line_over_all_stages(segmenter):
    image, _ = volume()
    seen = []
    segmenter.segment({"T1Gd": image}, progress=lambda share, text: seen.append((share, text)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert {"reading T1Gd", "running the network", "done"} <= {text for _, text in seen}


@pytest.mark.parametrize(
    "stage",
    [
        "reading T1Gd",
        "finding the brain on T1Gd",
        "normalising T1Gd",
        "bringing T1Gd",
        "running the network",
        "bringing the result",
    ],
)
def test_cancel_works_in_every_stage(segmenter, stage):
    image, _ = volume()
    reached = []
    with pytest.raises(Cancelled):
        segmenter.segment(
            {"T1Gd": image},
            progress=lambda _, text: reached.append(text) if text.startswith(stage) else None,
            cancel=lambda: bool(reached),
        )
    assert len(reached) == 1


def test_probabilities_are_nested_and_on_the_native_grid(segmenter):
    image, sphere = volume(angles=(5, 9, -14))
    result = segmenter.segment({"T1Gd": image}, want_probabilities=True)
    wt, tc, et = result.region_probabilities
    assert wt.shape == sphere.shape
    assert (wt + 1e-4 >= tc).all()
    assert (tc + 1e-4 >= et).all()
    assert et[sphere].mean() > 0.9


def test_clean_up_of_the_card_is_applied(segmenter):
    image, _ = volume()
    array = sitk.GetArrayFromImage(image)
    array[20:22, 30:32, 30:32] = 260  # 27 mm^3, far from the lesion
    speckled = sitk.GetImageFromArray(array)
    speckled.CopyInformation(image)
    before = segmenter.segment({"T1Gd": speckled}).labels
    assert before[20:22, 30:32, 30:32].any()
    segmenter.clean_up = CleanUp({"WT": 0.1})
    try:
        after = segmenter.segment({"T1Gd": speckled}).labels
    finally:
        segmenter.clean_up = CleanUp()
    assert not after[20:22, 30:32, 30:32].any()
    assert after.sum() < before.sum()


def test_provenance_says_what_was_run(segmenter):
    image, _ = volume()
    provenance = segmenter.segment({"FLAIR": image}).provenance
    assert provenance["sequences"] == provenance["reference"] == "FLAIR"
    assert segmenter.bundle.sha256 in provenance["bundle"]
    assert provenance["device"].startswith("cpu (")
    assert provenance["window"] == "whole volume"


def test_a_skull_is_noticed():
    image, _ = volume()
    array = sitk.GetArrayFromImage(image)
    noise = np.abs(np.random.default_rng(5).normal(3, 2, array.shape)).astype(np.float32)
    with_air = sitk.GetImageFromArray(array + noise)
    with_air.CopyInformation(image)
    assert any("skull" in notice for notice in read_case({"T1": with_air}).notices)
    assert not any("skull" in notice for notice in read_case({"T1": image}).notices)


def test_wrong_calls_are_refused_in_words(segmenter):
    image, _ = volume()
    with pytest.raises(InputError, match="no sequence was given"):
        segmenter.segment({})
    with pytest.raises(InputError, match="unknown sequence PD"):
        segmenter.segment({"PD": image})
    with pytest.raises(InputError, match="reference T2 is not among"):
        segmenter.segment({"T1": image}, reference="T2")
    with pytest.raises(RoleError, match="same volume"):
        segmenter.segment({"T1": image, "T2": image})


def test_volumes_that_span_more_than_a_head_are_refused():
    image, _ = volume()
    image.SetSpacing((6.0, 6.0, 6.0))  # the brain of 116 mm now measures 464 mm
    with pytest.raises(GeometryError, match="more than a head"):
        read_case({"T1": image})


def test_foregrounds_are_found_once_for_each_volume(monkeypatch):
    found = []

    def counted(image):
        found.append(image)
        return find_foreground(image)

    monkeypatch.setattr(pipeline, "find_foreground", counted)
    for module in (overlap, geometry):
        monkeypatch.setattr(module, "foreground", lambda image: pytest.fail("a foreground was found a second time"))
    case = read_case({"T1": volume()[0], "T2": volume(seed=1)[0]})
    assert [id(image) for image in found] == [id(case.volumes[name].image) for name in ("T1", "T2")]


@pytest.mark.parametrize("times", [1, 3, 5, 6])
def test_cancel_works_between_the_classes_of_the_result(segmenter, times):
    """On an oblique grid: before and after, and before each of 4 classes, the user is asked."""
    image, _ = volume(angles=(5, 9, -14))
    reached = []

    def progress(_, text):
        if text.startswith("bringing the result"):
            reached.append(text)

    with pytest.raises(Cancelled):
        segmenter.segment({"T1Gd": image}, progress=progress, cancel=lambda: len(reached) == times)
    assert len(reached) == times
