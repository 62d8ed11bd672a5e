"""Draws the fit beside its input: the picture, the shaded mesh over it, and the landmarks.

Photos become one picture with a row each, a video becomes a video.
Shapes: images uint8 (H, W, 3), vertices (V, 3) metres, pixels (., 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..artifacts.files import atomic_write, refuse_existing
from ..artifacts.track import Frame, Track
from ..cameras import crop_intrinsics, project
from ..capture.images import load_image
from ..capture.samples import crop_square
from ..capture.video import VideoWriter, read_frames
from ..errors import AvtoolError
from ..head import HeadModel

TILE = 384
MAX_ROWS = 12
MARGIN = 1.25
"""How much more than the head crop is shown, so that the shoulders can be judged."""
COLORS = {"torso": (120, 150, 190), "neck": (200, 170, 150), "scalp": (150, 130, 120), "ear": (235, 150, 90),
          "lips": (200, 90, 90), "eye_l": (235, 235, 235), "eye_r": (235, 235, 235)}  # fmt: skip
SKIN = (205, 180, 160)
HIDDEN = ("lash_l", "lash_r")
OPACITY = 0.62


def write_overlay(track: Track, head: HeadModel, path: str | Path, force: bool = False) -> None:
    """Writes the overlay of a track.

    Args:
        track: the fit; its pictures are read again.
        head: the head model of the track.
        path: .mp4 for a video, a picture (.png, .jpg) for photos; for a video a picture shows some of its frames.
        force: overwrite.
    """
    path = Path(path)
    refuse_existing(path, force)
    moving = path.suffix.lower() in (".mp4", ".mov", ".mkv", ".avi", ".webm")
    if moving and track.video is None:
        raise AvtoolError(f"{path}: photos make a picture, not a video", "name a .png file")
    if moving:
        _write_video(track, head, path)
        return
    indices = np.unique(np.linspace(0, len(track.frames) - 1, MAX_ROWS).round().astype(int)).tolist()
    rows = [panel for _, panel in panels(track, head, indices)]
    sheet = Image.fromarray(np.concatenate(rows))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")


def _write_video(track: Track, head: HeadModel, path: Path) -> None:
    indices = range(len(track.frames))
    with VideoWriter(path, track.fps or 25.0, (3 * TILE, TILE)) as writer:
        for _, panel in panels(track, head, indices, steady=True):
            writer.write(panel)


def panels(track: Track, head: HeadModel, indices: list[int] | range, steady: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """For each frame its index and input | mesh | landmarks, (TILE, 3 TILE, 3).

    Args:
        steady: one square for all frames, as a video needs.
    """
    squares = np.array([_wider(track.frames[i].crop) for i in indices])
    if steady:
        low, high = squares[:, :2].min(0), (squares[:, :2] + squares[:, 2:]).max(0)
        side = float((high - low).max())
        squares[:] = [*((low + high - side) / 2), side]
    for (index, pixels), square in zip(_pictures(track, list(indices)), squares):
        frame = track.frames[index]
        tile = crop_square(pixels, tuple(square * pixels.shape[1] / frame.width), TILE)
        yield index, _panel(track, head, index, tile, square)


def _wider(crop: tuple[float, float, float]) -> tuple[float, float, float]:
    x0, y0, size = (float(value) for value in crop)
    extra = (MARGIN - 1.0) * size
    return x0 - extra / 2, y0, size + extra


def _pictures(track: Track, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    if track.video is None:
        for index in indices:
            yield index, load_image(track.resolve(track.frames[index].image)).pixels
        return
    wanted = [track.frames[index].frame_idx for index in indices]
    for index, (_, pixels) in zip(indices, read_frames(track.resolve(track.video), wanted)):
        yield index, pixels


def _panel(track: Track, head: HeadModel, index: int, tile: np.ndarray, square: np.ndarray) -> np.ndarray:
    params = track.params([index])
    with torch.no_grad():
        vertices = head(params).vertices
        Ks = crop_intrinsics(track.Ks([index]), torch.tensor(square[None], dtype=torch.float32), TILE)
        pixels, depth = project(vertices, track.viewmats([index]), Ks)
        marks, _ = project(head.landmarks(vertices), track.viewmats([index]), Ks)
    drawn = draw_mesh(tile, head, vertices[0].numpy(), pixels[0].numpy(), depth[0].numpy(), track.viewmats([index])[0].numpy())
    dots = _draw_landmarks(tile, track.frames[index], marks[0].numpy(), square, index)
    return np.concatenate([tile, drawn, dots], 1)


def draw_mesh(
    image: np.ndarray, head: HeadModel, vertices: np.ndarray, pixels: np.ndarray, depth: np.ndarray, viewmat: np.ndarray
) -> np.ndarray:
    """The shaded mesh laid over an image, farthest triangle first.

    Args:
        vertices: (V, 3) world; pixels: (V, 2) where they fall; depth: (V,); viewmat: (4, 4).
    """
    faces, region = head.faces.cpu().numpy(), head.face_region.cpu().numpy()
    names = head.region_names
    shown = ~np.isin(region, [names.index(name) for name in HIDDEN if name in names])
    shown &= (depth[faces] > 0.01).all(1)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    normals = normals @ viewmat[:3, :3].T
    toward = corners.mean(1) @ viewmat[:3, :3].T + viewmat[:3, 3]
    shown &= (normals * toward).sum(1) < 0
    light = np.array([-0.35, -0.5, -0.8]) / np.linalg.norm([0.35, 0.5, 0.8])
    shade = 0.35 + 0.65 * np.clip(normals @ light, 0, 1)
    base = np.array([COLORS.get(name, SKIN) for name in names])[region]
    colors = np.clip(base * shade[:, None], 0, 255).astype(np.uint8)
    order = np.flatnonzero(shown)[np.argsort(-depth[faces[shown]].mean(1))]
    layer = Image.fromarray(image).convert("RGB")
    brush = ImageDraw.Draw(layer)
    for face in order:
        brush.polygon([tuple(p) for p in pixels[faces[face]].tolist()], fill=tuple(int(c) for c in colors[face]))
    return np.asarray(Image.blend(Image.fromarray(image), layer, OPACITY))


def _draw_landmarks(tile: np.ndarray, frame: Frame, marks: np.ndarray, square: np.ndarray, index: int) -> np.ndarray:
    """Detected landmarks green, the model's red."""
    picture = Image.fromarray(tile)
    brush = ImageDraw.Draw(picture)
    detected = [] if frame.landmarks is None else (np.asarray(frame.landmarks)[:, :2] - square[:2]) / square[2] * TILE
    for points, color in ((detected, (60, 230, 90)), (marks, (235, 60, 60))):
        for x, y in points:
            brush.rectangle([x - 0.6, y - 0.6, x + 0.6, y + 0.6], fill=color)
    label = f"{frame.image or frame.frame_idx}".rsplit("/", 1)[-1]
    brush.text((6, 6), f"{index}: {label}  {100 * frame.residual:.2f} % of the eye distance", fill=(255, 255, 0))
    return np.asarray(picture)
