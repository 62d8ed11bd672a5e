"""Levenberg-Marquardt fit of a head model to face landmarks, with an analytic Jacobian.

Unknowns: identity (shared), one log focal length per camera, and per frame a rigid pose, expression weights within
bounds (active set), gaze of both eyes and, for models without jaw shapes, a jaw angle. Residuals are whitened by the
detector's calibrated covariance (noise.py) in axes that turn with the face. The pose found is that of the HEAD joint;
bust.py divides it into the bust's viewmat, the neck and the head.
Shapes: n frames, L landmarks, I identity, E expression, C cameras. Pixels, metres, radians; numpy float64.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import so3
from .affine_start import initial_fit
from .fit_state import Fit, FitOptions, Observation
from .landmark_model import LandmarkModel
from .noise import LandmarkNoise

OUTER_EYE_CORNERS = (33, 263)
GAZE_SIGMA = np.radians(12.0)
VERGENCE_SIGMA = np.radians(3.0)
JAW_SIGMA = 0.2
SIZE_SIGMA = 0.02
"""Spread of the whole head's size. One camera cannot tell a small head from a far one, and under the identity's prior
alone the most probable head is far too small: shrinking it shrinks all that the prior has to pay for."""
ROBUST_KNEE = 3.0
"""Residuals beyond this many sigma grow linearly instead of quadratically (Huber)."""


def interocular(landmarks: np.ndarray) -> float:
    """Distance of the outer eye corners in pixels, landmarks (478, 2)."""
    return float(np.linalg.norm(landmarks[OUTER_EYE_CORNERS[0]] - landmarks[OUTER_EYE_CORNERS[1]]))


def fit_landmarks(
    model: LandmarkModel,
    noise: LandmarkNoise,
    observations: list[Observation],
    focal_priors: np.ndarray,
    options: FitOptions = FitOptions(),
    start: Fit | None = None,
    previous: np.ndarray | None = None,
    previous_weight: float = 0.0,
    identity_mean: np.ndarray | None = None,
) -> Fit:
    """Fit all observations jointly.

    Args:
        model: the reduced head model.
        noise: calibration of the landmarks of ``model``.
        observations: n detected faces of one person.
        focal_priors: (C,) focal lengths in pixels.
        start: where to start; None finds a start by an affine camera.
        previous: (n, E) expression to stay close to, with ``previous_weight`` (in units of 1 / sigma^2).
        identity_mean: (I,) center of the identity's prior; None is the mean person.
    """
    if not observations:
        raise ValueError("fit_landmarks: expected at least one observation")
    solver = _Solver(model, noise, observations, np.asarray(focal_priors, np.float64), options)
    solver.previous, solver.previous_weight = previous, previous_weight
    if identity_mean is not None:
        solver.identity_mean = identity_mean
    state = start if start is not None else initial_fit(model, observations, focal_priors)
    return solver.run(state)


def landmark_errors(model: LandmarkModel, noise: LandmarkNoise, observations: list[Observation], fit: Fit) -> np.ndarray:
    """(n,) mean landmark error of each frame of a fit, as a fraction of the inter-ocular distance."""
    solver = _Solver(model, noise, observations, fit.focals, FitOptions())
    return np.array([solver.error(fit, k) for k in range(len(observations))])


def landmark_information(
    model: LandmarkModel, noise: LandmarkNoise, observations: list[Observation], fit: Fit, options: FitOptions
) -> np.ndarray:
    """What the landmarks say at a fit about [identity, then turn and shift of each frame], (I + 6 n, I + 6 n): the
    Gauss-Newton matrix without the identity's prior (its size keeps its own), all other unknowns marginalized."""
    solver = _Solver(model, noise, observations, fit.focals, replace(options, identity_weight=0.0, fix_identity=False))
    solver.start_rotations = fit.rotations
    matrix, _ = solver.normal_equations(fit)
    keep = np.zeros(len(matrix), bool)
    keep[: solver.num_identity] = True
    keep[solver.num_global :].reshape(-1, solver.block)[:, :6] = True
    free = ~keep
    if options.fix_focal:
        free[solver.num_identity : solver.num_global] = False
    cross = matrix[np.ix_(keep, free)]
    return matrix[np.ix_(keep, keep)] - cross @ np.linalg.solve(matrix[np.ix_(free, free)] + 1e-9 * np.eye(free.sum()), cross.T)


