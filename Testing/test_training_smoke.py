"""The smoke configuration from labelled folders to a bundle, by the commands that an engineer types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")
pytest.importorskip("pydantic", reason="training needs the `train` extra")

import training_phantom as made  # noqa: E402
import yaml  # noqa: E402
from MSTKDSegmentLib.pipeline import Segmenter  # noqa: E402

from training.__main__ import COMMANDS, main  # noqa: E402
from training.runlog import read_log  # noqa: E402

CONFIG = Path(__file__).parents[1] / "training" / "configs" / "smoke.yaml"
TEXTS = {"name": "smoke", "description": "d", "data": "phantoms", "licence": "research use only", "citations": ["x"]}


def test_from_folders_to_a_bundle(tmp_path, monkeypatch, capsys):
    """check, split, prepare, train, resume, evaluate a draft, export with figures, card, tables."""
    monkeypatch.chdir(tmp_path)
    for seed in range(4):
        made.write_labelled_case(tmp_path / "data", f"Case_{seed}", seed=seed)
    Path("texts.yaml").write_text(yaml.safe_dump(TEXTS))

    def call(text: str) -> str:
        assert main(text.split()) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    call("check --data data --report checks")
    call("split --data data --out splits.json --seed 1 --validation 0.25 --test 0.25")
    call("prepare --data data --splits splits.json --cache cache --processes 1")
    train = f"train --config {CONFIG} --splits splits.json --cache cache --out run --device cpu"
    call(f"{train} --stop-after 5")
    assert read_log(Path("run/log.jsonl"))[-1]["step"] == 5
    assert call(train).strip() == "run/last.pt"
    state = torch.load("run/last.pt", weights_only=True)
    assert state["step"] == 10
    assert torch.load("run/best.pt", weights_only=True)["best_score"] == state["best_score"]
    export = "export --run run --splits splits.json --cache cache --texts texts.yaml --trial data/Case_0"
    assert "Dice of bundle and trainer" in call(f"{export} --out draft.zip")
    evaluate = "evaluate --data data --splits splits.json --split val --device cpu"
    assert "mean over 15 subsets" in call(f"{evaluate} --bundle draft.zip --out evaluation")
    call(f"{export} --evaluation evaluation/summary.json --out student.zip")
    call("card --bundle student.zip --out card.md")
    summary = json.loads(Path("evaluation/summary.json").read_text(encoding="utf-8"))
    mean = summary["clean_up"]["none"]["mean_over_subsets"]
    assert f"**{mean['WT']:.3f}** | **{mean['TC']:.3f}** | **{mean['ET']:.3f}**" in Path("card.md").read_text(
        encoding="utf-8"
    )
    call("tables student=evaluation/per_case.csv --out tables")
    assert "| student |" in Path("tables/tables.md").read_text(encoding="utf-8")
    segmenter = Segmenter("student.zip", "cpu")
    assert segmenter.bundle.sha256 == summary["checkpoint_sha256"]
    assert segmenter.bundle.expected_dice(("FLAIR",)) is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"python -m training {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ("train --config none.yaml --splits s.json --cache c --out o", "none.yaml", 1),
        ("card --bundle none.zip --out x.md", "none.zip: no such weights file", 6),
        ("check --data nowhere --report r", "nowhere", 3),
    ],
)
def test_errors_are_one_line(arguments, words, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("training: error: ")
    assert words in lines[0]
