"""Photometric and silhouette stage: renders the head and pulls its shape and its bust to the pictures.

Gaussians seeded on the mesh at a low UV size carry an albedo each, kept near the mean of their kind of surface, under
second-order spherical-harmonic light per picture (Ramamoorthi and Hanrahan 2001). Identity, head pose, bust and neck of
a few key pictures move under
  - a color term where the person is;
  - a silhouette term: the mesh may not leave the matte, and what looks like skin there, or lies below the chin, should be
    covered (hair may lie outside of the mesh);
  - what the landmarks say about identity and pose (the information of the landmark fit, everything else marginalized).
Expression, gaze and focal length stay; landmarks are laid anew onto every picture afterwards.
Shapes: B pictures, S side in pixels, N points, I identity components that move, V vertices.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..cameras import crop_intrinsics
from ..fit import Stage, run_stage
from ..head import HeadModel, HeadParams
from ..render import render
from ..rotations import axis_angle_to_matrix, matrix_to_axis_angle
from . import so3
from .bust import BustPose
from .fit_state import Fit
from .landmark_model import LandmarkModel
from .surface import FACE_PARTS, Shape, Surface, gaussians_of, harmonics, skin_likelihood

CHIN = 152
"""MediaPipe's landmark at the tip of the chin."""
MEAN_BUST_SIGMA, OWN_BUST_SIGMA, NECK_SIGMA = np.radians((8.0, 3.0, 8.0))

SHAPE_STEPS = 5
"""Steps between two looks at the points' orientation and size."""


@dataclass(frozen=True)
class PhotometricOptions:
    """The stage's settings.

    Attributes:
        size: S. uv_size: of the points. steps: of Adam.
        color, outside, skin, below: weights of the image terms (means over all pixels).
        knee: color difference beyond which the color term levels off.
        posterior: weight of the landmarks' information. prior: weight of the identity's prior.
        pose: weight of the bust's and the neck's priors. albedo: of the albedos' spread. light: of the light's.
    """

    size: int = 128
    uv_size: int = 64
    steps: int = 30
    color: float = 1.0
    knee: float = 0.1
    outside: float = 1.0
    skin: float = 1.0
    below: float = 0.1
    posterior: float = 2e-3
    prior: float = 1e-4
    pose: float = 2e-2
    albedo: float = 0.1
    light: float = 0.01
    rates: dict[str, float] = field(
        default_factory=lambda: {
            "identity": 0.03, "turn": 0.002, "shift": 0.0005, "bust": 0.01, "neck": 0.01,
            "albedo": 0.03, "kinds": 0.03, "light": 0.02, "tint": 0.01,
        }
    )  # fmt: skip

    def stage(self) -> Stage:
        """The stage for the optimization loop."""
        return Stage(name="photometric", steps=self.steps, learning_rates=self.rates, final_factor=0.1)


@dataclass(frozen=True)
class Pictures:
    """Key pictures: images (B, S, S, 3), mattes (B, S, S, 1) and where there is a picture at all (B, S, S, 1), Ks (B, 3, 3)
    of the crops, chins (B,) rows of the chin."""

    images: Tensor
    mattes: Tensor
    known: Tensor
    Ks: Tensor
    chins: Tensor

    @staticmethod
    def build(
        crops: np.ndarray, mattes: np.ndarray, squares: np.ndarray, sizes: np.ndarray, landmarks: np.ndarray, Ks: np.ndarray
    ) -> Pictures:
        """From head crops (B, S, S, 3) and mattes (B, S, S) uint8, their squares (B, 3) in full images of sizes (B, 2),
        landmarks (B, 478, 2) and intrinsics (B, 3, 3) there."""
        size = crops.shape[1]
        placed = torch.as_tensor(squares, dtype=torch.float32)
        chins = (landmarks[:, CHIN, 1] - squares[:, 1]) / squares[:, 2] * size
        steps = (np.arange(size) + 0.5) / size * squares[:, 2:]
        across, down = steps + squares[:, :1], steps + squares[:, 1:2]
        across, down = (across > 0) & (across < sizes[:, :1]), (down > 0) & (down < sizes[:, 1:])
        return Pictures(
            known=torch.from_numpy(down[:, :, None, None] & across[:, None, :, None]).float(),
            images=torch.from_numpy(crops.astype(np.float32) / 255.0),
            mattes=torch.from_numpy(mattes.astype(np.float32) / 255.0)[..., None],
            Ks=crop_intrinsics(torch.as_tensor(Ks, dtype=torch.float32), placed, size),
            chins=torch.as_tensor(chins, dtype=torch.float32),
        )


