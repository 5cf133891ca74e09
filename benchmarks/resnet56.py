"""ResNet-56 for CIFAR as a torch module, with the weights of its ONNX file; needs torch and onnx."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn

BLOCKS = 9
"""Of each of the three stages."""
WIDTHS = (16, 32, 64)


class Block(nn.Module):  # type: ignore[misc]
    """Two convolutions and a shortcut."""

    def __init__(self, wide: int, out: int, stride: int, normalised: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, out, 3, stride, 1, bias=not normalised)
        self.bn1 = nn.BatchNorm2d(out) if normalised else nn.Identity()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=not normalised)
        self.bn2 = nn.BatchNorm2d(out) if normalised else nn.Identity()
        self.shortcut = nn.Sequential()
        if stride > 1:
            norm = nn.BatchNorm2d(out) if normalised else nn.Identity()
            self.shortcut = nn.Sequential(nn.Conv2d(wide, out, 1, stride, bias=not normalised), norm)

    def forward(self, x: Any) -> Any:
        """Run the block."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet56(nn.Module):  # type: ignore[misc]
    """A first convolution, three stages, the mean over all places and the last layer."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=not normalised)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0]) if normalised else nn.Identity()
        wide = WIDTHS[0]
        for stage, out in enumerate(WIDTHS):
            strides = [2 if stage else 1] + [1] * (BLOCKS - 1)
            wides = [wide] + [out] * (BLOCKS - 1)
            blocks = [Block(w, out, stride, normalised) for w, stride in zip(wides, strides)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            wide = out
        self.linear = nn.Linear(wide, 10)

    def forward(self, x: Any) -> Any:
        """Return the logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))

    def stream(self) -> list[Any]:
        """Return the layers that write to the residual stream."""
        blocks = [m for m in self.modules() if isinstance(m, Block)]
        shortcuts = [b.shortcut[0] for b in blocks if len(b.shortcut)]
        return [self.conv1, *(b.conv2 for b in blocks), *shortcuts]


def load(path: Path, normalised: bool) -> ResNet56:
    """Build the network with the weights of the file; nodes are named after the modules that they came from."""
    graph = onnx.load(path).graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    alias = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity"}
    keys = {
        "Conv": ("weight", "bias"),
        "Gemm": ("weight", "bias"),
        "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
    }
    state = {}
    for node in graph.node:
        for key, name in zip(keys.get(node.op_type, ()), node.input[1:]):
            state[f"{module(node.name)}.{key}"] = torch.from_numpy(arrays[alias.get(name, name)].copy())
    network = ResNet56(normalised)
    missing = network.load_state_dict(state, strict=False)
    left = [name for name in missing.missing_keys if not name.endswith("num_batches_tracked")]
    if left or missing.unexpected_keys:
        raise ValueError(f"the file does not fit the network: {left} {missing.unexpected_keys}")
    return network.eval()


def module(node: str) -> str:
    """Return the dotted name of a module: '/layer2/layer2.0/conv1/Conv' is 'layer2.0.conv1'."""
    parts = node.strip("/").split("/")[:-1]
    return ".".join(part for part, after in zip(parts, [*parts[1:], ""]) if not after.startswith(part + "."))


def copied(network: ResNet56) -> ResNet56:
    """Return a copy, with the gradients."""
    made = copy.deepcopy(network)
    for new, old in zip(made.parameters(), network.parameters()):
        new.grad = None if old.grad is None else old.grad.clone()
    return made


def example() -> Any:
    """Return one input."""
    return torch.zeros(1, 3, 32, 32)


def gradients(network: ResNet56, x: Any, y: Any, batch: int) -> None:
    """Leave the gradients of the mean cross-entropy in the parameters."""
    network.zero_grad()
    for at in range(0, len(x), batch):
        logits = network(x[at : at + batch])
        loss = nn.functional.cross_entropy(logits, y[at : at + batch].long(), reduction="sum") / len(x)
        loss.backward()


def reestimate(network: ResNet56, x: Any, batch: int) -> None:
    """Give every BatchNorm the mean and variance of what it now gets, as averages over the batches."""
    for norm in [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    with torch.no_grad():
        for at in range(0, len(x), batch):
            network(x[at : at + batch])
    network.eval()


def macs(network: ResNet56) -> int:
    """Count the multiply-accumulates of convolutions and of the last layer for one image."""
    total = 0

    def add(layer: Any, _: Any, out: Any) -> None:
        nonlocal total
        total += layer.weight.numel() * out[0, 0].numel()

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        network(example())
    for hook in hooks:
        hook.remove()
    return total


def export(network: ResNet56, path: str) -> None:
    """Write the network as ONNX with the exporter that needs no further package (TorchScript)."""
    names = {"input_names": ["input"], "output_names": ["logits"], "dynamic_axes": {"input": {0: "n"}}}
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        torch.onnx.export(network, (example(),), path, dynamo=False, opset_version=17, **names)
