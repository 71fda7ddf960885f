"""What the panel says, from facts alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from MSTKDSegmentLib.appearance import Look
from MSTKDSegmentLib.modalities import MODALITIES
from MSTKDSegmentLib.panel import (
    InputFacts,
    elapsed,
    flags,
    panel_state,
    plan,
    problem_with,
    proposal_tip,
    reference_of,
    unused,
)
from MSTKDSegmentLib.preparation_plan import PreparationChoice
from MSTKDSegmentLib.roles import propose_from_name


def look_of(t1=0.0, t1gd=0.0, t2=0.0, flair=0.0, unlike=0.5) -> Look:
    return Look(dict(zip(MODALITIES, (t1, t1gd, t2, flair))), unlike)


PLAIN, ENHANCED, UNSURE = look_of(t1=0.98, t1gd=0.02), look_of(t1=0.01, t1gd=0.99), look_of(t1=0.4, t1gd=0.6)


def facts(name: str, number: int = 1, *, spacing=(1.0, 1.0, 1.0), **more) -> InputFacts:
    size = more.pop("size", (240, 240, 155))
    return InputFacts(
        f"vtkMRMLScalarVolumeNode{number}",
        name,
        size,
        spacing,
        spacing[0] * spacing[1] * spacing[2],
        proposal=propose_from_name(name),
        grid=more.pop("grid", (*size, *spacing)),
        **more,
    )


T1, T1GD, T2, FLAIR = (
    facts(name, number) for number, name in enumerate(("Ax T1 pre", "Ax T1 post", "Ax T2", "FLAIR"), start=1)
)
ALL = {"T1": T1, "T1Gd": T1GD, "T2": T2, "FLAIR": FLAIR}


def test_a_good_choice_raises_no_flag_and_no_problem():
    assert flags(ALL) == {}
    assert problem_with(ALL) == ""


def test_nothing_chosen_and_unknown_sequences():
    assert problem_with({}) == "Choose at least one of T1, T1Gd, T2, FLAIR."
    assert problem_with({"PD": T2}).startswith("Unknown sequence PD")


def test_one_volume_twice_is_a_problem_and_a_flag():
    chosen = {"T1": T1, "T2": T1}
    assert problem_with(chosen) == "Ax T1 pre is chosen as T1 and as T2; choose it once."
    assert "chosen as T1 and as T2" in flags(chosen)["T2"]
    assert "chosen" not in flags(chosen).get("T1", "")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"obstacle": "labels: not a greyscale volume."}, "not a greyscale volume"),
        ({"linear": False, "transform": "warp"}, "stands under the non-linear transform warp. Harden it"),
        ({"size": (512, 512, 3)}, "has 512 x 512 x 3 voxels; each axis needs at least 8"),
    ],
)
def test_what_cannot_be_segmented_is_said_beside_the_selector_and_on_the_button(changed, words):
    chosen = {"T2": T2, "FLAIR": replace(FLAIR, **changed)}
    assert words in flags(chosen)["FLAIR"]
    assert words in problem_with(chosen)
    assert plan(chosen) == ""


def test_a_name_that_speaks_of_another_sequence_is_questioned():
    assert flags({"FLAIR": T2})["FLAIR"].startswith("Is this FLAIR? ")
    assert flags({"T2": facts("ADC map")})["T2"].startswith("Is this an input? ")
    assert flags({"T2": facts("head")}) == {}  # a name that says nothing contradicts nothing
    assert flags({"T1Gd": facts("T1")}) == {}  # contrast is often left out of a name


def test_a_pair_that_looks_swapped_is_flagged_on_both():
    chosen = {"T1": replace(T1, look=ENHANCED), "T1Gd": replace(T1GD, look=PLAIN)}
    assert set(flags(chosen)) == {"T1", "T1Gd"}
    assert "wrong way round" in flags(chosen)["T1"]
    assert problem_with(chosen) == ""  # a doubt, not an obstacle
    in_order = {"T1": replace(T1, look=PLAIN), "T1Gd": replace(T1GD, look=UNSURE)}
    assert flags(in_order) == {}


def test_a_single_t1_is_judged_by_its_own_look():
    assert "looks contrast-enhanced" in flags({"T1": replace(T1, look=ENHANCED)})["T1"]
    assert "looks like a T1 without contrast" in flags({"T1Gd": replace(T1GD, look=PLAIN)})["T1Gd"]
    for modality, look in (("T1", UNSURE), ("T1", PLAIN), ("T1Gd", UNSURE), ("T1Gd", ENHANCED), ("T1", None)):
        assert flags({modality: replace(ALL[modality], look=look)}) == {}


def test_a_volume_that_looks_like_another_sequence_is_flagged():
    chosen = {"T2": replace(T2, look=look_of(t2=1.0)), "FLAIR": replace(FLAIR, look=look_of(t2=0.99, flair=0.01))}
    assert flags(chosen) == {"FLAIR": "This volume looks like T2, not FLAIR. Please check."}
    assert problem_with(chosen) == ""
    odd = {"T2": replace(T2, look=look_of(t2=1.0, unlike=1.5))}
    assert flags(odd)["T2"].startswith("This volume looks like none of T1, T1Gd, T2, FLAIR.")


def test_of_a_volume_chosen_twice_only_that_is_said():
    twice = replace(T1, look=PLAIN)
    found = flags({"T1": twice, "FLAIR": twice})
    assert list(found) == ["FLAIR"] and "choose it once" in found["FLAIR"] and "looks like" not in found["FLAIR"]


def test_two_patients_are_flagged_without_naming_them():
    chosen = {"T2": replace(T2, patient="1234"), "FLAIR": replace(FLAIR, patient="9876")}
    assert flags(chosen) == {"FLAIR": "Its DICOM header names another patient than that of T2."}
    assert flags({"T2": replace(T2, patient="1234"), "FLAIR": FLAIR}) == {}


def test_two_dates_of_one_patient_are_flagged():
    dates = {"T2": replace(T2, patient="1", study="1.2"), "FLAIR": replace(FLAIR, patient="1", study="1.3")}
    assert flags(dates) == {"FLAIR": "Its DICOM header names another examination (study) than that of T2."}
    assert flags({"T2": dates["T2"], "FLAIR": replace(FLAIR, patient="1", study="1.2")}) == {}
    # Where a header names no patient, nothing says that it is another one.
    assert flags({"T2": dates["T2"], "FLAIR": replace(FLAIR, study="1.2")}) == {}


def test_the_plan_names_reference_resampling_and_transforms():
    assert plan({"T1Gd": T1GD, "FLAIR": FLAIR}) == (
        "The result lies on the grid of T1Gd (240 x 240 x 155 voxels of 1 x 1 x 1 mm). All sequences share it. They "
        "are skull-stripped and registered already: left alone, unless they turn out to lie askew."
    )
    thick = facts("FLAIR", 4, size=(512, 512, 24), spacing=(0.45, 0.45, 6.0), transform="registration")
    assert plan({"T1Gd": T1GD, "FLAIR": thick}) == (
        "The result lies on the grid of T1Gd (240 x 240 x 155 voxels of 1 x 1 x 1 mm). On other grids, resampled in "
        "physical space: FLAIR (512 x 512 x 24 voxels of 0.45 x 0.45 x 6 mm). Parent transforms are applied: FLAIR "
        "(registration). They are skull-stripped already and moved only where they do not lie on each other."
    )
    assert plan({"FLAIR": FLAIR}).endswith(
        "mm). It is skull-stripped already: left alone, unless the head turns out to lie askew."
    )


def test_what_will_be_prepared_is_told_before_the_run_with_what_to_expect():
    chosen = {"T1Gd": T1GD, "FLAIR": replace(FLAIR, stripped=False)}
    assert plan(chosen).endswith(
        "The skull on FLAIR is removed here. The sequences are registered to T1Gd. That takes about 10 s on two "
        "processor cores."
    )
    assert problem_with(chosen) == ""
    by_program = plan(chosen, "FLAIR", program="HD-BET 2.0.1")
    assert "is removed by HD-BET 2.0.1. The sequences are registered to FLAIR. HD-BET 2.0.1 may take" in by_program
    single = {"FLAIR": replace(FLAIR, stripped=False)}
    caveat = "Those patients' volumes needed no preparation"
    assert caveat in panel_state(single, CARD).expectation
    assert caveat not in panel_state({"FLAIR": FLAIR}, CARD).expectation
    told = PreparationChoice(skull_stripped=True)
    assert caveat not in panel_state(single, CARD, choice=told).expectation
    assert "it stays because you said that it is gone" in panel_state(single, CARD, choice=told).plan


def test_the_reference_is_the_one_asked_for_else_the_finest():
    thick = replace(FLAIR, voxel_mm3=6.0)
    assert reference_of({"FLAIR": thick, "T2": T2}) == "T2"
    assert reference_of({"FLAIR": thick, "T2": T2}, "FLAIR") == "FLAIR"
    assert plan({"T2": T2}, "T1").startswith("T1 is not chosen, so another reference is taken.")


def test_tips_give_the_reason():
    assert proposal_tip(None) == "Leave this empty if the patient does not have it."
    assert proposal_tip(FLAIR) == 'FLAIR: proposed as FLAIR, "flair" in the name means FLAIR.'
    assert proposal_tip(facts("head")).startswith("head: no word in the name")
    assert proposal_tip(InputFacts("id", "x")) == "x: nothing is known of it."


def test_what_a_proposal_leaves_open_is_asked():
    assert unused([propose_from_name("FLAIR"), propose_from_name("unknown thing")]) == ""
    assert unused([propose_from_name("T1 T2")]) == 'Please decide on T1 T2: the name names both "t1" and "t2".'


def test_many_open_questions_are_one_sentence():
    proposals = [propose_from_name(name) for name in ("T1 T2", "T1 T2 a", "T1 T2 b")]
    assert (
        unused(proposals) == "3 volumes could take the same places; please choose among them: T1 T2, T1 T2 a, T1 T2 b."
    )


CARD = {"metrics": {"subsets": {"FLAIR": {"WT": 0.8, "TC": 0.4, "ET": 0.2, "n": 10}}}}


def test_the_state_says_why_segment_cannot_be_pressed():
    good = panel_state({"FLAIR": FLAIR}, CARD)
    assert good.problem == ""
    assert good.expectation.startswith("Expect with FLAIR only: mean Dice WT 0.80")
    assert panel_state({}, CARD).problem.startswith("Choose at least one")
    assert panel_state({}, CARD).expectation == ""
    assert panel_state({"FLAIR": FLAIR}, None, "weights damaged").problem == "weights damaged"
    assert "press Install PyTorch" in panel_state({"FLAIR": FLAIR}, CARD, torch_ready=False).problem
    # What the user can mend at once comes before what needs an installation.
    assert panel_state({}, CARD, torch_ready=False).problem.startswith("Choose at least one")


@given(st.dictionaries(st.sampled_from(MODALITIES), st.sampled_from(list(ALL.values())), max_size=4))
def test_any_choice_gives_a_state_and_a_plan_exactly_where_it_can_run(chosen):
    state = panel_state(chosen, CARD)
    assert set(state.tips) == set(MODALITIES)
    assert bool(state.plan) == (not state.problem)
    assert set(state.flags) <= set(chosen)


def test_time_is_minutes_and_seconds():
    assert [elapsed(seconds) for seconds in (0.4, 9.9, 65, 3600)] == ["0:00", "0:09", "1:05", "60:00"]