@dataclass(frozen=True)
class Evidence:
    """What the landmarks say: the most probable identity (I,), rotations (B, 3, 3) and translations (B, 3), and the
    information (I + 6 B, I + 6 B) about [identity, then a turn and a shift for each picture] there."""

    identity: np.ndarray
    rotations: np.ndarray
    translations: np.ndarray
    information: np.ndarray


@dataclass(frozen=True)
class Start:
    """Where the stage starts: the landmark fit of the pictures, bust and neck of each, and the identity at the head model's
    own length."""

    model: LandmarkModel
    fit: Fit
    poses: list[BustPose]
    identity: np.ndarray


@dataclass(frozen=True)
class Refined:
    """What the stage found.

    Attributes:
        identity: (I,). rotations: (B, 3, 3) and translations: (B, 3) of the heads. poses: of the busts.
        before, after: sum of the image terms at the start and at the end.
        overlap: intersection over union of the mesh and the matte above the chin, at the start and at the end.
        spill: part of the mesh outside of the matte, at the start and at the end.
    """

    identity: np.ndarray
    rotations: np.ndarray
    translations: np.ndarray
    poses: list[BustPose]
    before: float
    after: float
    overlap: tuple[float, float]
    spill: tuple[float, float]


def refine(
    head: HeadModel,
    start: Start,
    pictures: Pictures,
    evidence: Evidence,
    options: PhotometricOptions = PhotometricOptions(),
) -> Refined:
    """Runs the stage.

    Args:
        head: the head model.
        start: the fit to improve. pictures: what it is a fit of. evidence: what the landmarks say about it.

    Raises:
        AvtoolError: the loss became NaN or infinite.
    """
    problem = _Problem(head, start, pictures, evidence, options)
    first = problem.judge()
    run_stage(options.stage(), problem.unknowns, problem.loss)
    last = problem.judge()
    with torch.no_grad():
        rotations, translations, busts, necks = (x.double().numpy() for x in problem.placed())
    return Refined(
        identity=start.fit.identity + problem.unknowns["identity"].detach().double().numpy(),
        rotations=_orthonormal(rotations),
        translations=translations,
        poses=[BustPose(b, n) for b, n in zip(_orthonormal(busts), _orthonormal(necks))],
        before=first[0],
        after=last[0],
        overlap=(first[1], last[1]),
        spill=(first[2], last[2]),
    )


