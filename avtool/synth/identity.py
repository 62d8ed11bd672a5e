"""One synthetic person: shape, look, light, and the meshes that draw them in any pose.

Shapes: I identity coefficients, V head vertices.
"""

from dataclasses import dataclass, field

import numpy as np

from avtool.head import HeadModel
from avtool.synth.accessories import Worn, under_cap, wear
from avtool.synth.assets import Assets
from avtool.synth.base import SKIN_REGIONS, SynthHead, Texels, noise, smoothstep
from avtool.synth.draw import Material, Mesh, vertex_normals
from avtool.synth.folds import MovingSkin
from avtool.synth.garment import Garment, dress
from avtool.synth.hair import Shells, beard, head_hair
from avtool.synth.lighting import Lighting, MeshSmoother, sample_lighting
from avtool.synth.motion import Motion
from avtool.synth.look import Look, sample_look
from avtool.synth.strands import HairCards, vertex_turns
from avtool.synth.textures import eye_texture, lash_texture, skin_texture, teeth_texture

IDENTITY_SD = 0.85  # of the unit-variance shape space: plausible people, no caricature
TEXTURE_SIZE = 1024  # of MakeHuman's whole UV: about 0.8 mm a texel on the face
EYE_EXTENT = 0.013  # metres from the eye's axis to the border of its texture
EYE = Material(specular=0.9, power=260.0, wrap=0.3, dim=1.0)
TEETH = Material(specular=0.12, power=60.0, wrap=0.35, dim=0.95)
# Light inside an open mouth, as a share of the light on the head: enamel and a wet tongue scatter what the lips let through.
TEETH_FILL, TONGUE_FILL, CAVITY_FILL = 0.95, 0.3, 0.07
# Wavelength and standard deviation in mm: a crooked face, then bumps and hollows.
DETAIL_MM = ((70.0, 0.9), (28.0, 0.35))
NOISE_SD = 0.16  # of one octave of noise
RIGID_REGIONS = ("eye_l", "eye_r", "lash_l", "lash_r", "socket", "teeth_up", "teeth_lo", "tongue", "mouth")
FREE_MARGIN = 6  # rounds of smoothing: the border of the mouth and of the lids follows only partly
EYE_RADIUS_MM, EYE_SHIFT_MM = 18.0, np.array([0.5, 0.6, 0.3])
LASH = Material(specular=0.0, wrap=0.4, casts_shadow=False)


@dataclass
class _Part:
    """Some triangles of the head with their own texture."""

    used: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray

    def mesh(self, vertices: np.ndarray, normals: np.ndarray, texture: np.ndarray, material: Material, **kwargs: object) -> Mesh:
        return Mesh(vertices[self.used], self.faces, self.uv, self.uv_faces, texture, material, normals=normals[self.used], **kwargs)


class HeadParts:
    """What all people share: skin, eyes, teeth and lashes of the head model as parts with texture coordinates."""

    def __init__(self, head: SynthHead, texture_size: int = TEXTURE_SIZE):
        self.head = head
        self.texels: Texels = head.texels(texture_size)
        chosen = head.region_faces(*SKIN_REGIONS)
        used, faces = head.submesh(chosen)
        self.skin = _Part(used, faces, head.uv, head.uv_faces[chosen])
        self.smoother = MeshSmoother(faces, len(used))
        self.fill = (TONGUE_FILL * head.region_mask("tongue") + CAVITY_FILL * head.region_mask("mouth"))[used]
        self.scalp = np.unique(head.faces[head.region_faces("scalp")])
        self.eyes = [self._eye(side) for side in ("l", "r")]
        self.teeth = [self._teeth(name) for name in ("teeth_up", "teeth_lo") if len(head.region_faces(name))]
        self.lashes = [self._lashes(side) for side in ("l", "r") if len(head.region_faces(f"lash_{side}"))]

    def _eye(self, side: str) -> _Part:
        used, faces = self.head.submesh(self.head.region_faces(f"eye_{side}"))
        points = self.head.template[used]
        center = (points.max(0) + points.min(0)) / 2
        uv = 0.5 + (points - center)[:, :2] / (2 * EYE_EXTENT)
        return _Part(used, faces, uv.astype(np.float32), faces)

    def _teeth(self, name: str) -> _Part:
        used, faces = self.head.submesh(self.head.region_faces(name))
        points = self.head.face_frame(self.head.template[used])
        angle = np.arctan2(points[:, 0], points[:, 2] - points[:, 2].min() + 4)
        height = (points[:, 1] - points[:, 1].min()) / np.ptp(points[:, 1])
        uv = np.stack([0.5 + 0.5 * angle / np.abs(angle).max(), 1 - height if name == "teeth_up" else height], -1)
        return _Part(used, faces, np.clip(uv, 0.01, 0.99).astype(np.float32), faces)

    def _lashes(self, side: str) -> _Part:
        from scipy.spatial import cKDTree

        used, faces = self.head.submesh(self.head.region_faces(f"lash_{side}"))
        points = self.head.template[used]
        lid = self.head.template[np.unique(self.head.faces[self.head.region_faces("face", "socket")])]
        distance = cKDTree(lid).query(points)[0]
        tip = np.clip(distance / max(np.percentile(distance, 90), 1e-6), 0, 1)
        across = (points[:, 0] - points[:, 0].min()) / np.ptp(points[:, 0])
        return _Part(used, faces, np.stack([across, tip], -1).astype(np.float32), faces)


