"""MST-KDNet: convolutional encoder, transformer neck on the 1/8 features, convolutional decoder (paper, section 2.1).

Three presets share this one module. `paper` reproduces the published size. `compact` is what the product ships: its
first level is at half resolution (one convolution of 4x4x4 voxels with stride 2) and the eight voxels of each
half-resolution cell are predicted by one 1x1x1 convolution, because 62 % of the published network's arithmetic is in
full-resolution 16-channel blocks; its blocks are separable (1x3x3, then 3x1x1: 12 instead of 27 products for each pair
of channels; Jaderberg et al. 2014, arXiv:1405.3866). `medium` has whole kernels and more decoder blocks: its teacher
where `paper` cannot be trained, and what its weights can be factorised from (`training.networks`).

Shapes are (N, C, D, H, W); every side must be a multiple of 32. torch is imported with this module, so the rest of
the library imports this module only when a network is needed.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .modalities import MODALITIES

NUM_MODALITIES = len(MODALITIES)
SIDE_MULTIPLE = 32


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides the shape of the weights.

    stem_stride 1 starts at full resolution, 2 at half resolution: with space-to-depth and 3x3x3 cells, or, if
    `light_stem`, with 4x4x4 voxels. `widths`, `encoder_blocks` and `decoder_blocks` go from the stem's resolution down
    to 1/8; each block is residual with `convs_per_block` 3x3x3 convolutions, factorised into 1x3x3 and 3x1x1 if
    `separable`. The neck cuts the 1/8 features into patches of `patch` voxels a side.
    """

    preset: str
    stem_stride: int
    widths: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    convs_per_block: int
    concatenate_skips: bool
    patch: int
    embed: int
    heads: int
    layers: int
    mlp: int
    tap_widths: tuple[int, ...]
    tap_kernel: int
    classes: int = 4
    groups: int = 8
    light_stem: bool = False
    separable: bool = False

    def __post_init__(self) -> None:
        levels = {1: 4, 2: 3}.get(self.stem_stride)
        if levels is None or not len(self.widths) == len(self.encoder_blocks) == len(self.decoder_blocks) == levels:
            raise ValueError(f"preset {self.preset}: stem_stride 1 needs 4 levels, stem_stride 2 needs 3")
        if self.light_stem and self.stem_stride != 2:
            raise ValueError(f"preset {self.preset}: a light stem has stride 2")
        if self.embed % self.heads or self.layers % 4 or self.patch not in (2, 4):
            raise ValueError(f"preset {self.preset}: embed must divide by heads, layers by 4, patch must be 2 or 4")
        if len(self.tap_widths) != self.patch.bit_length() - 1:
            raise ValueError(f"preset {self.preset}: tap_widths needs one width for each doubling from patch to 1")

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


PRESETS: dict[str, NetworkConfig] = {
    "paper": NetworkConfig(
        preset="paper",
        stem_stride=1,
        widths=(16, 32, 64, 128),
        encoder_blocks=(1, 1, 1, 2),
        decoder_blocks=(3, 1, 0, 1),
        convs_per_block=2,
        concatenate_skips=True,
        patch=4,
        embed=768,
        heads=12,
        layers=12,
        mlp=2048,
        tap_widths=(384, 128),
        tap_kernel=3,
    ),
    "compact": NetworkConfig(
        preset="compact",
        stem_stride=2,
        widths=(32, 64, 128),
        encoder_blocks=(1, 2, 3),
        decoder_blocks=(0, 1, 1),
        convs_per_block=1,
        concatenate_skips=False,
        patch=2,
        embed=192,
        heads=6,
        layers=8,
        mlp=576,
        tap_widths=(128,),
        tap_kernel=1,
        light_stem=True,
        separable=True,
    ),
    "medium": NetworkConfig(
        preset="medium",
        stem_stride=2,
        widths=(32, 64, 128),
        encoder_blocks=(1, 2, 3),
        decoder_blocks=(1, 2, 1),
        convs_per_block=1,
        concatenate_skips=False,
        patch=2,
        embed=192,
        heads=6,
        layers=8,
        mlp=576,
        tap_widths=(128,),
        tap_kernel=1,
    ),
}


