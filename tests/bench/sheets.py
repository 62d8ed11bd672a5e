"""Contact sheets: the photos, held-out frames, and the poses that photos do not show."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avtool.artifacts.track import Track
from avtool.cameras import orbit_viewmats
from avtool.capture.samples import load_samples
from avtool.head import HeadParams
from avtool.prior.evaluate import ERROR_GAIN, EvalOptions, Evaluation, Subject, on_background, render_samples, spread, to_bytes

TURN = math.radians(30)
COLUMNS = 6
WHITE = torch.ones(3)


def contact_sheet(subject: Subject, train: Track, result: Evaluation, size: int = 256) -> NDArray[np.uint8]:
    """Rows: photos real | render; test frames real, render, error; neutral, turned +-30 degrees, eyes shut, mouth open, both turned."""
    indices = list(range(min(3, len(train.frames))))
    samples = load_samples(train, indices, size, with_matte=True)
    options = EvalOptions(size=size)
    real, fitted = on_background(samples, options.background), render_samples(subject, samples, options, refine=True)
    picked = [result.shown[i] for i in spread(len(result.shown), COLUMNS)]
    rows = [
        ("photos and their fit", [*real, *fitted]),
        ("held out, real", [pair[0] for pair in picked]),
        ("held out, rendered", [pair[1] for pair in picked]),
        ("error x 3", [np.abs(pair[1] - pair[0]) * ERROR_GAIN for pair in picked]),
        ("neutral, -30, +30 degrees, eyes shut, mouth open, mouth open +30", pose_row(subject, samples, size)),
    ]
    return np.concatenate([_row(label, images, size) for label, images in rows])


def pose_row(subject: Subject, samples, size: int) -> list[NDArray[np.float32]]:
    """Six pictures of poses and expressions, seen from the distance and field of view of the first photo."""
    names = list(subject.head.expression_names)
    weights = {"blink": ("eyeBlinkLeft", "eyeBlinkRight"), "open": ("jawOpen",)}
    rotation, translation = samples.viewmats[0, :3, :3], samples.viewmats[0, :3, 3]
    radius = float((-rotation.T @ translation).norm())
    pictures = []
    for yaw, kind in ((0, ""), (-TURN, ""), (TURN, ""), (0, "blink"), (0, "open"), (TURN, "open")):
        expression = torch.zeros(1, subject.head.num_expression)
        for name in weights.get(kind, ()):
            expression[0, names.index(name)] = 1.0 if kind == "blink" else 0.7
        zero = torch.zeros(1, 3)
        params: HeadParams = subject.params_for(expression, zero, zero, zero, torch.zeros(1, 2, 3))
        K = samples.Ks[:1].clone()
        K[:, 0, 2] = K[:, 1, 2] = size / 2
        viewmats = orbit_viewmats([yaw], [0.0], radius, (0.0, 0.0, 0.0))
        with torch.no_grad():
            image, _ = subject.render(params, viewmats, K, size, size, background=WHITE, refine=True)
        pictures.append(image[0].clamp(0, 1).numpy())
    return pictures


def _row(label: str, images: list[NDArray[np.float32]], size: int) -> NDArray[np.uint8]:
    blank = [np.ones((size, size, 3), np.float32)] * (COLUMNS - len(images))
    strip = Image.new("RGB", (COLUMNS * size, 16), "white")
    ImageDraw.Draw(strip).text((4, 2), label, fill="black")
    return np.concatenate([np.asarray(strip), to_bytes(np.concatenate([*images, *blank], axis=1))])
