"""Make torchvision networks with random weights for Torch-Pruning; runs under the interpreter that has torch.

torchvision is used for its network definitions only. Where its compiled half does not fit the installed torch, the
operators that the definitions call (nms, roi_align) are declared here, so that detectors run and can be exported.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DETECTORS = ("rcnn", "retinanet", "fcos", "ssd")
REFINEMENTS = 2
"""Of RAFT: how often the flow is updated; the graphs of the zoo have two."""

# What Torch-Pruning must leave alone, modules by dotted name: output layers, and what lies in front of the layers that
# it cannot reach (an R-CNN's proposals are cut off from the autograd graph; RAFT's motion encoder appends the flow).
# Its own examples name the same layers or more; less breaks the network or does not end.
PROPOSALS = "rpn.head.cls_logits rpn.head.bbox_pred backbone.fpn.layer_blocks "
BOXES = PROPOSALS + "roi_heads.box_predictor.cls_score roi_heads.box_predictor.bbox_pred "
SIX_SCALES = [
    f"head.{kind}_head.module_list.{scale}" for scale in range(6) for kind in ("classification", "regression")
]
IGNORED = {
    "deeplabv3": "classifier.4",
    "fcn": "classifier.4",
    "lraspp": "classifier.low_classifier classifier.high_classifier",
    "squeezenet": "classifier.1",
    "s3d": "classifier.1",
    "fasterrcnn": BOXES,
    "maskrcnn": BOXES + "roi_heads.mask_predictor.mask_fcn_logits",
    "keypointrcnn": BOXES + "roi_heads.keypoint_predictor",
    "retinanet": "head.classification_head.cls_logits head.regression_head.bbox_reg",
    "fcos": "head.classification_head.cls_logits head.regression_head.bbox_reg head.regression_head.bbox_ctrness",
    "ssdlite": " ".join(f"{scale}.1" for scale in SIX_SCALES),
    "ssd300": " ".join(SIX_SCALES),
    "raft_large": "update_block.motion_encoder update_block.flow_head.conv2 mask_predictor.conv",
    "raft_small": "update_block.motion_encoder update_block.flow_head.conv2",
}
# Keyword arguments beside `weights=None`, by family. Detectors let a few boxes of any score through: random weights are
# sure of nothing, and what no box reaches cannot be traced.
FEW = 20
ONE_STAGE = {"weights_backbone": None, "score_thresh": 0.0, "topk_candidates": FEW}
TWO_STAGES = {
    "weights_backbone": None,
    "trainable_backbone_layers": 5,
    "box_score_thresh": 0.0,
    "rpn_pre_nms_top_n_test": FEW,
    "rpn_post_nms_top_n_test": FEW,
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception": {"aux_logits": False, "init_weights": False},
    "fcn": {"weights_backbone": None},
    "deeplabv3": {"weights_backbone": None},
    "lraspp": {"weights_backbone": None},
    "fasterrcnn": TWO_STAGES,
    "maskrcnn": TWO_STAGES,
    "keypointrcnn": TWO_STAGES,
    "retinanet": {**ONE_STAGE, "trainable_backbone_layers": 5},
    "fcos": {**ONE_STAGE, "trainable_backbone_layers": 5},
    "ssd": ONE_STAGE,
}


@dataclass(frozen=True)
class Network:
    """A network, the arguments of its forward, and what Torch-Pruning must be told about it.

    Units
        heads: number of heads by layer. round_to: all widths become multiples of it. detects: the number of boxes, and
        with it the size of the outputs, depends on the data.
    """

    model: Any
    inputs: tuple[Any, ...]
    ignored: list[Any]
    heads: dict[Any, int]
    round_to: int | None
    detects: bool

    def run(self) -> list[Any]:
        """Run the network once and return its outputs as one list of tensors."""
        return tensors(self.model(*self.inputs))

    def shapes(self) -> list[tuple[int, ...]]:
        """Run the network once and return the shapes of its outputs."""
        return [tuple(t.shape) for t in self.run()]

    def params(self) -> int:
        """Count the elements of all parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def repair(self) -> None:
        """Set what a network remembers beside its weights; torchvision's ViT asks for its width in forward."""
        if hasattr(self.model, "hidden_dim") and hasattr(self.model, "conv_proj"):
            self.model.hidden_dim = self.model.conv_proj.out_channels


