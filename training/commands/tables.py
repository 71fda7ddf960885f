"""Tables and figures like the paper's from one or several per_case.csv, with intervals and paired tests.

Each METHOD is NAME=per_case.csv, as `evaluate` wrote it; all need the same cases, and without --common-subsets the same
subsets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "tables and figures like the paper's, with intervals and paired tests"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("methods", nargs="+", metavar="NAME=per_case.csv", help="a method and its scores")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables.md, table*.csv, table*.tex and PNGs")
    parser.add_argument("--reference", metavar="NAME", help="the method that the others are compared with")
    parser.add_argument(
        "--ablation", action="append", default=[], metavar="NAME", help="a method for Table 4 only (repeatable)"
    )
    parser.add_argument("--clean-up", default="none", help="whose scores to take (default: none)")
    parser.add_argument(
        "--common-subsets", action="store_true", help="leave out subsets that one of the methods was not evaluated on"
    )
    parser.add_argument("--title", default="Evaluation", help="heading of tables.md")
    parser.add_argument(
        "--paper-legacy",
        action="store_true",
        help="also HD95 tables as the published code has them (0 mm for empty masks), labelled so",
    )


def run(arguments: argparse.Namespace) -> None:
    from training.figures import all_figures
    from training.methods import on_common_subsets, read_method
    from training.table_report import write_tables
    from training.tables import all_tables

    files = named_files(arguments.methods)
    unknown = sorted({*arguments.ablation, *filter(None, [arguments.reference])} - set(files))
    if unknown:
        raise ValueError(f"no method is named {unknown[0]!r}; there are {', '.join(files)}")
    if arguments.reference in arguments.ablation:
        raise ValueError(f"{arguments.reference!r} is named as the reference and as an ablation; it can be one of them")
    methods = {name: read_method(name, path, arguments.clean_up) for name, path in files.items()}
    if arguments.common_subsets:
        methods = dict(zip(methods, on_common_subsets(list(methods.values()))))
    reference = methods[arguments.reference] if arguments.reference else None
    ablations = [methods[name] for name in arguments.ablation]
    others = [method for method in methods.values() if method not in ablations]
    if not others:
        raise ValueError("every method is an ablation; name the full method beside them and give it as --reference")
    tables = all_tables(others, reference, ablations, arguments.paper_legacy)
    figures = all_figures([*others, *ablations], arguments.out)
    for path in write_tables(tables, [*others, *ablations], figures, arguments.out, arguments.title):
        print(path)


def named_files(texts: list[str]) -> dict[str, Path]:
    """`["ours=a.csv"]` -> `{"ours": Path("a.csv")}`, in the order given. Raises ValueError for a name given twice."""
    files: dict[str, Path] = {}
    for text in texts:
        name, path = named_file(text, "per_case.csv")
        if name in files:
            raise ValueError(f"{name!r} is given twice; each method needs a name of its own")
        files[name] = path
    return files


def named_file(text: str, what: str) -> tuple[str, Path]:
    """`"ours=a.csv"` -> `("ours", Path("a.csv"))`. Raises ValueError, which asks for `what`."""
    name, separator, path = text.partition("=")
    if not (name.strip() and separator and path):
        raise ValueError(f"{text!r}: expected NAME={what}")
    return name.strip(), Path(path)
