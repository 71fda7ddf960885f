"""The README's promises that a machine can check: links, commands, figures that are those of the card."""

import re
from pathlib import Path

from MSTKDSegmentLib.cli import build_parser
from MSTKDSegmentLib.errors import MSTKDError
from MSTKDSegmentLib.weights import read_bundle

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_link_leads_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)#]+)", README) if not t.startswith("http")]
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_no_placeholder_is_left():
    assert not re.search(r"@[A-Z]+@|TODO|XXX", README)


def test_options_that_are_named_exist():
    segment = build_parser()._subparsers._group_actions[0].choices["segment"]
    known = {option for action in segment._actions for option in action.option_strings}
    text = README[README.index("## Your own files") : README.index("From Python, the same path")]
    named = set(re.findall(r"(?<![\w-])(--[a-z0-9][a-z0-9-]*)", text))
    assert {"--t1gd", "--report", "--batch"} <= named
    assert named <= known


def test_exit_codes_in_the_table_are_those_of_the_errors():
    table = README[README.index("| code | meaning |") : README.index("### From the scanner")]
    listed = {int(code) for code in re.findall(r"\| (\d+) \|", table)}
    kinds = [MSTKDError, *MSTKDError.__subclasses__()]
    kinds += [deeper for kind in kinds[1:] for deeper in kind.__subclasses__()]
    assert {kind.exit_code for kind in kinds} <= listed


def test_the_table_of_figures_is_the_cards():
    subsets = read_bundle().card["metrics"]["subsets"]
    rows = re.findall(
        r"^\| ((?:T1|T1Gd|T2|FLAIR)(?:\+\w+)*) \| ([0-9.]+) .*?\| ([0-9.]+) .*?\| ([0-9.]+) ", README, re.M
    )
    assert len(rows) >= 5
    for name, *figures in rows:
        assert [f"{subsets[name][region]:.3f}" for region in ("WT", "TC", "ET")] == figures
