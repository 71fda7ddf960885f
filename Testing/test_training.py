"""Training: data, losses, resume, export. One tiny labelled case is made on the fly."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")
pytest.importorskip("yaml", reason="training needs the `train` extra")

from MSTKDSegmentLib.errors import InputError, WeightsError  # noqa: E402
from MSTKDSegmentLib.modalities import SUBSETS, subset_name  # noqa: E402
from MSTKDSegmentLib.pipeline import Segmenter  # noqa: E402
from MSTKDSegmentLib.regions import NO_CLEAN_UP  # noqa: E402
from MSTKDSegmentLib.weights import read_bundle  # noqa: E402

from training.augment import Augmentation, AugmentationConfig, crop_around  # noqa: E402
from training.config import ConfigError, config_from_dict, load_config  # noqa: E402
from training.data import (  # noqa: E402
    CropDataset,
    LabelledCase,
    cache_fingerprint,
    choose_centre,
    choose_subset,
    find_case,
    label_convention,
    load_case,
    prepare_case,
    read_splits,
)
from training.engine import Phase, TrainingConfig, run_training  # noqa: E402
from training.evaluate import Row, bootstrap_interval, evaluate, read_rows, write_rows  # noqa: E402
from training.export import export_bundle, read_texts  # noqa: E402
from training.losses import region_probabilities, region_targets, segmentation_loss  # noqa: E402
from training.model_card import card_markdown  # noqa: E402

SMALL = TrainingConfig(phases=(Phase(3, (32, 32, 32), 1), Phase(3, (32, 32, 64), 1)), warmup_steps=2, workers=0)


@pytest.fixture(scope="module")
def labelled_folder(tmp_path_factory):
    """A BraTS-style folder: ellipsoid brain of 60 x 64 x 56 mm with nested spheres as tumour, 1 mm, LPS."""
    folder = tmp_path_factory.mktemp("data") / "Case_1"
    folder.mkdir()
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[-32:32, -36:36, -34:34]
    brain = (z / 28) ** 2 + (y / 32) ** 2 + (x / 30) ** 2 < 1
    distance = np.sqrt((z - 4) ** 2 + (y + 6) ** 2 + (x - 5) ** 2)
    labels = np.select([distance < 4, distance < 8, distance < 14], [1, 4, 2], 0).astype(np.uint8)
    for name, bright in (("t1", ()), ("t1ce", (4,)), ("t2", (1, 2)), ("flair", (2, 4))):
        array = np.where(brain, rng.normal(200, 20, brain.shape) + 200 * np.isin(labels, bright), 0)
        sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.int16)), str(folder / f"Case_1_{name}.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "Case_1_seg.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def cache(labelled_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache")
    prepare_case(find_case(labelled_folder), out)
    return out


@pytest.fixture(scope="module")
def finished_run(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    run_training(SMALL, cache, ["Case_1"], out)
    return out


# --- data ---


def test_prepared_case_is_normalised_cut_to_the_brain_and_relabelled(cache):
    images, labels = load_case(cache, "Case_1")
    assert images.shape == (4, *labels.shape)
    assert images.dtype == np.float16
    assert sorted(np.unique(labels)) == [0, 1, 2, 3]
    assert all(54 <= side <= 66 for side in labels.shape)
    t1 = images[0].astype(np.float32)
    assert t1[t1 != 0].mean() == pytest.approx(0, abs=0.05)
    # T1Gd is brightest where the label says ET.
    assert images[1][labels == 3].mean() > images[1][labels == 2].mean() + 2


@pytest.mark.parametrize(
    ("name", "values", "convention"),
    [
        ("BraTS20_1", (0, 1, 2, 4), "brats2021"),
        ("BraTS-GLI-00005-000", (0, 1, 2, 3), "brats2023"),
        ("BraTS-GLI-02063-100", (0, 1, 2, 3, 4), "brats2024"),
        ("MSD_BRATS_001", (0, 1, 2, 3), "msd"),
        ("BraTS-GLI-02063-100", (0, 1, 2, 4), "brats2024"),
        ("BraTS-GLI-00002-000", (0, 1, 2, 4), "brats2021"),
        ("any", (0, 1, 2), "brats2023"),
    ],
)
def test_label_conventions(name, values, convention, tmp_path):
    assert label_convention(LabelledCase(name, {}, tmp_path), values) == convention


def test_a_case_without_a_sequence_or_labels_is_named(labelled_folder, tmp_path):
    for left_out, words in (("t2", "T2"), ("seg", "expected one")):
        folder = tmp_path / left_out
        folder.mkdir()
        for file in labelled_folder.iterdir():
            if not file.name.endswith(f"_{left_out}.nii.gz"):
                (folder / file.name).write_bytes(file.read_bytes())
        with pytest.raises(InputError, match=words):
            find_case(folder)


def test_a_case_in_two_splits_is_refused(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": ["a", "b"], "val": ["b"]}))
    with pytest.raises(ValueError, match="more than one split: b"):
        read_splits(path)


def test_crops_leave_the_volume_with_zeros():
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6) + 1
    crop = crop_around(array, (0, 2, 5), (4, 4, 4))
    assert crop.shape == (4, 4, 4)
    assert not crop[:2].any()
    assert not crop[..., 3:].any()
    assert crop[2, 2, 2] == array[0, 2, 5]


def test_centres_visit_every_label_and_subsets_are_as_likely_as_stated():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5, 5, 5], labels[10:14, 10:14, 10:14], labels[2, 2, 2] = 1, 2, 3
    rng = np.random.default_rng(0)
    hit = [labels[tuple(choose_centre(labels, rng, tumour_share=1.0))] for _ in range(600)]
    assert np.bincount(hit, minlength=4)[1:].min() > 150
    drawn = [choose_subset(rng, full_share=0.2) for _ in range(6000)]
    assert set(drawn) == set(SUBSETS)
    assert drawn.count(SUBSETS[-1]) / 6000 == pytest.approx(0.2 + 0.8 / 15, abs=0.03)
    assert drawn.count(("FLAIR",)) / 6000 == pytest.approx(0.8 / 15, abs=0.02)


def dataset(cache, seed=1):
    return CropDataset(
        [load_case(cache, "Case_1")], (32, 32, 32), seed, 0.8, 0.2, Augmentation(AugmentationConfig(affine=1.0))
    )


def test_a_step_gives_the_same_crop_again_and_others_differ(cache):
    first, again, other = dataset(cache)[7], dataset(cache)[7], dataset(cache)[8]
    for name in first:
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["image"], other["image"])
    assert not torch.equal(first["image"], dataset(cache, seed=2)[7]["image"])


def test_crops_hold_what_the_network_expects(cache):
    items = [dataset(cache)[i] for i in range(12)]
    for item in items:
        assert item["image"].shape == (4, 32, 32, 32)
        assert item["image"].dtype == torch.float32
        assert item["label"].dtype == torch.int64
        assert set(item["label"].unique().tolist()) <= {0, 1, 2, 3}
        absent = item["availability"] == 0
        assert not item["image"][absent].any()
        assert item["image"][~absent].abs().sum() > 0
    assert len({tuple(item["availability"].tolist()) for item in items}) > 4


# --- losses ---


def test_segmentation_loss_by_hand():
    """One voxel, label ET, equal logits: CE = ln 4; Dice terms with smoothing 1 from p(WT, TC, ET) = 3/4, 1/2, 1/4."""
    logits, labels = torch.zeros(1, 4, 1, 1, 1), torch.full((1, 1, 1, 1), 3)
    dice = np.mean([1 - (2 * p + 1) / (p + 1 + 1) for p in (0.75, 0.5, 0.25)])
    assert float(segmentation_loss(logits, labels)) == pytest.approx(dice + np.log(4), rel=1e-5)


def test_segmentation_loss_is_near_zero_for_the_right_answer_and_large_for_the_wrong_one():
    labels = torch.randint(0, 4, (1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    right = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1) * 40.0
    assert float(segmentation_loss(right, labels)) < 1e-3
    assert float(segmentation_loss(-right, labels)) > 5


def test_regions_are_nested_for_any_logits():
    p = region_probabilities(torch.randn(2, 4, 6, 6, 6) * 5)
    assert (p[:, 0] + 1e-6 >= p[:, 1]).all()
    assert (p[:, 1] + 1e-6 >= p[:, 2]).all()
    targets = region_targets(torch.tensor([[[[0, 1, 2, 3]]]]))
    assert targets[0, :, 0, 0].tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]


# --- engine ---


def test_resume_goes_on_bit_by_bit(cache, finished_run, tmp_path):
    run_training(SMALL, cache, ["Case_1"], tmp_path, stop_after=2)
    run_training(SMALL, cache, ["Case_1"], tmp_path)
    whole = torch.load(finished_run / "last.pt", weights_only=True)
    parts = torch.load(tmp_path / "last.pt", weights_only=True)
    assert whole["step"] == parts["step"] == 6
    for kind in ("network", "average"):
        for name, value in whole[kind].items():
            assert torch.equal(value, parts[kind][name]), (kind, name)


def test_another_configuration_is_refused_or_recorded(cache, finished_run, tmp_path):
    (tmp_path / "last.pt").write_bytes((finished_run / "last.pt").read_bytes())
    longer = replace(SMALL, phases=(*SMALL.phases, Phase(1, (32, 32, 32))))
    with pytest.raises(ValueError, match=r"another configuration \(phases: "):
        run_training(longer, cache, ["Case_1"], tmp_path)
    run_training(longer, cache, ["Case_1"], tmp_path, change_config=True)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert [entry["from_step"] for entry in state["history"]] == [0, 6]
    assert len(state["history"][1]["config"]["phases"]) == 3
    assert state["step"] == 7


def test_training_lowers_the_loss_on_one_case(cache, tmp_path):
    from training.engine import Trainer

    config = replace(SMALL, phases=(Phase(12, (32, 32, 32), 1),), warmup_steps=1, learning_rate=2e-3, bfloat16=False)
    trainer = Trainer(config)
    item = dataset(cache)[3]
    batch = {name: value[None] for name, value in item.items()}
    losses = [trainer.train_step(batch)["loss"] for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_nan_ends_the_run_and_keeps_the_checkpoint(cache, tmp_path):
    from training.engine import Trainer

    trainer = Trainer(SMALL)
    trainer.save(tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    item = {name: value[None] for name, value in dataset(cache)[0].items()}
    item["image"] = item["image"] * float("nan")
    with pytest.raises(FloatingPointError, match="step 0"):
        trainer.train_step(item)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_learning_rate_warms_up_and_falls_to_its_end():
    config = TrainingConfig(phases=(Phase(100, (32, 32, 32)),), warmup_steps=10)
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(config.learning_rate / 10)
    assert max(rates) == pytest.approx(config.learning_rate)
    assert rates[-1] == pytest.approx(config.final_learning_rate, rel=0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


# --- configuration ---


def test_shipped_configurations_load_and_unknown_keys_are_errors(tmp_path):
    from pathlib import Path

    import training

    for path in (Path(training.__file__).parent / "configs").glob("*.yaml"):
        if path.stem.endswith("-card"):
            assert read_texts(path)["citations"]
            continue
        assert load_config(path).total_steps > 0
    path = tmp_path / "c.yaml"
    path.write_text("preset: compact\nlearning_rat: 1\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: unknown key learning_rat"):
        load_config(path)
    path.write_text("augmentation: {noize: 1}\n")
    with pytest.raises(ConfigError, match="unknown key noize"):
        load_config(path)
    path.write_text("phases: [{steps: 5, crop: [30, 32, 32]}]\n")
    with pytest.raises(ConfigError, match="multiples of 32"):
        load_config(path)
    path.write_text("preset: compact\n")
    assert load_config(path, ["seed=7", "augmentation.noise=0"]).augmentation.noise == 0


def test_a_configuration_survives_json(finished_run):
    stored = json.loads((finished_run / "config.json").read_text())
    assert config_from_dict(stored, "config.json") == SMALL


# --- export and evaluation ---


TEXTS = {"name": "tiny", "description": "d", "data": "one phantom", "licence": "research use only", "citations": []}


def export(run, cache, out, **options):
    options = {"cases": ["Case_1"], "texts": TEXTS, "fingerprint": cache_fingerprint(cache, ["Case_1"]), **options}
    return export_bundle(run / "last.pt", out, **options)


def test_export_evaluate_export_with_figures(finished_run, cache, labelled_folder, tmp_path):
    path = export(finished_run, cache, tmp_path / "draft.zip")
    segmenter = Segmenter(path, "cpu")
    case = find_case(labelled_folder)
    summary = evaluate(segmenter, [case], tmp_path / "val", "val", {"none": NO_CLEAN_UP}, told=lambda _: None)
    rows = read_rows(tmp_path / "val" / "per_case.csv")
    assert len(rows) == 15 * 3
    assert {row.checkpoint_sha256 for row in rows} == {segmenter.bundle.sha256}
    assert all(row.n_ref > 0 and 0 <= row.dice <= 1 for row in rows)
    with pytest.raises(WeightsError, match="trained on Case_1; evaluate other patients"):
        export(finished_run, cache, tmp_path / "final.zip", evaluation=summary)
    options = {"evaluation": summary, "cases": ["Another"]}
    final = read_bundle(export(finished_run, cache, tmp_path / "final.zip", **options))
    assert final.sha256 == segmenter.bundle.sha256
    flair = [row.dice for row in rows if (row.subset, row.region) == ("FLAIR", "WT")]
    assert final.expected_dice(("FLAIR",))["WT"] == pytest.approx(flair[0], abs=1e-3)
    assert final.card["training"]["steps"] == 6
    assert final.card["training"]["cases"] == ["Another"]
    assert final.card["metrics"]["split"] == "val"
    page = card_markdown(final.card)
    assert final.sha256 in page
    assert page.count("| Case_1 |") == 2
    assert f"| FLAIR | 1 | {flair[0]:.3f}" in page


def test_figures_of_other_weights_do_not_get_into_a_card_and_the_old_bundle_stays(finished_run, cache, tmp_path):
    summary, bundle = tmp_path / "summary.json", tmp_path / "x.zip"
    figures = {"none": {"subsets": {}, "mean_over_subsets": {}, "per_case": {}}}
    summary.write_text(json.dumps({"checkpoint_sha256": "f" * 64, "split": "val", "cases": [], "clean_up": figures}))
    bundle.write_bytes(b"the bundle that ships")
    with pytest.raises(WeightsError, match="made with weights ffffffffffff"):
        export(finished_run, cache, bundle, evaluation=summary)
    assert bundle.read_bytes() == b"the bundle that ships"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["summary.json", "x.zip"]


def test_a_summary_is_of_the_cases_asked_for(finished_run, cache, labelled_folder, tmp_path):
    """Rows of other splits in the same folder do not enter the means."""
    segmenter = Segmenter(export(finished_run, cache, tmp_path / "draft.zip"), "cpu")
    stranger = [
        Row("Stranger", subset_name(s), region, "none", 1, 1, "ok", 1.0, 0.0, 0.0, segmenter.bundle.sha256)
        for s in SUBSETS
        for region in ("WT", "TC", "ET")
    ]
    own = [replace(row, case="Case_1", dice=0.5) for row in stranger]
    write_rows(tmp_path / "per_case.csv", stranger + own)
    path = evaluate(segmenter, [find_case(labelled_folder)], tmp_path, "val", told=lambda _: None)
    summary = json.loads(path.read_text())
    assert summary["cases"] == ["Case_1"]
    assert summary["clean_up"]["none"]["mean_over_subsets"] == {"WT": 0.5, "TC": 0.5, "ET": 0.5}


def test_bootstrap_interval_brackets_the_mean_and_is_repeatable():
    values = np.random.default_rng(1).normal(0.8, 0.1, 40)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert low < values.mean() < high
    # Half width near 1.96 standard errors.
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(40), rel=0.15)
    assert bootstrap_interval(np.full(5, 0.5)) == (0.5, 0.5)
