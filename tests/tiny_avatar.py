"""A tiny avatar with random weights and pictures of it: what reenact and eval are tested on in seconds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from avtool.artifacts.track import Frame, Track
from avtool.gaussians.seeding import seed_points
from avtool.head import PARTS, HeadParams, load_head_model
from avtool.prior.avatar import Avatar
from avtool.prior.gapnet import PRESETS, GapNet
from avtool.prior.refiner import Refiner
from avtool.prior.synthesis import base_scales, bound_points

SIZE = 96


def make_avatar() -> Avatar:
    """An untrained avatar at uv 64: the seeded head in skin color, weights from seed 0."""
    torch.manual_seed(0)
    head = load_head_model()
    binding = seed_points(head, 64)
    config = PRESETS["tiny"]
    gapnet = GapNet(config, binding.part_sizes(len(PARTS)), base_scales(head, binding), bound_points(head, binding))
    for weight in (gapnet.appearance_mlp.weights[-1],):
        torch.nn.init.normal_(weight, std=0.3)
    refiner = Refiner(config.appearance_channels, 8)
    identity = 0.5 * torch.randn(head.num_identity)
    return Avatar(head, binding, gapnet, refiner, torch.zeros(1, config.num_parts, config.code_channels), identity)


def make_frames(avatar: Avatar, count: int, size: int = SIZE) -> list[Frame]:
    """Frames of a person who turns and opens the mouth, seen by a frontal camera; pictures are not written yet."""
    head = avatar.head
    jaw = list(head.expression_names).index("jawOpen")
    frames = []
    for k in range(count):
        yaw = 0.3 * math.sin(2 * math.pi * k / count)
        viewmat = np.eye(4)
        turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
        viewmat[:3, :3] = np.diag([1.0, -1.0, -1.0]) @ turn
        viewmat[:3, 3] = (0, 0.05, 1.0)
        expression = np.zeros(head.num_expression)
        expression[jaw] = 0.6 * k / max(count - 1, 1)
        K = np.array([[2.2 * size, 0, size / 2], [0, 2.2 * size, size / 2], [0, 0, 1.0]])
        zero = np.zeros(3)
        frames.append(
            Frame(
                image=None, frame_idx=k, width=size, height=size, K=K, viewmat=viewmat, expression=expression,
                neck=zero, head=zero, jaw=zero, eyes=np.zeros((2, 3)), crop=(0.0, 0.0, float(size)), timestamp=k / 25,
            )
        )  # fmt: skip
    return frames


def clip_track(avatar: Avatar, video: Path, count: int) -> Track:
    """A track that says the avatar's own person moves in `video` (25 frames/s)."""
    identity = avatar.identity.numpy()
    return Track(avatar.head_model_id, identity, make_frames(avatar, count), video=video.name, fps=25.0, base=video.parent)


def photo_track(avatar: Avatar, folder: Path, count: int) -> Track:
    """Pictures of the avatar on gray with exact mattes, parameters and landmarks, written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = make_frames(avatar, count)
    track = Track(avatar.head_model_id, avatar.identity.numpy(), frames, video="none", fps=25.0, base=folder)
    p: HeadParams = track.params()
    params = avatar.params_for(p.expression, p.neck, p.head, p.jaw, p.eyes)
    with torch.no_grad():
        images, alphas = avatar.render(params, track.viewmats(), track.Ks(), SIZE, SIZE, background=(0.5, 0.5, 0.5))
        points = avatar.head.landmarks(avatar.head(params).vertices)
    from dataclasses import replace

    from avtool.cameras import project

    uv, _ = project(points, track.viewmats(), track.Ks())
    done = []
    for k, frame in enumerate(frames):
        for name, picture in ((f"{k}.png", images[k]), (f"{k}_matte.png", alphas[k, ..., 0])):
            Image.fromarray((picture * 255).round().to(torch.uint8).numpy()).save(folder / name)
        landmarks = np.zeros((478, 2))
        landmarks[avatar.head.landmark_ids.numpy()] = uv[k].numpy()
        done.append(replace(frame, image=f"{k}.png", frame_idx=None, matte=f"{k}_matte.png", landmarks=landmarks))
    return replace(track, frames=done, video=None, fps=None)
