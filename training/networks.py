"""The networks that can be trained: MST-KDNet's presets, MONAI's baselines behind the same call, the discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from MSTKDSegmentLib.errors import WeightsError
from MSTKDSegmentLib.modalities import MODALITIES
from MSTKDSegmentLib.network import PRESETS, build_network
from MSTKDSegmentLib.weights import load_network, read_bundle
from torch import Tensor, nn

from training.files import file_sha256

BASELINES = ("segresnet", "unetr")
# UNETR's positions belong to one size: whole volumes are run in windows of this side.
UNETR_SIDE = 96


@dataclass(frozen=True)
class BaselineConfig:
    """What `MSTKDSegmentLib.inference` asks of a network's configuration."""

    preset: str
    classes: int = 4
    stem_stride: int = 1


class Baseline(nn.Module):
    """A MONAI network called like ours; absent sequences are zero channels, as modality dropout trains it."""

    def __init__(self, preset: str, classes: int) -> None:
        super().__init__()
        from monai.networks.nets import UNETR, SegResNet

        self.config = BaselineConfig(preset, classes)
        inputs = len(MODALITIES)
        if preset == "segresnet":
            # Myronenko 2018 (BraTS winner), MONAI's own BraTS tutorial: 16 filters.
            self.body: nn.Module = SegResNet(
                init_filters=16, in_channels=inputs, out_channels=classes, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)
            )
        else:
            self.body = UNETR(inputs, classes, (UNETR_SIDE,) * 3, feature_size=16, norm_name="instance")

    @property
    def window(self) -> int | None:
        """The only side that the network takes; None: any multiple of 32."""
        return UNETR_SIDE if self.config.preset == "unetr" else None

    def forward(self, x: Tensor, availability: Tensor) -> Tensor:
        """x (N, 4, D, H, W), zero where absent; availability is not needed -> logits (N, classes, D, H, W)."""
        if self.window and tuple(x.shape[2:]) != (self.window,) * 3:
            raise ValueError(f"UNETR takes crops of {self.window} voxels a side, got {tuple(x.shape[2:])}")
        return self.body(x)


