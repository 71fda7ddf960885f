"""The card of the weights chosen in a panel: read once, damage told in words."""

from __future__ import annotations

import shutil

from MSTKDSegmentLib import card_reader
from MSTKDSegmentLib.card_reader import CardReader
from MSTKDSegmentLib.weights import default_bundle_path, read_bundle


def test_the_shipped_weights_need_no_words():
    card, problem, about = CardReader().card("")
    assert card == read_bundle().card
    assert (problem, about) == ("", "")


def test_a_file_of_the_users_is_introduced_with_its_checksum(random_bundle):
    card, problem, about = CardReader().card(str(random_bundle))
    assert problem == ""
    assert about == f"random, checksum verified (sha256 {card['sha256'][:12]}...): no description"


def test_the_shipped_file_chosen_by_its_path_is_introduced_too():
    reader = CardReader()
    assert reader.card("")[2] == ""
    assert reader.card(str(default_bundle_path()))[2].startswith("mstkd-compact, checksum verified")


def test_a_file_is_read_again_only_when_it_changes(random_bundle, tmp_path, monkeypatch):
    path = tmp_path / "mine.zip"
    shutil.copy(random_bundle, path)
    read = []
    monkeypatch.setattr(card_reader, "read_bundle", lambda path: read.append(path) or read_bundle(path))
    reader = CardReader()
    assert reader.card(str(path)) == reader.card(str(path))
    assert len(read) == 1
    path.write_bytes(path.read_bytes()[:-100])
    card, problem, about = reader.card(str(path))
    assert (card, len(read)) == (None, 2)
    assert problem == about
    assert "not a weights bundle, or damaged" in problem


def test_a_file_that_is_not_there_is_named(tmp_path):
    card, problem, _about = CardReader().card(str(tmp_path / "gone.zip"))
    assert card is None
    assert "gone.zip: no such weights file" in problem
