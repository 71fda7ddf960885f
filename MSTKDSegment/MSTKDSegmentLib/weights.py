"""Weights bundle: one zip with `card.json` (what the network is and how well it does) and `weights.pt` (fp16 tensors).

The card holds the sha256 of `weights.pt`. Loading checks the sum and the preset, reads tensors only
(`weights_only=True`: no code in the file is run) and refuses everything else with one clear line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import WeightsError
from .shipped_files import places

if TYPE_CHECKING:
    from .network import MSTKDNet

FORMAT = 1
CARD, WEIGHTS = "card.json", "weights.pt"
DEFAULT_NAME = "mstkd-compact.zip"
MAX_CARD_BYTES = 4 << 20
MAX_WEIGHTS_BYTES = 2 << 30
REQUIRED_FIELDS = ("format", "name", "preset", "network", "sha256", "licence", "training", "metrics")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its card, the raw bytes of its weights, and where it came from."""

    card: Mapping[str, Any]
    weights: bytes
    source: str

    @property
    def sha256(self) -> str:
        return str(self.card["sha256"])

    @property
    def identity(self) -> str:
        """Changes with the weights and with the card's rules for what is drawn from what they say."""
        rules = [self.card.get("decision", {}), self.card.get("clean_up", {})]
        return f"{self.sha256} {hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]}"

    def expected_dice(self, subset: tuple[str, ...]) -> dict[str, float] | None:
        """Mean validation Dice by region for `subset`, or None when the card does not say."""
        row = self.card["metrics"].get("subsets", {}).get("+".join(subset))
        return None if row is None else {region: float(row[region]) for region in ("WT", "TC", "ET")}


def default_bundle_path() -> Path:
    """The bundle shipped with the product: beside the package (Slicer, checkout) or inside it (a wheel)."""
    known = places("Models", DEFAULT_NAME)
    for place in known:
        if place.is_file():
            return place
    raise WeightsError(f"the shipped weights are missing ({known[0]}); reinstall, or give a bundle with --weights")


def write_bundle(path: Path, state: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    """Write `state` (name -> tensor, stored as fp16) and `card` to `path`, the weights' sha256 added.

    The same tensors and card give the same bytes. Written under a temporary name, then renamed.
    """
    weights = _stored(state)
    digest = hashlib.sha256(weights).hexdigest()
    full_card = {**card, "format": FORMAT, "sha256": digest}
    missing = [name for name in REQUIRED_FIELDS if name not in full_card]
    if missing:
        raise WeightsError(f"{path}: the card lacks {', '.join(missing)}")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in ((CARD, json.dumps(full_card, indent=1).encode()), (WEIGHTS, weights)):
                archive.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def weights_sha256(state: Mapping[str, Any]) -> str:
    """The sha256 that a bundle of `state` (name -> tensor) has in its card."""
    return hashlib.sha256(_stored(state)).hexdigest()


def _stored(state: Mapping[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu().half().contiguous() for name, value in state.items()}, buffer)
    return buffer.getvalue()


def read_bundle(path: str | Path | None = None) -> Bundle:
    """Read and check a bundle (the shipped one when `path` is None).

    Raises WeightsError when the file is missing, is no bundle, is damaged (sha256), or its card is incomplete.
    """
    place = default_bundle_path() if path is None else Path(path)
    if not place.is_file():
        raise WeightsError(f"{place}: no such weights file; give the .zip bundle that `training export` wrote")
    try:
        with zipfile.ZipFile(place) as archive:
            card_bytes = _member(archive, CARD, MAX_CARD_BYTES, place)
            weights = _member(archive, WEIGHTS, MAX_WEIGHTS_BYTES, place)
        card = json.loads(card_bytes)
    # RuntimeError: damaged bytes that look like encryption or a compression method that Python does not have.
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise WeightsError(
            f"{place}: not a weights bundle, or damaged ({error}); download or export it again"
        ) from error
    _check_card(card, place)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != card["sha256"]:
        raise WeightsError(
            f"{place}: the weights do not match their card (sha256 {digest[:12]}..., card says "
            f"{str(card['sha256'])[:12]}...); the file is damaged or was changed, download or export it again"
        )
    return Bundle(card, weights, str(place))


def _member(archive: zipfile.ZipFile, name: str, limit: int, place: Path) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise WeightsError(f"{place}: not a weights bundle, {name} is missing in it") from None
    if info.file_size > limit:
        raise WeightsError(f"{place}: {name} claims {info.file_size} bytes, more than any bundle of ours")
    return archive.read(info)


def _check_card(card: object, place: Path) -> None:
    if not isinstance(card, dict):
        raise WeightsError(f"{place}: the card is not a JSON object")
    missing = [name for name in REQUIRED_FIELDS if name not in card]
    if missing:
        raise WeightsError(f"{place}: the card lacks {', '.join(missing)}; export the bundle again")
    if card["format"] != FORMAT:
        raise WeightsError(
            f"{place}: bundle format {card['format']}, this version reads format {FORMAT}; update the software"
        )
    metrics = card["metrics"]
    if not isinstance(metrics, dict) or not isinstance(metrics.get("subsets", {}), dict):
        raise WeightsError(f"{place}: the card's metrics are not a table by subset; export the bundle again")


def load_network(bundle: Bundle) -> MSTKDNet:
    """The bundle's network in evaluation mode, fp32, on the CPU.

    Raises WeightsError when preset or configuration is not the one this version builds, or tensors do not fit.
    """
    import torch

    from .network import PRESETS, build_network

    preset = bundle.card["preset"]
    if preset not in PRESETS:
        raise WeightsError(f"{bundle.source}: made for preset {preset!r}; this version knows {', '.join(PRESETS)}")
    known = json.loads(json.dumps(PRESETS[preset].to_dict()))
    # Trained on post-treatment cases, a network may have a fifth class, the resection cavity.
    if isinstance(bundle.card["network"], dict) and bundle.card["network"].get("classes") == known["classes"] + 1:
        known["classes"] += 1
    if bundle.card["network"] != known:
        theirs = bundle.card["network"] if isinstance(bundle.card["network"], dict) else {}
        different = [
            field.name for field in dataclasses.fields(PRESETS[preset]) if theirs.get(field.name) != known[field.name]
        ]
        raise WeightsError(
            f"{bundle.source}: its {preset!r} network differs from this version's in {', '.join(different)}; "
            "use a bundle exported by this version"
        )
    try:
        state = torch.load(io.BytesIO(bundle.weights), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; each means the same to the user
        raise WeightsError(f"{bundle.source}: the weights cannot be read safely ({type(error).__name__})") from error
    with torch.device("meta"):
        network = build_network(preset, classes=known["classes"])
    try:
        network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    except (RuntimeError, AttributeError) as error:
        first = str(error).splitlines()[0]
        raise WeightsError(f"{bundle.source}: the tensors do not fit preset {preset!r} ({first})") from error
    return network.requires_grad_(False).eval()
