"""Ablations and baselines with equal budgets: one configuration, its variants, their scores side by side (Table 4).

Every variant has the base's data, crops, steps, batch, optimiser and seed; `VARIANTS` names all that may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.cases import LabelledCase
from training.checkpoint import LAST
from training.config import ConfigError, TrainingConfig, differences, plain
from training.crops import Cases
from training.distributed import World
from training.evaluate import TABLE, Candidate, Told, evaluate
from training.figures import all_figures
from training.loop import run_training
from training.losses import needed_terms
from training.methods import DICE, HD95, Method, read_method, require_comparable
from training.networks import BASELINES, UNETR_SIDE, read_checkpoint
from training.table_formats import Cell, Table
from training.table_report import write_tables
from training.tables import average_table, comparison_table, empty_mask_table, interval_table, subset_table

FULL, NO_DISTILLATION = "full", "no-distillation"
# The factor (eq. 8, 12) that each ablation of the paper's Table 4 sets to 0.
SWITCHED_OFF = {"without-ms-tkd": "lambda_1", "without-gsme": "lambda_3", "without-slkd": "lambda_kd"}
DEFAULT_VARIANTS = (FULL, *SWITCHED_OFF, NO_DISTILLATION)
VARIANTS = (*DEFAULT_VARIANTS, *BASELINES)
REFERENCES = (FULL, NO_DISTILLATION)
"""What the other variants are compared with, where they are among those asked for."""

EVALUATION, TABLES = "evaluation", "tables"


# --- what differs ---


def variants(base: TrainingConfig, names: Sequence[str] = DEFAULT_VARIANTS) -> dict[str, TrainingConfig]:
    """The configuration of each variant, in the order given.

    full: the base. without-...: its factor is 0. no-distillation: no teacher. segresnet, unetr: MONAI's networks by
    modality dropout, without a teacher. Raises ConfigError for a name that does not exist and for a variant that could
    not be compared fairly: the base has no teacher, has that factor at 0 already, starts from trained weights that
    only its own architecture can take, or has crops that UNETR cannot take.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        problem = f"unknown variant {unknown[0]!r}" if unknown else "no variant is named"
        raise ConfigError(f"{problem}; there are {', '.join(VARIANTS)}")
    return {name: _variant(base, name) for name in dict.fromkeys(names)}


def _variant(base: TrainingConfig, name: str) -> TrainingConfig:
    without_teacher = replace(base.teacher, mode="none", weights="", preset="")
    if name in BASELINES:
        _require_fair_baseline(base, name)
        return replace(base, preset=name, teacher=without_teacher)  # type: ignore[arg-type]
    if name == NO_DISTILLATION:
        return replace(base, teacher=without_teacher)
    if base.teacher.mode == "none":
        raise ConfigError(f"{name}: the base has no teacher (teacher.mode: none), so there is nothing to distil from")
    if name == FULL:
        return base
    factor = SWITCHED_OFF[name]
    changed = replace(base, distillation=replace(base.distillation, **{factor: 0.0}))  # type: ignore[arg-type]
    if needed_terms(changed.distillation) == needed_terms(base.distillation):
        raise ConfigError(f"{name}: the base computes nothing that distillation.{factor} = 0 would switch off")
    return changed


def _require_fair_baseline(base: TrainingConfig, name: str) -> None:
    if base.initial_weights:
        raise ConfigError(
            f"{name} would start from random weights, but the base starts from {base.initial_weights}, which only its "
            f"own architecture can take: give the override 'initial_weights=\"\"', which holds for every variant, or "
            f"leave {name} out"
        )
    others = [phase.crop for phase in base.phases if phase.crop != (UNETR_SIDE,) * 3]
    if name == "unetr" and others:
        raise ConfigError(
            f"unetr takes crops of {UNETR_SIDE} voxels a side only, but the base has a phase with "
            f"{' x '.join(map(str, others[0]))}: give the override "
            f"'phases=[{{steps: {base.total_steps}, crop: [{UNETR_SIDE}, {UNETR_SIDE}, {UNETR_SIDE}]}}]', which holds "
            "for every variant, or leave unetr out"
        )


# --- training and scores ---


@dataclass(frozen=True)
class Scoring:
    """Where trained variants are scored: the `cases` of part `split`; `device` is a torch name or "auto"."""

    cases: Sequence[LabelledCase]
    split: str
    device: str = "auto"
    processes: int = 1


def run_ablation(
    base: TrainingConfig,
    names: Sequence[str],
    cases: Cases,
    out: Path,
    *,
    world: World | None = None,
    validation_cases: Cases | None = None,
    scoring: Scoring | None = None,
    told: Told = print,
) -> list[Path]:
    """Train the variants in `<out>/<variant>/`, score each `last.pt`, write `<out>/tables/<split>/`; returns its files.

    Goes on where an earlier call stopped: a finished variant is not trained again, a scored case not scored again.
    Without `scoring` it ends after training. Raises, before anything is trained, ConfigError for variants that cannot
    be compared fairly, ValueError where `out` holds one of another configuration and FileNotFoundError for weights that
    are not there; else as `run_training` (Stopped among them) and `evaluate` do.
    """
    world = world or World()
    say: Told = told if world.is_main else lambda _text: None
    configs = variants(base, names)
    for name, config in configs.items():
        _require_weights(name, config)
        _is_finished(config, out / name / LAST)
    for number, (name, config) in enumerate(configs.items(), start=1):
        place = f"variant {number} of {len(configs)}, {name}"
        if _is_finished(config, out / name / LAST):
            say(f"{place}: trained already")
        else:
            say(f"{place}: training")
            run_training(config, cases, out / name, world=world, validation_cases=validation_cases)
        if scoring is not None:
            say(f"{place}: scoring {len(scoring.cases)} cases of {scoring.split}")
            _score(out / name, scoring, world, told)
    if scoring is None or not world.is_main:
        return []
    return _write_tables(base, configs, out, scoring.split)


