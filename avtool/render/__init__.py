"""Rendering Gaussians: render() picks gsplat on CUDA and the numba CPU rasterizer elsewhere.

A readable torch twin (reference.py) states the meaning that all of them share.
"""

from avtool.render.dispatch import BACKENDS, RenderOutput, render

__all__ = ["BACKENDS", "RenderOutput", "render"]
