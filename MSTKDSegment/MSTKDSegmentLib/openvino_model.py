"""From the torch network to OpenVINO's form of it.

Nothing here knows the network's layers: it is traced, so that every preset and every later version converts.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

from .modalities import MODALITIES

if TYPE_CHECKING:
    from .network import MSTKDNet

# (D, H, W) of the volume that is traced: small, and of no preset's own grid of positions, so that these are
# interpolated in the traced network as well.
TRACED_SHAPE = (32, 64, 32)


def convert(network: MSTKDNet) -> Any:
    """`openvino.Model` of `network`: (1, 4, D, H, W) and (1, 4) float32 -> logits (1, classes, D, H, W), any sides.

    Raises RuntimeError where OpenVINO cannot convert.
    """
    import torch

    openvino = silent_openvino()
    network.to(torch.device("cpu"), memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    count = len(MODALITIES)
    example = (torch.zeros(1, count, *TRACED_SHAPE), torch.ones(1, count))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every check of the input's shape
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        model = openvino.convert_model(traced, example_input=example)
    model.reshape({0: openvino.PartialShape([1, count, -1, -1, -1]), 1: openvino.PartialShape([1, count])})
    return model


def silent_openvino() -> Any:
    """The module `openvino`, which otherwise reports its import and each conversion to its makers over the internet.

    Without the package openvino_telemetry, which pip installs with it, it falls back to a stub of its own. A program
    that has imported openvino before keeps what it has.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: an import of it fails
    import openvino

    return openvino
