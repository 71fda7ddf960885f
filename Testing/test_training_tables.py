"""Statistics by hand, tables like the paper's in three formats, figures, and the `tables` command."""

from __future__ import annotations

import argparse
import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib.statistics import bootstrap_interval, estimate

from training.commands import tables as tables_command
from training.figures import PanelCase, all_figures, case_panel, panel_case
from training.methods import DICE, HD95, PAPER_ORDER, Method, on_common_subsets, read_method, require_comparable
from training.scores import REGIONS, SUBSET_NAMES, Row, write_rows
from training.statistics import compare_paired, holm, wilcoxon_p
from training.table_formats import Cell, Mark, csv_text, latex, latex_escape, markdown
from training.tables import (
    absent_region_table,
    all_tables,
    average_table,
    comparison_table,
    empty_mask_table,
    interval_table,
    marked_cells,
    subset_table,
)


def scores(shift: float = 0.0, cases: int = 4, subsets=SUBSET_NAMES) -> list[Row]:
    """Case i has Dice 0.4 + 0.1 i + shift for WT, 0.1 less for TC; ET is always missed. Cases 0 and 1: one patient."""
    rows = []
    for i in range(cases):
        for subset in subsets:
            for region in REGIONS:
                missed = region == "ET"
                dice = 0.0 if missed else 0.4 + 0.1 * i + shift - 0.1 * (region == "TC")
                tail = (0.5, 0.6, 1.0, 0.2, "a" * 64, "none")
                status, hd95 = ("missed", 373.13) if missed else ("ok", 8.0 - i - 10 * shift)
                n_pred = 0 if missed else 90
                patient = f"P{max(i, 1)}"
                rows.append(Row(f"C{i}", patient, subset, region, 100, n_pred, status, dice, hd95, *tail))
    return rows


def method(name: str, shift: float = 0.0, **options) -> Method:
    return Method(name, tuple(scores(shift, **options)))


# --- statistics ---


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06 as well, 0.04 x 1 is raised to 0.06."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([0.03, 0.03]) == pytest.approx([0.06, 0.06])
    assert holm([]) == []
    with_nan = holm([float("nan"), 0.01])
    assert np.isnan(with_nan[0])
    assert with_nan[1] == pytest.approx(0.02)
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None, max_examples=25)
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(p):
    adjusted = holm(p)
    assert all(a <= b <= min(1.0, a * len(p)) + 1e-12 for a, b in zip(p, adjusted))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_wilcoxon_by_hand():
    """Five positive differences: both tails of 2^-5. Zeros are left out; all zeros speak against nothing."""
    assert wilcoxon_p(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(2 / 32)
    assert wilcoxon_p(-np.array([1.0, 2, 3, 4, 5])) == pytest.approx(2 / 32)
    assert wilcoxon_p(np.zeros(7)) == 1.0
    assert np.isnan(wilcoxon_p(np.array([0.1, np.nan])))
    # Differences that rounding alone tells apart tie, and equal scores are exactly zero.
    assert wilcoxon_p(np.array([0.3 - 0.2, 0.2 - 0.1, -0.1])) == wilcoxon_p(np.array([0.1, 0.1, -0.1]))
    assert wilcoxon_p(np.array([0.1 + 0.2 - 0.3])) == 1.0
    with pytest.raises(ValueError, match="at least one pair"):
        wilcoxon_p(np.array([]))


def test_the_interval_is_repeatable_and_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(0.8, 0.1, 40)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert (low, high) != bootstrap_interval(values, seed=1)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(40), rel=0.15)
    assert bootstrap_interval(np.full(5, 0.5)) == (0.5, 0.5)
    assert bootstrap_interval(values, [str(i) for i in range(40)]) == (low, high)