class _Solver:
    """One problem: assembles normal equations in the order identity, log focals, then a block per frame of
    rotation 3, translation 3, gaze 4, jaw 1, expression E."""

    POSE = 11

    def __init__(
        self,
        model: LandmarkModel,
        noise: LandmarkNoise,
        observations: list[Observation],
        focal_priors: np.ndarray,
        options: FitOptions,
    ) -> None:
        self.model, self.noise, self.options = model, noise, options
        self.observations = observations
        self.targets = [o.landmarks[model.landmark_ids].astype(np.float64) for o in observations]
        self.focal_priors = focal_priors
        self.num_identity = 0 if options.fix_identity else model.identity_basis.shape[-1]
        self.num_global = self.num_identity + len(focal_priors)
        self.block = self.POSE + model.expression_basis.shape[-1]
        centered = model.template - model.template.mean(0)
        self.mean_size = np.sqrt((centered**2).sum(-1).mean())
        self.size_slope = np.einsum("li,lik->k", centered, model.identity_basis) / (centered**2).sum()
        self.eye_rows = [np.flatnonzero(w > 0.5) for w in model.eye_weights]
        self.identity_mean = np.zeros(model.identity_basis.shape[-1])
        self.start_rotations: np.ndarray | None = None
        self._neutral: tuple | None = None  # an identity and what `neutral` gave for it
        self.previous: np.ndarray | None = None
        self.previous_weight = 0.0

    def run(self, state: Fit) -> Fit:
        damping, step = 1e-2, 0
        self.start_rotations = state.rotations
        cost = self.cost(state)
        for step in range(1, self.options.iterations + 1):
            matrix, gradient = self.normal_equations(state)
            accepted = None
            for _ in range(7):
                candidate = self.step(state, matrix, gradient, damping)
                candidate_cost = self.cost(candidate)
                if candidate_cost < cost:
                    accepted = candidate
                    break
                damping *= 6.0
            if accepted is None:
                break
            gain, state, cost = (cost - candidate_cost) / cost, accepted, candidate_cost
            damping = max(damping / 5.0, 1e-7)
            if gain < self.options.tolerance:
                break
        return replace(state, errors=landmark_errors(self.model, self.noise, self.observations, state), iterations=step)

    def error(self, state: Fit, k: int) -> float:
        """Mean distance of projected and detected landmarks, as a fraction of the inter-ocular distance."""
        pixels, _, _, _ = self.project(state, k)
        return float(np.linalg.norm(pixels - self.targets[k], axis=1).mean() / interocular(self.observations[k].landmarks))

    def neutral(self, identity: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Points (L, 3) and joints (3,) of an identity in the rest pose; the last one asked for is kept."""
        if self._neutral is None or self._neutral[0] is not identity:
            joints = {name: self.model.joint(name, identity) for name in self.model.joints}
            self._neutral = identity, (self.model.template + self.model.identity_basis @ identity, joints)
        return self._neutral[1]

    def shape(self, state: Fit, k: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Points (L, 3) in the rest pose with gaze and jaw applied, and their derivatives by the gaze and the jaw."""
        model = self.model
        neutral, joints = self.neutral(state.identity)
        points = neutral + model.expression_basis @ state.expression[k]
        derivatives = []
        for side, name in enumerate(("eye_l", "eye_r")):
            rows, joint = self.eye_rows[side], joints[name]
            turned, by_pitch, by_yaw = so3.gaze_matrix(*state.gaze[k, side])
            lever = points[rows] - joint
            derivatives += [lever @ by_pitch.T, lever @ by_yaw.T]
            points[rows] = lever @ turned.T + joint
        if model.uses_jaw:
            joint = joints["jaw"]
            turn = so3.exp(np.array([state.jaw[k], 0.0, 0.0]))
            swing = (points - joint) @ turn.T
            derivatives.append(model.jaw_weights[:, None] * (swing @ so3.skew(np.array([1.0, 0, 0])).T))
            points = points + model.jaw_weights[:, None] * (swing + joint - points)
        return points, derivatives

    def turned_bases(self, state: Fit, k: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Identity and expression bases (rows, 3, .) of one eye's landmarks, turned with the gaze about a joint that moves
        with the identity."""
        model, rows = self.model, self.eye_rows[side]
        turned = so3.gaze_matrix(*state.gaze[k, side])[0]
        still = model.joints_basis[("eye_l", "eye_r")[side]][:, : model.identity_basis.shape[-1]]
        return turned @ (model.identity_basis[rows] - still) + still, turned @ model.expression_basis[rows]

    def project(self, state: Fit, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
        """Pixels (L, 2), camera points (L, 3), rest points (L, 3) and the derivatives of `shape`."""
        points, derivatives = self.shape(state, k)
        camera = points @ state.rotations[k].T + state.translations[k]
        focal = state.focals[self.observations[k].camera]
        pixels = focal * camera[:, :2] / np.maximum(camera[:, 2:], 1e-3) + self.observations[k].center
        return pixels, camera, points, derivatives

    def whitening(
        self, state: Fit, k: int, camera: np.ndarray, points: np.ndarray, pixels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(L, 2, 2) per-landmark transform of pixel residuals to robust millimetres, and residuals (L, 2) in them.

        Millimetres are those of the mean head: if they were this head's own, a smaller head nearer to the camera
        would look like a better fit.
        """
        focal = state.focals[self.observations[k].camera]
        size = np.sqrt(((points - points.mean(0)) ** 2).sum(-1).mean())
        mm_per_pixel = 1000.0 * camera[:, 2].mean() / focal * self.mean_size / size
        right = state.rotations[k][:2, 0]
        cos, sin = right / max(np.linalg.norm(right), 1e-6)
        upright = np.array([[cos, sin], [-sin, cos]]) * mm_per_pixel
        residual = (pixels - self.targets[k]) @ upright.T - self.noise.bias
        sigma = 1.0 / self.noise.inverse_sigma.reshape(-1, 2)
        size = np.linalg.norm(residual / sigma, axis=1) / np.sqrt(2.0) * _marginal_scale(self.noise)
        robust = np.sqrt(1.0 / np.maximum(1.0, size / ROBUST_KNEE))
        return robust[:, None, None] * upright, robust[:, None] * residual

    def residual(self, state: Fit, k: int) -> np.ndarray:
        """Whitened residuals (2L,)."""
        pixels, camera, points, _ = self.project(state, k)
        if (camera[:, 2] < 0.02).any():
            return np.full(2 * len(camera), 1e6)
        return self.noise.whiten(self.whitening(state, k, camera, points, pixels)[1].reshape(-1))

    def jacobian(self, state: Fit, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whitened residuals (2L,), Jacobians by the identity and this camera's log focal (2L, I + 1) and by the
        frame's block (2L, POSE + E)."""
        model = self.model
        pixels, camera, points, derivatives = self.project(state, k)
        upright, residual = self.whitening(state, k, camera, points, pixels)
        focal = state.focals[self.observations[k].camera]
        x, y, z = camera.T
        zero = np.zeros_like(z)
        by_camera = np.stack(
            [np.stack([focal / z, zero, -focal * x / z**2], -1), np.stack([zero, focal / z, -focal * y / z**2], -1)], 1
        )
        by_camera = upright @ by_camera
        rotated = camera - state.translations[k]
        by_point = by_camera @ state.rotations[k]
        columns = np.zeros((len(z), 2, self.block))
        columns[:, :, 0:3] = by_camera @ -so3.skew(rotated)
        columns[:, :, 3:6] = by_camera
        for index, derivative in enumerate(derivatives[:4]):
            rows = self.eye_rows[index // 2]
            columns[rows, :, 6 + index] = np.einsum("lij,lj->li", by_point[rows], derivative)
        if len(derivatives) > 4:
            columns[:, :, 10] = np.einsum("lij,lj->li", by_point, derivatives[4])
        columns[:, :, self.POSE :] = by_point @ model.expression_basis
        by_identity = by_point @ model.identity_basis if self.num_identity else np.zeros((len(z), 2, 0))
        for side, rows in enumerate(self.eye_rows):
            identity_rows, expression_rows = self.turned_bases(state, k, side)
            columns[rows, :, self.POSE :] = by_point[rows] @ expression_rows
            if self.num_identity:
                by_identity[rows] = by_point[rows] @ identity_rows
        by_focal = np.einsum("lij,lj->li", upright, pixels - self.observations[k].center)[..., None]
        shared = np.concatenate([by_identity, by_focal], -1)
        whiten = self.noise.whiten
        both = np.concatenate([residual[..., None], shared, columns], -1).reshape(2 * len(z), -1)
        both = whiten(both)
        split = 1 + shared.shape[-1]
        return both[:, 0], both[:, 1:split], both[:, split:]

    def normal_equations(self, state: Fit) -> tuple[np.ndarray, np.ndarray]:
        size = self.num_global + len(self.observations) * self.block
        matrix, gradient = np.zeros((size, size)), np.zeros(size)
        for k, observation in enumerate(self.observations):
            residual, shared, own = self.jacobian(state, k)
            place = np.r_[0 : self.num_identity, self.num_identity + observation.camera]
            block = slice(self.num_global + k * self.block, self.num_global + (k + 1) * self.block)
            matrix[np.ix_(place, place)] += shared.T @ shared
            cross = shared.T @ own
            matrix[place, block] += cross
            matrix[block, place] += cross.T
            matrix[block, block] += own.T @ own
            gradient[place] += shared.T @ residual
            gradient[block] += own.T @ residual
        self._add_priors(state, matrix, gradient)
        return matrix, gradient

    def _prior_terms(self, state: Fit) -> tuple[np.ndarray, np.ndarray]:
        """Diagonal of the prior's matrix and its gradient, without the coupling of the two eyes."""
        options = self.options
        n, expressions = len(self.observations), len(self.model.expression_sigma)
        weight = np.zeros(self.num_global + n * self.block)
        offset = np.zeros_like(weight)
        if self.num_identity:
            weight[: self.num_identity] = options.identity_weight
            offset[: self.num_identity] = state.identity - self.identity_mean
        weight[self.num_identity : self.num_global] = options.focal_sigma**-2
        offset[self.num_identity : self.num_global] = np.log(state.focals / self.focal_priors)
        blocks, offsets = weight[self.num_global :].reshape(n, -1), offset[self.num_global :].reshape(n, -1)
        if options.rotation_sigma:
            blocks[:, 0:3] = options.rotation_sigma**-2
            offsets[:, 0:3] = so3.log(state.rotations @ np.swapaxes(self.start_rotations, -1, -2))
        blocks[:, 6:10], offsets[:, 6:10] = GAZE_SIGMA**-2, state.gaze.reshape(n, 4)
        blocks[:, 10], offsets[:, 10] = JAW_SIGMA**-2, state.jaw
        inverse = options.expression_weight * self.model.expression_sigma**-2
        blocks[:, self.POSE :], offsets[:, self.POSE :] = inverse, state.expression
        if self.previous is not None and self.previous_weight > 0:
            pull = self.previous_weight * self.model.expression_sigma**-2
            total = inverse + pull
            blocks[:, self.POSE :] = total
            offsets[:, self.POSE :] = state.expression - pull * self.previous / total
        assert blocks.shape[1] == self.POSE + expressions
        return weight, weight * offset

    def _add_priors(self, state: Fit, matrix: np.ndarray, gradient: np.ndarray) -> None:
        weight, slope = self._prior_terms(state)
        diagonal = np.arange(len(weight))
        matrix[diagonal, diagonal] += weight
        gradient += slope
        if self.num_identity:
            shared = slice(0, self.num_identity)
            matrix[shared, shared] += np.outer(self.size_slope, self.size_slope) * SIZE_SIGMA**-2
            gradient[shared] += self.size_slope * (self.size_slope @ state.identity) * SIZE_SIGMA**-2
        starts = self.num_global + self.block * np.arange(len(self.observations)) + 6
        left = (starts[:, None] + np.arange(2)).reshape(-1)  # pitch and yaw of the left eyes; the right ones follow
        right, weight = left + 2, VERGENCE_SIGMA**-2
        matrix[left, left] += weight
        matrix[right, right] += weight
        matrix[left, right] -= weight
        matrix[right, left] -= weight
        difference = (state.gaze[:, 0] - state.gaze[:, 1]).reshape(-1)
        gradient[left] += weight * difference
        gradient[right] -= weight * difference

    def cost(self, state: Fit) -> float:
        total = 0.0
        for k in range(len(self.observations)):
            total += float((self.residual(state, k) ** 2).sum())
        weight, slope = self._prior_terms(state)
        present = weight > 0
        total += float((slope[present] ** 2 / weight[present]).sum())
        if self.num_identity:
            total += float((self.size_slope @ state.identity) ** 2 * SIZE_SIGMA**-2)
        total += float(((state.gaze[:, 0] - state.gaze[:, 1]) ** 2).sum() * VERGENCE_SIGMA**-2)
        return total

    def step(self, state: Fit, matrix: np.ndarray, gradient: np.ndarray, damping: float) -> Fit:
        """The state after one damped Gauss-Newton step; weights at a bound and pushed outwards stay there."""
        low, high = self.model.expression_bounds
        n = len(self.observations)
        free = np.ones(len(gradient), bool)
        if self.options.fix_focal:
            free[self.num_identity : self.num_global] = False
        own_free = free[self.num_global :].reshape(n, -1)
        own_gradient = gradient[self.num_global :].reshape(n, -1)[:, self.POSE :]
        pushed_out = ((state.expression <= low) & (own_gradient > 0)) | ((state.expression >= high) & (own_gradient < 0))
        own_free[:, self.POSE :] = ~pushed_out
        if self.options.rotation_sigma == 0.0:
            own_free[:, 0:3] = False
        if not self.model.uses_jaw:
            own_free[:, 10] = False
        damped = matrix + np.diag(damping * np.diag(matrix) + 1e-9)
        delta = np.zeros(len(gradient))
        delta[free] = -np.linalg.solve(damped[np.ix_(free, free)], gradient[free])
        own = delta[self.num_global :].reshape(n, -1)
        return replace(
            state,
            identity=state.identity + delta[: self.num_identity] if self.num_identity else state.identity,
            focals=state.focals * np.exp(np.clip(delta[self.num_identity : self.num_global], -0.3, 0.3)),
            rotations=so3.exp(own[:, 0:3]) @ state.rotations,
            translations=state.translations + own[:, 3:6],
            gaze=state.gaze + own[:, 6:10].reshape(n, 2, 2),
            jaw=state.jaw + own[:, 10],
            expression=np.clip(state.expression + own[:, self.POSE :], low, high),
        )


def _marginal_scale(noise: LandmarkNoise) -> float:
    """How much the diagonal part of the noise underestimates a landmark's whole spread, as a factor on residuals."""
    strength = (noise.shrink + 1.0) ** -2 - 1.0
    return float(1.0 / np.sqrt(1.0 + strength.sum() / len(noise.inverse_sigma)))
