"""The logic on real MRML with the real worker in a real child process; and MSTKDSegment.py as Slicer loads it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import time
import types
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("torch")
from conftest import brain_image, image_of  # noqa: E402 - needs slicer
from MSTKDSegmentLib import slicer_logic, specialists, torch_setup  # noqa: E402
from MSTKDSegmentLib.errors import Cancelled, InputError, MSTKDError, OutputError, RoleError, WeightsError  # noqa: E402
from MSTKDSegmentLib.pipeline import Segmenter  # noqa: E402
from MSTKDSegmentLib.preparation_record import Wishes  # noqa: E402
from MSTKDSegmentLib.regions import REGIONS  # noqa: E402
from MSTKDSegmentLib.roles import propose_from_name  # noqa: E402
from MSTKDSegmentLib.run_task import CANCELLED, DONE, FAILED  # noqa: E402
from MSTKDSegmentLib.slicer_logic import SegmentLogic, job  # noqa: E402
from MSTKDSegmentLib.slicer_output import PROBABILITY_OF  # noqa: E402
from MSTKDSegmentLib.slicer_prepared import add_prepared  # noqa: E402
from MSTKDSegmentLib.slicer_scene import volume_from_node, voxels_of  # noqa: E402
from MSTKDSegmentLib.worker_process import FOLDER_PREFIX  # noqa: E402
from sample_volumes import sample_volume  # noqa: E402
from scene_nodes import (  # noqa: E402
    REGISTRATION,
    attributes,
    binary,
    make_transform,
    make_volume,
    node_ids,
    volume_of_image,
)

MODULE = Path(__file__).parents[1] / "MSTKDSegment" / "MSTKDSegment.py"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def volumes(scene):
    """T1Gd, and a FLAIR that a rotation brings to it."""
    flair = brain_image(4)
    turned = np.diag([-1.0, -1, 1, 1]) @ REGISTRATION @ np.diag([-1.0, -1, 1, 1])  # as LPS
    back = sitk.AffineTransform(turned[:3, :3].ravel().tolist(), turned[:3, 3].tolist()).GetInverse()
    flair.SetOrigin(back.TransformPoint(flair.GetOrigin()))
    flair.SetDirection(np.linalg.inv(turned[:3, :3]).ravel().tolist())
    return {
        "T1": None,
        "T1Gd": volume_of_image(scene, brain_image(2), "T1 post"),
        "FLAIR": volume_of_image(scene, flair, "FLAIR", make_transform(scene, REGISTRATION)),
    }


def poll_to_the_end(task, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while task.poll():
        assert time.monotonic() < end
        time.sleep(0.02)
    return task


# --- the way that works ---


def test_a_script_gets_what_the_pipeline_finds_and_the_transform_is_honoured(scene, volumes, random_bundle, temporary):
    shown = []
    found = SegmentLogic().segment(
        volumes, device="cpu", weights=str(random_bundle), progress=lambda *step: shown.append(step)
    )
    # Where the registration has done its work, the sequences are those of one upright patient.
    upright = {key: volume_from_node(volumes[key]) for key in ("T1Gd", "FLAIR")}
    np.testing.assert_allclose(upright["FLAIR"].image.GetDirection(), np.eye(3).ravel(), atol=1e-9)
    expected = Segmenter(random_bundle, "cpu").segment(upright)
    assert expected.labels.any()
    for key, value in (("NCR", 1), ("ED", 2), ("ET", 3)):
        assert binary(found.node, key)[0].sum() == (expected.labels == value).sum()
    assert found.volumes_ml == pytest.approx(expected.volumes_ml)
    assert attributes(found.node)["MSTKDSegment.sequences"] == "T1Gd+FLAIR"
    assert attributes(found.node)["MSTKDSegment.input_FLAIR"] == "FLAIR"
    assert found.provenance["reference"] == "T1Gd"
    assert shown[-1] == (1.0, "done")
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


def test_the_task_delivers_the_chosen_output_and_reference(scene, volumes, random_bundle, temporary):
    task = poll_to_the_end(
        SegmentLogic().start(
            volumes, None, "cpu", weights=str(random_bundle), reference="FLAIR", segments="regions", probabilities=True
        )
    )
    assert (task.state, task.message) == (DONE, "")
    assert task.outcome.provenance["reference"] == "FLAIR"
    assert task.outcome.node.GetTransformNodeID() == volumes["FLAIR"].GetTransformNodeID()
    assert task.outcome.node.GetSegmentation().GetNumberOfSegments() == 3
    assert task.outcome.node.GetSegmentation().GetSegment("WT") is not None
    assert task.fraction == 1.0
    # What we made ourselves is no input of the next run, whatever its name.
    probabilities = list(task.outcome.probabilities.values())
    assert all(node.GetAttribute(PROBABILITY_OF) for node in probabilities)
    proposed, _proposals = SegmentLogic().proposeVolumes([*probabilities, volumes["FLAIR"]])
    assert proposed == {"FLAIR": volumes["FLAIR"]}
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


# --- cancelling and losing ---


def child_of(task) -> int:
    end = time.monotonic() + 30
    while task._run._process is None:  # the volumes are being handed over
        assert time.monotonic() < end
        time.sleep(0.01)
    return task._run._process.pid


def test_cancelling_leaves_no_process_no_file_and_no_node_within_two_seconds(scene, volumes, random_bundle, temporary):
    before = node_ids(scene)
    task = SegmentLogic().start(volumes, None, "cpu", weights=str(random_bundle))
    pid = child_of(task)
    assert list(temporary.glob(f"{FOLDER_PREFIX}*"))
    start = time.monotonic()
    task.cancel()
    assert time.monotonic() - start < 2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert (task.state, task.outcome) == (CANCELLED, None)
    assert node_ids(scene) == before
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []
    with pytest.raises(Cancelled):
        SegmentLogic().segment(volumes, weights=str(random_bundle), cancel=lambda: True)
    assert node_ids(scene) == before


@pytest.mark.parametrize("event", ["input deleted", "scene closed"])
def test_an_input_that_goes_during_the_run_ends_it(scene, volumes, random_bundle, temporary, event):
    task = SegmentLogic().start(volumes, None, "cpu", weights=str(random_bundle))
    pid = child_of(task)
    assert task.poll()
    if event == "input deleted":
        scene.RemoveNode(volumes["FLAIR"])
    else:
        scene.Clear(0)
    assert not task.poll()
    assert task.state == CANCELLED
    assert "was removed from the scene; the segmentation was stopped" in task.message
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_a_chosen_output_that_goes_ends_the_run_too(scene, volumes, random_bundle, temporary):
    output = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    task = SegmentLogic().start(volumes, output, "cpu", weights=str(random_bundle))
    scene.RemoveNode(output)
    assert not task.poll()
    assert task.message.startswith("mine was removed")


# --- what is wrong is said before anything is begun ---


def test_problems_with_the_choice_are_named(scene, volumes):
    logic = SegmentLogic()
    assert logic.problemWith(volumes) == ""
    assert logic.problemWith({"T1": None}) == "Choose at least one of T1, T1Gd, T2, FLAIR."
    twice = {"T1": volumes["T1Gd"], "T2": volumes["T1Gd"]}
    with pytest.raises(RoleError, match="T1 post is chosen as T1 and as T2"):
        logic.start(twice)
    with pytest.raises(RoleError, match="Unknown sequence PD"):
        logic.segment({"PD": volumes["FLAIR"]})
    with pytest.raises(RoleError, match="The reference T2 is not among the sequences chosen"):
        logic.start(volumes, reference="T2")


def test_an_earlier_result_is_refused_before_the_run(scene, volumes, random_bundle):
    found = SegmentLogic().segment(volumes, device="cpu", weights=str(random_bundle))
    with pytest.raises(OutputError, match="holds an earlier result"):
        SegmentLogic().start(volumes, found.node)


def test_a_missing_torch_is_told_before_anything_is_handed_over(scene, volumes, monkeypatch, temporary):
    monkeypatch.setattr(slicer_logic, "torch_installed", lambda: False)
    with pytest.raises(MSTKDError, match="press Install PyTorch"):
        SegmentLogic().start(volumes)
    assert list(temporary.iterdir()) == []
    state, _about = SegmentLogic().panelState(volumes)
    assert "press Install PyTorch" in state.problem


def test_damaged_weights_end_the_run_in_words(scene, volumes, random_bundle, tmp_path):
    broken = tmp_path / "broken.zip"
    broken.write_bytes(random_bundle.read_bytes()[:5000])
    task = poll_to_the_end(SegmentLogic().start(volumes, None, "cpu", weights=str(broken)))
    assert task.state == FAILED
    assert isinstance(task.error, WeightsError)
    assert "broken.zip" in task.message
    state, about = SegmentLogic().panelState(volumes, weights=str(broken))
    assert state.problem == about != ""


def test_a_job_has_no_unknown_options():
    with pytest.raises(TypeError):
        job({}, segmnets="labels")


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((["T1"],), {}, "as a dictionary from sequence"),
        (({"T1": "vtkMRMLScalarVolumeNode1"},), {}, "T1: 'vtkMRMLScalarVolumeNode1' is no node of the scene"),
        (({}, "result"), {}, "output: 'result' is no node of the scene"),
        (({},), {"segments": "nested"}, "Unknown segments 'nested'; use labels or regions"),
        (({},), {"device": "gpu"}, "Unknown device 'gpu'; use auto, cpu"),
        (({},), {"device": None}, "Unknown device None"),
        (({},), {"registered": "yes"}, "registered: 'yes' is no answer; use True, False, or None"),
        (({},), {"skull_stripped": 1}, "skull_stripped: 1 is no answer"),
        (({},), {"brain_mask": "brain"}, "brain_mask: 'brain' is no node of the scene"),
        (({},), {"extractor": "bet"}, "Unknown brain extraction 'bet'; use one of auto, own, hd-bet"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_begun(arguments, options, words):
    with pytest.raises(InputError, match=words):
        SegmentLogic().segment(*arguments, **options)


# --- the preparation ---


def head(scene, seed: int, name: str):
    """A head whose air is noise, so that the skull counts as there."""
    voxels = sitk.GetArrayFromImage(brain_image(seed))
    noise = np.random.default_rng(seed).normal(20, 5, voxels.shape).clip(1).astype(np.float32)
    return volume_of_image(scene, image_of(voxels + noise), name)


def brain_of(scene, volume, name: str = "brain"):
    """A label map on the grid of a volume node, of its bright voxels."""
    image = volume_from_node(volume).image
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", name)
    made = volume_of_image(scene, sitk.Cast(image > 150, sitk.sitkUInt8), "carrier")
    node.CopyOrientation(made)
    node.SetAndObserveImageData(made.GetImageData())
    scene.RemoveNode(made)
    return node


def request_of(logic, monkeypatch, volumes, **options):
    """What would be handed to the worker."""
    asked = []

    def take(request, *_more):
        asked.append(request)
        raise Cancelled("enough")

    monkeypatch.setattr(slicer_logic, "segment_in_worker", take)
    with pytest.raises(Cancelled, match="enough"):
        logic.segment(volumes, **options)
    return asked[0]


def test_what_the_user_says_reaches_the_worker(scene, volumes, monkeypatch):
    plain = request_of(SegmentLogic(), monkeypatch, volumes)
    assert (plain.wishes, plain.keep) == (Wishes(), False)
    mask = brain_of(scene, volumes["T1Gd"])
    said = {"registered": True, "skull_stripped": False, "extractor": "own", "bias_correction": True}
    asked = request_of(SegmentLogic(), monkeypatch, volumes, **said, brain_mask=mask, keep=True)
    assert asked.keep
    assert {name: getattr(asked.wishes, name) for name in said} == said
    assert asked.wishes.upright is None
    assert asked.wishes.mask_source == "brain"
    there, image = asked.wishes.brain_mask, asked.volumes["T1Gd"].image
    assert there.GetOrigin() == pytest.approx(image.GetOrigin())
    assert np.array_equal(sitk.GetArrayFromImage(there), sitk.GetArrayFromImage(image) > 150)


def test_a_mask_that_cannot_be_used_is_told_before_the_run(scene, volumes, temporary):
    logic = SegmentLogic()
    empty = brain_of(scene, volumes["T1Gd"])
    voxels_of(empty)[:] = 0
    for mask, words in (
        (volumes["FLAIR"], "FLAIR is chosen as FLAIR and as brain mask; choose it once"),
        (scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "new"), "new: has 0 segments"),
    ):
        with pytest.raises(InputError, match=words):
            logic.start(volumes, brain_mask=mask)
        assert words in logic.panelState(volumes, brain_mask=mask)[0].problem
    with pytest.raises(InputError, match="the brain mask is empty"):
        logic.start(volumes, brain_mask=empty)
    assert list(temporary.iterdir()) == []


def test_a_program_that_is_not_installed_is_told_where_it_would_be_needed(scene, volumes, monkeypatch):
    logic = SegmentLogic()
    heads = {"T1Gd": head(scene, 2, "T1 post head")}
    monkeypatch.setattr(specialists, "installed", list)
    words = "HD-BET is not installed in this Slicer's Python, or takes no T1Gd"
    assert words in logic.panelState(heads, extractor="hd-bet")[0].problem
    with pytest.raises(InputError, match=words):
        logic.start(heads, extractor="hd-bet")
    # Where the skull is gone, said to be gone, or cut off by a mask, nobody asks for it; nor does Automatic.
    assert logic.panelState(volumes, extractor="hd-bet")[0].problem == ""
    assert logic.panelState(heads, extractor="hd-bet", skull_stripped=True)[0].problem == ""
    assert logic.panelState(heads, extractor="hd-bet", brain_mask=brain_of(scene, heads["T1Gd"]))[0].problem == ""
    state, _about = logic.panelState(heads)
    assert (state.problem, "The skull on T1Gd is removed here" in state.plan) == ("", True)
    found = SimpleNamespace(key="hd-bet", title="HD-BET 2.0.1", sequences=("T1Gd",))
    monkeypatch.setattr(specialists, "installed", lambda: [found])
    assert "The skull on T1Gd is removed by HD-BET 2.0.1." in logic.panelState(heads)[0].plan
    assert logic.panelState(heads, extractor="hd-bet")[0].problem == ""
    assert "takes no T1" in logic.panelState({"T1": heads["T1Gd"]}, extractor="hd-bet")[0].problem
    # It takes another sequence that shows its skull: the same rule as the preparation's.
    both = {"T1": head(scene, 3, "T1 head"), "T1Gd": heads["T1Gd"]}
    state, _about = logic.panelState(both, reference="T1", extractor="hd-bet")
    assert state.problem == "" and "removed by HD-BET 2.0.1 on T1Gd." in state.plan
    mixed = {"T1": both["T1"], "T1Gd": volumes["T1Gd"]}
    assert "takes no T1." in logic.panelState(mixed, reference="T1", extractor="hd-bet")[0].problem


def test_what_the_network_saw_is_kept_on_request_and_lies_over_the_volumes(scene, volumes, random_bundle, temporary):
    options = {"device": "cpu", "weights": str(random_bundle), "registered": True, "reference": "FLAIR"}
    found = SegmentLogic().segment(volumes, **options, keep=True)
    assert json.loads(attributes(found.node)["MSTKDSegment.preparation"]) == found.record
    assert found.record["told_by_user"] == ["registered"]
    nodes = add_prepared(found.prepared, found.node)
    assert nodes.native is volumes["FLAIR"]
    # The noise of the phantom is its own: where the two correlate, they lie on each other.
    for name in ("T1Gd", "FLAIR"):
        native, prepared = (volume_from_node(node).image for node in (volumes[name], nodes.volumes[name]))
        there = sitk.GetArrayFromImage(sitk.Resample(prepared, native, sitk.Transform(), sitk.sitkLinear, 0.0))
        inside = (there != 0) & (sitk.GetArrayFromImage(native) > 0)
        assert np.count_nonzero(inside) > 5000
        assert np.corrcoef(there[inside], sitk.GetArrayFromImage(native)[inside])[0, 1] > 0.9
    proposed, _proposals = SegmentLogic().proposeVolumes([*nodes.volumes.values(), volumes["FLAIR"]])
    assert proposed == {"FLAIR": volumes["FLAIR"]}
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


def test_the_device_is_proved_in_the_childs_python():
    assert SegmentLogic().check_device("cpu").device == "cpu"


# --- MSTKDSegment.py ---


@pytest.fixture
def module(monkeypatch):
    """MSTKDSegment.py as Slicer loads it; its Qt modules are empty, so whatever touches them fails here."""
    base = types.ModuleType("slicer.ScriptedLoadableModule")
    for ending in ("", "Widget", "Logic", "Test"):
        name = f"ScriptedLoadableModule{ending}"
        setattr(base, name, type(name, (), {}))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = (lambda text: text), (lambda _context, text: text)
    monkeypatch.setitem(sys.modules, i18n.__name__, i18n)
    monkeypatch.setitem(sys.modules, "qt", types.ModuleType("qt"))
    spec = importlib.util.spec_from_file_location("MSTKDSegment", MODULE)
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "MSTKDSegment", loaded)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_modules_logic_passes_everything_on(module, scene, volumes, random_bundle):
    found = module.MSTKDSegmentLogic().segment(volumes, None, "cpu", weights=str(random_bundle), segments="regions")
    assert found.node.GetSegmentation().GetSegment("TC") is not None
    logic = module.MSTKDSegmentLogic
    assert logic.segmentsToReplace(found.node) == [region.title for region in REGIONS]
    assert logic.segmentsToReplace(scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "new")) == []
    assert module.MSTKDSegmentLogic.torchInstalled() == torch_setup.torch_installed()
    assert module.MSTKDSegmentLogic.isExpected(RoleError("x"))
    assert not module.MSTKDSegmentLogic.isExpected(ValueError("x"))


def test_volumes_are_proposed_by_name_and_label_maps_are_not(scene, module):
    names = ["4: Ax T1 POST GAD", "3: Ax T1", "Ax FLAIR", "DWI b1000"]
    nodes = [make_volume(scene, name=name)[0] for name in names]
    nodes.append(scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "T2"))
    proposed, proposals = module.MSTKDSegmentLogic().proposeVolumes(nodes)
    found = {modality: node.GetName() for modality, node in proposed.items()}
    assert found == {"T1Gd": names[0], "T1": names[1], "FLAIR": names[2]}
    assert [proposal.modality for proposal in proposals] == ["T1Gd", "T1", "FLAIR", None]


def test_volumes_that_nothing_names_are_proposed_by_their_look_beside_those_with_a_name(scene, module):
    nodes = [volume_of_image(scene, sample_volume(sequence), name) for sequence, name in (("T2", "5"), ("FLAIR", "6"))]
    nodes.append(make_volume(scene, name="Ax T2 TSE")[0])
    proposed, proposals = module.MSTKDSegmentLogic().proposeVolumes(nodes)
    assert proposed == {"T2": nodes[2], "FLAIR": nodes[1]}  # the name wins; what looks like T2 as well gets nothing
    assert "by its look" in proposals[1].reason and "please check" in proposals[1].reason


def test_two_candidates_are_left_to_the_person(scene, module):
    nodes = [make_volume(scene, name="T2 TSE")[0], make_volume(scene, name="T2 SPACE", seed=1)[0]]
    proposed, proposals = module.MSTKDSegmentLogic().proposeVolumes(nodes)
    assert proposed == {}
    assert {proposal.certainty for proposal in proposals} == {"ambiguous"}


def test_the_sample_patient_is_registered_from_the_checkout_with_its_checksums(module, monkeypatch):
    registered = []

    class SampleDataLogic:
        """Slicer's own, as far as its signature of 5.6 goes."""

        @staticmethod
        def registerCustomSampleDataSource(  # noqa: N802
            category="Custom",
            sampleName=None,  # noqa: N803
            uris=None,
            fileNames=None,  # noqa: N803
            nodeNames=None,  # noqa: N803
            customDownloader=None,  # noqa: N803
            thumbnailFileName=None,  # noqa: N803
            loadFileType="VolumeFile",  # noqa: N803
            loadFiles=None,  # noqa: N803
            loadFileProperties=None,  # noqa: N803
            checksums=None,
        ):
            registered.append((uris, fileNames, nodeNames, loadFileType, checksums, thumbnailFileName))

    stand_in = types.ModuleType("SampleData")
    stand_in.SampleDataLogic = SampleDataLogic
    monkeypatch.setitem(sys.modules, "SampleData", stand_in)
    module.registerSampleData()
    (uris, files, nodes, kinds, checksums, thumbnail), *more = registered
    assert more == []
    assert len(uris) == len(files) == len(nodes) == len(kinds) == len(checksums) == len(set(files)) == 4
    assert Path(thumbnail).is_file()
    for uri, checksum in zip(uris, checksums):
        data = Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path)).read_bytes()
        assert checksum == f"SHA256:{hashlib.sha256(data).hexdigest()}"
    # Its names are such that the module proposes every role by itself.
    assert [propose_from_name(name).modality for name in nodes] == ["T1", "T1Gd", "T2", "FLAIR"]
    monkeypatch.setitem(sys.modules, "SampleData", None)
    module.registerSampleData()  # a Slicer without that module: nothing happens
    assert len(registered) == 1


