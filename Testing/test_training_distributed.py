"""Two processes (gloo, CPU), started by torchrun, against one: the same data, gradients, weights and validation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")
pytest.importorskip("pydantic", reason="training needs the `train` extra")

import training_run as tiny  # noqa: E402

ROOT = Path(__file__).parents[1]
# A teacher that learns, a discriminator and a global batch of two: every part that processes must agree about.
SCRIPT = """
import sys
from pathlib import Path

import torch
import training_run as tiny
from training.cache import CachedCases
from training.config import OptimiserConfig, Phase, TeacherConfig, ValidationConfig
from training.distributed import joined_world
from training.engine import Trainer
from training.loop import run_training
from training.validation import validation_dice

torch.set_num_threads(1)
cache, out = Path(sys.argv[1]), Path(sys.argv[2])
config = tiny.changed(
    phases=(Phase(2, (32, 32, 32), 2),),
    teacher=TeacherConfig("joint"),
    validation=ValidationConfig(every=2, subsets=("FLAIR",)),
    optimiser=OptimiserConfig("adam", learning_rate=1e-4, weight_decay=0.0, gradient_clip=0.0),
)
cases = CachedCases(cache, tiny.NAMES)
with joined_world("cpu") as world:
    trainer = Trainer(config, world)
    share = 2 // world.size
    figures = trainer.train_step(tiny.batch(cases, *range(world.rank * share, (world.rank + 1) * share)))
    gradients = {
        f"{part}.{name}": value.grad.clone()
        for part, network in (("student", trainer.network), ("teacher", trainer.teacher), ("d", trainer.discriminator))
        for name, value in network.named_parameters()
    }
    run_training(config, cases, out / "run", world=world, validation_cases=cases, tensorboard=False)
    if world.is_main:
        torch.save({"size": world.size, "figures": figures, "gradients": gradients}, out / "step.pt")
"""


def launched(processes: int, script: Path, cases: tiny.CachedCases, out: Path) -> dict:
    out.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = torchrun if processes > 1 else []
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "MSTKDSegment", ROOT / "Testing")))
    done = subprocess.run(
        [sys.executable, *start, str(script), str(cases.cache), str(out)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "step.pt", weights_only=True)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    cases = tiny.prepared_cases(folder)
    script = folder / "step.py"
    script.write_text(SCRIPT)
    one, two = (launched(count, script, cases, folder / str(count)) for count in (1, 2))
    return folder, one, two


def test_two_processes_have_the_gradients_of_one(both):
    _, one, two = both
    assert (one["size"], two["size"]) == (1, 2)
    assert one["gradients"].keys() == two["gradients"].keys()
    compared = 0
    for name, expected in one["gradients"].items():
        found = two["gradients"][name]
        # Rounding may turn the sign of a value at a leaky ReLU's kink, which changes a few elements; a sum in place of
        # a mean, or one process's own gradient, would be off by half or more everywhere.
        size, error = float(expected.norm()), (found - expected).abs()
        close = error <= 1e-3 * float(expected.abs().max()) + 1e-7
        assert float(close.float().mean()) > 0.95, name
        assert float(error.norm()) < 0.05 * size + 1e-6, name
        compared += size > 0
    assert compared > 300


def test_losses_and_terms_are_those_of_the_whole_batch(both):
    _, one, two = both
    for name, expected in one["figures"].items():
        # Shares and terms are means over processes; the norm comes from the averaged gradients.
        rel = 2e-2 if name == "gradient_norm" else 1e-3
        assert two["figures"][name] == pytest.approx(expected, rel=rel, abs=1e-6), name


def test_a_run_of_two_processes_ends_with_the_weights_and_validation_of_one(both):
    folder, _, _ = both
    one, two = (torch.load(folder / count / "run" / "last.pt", weights_only=True) for count in ("1", "2"))
    assert one["step"] == two["step"] == 2
    assert one["best_score"] == pytest.approx(two["best_score"], abs=1e-3)
    assert two["history"][0]["processes"] == 2
    for name, expected in one["network"].items():
        # Adam's first steps have the size of the learning rate whatever the gradient, so where it is nearly zero the
        # sign of rounding decides; all others agree.
        close = (two["network"][name] - expected).abs() < 2e-5
        assert float(close.float().mean()) > 0.95, name
    assert len((folder / "2" / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_a_batch_that_cannot_be_shared_is_refused(both):
    from training.distributed import World
    from training.loop import run_training

    folder, _, _ = both
    cases = tiny.CachedCases(folder / "cache", tiny.NAMES)
    with pytest.raises(ValueError, match="batch 1 cannot be shared by 2 processes"):
        run_training(tiny.TINY, cases, folder / "none", world=World(0, 2))
