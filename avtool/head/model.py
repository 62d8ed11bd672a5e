"""The one interface of all head models: linear identity and expression, posed by linear blend skinning.

Shape legend: ... batch, I identity, E expression, V vertices, F triangles, T uv, J joints, L landmarks.
Space: meters, x to the person's left, y up, z out of the face.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from avtool.head.params import HeadMesh, HeadParams, HeadStages
from avtool.rotations import axis_angle_to_matrix


@dataclass(frozen=True)
class HeadModel:
    """A parametric head. Call it with HeadParams to get a HeadMesh.

    Attributes:
        model_id: name and content hash; artifacts record it.
        template: (V, 3) mean head at rest.
        identity_basis: (I, V, 3) per unit of a coefficient (one standard deviation).
        expression_basis: (E, V, 3) at full weight.
        joint_template, joint_basis: (J, 3) and (I, J, 3): joints are linear in the identity.
        skin_weights: (V, J), rows sum to 1.
        joint_parents: parent index of every joint, -1 for the root; parents come first.
        faces, uv, uv_faces: triangles (F, 3), seeding atlas (T, 2) in [0, 1], its triangles (F, 3).
        source_uv, source_uv_faces: the model's own uv layout, which photographic skins fit, or None.
        face_part: (F,) index into PARTS. face_region: (F,) index into region_names.
        landmark_faces, landmark_barycentrics: (L,), (L, 3) surface points of the landmarks; landmark_ids (L,) says
            which of MediaPipe's 478 they are.
        pose_basis: (9 (J - 1), V, 3) pose correctives on the flattened joint rotations minus identity, or None.
        expression_joint_basis: (E, J, 3) where expressions move the joints (FLAME), or None.
    """

    model_id: str
    template: Tensor
    identity_basis: Tensor
    expression_basis: Tensor
    joint_template: Tensor
    joint_basis: Tensor
    skin_weights: Tensor
    faces: Tensor
    uv: Tensor
    uv_faces: Tensor
    face_part: Tensor
    face_region: Tensor
    region_names: tuple[str, ...]
    expression_names: tuple[str, ...]
    joint_names: tuple[str, ...]
    joint_parents: tuple[int, ...]
    landmark_faces: Tensor
    landmark_barycentrics: Tensor
    landmark_ids: Tensor
    source_uv: Tensor | None = None
    source_uv_faces: Tensor | None = None
    pose_basis: Tensor | None = None
    expression_joint_basis: Tensor | None = None

    @property
    def num_identity(self) -> int:
        return self.identity_basis.shape[0]

    @property
    def num_expression(self) -> int:
        return self.expression_basis.shape[0]

    @property
    def num_vertices(self) -> int:
        return self.template.shape[0]

    @property
    def num_faces(self) -> int:
        return self.faces.shape[0]

    @property
    def device(self) -> torch.device:
        return self.template.device

    def to(self, device: torch.device | str) -> HeadModel:
        """The model with every tensor on `device`."""
        tensors = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **tensors)

    def expression_index(self, name: str) -> int:
        """Index of a named expression; ValueError names the model's expressions when it has no such one."""
        if name not in self.expression_names:
            raise ValueError(f"{self.model_id} has no expression {name!r}; it has {', '.join(self.expression_names)}")
        return self.expression_names.index(name)

    def region_mask(self, *names: str) -> Tensor:
        """(F,) bool: triangles of the named regions."""
        wanted = torch.tensor([self.region_names.index(n) for n in names], device=self.device)
        return torch.isin(self.face_region, wanted)

    def __call__(self, params: HeadParams) -> HeadMesh:
        """Vertices (..., V, 3) and posed joints (..., J, 3); the batch shape is that of `params`."""
        rest, joints = self.rest_shape(params)
        return self._pose(rest, joints, self._joint_rotations(params))

    def stages(self, params: HeadParams) -> HeadStages:
        """The meshes of ``params``, ``params.unposed()`` and ``params.neutral()``, computing once what they share."""
        shape, joints = self._neutral_shape(params)
        rest, joints = self._expressed(shape, joints, params)
        posed = self._pose(rest, joints, self._joint_rotations(params)).vertices
        unposed = self._pose(rest, joints, self._joint_rotations(params.unposed())).vertices
        # Without turned joints skinning changes nothing.
        return HeadStages(posed, unposed, shape)

    def rest_shape(self, params: HeadParams) -> tuple[Tensor, Tensor]:
        """Unposed vertices (..., V, 3) with expression and offsets, and rest joints (..., J, 3)."""
        return self._expressed(*self._neutral_shape(params), params)

    def _neutral_shape(self, params: HeadParams) -> tuple[Tensor, Tensor]:
        """Vertices (..., V, 3) and joints (..., J, 3) of identity and offsets alone."""
        identity = _unexpand(params.identity, event_dims=1)
        shaped = self.template + _combine(identity, self.identity_basis)
        joints = self.joint_template + _combine(identity, self.joint_basis)
        return shaped if params.offsets is None else shaped + params.offsets, joints

    def _expressed(self, shape: Tensor, joints: Tensor, params: HeadParams) -> tuple[Tensor, Tensor]:
        """Vertices and joints of the neutral shape with the expression added."""
        expression = _unexpand(params.expression, event_dims=1)
        if self.expression_joint_basis is not None:
            joints = joints + _combine(expression, self.expression_joint_basis)
        return shape + _combine(expression, self.expression_basis), joints

    def _pose(self, rest: Tensor, joints: Tensor, rotations: Tensor) -> HeadMesh:
        """Pose correctives, then skinning."""
        if self.pose_basis is not None:
            feature = (rotations[..., 1:, :, :] - torch.eye(3, device=self.device)).flatten(-3)
            rest = rest + _combine(feature, self.pose_basis)
        return self._skin(rest, joints, rotations)

    def landmarks(self, vertices: Tensor) -> Tensor:
        """Landmark points (..., L, 3) on vertices (..., V, 3)."""
        corners = vertices[..., self.faces[self.landmark_faces], :]
        return (corners * self.landmark_barycentrics[..., None]).sum(-2)

    def _joint_rotations(self, params: HeadParams) -> Tensor:
        """(..., J, 3, 3) local rotations. A model without a head joint turns the head at the neck."""
        axis_angles = {
            "neck": params.neck,
            "head": params.head,
            "jaw": params.jaw,
            "eye_l": params.eyes[..., 0, :],
            "eye_r": params.eyes[..., 1, :],
        }
        shape = torch.broadcast_shapes(*(w.shape for w in axis_angles.values()))
        names = list(axis_angles)
        matrices = axis_angle_to_matrix(torch.stack([axis_angles[n].expand(shape) for n in names], dim=-2))
        local = dict(zip(names, matrices.unbind(-3)))
        if "head" not in self.joint_names:
            local["neck"] = local["neck"] @ local["head"]
        identity = torch.eye(3, dtype=matrices.dtype, device=matrices.device).expand(*shape[:-1], 3, 3)
        return torch.stack([local.get(n, identity) for n in self.joint_names], dim=-3)

    def _skin(self, rest: Tensor, joints: Tensor, rotations: Tensor) -> HeadMesh:
        """Linear blend skinning of rest vertices by joint rotations (..., J, 3, 3)."""
        world: list[Tensor] = []
        posed: list[Tensor] = []
        for j, parent in enumerate(self.joint_parents):
            local, here = rotations[..., j, :, :], joints[..., j, :]
            if parent < 0:
                world.append(local)
                posed.append(here.expand(*local.shape[:-2], 3))
                continue
            world.append(world[parent] @ local)
            bone = here - joints[..., parent, :]
            posed.append(posed[parent] + (world[parent] @ bone[..., None]).squeeze(-1))
        turned, at = torch.stack(world, dim=-3), torch.stack(posed, dim=-2)
        shift = at - (turned @ joints[..., None]).squeeze(-1)
        transform = torch.cat((turned, shift[..., None]), dim=-1)  # (..., J, 3, 4)
        blended = (self.skin_weights @ transform.flatten(-2)).unflatten(-1, (3, 4))
        vertices = (blended[..., :3] * rest[..., None, :]).sum(-1) + blended[..., 3]
        return HeadMesh(vertices, at)


def _combine(coefficients: Tensor, basis: Tensor) -> Tensor:
    """sum_k coefficients[..., k] basis[k] for coefficients (..., K), basis (K, ..)."""
    return (coefficients @ basis.flatten(1)).unflatten(-1, basis.shape[1:])


def _unexpand(tensor: Tensor, event_dims: int) -> Tensor:
    """Undo expand() on batch dimensions, so that what is shared is computed once and broadcast after."""
    for d in range(tensor.dim() - event_dims):
        if tensor.shape[d] > 1 and tensor.stride(d) == 0:
            tensor = tensor.narrow(d, 0, 1)
    return tensor
