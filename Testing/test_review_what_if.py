"""What if a sequence were missing or the head mirrored: the same runs as by hand, and what is told of them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from conftest import brain_image
from MSTKDSegmentLib import inference
from MSTKDSegmentLib.errors import Cancelled
from MSTKDSegmentLib.inference import Prediction
from MSTKDSegmentLib.metrics import region_dice
from MSTKDSegmentLib.pipeline import Segmenter, read_case
from MSTKDSegmentLib.preparation_record import READY
from MSTKDSegmentLib.regions import labels_to_regions
from MSTKDSegmentLib.review.what_if import Changes, subsets_of, what_if


@pytest.fixture(scope="module")
def segmenter(random_bundle) -> Segmenter:
    return Segmenter(random_bundle, "cpu")


@pytest.fixture(scope="module")
def case():
    return read_case({"T1": brain_image(1), "T1Gd": brain_image(2), "FLAIR": brain_image(4)}, wishes=READY)


@pytest.fixture(scope="module")
def found(segmenter, case):
    return what_if(segmenter, case)


def test_subsets_are_those_of_what_is_present():
    assert subsets_of(("FLAIR", "T1")) == [("T1",), ("FLAIR",), ("T1", "FLAIR")]
    assert len(subsets_of(("T1", "T1Gd", "T2", "FLAIR"))) == 15


def test_a_subset_is_what_the_network_sees_when_the_others_are_not_there(segmenter, case, found):
    """Shared preparation: the same grid and brain, the channels of the others empty."""
    alone = case.only(("FLAIR",))
    assert alone.subset == ("FLAIR",) and not alone.image[:3].any() and np.array_equal(alone.image[3], case.image[3])
    labels = segmenter.segment_prepared(alone).labels
    by_name = {one.name: one for one in found.results}
    assert dict(by_name["FLAIR"].dice) == region_dice(labels, found.full.labels)
    assert list(by_name) == ["T1", "T1Gd", "FLAIR", "T1+T1Gd", "T1+FLAIR", "T1Gd+FLAIR", "T1+T1Gd+FLAIR"]


def test_without_ground_truth_it_is_agreement_with_the_full_set(found):
    assert found.against == "full set"
    assert set(found.results[-1].dice.values()) == {1.0}
    for region in ("WT", "TC", "ET"):
        carried = found.carried_by(region)
        assert carried["T1"] == pytest.approx(1.0 - found.without("T1").dice[region])
        assert set(carried) == {"T1", "T1Gd", "FLAIR"}


def test_maps_are_the_share_of_runs_that_disagree(segmenter, case, found):
    full = labels_to_regions(found.full.labels)["WT"]
    runs = [segmenter.segment_prepared(case.only(one.subset)).labels > 0 for one in found.results[:-1]]
    runs += [segmenter.segment_prepared(case, flipped=(axis,)).labels > 0 for axis in (2, 1, 0)]
    expected = np.mean([run != full for run in runs], axis=0)
    np.testing.assert_allclose(found.maps["WT"], expected, atol=1e-6)
    shares = [np.count_nonzero(run != full) / np.count_nonzero(full) for run in runs]
    assert found.changes["WT"].subsets == pytest.approx(np.mean(shares[:6]))
    assert found.changes["WT"].flips == pytest.approx(np.mean(shares[6:]))


@pytest.mark.parametrize("axes", [(2,), (1,), (0,), (0, 2)])
def test_a_mirrored_run_is_mirrored_back(axes, segmenter, case, monkeypatch):
    """A network that looks at each voxel alone finds the same, however the head is mirrored before it sees it."""
    seen: list[np.ndarray] = []

    def voxel_by_voxel(_network, image, _availability, **_options):
        seen.append(image)
        brighter = np.stack([image[0] - 0.5, image[1], image[3], image[0] * image[1]])
        return Prediction(np.exp(brighter) / np.exp(brighter).sum(0), "cpu", None, ())

    monkeypatch.setattr(inference, "predict", voxel_by_voxel)
    plain = segmenter.segment_prepared(case, want_probabilities=True)
    mirrored = segmenter.segment_prepared(case, want_probabilities=True, flipped=axes)
    assert len(np.unique(plain.labels)) == 4 and np.array_equal(mirrored.labels, plain.labels)
    assert np.array_equal(mirrored.region_probabilities, plain.region_probabilities)
    assert np.array_equal(seen[1], np.flip(seen[0], [1 + axis for axis in axes]))
    assert not np.array_equal(seen[1], seen[0])


def test_a_ground_truth_counts_by_what_it_knows(segmenter, case, found):
    truth = np.roll(found.full.labels, 2, 0)
    one = what_if(segmenter, case, truth, known=("WT",), flips=())
    assert one.against == "ground truth"
    assert dict(one.results[-1].dice) == {"WT": region_dice(found.full.labels, truth)["WT"]}
    assert one.carried_by("ET") == {} and one.changes["ET"].flips is None
    with pytest.raises(ValueError, match="not on the reference's grid"):
        what_if(segmenter, case, truth[1:])


def test_one_sequence_has_no_subset(segmenter, case):
    alone = what_if(segmenter, case.only(("T1",)), flips=())
    assert [one.name for one in alone.results] == ["T1"] and alone.carried_by("WT") == {}
    assert set(alone.changes.values()) == {Changes(None, None)} and not alone.maps["WT"].any()


def test_progress_is_one_bar_and_it_can_be_cancelled(segmenter, case):
    told: list[tuple[float, str]] = []
    what_if(segmenter, case, flips=((2,),), progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    assert told[-1][1] == "mirrored (8 of 8)"
    with pytest.raises(Cancelled):
        what_if(segmenter, case, cancel=lambda: len(told) > 0)
