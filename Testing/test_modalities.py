import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib.errors import RoleError
from MSTKDSegmentLib.modalities import (
    ALIASES,
    MODALITIES,
    SUBSETS,
    availability,
    canonical_modality,
    parse_subset,
    subset_name,
)
from MSTKDSegmentLib.roles import propose_from_name

EVERY_ALIAS = [(alias, modality) for modality, aliases in ALIASES.items() for alias in aliases]


def test_modalities_are_in_the_order_of_the_networks_channels():
    assert MODALITIES == ("T1", "T1Gd", "T2", "FLAIR")
    assert tuple(ALIASES) == MODALITIES


def test_subsets_in_their_documented_order():
    assert [subset_name(subset) for subset in SUBSETS] == [
        *("T1", "T1Gd", "T2", "FLAIR"),
        *("T1+T1Gd", "T1+T2", "T1+FLAIR", "T1Gd+T2", "T1Gd+FLAIR", "T2+FLAIR"),
        *("T1+T1Gd+T2", "T1+T1Gd+FLAIR", "T1+T2+FLAIR", "T1Gd+T2+FLAIR"),
        "T1+T1Gd+T2+FLAIR",
    ]


@pytest.mark.parametrize("subset", SUBSETS, ids=subset_name)
def test_every_subset_survives_naming_and_parsing(subset):
    for order in itertools.permutations(subset):
        assert parse_subset(subset_name(order)) == subset
        assert parse_subset(", ".join(order).lower()) == subset


def test_availability_by_hand():
    mask = availability(("FLAIR", "T1Gd"))
    assert mask.dtype == np.float32
    assert mask.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert len({tuple(availability(subset)) for subset in SUBSETS}) == 15


@pytest.mark.parametrize(("alias", "modality"), EVERY_ALIAS)
def test_every_alias_means_the_same_everywhere(alias, modality):
    assert canonical_modality(alias) == modality
    assert canonical_modality(f" {alias.upper()} ") == modality
    assert parse_subset(alias) == (modality,)
    assert propose_from_name(f"Case-0007_{alias}.nii.gz").modality == modality


def test_no_alias_belongs_to_two_sequences():
    assert len({alias for alias, _ in EVERY_ALIAS}) == len(EVERY_ALIAS)


@pytest.mark.parametrize("text", ["", "t3", "t1d", "t2000", "gdansk", "seg", "flair2", "t2star", "t1 t2"])
def test_what_is_no_exact_name(text):
    assert canonical_modality(text) is None


@pytest.mark.parametrize(
    ("text", "subset"),
    [
        ("flair,t1ce", ("T1Gd", "FLAIR")),
        ("T1Gd+FLAIR", ("T1Gd", "FLAIR")),
        ("t1+c", ("T1Gd",)),
        ("t1+c+flair", ("T1Gd", "FLAIR")),
        ("T1 + C, T1", ("T1", "T1Gd")),
        ("t1c+flair", ("T1Gd", "FLAIR")),
        ("t1c+, flair", ("T1Gd", "FLAIR")),
        ("t1+t1gd", ("T1", "T1Gd")),
        ("T1-post; T2-FLAIR", ("T1Gd", "FLAIR")),
        (" all ", MODALITIES),
    ],
)
def test_parse_subset(text, subset):
    assert parse_subset(text) == subset


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no sequence given"),
        (" , ", "no sequence given"),
        ("t1,swi", "unknown sequence 'swi'.*t1ce"),
        ("t1gd,t1ce", "T1Gd is given twice"),
        ("t2 flair", "put commas between"),
        ("t1 t2", "put commas between"),
    ],
)
def test_parse_subset_says_what_is_wrong(text, says):
    with pytest.raises(RoleError, match=says):
        parse_subset(text)


@pytest.mark.parametrize("function", [subset_name, availability])
@pytest.mark.parametrize("subset", [(), ("T1", "t2")])
def test_subsets_hold_one_or_more_of_the_four_names(function, subset):
    with pytest.raises(RoleError):
        function(subset)


@settings(deadline=None, max_examples=25)
@given(st.text(alphabet="t12fcegd+-,; wo", max_size=30))
def test_any_text_is_parsed_or_refused_in_one_line(text):
    try:
        assert parse_subset(text) in SUBSETS
    except RoleError as error:
        assert "\n" not in str(error)
