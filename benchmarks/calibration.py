"""Calibration data for the pretrained networks, and their quality on data that calibration never sees.

Images: CIFAR from its training images, photographs from the first half (quality is measured on the second). Text lines:
the second half (measured: the first). File samples: what `quality.filetype` leaves out of its first 800. Sound: clips
from the tenth (nsnet2) or fifteenth (silero) on, the measured ones come before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]


def feeds_for(quality: Any, network: str, session: Any, samples: int) -> Iterator[Feeds]:
    """Yield calibration batches for a network; `session` runs the dense model, for recurrent states."""
    return MAKERS[network](quality, network, session, samples)


def measured(quality: Any, network: str, model: bytes | str | None) -> float:
    """Measure a model on the held-out part."""
    source = str(quality.HERE / f"{network}.onnx") if model is None else model
    original_data, original_clips = quality.data, quality.clips

    def second_half(name: str) -> dict[str, np.ndarray]:
        found = original_data(name)
        return {k: v[250:] if k in ("x", "y", "y200") else v for k, v in found.items()}

    try:
        if network in PHOTOS:
            quality.data = second_half
        if network == "silero_vad_16k":
            quality.clips = lambda: original_clips()[:15]
        return float(quality.measure(network, source, MEASURED.get(network)))
    finally:
        quality.data, quality.clips = original_data, original_clips


PHOTOS = ("mobilenet_v2_imagenet", "efficientnet_lite0_imagenet")
MEASURED = {"mobilenet_v2_imagenet": 250, "efficientnet_lite0_imagenet": 250, "ppocrv4_rec": 150, "magika_v3_3": 800}


def _batched(name: str, x: np.ndarray, size: int = 32) -> Iterator[Feeds]:
    for at in range(0, len(x), size):
        yield {name: x[at : at + size]}


def _cifar(quality: Any, network: str, session: Any, samples: int) -> Iterator[Feeds]:
    x = quality.cifar_input(quality.data("cifar10.npz")["xtr"][:samples])
    return _batched(session.get_inputs()[0].name, x, max(1, min(32, samples // 10)))


def _photos(quality: Any, network: str, session: Any, samples: int) -> Iterator[Feeds]:
    mean, std = quality.IMAGENET if network.startswith("mobilenet") else (np.float32(0.498), np.float32(0.502))
    x = quality.data("avc500.npz")["x"][: min(250, samples)]
    name = session.get_inputs()[0].name
    for at in range(0, len(x), 10):
        yield {name: np.stack([quality.photo_input(a, mean, std) for a in x[at : at + 10]])}


def _lines(quality: Any, network: str, session: Any, samples: int) -> Iterator[Feeds]:
    from PIL import Image

    d, at = quality.data("ocr_lines.npz"), 0
    name = session.get_inputs()[0].name
    for number, shape in enumerate(d["shape"]):
        size = int(np.prod(shape))
        pixels = d["buf"][at : at + size].reshape(shape)[..., ::-1]
        at += size
        if 150 <= number < 150 + samples:
            image = Image.fromarray(np.ascontiguousarray(pixels))
            wide = max(16, round(image.width * 48 / image.height))
            x = np.asarray(image.resize((wide, 48), Image.BILINEAR), np.float32) / 255
            yield {name: ((x - 0.5) / 0.5).transpose(2, 0, 1)[None]}


def _files(quality: Any, network: str, session: Any, samples: int) -> Iterator[Feeds]:
    d = quality.data("magika_files.npz")
    pick = np.random.default_rng(0).permutation(len(d["y"]))[800:][:samples]
    return _batched(session.get_inputs()[0].name, d["x"][pick].astype(np.int32), 16)


def _voice(quality: Any, network: str, session: Any, samples: int) -> Iterator[Feeds]:
    rng, speech = np.random.default_rng(7), quality.clips()[15:]
    state, tail = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    left = samples
    while left > 0:
        a = speech[rng.integers(len(speech))]
        at = rng.integers(0, max(1, len(a) - 32000))
        a = a[at : at + 32000] / (np.sqrt((a[at : at + 32000] ** 2).mean()) + 1e-9) * 0.05
        x = np.concatenate([np.zeros(rng.integers(12000, 32000), np.float32), a])
        x = (x + quality.pink(rng, len(x)) * 0.05 * 10 ** (-5 / 20)).astype(np.float32)
        for i in range(0, len(x) - 512, 512):
            z = np.concatenate([tail, x[None, i : i + 512]], 1)
            if i % 2048 == 0 and left > 0:  # neighbours are alike
                left -= 1
                yield {"input": z, "state": state}
            state = session.run(None, {"input": z, "state": state})[1]
            tail = z[:, -64:]


def _noisy(quality: Any, network: str, session: Any, samples: int) -> Iterator[Feeds]:
    rng, size, hop = np.random.default_rng(7), 320, 160
    window = np.sqrt(np.hanning(size + 1)[:size])
    for k, a in enumerate(quality.clips()[10:][:samples]):
        a = a[:64000] / (np.sqrt((a[:64000] ** 2).mean()) + 1e-9) * 0.05
        noise = quality.pink(rng, len(a)) if k % 2 else rng.standard_normal(len(a))
        x = (a + noise * 0.05 * 10 ** (-5 / 20)).astype(np.float32)
        spec = np.stack([np.fft.rfft(x[i : i + size] * window) for i in range(0, len(x) - size, hop)])
        yield {session.get_inputs()[0].name: np.log10(np.maximum(np.abs(spec) ** 2, 1e-12))[None].astype(np.float32)}


MAKERS: dict[str, Callable[[Any, str, Any, int], Iterator[Feeds]]] = {
    "resnet56_cifar10": _cifar,
    "resnet56_cifar10_bn": _cifar,
    "mobilenet_v2_imagenet": _photos,
    "efficientnet_lite0_imagenet": _photos,
    "ppocrv4_rec": _lines,
    "magika_v3_3": _files,
    "silero_vad_16k": _voice,
    "nsnet2_16k": _noisy,
}