class Features(NamedTuple):
    """What the distillation losses read, beside the logits (method: losses table)."""

    logits: Tensor  # (N, classes, D, H, W)
    attentions: tuple[Tensor, ...]  # 4 x (N, heads, tokens, tokens), rows sum to 1, before dropout (eq. 1)
    tokens: tuple[Tensor, ...]  # 4 x (N, embed, d, h, w): z_i on the patch grid, after convolution and normalisation
    f_enc: Tensor  # (N, C8, D/8, H/8, W/8): the encoder's output
    f_t: Tensor  # same shape: the neck's output
    f_fused: Tensor  # same shape: f_enc&t, the decoder's input
    f_dec: Tensor  # same shape: the decoder's first convolutional output


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(groups, channels), channels)


def _conv_norm(inputs: int, outputs: int, groups: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, group norm and leaky ReLU; the convolution has no bias, for the norm would cancel it."""
    conv = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=(kernel - stride + 1) // 2, bias=False)
    return nn.Sequential(conv, _norm(outputs, groups), nn.LeakyReLU(0.01, inplace=True))


def _separable_conv_norm(channels: int, groups: int) -> nn.Sequential:
    """As `_conv_norm` of 3x3x3, from a 1x3x3 and a 3x1x1 convolution with nothing between them."""
    plane = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
    line = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
    return nn.Sequential(plane, line, _norm(channels, groups), nn.LeakyReLU(0.01, inplace=True))


class ResidualBlock(nn.Module):
    """x + convs(x), with `convs` 3x3x3 convolutions, factorised if `separable`."""

    def __init__(self, channels: int, convs: int, groups: int, separable: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(
                _separable_conv_norm(channels, groups) if separable else _conv_norm(channels, channels, groups)
                for _ in range(convs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer; forms the attention matrix only where a loss asks for it (eq. 1)."""

    def __init__(self, embed: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(embed)
        self.qkv = nn.Linear(embed, 3 * embed)
        self.project = nn.Linear(embed, embed)
        self.norm2 = nn.LayerNorm(embed)
        self.mlp = nn.Sequential(nn.Linear(embed, mlp), nn.GELU(), nn.Linear(mlp, embed))

    def forward(self, z: Tensor, return_attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """z: (N, tokens, embed) -> the same shape, and (N, heads, tokens, tokens) or None."""
        batch, count, embed = z.shape
        qkv = self.qkv(self.norm1(z)).reshape(batch, count, 3, self.heads, embed // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention = None
        if return_attention:
            attention = torch.softmax(q @ k.transpose(-2, -1) * (embed // self.heads) ** -0.5, dim=-1)
            mixed = attention @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        z = z + self.project(mixed.transpose(1, 2).reshape(batch, count, embed))
        return z + self.mlp(self.norm2(z)), attention


class TransformerNeck(nn.Module):
    """UNETR-like neck: patches of the 1/8 features -> transformer -> four taps merged on the way back to 1/8.

    Positions: a learned table for the paper's 5 x 6 x 4 grid (paper) or its compact equivalent, interpolated to
    whatever grid the input has. The deepest tap starts the way up; each doubling adds the next shallower tap.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels, embed = config.widths[-1], config.embed
        self.taps = tuple(config.layers * i // 4 for i in (1, 2, 3, 4))
        self.tap_kernel = config.tap_kernel
        self.embedding = nn.Conv3d(channels, embed, config.patch, stride=config.patch)
        base = tuple(side * 4 // config.patch for side in (5, 6, 4))
        self.position = nn.Parameter(torch.zeros(1, embed, *base))
        self.layers = nn.ModuleList(TransformerLayer(embed, config.heads, config.mlp) for _ in range(config.layers))
        self.tap_convs = nn.ModuleList(
            _conv_norm(embed, embed, config.groups, kernel=config.tap_kernel) for _ in self.taps
        )
        ups: list[nn.Module] = []
        inputs = embed
        for width in config.tap_widths:
            ups.append(nn.ConvTranspose3d(inputs, width, 2, stride=2))
            inputs = width
        self.ups = nn.ModuleList(ups)
        # The shallower taps join after the first doubling; those that join at 1/8 are doubled as often as the trunk.
        first = config.tap_widths[0]
        self.lateral = nn.ModuleList(nn.ConvTranspose3d(embed, first, 2, stride=2) for _ in self.taps[:-1])
        self.merge = _conv_norm(first, first, config.groups) if len(ups) > 1 else nn.Identity()
        self.out = _conv_norm(inputs, channels, config.groups)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor, want_features: bool) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        z = self.embedding(x)
        grid = z.shape[2:]
        position: Tensor = self.position
        if position.shape[2:] != grid:
            position = F.interpolate(position, size=grid, mode="trilinear", align_corners=False)
        z = (z + position).flatten(2).transpose(1, 2)
        attentions: list[Tensor] = []
        tapped: list[Tensor] = []
        for index, layer in enumerate(self.layers, start=1):
            tap = index in self.taps
            z, attention = layer(z, return_attention=want_features and tap)
            if attention is not None:
                attentions.append(attention)
            if tap:
                tapped.append(z.transpose(1, 2).reshape(z.shape[0], -1, *grid))
        # On the CPU torch (seen in 2.13) fills the weight gradient of a half-precision 3x3x3 convolution with garbage
        # where a side has fewer than three voxels.
        whole = z.device.type == "cpu" and min(grid) < self.tap_kernel
        with torch.autocast("cpu", enabled=False) if whole else contextlib.nullcontext():
            maps = [conv(t.float() if whole else t) for conv, t in zip(self.tap_convs, tapped)]
        y = self.ups[0](maps[-1])
        for lateral, tap_map in zip(self.lateral, maps[:-1]):
            y = y + lateral(tap_map)
        y = self.merge(y)
        for up in list(self.ups)[1:]:
            y = up(y)
        return self.out(y), tuple(attentions), tuple(maps) if want_features else ()


class MSTKDNet(nn.Module):
    """The segmentation network; teacher and student are both of this class.

    The availability mask (N, 4) scales and shifts the stem's and the neck's inputs, channel by channel, so that an
    absent sequence (all zeros, mask 0) and a dark one (zeros, mask 1) are different inputs.
    """

    def __init__(self, config: NetworkConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        widths, groups = config.widths, config.groups
        if config.light_stem:
            self.stem = nn.Conv3d(NUM_MODALITIES, widths[0], 4, stride=2, padding=1, bias=False)
        else:
            self.stem = nn.Conv3d(NUM_MODALITIES * config.stem_stride**3, widths[0], 3, padding=1, bias=False)
        self.stem_norm = _norm(widths[0], groups)
        self.stem_film = nn.Linear(NUM_MODALITIES, 2 * widths[0])
        self.deep_film = nn.Linear(NUM_MODALITIES, 2 * widths[-1])
        for film in (self.stem_film, self.deep_film):
            nn.init.zeros_(film.weight)
            nn.init.zeros_(film.bias)

        def blocks(width: int, count: int) -> nn.Sequential:
            return nn.Sequential(
                *(ResidualBlock(width, config.convs_per_block, groups, config.separable) for _ in range(count))
            )

        self.encoder = nn.ModuleList(blocks(w, n) for w, n in zip(widths, config.encoder_blocks))
        self.downs = nn.ModuleList(
            _conv_norm(a, b, groups, kernel=3, stride=2) for a, b in zip(widths[:-1], widths[1:])
        )
        self.neck = TransformerNeck(config)
        self.fuse = _conv_norm(2 * widths[-1], widths[-1], groups, kernel=1)
        self.decoder_first = _conv_norm(widths[-1], widths[-1], groups)
        self.decoder = nn.ModuleList(blocks(w, n) for w, n in zip(widths, config.decoder_blocks))
        self.ups = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for a, b in zip(widths[:-1], widths[1:]))
        self.skip_merge = nn.ModuleList(
            _conv_norm(2 * w, w, groups) if config.concatenate_skips else nn.Identity() for w in widths[:-1]
        )
        self.head = nn.Conv3d(widths[0], config.classes * config.stem_stride**3, 1)

    @staticmethod
    def _film(x: Tensor, film: nn.Linear, availability: Tensor) -> Tensor:
        scale, shift = film(availability)[:, :, None, None, None].to(x.dtype).chunk(2, dim=1)
        return torch.addcmul(shift, x, scale + 1)

    def _normalised_film(self, x: Tensor, norm: nn.GroupNorm, film: nn.Linear, availability: Tensor) -> Tensor:
        """`_film` of the normalised `x`; for one volume without gradients in one pass over memory instead of two."""
        if x.shape[0] > 1 or torch.is_grad_enabled():
            return self._film(norm(x), film, availability)
        scale, shift = film(availability)[0].to(norm.weight.dtype).chunk(2)
        return F.group_norm(x, norm.num_groups, norm.weight * (scale + 1), norm.bias * (scale + 1) + shift, norm.eps)

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and x.requires_grad:
            return checkpoint(module, x, use_reentrant=False)
        return module(x)

    def forward(self, x: Tensor, availability: Tensor, return_features: bool = False):
        """x (N, 4, D, H, W), zero where absent; availability (N, 4) of 0/1 -> logits (N, classes, D, H, W).

        With `return_features` a `Features` tuple comes back instead; without it nothing extra is computed or kept.
        Raises ValueError when a side is not a multiple of 32.
        """
        if x.ndim != 5 or x.shape[1] != NUM_MODALITIES or any(side % SIDE_MULTIPLE for side in x.shape[2:]):
            raise ValueError(f"expected (N, 4, D, H, W) with sides that are multiples of 32, got {tuple(x.shape)}")
        stride = self.config.stem_stride
        y = self.stem(space_to_depth(x, stride) if stride > 1 and not self.config.light_stem else x)
        y = F.leaky_relu(self._normalised_film(y, self.stem_norm, self.stem_film, availability), 0.01, inplace=True)
        skips: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            y = self._run(stage, y)
            if level < len(self.downs):
                skips.append(y)
                y = self._run(self.downs[level], y)
        f_enc = self._film(y, self.deep_film, availability)
        f_t, attentions, tokens = self.neck(f_enc, return_features)
        f_fused = self.fuse(torch.cat((f_enc, f_t), dim=1))
        f_dec = self.decoder_first(f_fused)
        y = self.decoder[-1](f_dec)
        for level in range(len(skips) - 1, -1, -1):
            y = self.ups[level](y)
            y = torch.cat((y, skips[level]), dim=1) if self.config.concatenate_skips else y + skips[level]
            y = self._run(self.decoder[level], self._run(self.skip_merge[level], y))
        y = self.head(y)
        logits = depth_to_space(y, stride) if stride > 1 else y
        if not return_features:
            return logits
        return Features(logits, attentions, tokens, f_enc, f_t, f_fused, f_dec)


def space_to_depth(x: Tensor, stride: int) -> Tensor:
    """(N, C, D, H, W) -> (N, C * stride^3, D/stride, H/stride, W/stride); the inverse of `depth_to_space`."""
    n, c, d, h, w = x.shape
    y = x.reshape(n, c, d // stride, stride, h // stride, stride, w // stride, stride)
    return y.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, c * stride**3, d // stride, h // stride, w // stride)


def depth_to_space(x: Tensor, stride: int) -> Tensor:
    """(N, C * stride^3, d, h, w) -> (N, C, d*stride, h*stride, w*stride)."""
    n, c, d, h, w = x.shape
    y = x.reshape(n, c // stride**3, stride, stride, stride, d, h, w)
    return y.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(n, c // stride**3, d * stride, h * stride, w * stride)


def build_network(preset: str, gradient_checkpointing: bool = False, **changes: object) -> MSTKDNet:
    """A freshly initialised network of a named preset; `changes` replace single fields of its configuration.

    Raises ValueError for an unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    config = replace(PRESETS[preset], **changes)  # type: ignore[arg-type]
    return MSTKDNet(config, gradient_checkpointing=gradient_checkpointing)


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def count_macs(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one forward pass of one volume of `shape` (D, H, W), convolutions and matrix products.

    Counted without data (meta device), so that no device's fused attention hides from the counter.
    """
    from torch.utils.flop_counter import FlopCounterMode

    twin = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.zeros(1, NUM_MODALITIES, *shape, device="meta"), torch.ones(1, NUM_MODALITIES, device="meta"))
    return counter.get_total_flops() // 2
