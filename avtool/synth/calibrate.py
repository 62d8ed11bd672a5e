"""Calibrates the landmark detector on renders of our own heads: `python -m avtool.synth.calibrate`.

Random people are drawn in random poses; the detector is run on them. From the known geometry follow
1. the embedding: for every landmark the point (triangle, barycentrics) of the head surface it marks, found robustly, and
2. the noise: bias (L, 2) and covariance (2L, 2L) of what is left.
Residuals are predicted minus detected, in millimetres at the face's depth, in image axes that turn with the head model's x axis; the
covariance is flattened as x0, y0, x1, y1, ... .

Shapes: R renders, L landmarks, V vertices, F triangles, C candidate points.
"""

import argparse
import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avtool.synth.base import SynthHead
from avtool.synth.draw import Scene, vertex_normals
from avtool.synth.identity import HeadParts, build_person, sample_identity
from avtool.synth.lighting import sample_lighting
from avtool.synth.look import FACE_COVERING_HAIR, sample_look
from avtool.synth.motion import sample_motion

NUM_LANDMARKS, NUM_MESH = 478, 468
SIZE = 352  # pixels a side of a calibration render
SURFACE = ("face", "lips", "ear", "scalp", "neck", "socket")
GRID = 6  # barycentric subdivisions of a candidate triangle
CLIP_MM = 10.0  # residuals beyond this count as this: robust to wrong detections
HIDDEN_PENALTY = 40.0  # mm^2 for a candidate that faces away from the camera
MODEL_FILE = Path(__file__).parents[1] / "head" / "data" / "anny_landmarks.safetensors"
NOISE_FILE = Path(__file__).parents[1] / "tracking" / "data" / "landmark_noise.safetensors"
logger = logging.getLogger(__name__)