def build_training_network(preset: str, classes: int = 4, gradient_checkpointing: bool = False) -> nn.Module:
    """A freshly initialised network of `preset` (compact, paper, segresnet, unetr); ValueError if there is no such."""
    if preset in PRESETS:
        return build_network(preset, gradient_checkpointing, classes=classes)
    if preset in BASELINES:
        return Baseline(preset, classes)
    raise ValueError(f"unknown preset {preset!r}; known: {', '.join([*PRESETS, *BASELINES])}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a training run saved (tensors and plain data only). Raises WeightsError naming an unreadable file."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give a bundle (.zip) or a run's checkpoint (.pt)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; each means the same to the user
        raise WeightsError(f"{path}: not a training checkpoint, or damaged ({type(error).__name__})") from error
    if not isinstance(state, dict) or not {"config", "average", "step"} <= set(state):
        raise WeightsError(f"{path}: not a training checkpoint of this software")
    return state


def network_of(state: dict[str, Any]) -> Any:
    """The averaged network of a checkpoint, in evaluation mode. Raises WeightsError where the weights do not fit."""
    config = state["config"]
    classes = 5 if config.get("sampling", {}).get("resection_cavity") == "class" else 4
    network = build_training_network(config["preset"], classes)
    try:
        network.load_state_dict(state["average"])
    except RuntimeError as error:
        raise WeightsError(f"the checkpoint's weights do not fit {config['preset']} ({error})") from error
    return network.requires_grad_(False).eval()


class TrainedState(NamedTuple):
    """A bundle's network or a checkpoint's averaged one.

    cases: what it was trained on, and what its teacher and the weights that it started from were; None where a file
    names none.
    """

    preset: str
    weights: dict[str, Tensor]
    sha256: str
    cases: list[str] | None


def trained_state(path: str | Path) -> TrainedState:
    """What a bundle (.zip) or a checkpoint holds. Raises WeightsError for a file that cannot be read."""
    place = Path(path)
    if place.suffix == ".zip":
        bundle = read_bundle(place)
        weights = load_network(bundle).state_dict()
        taught = bundle.card["training"]
        cases = known_cases(taught.get("cases"), taught.get("earlier_cases", ()))
        return TrainedState(str(bundle.card["preset"]), weights, bundle.sha256, cases)
    state = read_checkpoint(place)
    cases = known_cases(state.get("cases", {}).get("training"), state.get("earlier_cases", ()))
    return TrainedState(state["config"]["preset"], state["average"], file_sha256(place), cases)


def known_cases(own: Sequence[str] | None, earlier: Sequence[str] | None) -> list[str] | None:
    """A run's cases with those of its teacher and of the weights it started from; None where either is unknown."""
    return None if own is None or earlier is None else sorted({*own, *earlier})


def load_into(network: nn.Module, path: str | Path) -> TrainedState:
    """Give `network` the weights in `path`; returns what is there. Raises WeightsError where they do not fit.

    Weights of another preset fit if they hold every tensor of this network: `compact` starts from `medium`, whose
    further blocks are left out and whose whole kernels are factorised (`factorised`).
    """
    source = trained_state(path)
    preset, weights = source.preset, source.weights
    mine, wanted = network.config.preset, network.state_dict()  # type: ignore[union-attr]
    weights = factorised(weights, wanted)
    if preset != mine:
        different = [name for name in wanted if name not in weights or weights[name].shape != wanted[name].shape]
        if different:
            raise WeightsError(
                f"{path}: weights of preset {preset!r}, the run's preset is {mine!r}; {len(different)} of its tensors "
                f"are not among them ({different[0]} ...)"
            )
        weights = {name: weights[name] for name in wanted}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(f"{path}: the weights do not fit ({str(error).splitlines()[-1].strip()})") from error
    return source


def factorised(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with whole kernels as the separable blocks and the light stem of `wanted` hold them.

    A 3x3x3 kernel (O, I, 3, 3, 3), seen as a matrix of (O * 3) x (I * 9), becomes the 1x3x3 and 3x1x1 kernels of the
    best approximation with as many terms as channels, by singular values (Jaderberg et al. 2014, section 3.1, scheme
    2). A stem of 3x3x3 cells of 2x2x2 voxels keeps its middle 4x4x4 of 6x6x6 voxels. Other tensors stay as they are.
    """
    result = dict(weights)
    for name, target in wanted.items():
        kernel = weights.get(name)
        if kernel is None or kernel.ndim != 5 or target.shape == kernel.shape:
            continue
        if name == "stem.weight" and tuple(target.shape[2:]) == (4, 4, 4):
            result[name] = _middle_of_cells(kernel)
        elif tuple(target.shape[2:]) == (1, 3, 3) and tuple(kernel.shape[2:]) == (3, 3, 3):
            block = name.removesuffix("0.weight")
            result[name], result[f"{block}1.weight"] = _planes_and_lines(kernel, target.shape[0])
            for part in ("weight", "bias"):
                result[f"{block}2.{part}"] = weights[f"{block}1.{part}"]  # the norm moves one place on
            result.pop(f"{block}1.bias")
    return result


def _planes_and_lines(kernel: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """(O, I, 3, 3, 3) -> (terms, I, 1, 3, 3) and (O, terms, 3, 1, 1)."""
    outputs, inputs = kernel.shape[:2]
    matrix = kernel.float().permute(0, 2, 1, 3, 4).reshape(outputs * 3, inputs * 9)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:terms].sqrt()
    plane = (root[:, None] * right[:terms]).reshape(terms, inputs, 1, 3, 3)
    line = (left[:, :terms] * root).reshape(outputs, 3, terms, 1, 1).transpose(1, 2)
    return plane.contiguous(), line.contiguous()


def _middle_of_cells(kernel: Tensor) -> Tensor:
    """(O, C * 8, 3, 3, 3) over cells as `space_to_depth` orders them -> (O, C, 4, 4, 4) over voxels, stride 2."""
    outputs = kernel.shape[0]
    cells = kernel.reshape(outputs, -1, 2, 2, 2, 3, 3, 3).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return cells.reshape(outputs, -1, 6, 6, 6)[..., 1:5, 1:5, 1:5].contiguous()


class Discriminator(nn.Module):
    """Tells the fused features of complete and of missing input apart (eq. 9): patch-wise, raw outputs.

    (N, C, D/8, H/8, W/8) -> (N, 1, d, h, w).
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(channels, width, 1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, width, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, width, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, 1, 1),
        )

    def forward(self, fused: Tensor) -> Tensor:
        return self.body(fused.float())
