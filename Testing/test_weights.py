"""The bundle: what is read, what is refused, and with which words."""

import io
import json
import pickle
import zipfile

import pytest

torch = pytest.importorskip("torch")

from MSTKDSegmentLib.errors import WeightsError  # noqa: E402
from MSTKDSegmentLib.network import PRESETS, build_network  # noqa: E402
from MSTKDSegmentLib.weights import CARD, WEIGHTS, load_network, read_bundle, write_bundle  # noqa: E402


def card(**changes):
    subsets = {"FLAIR": {"WT": 0.8, "TC": 0.5, "ET": 0.25, "n": 10}}
    basic = {
        "name": "test",
        "preset": "compact",
        "network": PRESETS["compact"].to_dict(),
        "licence": "research use only",
        "training": {},
        "metrics": {"split": "val", "subsets": subsets},
    }
    return {**basic, **changes}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("compact").eval()


@pytest.fixture
def bundle_path(network, tmp_path):
    path = tmp_path / "bundle.zip"
    write_bundle(path, network.state_dict(), card())
    return path


def rewrite(path, **members):
    """The same zip with some members replaced (None: left out)."""
    with zipfile.ZipFile(path) as archive:
        data = {name: archive.read(name) for name in archive.namelist()}
    data.update({name.replace("_", "."): content for name, content in members.items()})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in data.items():
            if content is not None:
                archive.writestr(name, content)


def resealed(path, weights):
    """Replace the weights and make the card's sha256 fit, as a forger would."""
    import hashlib

    with zipfile.ZipFile(path) as archive:
        content = json.loads(archive.read(CARD))
    content["sha256"] = hashlib.sha256(weights).hexdigest()
    rewrite(path, card_json=json.dumps(content), weights_pt=weights)


def test_round_trip_keeps_the_network_to_fp16(network, bundle_path):
    bundle = read_bundle(bundle_path)
    loaded = load_network(bundle)
    assert not loaded.training
    for (name, a), b in zip(network.state_dict().items(), loaded.state_dict().values()):
        assert b.dtype == torch.float32
        assert torch.equal(a.half().float(), b), name
    assert bundle_path.stat().st_size <= 16 * 2**20


def test_the_same_weights_give_the_same_file(network, bundle_path, tmp_path):
    other = tmp_path / "other.zip"
    write_bundle(other, network.state_dict(), card())
    assert other.read_bytes() == bundle_path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle.zip", "other.zip"]


def test_expected_dice_comes_from_the_card(bundle_path):
    bundle = read_bundle(bundle_path)
    assert bundle.expected_dice(("FLAIR",)) == {"WT": 0.8, "TC": 0.5, "ET": 0.25}
    assert bundle.expected_dice(("T1", "T2")) is None


def test_one_flipped_bit_in_the_weights_is_found(bundle_path):
    with zipfile.ZipFile(bundle_path) as archive:
        weights = bytearray(archive.read(WEIGHTS))
    weights[len(weights) // 2] ^= 1
    rewrite(bundle_path, weights_pt=bytes(weights))
    with pytest.raises(WeightsError, match=r"bundle\.zip: the weights do not match their card \(sha256"):
        read_bundle(bundle_path)


def test_a_pickle_that_would_run_code_is_refused_even_with_a_fitting_sum(bundle_path, tmp_path):
    mark = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (open, (str(mark), "w"))

    buffer = io.BytesIO()
    torch.save({"stem.weight": Evil()}, buffer)
    for weights in (buffer.getvalue(), pickle.dumps(Evil())):
        resealed(bundle_path, weights)
        with pytest.raises(WeightsError, match="cannot be read safely"):
            load_network(read_bundle(bundle_path))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"preset": "mega"}, "made for preset 'mega'"),
        ({"format": 99}, "bundle format 99"),
        ({"network": {**PRESETS["compact"].to_dict(), "embed": 96}}, "differs from this version's in embed"),
        ({"network": None}, "differs from this version's"),
    ],
)
def test_cards_of_other_networks_are_refused(bundle_path, change, words):
    with zipfile.ZipFile(bundle_path) as archive:
        content = {**json.loads(archive.read(CARD)), **change}
    rewrite(bundle_path, card_json=json.dumps(content))
    with pytest.raises(WeightsError, match=words):
        load_network(read_bundle(bundle_path))


def test_tensors_of_another_network_are_refused(bundle_path):
    buffer = io.BytesIO()
    torch.save({"other": torch.zeros(3)}, buffer)
    resealed(bundle_path, buffer.getvalue())
    with pytest.raises(WeightsError, match="do not fit preset 'compact'"):
        load_network(read_bundle(bundle_path))


def test_a_single_tensor_instead_of_a_dictionary_is_refused(bundle_path):
    buffer = io.BytesIO()
    torch.save(torch.zeros(3), buffer)
    resealed(bundle_path, buffer.getvalue())
    with pytest.raises(WeightsError):
        load_network(read_bundle(bundle_path))


@pytest.mark.parametrize("left_out", [CARD, WEIGHTS])
def test_foreign_zips_are_refused(bundle_path, left_out):
    rewrite(bundle_path, **{left_out.replace(".", "_"): None})
    with pytest.raises(WeightsError, match=f"not a weights bundle, {left_out} is missing"):
        read_bundle(bundle_path)


def test_a_card_that_lacks_a_field_or_is_no_object_is_refused(bundle_path):
    for content in ('{"format": 1}', "[]", "not json", "null"):
        rewrite(bundle_path, card_json=content)
        with pytest.raises(WeightsError, match=r"bundle\.zip"):
            read_bundle(bundle_path)


def test_damaged_and_missing_files_are_refused(bundle_path, tmp_path):
    whole = bundle_path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"PK\x03\x04 nonsense", whole[100:]):
        bundle_path.write_bytes(damage)
        with pytest.raises(WeightsError, match=r"bundle\.zip: not a weights bundle, or damaged"):
            read_bundle(bundle_path)
    with pytest.raises(WeightsError, match="no such weights file"):
        read_bundle(tmp_path / "nothing.zip")
    with pytest.raises(WeightsError, match="no such weights file"):
        read_bundle(tmp_path)


def test_a_card_without_required_fields_is_not_written(network, tmp_path):
    incomplete = card()
    del incomplete["licence"]
    with pytest.raises(WeightsError, match="licence"):
        write_bundle(tmp_path / "x.zip", network.state_dict(), incomplete)
    assert not list(tmp_path.iterdir())
