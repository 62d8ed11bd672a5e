"""Pseudo pictures of one person as targets of fine-tuning: the views that nobody photographed.

A program made them of real ones (Frame.pseudo): they carry geometry, not texture (Portrait4D-v2, section 3.2; objective.pseudo_term).

Shape legend: M pseudo pictures, s x s pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch

from avtool.artifacts.track import Track
from avtool.errors import AvtoolError
from avtool.head import HeadModel
from avtool.prior.photos import PhotoSet, load_pictures

MAX_PSEUDO = 64
"""A fit sees one of them every few steps; of more this many are taken at random, so that no camera is favored."""
HINT = "make one with: avtool pseudo-mv"


def load_pseudo_track(path: str | Path) -> Track:
    """The track of a data set of one person: its directory or its track.json; AvtoolError where there is none."""
    path = Path(path)
    file = path / "track.json" if path.is_dir() else path
    if not file.is_file():
        found = "a directory without track.json" if path.is_dir() else "nothing"
        raise AvtoolError(f"{path}: expected a data set with pseudo pictures, found {found}", HINT)
    track = Track.load(file)
    if not any(frame.pseudo is not None for frame in track.frames):
        raise AvtoolError(f"{file}: expected pseudo pictures, found {len(track.frames)} real ones only", HINT)
    return track


def load_pseudo(track: Track, head: HeadModel, size: int, seed: int, name: str) -> PhotoSet:
    """The pseudo pictures of a track with its own cameras and motion; its real ones stay unseen, as they may be held out."""
    made = torch.tensor([k for k, frame in enumerate(track.frames) if frame.pseudo is not None])
    if len(made) > MAX_PSEUDO:
        drawn = torch.randperm(len(made), generator=torch.Generator().manual_seed(seed))[:MAX_PSEUDO]
        made = made[drawn.sort().values]
    return load_pictures(track, made.tolist(), head, size, name)