def test_cases_of_one_patient_are_drawn_together():
    """One patient: every sample is the whole. Two: a sample is one of them or both, so the ends are their own means."""
    values = np.array([0.0, 0.2, 1.0])
    assert bootstrap_interval(values, ["p", "p", "p"]) == pytest.approx((0.4, 0.4))
    assert bootstrap_interval(values, ["p", "p", "q"]) == pytest.approx((0.1, 1.0))
    assert bootstrap_interval(values, ["p", "p", "q"], "median") == pytest.approx((0.1, 1.0))
    doubled = np.repeat(np.random.default_rng(2).normal(size=20), 2)
    apart, together = bootstrap_interval(doubled), bootstrap_interval(doubled, [str(i // 2) for i in range(40)])
    assert together[1] - together[0] > 1.2 * (apart[1] - apart[0])


@given(st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("pqrs")), min_size=1, max_size=9), st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_the_median_interval_is_that_of_samples_written_out(pairs, seed):
    values, patients = np.array([v for v, _ in pairs]), [p for _, p in pairs]
    names = list(dict.fromkeys(patients))
    draws = np.random.default_rng(seed).integers(0, len(names), (50, len(names)))
    medians = [
        np.median([v for number in draw for v, p in zip(values, patients) if p == names[number]]) for draw in draws
    ]
    expected = np.percentile(medians, (2.5, 97.5))
    assert bootstrap_interval(values, patients, "median", seed, samples=50) == pytest.approx(expected)


def test_a_paired_comparison_by_hand():
    """Patient p: differences 0.1 and 0.3, so 0.2; q: 0.2; r: -0.1. Mean over the four cases 0.125."""
    values, reference = np.array([0.6, 0.8, 0.7, 0.4]), np.array([0.5, 0.5, 0.5, 0.5])
    found = compare_paired(values, reference, ["p", "p", "q", "r"])
    assert found.difference.value == pytest.approx(0.125)
    assert (found.difference.cases, found.difference.patients) == (4, 3)
    assert found.difference.low == pytest.approx(-0.1)
    assert found.p == pytest.approx(wilcoxon_p(np.array([0.2, 0.2, -0.1])))
    same = compare_paired(values, values)
    assert (same.p, same.difference.low, same.difference.high) == (1.0, 0.0, 0.0)


def test_statistics_refuse_what_makes_no_sense_and_never_drop_nan():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval(np.array([]))
    with pytest.raises(ValueError, match="3 values but 1 patients"):
        bootstrap_interval(np.ones(3), ["p"])
    with pytest.raises(ValueError, match="unknown statistic 'mode'"):
        bootstrap_interval(np.ones(3), statistic="mode")
    with pytest.raises(ValueError, match="differ in number"):
        compare_paired(np.ones(3), np.ones(2))
    for statistic in ("mean", "median"):
        found = estimate(np.array([1.0, np.nan]), ["p", "q"], statistic)
        assert np.isnan([found.value, found.low, found.high]).any()
        assert np.isnan(found.value)


# --- methods ---


def test_a_file_that_is_not_finished_or_of_no_use_is_named(tmp_path):
    path = tmp_path / "per_case.csv"
    with pytest.raises(FileNotFoundError, match=r"per_case\.csv: no such file"):
        read_method("x", path)
    write_rows(path, scores()[:-1])
    with pytest.raises(ValueError, match=r"C3 T1\+T1Gd\+T2\+FLAIR ET is missing"):
        read_method("x", path)
    with pytest.raises(ValueError, match="no scores of clean-up 'large'; it holds none"):
        read_method("x", path, "large")


def test_methods_on_other_cases_or_references_are_refused():
    with pytest.raises(ValueError, match=r"a and b were evaluated on different cases \(C3\)"):
        require_comparable([method("a"), method("b", cases=3)])
    with pytest.raises(ValueError, match=r"different subsets \(T1\)"):
        require_comparable([method("a"), method("b", subsets=[s for s in SUBSET_NAMES if s != "T1"])])
    other = [row if row.case != "C2" else Row(**{**vars(row), "n_ref": 7}) for row in scores()]
    with pytest.raises(ValueError, match="C2 has another reference segmentation"):
        require_comparable([method("a"), Method("b", tuple(other))])


# --- tables ---


def test_the_order_of_the_paper_holds_every_subset_once():
    assert sorted(PAPER_ORDER) == sorted(SUBSET_NAMES)
    assert PAPER_ORDER[:5] == ("T2", "T1Gd", "T1", "FLAIR", "T1Gd+T2")
    assert PAPER_ORDER[-1] == "T1+T1Gd+T2+FLAIR"


def test_table_1_by_hand():
    """WT of four cases 0.4 ... 0.7 is 55.0 on average, 5 more with the shift."""
    table = subset_table([method("low"), method("high", 0.05)], DICE, "table1", "Table 1")
    assert len(table.body) == 6
    assert {len(line) for line in (*table.header, *table.body)} == {2 + 15 + 1}
    low, high = table.body[:2]
    assert [cell.text for cell in low] == ["WT", "low"] + ["55.0"] * 16
    assert [cell.text for cell in high[2:]] == ["60.0"] * 16
    assert {cell.mark for cell in high[2:]} == {Mark.BEST}
    assert {cell.mark for cell in low[2:]} == {Mark.SECOND}
    assert "n = 4 cases of 3 patients" in table.caption
    heads = {line[1]: line[2:17] for line in table.header}
    assert [heads[m][0] for m in ("FLAIR", "T1", "T1Gd", "T2")] == ["○", "○", "○", "●"]
    assert {heads[m][14] for m in heads} == {"●"}
    # Nobody finds ET: all are equal, so all are best.
    assert {cell.mark for cell in table.body[-1][2:]} == {Mark.BEST}


def test_small_hd95_is_the_best_and_one_method_has_no_rank():
    assert marked_cells(np.array([8.0, 5.0, 6.0]), HD95) == [
        Cell("8.0"),
        Cell("5.0", Mark.BEST),
        Cell("6.0", Mark.SECOND),
    ]
    assert marked_cells(np.array([80.04, 80.0]), DICE) == [Cell("80.0", Mark.BEST)] * 2
    assert marked_cells(np.array([80.0]), DICE) == [Cell("80.0")]
    assert marked_cells(np.array([np.nan, 3.0]), DICE) == [Cell("nan"), Cell("3.0", Mark.BEST)]


def test_averages_and_empty_masks_by_hand():
    table = average_table([method("low"), method("high", 0.05)], "table3", "Table 3")
    # HD95 of WT: mean of 8, 7, 6, 5; with the shift 0.5 less. ET is the penalty.
    assert [c.text for c in table.body[0]] == ["low", "55.0", "45.0", "0.0", "6.5", "6.5", "373.1"]
    assert [c.text for c in table.body[1]] == ["high", "60.0", "50.0", "0.0", "6.0", "6.0", "373.1"]
    empty = empty_mask_table([method("low")])
    assert [c.text for c in empty.body[2]] == ["ET", "low", "0", "60", "0", "60"]


def test_what_is_drawn_of_a_region_that_is_not_there_is_told_by_subset():
    """Four cases, of which two have no ET: 1 and 3 ml with T1, 0 and 0 with the others."""
    assert absent_region_table([method("full")]) is None
    rows = [
        replace(row, n_ref=0, volume_error_ml=(1.0 + 2 * (row.case == "C1")) * (row.subset == "T1"))
        if row.region == "ET" and row.case in ("C0", "C1")
        else row
        for row in scores()
    ]
    table = absent_region_table([Method("a", tuple(rows))])
    assert table is not None
    (record,) = table.records
    assert (record["region"], record["cases"], record["T1"], record["T2"]) == ("ET", 2, 2.0, 0.0)
    assert (record["median of the subsets"], record["largest"]) == (0.0, 3.0)
    assert [one.name for one in all_tables([Method("a", tuple(rows))])][-1] == "absent_regions"


def test_methods_can_be_compared_on_the_subsets_that_both_have():
    few, all_of_them = method("few", 0.1, subsets=("T1", "FLAIR")), method("all")
    with pytest.raises(ValueError, match="different subsets"):
        require_comparable([few, all_of_them])
    both = on_common_subsets([few, all_of_them])
    require_comparable(both)
    assert [one.subsets for one in both] == [("T1", "FLAIR")] * 2
    with pytest.raises(ValueError, match="no subset in common"):
        on_common_subsets([few, method("other", subsets=("T2",))])


def test_intervals_have_a_line_for_each_subset_and_figures_in_the_csv():
    table = interval_table([method("a"), method("b", 0.05)], DICE, "table1_intervals", "Intervals")
    assert len(table.body) == 3 * 16
    first = table.records[0]
    assert (first["region"], first["subset"], first["method"], first["mean"]) == ("WT", "T2", "a", pytest.approx(55))
    assert first["ci95_low"] <= 55 <= first["ci95_high"]
    assert (first["median"], first["patients"]) == (pytest.approx(55), 3)


def test_comparisons_are_paired_and_one_family():
    ours, other = method("ours", 0.05), method("other")
    table = comparison_table([ours, other], ours, DICE, "comparison_dice")
    assert [(r["region"], r["method"]) for r in table.records] == [(region, "other") for region in REGIONS]
    wt, _, et = table.records
    assert (wt["mean_difference"], wt["ci95_low"], wt["ci95_high"]) == pytest.approx((-5, -5, -5))
    # Three patients, all differences alike: 2 / 2^3, times the three tests of the table.
    assert (et["p"], et["mean_difference"]) == (1.0, 0.0)
    assert wt["p_holm"] == pytest.approx(min(1.0, 3 * wt["p"]))
    grouped = comparison_table([other], ours, HD95, "x", by_missing=True)
    assert [r["missing"] for r in grouped.records] == ["0", "1", "2", "3"] * 3
    assert grouped.records[0]["mean_difference"] == pytest.approx(0.5)
    assert "12 tests" in grouped.caption


# --- formats ---


def test_markdown_marks_the_best_and_shows_the_dots():
    text = markdown(subset_table([method("low"), method("a|b", 0.05)], DICE, "table1", "Table 1"))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "○<br>○<br>○<br>●" in lines[0]
    assert lines[2].startswith("| WT | low | <u>55.0</u> |")
    assert lines[3].startswith("|  | a\\|b | **60.0** |")


def every_table() -> list:
    ours, other = method("MST_KD&Net", 0.05), method("w/o 50 % {x}")
    return all_tables([ours, method("b")], ours, [other], paper_legacy=True)


def test_latex_is_balanced_and_every_line_has_all_columns():
    for table in every_table():
        text = latex(table)
        body = [line for line in text.splitlines() if line.endswith(r"\\")]
        spec = re.search(r"\\begin\{tabular\}\{(l+c*)\}", text)[1]
        for line in body:
            spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + spans == len(spec) == len(table.header[0])
        plain = re.sub(r"\\[{}]", "", text)
        depth = np.cumsum([{"{": 1, "}": -1}.get(char, 0) for char in plain])
        assert depth.min() >= 0
        assert depth[-1] == 0
        assert text.count("$") % 2 == 0
        assert not re.search(r"(?<!\\)_", text)
        assert text.replace("% needs", "", 1).isascii()
        assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1


def test_latex_escapes():
    assert latex_escape("a_b & 5 % <x^2> \\") == r"a\_b \& 5 \% $<$x\textasciicircum{}2$>$ \textbackslash{}"
    assert latex_escape("MST-KDNet -5.0 [-6.1, -3.9]") == "MST-KDNet $-$5.0 [$-$6.1, $-$3.9]"


def test_paper_legacy_is_labelled_and_apart():
    tables = {table.name: table for table in every_table()}
    legacy = {name for name in tables if "paper_legacy" in name}
    assert legacy == {"table2_paper_legacy", "table3_paper_legacy", "table4_paper_legacy"}
    assert all("paper_legacy" in tables[name].caption and "flatters" in tables[name].caption for name in legacy)
    assert tables["table3"].records[0]["hd95 ET"] == pytest.approx(373.13)
    assert tables["table3_paper_legacy"].records[0]["hd95 ET"] == 0.0
    assert [record["method"] for record in tables["table4"].records] == ["w/o 50 % {x}", "MST_KD&Net"]
    assert not any("paper_legacy" in table.name for table in all_tables([method("a")]))


# --- figures and the command ---


def is_picture(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000


def test_every_figure_is_drawn(tmp_path):
    subsets = ("T1", "FLAIR", "T1+T1Gd+T2+FLAIR")
    written = all_figures([method("a/b", subsets=subsets), method("b", 0.05, subsets=subsets)], tmp_path)
    names = ["dice_by_sequences", "heat_map_a_b", "cases_a_b", "heat_map_b", "cases_b"]
    assert [path.stem for path in written] == names
    assert all(map(is_picture, written))


def test_a_panel_shows_the_slice_with_most_tumour(tmp_path):
    import SimpleITK as sitk

    image = np.zeros((6, 30, 24), np.float32)
    image[:, 4:26, 4:20] = np.random.default_rng(0).normal(100, 10, (6, 22, 16))
    truth = np.zeros(image.shape, np.uint8)
    truth[2, 10:12, 10:12], truth[4, 8:16, 8:16] = 1, 2
    case = PanelCase("a", image, truth, {"T1": truth, "T1+T2": np.zeros_like(truth)}, (2.0, 1.0, 1.0))
    assert is_picture(case_panel([case, case], tmp_path / "panel.png"))
    with pytest.raises(ValueError, match="same subsets"):
        case_panel([case, PanelCase("b", image, truth, {"T2": truth})], tmp_path / "x.png")
    with pytest.raises(ValueError, match="at least one case"):
        case_panel([], tmp_path / "x.png")
    # A volume stored from left to right and from back to front comes out in LPS.
    flipped = sitk.GetImageFromArray(truth[:, ::-1, ::-1])
    flipped.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    flipped.SetSpacing((1.0, 1.0, 2.0))
    turned = panel_case("c", sitk.Cast(flipped, sitk.sitkFloat32), flipped, {"T1": flipped})
    assert turned.spacing == (2.0, 1.0, 1.0)
    assert np.array_equal(turned.truth, truth)
    assert np.array_equal(turned.predictions["T1"], truth)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tables_command.add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_writes_tables_and_figures(tmp_path, capsys):
    for name, shift in (("ours", 0.05), ("other", 0.0), ("less", -0.05)):
        write_rows(tmp_path / f"{name}.csv", scores(shift, subsets=("T1", "T1+T1Gd+T2+FLAIR")))
    files = [f"{name}={tmp_path / name}.csv" for name in ("other", "ours")]
    ablated = f"w/o GSME={tmp_path / 'less.csv'}"
    out = tmp_path / "out"
    options = ("--reference", "ours", "--ablation", "w/o GSME", "--title", "Phantoms", "--paper-legacy")
    tables_command.run(arguments(*files, ablated, "--out", str(out), *options))
    page = (out / "tables.md").read_text(encoding="utf-8")
    assert page.startswith("# Phantoms\n")
    assert [line for line in page.splitlines() if line.startswith("**Table 4")]
    stems = ["table1", "table2", "table3", "table4", "comparison_dice", "comparison_hd95_by_missing", "empty_masks"]
    for stem in (*stems, "table1_intervals", "table2_paper_legacy"):
        assert (out / f"{stem}.tex").stat().st_size > 100
        with (out / f"{stem}.csv").open(newline="") as file:
            assert list(csv.DictReader(file))
    assert (out / "cases_w_o_GSME.png").exists()
    assert str(out / "tables.md") in capsys.readouterr().out
    assert not list(out.glob(".*"))
    write_rows(tmp_path / "few.csv", scores(subsets=("T1",)))
    files_with_few = [*files, f"few={tmp_path / 'few.csv'}"]
    with pytest.raises(ValueError, match="different subsets"):
        tables_command.run(arguments(*files_with_few, "--out", str(tmp_path / "few")))
    tables_command.run(arguments(*files_with_few, "--out", str(tmp_path / "few"), "--common-subsets"))
    assert "mean over 1 subsets" in (tmp_path / "few" / "tables.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="no method is named 'theirs'; there are other, ours"):
        tables_command.run(arguments(*files, "--out", str(out), "--reference", "theirs"))
    with pytest.raises(ValueError, match="needs the full method"):
        tables_command.run(arguments(*files, ablated, "--out", str(out), "--ablation", "w/o GSME"))
    with pytest.raises(ValueError, match=r"'per_case\.csv': expected NAME="):
        tables_command.run(arguments("per_case.csv", "--out", str(out)))


def test_csv_keeps_the_figures():
    table = average_table([method("low")], "table3", "Table 3")
    assert csv_text(table).splitlines()[1] == "low,55,45,0,6.5,6.5,373.13"