def tensors(value: Any) -> list[Any]:
    """Flatten what a torchvision network returns: a tensor, or a structure of them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors(part)]
    return [] if value is None else [value]


def build(name: str, shape: Sequence[int]) -> Network:
    """Make a network in evaluation mode, all weights trainable, and one random input of this shape for it."""
    torch, nn = importlib.import_module("torch"), importlib.import_module("torch.nn")
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator that cannot be exported
    torchvision = load_torchvision(torch)
    detects = any(part in name for part in DETECTORS)
    arguments = _of_family(ARGUMENTS, name) or {}
    if detects and "ssd" not in name:
        arguments = arguments | {"min_size": min(shape[-2:]), "max_size": max(shape[-2:])}
    small = name == "mvit_small_cfg"
    model = _small_mvit() if small else torchvision.models.get_model(name, weights=None, **arguments)
    model.eval().requires_grad_(True)
    inputs: tuple[Any, ...] = ([torch.rand(*shape[-3:])],) if detects else (torch.randn(*shape),)
    if name.startswith("raft"):
        inputs = (*inputs, torch.randn(*shape), REFINEMENTS)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    chosen = (_of_family(IGNORED, name) or "").split()
    ignored = [model.get_submodule(path) for path in chosen] or last
    widths = {m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    ignored = [m for m in ignored if m is not None]
    return Network(model, inputs, ignored, _heads(model), max(widths, default=None), detects)


def _of_family(table: dict[str, Any], name: str) -> Any:
    """Return the entry whose key begins a name."""
    return next((entry for key, entry in table.items() if name.startswith(key)), None)


def _heads(model: Any) -> dict[Any, int]:
    """Find the layers that project to query, key and value, and their number of heads.

    Not those of `nn.MultiheadAttention`: Torch-Pruning 1.6.1 then leaves the width of a ViT alone. Its own example
    rounds all widths to a multiple of the number of heads instead, which leaves less (`round_to`).
    """
    found = {}
    for module in model.modules():
        if hasattr(module, "qkv") and hasattr(module, "num_heads"):  # Swin, MViT
            found[module.qkv] = module.num_heads
        elif hasattr(module, "to_qkv"):  # MaxViT
            found[module.to_qkv] = module.n_heads
    return found


def _small_mvit() -> Any:
    """Make the MViT of three blocks that the zoo has, with every kind of block that the large ones have."""
    mvit = importlib.import_module("torchvision.models.video.mvit")
    kernel = [3, 3, 3]
    widths = [(1, 32, 32), (2, 32, 64), (2, 64, 64)]
    strides = [([1, 1, 1], [1, 4, 4]), ([1, 2, 2], [1, 2, 2]), ([1, 1, 1], [1, 2, 2])]
    blocks = [mvit.MSBlockConfig(*width, kernel, kernel, *stride) for width, stride in zip(widths, strides)]
    return mvit.MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=blocks,
        num_classes=20,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
    )


def export(network: Network, path: Path) -> None:
    """Write a network as ONNX with the exporter that needs no further package (TorchScript)."""
    torch = importlib.import_module("torch")
    names = [f"output_{i}" for i, _ in enumerate(network.run())]
    with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null), torch.no_grad():
        torch.onnx.export(network.model, network.inputs, str(path), dynamo=False, opset_version=17, output_names=names)


def load_torchvision(torch: Any) -> Any:
    """Import torchvision; what its compiled half defines is declared where that half does not load."""
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    origin = importlib.util.find_spec("torchvision")
    for compiled in Path(origin.origin).parent.glob("_C*.so") if origin and origin.origin else ():
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(compiled))
    if hasattr(torch.ops.torchvision, "nms"):
        return importlib.import_module("torchvision")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor"
    )
    torchvision: Any = importlib.import_module("torchvision")
    _implement(torch, importlib.import_module("torchvision.ops.roi_align"))
    torchvision._library = library  # the definitions live as long as this
    return torchvision


def _has_operators() -> bool:
    return True


def _implement(torch: Any, rois: Any) -> None:
    """Give the declared operators their meaning: torchvision's own Python for roi_align, and a plain nms.

    roi_align is one node of the autograd graph, as the compiled one is; nobody asks for its gradient.
    """
    extension: Any = importlib.import_module("torchvision.extension")
    extension._has_ops = _has_operators
    rois._has_ops = _has_operators
    aligned: Callable[..., Any] = inspect.unwrap(rois._roi_align)
    torch.library.impl("torchvision::roi_align", "CPU", lambda *arguments: aligned(*arguments))
    torch.library.impl("torchvision::nms", "CPU", lambda boxes, scores, limit: _nms(torch, boxes, scores, limit))
    torch.library.register_autograd("torchvision::roi_align", lambda context, gradient: (gradient, *[None] * 6))


def _nms(torch: Any, boxes: Any, scores: Any, limit: float) -> Any:
    """Keep the best box, drop what overlaps it by more than the limit, and so on."""
    left, top, right, bottom = boxes.unbind(1)
    area = (right - left) * (bottom - top)
    order, kept = scores.argsort(descending=True, stable=True), []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        width = torch.minimum(right[best], right[rest]) - torch.maximum(left[best], left[rest])
        height = torch.minimum(bottom[best], bottom[rest]) - torch.maximum(top[best], top[rest])
        overlap = width.clamp(min=0) * height.clamp(min=0)
        order = rest[overlap <= limit * (area[best] + area[rest] - overlap)]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64)
