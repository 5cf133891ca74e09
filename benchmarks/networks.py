"""Make torchvision networks with random weights for Torch-Pruning; runs under the interpreter that has torch.

torchvision is used for its network definitions only. Where its compiled half does not fit the installed torch, the
operators that the definitions call (nms, roi_align) are declared here, so that the detectors run and can be exported.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DETECTORS = ("rcnn", "retinanet", "fcos", "ssd")
Modules = Sequence[Any]


@dataclass
class Network:
    """A network, how it is called, and what Torch-Pruning must be told about it."""

    model: Any
    inputs: tuple[Any, ...]
    ignored: list[Any] = field(default_factory=list)
    heads: dict[Any, int] = field(default_factory=dict)

    def forward(self, model: Any = None, inputs: Any = None) -> list[Any]:
        """Run the network and return its outputs as one list of tensors."""
        return tensors(self.model(*self.inputs))


def tensors(value: Any) -> list[Any]:
    """Flatten what a torchvision network returns: a tensor, or a structure of them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors(part)]
    return [] if value is None else [value]


def load_torchvision(torch: Any) -> Any:
    """Import torchvision; what its compiled half defines is declared where that half does not load."""
    origin = importlib.util.find_spec("torchvision")
    for compiled in Path(origin.origin).parent.glob("_C*.so") if origin and origin.origin else ():
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(compiled))
    if hasattr(torch.ops.torchvision, "nms"):
        return importlib.import_module("torchvision")
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor"
    )
    torchvision = importlib.import_module("torchvision")
    roi_align = inspect.unwrap(importlib.import_module("torchvision.ops.roi_align")._roi_align)
    torch.library.impl("torchvision::nms", "CPU", _nms_of(torch))
    torch.library.impl("torchvision::roi_align", "CPU", roi_align)
    torchvision.extension._has_ops = _has_operators
    return torchvision