@dataclass
class SyntheticPerson:
    """identity (I,), offsets (V, 3) metres, its look and light, painted and ready to be posed."""

    identity: np.ndarray
    offsets: np.ndarray
    look: Look
    lighting: Lighting
    parts: HeadParts
    skin: np.ndarray
    folds: MovingSkin
    eye: np.ndarray
    teeth: np.ndarray
    lash: np.ndarray
    garment: Garment
    shells: list[Shells]
    cards: HairCards | None = None
    worn: Worn = field(default_factory=lambda: Worn([]))

    def meshes(self, vertices: np.ndarray, motion: Motion) -> list[Mesh]:
        """Everything to draw for head vertices (V, 3) metres, which were posed by `motion`."""
        parts = self.parts
        vertices = np.asarray(vertices, np.float64) + self.garment.widening
        normals = vertex_normals(vertices, parts.head.faces)
        skin = Material(specular=self.look.shine, power=16.0, wrap=0.25, subsurface=True)
        texture = self.folds(self.skin, motion.expression)
        out = [parts.skin.mesh(vertices, normals, texture, skin, smoother=parts.smoother, fill=parts.fill)]
        out += [eye.mesh(vertices, normals, self.eye, EYE) for eye in parts.eyes]
        out += [row.mesh(vertices, normals, self.teeth, TEETH, fill=TEETH_FILL) for row in parts.teeth]
        out += [lash.mesh(vertices, normals, self.lash, LASH, transparent=True) for lash in parts.lashes]
        out.append(self.garment.mesh(vertices, normals))
        out += [shells.mesh(vertices, normals) for shells in self.shells]
        out += [item.mesh(vertices) for item in self.worn.items]
        if self.cards is not None:
            turns = vertex_turns(parts.head, motion.neck, motion.head)
            out.append(self.cards.mesh(vertices, turns, vertices[parts.scalp].mean(0)))
        return out


def sample_offsets(head: SynthHead, rng: np.random.Generator) -> np.ndarray:
    """(V, 3) metres added to a person's rest shape: what no coefficient says, so that likeness is not limited to the basis.

    Smooth fields make faces asymmetric and uneven; each eye moves as a whole, with its lids and lashes. Teeth, tongue and the
    inside of the mouth stay, or lips would cut into them.
    """
    points = head.face_frame(head.template)
    free = 1 - head.region_mask(*RIGID_REGIONS, rounds=FREE_MARGIN)
    out = np.zeros((len(points), 3))
    for wavelength, amplitude in DETAIL_MM:
        at = points / wavelength + rng.uniform(-50, 50, 3)
        field = np.stack([noise(at + 17.0 * k, 1) for k in range(3)], -1) - 0.5
        out += amplitude * field / NOISE_SD * free[:, None]
    for side in ("l", "r"):
        center = head.face_frame(head.joints[f"eye_{side}"])
        near = 1 - smoothstep(EYE_RADIUS_MM, 2.2 * EYE_RADIUS_MM, np.linalg.norm(points - center, axis=1))
        out = out * (1 - near[:, None]) + near[:, None] * rng.normal(0, EYE_SHIFT_MM, 3)
    return (1e-3 * out).astype(np.float32)


def sample_identity(model: HeadModel, rng: np.random.Generator) -> np.ndarray:
    """(I,) coefficients of the unit-variance shape space."""
    return np.clip(rng.normal(0, IDENTITY_SD, model.num_identity), -2.2, 2.2).astype(np.float32)


def build_person(
    parts: HeadParts, identity: np.ndarray, look: Look, lighting: Lighting, assets: Assets | None = None,
    offsets: np.ndarray | None = None,
) -> SyntheticPerson:
    """Paint and dress a person; photographs of `assets` replace procedural paint where there are any."""
    head, texels = parts.head, parts.texels
    photo = assets.skin(texels, look) if assets else None
    iris = assets.iris(look) if assets else None
    worn = wear(head, identity, look, offsets)
    cards = assets.hair(head, look) if assets and not look.cap else None
    shells = [] if cards is not None else [worn.tuck(head_hair(head, texels, under_cap(look)))]
    shells = [hair for hair in (*shells, beard(head, texels, look)) if hair is not None]
    if offsets is None:
        offsets = np.zeros((len(head.template), 3), np.float32)
    return SyntheticPerson(
        identity, offsets, look, lighting, parts, skin=skin_texture(texels, look, photo),
        folds=MovingSkin(texels, look, head.model.expression_names), eye=eye_texture(look, iris_photo=iris), teeth=teeth_texture(look),
        lash=lash_texture(look), garment=dress(head, texels, look), shells=shells, cards=cards, worn=worn,
    )  # fmt: skip


def sample_person(
    parts: HeadParts, rng: np.random.Generator, light_variety: float = 1.0, assets: Assets | None = None
) -> SyntheticPerson:
    """Draw a person: shape, look and light, all from one generator."""
    identity = sample_identity(parts.head.model, rng)
    offsets = sample_offsets(parts.head, rng)
    look = sample_look(rng)
    return build_person(parts, identity, look, sample_lighting(rng, light_variety), assets, offsets)
