"""Prior: what training learns of many people and personalization starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from avtool.artifacts.tensors import load_tensors, save_tensors
from avtool.errors import AvtoolError
from avtool.gaussians.seeding import PointBinding, seed_points
from avtool.head import PARTS, HeadModel
from avtool.prior.codebook import Codebook
from avtool.prior.gapnet import PRESETS, GapNet
from avtool.prior.refiner import REFINER_WIDTHS, Refiner
from avtool.prior.storage import (
    binding_tensors,
    load_binding,
    load_module,
    load_networks,
    module_tensors,
    network_metadata,
    resolve_head,
)
from avtool.prior.synthesis import base_scales, bound_points

DEFAULT_PRIOR = Path(__file__).parent / "data" / "default.safetensors"


@dataclass
class Prior:
    """Head model, point binding, GAPNet (f, M1, M2), codebook z, refiner or None."""

    head: HeadModel
    binding: PointBinding
    gapnet: GapNet
    codebook: Codebook
    refiner: Refiner | None

    @staticmethod
    def create(
        head: HeadModel,
        num_identities: int,
        *,
        preset: str = "default",
        uv_size: int = 128,
        refiner: str = "default",
        single_part: bool = False,
        dynamics: bool = True,
        seed: int = 0,
    ) -> Prior:
        """An untrained prior, whose every identity is the mean head in skin color.

        Args:
            preset: key of gapnet.PRESETS. refiner: key of refiner.REFINER_WIDTHS.
            single_part: one MLP and one code for the whole head (the ablation "without parts"). dynamics: False drops e.
        """
        for name, value, known in (("preset", preset, PRESETS), ("refiner", refiner, REFINER_WIDTHS)):
            if value not in known:
                raise AvtoolError(f"unknown {name} {value!r}", f"choose one of {', '.join(known)}")
        binding = seed_points(head.to("cpu"), uv_size).to(head.device)
        config = replace(PRESETS[preset], num_parts=1 if single_part else len(PARTS), dynamics=dynamics)
        if single_part:
            binding = replace(binding, part=torch.zeros_like(binding.part))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            gapnet = GapNet(
                config,
                binding.part_sizes(config.num_parts),
                base_scales(head, binding).cpu(),
                bound_points(head, binding).cpu(),
            )
            width = REFINER_WIDTHS[refiner]
            network = Refiner(config.appearance_channels, width) if width else None
        codebook = Codebook(num_identities, config.num_parts, config.code_channels)
        prior = Prior(head, binding, gapnet, codebook, network)
        return prior.to(head.device)

    def sizes(self) -> dict[str, object]:
        """What create() has to be told to make networks of this prior's shapes; AvtoolError when no preset has them."""
        config, width = self.gapnet.config, 0 if self.refiner is None else self.refiner.width
        same = {"num_parts": config.num_parts, "dynamics": config.dynamics}
        presets = [name for name, preset in PRESETS.items() if replace(preset, **same) == config]
        refiners = [name for name, known in REFINER_WIDTHS.items() if known == width]
        if not (presets and refiners):
            raise AvtoolError("the prior has sizes of its own, which no preset makes", "start from one of train-prior")
        return {
            "preset": presets[0], "refiner": refiners[0], "uv_size": self.binding.uv_size,
            "single_part": config.num_parts == 1, "dynamics": config.dynamics,
        }  # fmt: skip

    def for_people(self, num_identities: int) -> Prior:
        """The same networks, not copied, for K other people, all of whom are the mean of those it knows."""
        codes = self.codebook.codes.detach()
        codebook = Codebook(num_identities, *codes.shape[1:]).to(codes.device)
        with torch.no_grad():
            codebook.codes.copy_(codes.mean(0))
        return replace(self, codebook=codebook)

    @property
    def num_identities(self) -> int:
        """K."""
        return self.codebook.codes.shape[0]

    @property
    def num_parts(self) -> int:
        """P."""
        return self.gapnet.config.num_parts

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.gapnet.features.device

    def to(self, device: torch.device | str) -> Prior:
        """Move everything, in place for the networks."""
        self.head, self.binding = self.head.to(device), self.binding.to(device)
        for module in (self.gapnet, self.codebook, self.refiner):
            if module is not None:
                module.to(device)
        return self

    def parameter_groups(self) -> dict[str, list[Tensor]]:
        """Parameters by the name that a Stage gives a learning rate to."""
        groups = {
            "features": [self.gapnet.features],
            "codes": [self.codebook.codes],
            "geometry_mlp": list(self.gapnet.geometry_mlp.parameters()),
            "appearance_mlp": list(self.gapnet.appearance_mlp.parameters()),
        }
        if self.refiner is not None:
            groups["refiner"] = list(self.refiner.parameters())
        return groups

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """Write a "prior/1" file."""
        tensors = {
            **binding_tensors(self.binding),
            **module_tensors("gapnet", self.gapnet),
            **module_tensors("codebook", self.codebook),
            **({} if self.refiner is None else module_tensors("refiner", self.refiner)),
        }
        entries = {
            "head_model": self.head.model_id,
            **network_metadata(self.gapnet, self.refiner, self.binding),
            **(metadata or {}),
        }
        save_tensors(path, tensors, "prior/1", entries)

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu", head: HeadModel | None = None) -> Prior:
        """Read a "prior/1" file; "default" is the one in the package. `head` is needed for FLAME only."""
        file = DEFAULT_PRIOR if str(path) == "default" else Path(path)
        if file == DEFAULT_PRIOR and not file.is_file():
            raise AvtoolError("the package has no default prior", "pass one with --prior FILE (avtool train-prior)")
        tensors, metadata = load_tensors(file, "prior")
        head = resolve_head(file, metadata.get("head_model", ""), head, "cpu")
        binding = load_binding(file, tensors, metadata, head.num_faces)
        gapnet, refiner = load_networks(file, tensors, metadata, binding)
        codes = tensors.get("codebook.codes")
        num_identities = 0 if codes is None or codes.dim() != 3 else len(codes)
        codebook = Codebook(num_identities, gapnet.config.num_parts, gapnet.config.code_channels)
        load_module(file, "codebook", codebook, tensors)
        return Prior(head, binding, gapnet, codebook, refiner).to(device)
