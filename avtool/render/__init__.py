"""Rendering Gaussians: render() picks gsplat on CUDA and the numba CPU rasterizer elsewhere; a torch twin states the meaning."""

from avtool.render.dispatch import BACKENDS, RenderOutput, render

__all__ = ["BACKENDS", "RenderOutput", "render"]
