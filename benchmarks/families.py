"""Sort zoo graphs into families, from the index alone (source, name, operator counts)."""

from __future__ import annotations

import re

from zoo import Entry

FAMILIES = ("cnn-classifier", "transformer", "recurrent", "detection-segmentation", "other")

# Networks whose output is a map, boxes, key points or masks.
DENSE = re.compile(
    r"smp/|deeplab|fcn_|lraspp|rcnn_|rpn_|retinanet|fcos|[/_]ssd|yolo|detr|deformable|owlvit|segm|segformer|mask_decoder|sam_"
    r"|unet|linknet|pspnet|pan_resnet|[/_]fpn_|upernet|icnet|bisenet|fastscnn|cgnet|lednet|lffd|centernet|segresnet"
    r"|/vnet|pose|depth_anything|dpt$|glpn|raft|disk|hardnet$|hynet|loftr|mtcnn|detection|landmark|siamrpn|_det$|_det_"
)
# Recommenders, and networks that make pictures, sound or features and so keep a wide output.
GENERATIVE = re.compile(
    r"deepctr/|diffusers/unet|/feat_|gan_|pix2pix|stylegan|edsr|espcn|rcan|swin2sr|vae_|vq_|_vae$|_dec$|encodec|seanet|/vits|hifigan|univnet|lpips"
    r"|wavenet|convtasnet|autoencoder|_fe$"
)
RECURRENT = re.compile(r"rwkv|mamba(?!out)|recurrent|efficientvim|silero")
RECURRENT_OPS = re.compile(r"(^|::)(LSTM|GRU|RNN|Scan|DynamicQuantizeLSTM)$")
FUSED_ATTENTION = re.compile(r"::.*Attention$|^Attention$")
CONVOLUTION = re.compile(r"(^|::|\.)(Conv|Conv[123]d|Conv2dNormActivation|FusedConv|QLinearConv|ConvInteger)(\.\d+)?$")
MATRIX_PRODUCT = re.compile(r"(^|::)(MatMul|Einsum|FusedMatMul|MatMulInteger|QLinearMatMul|DynamicQuantizeMatMul)$")
POOLED_OR_FLAT = re.compile(r"Gemm|MatMul|Linear|Pool|ReduceMean|Flatten")


def family(entry: Entry) -> str:
    """Name the family of one graph.

    Asked in this order:
    1. `other`: generators, codecs and feature extractors, by name ; recommenders.
    2. `detection-segmentation`: by name, since the operators of a U-Net and of a classifier are the same.
    3. `recurrent`: any LSTM, GRU, RNN or Scan node; state-space models by name.
    4. `transformer`: a fused attention operator, or Softmax together with the products and the transposition of an
       attention (see `_attends`). Hybrids (convolutions first, attention behind) are here.
    5. `cnn-classifier`: two or more convolutions over pictures or videos, and a pooling or fully connected layer.
    6. `other`: multi-layer perceptrons, recommenders, graph networks, one-dimensional CNNs, ...
    """
    name = f"{entry.source}/{entry.name}"
    if GENERATIVE.search(name):
        return "other"
    if DENSE.search(name):
        return "detection-segmentation"
    if RECURRENT.search(name) or _count(entry, RECURRENT_OPS):
        return "recurrent"
    if _attends(entry):
        return "transformer"
    return "cnn-classifier" if _classifies_pictures(entry) else "other"


def _count(entry: Entry, ops: re.Pattern[str]) -> int:
    return sum(count for op, count in entry.ops.items() if ops.search(op))


def _attends(entry: Entry) -> bool:
    """Tell attention (two matrix products around each Softmax) from a classifier that ends in a Softmax."""
    if _count(entry, FUSED_ATTENTION):
        return True
    softmax, products = entry.ops.get("Softmax", 0), _count(entry, MATRIX_PRODUCT)
    moves_axes = "Transpose" in entry.ops or "Einsum" in entry.ops
    return softmax >= 1 and moves_axes and products >= max(2 * softmax, 3)


def _classifies_pictures(entry: Entry) -> bool:
    picture = re.search(r"\[\w+(x\w+){3,4}\]", entry.inputs) is not None
    return picture and _count(entry, CONVOLUTION) >= 2 and _count(entry, POOLED_OR_FLAT) > 0
