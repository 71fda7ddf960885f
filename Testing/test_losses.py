"""The losses of the paper (sections 2.2 to 2.5) against values worked out by hand and slow sums in numpy.

The slow versions are written from the equations, element by element and in float64, without a look at the code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("pydantic")  # the configuration of training, which holds the weights

from MSTKDSegmentLib.network import build_network  # noqa: E402

from training import losses  # noqa: E402
from training.config import DistillationConfig  # noqa: E402

IGNORE, UNENHANCED = losses.IGNORE, losses.UNENHANCED
few_examples = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 10_000)


# --- slow versions -----------------------------------------------------------------------------------------------


def slow_extreme_values(attentions: np.ndarray) -> np.ndarray:
    """Eq. 2-3. (L, N, heads, t, t) -> (3, N, L, heads, t, t): maximum, minimum, mean over taps, times each tap."""
    taps, batch, heads, tokens, _ = attentions.shape
    sequences = np.empty((3, batch, taps, heads, tokens, tokens))
    for n, head, i, j in product(range(batch), range(heads), range(tokens), range(tokens)):
        values = [tokens * attentions[tap, n, head, i, j] for tap in range(taps)]
        for k, extreme in enumerate((max(values), min(values), sum(values) / taps)):
            for tap in range(taps):
                sequences[k, n, tap, head, i, j] = extreme * values[tap]
    return sequences


def slow_mean_square(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for index in np.ndindex(a.shape):
        total += (a[index] - b[index]) ** 2
    return total / a.size


def slow_evd(student: np.ndarray, teacher: np.ndarray) -> float:
    """Eq. 4, first term, relative to both networks' own extreme values: (L, N, heads, t, t)."""
    per_sample = []
    for n in range(student.shape[1]):
        mine, theirs = (slow_extreme_values(x[:, n : n + 1])[:, 0] for x in (student, teacher))
        per_sample.append(((mine - theirs) ** 2).sum() / ((mine**2).sum() + (theirs**2).sum()))
    return sum(per_sample) / len(per_sample)


def slow_standardise(values: list[float]) -> list[float]:
    """Eq. 6 at one voxel, without the temperature."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / (deviation + 1e-7) for value in values]


def slow_softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in values]
    return [e / sum(exponentials) for e in exponentials]


def slow_kl(student: np.ndarray, teacher: np.ndarray, tau: float) -> float:
    """Eq. 6-7: KL(teacher || student), mean over the voxels of the batch. Logits (N, C, D, H, W)."""
    total, voxels = 0.0, 0
    for n, *voxel in product(*map(range, (student.shape[0], *student.shape[2:]))):
        q_student, q_teacher = (
            slow_softmax([z / tau for z in slow_standardise(list(logits[(n, slice(None), *voxel)]))])
            for logits in (student, teacher)
        )
        total += sum(t * math.log(t / s) for s, t in zip(q_student, q_teacher))
        voxels += 1
    return total / voxels


def slow_cross_gram(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Eq. 10, divided by the number of voxels. (N, C, D, H, W) twice -> (N, C, C)."""
    batch, channels, *grid = a.shape
    gram = np.zeros((batch, channels, channels))
    for n, i, j in np.ndindex(gram.shape):
        for voxel in np.ndindex(*grid):
            gram[n, i, j] += a[(n, i, *voxel)] * b[(n, j, *voxel)]
    return gram / math.prod(grid)


def slow_gram_loss(student: np.ndarray, teacher: np.ndarray) -> float:
    """Eq. 11, second term with theta = 1. Features f_enc, f_t, f_dec, each (N, C, D, H, W)."""
    enc, t, dec = range(3)
    total = 0.0
    for first, second in ((enc, dec), (enc, t), (dec, t)):
        of_student, of_teacher = (slow_cross_gram(f[first], f[second]) for f in (student, teacher))
        total += slow_mean_square(of_student, of_teacher)
    return total / 4


