"""A head model reduced to what the landmark fit needs: a few hundred points, linear in shape and expression.

Every basis is taken from the `HeadModel`, so any model behind it works. In the head joint's frame the points are rigid except for the two eyes (gaze) and, for models without jaw shapes, the jaw.
Shapes: L landmarks, I identity and E expression components in use, J joints. Lengths are metres, numpy float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..head import HeadModel

MAX_IDENTITY = 80
MAX_EXPRESSION = 60
UNUSED_SHAPES = ("eyeLook", "tongueOut")
"""ARKit shapes that landmarks must not drive: gaze turns the eye joints, and no landmark sees the tongue."""


@dataclass(frozen=True)
class LandmarkModel:
    """Landmark points of one head model.

    template (L, 3); identity_basis (L, 3, I); expression_basis (L, 3, E); landmark_ids (L,) rows of the 478 MediaPipe
    landmarks; expression_idx (E,) columns of the model's own expression vector; joints (J, 3) and joints_basis
    (J, 3, I); eye_weights (2, L) and jaw_weights (L,) skinning weights; bounds of an expression weight; names of joints.
    """

    template: np.ndarray
    identity_basis: np.ndarray
    expression_basis: np.ndarray
    landmark_ids: np.ndarray
    expression_idx: np.ndarray
    expression_bounds: tuple[float, float]
    expression_sigma: np.ndarray
    joints: dict[str, np.ndarray]
    joints_basis: dict[str, np.ndarray]
    eye_weights: np.ndarray
    jaw_weights: np.ndarray
    num_identity: int
    num_expression: int

    @property
    def uses_jaw(self) -> bool:
        """Whether the jaw joint opens the mouth (true where no jawOpen shape does)."""
        return bool(self.jaw_weights.any())

    def joint(self, name: str, identity: np.ndarray) -> np.ndarray:
        """Rest position (3,) of a joint for identity (I,)."""
        return self.joints[name] + self.joints_basis[name] @ identity[: self.joints_basis[name].shape[-1]]

    def full_identity(self, identity: np.ndarray) -> np.ndarray:
        """Identity of the model's own length from the components in use."""
        return np.pad(identity, (0, self.num_identity - len(identity)))

    def full_expression(self, expression: np.ndarray) -> np.ndarray:
        """Expressions (..., num_expression) from the components in use (..., E)."""
        full = np.zeros((*expression.shape[:-1], self.num_expression))
        full[..., self.expression_idx] = expression
        return full


def build_landmark_model(head: HeadModel) -> LandmarkModel:
    """Reduce ``head`` to its landmarks."""
    num_identity = min(MAX_IDENTITY, head.num_identity)
    names = list(head.expression_names)
    is_arkit = "jawOpen" in names
    used = [i for i, name in enumerate(names) if not name.startswith(UNUSED_SHAPES)] if is_arkit else []
    expression_idx = np.array(used or range(min(MAX_EXPRESSION, head.num_expression)), dtype=np.int64)
    weights = _at_landmarks(head, head.skin_weights)
    joints, joint_basis = _numpy(head.joint_template), _numpy(head.joint_basis)[:num_identity]
    column = {name: j for j, name in enumerate(head.joint_names)}
    return LandmarkModel(
        template=_at_landmarks(head, head.template),
        identity_basis=_as_columns(_at_landmarks(head, head.identity_basis[:num_identity])),
        expression_basis=_as_columns(_at_landmarks(head, head.expression_basis[torch.from_numpy(expression_idx)])),
        landmark_ids=head.landmark_ids.cpu().numpy(),
        expression_idx=expression_idx,
        expression_bounds=(0.0, 1.0) if is_arkit else (-3.0, 3.0),
        expression_sigma=_expression_sigma([names[i] for i in used]) if is_arkit else np.ones(len(expression_idx)),
        joints={name: joints[j] for name, j in column.items()},
        joints_basis={name: joint_basis[:, j].T for name, j in column.items()},
        eye_weights=np.stack([weights[:, column[name]] for name in ("eye_l", "eye_r")]),
        jaw_weights=np.zeros(len(weights)) if is_arkit else weights[:, column["jaw"]],
        num_identity=head.num_identity,
        num_expression=head.num_expression,
    )


def _expression_sigma(names: list[str]) -> np.ndarray:
    """Prior scale of each ARKit weight. Shapes that imitate one another through few landmarks are held tighter."""
    wide = {"eyeBlinkLeft", "eyeBlinkRight", "jawOpen"}
    tight = {"cheekPuff", "jawForward", "noseSneerLeft", "noseSneerRight"}
    return np.array([0.6 if name in wide else 0.15 if name in tight else 0.3 for name in names])


def _at_landmarks(head: HeadModel, values: torch.Tensor) -> np.ndarray:
    """Values (..., V, D) at the vertices -> (..., L, D) at the landmarks."""
    corners = values[..., head.faces[head.landmark_faces], :]
    return _numpy((corners * head.landmark_barycentrics[..., None]).sum(-2))


def _as_columns(basis: np.ndarray) -> np.ndarray:
    """(K, L, 3) -> contiguous (L, 3, K)."""
    return np.ascontiguousarray(np.moveaxis(basis, 0, -1))


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
