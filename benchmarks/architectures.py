"""One architecture per torchvision family: which graph of the zoo, which network, which input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """One row of the comparison.

    file: the graph in the zoo's torchvision folder, "" where it has none and the network is exported instead.
    shape: of the input, where there is no graph that tells it.
    """

    family: str
    network: str
    file: str = ""
    shape: tuple[int, ...] = ()


ARCHITECTURES = (
    Architecture("alexnet", "alexnet", shape=(1, 3, 224, 224)),
    Architecture("convnext", "convnext_tiny", "convnext_tiny__dy18"),
    Architecture("densenet", "densenet121", "densenet121__dy20"),
    Architecture("efficientnet", "efficientnet_b0", "efficientnet_b0__dy18"),
    Architecture("efficientnet v2", "efficientnet_v2_s", "efficientnet_v2_s__ts20"),
    Architecture("googlenet", "googlenet", "googlenet__dy18-b2"),
    Architecture("inception", "inception_v3", "inception_v3__ts15-b2-dynb"),
    Architecture("maxvit", "maxvit_t", "maxvit_t__ts12-bn-nocf"),
    Architecture("mnasnet", "mnasnet1_3", "mnasnet1_3__ts16-b4"),
    Architecture("mobilenet v2", "mobilenet_v2", "mobilenet_v2__ts16-b4"),
    Architecture("mobilenet v3", "mobilenet_v3_large", "mobilenet_v3_large__ts11-dynb"),
    Architecture("regnet x", "regnet_x_400mf", "regnet_x_400mf__ts10"),
    Architecture("regnet y", "regnet_y_400mf", "regnet_y_400mf__dy18"),
    Architecture("resnet, basic", "resnet18", "resnet18__ts11"),
    Architecture("resnet, bottleneck", "resnet50", "resnet50__dy18"),
    Architecture("resnext", "resnext50_32x4d", "resnext50_32x4d__dy18"),
    Architecture("wide resnet", "wide_resnet50_2", "wide_resnet50_2__ts18-bn-dynb"),
    Architecture("shufflenet", "shufflenet_v2_x0_5", "shufflenet_v2_x0_5__ts14-b2"),
    Architecture("squeezenet", "squeezenet1_0", "squeezenet1_0__ts20"),
    Architecture("swin", "swin_t", "swin_t__dy18"),
    Architecture("swin v2", "swin_v2_s", "swin_v2_s__ts17"),
    Architecture("vgg", "vgg11_bn", "vgg11_bn__ts17"),
    Architecture("vit", "vit_b_16", "vit_b_16__dy18"),
    Architecture("deeplab", "deeplabv3_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large__ts17"),
    Architecture("fcn", "fcn_resnet50", "fcn_resnet50__ts17"),
    Architecture("lraspp", "lraspp_mobilenet_v3_large", "lraspp_mobilenet_v3_large__ts13-dynb"),
    Architecture("faster r-cnn", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn__ts17"),
    Architecture("mask r-cnn", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn__ts17"),
    Architecture("keypoint r-cnn", "keypointrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn__ts17"),
    Architecture("retinanet", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn__ts17"),
    Architecture("fcos", "fcos_resnet50_fpn", "fcos_resnet50_fpn_body__dy18"),
    Architecture("ssd", "ssd300_vgg16", "ssd300_vgg16__ts17"),
    Architecture("ssdlite", "ssdlite320_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large__ts17"),
    Architecture("resnet 3d", "r3d_18", "r3d_18__ts17"),
    Architecture("mixed 3d", "mc3_18", "mc3_18__dy20-dynb"),
    Architecture("r(2+1)d", "r2plus1d_18", "r2plus1d_18__ts15-b2-dynb"),
    Architecture("s3d", "s3d", "s3d__dy21"),
    Architecture("mvit", "mvit_small_cfg", "mvit_small_cfg__dy18"),
    Architecture("swin 3d", "swin3d_t", "swin3d_t__ts17"),
    Architecture("raft", "raft_large", "raft_large__ts16"),
)
