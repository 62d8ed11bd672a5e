"""Avatar: one person, ready to be driven. Its file needs nothing but the installed package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from avtool.artifacts.tensors import load_tensors, require, save_tensors
from avtool.artifacts.track import Track
from avtool.errors import FormatError
from avtool.gaussians.container import Gaussians
from avtool.gaussians.rig import carry_means
from avtool.gaussians.seeding import PointBinding
from avtool.head import HeadModel, HeadParams
from avtool.prior.gapnet import GapNet, Geometry
from avtool.prior.motion import Motion
from avtool.prior.puppet import batch_within
from avtool.prior.refiner import Refiner
from avtool.prior.storage import (
    binding_tensors,
    load_binding,
    load_networks,
    module_tensors,
    network_metadata,
    resolve_head,
)
from avtool.prior.synthesis import dynamic_signal, finish, pose_gaussians, render_channels

WHITE = (1.0, 1.0, 1.0)


class Avatar:
    """A person: head identity and static offsets, code z, GAPNet with the person's f, refiner or None.

    What no expression changes (A^g, the neutral mesh, most of M2's first layer) is computed once, on first use.

    Args:
        identity: (I,) head coefficients. offsets: (V, 3) metres or None. code: (1, P, C2).
        metadata: string entries that save() keeps (how the avatar was made).
    """

    def __init__(
        self,
        head: HeadModel,
        binding: PointBinding,
        gapnet: GapNet,
        refiner: Refiner | None,
        code: Tensor,
        identity: Tensor,
        offsets: Tensor | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.head, self.binding, self.gapnet, self.refiner = head, binding, gapnet, refiner
        self.code, self.identity, self.offsets = code.detach(), identity.detach(), offsets
        self.metadata = dict(metadata or {})
        for module in (gapnet, refiner):
            if module is not None:
                module.requires_grad_(False).eval()
        self._static: tuple[Geometry, Tensor, list[Tensor]] | None = None

    @property
    def head_model_id(self) -> str:
        """Id of the head model; tracks that drive this avatar must carry the same."""
        return self.head.model_id

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.code.device

    @property
    def identity_params(self) -> HeadParams:
        """This person, neutral, without a batch dimension."""
        return replace(HeadParams.zeros(self.head), identity=self.identity, offsets=self.offsets)

    def params_for(self, expression: Tensor, neck: Tensor, head: Tensor, jaw: Tensor, eyes: Tensor) -> HeadParams:
        """This person with the given motion: expression (B, E), neck, head, jaw (B, 3), eyes (B, 2, 3)."""
        return HeadParams(
            identity=self.identity, expression=expression, neck=neck, head=head, jaw=jaw, eyes=eyes, offsets=self.offsets
        )

    @torch.no_grad()
    def _prepare(self) -> tuple[Geometry, Tensor, list[Tensor]]:
        """Local geometry, its points on the neutral mesh (1, N, 3), and the static blocks of M2."""
        if self._static is None:
            geometry = self.gapnet.geometry(self.code)
            vertices = self.head(self.identity_params).vertices[None]
            neutral = carry_means(geometry.means, vertices, self.head.faces, self.binding)
            self._static = geometry, neutral, self.gapnet.appearance_static(self.code, geometry.raw)
        return self._static

    def gaussians(self, params: HeadParams) -> Gaussians:
        """Gaussians of B posed frames, (B, N), with 3 rgb and 29 latent channels."""
        geometry, neutral, static = self._prepare()
        head, binding = self.head, self.binding
        meshes = head.stages(params)
        expressed = carry_means(geometry.means, meshes.unposed, head.faces, binding)
        channels = self.gapnet.appearance(static, dynamic_signal(expressed, neutral))
        return pose_gaussians(geometry, meshes.posed, head.faces, binding, channels)

    def render(
        self,
        params: HeadParams,
        viewmats: Tensor,
        Ks: Tensor,
        width: int,
        height: int,
        background: Tensor | tuple[float, float, float] | None = None,
        refine: bool = True,
        backend: str = "auto",
    ) -> tuple[Tensor, Tensor]:
        """Pictures (B, H, W, 3) in [0, 1] on a background color (white when None), and coverage (B, H, W, 1)."""
        color = torch.as_tensor(WHITE if background is None else background, dtype=torch.float32, device=self.device)
        refiner = self.refiner if refine else None
        gaussians = self.gaussians(params)
        if refiner is None:
            gaussians = gaussians.with_colors(gaussians.colors[..., :3])
        colors, alphas = render_channels(gaussians, viewmats, Ks, width, height, backend)
        image, _ = finish(colors, alphas, refiner, color)
        return image.clamp(0, 1), alphas

    def watch(self, motion: Motion, track: Track, sources: Sequence[int]) -> Motion:
        """As Puppet: tracked parameters are all that an avatar needs of a driver."""
        return motion

    def frames_at_once(self, size: int, refine: bool) -> int:
        """As Puppet. A frame's largest moment is the refiner's first layer: its input and output and their copies in the network's
        layout, about three times the rendered channels (measured at 256 to 1024 pixels)."""
        channels = self.gapnet.config.appearance_channels if refine else 3
        return batch_within(3 * 4 * channels * size * size, self.device)

    @torch.no_grad()
    def perform(self, motion: Motion, size: int, background: Tensor, refine: bool) -> tuple[Tensor, Tensor]:
        """As Puppet."""
        params = self.params_for(motion.expression, motion.neck, motion.head, motion.jaw, motion.eyes)
        return self.render(params, motion.viewmats, motion.Ks, size, size, background=background, refine=refine)

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """Write an "avatar/1" file."""
        tensors = {
            **binding_tensors(self.binding),
            **module_tensors("gapnet", self.gapnet),
            **({} if self.refiner is None else module_tensors("refiner", self.refiner)),
            "identity": self.identity,
            "code": self.code,
        }
        if self.offsets is not None:
            tensors["offsets"] = self.offsets
        entries = {
            "head_model": self.head_model_id,
            **network_metadata(self.gapnet, self.refiner, self.binding),
            "avatar": json.dumps({**self.metadata, **(metadata or {})}, sort_keys=True),
        }
        save_tensors(path, tensors, "avatar/1", entries)

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu", head: HeadModel | None = None) -> Avatar:
        """Read an "avatar/1" file. `head` is needed for FLAME only."""
        tensors, metadata = load_tensors(path, "avatar")
        head = resolve_head(path, metadata.get("head_model", ""), head, device)
        binding = load_binding(path, tensors, metadata, head.num_faces)
        gapnet, refiner = load_networks(path, tensors, metadata, binding)
        config = gapnet.config
        require(
            path,
            tensors,
            {"identity": (head.num_identity,), "code": (1, config.num_parts, config.code_channels)}
            | ({"offsets": (head.num_vertices, 3)} if "offsets" in tensors else {}),
        )
        offsets = tensors.get("offsets")
        return Avatar(
            head,
            binding.to(device),
            gapnet.to(device),
            None if refiner is None else refiner.to(device),
            tensors["code"].float().to(device),
            tensors["identity"].float().to(device),
            None if offsets is None else offsets.float().to(device),
            _notes(path, metadata.get("avatar", "{}")),
        )


def _notes(path: str | Path, text: str) -> dict[str, str]:
    """How the avatar was made, as its file says."""
    try:
        notes = json.loads(text)
    except ValueError as error:
        raise FormatError(path, "avatar", "JSON", str(error), "write the file again") from error
    if not isinstance(notes, dict):
        raise FormatError(path, "avatar", "a JSON object", type(notes).__name__, "write the file again")
    return notes
