"""The renderer of the generator against closed forms: coverage, depth order, alpha, texture lookup, light, projection."""

import numpy as np

from avtool.synth.base import noise
from avtool.synth.calibrate import noise_model
from avtool.synth.draw import Material, Mesh, draw_mesh, linear_to_srgb, srgb_to_linear, vertex_normals
from avtool.synth.hair import rigid_rotation
from avtool.synth.lighting import Lighting, gather_light, sphere_directions

K = np.array([[40.0, 0, 20], [0, 40.0, 20], [0, 0, 1]])
FRONT = np.diag([1.0, -1, -1, 1]) + np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1.0], [0, 0, 0, 0]])
QUAD = np.array([[0, 1, 2], [0, 2, 3]])
UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)


def _square(side: float, z: float, color: tuple[int, int, int], alpha: int = 255, transparent: bool = False) -> Mesh:
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * side / 2 + [0, 0, z]
    texture = np.zeros((8, 8, 4), np.uint8)
    texture[:] = (*color, alpha)
    return Mesh(corners, QUAD, UV, QUAD, texture, Material(specular=0.0, wrap=0.0, casts_shadow=False), transparent)


def _frontal_light() -> Lighting:
    axis = np.array([[0, 0, 1]], np.float32)
    return Lighting(axis, np.ones((1, 3), np.float32), np.array([-1]), axis, np.zeros((1, 3), np.float32))


def _draw(*meshes: Mesh, samples: int = 2):
    return draw_mesh(list(meshes), _frontal_light(), FRONT, K, (40, 40), samples)


def test_coverage_and_color() -> None:
    """A square of side 0.5 at depth 1 covers 20 x 20 pixels; lit head-on by a unit light it shows its texture."""
    drawing = _draw(_square(0.5, 0.0, (120, 60, 200)))
    assert np.isclose(drawing.alpha.sum(), 400, atol=2)
    assert np.abs(drawing.rgb[20, 20] * 255 - (120, 60, 200)).max() < 1.5
    assert drawing.alpha[20, 9] == 0 and drawing.alpha[20, 11] == 1


def test_nearer_wins() -> None:
    drawing = _draw(_square(0.5, 0.1, (255, 0, 0)), _square(0.8, 0.0, (0, 0, 90)))
    assert drawing.rgb[20, 20, 0] > 0.8 and drawing.rgb[20, 20, 2] < 0.05
    assert drawing.rgb[20, 6, 2] > 0.3 and drawing.rgb[20, 6, 0] < 0.05


def test_layers_blend_in_depth_order() -> None:
    """Two half-transparent squares over nothing: alpha 1 - 0.5^2, the nearer one twice as strong; order of the meshes does not matter."""
    near, far = _square(0.5, 0.1, (200, 0, 0), 128, True), _square(0.5, 0.0, (0, 200, 0), 128, True)
    one, other = _draw(near, far), _draw(far, near)
    assert np.abs(one.rgb - other.rgb).max() < 1e-6
    assert np.isclose(one.alpha[20, 20], 0.75, atol=0.01)
    linear = srgb_to_linear(one.rgb[20, 20])
    assert np.isclose(linear[0] / linear[1], 2.0, rtol=0.05)


def test_layers_behind_the_surface_are_hidden() -> None:
    drawing = _draw(_square(0.5, 0.1, (90, 90, 90)), _square(0.5, 0.0, (0, 255, 0), 255, True))
    assert np.ptp(drawing.rgb[20, 20]) < 0.02


def test_texture_is_upright() -> None:
    """v points up: the texture's first row is the top of a square that is seen from the front."""
    mesh = _square(0.5, 0.0, (0, 0, 0))
    mesh.texture[:4] = (100, 100, 100, 255)
    drawing = _draw(mesh)
    assert drawing.rgb[12, 20].mean() > 0.3 and drawing.rgb[28, 20].mean() < 0.02


def test_even_light_and_shadow() -> None:
    """Under an even sky a lone upward patch gets everything; right under a large roof almost nothing."""
    directions = sphere_directions(64)
    sky = Lighting(directions, np.full((64, 3), 4 / 64, np.float32), np.full(64, -1), np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    point, up = np.zeros((1, 3)), np.array([[0.0, 1, 0]])
    roof = np.array([[-1, 0.1, -1], [1, 0.1, -1], [1, 0.1, 1], [-1, 0.1, 1]])
    far = roof + [0, -5, 0]
    free, _ = gather_light(point, up, np.zeros(1), far, QUAD, sky)
    covered, _ = gather_light(point, up, np.zeros(1), roof, QUAD, sky)
    assert np.allclose(free, 1.0, atol=0.05)
    assert covered.max() < 0.1


def test_fill_reaches_what_no_light_does() -> None:
    """A square that turns its back on the only light is black; with a fill of one half it gets half of the scene's mean light."""
    lit, dark = _square(0.4, 0.0, (200, 200, 200)), _square(0.4, 0.1, (200, 200, 200))
    lit.vertices += [-0.25, 0, 0]
    dark.vertices += [0.22, 0, 0]
    dark.normals = np.tile([0.0, 0, -1], (4, 1))
    assert _draw(lit, dark).rgb[20, 30].max() < 0.01
    dark.fill = 0.5
    linear = srgb_to_linear(_draw(lit, dark).rgb[20, [10, 30], 0])
    assert np.isclose(linear[1] / linear[0], 0.5 * 0.5, rtol=0.05)  # the mean over both squares is half of the lit one's


def test_tone_curve_inverts() -> None:
    x = np.linspace(0, 0.79, 50)
    assert np.abs(srgb_to_linear(linear_to_srgb(x)) - x).max() < 1e-4


def test_normals_of_a_sphere() -> None:
    from scipy.spatial import ConvexHull

    points = sphere_directions(300).astype(np.float64)
    faces = ConvexHull(points).simplices
    corners = points[faces]
    outward = (np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) * corners[:, 0]).sum(1) > 0
    faces = np.where(outward[:, None], faces, faces[:, ::-1])
    assert (vertex_normals(points, faces) * points).sum(1).min() > 0.98


def test_rigid_rotation_recovers() -> None:
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    points, turn = rng.normal(size=(30, 3)), Rotation.from_rotvec([0.3, -0.2, 0.5])
    assert np.abs(rigid_rotation(points, turn.apply(points) + 1.0) - turn.as_matrix()).max() < 1e-9


def test_noise_is_bounded_and_smooth() -> None:
    points = np.random.default_rng(0).uniform(-50, 50, (2000, 3))
    values = noise(points)
    assert 0 <= values.min() and values.max() <= 1 and values.std() > 0.05
    assert np.abs(noise(points + 1e-3) - values).max() < 0.02


def test_noise_model_recovers_bias_and_correlation() -> None:
    """Known residuals: a bias, correlated modes, a few wild detections."""
    rng = np.random.default_rng(1)
    mode = rng.normal(size=20)
    errors = 1.5 + rng.normal(size=(400, 1)) * mode + 0.3 * rng.normal(size=(400, 20))
    errors[:4] += 200
    bias, covariance = noise_model(errors.reshape(400, 10, 2))
    assert np.abs(bias - 1.5).max() < 0.4
    expected = np.outer(mode, mode)
    off = ~np.eye(20, dtype=bool)
    assert np.corrcoef(covariance[off], expected[off])[0, 1] > 0.97
    assert np.linalg.eigvalsh(covariance).min() > 0.05
