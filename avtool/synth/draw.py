"""Draws textured meshes with alpha layers on the CPU: what turns a synthetic person into images.

Shapes: V vertices, T texture coordinates, F triangles. World and cameras as everywhere in avtool (OpenCV viewmats, metres). Textures are
(H, W, 4) uint8 sRGB + alpha, their v axis points up. Opaque meshes go through a z-buffer, transparent ones (hair, brows, lashes) through a
per-sample list of the nearest fragments; both are shaded once per sample and averaged.
"""

from dataclasses import dataclass

import numpy as np

from avtool.synth.kernels import raster_layers, raster_opaque, shade
from avtool.synth.lighting import Lighting, MeshSmoother, gather_light

NUM_LAYERS = 10  # transparent fragments kept per sample; shells of short hair need most of them


@dataclass(frozen=True)
class Material:
    """How a mesh answers light. specular: highlight strength; power: its sharpness; wrap: terminator softness; dim: gain on all light."""

    specular: float = 0.05
    power: float = 18.0
    wrap: float = 0.25
    dim: float = 1.0
    subsurface: bool = False
    casts_shadow: bool = True


@dataclass
class Mesh:
    """vertices (V, 3), faces (F, 3), uv (T, 2), uv_faces (F, 3), texture (H, W, 4) uint8, normals (V, 3) or None to compute them.

    fill, a number or (V,): the share of the scene's mean light that reaches a place whatever shades it, off and through the tissue around.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray
    texture: np.ndarray
    material: Material = Material()
    transparent: bool = False
    normals: np.ndarray | None = None
    smoother: MeshSmoother | None = None
    fill: np.ndarray | float = 0.0


@dataclass(frozen=True)
class Drawing:
    """rgb (H, W, 3) sRGB in [0, 1], not multiplied by alpha; alpha (H, W)."""

    rgb: np.ndarray
    alpha: np.ndarray

    def over(self, background: tuple[float, float, float] | np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8, composited in display space as avtool's losses do."""
        alpha = self.alpha[..., None]
        return np.round(255 * (self.rgb * alpha + np.asarray(background) * (1 - alpha))).astype(np.uint8)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) area-weighted unit normals."""
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    out = np.stack([np.bincount(faces.ravel(), np.repeat(normal[:, i], 3), len(vertices)) for i in range(3)], -1)
    return (out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def srgb_to_linear(x: np.ndarray) -> np.ndarray:
    """Display values in [0, 1] to linear light."""
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear_to_srgb(x: np.ndarray) -> np.ndarray:
    """Linear light to display values in [0, 1]; the brightest tenth is rolled off rather than clipped."""
    x = np.where(x > 0.8, 0.8 + 0.2 * np.tanh((x - 0.8) / 0.35), np.maximum(x, 0))
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055).astype(np.float32)


class Scene:
    """Meshes joined into flat arrays and lit once; draw it from as many cameras as wanted."""

    def __init__(self, meshes: list[Mesh], lighting: Lighting):
        meshes = sorted(meshes, key=lambda mesh: mesh.transparent)
        starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
        self.vertices = np.concatenate([mesh.vertices for mesh in meshes]).astype(np.float32)
        self.faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts)]).astype(np.int32)
        self.num_opaque = sum(len(mesh.faces) for mesh in meshes if not mesh.transparent)
        self.face_uv = np.concatenate([mesh.uv[mesh.uv_faces] for mesh in meshes]).astype(np.float32)
        owner = np.concatenate([np.full(len(mesh.faces), i, np.int32) for i, mesh in enumerate(meshes)])
        self.face_material = owner
        self.materials = np.array([[mesh.material.specular, mesh.material.power] for mesh in meshes], np.float32)
        pool = {id(mesh.texture): mesh.texture for mesh in meshes}
        offsets = dict(zip(pool, np.cumsum([0] + [texture.size for texture in pool.values()])))
        self.textures = np.concatenate([np.ascontiguousarray(texture).ravel() for texture in pool.values()])
        self.texture_info = np.array(
            [[offsets[id(mesh.texture)], mesh.texture.shape[1], mesh.texture.shape[0]] for mesh in meshes], np.int64
        )
        self.lighting = lighting
        self.normals = np.concatenate(
            [vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals for mesh in meshes]
        ).astype(np.float32)
        self._light(meshes, starts)

    def _light(self, meshes: list[Mesh], starts: np.ndarray) -> None:
        wrap = np.concatenate([np.full(len(mesh.vertices), mesh.material.wrap) for mesh in meshes])
        casting = np.concatenate([np.full(len(mesh.faces), mesh.material.casts_shadow) for mesh in meshes])
        self.light, self.key_light = gather_light(self.vertices, self.normals, wrap, self.vertices, self.faces[casting], self.lighting)
        mean = self.light.mean(0)
        for mesh, start in zip(meshes, starts):
            part = slice(start, start + len(mesh.vertices))
            if mesh.smoother is not None:
                self.light[part] = mesh.smoother.subsurface(self.light[part]) if mesh.material.subsurface else mesh.smoother(self.light[part], 1)
                self.key_light[part] = mesh.smoother(self.key_light[part], 1)
            self.light[part] += np.broadcast_to(mesh.fill, len(mesh.vertices))[:, None] * mean
            self.light[part] *= mesh.material.dim

    def draw(self, viewmat: np.ndarray, K: np.ndarray, size: tuple[int, int], samples: int = 2) -> Drawing:
        """Render with viewmat (4, 4), K (3, 3) at (width, height), samples x samples per pixel."""
        width, height = size
        viewmat, K = np.asarray(viewmat, np.float64), np.asarray(K, np.float64) * samples
        camera = self.vertices @ viewmat[:3, :3].T + viewmat[:3, 3]
        safe = np.maximum(camera[:, 2:], 1e-3)
        xy = (camera[:, :2] / safe * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]]).astype(np.float32)
        inv_z = np.where(camera[:, 2] > 0.02, 1 / safe[:, 0], 0).astype(np.float32)
        shape = (height * samples, width * samples)
        depth, face_id = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        raster_opaque(xy, inv_z, self.faces[: self.num_opaque], depth, face_id)
        num_layers = NUM_LAYERS if self.num_opaque < len(self.faces) else 1
        layer_z, layer_alpha = np.zeros((2, *shape, num_layers), np.float32)
        layer_face = np.zeros((*shape, num_layers), np.int32)
        raster_layers(
            xy, inv_z, self.faces[self.num_opaque :], self.face_uv[self.num_opaque :], self.face_material[self.num_opaque :],
            self.texture_info, self.textures, depth, layer_z, layer_face, layer_alpha,
        )
        rotation = viewmat[:3, :3].T.astype(np.float32)
        out = np.zeros((height, width, 4), np.float32)
        shade(
            np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]], np.float32), xy, inv_z, self.faces, self.num_opaque, self.face_uv,
            self.face_material, self.texture_info, self.textures, srgb_to_linear(np.arange(256) / 255), self.normals @ rotation, self.light,
            self.key_light, self.lighting.key_dirs @ rotation, self.lighting.key_colors, self.materials, self.face_material, face_id,
            layer_z, layer_face, layer_alpha, samples, out,
        )
        alpha = np.clip(out[..., 3], 0, 1)
        return Drawing(linear_to_srgb(out[..., :3] / np.maximum(alpha, 1e-6)[..., None]) * (alpha > 0)[..., None], alpha)


def draw_mesh(
    meshes: list[Mesh], lighting: Lighting, viewmat: np.ndarray, K: np.ndarray, size: tuple[int, int], samples: int = 2
) -> Drawing:
    """Light and draw meshes once; see `Scene` to draw the same posed person from several cameras."""
    return Scene(meshes, lighting).draw(viewmat, K, size, samples)
