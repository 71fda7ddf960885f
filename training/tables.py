"""Tables in the shape of the paper's Tables 1 to 4, with what those lack: n, all 15 subsets, intervals and tests.

Input are the per-case scores that `training.evaluate` wrote, one file for each method. Dice is in percent and HD95 in
millimetres. Means are over cases, intervals and tests by patient (`MSTKDSegmentLib.statistics`,
`training.statistics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from MSTKDSegmentLib.metrics import HD95_PENALTY_MM, Status
from MSTKDSegmentLib.modalities import MODALITIES
from MSTKDSegmentLib.statistics import estimate

from training.methods import DICE, DOT_ROWS, HD95, Method, Metric, require_comparable, sample_size
from training.scores import PAPER_LEGACY_NOTE, REGIONS
from training.statistics import compare_paired, holm
from training.table_formats import EMPTY, FULL, Cell, Mark, Table


def subset_table(methods: Sequence[Method], metric: Metric, name: str, title: str) -> Table:
    """The paper's Table 1 (Dice) or 2 (HD95): methods within regions, a column for each subset, and their mean."""
    subsets = methods[0].subsets
    columns = [*((s,) for s in subsets), subsets]
    body: list[tuple[Cell, ...]] = []
    records: list[dict[str, Any]] = []
    for region in REGIONS:
        figures = np.array([[m.values(metric, region, c).mean() for c in columns] for m in methods])
        marked = [marked_cells(column, metric) for column in figures.T]
        for number, method in enumerate(methods):
            body.append((Cell(region), Cell(method.name), *(column[number] for column in marked)))
            named = zip((*subsets, "Avg."), figures[number].tolist())
            records.append({"region": region, "method": method.name, **dict(named)})
    caption = (
        f"{title}: mean {metric.title} ({metric.unit}) for each subset of sequences, {sample_size(methods[0])}; "
        f"{FULL} present, {EMPTY} missing; Avg.: mean over these {len(subsets)} subsets"
    )
    return Table(name, _with_marks(caption, methods), _dots(subsets), tuple(body), tuple(records), text_columns=2)