def slow_segmentation_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Eq. 12, L_Dice: 1 - soft Dice of WT, TC and ET, smoothed by a voxel, plus cross entropy; mean over samples."""
    per_sample = []
    for n in range(len(logits)):
        voxels = [voxel for voxel in np.ndindex(*labels.shape[1:]) if labels[(n, *voxel)] != IGNORE]
        p = [slow_softmax(list(logits[(n, slice(None), *voxel)])) for voxel in voxels]
        truth = [int(labels[(n, *voxel)]) for voxel in voxels]
        dices = []
        for region, members in enumerate(((1, 2, 3), (1, 3), (3,))):
            counted = [i for i, label in enumerate(truth) if region != 1 or label != UNENHANCED]
            predicted = [sum(p[i][c] for c in members) for i in counted]
            inside = [float(truth[i] in members or (region == 0 and truth[i] == UNENHANCED)) for i in counted]
            overlap = sum(a * b for a, b in zip(predicted, inside))
            dices.append((2 * overlap + 1) / (sum(predicted) + sum(inside) + 1))
        said = [q[1] + q[2] if label == UNENHANCED else q[label] for q, label in zip(p, truth)]
        entropy = -sum(math.log(one) for one in said) / len(voxels)
        per_sample.append(1 - sum(dices) / 3 + entropy)
    return sum(per_sample) / len(per_sample)


# --- the losses under test, all called alike ----------------------------------------------------------------------


def random_tensors(seed: int, *shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def random_attentions(seed: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.softmax(2 * tap, dim=-1) for tap in random_tensors(seed, *[(2, 2, 3, 3)] * 4))


class Distillation(NamedTuple):
    """A distillation loss of (student, teacher), each a tuple of tensors; its input from a seed; its slow version."""

    loss: Callable
    sample: Callable
    slow: Callable


DISTILLATION = {
    "evd": Distillation(losses.evd_loss, random_attentions, slow_evd),
    "mst": Distillation(
        losses.mst_loss,
        lambda seed: random_tensors(seed, *[(2, 3, 2, 1, 2)] * 4),
        lambda s, t: sum(map(slow_mean_square, s, t)),
    ),
    "logit mse": Distillation(
        lambda s, t: losses.logit_mse(s[0], t[0]),
        lambda seed: random_tensors(seed, (2, 4, 2, 1, 3)),
        lambda s, t: slow_mean_square(s[0], t[0]),
    ),
    "standardised kl": Distillation(
        lambda s, t: losses.standardised_kl(s[0], t[0], 0.5),
        lambda seed: random_tensors(seed, (2, 4, 2, 1, 3)),
        lambda s, t: slow_kl(s[0], t[0], 0.5),
    ),
    "gram": Distillation(
        losses.gram_loss,
        lambda seed: random_tensors(seed, *[(2, 3, 2, 1, 2)] * 3),
        slow_gram_loss,
    ),
}
every_distillation = pytest.mark.parametrize("case", DISTILLATION.values(), ids=DISTILLATION)


def leaves(tensors, dtype=torch.float64) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in tensors)


def arrays(features) -> np.ndarray:
    return np.stack([feature.detach().numpy() for feature in features])


def assert_gradient_of(slow: Callable[[np.ndarray], float], features, seed: int) -> None:
    """The gradients that `features` hold must be those of `slow`, by central differences along two directions."""
    values, gradient = arrays(features), arrays([feature.grad for feature in features])
    for direction in np.random.default_rng(seed).normal(size=(2, *values.shape)):
        slope = (slow(values + 1e-5 * direction) - slow(values - 1e-5 * direction)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def volume(*channels: list[float]) -> torch.Tensor:
    """(1, C, 1, 1, W) from one row of voxels per channel."""
    return torch.tensor(channels, dtype=torch.float64)[None, :, None, None]


def labels_of(*values: int) -> torch.Tensor:
    return torch.tensor(values)[None, None, None]


# --- what holds for every distillation loss -----------------------------------------------------------------------


@every_distillation
@pytest.mark.parametrize("seed", [1, 2])
def test_agrees_with_the_slow_sum(case, seed):
    student, teacher = case.sample(seed), case.sample(seed + 100)
    expected = case.slow(arrays(student), arrays(teacher))
    assert expected > 1e-3
    result = case.loss(student, teacher)
    assert result.shape == ()
    assert float(result) == pytest.approx(expected, rel=1e-5)
    single = case.loss([f.float() for f in student], [f.float() for f in teacher])
    assert float(single) == pytest.approx(expected, rel=1e-5)


@every_distillation
@few_examples
@given(seed=seeds)
def test_is_zero_where_the_student_equals_the_teacher_and_positive_elsewhere(case, seed):
    features = case.sample(seed)
    assert float(case.loss(features, [f.clone() for f in features])) == pytest.approx(0, abs=1e-12)
    assert float(case.loss(features, case.sample(seed + 1))) > 1e-4


@every_distillation
def test_gradient_reaches_the_student_and_never_the_teacher(case):
    student, teacher = leaves(case.sample(3)), leaves(case.sample(4))
    case.loss(student, teacher).backward()
    assert all(f.grad is not None and f.grad.isfinite().all() and f.grad.abs().max() > 0 for f in student)
    assert all(f.grad is None for f in teacher)


@every_distillation
def test_gradient_is_that_of_the_slow_sum(case):
    student, teacher = leaves(case.sample(5)), case.sample(6)
    case.loss(student, teacher).backward()
    assert_gradient_of(lambda moved: case.slow(moved, arrays(teacher)), student, seed=7)


@every_distillation
def test_gradient_is_finite_where_the_student_equals_the_teacher(case):
    student = leaves(case.sample(7))
    case.loss(student, [f.detach() for f in student]).backward()
    assert all(f.grad.isfinite().all() and f.grad.abs().max() < 1e-5 for f in student)


@every_distillation
def test_a_batch_is_the_mean_of_its_samples_in_any_order(case):
    student, teacher = case.sample(8), case.sample(9)

    def loss_of(rows: list[int]) -> float:
        return float(case.loss([f[rows] for f in student], [f[rows] for f in teacher]))

    assert loss_of([0]) != pytest.approx(loss_of([1]))
    assert loss_of([0, 1]) == pytest.approx((loss_of([0]) + loss_of([1])) / 2, rel=1e-5)
    assert loss_of([1, 0]) == pytest.approx(loss_of([0, 1]), rel=1e-5)


@every_distillation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single_precision(case, dtype):
    student, teacher = (leaves(case.sample(seed), dtype) for seed in (10, 11))
    exact = case.loss([f.float() for f in student], [f.float() for f in teacher])
    result = case.loss(student, teacher)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(exact.item(), rel=1e-6)
    result.backward()
    assert all(f.grad.dtype == dtype and f.grad.isfinite().all() for f in student)


@every_distillation
def test_half_precision_survives_values_whose_squares_overflow_it(case):
    student, teacher = ([(1000 * f).half() for f in case.sample(seed)] for seed in (12, 13))
    assert case.loss(student, teacher).isfinite()


@every_distillation
def test_autocast_does_not_lower_the_precision(case):
    student, teacher = ([f.float() for f in case.sample(seed)] for seed in (14, 15))
    exact = float(case.loss(student, teacher))
    with torch.autocast("cpu", torch.bfloat16):
        result = case.loss(student, teacher)
    assert result.dtype == torch.float32
    assert float(result) == pytest.approx(exact, rel=1e-6)


# --- MS-TKD, eq. 2-4 ----------------------------------------------------------------------------------------------

TWO_TAPS = (torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]]), torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]))


def test_extreme_value_sequences_by_hand():
    # Times 2 tokens: [[1, 1], [.5, 1.5]] and [[2, 0], [1, 1]]; maximum [[2, 1], [1, 1.5]], minimum [[1, 0], [.5, 1]],
    # mean [[1.5, .5], [.75, 1.25]].
    by_max, by_min, by_mean = losses.extreme_value_sequences(TWO_TAPS)
    assert by_max.shape == by_min.shape == by_mean.shape == (1, 2, 1, 2, 2)
    assert by_max[0, :, 0].tolist() == [[[2, 1], [0.5, 2.25]], [[4, 0], [1, 1.5]]]
    assert by_min[0, :, 0].tolist() == [[[1, 0], [0.25, 1.5]], [[2, 0], [0.5, 1]]]
    assert by_mean[0, :, 0].tolist() == [[[1.5, 0.5], [0.375, 1.875]], [[3, 0], [0.75, 1.25]]]


@pytest.mark.parametrize("tokens", [2, 8, 120])
def test_extreme_values_of_uniform_attention_are_one_for_any_number_of_tokens(tokens):
    attentions = [torch.full((1, 3, tokens, tokens), 1 / tokens)] * 4
    for sequence in losses.extreme_value_sequences(attentions):
        torch.testing.assert_close(sequence, torch.ones(1, 4, 3, tokens, tokens))


def test_evd_loss_by_hand():
    # Against uniform attention, whose sequences are all 1: squared differences of the values above,
    # 13.0625 + 4.0625 + 6.78125 = 23.90625. Squared sizes: 24 ones, and 29.5625 + 8.5625 + 17.28125 = 55.40625.
    uniform = [torch.full((1, 1, 2, 2), 0.5)] * 2
    assert float(losses.evd_loss(TWO_TAPS, uniform)) == pytest.approx(23.90625 / (24 + 55.40625))


def test_mst_loss_by_hand():
    # First tap: (1 + 9) / 2, second: (0 + 4) / 2.
    student = [volume([1.0, 3.0]), volume([5.0, 7.0])]
    teacher = [volume([0.0, 0.0]), volume([5.0, 5.0])]
    assert float(losses.mst_loss(student, teacher)) == pytest.approx(7)


# --- DMLD, eq. 5-7 ------------------------------------------------------------------------------------------------


def test_logit_mse_by_hand():
    # (1 + 4 + 9 + 16) / 4
    assert float(losses.logit_mse(volume([1.0, 2.0], [3.0, 4.0]), torch.zeros(1, 2, 1, 1, 2))) == pytest.approx(7.5)


def test_standardise_by_hand_with_the_population_deviation_over_classes():
    # 1, 2, 3, 4: mean 2.5, variance 1.25. 0, 0, 0, 4: mean 1, variance 3.
    z = losses.standardise(volume([1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 4.0]))
    assert z[0, :, 0, 0, 0].tolist() == pytest.approx([-1.3416408, -0.4472136, 0.4472136, 1.3416408], rel=1e-6)
    assert z[0, :, 0, 0, 1].tolist() == pytest.approx([-0.5773503, -0.5773503, -0.5773503, 1.7320508], rel=1e-6)


def test_standardise_adds_1e_7_to_the_deviation():
    # Mean 1e-7, deviation 1e-7: (0 - 1e-7) / 2e-7.
    z = losses.standardise(volume([0.0], [2e-7]))
    assert z.flatten().tolist() == pytest.approx([-0.5, 0.5], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 3.3, -40.0])
def test_classes_that_are_all_equal_stay_equal_and_give_finite_gradients(dtype, value):
    (student,) = leaves([torch.full((1, 5, 1, 1, 2), value)], dtype)
    z = losses.standardise(student)
    assert z.isfinite().all() and (z == z[:, :1]).all()
    teacher = random_tensors(17, student.shape)[0].to(dtype)
    losses.standardised_kl(student, teacher, 2.0).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("tau, expected", [(1.0, 1.5231883), (2.0, 0.46211716)])
def test_standardised_kl_by_hand(tau, expected):
    # Two classes standardise to -1 and 1. KL of (p, 1 - p) from (1 - p, p), p = sigmoid(2 / tau), is
    # (2 p - 1) log(p / (1 - p)) = tanh(1 / tau) * 2 / tau.
    student, teacher = volume([1.0], [-1.0]), volume([-3.0], [5.0])
    assert float(losses.standardised_kl(student, teacher, tau)) == pytest.approx(expected, rel=1e-6)


def test_standardised_kl_is_from_the_teacher_to_the_student():
    # Standardised, over sqrt(2): teacher 1, -0.5, -0.5, student 0.8660, 0, -0.8660. Softmax: 0.6914, 0.1543, 0.1543 and
    # 0.6260, 0.2633, 0.1107. The other way round it would be 0.0417.
    student, teacher = volume([1.0], [0.0], [-1.0]), volume([2.0], [-1.0], [-1.0])
    assert float(losses.standardised_kl(student, teacher, math.sqrt(2))) == pytest.approx(0.0374755, rel=1e-5)


@few_examples
@given(seeds, st.floats(0.1, 20), st.floats(0.5, 10))
def test_standardised_kl_ignores_shift_and_positive_scale_of_each_voxel(seed, largest, tau):
    student, teacher, shift, scale = random_tensors(seed, (2, 4, 2, 1, 3), (2, 4, 2, 1, 3), *[(2, 1, 2, 1, 3)] * 2)
    expected = float(losses.standardised_kl(student, teacher, tau))
    moved = student * (0.1 + largest * torch.sigmoid(scale)) + 3 * shift
    assert float(losses.standardised_kl(moved, teacher, tau)) == pytest.approx(expected, rel=1e-3)
    assert float(losses.standardised_kl(student, 3 * teacher - shift, tau)) == pytest.approx(expected, rel=1e-3)


# --- GSME, eq. 9-11 -----------------------------------------------------------------------------------------------


def test_cross_gram_by_hand():
    # [[1, 2], [3, 4]] [[1, 0], [2, 1]]^T = [[1, 4], [3, 10]], over 2 voxels.
    gram = losses.cross_gram(volume([1.0, 2.0], [3.0, 4.0]), volume([1.0, 0.0], [2.0, 1.0]))
    assert gram.tolist() == [[[0.5, 2], [1.5, 5]]]


@few_examples
@given(seeds)
def test_cross_gram_agrees_with_the_slow_one_and_transposes_with_its_arguments(seed):
    a, b = random_tensors(seed, *[(2, 3, 2, 1, 3)] * 2)
    gram = losses.cross_gram(a, b)
    np.testing.assert_allclose(gram.numpy(), slow_cross_gram(a.numpy(), b.numpy()), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(losses.cross_gram(b, a), gram.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_cross_gram_does_not_depend_on_the_number_of_voxels():
    a, b = random_tensors(20, *[(1, 3, 2, 2, 2)] * 2)
    torch.testing.assert_close(
        losses.cross_gram(a.repeat(1, 1, 3, 2, 1), b.repeat(1, 1, 3, 2, 1)), losses.cross_gram(a, b)
    )


def test_gram_loss_by_hand():
    # enc . dec = 6, enc . t = 5, dec . t = 8 over 2 voxels: (3^2 + 2.5^2 + 4^2) / 4.
    enc, t, dec = volume([1.0, 2.0]), volume([3.0, 1.0]), volume([2.0, 2.0])
    nothing = (torch.zeros_like(enc),) * 3
    assert float(losses.gram_loss((enc, t, dec), nothing)) == pytest.approx(7.8125)
    # Two channels of ones: every entry of the three 2 x 2 matrices is 1.
    ones = (torch.ones(1, 2, 2, 2, 2),) * 3
    assert float(losses.gram_loss(ones, tuple(0 * f for f in ones))) == pytest.approx(0.75)


@few_examples
@given(seeds)
def test_gram_loss_ignores_a_common_permutation_of_the_voxels(seed):
    shape = (2, 3, 2, 2, 3)
    student, teacher = random_tensors(seed, *[shape] * 3), random_tensors(seed + 1, *[shape] * 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    shuffled = [f.flatten(2)[..., order].reshape(shape) for f in student]
    expected = float(losses.gram_loss(student, teacher))
    assert float(losses.gram_loss(shuffled, teacher)) == pytest.approx(expected, rel=1e-6)
    # Shuffling one of the three alone breaks the pairing of the voxels.
    broken = float(losses.gram_loss((student[0].flatten(2).roll(1, 2).reshape(shape), *student[1:]), teacher))
    assert abs(broken - expected) > 1e-5 * expected


def test_discriminator_and_adversarial_loss_by_hand():
    # softplus: of -log 3 log(4 / 3), of 0 log 2, of -log 7 log(8 / 7), of log 3 log 4, of log 7 log 8
    complete = torch.tensor([[math.log(3)], [0.0]])
    missing = torch.tensor([[-math.log(3)], [-math.log(7)]])
    expected = (math.log(4 / 3) + math.log(2)) / 2 + (math.log(4 / 3) + math.log(8 / 7)) / 2
    assert float(losses.discriminator_loss(complete, missing)) == pytest.approx(expected, rel=1e-6)
    assert float(losses.adversarial_loss(missing)) == pytest.approx((math.log(4) + math.log(8)) / 2, rel=1e-6)


@few_examples
@given(seeds)
def test_discriminator_loss_is_equation_9_negated_for_the_probability_of_missing(seed):
    on_teacher, on_student = random_tensors(seed, (2, 1, 2, 2, 2), (2, 1, 2, 2, 2))
    d_teacher, d_student = (1 / (1 + np.exp(raw.numpy())) for raw in (on_teacher, on_student))
    equation = np.mean([math.log(1 - d) for d in d_teacher.ravel()]) + np.mean([math.log(d) for d in d_student.ravel()])
    assert float(losses.discriminator_loss(on_teacher, on_student)) == pytest.approx(-equation, rel=1e-5)


def test_discriminator_and_student_pull_in_opposite_directions():
    on_teacher, on_student = leaves([torch.zeros(2, 1), torch.zeros(2, 1)])
    losses.discriminator_loss(on_teacher, on_student).backward()
    # Softplus has slope 1/2 at 0; two samples. The discriminator learns from both sides: complete up, missing down.
    assert on_teacher.grad.flatten().tolist() == pytest.approx([-0.25, -0.25])
    assert on_student.grad.flatten().tolist() == pytest.approx([0.25, 0.25])
    (fooling,) = torch.autograd.grad(losses.adversarial_loss(on_student), on_student)
    assert fooling.flatten().tolist() == pytest.approx([-0.25, -0.25])


def test_a_sure_discriminator_still_teaches_the_student():
    # log(1 - sigmoid) in float32 is -inf here, and the saturating form has no gradient left.
    (on_student,) = leaves([torch.tensor([-200.0, -30.0])], torch.float32)
    loss = losses.adversarial_loss(on_student)
    assert loss.item() == pytest.approx(115)
    loss.backward()
    assert on_student.grad.tolist() == pytest.approx([-0.5, -0.5])
    assert losses.discriminator_loss(torch.tensor([200.0]), torch.tensor([-200.0])).item() == pytest.approx(0)


# --- segmentation, eq. 12 -----------------------------------------------------------------------------------------


def test_segmentation_loss_by_hand():
    # Background and ET; each class 1/4. Dice: WT (1.5 + 1) / (1.5 + 1 + 1), TC (1 + 1) / (1 + 1 + 1),
    # ET (0.5 + 1) / (0.5 + 1 + 1); cross entropy log 4.
    expected = 1 - (2.5 / 3.5 + 2 / 3 + 1.5 / 2.5) / 3 + math.log(4)
    loss = losses.segmentation_loss(torch.zeros(1, 4, 1, 1, 2), labels_of(0, 3))
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_resection_cavity_counts_as_a_class_but_in_no_region():
    # Cavity and ET; each of five classes 1/5, so that WT is 3/5 and not 1 - 1/5.
    expected = 1 - (2.2 / 3.2 + 1.8 / 2.8 + 1.4 / 2.4) / 3 + math.log(5)
    loss = losses.segmentation_loss(torch.zeros(1, 5, 1, 1, 2), labels_of(4, 3))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_a_tumour_that_does_not_enhance_is_core_or_oedema():
    # Unenhanced and background; each class 1/4. WT as for any tumour, TC from the background alone: 1 / (0.5 + 1),
    # ET 1 / (0.5 + 1); cross entropy log 2 (1/4 + 1/4) and log 4.
    expected = 1 - (2.5 / 3.5 + 1 / 1.5 + 1 / 1.5) / 3 + (math.log(2) + math.log(4)) / 2
    loss = losses.segmentation_loss(torch.zeros(1, 4, 1, 1, 2), labels_of(UNENHANCED, 0))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_more_smoothing_speaks_against_regions_that_are_absent_and_leaves_the_others_alone():
    # Background and oedema; each class 1/4. WT (1.5 + 1) / (1.5 + 1 + 1) as ever; of TC 1 voxel and of ET 0.5 are
    # drawn where there is none: 10 / (1 + 10) and 10 / (0.5 + 10).
    expected = 1 - (2.5 / 3.5 + 10 / 11 + 10 / 10.5) / 3 + math.log(4)
    loss = losses.segmentation_loss(torch.zeros(1, 4, 1, 1, 2), labels_of(0, 2), 10.0)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    everything = labels_of(1, 2, 3)
    (logits,) = random_tensors(29, (1, 4, 1, 1, 3))
    assert losses.segmentation_loss(logits, everything, 10.0) == losses.segmentation_loss(logits, everything)


def test_what_is_made_up_of_an_absent_region_has_a_gradient_only_with_more_smoothing():
    # 1,000 voxels of ET in probability: smoothing / (drawn + smoothing)^2, a third of it for each region.
    for smoothing, expected in ((1.0, 1 / 1001**2), (1000.0, 1000 / 2000**2)):
        (p,) = leaves([torch.tensor([0.5, 0, 0, 0.5]).reshape(1, 4, 1, 1, 1).repeat(1, 1, 1, 1, 2000)])
        losses.region_dice_loss(p, torch.zeros(1, 1, 1, 2000, dtype=torch.long), smoothing).backward()
        assert float(p.grad[0, 3].mean()) == pytest.approx(expected, rel=1e-4)  # ET is in all three regions


@few_examples
@given(seeds, st.sampled_from([4, 5]), st.booleans())
def test_segmentation_loss_agrees_with_the_slow_one(seed, classes, ignored):
    (logits,) = random_tensors(seed, (2, classes, 2, 2, 3))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (2, 2, 2, 3), generator=generator)
    labels[:, 1, 1] = UNENHANCED
    if ignored:  # more in the first sample than in the second
        labels[0, 0], labels[1, 0, 0, 0] = IGNORE, IGNORE
    expected = slow_segmentation_loss(logits.numpy(), labels.numpy())
    assert float(losses.segmentation_loss(logits, labels)) == pytest.approx(expected, rel=1e-5)
    parts = [float(losses.segmentation_loss(logits[n : n + 1], labels[n : n + 1])) for n in range(2)]
    assert sum(parts) / 2 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("present", [(0, 0, 0), (1, 2, 3), (3, 3, 3)])
def test_segmentation_loss_of_a_sure_and_right_answer_is_zero(present):
    labels = labels_of(*present)
    logits = 60.0 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)
    assert float(losses.segmentation_loss(logits, labels)) == pytest.approx(0, abs=1e-6)


def test_ignored_voxels_count_in_neither_part_and_get_no_gradient():
    assert IGNORE == -1
    (counted,) = random_tensors(23, (1, 4, 1, 1, 4))
    labels = labels_of(0, 2, 1, 3)
    padded = torch.cat((counted, 50 * random_tensors(24, (1, 4, 1, 1, 3))[0]), dim=-1).requires_grad_()
    loss = losses.segmentation_loss(padded, labels_of(0, 2, 1, 3, IGNORE, IGNORE, IGNORE))
    assert loss.item() == pytest.approx(losses.segmentation_loss(counted, labels).item(), rel=1e-6)
    loss.backward()
    assert (padded.grad[..., 4:] == 0).all() and (padded.grad[..., :4] != 0).all()


def test_a_sample_without_labelled_voxels_adds_nothing_and_spoils_nothing():
    (logits,) = leaves(random_tensors(25, (2, 4, 1, 1, 3)))
    labels = torch.cat((labels_of(IGNORE, IGNORE, IGNORE), labels_of(0, 1, 3)))
    loss = losses.segmentation_loss(logits, labels)
    # No voxels: Dice (0 + 1) / (0 + 1), no cross entropy.
    assert loss.item() == pytest.approx(losses.segmentation_loss(logits[1:], labels[1:]).item() / 2, rel=1e-6)
    loss.backward()
    assert (logits.grad[0] == 0).all()
    assert logits.grad[1].isfinite().all() and logits.grad[1].abs().max() > 0


def test_segmentation_gradient_is_that_of_the_slow_sum():
    labels = torch.cat((labels_of(0, 1, 2), labels_of(3, IGNORE, 4)))
    (logits,) = leaves(random_tensors(26, (2, 5, 1, 1, 3)))
    losses.segmentation_loss(logits, labels).backward()
    assert_gradient_of(lambda moved: slow_segmentation_loss(moved[0], labels.numpy()), [logits], seed=28)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.segmentation_loss(x, torch.full((2, 32, 32, 36), 3)),
        losses.adversarial_loss,
        lambda x: losses.discriminator_loss(x[:1], x[1:]),
    ],
    ids=["segmentation", "adversarial", "discriminator"],
)
def test_the_other_losses_of_half_precision_are_single_precision_too(loss, dtype):
    # 36864 voxels a sample: a sum that bfloat16 cannot count and that float16 rounds to 32.
    (x,) = (tensor.to(dtype) for tensor in random_tensors(27, (2, 4, 32, 32, 36)))
    result = loss(x)
    assert result.dtype == torch.float32
    assert float(result) == pytest.approx(float(loss(x.float())), rel=1e-6)


# --- total, eq. 12 -----------------------------------------------------------------------------------------------


def distillation_config(**changes: float) -> DistillationConfig:
    factors = {"lambda_1": 2, "lambda_2": 3, "lambda_3": 5, "lambda_4": 7, "alpha": 11, "beta": 13}
    others = {"lambda_mse": 17, "lambda_kd": 19, "tau": 4, "epsilon": 23, "theta": 29}
    return DistillationConfig(**{**factors, **others, **changes})


def test_each_term_has_the_product_of_the_factors_before_it():
    assert losses.term_weights(distillation_config()) == {
        "segmentation": 7,
        "evd": 2 * 11,
        "mst": 2 * 13,
        "logit_mse": 3 * 17,
        "logit_kl": 3 * 19 * 4**2,
        "adversarial": 5 * 23,
        "gram": 5 * 29,
    }


@pytest.mark.parametrize(
    "factor, without",
    [
        ("lambda_1", {"evd", "mst"}),
        ("lambda_2", {"logit_mse", "logit_kl"}),
        ("lambda_3", {"adversarial", "gram"}),
        ("lambda_kd", {"logit_kl"}),
        ("alpha", {"evd"}),
    ],
)
def test_a_factor_of_zero_removes_its_terms_and_no_other(factor, without):
    needed = losses.needed_terms(distillation_config(**{factor: 0}))
    assert needed == tuple(name for name in losses.TERMS if name not in without)


def test_weighted_total_and_shares_by_hand():
    terms = {"segmentation": torch.tensor(1.5, requires_grad=True), "gram": torch.tensor(0.25, requires_grad=True)}
    total, weighted = losses.weighted_total(terms, {"segmentation": 2.0, "gram": 4.0, "evd": 100.0})
    assert total.item() == 4
    assert {name: value.item() for name, value in weighted.items()} == {"segmentation": 3, "gram": 1}
    total.backward()
    assert {name: term.grad.item() for name, term in terms.items()} == {"segmentation": 2, "gram": 4}
    assert losses.shares({"segmentation": 3.0, "gram": 1.0}) == {"segmentation": 0.75, "gram": 0.25}
    assert losses.shares({"segmentation": 0.0, "gram": 0.0}) == {"segmentation": 0, "gram": 0}


# --- with the network ---------------------------------------------------------------------------------------------


def test_the_network_feeds_every_loss_and_only_the_student_learns():
    torch.manual_seed(0)
    student = build_network("compact")
    teacher = copy.deepcopy(student)
    scan, availability = torch.randn(1, 4, 32, 32, 32), torch.tensor([[1.0, 0, 0, 1]])
    t = teacher(scan, torch.ones(1, 4), return_features=True)
    s = student(scan * availability[:, :, None, None, None], availability, return_features=True)
    terms = {
        "segmentation": losses.segmentation_loss(s.logits, t.logits.argmax(dim=1)),
        "evd": losses.evd_loss(s.attentions, t.attentions),
        "mst": losses.mst_loss(s.tokens, t.tokens),
        "logit_mse": losses.logit_mse(s.logits, t.logits),
        "logit_kl": losses.standardised_kl(s.logits, t.logits, 7.0),
        "adversarial": losses.adversarial_loss(s.f_fused.mean(dim=1)),
        "gram": losses.gram_loss((s.f_enc, s.f_t, s.f_dec), (t.f_enc, t.f_t, t.f_dec)),
    }
    assert set(terms) == set(losses.TERMS)
    for name, term in terms.items():
        assert term.shape == () and term.dtype == torch.float32, name
        assert math.isfinite(term.item()) and term.item() > 0, name
        (gradient,) = torch.autograd.grad(term, student.stem.weight, retain_graph=True)
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name
    losses.weighted_total(terms, dict.fromkeys(terms, 1.0))[0].backward()
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
