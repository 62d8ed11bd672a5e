"""Gaussians: the container, where they are seeded on the head, and how the mesh carries them."""

from avtool.gaussians.container import SH_C0, Gaussians

__all__ = ["SH_C0", "Gaussians"]
