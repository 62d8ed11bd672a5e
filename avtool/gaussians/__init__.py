"""Gaussians: the container, where they are seeded on the head, and how the mesh carries them."""

from avtool.gaussians.container import SH_C0, Gaussians, log_scales, logit_opacities, rgb_to_sh0, sh0_to_rgb

__all__ = ["SH_C0", "Gaussians", "log_scales", "logit_opacities", "rgb_to_sh0", "sh0_to_rgb"]
