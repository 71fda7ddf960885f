"""The sentences on expected accuracy, against a card with known figures and against the card that ships."""

from __future__ import annotations

import pytest
from MSTKDSegmentLib.errors import RoleError
from MSTKDSegmentLib.expectations import expectation, expectation_sentences
from MSTKDSegmentLib.modalities import MODALITIES, SUBSETS, subset_name
from MSTKDSegmentLib.weights import read_bundle


def row(wt: float, tc: float, et: float, **more) -> dict:
    return {"WT": wt, "TC": tc, "ET": et, **more}


CARD = {
    "metrics": {
        "patients": 7,
        "subsets": {
            "FLAIR": row(0.80, 0.40, 0.20, WT_ci95=[0.7, 0.9], TC_ci95=[0.3, 0.5], ET_ci95=[0.1, 0.3], n=10),
            "T1+FLAIR": row(0.81, 0.42, 0.21, n=10),
            "T1Gd+FLAIR": row(0.84, 0.78, 0.72, n=10),
            "T2+FLAIR": row(0.70, 0.40, 0.20, n=10),
            "T1+T1Gd+FLAIR": row(0.84, 0.77, 0.72),
        },
    }
}


def test_one_sequence_with_intervals_and_the_best_addition():
    found = expectation(CARD, ["FLAIR"])
    assert found.best_addition == "T1Gd"
    assert found.gain == pytest.approx({"WT": 0.04, "TC": 0.38, "ET": 0.52})
    assert expectation_sentences(found) == [
        "Expect with FLAIR only: mean Dice WT 0.80 [0.70, 0.90], TC 0.40 [0.30, 0.50], ET 0.20 [0.10, 0.30] on 10 "
        "validation patients.",
        "Adding T1Gd changed that by WT +0.04, TC +0.38, ET +0.52.",
    ]


def test_an_addition_that_brought_nothing_is_not_advertised():
    found = expectation(CARD, ["FLAIR", "T1Gd"])  # T1 lowers TC; T2 is not in the card
    assert found.best_addition is None
    assert expectation_sentences(found)[1] == "No single further sequence improved this there."


def test_without_intervals_and_count_the_cards_own_count_is_told():
    found = expectation(CARD, ("T1", "T1Gd", "FLAIR"))
    assert expectation_sentences(found)[0] == (
        "Expect with T1+T1Gd+FLAIR: mean Dice WT 0.84, TC 0.77, ET 0.72 on 7 validation patients."
    )


def test_a_card_that_does_not_know_the_subset_says_so():
    assert expectation(CARD, ["T2"]) is None
    assert expectation_sentences(None) == ["These weights come without validation figures for this set of sequences."]
    assert expectation({"metrics": {}}, ["T2"]) is None
    for row_ in ({"WT": 0.8}, {"WT": 0.8, "TC": None, "ET": "?"}, 0.5):
        assert expectation({"metrics": {"subsets": {"T2": row_}}}, ["T2"]) is None
    with pytest.raises(RoleError):
        expectation(CARD, ["PD"])


@pytest.mark.parametrize("subset", SUBSETS, ids=subset_name)
def test_the_shipped_card_speaks_of_every_subset(subset):
    card = read_bundle().card
    found = expectation(card, subset)
    figures = card["metrics"]["subsets"][subset_name(subset)]
    assert found.dice == {key: figures[key] for key in ("WT", "TC", "ET")}
    assert found.patients == 10
    for key, (low, high) in found.intervals.items():
        assert low <= found.dice[key] <= high
    sentences = expectation_sentences(found)
    assert len(sentences) == (1 if len(subset) == len(MODALITIES) else 2)
    if found.best_addition is not None:
        assert found.best_addition not in subset
        assert sum(found.gain.values()) > 0