class _Problem:
    """The unknowns, and the loss they give."""

    def __init__(
        self, head: HeadModel, start: Start, pictures: Pictures, evidence: Evidence, options: PhotometricOptions
    ) -> None:
        self.head, self.pictures, self.options = head, pictures, options
        self.surface = Surface.build(head, options.uv_size)
        self.shape: Shape | None = None
        fit = start.fit
        self.start_identity = _tensor(start.identity)
        self.rotations, self.translations = _tensor(fit.rotations), _tensor(fit.translations)
        self.busts = _tensor(np.stack([pose.bust for pose in start.poses]))
        self.necks = _tensor(np.stack([pose.neck for pose in start.poses]))
        self.still = _still_params(head, start.model, fit)
        batch, points = len(start.poses), self.surface.binding.num_points
        self.unknowns: dict[str, Tensor] = {
            "identity": torch.zeros(len(fit.identity)),
            **{name: torch.zeros(batch, 3) for name in ("turn", "shift", "bust", "neck", "tint")},
            "albedo": torch.zeros(points, 3),
            "kinds": torch.zeros(self.surface.num_kinds, 3),
            "light": torch.zeros(batch, 9),
        }
        self.unknowns["light"][:, 0] = 1.0
        self._weigh_landmarks(fit, evidence)
        with torch.no_grad():
            self._look()

    def _weigh_landmarks(self, fit: Fit, evidence: Evidence) -> None:
        """The landmarks' cost as a quadratic form of the unknowns: their information, and where its minimum lies."""
        turned = matrix_to_axis_angle(self.rotations @ _tensor(evidence.rotations).mT)
        moved = self.translations - _tensor(evidence.translations)
        self.offset = torch.cat([_tensor(fit.identity - evidence.identity), torch.cat([turned, moved], -1).flatten()])
        self.information = _tensor(evidence.information)

    def _look(self) -> None:
        """Reads the colors of the surface, and where skin and clothes are, out of the pictures."""
        pictures = self.pictures
        params, viewmats, _ = self.posed()
        colors, seen = self.surface.seen_colors(params, viewmats, pictures.Ks, pictures.images)
        known, _ = self.surface.seen_colors(params, viewmats, pictures.Ks, pictures.mattes)
        seen &= known[..., 0] > 0.5
        kinds = self.surface.kind.expand_as(seen)
        for kind in range(self.surface.num_kinds):
            chosen = colors[(kinds == kind) & seen]
            chosen = chosen if len(chosen) > 5 else colors[seen]
            if len(chosen):
                self.unknowns["kinds"][kind] = chosen.median(0).values
        face = self.surface.of_parts(FACE_PARTS)
        self.skin = skin_likelihood(pictures.images, colors, seen & face) * pictures.mattes
        # From a little under the chin, where the neck begins.
        start = pictures.chins[:, None, None, None] + 0.06 * self.options.size
        self.below = (self._rows() > start) * pictures.mattes

    def placed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotations and translations of the heads, and rotations of busts and necks, (B, 3, 3) or (B, 3)."""
        unknowns = self.unknowns
        rotations = axis_angle_to_matrix(unknowns["turn"]) @ self.rotations
        depth = self.translations[:, 2:]
        shift = unknowns["shift"]
        # Along the picture, and along the ray to the head: so size does not fight with place.
        translations = (self.translations + depth * shift * torch.tensor([1.0, 1.0, 0.0])) * torch.exp(10 * shift[:, 2:])
        busts = axis_angle_to_matrix(unknowns["bust"]) @ self.busts
        return rotations, translations, busts, self.necks @ axis_angle_to_matrix(unknowns["neck"])

    def posed(self) -> tuple[HeadParams, Tensor, Tensor]:
        """Parameters, viewmats (B, 4, 4), and the heads' turn and shift as the landmarks' evidence counts them (B, 6)."""
        rotations, translations, busts, necks = self.placed()
        identity = self.start_identity + torch.nn.functional.pad(
            self.unknowns["identity"], (0, len(self.start_identity) - len(self.unknowns["identity"]))
        )
        head = self.head
        joints = head.joint_template + torch.einsum("i,ijd->jd", identity, head.joint_basis)
        column = {name: j for j, name in enumerate(head.joint_names)}
        neck = joints[column["neck"]]
        top = joints[column["head"]] if "head" in column else neck
        bone = necks @ (top - neck) + neck
        viewmats = torch.eye(4).repeat(len(rotations), 1, 1)
        viewmats[:, :3, :3] = busts
        viewmats[:, :3, 3] = translations + rotations @ top - (busts @ bone[..., None])[..., 0]
        params = HeadParams(
            identity, self.still.expression, matrix_to_axis_angle(necks), matrix_to_axis_angle((busts @ necks).mT @ rotations),
            self.still.jaw, self.still.eyes,
        )  # fmt: skip
        return params, viewmats, torch.cat([self.unknowns["turn"], translations - self.translations], -1)

    def draw(self, refresh: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Colors (B, S, S, 3) and alphas (B, S, S, 1) of the head at the current unknowns, and how its poses moved (B, 6).

        Args:
            refresh: bring the points' shape up to date as well.
        """
        unknowns, size = self.unknowns, self.options.size
        params, viewmats, moved = self.posed()
        if self.shape is None or refresh:
            self.shape = self.surface.shape(params)
            self.harmonics = harmonics(self.shape.normals)
        shade = torch.einsum("bnk,bk->bn", self.harmonics, unknowns["light"])
        albedo = (unknowns["kinds"][self.surface.kind] + unknowns["albedo"]) * torch.exp(unknowns["tint"])[:, None]
        colors = (albedo * shade[..., None]).clamp(0, 1.5)
        gaussians = gaussians_of(self.surface.place(params), self.shape, colors)
        output = render(gaussians, viewmats, self.pictures.Ks, size, size)
        return output.colors, output.alphas, moved

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts at the current unknowns."""
        colors, alphas, moved = self.draw(step % SHAPE_STEPS == 0)
        parts = {**self._image_terms(colors, alphas), **self._priors(moved)}
        return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def judge(self) -> tuple[float, float, float]:
        """Sum of the image terms, overlap with the matte above the chin, and part of the mesh outside of the matte."""
        colors, alphas, _ = self.draw(True)
        terms = sum(float(value) for value in self._image_terms(colors, alphas).values())
        mesh, person = (alphas > 0.5) & (self.pictures.known > 0), self.pictures.mattes > 0.5
        above = self._rows() < self.pictures.chins[:, None, None, None]
        union = ((mesh | person) & above).sum().clamp_min(1)
        spill = (mesh & ~person).sum() / mesh.sum().clamp_min(1)
        return terms, float((mesh & person & above).sum() / union), float(spill)

    def _rows(self) -> Tensor:
        return torch.arange(self.options.size)[None, :, None, None] + 0.5

    def _image_terms(self, colors: Tensor, alphas: Tensor) -> dict[str, Tensor]:
        options, pictures = self.options, self.pictures
        # Where nothing is drawn the picture itself stands in, so that only what is drawn can be wrong.
        drawn = colors + (1 - alphas) * pictures.images
        return {
            "color": options.color * (_robust(drawn - pictures.images, options.knee) * pictures.mattes).mean(),
            "outside": options.outside * (_upper_half(alphas) * _upper_half(1 - pictures.mattes) * pictures.known).mean(),
            "skin": options.skin * (self.skin * (1 - alphas)).mean(),
            "below": options.below * (self.below * (1 - alphas)).mean(),
        }

    def _priors(self, moved: Tensor) -> dict[str, Tensor]:
        options, unknowns = self.options, self.unknowns
        mean = unknowns["bust"].mean(0)
        swing = (mean / MEAN_BUST_SIGMA).square().sum() + ((unknowns["bust"] - mean) / OWN_BUST_SIGMA).square().sum(-1).mean()
        state = self.offset + torch.cat([unknowns["identity"], moved.flatten()])
        identity = self.start_identity[: len(unknowns["identity"])] + unknowns["identity"]
        return {
            "pose": options.pose * (swing + (unknowns["neck"] / NECK_SIGMA).square().sum(-1).mean()),
            "albedo": options.albedo * unknowns["albedo"].abs().mean(),
            "light": options.light * (unknowns["light"][:, 1:].square().mean() + unknowns["tint"].square().mean()),
            "landmarks": options.posterior * (state @ (self.information @ state)) / len(moved),
            "identity": options.prior * identity.square().sum(),
        }


def _still_params(head: HeadModel, model: LandmarkModel, fit: Fit) -> HeadParams:
    """Expression, jaw and gaze (B, ..) of the landmark fit."""
    eyes = np.stack([[so3.log(so3.gaze_matrix(*gaze)[0]) for gaze in pair] for pair in fit.gaze])
    batch = len(fit.jaw)
    jaw = np.zeros((batch, 3))
    jaw[:, 0] = fit.jaw
    zeros = HeadParams.zeros(head, (batch,))
    return HeadParams(zeros.identity, _tensor(model.full_expression(fit.expression)), zeros.neck, zeros.head, _tensor(jaw), _tensor(eyes))


def _upper_half(values: Tensor) -> Tensor:
    """[0.5, 1] to [0, 1]: two soft edges that coincide must not push each other apart."""
    return 2 * (values - 0.5).clamp_min(0)


def _robust(difference: Tensor, knee: float) -> Tensor:
    """(B, S, S, 1) mean absolute difference of colors that levels off beyond ``knee``: hair, glasses and beards."""
    distance = difference.abs().mean(-1, keepdim=True)
    return distance / (1 + distance / knee)


def _tensor(values: np.ndarray | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def _orthonormal(rotations: np.ndarray) -> np.ndarray:
    """Rotations (B, 3, 3) exact again after float32 products."""
    left, _, right = np.linalg.svd(rotations)
    return left @ right
