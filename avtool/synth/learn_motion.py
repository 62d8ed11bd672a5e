"""`python -m avtool.synth.learn_motion TRACK... `: keeps typical moments of tracked clips, from which motion.py draws.

A moment is what one frame shows: expression, gaze, turns of neck and head relative to the clip's middle. Of all frames the medoids of
a k-means clustering are kept, as bytes: nothing of who was seen, and no order in time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from avtool.artifacts.files import atomic_write
from avtool.artifacts.track import Track

MOMENTS_FILE = Path(__file__).parent / "data" / "moments.json"
MOMENTS_PER_CLIP = 48
POSE_SCALE = 0.5  # radians that a byte's end stands for
POSE_WEIGHT = 0.5  # of a radian against a whole expression, when moments are compared


def clip_moments(track: Track) -> tuple[np.ndarray, np.ndarray]:
    """Expressions (T, E) above the clip's resting face, and poses (T, 4, 3) of neck, head and both eyes about their medians."""
    import torch

    from avtool.prior.motion import neutral_expression

    names = _names(track)
    expression = np.array([frame.expression for frame in track.frames], np.float64)
    rest = neutral_expression(torch.from_numpy(expression), names).numpy()
    pose = np.array([[frame.neck, frame.head, *frame.eyes] for frame in track.frames], np.float64)
    return np.clip((expression - rest) / (1 - rest), 0, 1), pose - np.median(pose, 0)


def _names(track: Track) -> tuple[str, ...]:
    from avtool.head import load_head_model

    return load_head_model().expression_names


def choose(expression: np.ndarray, pose: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `count` frames nearest to the centers of a k-means clustering."""
    from scipy.cluster.vq import kmeans2

    points = np.concatenate([expression, POSE_WEIGHT * pose.reshape(len(pose), -1)], 1)
    count = min(count, len(points))
    centers, owner = kmeans2(points, count, minit="++", seed=rng)
    return np.array(
        [np.flatnonzero(owner == k)[np.linalg.norm(points[owner == k] - centers[k], axis=1).argmin()] for k in range(count) if (owner == k).any()]
    )


def learn(tracks: list[Path], out: Path) -> int:
    """Write the moments of some clips; returns how many there are."""
    rng = np.random.default_rng(0)
    expressions, poses, names = [], [], ()
    for path in tracks:
        track = Track.load(path)
        names = _names(track)
        expression, pose = clip_moments(track)
        chosen = choose(expression, pose, MOMENTS_PER_CLIP, rng)
        expressions.append(np.round(255 * expression[chosen]).astype(int))
        poses.append(np.round(127 * np.clip(pose[chosen] / POSE_SCALE, -1, 1)).astype(int))
    rows = {"names": list(names), "expression": np.concatenate(expressions).tolist(), "pose": np.concatenate(poses).tolist()}
    with atomic_write(out) as temporary:
        Path(temporary).write_text(json.dumps(rows, separators=(",", ":")) + "\n", encoding="utf-8")
    return len(rows["expression"])


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    paths = [Path(name) for name in (sys.argv[1:] if arguments is None else arguments)]
    if not paths:
        print("usage: python -m avtool.synth.learn_motion TRACK...", file=sys.stderr)
        return 2
    print(f"{MOMENTS_FILE.name}: {learn(paths, MOMENTS_FILE)} moments", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
