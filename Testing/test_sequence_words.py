import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib.sequence_words import read_words


@settings(deadline=None, max_examples=25)
@given(st.text(max_size=60))
def test_reading_words_never_fails(text):
    words = read_words(text)
    assert bool(words.not_input) == bool(words.not_input_kind)


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("AxT1PostContrast", "post", "post contrast"),
        ("T1 W/O contrast", "pre", "without contrast"),
        ("T1 w/wo", "post", "with without"),
        ("SAG T1 +C", "post", "+c"),
        ("T1 C-", "pre", "without c"),
        ("T1 injecté", "post", "injecte"),
        ("T1 preop", "pre", ""),
        ("T1 pre op", "pre", ""),
        ("T1 post-op", "post_only", ""),
        ("T1 native space", "pre", ""),
        ("KM_0012_T1", "post", ""),
        ("t1mask", "not_input", "mask"),
        ("t2tse", "t2", "t2"),
        ("sub-T1_ses-post_FLAIR", "t1", ""),
        ("FLAIR_reg_to_T1", "t1", ""),
        ("T1 AX FLAIR", "t1_flair", "t1 ax flair"),
    ],
)
def test_words_and_their_borders(text, field, said):
    assert getattr(read_words(text), field) == said