def _require_weights(name: str, config: TrainingConfig) -> None:
    for key, path in (("initial_weights", config.initial_weights), ("teacher.weights", config.teacher.weights)):
        if path and not Path(path).is_file():
            raise FileNotFoundError(f"{name}: {key}: {path}: no such file; give a bundle (.zip) or a checkpoint (.pt)")


def _is_finished(config: TrainingConfig, checkpoint: Path) -> bool:
    """Whether `checkpoint` is there and at its last step. Raises ValueError when it is of another configuration."""
    if not checkpoint.exists():
        return False
    state = read_checkpoint(checkpoint)
    changed = differences(state["config"], plain(config))
    if changed:
        raise ValueError(
            f"{checkpoint} was trained with another configuration ({'; '.join(changed)}); give another --out, or move "
            "it away"
        )
    return int(state["step"]) >= config.total_steps


def _score(folder: Path, scoring: Scoring, world: World, told: Told) -> None:
    evaluate(
        Candidate.from_checkpoint(folder / LAST, world.product_device(scoring.device)),
        scoring.cases,
        folder / EVALUATION / scoring.split,
        scoring.split,
        told=told,
        processes=scoring.processes,
        world=world,
    )


# --- tables ---


def _write_tables(base: TrainingConfig, configs: Mapping[str, TrainingConfig], out: Path, split: str) -> list[Path]:
    methods = [read_method(name, out / name / EVALUATION / split / TABLE) for name in configs]
    states = {name: _about(out / name / LAST) for name in configs}
    require_same_sources(states)
    tables = [budget_table(base, configs, states), *ablation_tables(methods)]
    folder = out / TABLES / split
    figures = all_figures(methods, folder)
    return write_tables(tables, methods, figures, folder, f"Ablations, scored on {split}")


def _about(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint tells about its run, without the weights."""
    state = read_checkpoint(checkpoint)
    return {key: state[key] for key in ("step", "seconds", "history")}


def require_same_sources(states: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError where variants had different teachers or starts: a file's name can outlive its contents."""
    for key in ("teacher_sha256", "initial_weights_sha256"):
        seen: dict[str, str] = {}
        for name, state in states.items():
            for stretch in state["history"]:
                if key in stretch:
                    seen.setdefault(stretch[key], name)
        if len(seen) > 1:
            (first, one), (second, other) = list(seen.items())[:2]
            raise ValueError(
                f"{one} and {other} cannot be compared: {key} is {first[:12]}... and {second[:12]}...; the file was "
                "replaced in between. Train both again with the same file, in another --out"
            )


def budget_table(
    base: TrainingConfig, configs: Mapping[str, TrainingConfig], states: Mapping[str, Mapping[str, Any]]
) -> Table:
    """What each variant changed, and that its budget was the others'."""
    records: list[dict[str, Any]] = []
    for name, config in configs.items():
        records.append(
            {
                "variant": name,
                "changes": "; ".join(differences(plain(base), plain(config))) or "none",
                "seed": config.seed,
                "steps": states[name]["step"],
                "crops": sum(phase.steps * phase.batch for phase in config.phases),
                "hours": states[name]["seconds"] / 3600,
                "hardware": states[name]["history"][-1]["hardware"],
            }
        )
    body = tuple(
        tuple(
            Cell(str(text))
            for text in (
                r["variant"],
                r["changes"],
                r["hardware"],
                r["seed"],
                r["steps"],
                r["crops"],
                f"{r['hours']:.2f}",
            )
        )
        for r in records
    )
    caption = "Variants: what each changes in the base's configuration, and its budget"
    header = (("Variant", "Changes", "Hardware", "Seed", "Steps", "Crops", "Hours"),)
    return Table("variants", caption, header, body, tuple(records), text_columns=3)


def ablation_tables(methods: Sequence[Method]) -> list[Table]:
    """The paper's Table 4, each variant against `REFERENCES`, and the 15 subsets; `methods` are named as variants.

    Raises ValueError when they were not scored on the same cases.
    """
    require_comparable(methods)
    tables = [average_table(methods, "table4", "Table 4, ablations")]
    for reference in (m for m in methods if m.name in REFERENCES and len(methods) > 1):
        for metric in (DICE, HD95):
            stem = f"comparison_{metric.key}_with_{reference.name.replace('-', '_')}"
            tables.append(comparison_table(methods, reference, metric, stem))
    for metric in (DICE, HD95):
        tables.append(subset_table(methods, metric, f"subsets_{metric.key}", f"{metric.title} by subset"))
        tables.append(interval_table(methods, metric, f"intervals_{metric.key}", f"{metric.title} with intervals"))
    return [*tables, empty_mask_table(methods)]
