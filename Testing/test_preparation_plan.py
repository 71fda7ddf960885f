"""What the panel foresees of the preparation, against what is decided on the volumes themselves."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import brain_image, ellipsoid, image_of
from MSTKDSegmentLib.overlap import find_foreground
from MSTKDSegmentLib.panel import InputFacts
from MSTKDSegmentLib.preparation_plan import (
    PreparationChoice,
    is_prepared,
    is_registered,
    preparation_sentences,
    skulls,
    wants_program,
)
from MSTKDSegmentLib.preparation_record import Wishes
from MSTKDSegmentLib.recognition import recognise
from MSTKDSegmentLib.volumes import volume_from_image

T1GD, FLAIR = InputFacts("1", "T1 post", grid=(1.0,)), InputFacts("2", "FLAIR", grid=(1.0,))
HEAD = replace(FLAIR, stripped=False)


class Mask:
    def GetName(self) -> str:  # noqa: N802
        return "my brain"


def test_volumes_that_are_ready_are_left_alone():
    chosen = {"T1Gd": T1GD, "FLAIR": FLAIR}
    nothing = PreparationChoice()
    assert not is_prepared(chosen, nothing)
    assert preparation_sentences(chosen, "T1Gd", nothing) == [
        "They are skull-stripped and registered already: left alone, unless they turn out to lie askew."
    ]
    elsewhere = {"T1Gd": T1GD, "FLAIR": replace(FLAIR, grid=(2.0,))}
    assert preparation_sentences(elsewhere, "T1Gd", nothing) == [
        "They are skull-stripped already and moved only where they do not lie on each other."
    ]
    assert preparation_sentences(elsewhere, "T1Gd", PreparationChoice(registered=True))[0].endswith("to lie askew.")
    assert preparation_sentences({}, "", nothing) == []


def test_time_grows_with_brains_and_registrations():
    heads = {name: replace(HEAD, node_id=name) for name in ("T1", "T1Gd", "T2", "FLAIR")}
    told = {
        count: preparation_sentences(dict(itertools.islice(heads.items(), count)), "T1", PreparationChoice())[-1]
        for count in (1, 2, 4)
    }
    # 2 + 2; 2 + 2 * 2 + 4; 2 + 4 * 2 + 3 * 4, in steps of five
    assert [told[count].split("about ")[1].split(" s")[0] for count in (1, 2, 4)] == ["5", "10", "20"]
    assert "registered" not in " ".join(preparation_sentences({"T1": HEAD}, "T1", PreparationChoice()))


def test_the_brain_mask_takes_the_skull_off():
    sentences = preparation_sentences({"FLAIR": HEAD}, "FLAIR", PreparationChoice(brain_mask=Mask()))
    assert sentences[0] == "The brain is taken from my brain."
    assert not wants_program({"FLAIR": HEAD}, PreparationChoice(brain_mask=Mask()), "FLAIR")


def test_a_program_is_wanted_by_itself_only_where_no_sequence_shows_the_brain():
    named = PreparationChoice(extractor="hd-bet")
    assert wants_program({"FLAIR": HEAD}, PreparationChoice(), "FLAIR")
    assert wants_program({"FLAIR": FLAIR}, replace(named, skull_stripped=False), "FLAIR")
    assert not wants_program({"T1Gd": T1GD, "FLAIR": HEAD}, PreparationChoice(), "FLAIR")
    assert wants_program({"T1Gd": T1GD, "FLAIR": HEAD}, named, "FLAIR")
    assert not wants_program({"T1Gd": T1GD, "FLAIR": HEAD}, named, "T1Gd")
    assert not wants_program({"FLAIR": HEAD}, PreparationChoice(extractor="own"), "FLAIR")
    assert not wants_program({}, PreparationChoice(), "")


def test_the_bias_field_is_named():
    sentences = preparation_sentences({"FLAIR": FLAIR}, "FLAIR", PreparationChoice(bias_correction=True))
    assert sentences[-1] == "The bias field of each is corrected (N4)."
    assert is_prepared({"FLAIR": FLAIR}, PreparationChoice(bias_correction=True))


@pytest.fixture(scope="module")
def volumes():
    """A brain alone, and one in a head whose air is noise."""
    noise = np.random.default_rng(0).normal(20, 5, ellipsoid().shape).clip(1).astype(np.float32)
    head = sitk.GetArrayFromImage(brain_image(4)) + noise
    images = {"T1Gd": brain_image(2), "FLAIR": image_of(head)}
    return {name: volume_from_image(image, name) for name, image in images.items()}


@pytest.mark.parametrize("names", [("T1Gd",), ("FLAIR",), ("T1Gd", "FLAIR")])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("registered", [None, True, False])
@pytest.mark.parametrize("stripped", [None, True, False])
def test_the_plan_is_what_is_decided_on_the_volumes(volumes, names, masked, registered, stripped):
    """Where the plan is sure of a change, the recognition decides on the same one."""
    chosen = {name: volumes[name] for name in names}
    found = {name: find_foreground(volume.image) for name, volume in chosen.items()}
    assert [one.stripped for one in found.values()] == [name == "T1Gd" for name in names]
    mask = sitk.Cast(chosen[names[0]].image > 100, sitk.sitkUInt8) if masked else None
    decided = recognise(chosen, found, names[0], Wishes(registered, stripped, True, mask))
    facts = {name: InputFacts(name, name, stripped=found[name].stripped) for name in names}
    choice = PreparationChoice(registered, stripped, Mask() if masked else None)
    with_skull = [name for name in names if not decided.stripped[name]]
    # A mask of a reference that shows its brain takes the place of that brain.
    assert skulls(facts, choice) == with_skull or (masked and skulls(facts, choice) == with_skull[1:])
    if is_registered(facts, choice):
        assert not decided.registered
    looked_at = registered is None and len(names) > 1  # by the voxels: the plan does not claim to know
    alone = registered is False and len(names) == 1  # nothing to register it to
    if not decided.challenge_ready and not looked_at and not alone:
        assert is_prepared(facts, choice)
    if is_prepared(facts, choice):
        assert masked or not decided.challenge_ready