@dataclass
class Render:
    """One calibrated view: camera-space vertices (V, 3), their normals, detected landmarks (L, 2), focal, the model's x axis in the image."""

    vertices: np.ndarray
    normals: np.ndarray
    landmarks: np.ndarray
    focal: float
    right: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of camera points (..., 3)."""
        return self.focal * points[..., :2] / points[..., 2:] + SIZE / 2


def _views(parts: HeadParts, seed: int, views: int, assets: str | None) -> list[Render]:
    """Draw one person and detect its landmarks. Only views with a detection are kept."""
    from avtool.capture import FaceTracker
    from avtool.synth.assets import open_assets
    from avtool.synth.cameras import aim, pose_vertices

    rng = np.random.default_rng([seed, 7])
    tracker = FaceTracker()
    identity, look = sample_identity(parts.head.model, rng), sample_look(rng)
    if look.asset_hair in FACE_COVERING_HAIR:
        look = replace(look, asset_hair="")
    person = build_person(parts, identity, look, sample_lighting(rng, 0.5), open_assets(assets))
    renders = []
    for k in range(views):
        motion = sample_motion(parts.head.model.expression_names, rng, None if k else "neutral", turn=0.2)
        vertices = pose_vertices(parts.head.model, person.identity, motion)
        yaw, pitch = rng.normal(0, 0.08 if k < 2 else 0.3), rng.normal(0, 0.12)
        focal = SIZE * rng.uniform(1.9, 3.0)
        distance = focal / SIZE * rng.uniform(0.30, 0.38)
        viewmat = aim(np.clip(yaw, -0.6, 0.6), pitch, rng.normal(0, 0.08), distance, parts.head.origin + rng.normal(0, 0.01, 3))
        K = np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]])
        drawing = Scene(person.meshes(vertices, motion), person.lighting).draw(viewmat, K, (SIZE, SIZE))
        found = tracker(drawing.over(rng.uniform(0.2, 0.95, 3)))
        if found is None:
            continue
        camera = vertices @ viewmat[:3, :3].T + viewmat[:3, 3]
        normals = vertex_normals(camera, parts.head.faces)
        renders.append(Render(camera.astype(np.float32), normals, found.points[:, :2].astype(np.float32), focal, viewmat[:2, 0]))
    return renders


_PARTS: HeadParts | None = None


def _work(task: tuple[int, int, str | None]) -> list[Render]:
    global _PARTS
    import torch

    torch.set_num_threads(1)
    if _PARTS is None:
        from avtool.head import load_head_model

        _PARTS = HeadParts(SynthHead(load_head_model()))
    return _views(_PARTS, *task)


def render_people(identities: int, views: int, seed: int, jobs: int, assets: str | None = None) -> list[Render]:
    """Calibration renders of `identities` people, up to `views` each."""
    tasks = [(seed * 100003 + i, views, assets) for i in range(identities)]
    out: list[Render] = []
    if jobs <= 1:
        results = map(_work, tasks)
        for result in results:
            out += result
        return out
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(_work, tasks):
            out += result
    return out


def _cost(renders: list[Render], rows: np.ndarray, corners: np.ndarray, weights: np.ndarray, landmarks: list[int]) -> np.ndarray:
    """(L', C) mean robust squared distance in mm^2 of candidates to landmarks.

    rows: unused vertices are skipped, corners (C, 3) vertex indices, weights (C, 3).
    """
    total = np.zeros((len(landmarks), len(corners)))
    for render in renders:
        points = np.einsum("ckd,ck->cd", render.vertices[corners], weights)
        normals = np.einsum("ckd,ck->cd", render.normals[corners], weights)
        scale = 1000 * points[:, 2].mean() / render.focal
        gap = ((render.project(points)[None] - render.landmarks[landmarks][:, None]) ** 2).sum(-1) * scale**2
        gap += HIDDEN_PENALTY * ((normals * points).sum(-1) > 0)
        total += np.minimum(gap, CLIP_MM**2)
    return total / len(renders)


def embed(head: SynthHead, renders: list[Render]) -> tuple[np.ndarray, np.ndarray]:
    """face_idx (L,) and barycentrics (L, 3): coarse over vertices, then fine over barycentric samples of the triangles around the best."""
    face_idx, barycentrics = np.zeros(NUM_LANDMARKS, np.int64), np.zeros((NUM_LANDMARKS, 3))
    grid = np.array([(a, b, GRID - a - b) for a in range(GRID + 1) for b in range(GRID + 1 - a)]) / GRID
    # MediaPipe lists the person's right eye first.
    groups = ((SURFACE, range(NUM_MESH)), (("eye_r",), range(NUM_MESH, 473)), (("eye_l",), range(473, NUM_LANDMARKS)))
    for regions, ids in groups:
        chosen = head.region_faces(*regions)
        vertices = np.unique(head.faces[chosen])
        corners = np.repeat(vertices[:, None], 3, 1)
        coarse = _cost(renders[:100], vertices, corners, np.tile([1.0, 0, 0], (len(vertices), 1)), list(ids))
        best = vertices[coarse.argmin(1)]
        centers = head.template[head.faces[chosen]].mean(1)
        for landmark, vertex in zip(ids, best):
            near = chosen[np.argsort(np.linalg.norm(centers - head.template[vertex], axis=1))[:36]]
            corners = np.repeat(head.faces[near], len(grid), 0)
            weights = np.tile(grid, (len(near), 1))
            winner = _cost(renders, vertices, corners, weights, [landmark])[0].argmin()
            face_idx[landmark], barycentrics[landmark] = near[winner // len(grid)], weights[winner]
    return face_idx, barycentrics


def residuals(head: SynthHead, renders: list[Render], face_idx: np.ndarray, barycentrics: np.ndarray) -> np.ndarray:
    """(R, L, 2) predicted minus detected, mm, axes turned with the face."""
    out = np.empty((len(renders), len(face_idx), 2))
    corners = head.faces[face_idx]
    for k, render in enumerate(renders):
        points = np.einsum("lkd,lk->ld", render.vertices[corners], barycentrics)
        cos, sin = render.right / np.linalg.norm(render.right)
        scale = 1000 * points[:, 2].mean() / render.focal
        out[k] = (render.project(points) - render.landmarks) @ (np.array([[cos, sin], [-sin, cos]]) * scale).T
    return out


def noise_model(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bias (L, 2) and regularized covariance (2L, 2L) of residuals (R, L, 2); clipped so that single wrong detections do not rule."""
    flat = errors.reshape(len(errors), -1)
    center = np.median(flat, 0)
    spread = 1.4826 * np.median(np.abs(flat - center), 0) + 0.1
    flat = np.clip(flat, center - 4 * spread, center + 4 * spread)
    bias = flat.mean(0)
    covariance = np.cov(flat.T)
    covariance = 0.93 * covariance + 0.07 * np.diag(np.diag(covariance)) + 0.1 * np.eye(len(covariance))
    return bias.reshape(-1, 2), covariance


def save_calibration(
    model_id: str, face_idx: np.ndarray, barycentrics: np.ndarray, errors: np.ndarray, embedding_file: Path, noise_file: Path
) -> None:
    """Write the embedding and the noise files (errors: residuals (R, L, 2))."""
    import torch

    from avtool.artifacts.tensors import save_tensors

    bias, covariance = noise_model(errors)
    rms = np.sqrt((errors**2).sum(-1).mean(0))
    metadata = {"avtool.head_model": model_id, "renders": str(len(errors)), "residual": "predicted minus detected, mm, axes turned with the face"}
    tensors = {"face_idx": torch.from_numpy(face_idx), "barycentrics": torch.from_numpy(barycentrics).float(), "rms_mm": torch.from_numpy(rms).float()}
    save_tensors(embedding_file, tensors, "landmark-embedding/1", metadata)
    noise_file.parent.mkdir(parents=True, exist_ok=True)
    noise = {"bias": torch.from_numpy(bias).float(), "cov": torch.from_numpy(covariance).half()}
    save_tensors(noise_file, noise, "landmark-noise/1", metadata)


def summary(errors: np.ndarray) -> dict[str, float]:
    """Distances in mm over residuals (R, L, 2)."""
    distance = np.linalg.norm(errors, axis=-1)
    centered = np.linalg.norm(errors - errors.mean(0), axis=-1)
    return {
        "renders": len(errors), "mean_mm": float(distance.mean()), "median_mm": float(np.median(distance)),
        "p95_mm": float(np.percentile(distance, 95)), "median_without_bias_mm": float(np.median(centered)),
        "iris_median_mm": float(np.median(distance[:, NUM_MESH:])),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m avtool.synth.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("--identities", type=int, default=90, help="people to draw")
    parser.add_argument("--views", type=int, default=5, help="views a person")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--assets", default=None, help="folder of MakeHuman assets (skins, hair)")
    parser.add_argument("--embedding", type=Path, default=MODEL_FILE, help="written: landmark embedding")
    parser.add_argument("--noise", type=Path, default=NOISE_FILE, help="written: bias and covariance")
    options = parser.parse_args(arguments)
    from avtool.head import load_head_model

    model = load_head_model()
    head = SynthHead(model)
    renders = render_people(options.identities, options.views, options.seed, options.jobs, options.assets)
    held_out = renders[: len(renders) // 5]
    face_idx, barycentrics = embed(head, renders[len(renders) // 5 :])
    print("held out:", summary(residuals(head, held_out, face_idx, barycentrics)), file=sys.stderr)
    save_calibration(model.model_id, face_idx, barycentrics, residuals(head, renders, face_idx, barycentrics), options.embedding, options.noise)
    print(options.embedding, options.noise, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
