"""The network: published size, shapes, what absent sequences mean, distillation features."""

import copy
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from MSTKDSegmentLib.network import (  # noqa: E402
    PRESETS,
    MSTKDNet,
    ResidualBlock,
    build_network,
    count_macs,
    count_parameters,
    depth_to_space,
    space_to_depth,
)


@pytest.fixture(scope="module")
def compact():
    torch.manual_seed(0)
    return build_network("compact").eval()


def test_paper_preset_has_the_published_size():
    with torch.device("meta"):
        network = build_network("paper")
    assert count_parameters(network) / 1e6 == pytest.approx(154.3, rel=0.01)
    assert count_macs(network, (160, 192, 128)) / 1e9 == pytest.approx(450, rel=0.01)


def test_compact_preset_fits_sixteen_mebibytes_in_fp16_and_needs_a_ninth_of_the_arithmetic():
    with torch.device("meta"):
        network = build_network("compact")
    assert count_parameters(network) * 2 <= 16 * 2**20
    assert count_macs(network, (160, 192, 128)) / 1e9 < 450 / 9


def test_a_separable_block_is_the_block_with_the_product_of_its_kernels():
    torch.manual_seed(0)
    whole, separable = ResidualBlock(16, 1, 8), ResidualBlock(16, 1, 8, separable=True)
    plane, line = separable.body[0][0].weight, separable.body[0][1].weight
    with torch.no_grad():
        whole.body[0][0].weight.copy_(torch.einsum("otz,tiyx->oizyx", line[..., 0, 0], plane[:, :, 0]))
    x = torch.randn(2, 16, 6, 7, 8)
    assert torch.allclose(whole(x), separable(x), atol=1e-5)


def test_the_light_stem_sees_one_voxel_around_each_cell():
    torch.manual_seed(0)
    stem = build_network("compact").stem
    x = torch.zeros(1, 4, 8, 8, 8)
    x[0, 2, 3, 4, 4] = 1.0
    touched = (stem(x)[0] != 0).any(0).nonzero().tolist()
    assert touched == [[z, y, x] for z in (1, 2) for y in (1, 2) for x in (1, 2)]


def test_one_volume_without_gradients_is_normalised_and_scaled_in_one_pass_with_the_same_result(compact):
    network = copy.deepcopy(compact)
    torch.nn.init.normal_(network.stem_film.weight, std=0.3)
    torch.nn.init.normal_(network.stem_film.bias, std=0.3)
    x, mask = torch.randn(1, 4, 32, 32, 32), torch.tensor([[1.0, 0, 1, 1]])
    with torch.no_grad():
        fast = network(x, mask)
    assert torch.allclose(fast, network(x, mask), atol=1e-4)


def test_macs_are_counted_as_computed_by_hand():
    layer = torch.nn.Conv3d(4, 8, 3, padding=1)

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, availability):
            return self.layer(x)

    assert count_macs(One(), (32, 32, 32)) == 32**3 * 27 * 4 * 8


def test_paper_feature_shapes_are_those_of_the_specification():
    with torch.device("meta"):
        network = build_network("paper")
        features = network(torch.zeros(1, 4, 160, 192, 128), torch.ones(1, 4), return_features=True)
    assert features.logits.shape == (1, 4, 160, 192, 128)
    assert [a.shape for a in features.attentions] == [(1, 12, 120, 120)] * 4
    assert [z.shape for z in features.tokens] == [(1, 768, 5, 6, 4)] * 4
    for tensor in (features.f_enc, features.f_t, features.f_fused, features.f_dec):
        assert tensor.shape == (1, 128, 20, 24, 16)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_no_batch_norm_anywhere(preset):
    with torch.device("meta"):
        network = build_network(preset)
    assert not [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]


def test_features_cost_nothing_when_not_asked_for_and_do_not_change_the_logits(compact):
    x, mask = torch.randn(1, 4, 32, 64, 32), torch.ones(1, 4)
    with torch.no_grad():
        logits = compact(x, mask)
        features = compact(x, mask, return_features=True)
    assert isinstance(logits, torch.Tensor)
    assert torch.allclose(logits, features.logits, atol=1e-4)
    for attention in features.attentions:
        assert torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-5)
    assert len(features.attentions) == len(features.tokens) == 4


def test_absent_and_dark_are_different_inputs():
    torch.manual_seed(0)
    network = build_network("compact").eval()
    # At initialisation the mask's layers are zero, so training starts from one network for all subsets ...
    x = torch.randn(1, 4, 32, 32, 32)
    x[:, 0] = 0
    absent, dark = torch.tensor([[0.0, 1, 1, 1]]), torch.ones(1, 4)
    with torch.no_grad():
        assert torch.equal(network(x, absent), network(x, dark))
        # ... and any step away from zero tells them apart.
        torch.nn.init.normal_(network.stem_film.weight, std=0.1)
        assert not torch.allclose(network(x, absent), network(x, dark), atol=1e-3)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = build_network("compact")
    network(torch.randn(1, 4, 32, 32, 32), torch.tensor([[1.0, 0, 1, 1]])).square().mean().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None]
    assert not without


def test_gradient_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    plain = build_network("compact")
    saving = build_network("compact", gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x, mask = torch.randn(1, 4, 32, 32, 32), torch.ones(1, 4)
    for network in (plain, saving):
        network.train()
        network(x, mask).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters()):
        assert torch.allclose(a.grad, b.grad, atol=1e-6), name


def test_space_to_depth_and_back_is_the_identity_and_keeps_neighbours_together():
    x = torch.arange(2 * 3 * 4 * 6 * 8, dtype=torch.float32).reshape(2, 3, 4, 6, 8)
    packed = space_to_depth(x, 2)
    assert packed.shape == (2, 24, 2, 3, 4)
    assert torch.equal(depth_to_space(packed, 2), x)
    assert torch.equal(packed[0, :8, 0, 0, 0].reshape(2, 2, 2), x[0, 0, :2, :2, :2])


@pytest.mark.parametrize("shape", [(1, 4, 32, 32, 33), (1, 3, 32, 32, 32), (4, 32, 32, 32), (1, 4, 16, 32, 32)])
def test_shapes_that_do_not_fit_are_refused_in_words(compact, shape):
    with pytest.raises(ValueError, match="multiples of 32"):
        compact(torch.zeros(shape), torch.ones(1, 4))


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="unknown preset"):
        build_network("huge")


def test_channels_last_gives_the_same_result(compact):
    x, mask = torch.randn(1, 4, 32, 32, 32), torch.ones(1, 4)
    other = copy.deepcopy(compact).to(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        assert torch.allclose(compact(x, mask), other(x.to(memory_format=torch.channels_last_3d), mask), atol=1e-3)


def test_half_precision_has_the_gradients_of_full_precision_on_the_smallest_grids():
    """On 2 x 2 x 2 tokens torch's own weight gradient of the tap convolutions is garbage in bfloat16 on the CPU."""
    torch.manual_seed(0)
    config = replace(PRESETS["compact"], patch=4, tap_widths=(128, 128), tap_kernel=3, layers=4)
    network, image = MSTKDNet(config), torch.randn(1, 4, 64, 64, 64)
    weight = network.neck.tap_convs[2][0].weight

    def gradient(half: bool) -> torch.Tensor:
        weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(image, torch.ones(1, 4))
        logits.float().square().mean().backward()
        return weight.grad.clone()

    whole = gradient(False)
    assert (gradient(True) - whole).norm() < 0.3 * whole.norm()