# --- a real patient ---


def test_a_real_patient_with_one_sequence_elsewhere_survives_saving_the_scene(scene, tmp_path):
    """T1Gd and FLAIR, the FLAIR on 3 mm slices and rotated away; Dice after saving, loading and exporting."""
    if not (SHARED / "splits.json").is_file():
        pytest.skip("no real patients here (../shared/data)")
    case = "Brats18_CBICA_AOP_1"
    if case not in json.loads((SHARED / "splits.json").read_text())["val"] or not (DATA / case).is_dir():
        pytest.skip(f"{case} is not unpacked in data/")
    files = {name: str(DATA / case / f"{case}_{name}.nii.gz") for name in ("t1ce", "flair", "seg")}
    t1gd, flair = (sitk.ReadImage(files[name], sitk.sitkFloat32) for name in ("t1ce", "flair"))
    away = sitk.Euler3DTransform((0, 0, 0), *np.deg2rad([15, -10, 20]), (12, -7, 9))
    middle = np.array(away.GetInverse().TransformPoint(flair.TransformContinuousIndexToPhysicalPoint([120, 120, 77])))
    grid = sitk.Image([260, 280, 70], sitk.sitkFloat32)
    grid.SetSpacing((0.9, 0.9, 3.0))
    grid.SetOrigin((middle - np.array(grid.GetSize()) * grid.GetSpacing() / 2).tolist())
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = np.reshape(away.GetMatrix(), (3, 3)), away.TransformPoint((0, 0, 0))
    back = make_transform(scene, np.diag([-1.0, -1, 1, 1]) @ lps @ np.diag([-1.0, -1, 1, 1]))
    nodes = {
        "T1Gd": volume_of_image(scene, t1gd, "T1 post"),
        "FLAIR": volume_of_image(scene, sitk.Resample(flair, grid, away, sitk.sitkLinear, 0.0), "FLAIR", back),
    }
    found = SegmentLogic().segment(nodes, device="cpu")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "result.seg.nrrd"))
    found.node.SetAndObserveStorageNodeID(storage.GetID())
    assert storage.WriteData(found.node)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit(str(tmp_path / "scene.mrml"))
    loaded = sitk.ReadImage(str(tmp_path / "result.seg.nrrd"))
    ours = sitk.GetArrayFromImage(sitk.Resample(loaded, t1gd, sitk.Transform(), sitk.sitkNearestNeighbor, 0))
    truth = sitk.GetArrayFromImage(sitk.ReadImage(files["seg"]))
    core, true_core = np.isin(ours, (1, 3)), np.isin(truth, (1, 4))
    assert 2 * (core & true_core).sum() / (core.sum() + true_core.sum()) > 0.85
    assert 2 * ((ours > 0) & (truth > 0)).sum() / ((ours > 0).sum() + (truth > 0).sum()) > 0.7
    assert found.provenance["input FLAIR"] in (tmp_path / "scene.mrml").read_text()
    assert volume_from_node(nodes["FLAIR"]).image.GetSize() == (260, 280, 70)