def _dots(subsets: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Head: a line for each sequence with its dots; the last one also names the columns of words and the mean."""
    lines = []
    for number, modality in enumerate(DOT_ROWS):
        last = number == len(DOT_ROWS) - 1
        dots = (FULL if modality in subset.split("+") else EMPTY for subset in subsets)
        lines.append(("Region" if last else "", modality, *dots, "Avg." if last else ""))
    return tuple(lines)


def interval_table(methods: Sequence[Method], metric: Metric, name: str, title: str) -> Table:
    """Beside Table 1 or 2: mean with 95 % interval (and, in the CSV, median) of every region, subset and method."""
    subsets = methods[0].subsets
    body: list[tuple[Cell, ...]] = []
    records: list[dict[str, Any]] = []
    for region in REGIONS:
        for label, group in (*((s, (s,)) for s in subsets), ("Avg.", subsets)):
            cells = [Cell(region), Cell(label)]
            for method in methods:
                values = method.values(metric, region, group)
                mean, median = (estimate(values, method.patients, kind) for kind in ("mean", "median"))
                cells.append(Cell(f"{mean.value:.1f} [{mean.low:.1f}, {mean.high:.1f}]"))
                record: dict[str, Any] = {"region": region, "subset": label, "method": method.name, "mean": mean.value}
                record |= {"ci95_low": mean.low, "ci95_high": mean.high, "median": median.value}
                record |= {"median_ci95_low": median.low, "median_ci95_high": median.high}
                records.append({**record, "cases": mean.cases, "patients": mean.patients})
            body.append(tuple(cells))
    caption = (
        f"{title}: mean {metric.title} ({metric.unit}) [95 % bootstrap interval by patient], {sample_size(methods[0])}"
    )
    header = (("Region", "Sequences", *(m.name for m in methods)),)
    return Table(name, caption, header, tuple(body), tuple(records), text_columns=2)


def average_table(methods: Sequence[Method], name: str, title: str) -> Table:
    """The paper's Table 3 (methods) or 4 (ablations): Dice and HD95, each averaged over the subsets."""
    subsets = methods[0].subsets
    pairs = [(metric, region) for metric in (DICE, HD95) for region in REGIONS]
    figures = np.array([[m.values(metric, region, subsets).mean() for metric, region in pairs] for m in methods])
    marked = [marked_cells(column, metric) for column, (metric, _) in zip(figures.T, pairs)]
    body = tuple((Cell(m.name), *(column[number] for column in marked)) for number, m in enumerate(methods))
    names = [f"{metric.key} {region}" for metric, region in pairs]
    records = tuple({"method": m.name, **dict(zip(names, row.tolist()))} for m, row in zip(methods, figures))
    header = (
        ("Method", *(f"Average {metric.title} ({metric.unit})" for metric, _ in pairs)),
        ("", *(region for _, region in pairs)),
    )
    caption = f"{title}: mean over {len(subsets)} subsets of sequences, {sample_size(methods[0])}"
    return Table(name, _with_marks(caption, methods), header, body, records)


def marked_cells(figures: np.ndarray, metric: Metric) -> list[Cell]:
    """One column's figures, a cell a method: the best is marked, and the second; equal as printed is equal in rank."""
    texts = [f"{value:.1f}" for value in figures.tolist()]
    ranks = sorted({float(text) for text in texts if text != "nan"}, reverse=metric.larger_is_better)
    marks = dict(zip(ranks, (Mark.BEST, Mark.SECOND))) if len(texts) > 1 else {}
    return [Cell(text, marks.get(float(text), Mark.NONE)) for text in texts]


def _with_marks(caption: str, methods: Sequence[Method]) -> str:
    return caption + ("; best in bold, second underlined" if len(methods) > 1 else "")


def comparison_table(
    methods: Sequence[Method], reference: Method, metric: Metric, name: str, by_missing: bool = False
) -> Table:
    """Each method minus `reference` by region, over all subsets or (`by_missing`) by the number of missing sequences.

    All tests of the table are one family for Holm's correction.
    """
    keys: list[tuple[str, str, Method]] = []
    results = []
    for region in REGIONS:
        for label, subsets in _groups(reference.subsets, by_missing).items():
            for method in (m for m in methods if m is not reference):
                values, others = (m.values(metric, region, subsets) for m in (method, reference))
                keys.append((region, label, method))
                results.append(compare_paired(values, others, reference.patients))
    adjusted = holm([result.p for result in results])
    body, records = [], []
    for (region, label, method), result, corrected in zip(keys, results, adjusted):
        d = result.difference
        texts = (f"{d.value:+.1f}", f"[{d.low:+.1f}, {d.high:+.1f}]", p_text(result.p), p_text(corrected))
        body.append(tuple(map(Cell, (region, label, method.name, *texts))))
        record: dict[str, Any] = {
            "region": region,
            "missing": label,
            "method": method.name,
            "reference": reference.name,
        }
        record |= {"mean_difference": d.value, "ci95_low": d.low, "ci95_high": d.high, "p": result.p}
        records.append({**record, "p_holm": corrected, "cases": d.cases, "patients": d.patients})
    good = "above" if metric.larger_is_better else "below"
    caption = (
        f"{metric.title} ({metric.unit}), method minus {reference.name}, {sample_size(reference)}: mean paired "
        f"difference ({good} 0: better than {reference.name}), 95 % bootstrap interval by patient, Wilcoxon "
        f"signed-rank p over the patients' mean differences, and p after Holm's correction for the {len(results)} "
        "tests of this table"
    )
    header = (("Region", "Missing sequences", "Method", "Difference", "95 % CI", "p", "Holm p"),)
    return Table(name, caption, header, tuple(body), tuple(records), text_columns=3)


def _groups(subsets: Sequence[str], by_missing: bool) -> dict[str, list[str]]:
    if not by_missing:
        return {"all subsets": list(subsets)}
    return {str(missing): mine for missing, mine in by_number_missing(subsets).items()}


def by_number_missing(subsets: Sequence[str]) -> dict[int, list[str]]:
    """`subsets` by how many sequences they lack, fewest first; only numbers that there are."""
    groups: dict[int, list[str]] = {}
    for missing in range(len(MODALITIES)):
        mine = [s for s in subsets if len(MODALITIES) - len(s.split("+")) == missing]
        if mine:
            groups[missing] = mine
    return groups


def p_text(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def empty_mask_table(methods: Sequence[Method], name: str = "empty_masks") -> Table:
    """How often the empty-mask policy decided a score: what HD95 means cannot be read without."""
    statuses = (Status.BOTH_EMPTY, Status.MISSED, Status.FP_ONLY)
    body: list[tuple[Cell, ...]] = []
    records: list[dict[str, Any]] = []
    for region in REGIONS:
        for method in methods:
            found = [row.status for row in method.rows if row.region == region]
            counts = {status: found.count(status) for status in statuses}
            texts = (region, method.name, *map(str, counts.values()), str(len(found)))
            body.append(tuple(map(Cell, texts)))
            records.append({"region": region, "method": method.name, **counts, "scores": len(found)})
    caption = (
        "Empty masks among all scores (cases times subsets). both_empty: Dice 100 %, HD95 0 mm; missed (nothing found) "
        f"and fp_only (nothing was there): Dice 0, HD95 {HD95_PENALTY_MM} mm"
    )
    header = (("Region", "Method", *statuses, "scores"),)
    return Table(name, caption, header, tuple(body), tuple(records), text_columns=2)


def absent_region_table(methods: Sequence[Method], name: str = "absent_regions") -> Table | None:
    """Millilitres drawn of a region that a patient does not have, all of it invented; None if every one is there."""
    body: list[tuple[Cell, ...]] = []
    records: list[dict[str, Any]] = []
    subsets = methods[0].subsets
    for region in REGIONS:
        absent = [case for case in methods[0].cases if methods[0].row_of[case, subsets[0], region].n_ref == 0]
        if not absent:
            continue
        for method in methods:
            # With an empty reference the error is the volume drawn.
            drawn = np.array([[method.row_of[c, s, region].volume_error_ml for s in subsets] for c in absent])
            medians = np.median(drawn, axis=0).tolist()
            overall = float(np.median(medians))
            figures = (*medians, overall, float(drawn.max()))
            texts = (region, str(len(absent)), method.name, *(f"{ml:.2f}" for ml in figures))
            body.append(tuple(map(Cell, texts)))
            columns = (*subsets, "median of the subsets", "largest")
            named = {column: round(ml, 3) for column, ml in zip(columns, figures)}
            records.append({"region": region, "cases": len(absent), "method": method.name, **named})
    if not body:
        return None
    caption = (
        "Volume in ml drawn of regions that the reference does not have: median over those cases, the median of these "
        "medians over the subsets, and the largest of all"
    )
    header = (("Region", "Cases", "Method", *subsets, "median", "largest"),)
    return Table(name, caption, header, tuple(body), tuple(records), text_columns=3)


def all_tables(
    methods: Sequence[Method],
    reference: Method | None = None,
    ablations: Sequence[Method] = (),
    paper_legacy: bool = False,
) -> list[Table]:
    """Every table that these methods give; `ablations` get Table 4 together with the reference.

    Raises ValueError when methods cannot be compared, or ablations have no reference.
    """
    if ablations and reference is None:
        raise ValueError("a table of ablations needs the full method beside them: name it as the reference")
    require_comparable([*methods, *ablations])
    tables = [
        subset_table(methods, DICE, "table1", "Table 1"),
        interval_table(methods, DICE, "table1_intervals", "Intervals of Table 1"),
        subset_table(methods, HD95, "table2", "Table 2"),
        interval_table(methods, HD95, "table2_intervals", "Intervals of Table 2"),
        average_table(methods, "table3", "Table 3"),
    ]
    if reference is not None and ablations:
        tables.append(average_table([*ablations, reference], "table4", "Table 4, ablations"))
    others = [*(m for m in methods if m is not reference), *ablations]
    if reference is not None and others:
        for metric in (DICE, HD95):
            tables.append(comparison_table(others, reference, metric, f"comparison_{metric.key}"))
            tables.append(comparison_table(others, reference, metric, f"comparison_{metric.key}_by_missing", True))
    tables.append(empty_mask_table([*methods, *ablations]))
    absent = absent_region_table([*methods, *ablations])
    if absent is not None:
        tables.append(absent)
    if paper_legacy:
        tables += _paper_legacy_tables(methods, reference, ablations)
    return tables


def _paper_legacy_tables(
    methods: Sequence[Method], reference: Method | None, ablations: Sequence[Method]
) -> list[Table]:
    flattered = [m.as_paper_legacy() for m in methods]
    tables = [
        subset_table(flattered, HD95, "table2_paper_legacy", "Table 2, paper_legacy"),
        average_table(flattered, "table3_paper_legacy", "Table 3, paper_legacy"),
    ]
    if reference is not None and ablations:
        full = [m.as_paper_legacy() for m in (*ablations, reference)]
        tables.append(average_table(full, "table4_paper_legacy", "Table 4, ablations, paper_legacy"))
    return [replace(table, caption=f"{table.caption}. {PAPER_LEGACY_NOTE}") for table in tables]
