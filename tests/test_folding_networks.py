"""Networks of many kinds with 30% of the filters zeroed: equal outputs, and every width as worked out by hand."""

from __future__ import annotations

import random

import onnx
import pytest
from folding import FOLD, folded, units
from zeroing import with_zeros

from fixtures import GRAPHS, load_graph
from fixtures.tiny import TINY
from fixtures.widths import Widths
from prunepass import load
from prunepass.manager import Pipeline

PLAIN = ("conv_chain", "residual")
SMALL = {"conv_chain": {"image": (1, 3, 16, 16)}}
NETWORKS = (
    "custom_mnist_cnn__ts7",
    "pytorchcv_resnet20_cifar10__ts11",
    "mindspore_resnet__orig",
    "jax_resblock_dw__jx21-dynb",
    "timm_test_efficientnet__ts13-dynb",
    "hf_bert_seqcls_eager__ts14",
)
WAYS = ("w", "wb", "wbn")


def zeroed(name: str, ways: str) -> onnx.ModelProto:
    """Return a canonical model with zeros in 30% of its channels."""
    source = TINY[name]()[0] if name in TINY else load_graph(name)
    model = Pipeline.parse("canonicalize").run(load(source)).graph.to_proto()
    assert with_zeros(model, random.Random(len(name)), ways=ways) > 3
    return model


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("name", [*PLAIN, "pytorchcv_resnet20_cifar10__ts11"])
def test_every_width_is_as_expected(name: str, ways: str) -> None:
    model = zeroed(name, ways)
    facts = folded(model, shapes=SMALL.get(name, {}))
    wanted = Widths(model).expected()
    made = {n.inputs[1]: facts.graph.consts.shape(n.inputs[1])[0] for n in facts.graph.nodes if n.op == "Conv"}
    assert made == {name: wanted[name] for name in made}
    assert units(facts) > 3


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in NETWORKS[-2:] else pytest.mark.slow) for name in GRAPHS]
)
def test_networks_compute_the_same(name: str, ways: str) -> None:
    source = load_graph(name)
    with_zeros(source, random.Random(len(name)), ways=ways)
    facts = Pipeline.parse(FOLD).run(load(source))
    faults = facts.get("verify").details
    assert [fault for fault in faults if "NaN or infinity" not in fault and "no output is finite" not in fault] == []
    assert Pipeline.parse(FOLD).run(facts.graph.copy()).cuts == []
