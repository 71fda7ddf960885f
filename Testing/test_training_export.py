"""From a checkpoint to a bundle: proved through the product's pipeline, with figures of these weights and no others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")
pytest.importorskip("pydantic", reason="training needs the `train` extra")

import training_run as tiny  # noqa: E402
from MSTKDSegmentLib.decision import NO_DECISION  # noqa: E402
from MSTKDSegmentLib.errors import WeightsError  # noqa: E402
from MSTKDSegmentLib.network import build_network  # noqa: E402
from MSTKDSegmentLib.pipeline import Segmenter  # noqa: E402
from MSTKDSegmentLib.weights import load_network, read_bundle, write_bundle  # noqa: E402

from training.cache import cache_fingerprint  # noqa: E402
from training.checkpoint import save_checkpoint  # noqa: E402
from training.config import SamplingConfig  # noqa: E402
from training.discovery import find_case  # noqa: E402
from training.engine import Trainer  # noqa: E402
from training.evaluate import Candidate, evaluate  # noqa: E402
from training.export import Blend, blended, export_bundle, read_texts  # noqa: E402
from training.loop import run_training  # noqa: E402
from training.model_card import card_markdown  # noqa: E402
from training.networks import read_checkpoint, trained_state  # noqa: E402

TEXTS = {"name": "tiny", "description": "d", "data": "one phantom", "licence": "research use only", "citations": []}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    return folder, tiny.prepared_cases(folder)


@pytest.fixture(scope="module")
def checkpoint(cohort, tmp_path_factory):
    return run_training(tiny.TINY, cohort[1], tmp_path_factory.mktemp("run"), tensorboard=False)


@pytest.fixture
def export(cohort, checkpoint):
    folder, cases = cohort

    def call(out, **options):
        options = {
            "checkpoint": checkpoint,
            "cases": ["Case_1"],
            "texts": TEXTS,
            "fingerprint": cache_fingerprint(cases.cache, ["Case_1"]),
            "trial": find_case(folder / "data" / "Case_2").sources(),
            **options,
        }
        return export_bundle(options.pop("checkpoint"), out, **options)

    return call


def test_the_bundle_segments_like_the_trainer_and_says_how_nearly(export, tmp_path):
    agreement = export(tmp_path / "draft.zip")
    assert len(agreement) == 9
    assert min(agreement.values()) > 0.98
    card = read_bundle(tmp_path / "draft.zip").card
    assert card["training"]["steps"] == 4
    assert card["training"]["history"][0]["config"]["preset"] == "compact"
    assert card["metrics"]["subsets"] == {}


def test_figures_of_these_weights_go_into_the_card(export, cohort, tmp_path):
    draft = tmp_path / "draft.zip"
    export(draft)
    case = find_case(cohort[0] / "data" / "Case_1")
    summary = evaluate(Candidate.from_bundle(draft, "cpu"), [case], tmp_path / "val", "val", told=lambda _: None)
    with pytest.raises(WeightsError, match="trained on Case_1; use other patients"):
        export(tmp_path / "final.zip", evaluation=summary)
    export(tmp_path / "final.zip", evaluation=summary, cases=["Another"])
    final = read_bundle(tmp_path / "final.zip")
    assert final.sha256 == read_bundle(draft).sha256
    figures = json.loads(summary.read_text(encoding="utf-8"))["clean_up"]["none"]["subsets"]["FLAIR"]
    assert final.expected_dice(("FLAIR",))["WT"] == pytest.approx(figures["WT"])
    assert final.card["training"]["cases"] == ["Another"]
    page = card_markdown(final.card)
    assert final.sha256 in page
    assert page.count("| Case_1 |") == 2
    assert "hardware" not in page
    assert f"torch {torch.__version__}" in page


def test_figures_of_other_weights_are_refused_and_the_old_bundle_stays(export, tmp_path):
    summary, bundle = tmp_path / "summary.json", tmp_path / "x.zip"
    figures = {"none": {"subsets": {}, "mean_over_subsets": {}, "per_case": {}}}
    summary.write_text(
        json.dumps({"checkpoint_sha256": "f" * 64, "split": "val", "cases": [], "patients": 0, "clean_up": figures})
    )
    bundle.write_bytes(b"the bundle that ships")
    with pytest.raises(WeightsError, match="made with weights ffffffffffff"):
        export(bundle, evaluation=summary)
    assert bundle.read_bytes() == b"the bundle that ships"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["summary.json", "x.zip"]


def test_a_bundle_that_segments_differently_is_not_written(export, monkeypatch, tmp_path):
    """As if something went wrong between the checkpoint and the file: the bundle gets other weights."""
    from training import export as module

    other = build_network("compact").state_dict()
    monkeypatch.setattr(module, "write_bundle", lambda path, state, card: write_bundle(path, other, card))
    with pytest.raises(WeightsError, match="differently from the checkpoint"):
        export(tmp_path / "x.zip")
    assert not list(tmp_path.iterdir())


def test_a_student_with_a_cavity_class_runs_in_the_product(export, cohort, tmp_path):
    config = tiny.changed(sampling=SamplingConfig(workers=0, resection_cavity="class"))
    run = run_training(config, cohort[1], tmp_path / "run", stop_after=1, tensorboard=False)
    export(tmp_path / "five.zip", checkpoint=run)
    segmenter = Segmenter(tmp_path / "five.zip", "cpu")
    assert segmenter.network.config.classes == 5
    labels = segmenter.segment(find_case(cohort[0] / "data" / "Case_1").sources()).labels
    assert labels.max() <= 3


def test_baselines_are_not_exported(export, checkpoint, tmp_path):
    state = read_checkpoint(checkpoint)
    state["config"] = {**state["config"], "preset": "unetr"}
    save_checkpoint(state, tmp_path / "last.pt")
    with pytest.raises(WeightsError, match="a unetr network is a baseline"):
        export(tmp_path / "x.zip", checkpoint=tmp_path / "last.pt")


def other_bundle(path: Path, preset: str = "compact", cases: tuple[str, ...] | None = ("Case_1",)) -> Path:
    torch.manual_seed(5)
    network = build_network(preset)
    card = {
        "name": "other",
        "licence": "research use only",
        "preset": preset,
        "network": network.config.to_dict(),
        "clean_up": {},
        "metrics": {"split": None, "subsets": {}},
        "training": {} if cases is None else {"cases": list(cases)},
    }
    write_bundle(path, network.state_dict(), card)
    return path


def test_a_blend_lies_between_the_run_and_what_it_came_from(export, checkpoint, tmp_path):
    source = other_bundle(tmp_path / "other.zip")
    mine, others = read_checkpoint(checkpoint)["average"], load_network(read_bundle(source)).state_dict()
    found, digest = blended(read_checkpoint(checkpoint), Blend(source, 0.75), ["Case_1"])
    assert digest == read_bundle(source).sha256
    for name in ("stem.weight", "head.bias"):
        assert torch.allclose(found[name], 0.75 * mine[name] + 0.25 * others[name], atol=1e-6)
        assert not torch.allclose(found[name], mine[name], atol=1e-6)
    out = tmp_path / "blend.zip"
    export(out, blend=Blend(source, 0.75))
    bundle = read_bundle(out)
    assert torch.allclose(load_network(bundle).stem.weight, found["stem.weight"], atol=1e-3)
    assert bundle.card["training"]["blend"] == {"weights_sha256": digest, "share_of_this_run": 0.75}
    line = f"| Blend | 0.75 of the weights after these steps, 0.25 of those that they came from, sha256 `{digest[:16]}"
    assert line in card_markdown(bundle.card)


@pytest.mark.parametrize(
    ("preset", "cases", "share", "message"),
    [
        ("medium", ("Case_1",), 0.5, "'medium'"),
        ("compact", ("Case_1", "Case_9"), 0.5, "1 further cases"),
        ("compact", None, 0.5, "does not say what it was trained on"),
        ("compact", ("Case_1",), 1.5, "between 0 and 1"),
    ],
)
def test_what_cannot_be_blended_is_refused(export, tmp_path, preset, cases, share, message):
    source = other_bundle(tmp_path / "other.zip", preset, cases)
    with pytest.raises(WeightsError, match=message):
        export(tmp_path / "out.zip", blend=Blend(source, share))
    assert not (tmp_path / "out.zip").exists()


def test_what_taught_the_initial_weights_is_not_new_to_the_network(export, cohort, tmp_path):
    """Figures of patients that the teacher or the first weights know are refused, wherever they hide."""
    source = other_bundle(tmp_path / "first.zip", cases=("Case_2", "Elsewhere"))
    config = replace(tiny.TINY, initial_weights=str(source))
    checkpoint = run_training(config, cohort[1], tmp_path / "run", tensorboard=False)
    options = {"checkpoint": checkpoint, "cases": ["Another"]}
    draft = tmp_path / "draft.zip"
    export(draft, **options)
    card = read_bundle(draft).card
    assert card["training"]["earlier_cases"] == ["Case_2", "Elsewhere"]
    assert "| Further cases that taught its teacher or first weights | 2 (Case_2, Elsewhere) |" in card_markdown(card)
    assert "Case_2" in (trained_state(draft).cases or ())
    case = find_case(cohort[0] / "data" / "Case_2")
    summary = evaluate(Candidate.from_bundle(draft, "cpu"), [case], tmp_path / "val", "val", told=lambda _: None)
    with pytest.raises(WeightsError, match="its initial weights were trained on Case_2; use other patients"):
        export(tmp_path / "final.zip", evaluation=summary, **options)
    # A further run from that checkpoint knows them too, and so does one that is resumed.
    config = replace(tiny.TINY, initial_weights=str(checkpoint))
    second = run_training(config, cohort[1], tmp_path / "second", tensorboard=False)
    assert {"Case_2", "Elsewhere", "Case_1"} <= set(trained_state(second).cases or ())
    resumed = Trainer(config, resumed=True)
    resumed.load_state_dict(read_checkpoint(second))
    assert {"Case_2", "Elsewhere"} <= set(resumed.earlier_cases or ())


def test_thresholds_chosen_on_training_patients_are_refused(export, checkpoint, tmp_path):
    draft, place = tmp_path / "draft.zip", tmp_path / "decision.json"
    export(draft)
    region = {"error": 0.1}
    reliability = {kind: dict.fromkeys(("WT", "TC", "ET"), region) for kind in ("before", "left_out")}
    about = {
        "weights_sha256": read_bundle(draft).sha256, "split": "train", "cases": ["Case_1"], "patients": 1,
        "decision": NO_DECISION.to_dict(), "reliability": reliability,
    }  # fmt: skip
    place.write_text(json.dumps(about))
    with pytest.raises(WeightsError, match=r"decision\.json: .*trained on Case_1; use other patients"):
        export(tmp_path / "final.zip", decision=place)


def test_initial_weights_that_name_no_patients_end_in_no_figures(export, cohort, tmp_path):
    source = other_bundle(tmp_path / "first.zip", cases=None)
    config = replace(tiny.TINY, initial_weights=str(source))
    checkpoint = run_training(config, cohort[1], tmp_path / "run", tensorboard=False)
    draft = tmp_path / "draft.zip"
    export(draft, checkpoint=checkpoint)
    assert read_bundle(draft).card["training"]["earlier_cases"] is None
    assert "first weights | unknown |" in card_markdown(read_bundle(draft).card)
    case = find_case(cohort[0] / "data" / "Case_2")
    summary = evaluate(Candidate.from_bundle(draft, "cpu"), [case], tmp_path / "val", "val", told=lambda _: None)
    with pytest.raises(WeightsError, match="do not say what they were trained on"):
        export(tmp_path / "final.zip", checkpoint=checkpoint, evaluation=summary)


def test_texts_of_a_card_are_complete(tmp_path):
    path: Path = tmp_path / "card.yaml"
    path.write_text("name: x\ncolour: red\n")
    with pytest.raises(ValueError, match="missing or unknown: citations, colour, data, description, licence"):
        read_texts(path)
