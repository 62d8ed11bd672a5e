"""FLAME from a user's file: a synthetic one of FLAME's shapes, as .npz and as the pickle FLAME is published in."""

import collections
import os
import pickle
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from avtool.errors import FormatError
from avtool.head import PARTS, HeadParams, load_head_model
from avtool.head.flame import EMBEDDING_FILE
from avtool.head.flame_layout import label_by_geometry
from avtool.head.inert_pickle import load_pickled_arrays

V, F = 5023, 9976


def sphere(rings, columns, center, radius):
    """A uv sphere with poles up and down."""
    theta = np.pi * (np.arange(rings) + 1) / (rings + 1)
    phi = 2 * np.pi * np.arange(columns) / columns
    x = np.sin(theta)[:, None] * np.sin(phi)
    y = np.broadcast_to(np.cos(theta)[:, None], x.shape)
    z = np.sin(theta)[:, None] * np.cos(phi)
    vertices = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    vertices = np.concatenate([vertices, [[0, 1, 0], [0, -1, 0]]]) * radius + center
    i, j = np.meshgrid(np.arange(rings - 1), np.arange(columns), indexing="ij")
    a, b = (i * columns + j).ravel(), (i * columns + (j + 1) % columns).ravel()
    faces = [np.stack([a, a + columns, b], 1), np.stack([b, a + columns, b + columns], 1)]
    ring = np.arange(columns)
    top, bottom, last = rings * columns, rings * columns + 1, (rings - 1) * columns
    faces.append(np.stack([np.full(columns, top), ring, (ring + 1) % columns], 1))
    faces.append(np.stack([np.full(columns, bottom), last + (ring + 1) % columns, last + ring], 1))
    return vertices, np.concatenate(faces)


@pytest.fixture(scope="module")
def raw():
    """Arrays of FLAME's names and shapes: an egg of a head with two eyeballs, and random directions."""
    rng = np.random.default_rng(0)
    pieces = [
        sphere(75, 52, np.zeros(3), np.array([0.078, 0.125, 0.098])),
        sphere(17, 32, np.array([0.031, 0.03, 0.075]), 0.012),
        sphere(17, 32, np.array([-0.031, 0.03, 0.075]), 0.012),
    ]
    vertices, faces, owner = [], [], []
    for k, (v, f) in enumerate(pieces):
        faces.append(f + sum(map(len, vertices)))
        vertices.append(v)
        owner += [k] * len(v)
    v, f, owner = np.concatenate(vertices), np.concatenate(faces), np.array(owner)
    spare = V - len(v)  # FLAME's exact counts: the rest are copies that belong to no or to a doubled triangle
    assert 0 <= spare and len(f) <= F
    v, owner = np.concatenate([v, v[:spare]]), np.concatenate([owner, np.zeros(spare, int)])
    f = np.concatenate([f, f[: F - len(f)]])
    weights = np.zeros((V, 5))
    weights[owner == 1, 3], weights[owner == 2, 4] = 1, 1
    skin = owner == 0
    jaw = (skin & (v[:, 1] < -0.03) & (v[:, 2] > 0)).astype(float) * 0.8
    neck = skin * (v[:, 1] > -0.08) * (1 - jaw)
    weights[:, 2], weights[:, 1] = jaw * skin, neck
    weights[:, 0] = 1 - weights.sum(1)
    regressor = np.zeros((5, V))
    for joint, members in enumerate((v[:, 1] < -0.11, v[:, 1] < -0.08, skin & (np.abs(v[:, 1]) < 0.03), owner == 1, owner == 2)):
        regressor[joint, members] = 1 / members.sum()
    return {
        "v_template": v,
        "shapedirs": rng.normal(0, 1e-3, (V, 3, 400)),
        "posedirs": rng.normal(0, 1e-3, (V, 3, 36)),
        "J_regressor": sparse.csc_matrix(regressor),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], dtype=np.uint32),
        "weights": weights,
        "f": f.astype(np.uint32),
    }


@pytest.fixture(scope="module")
def npz(raw, tmp_path_factory):
    path = tmp_path_factory.mktemp("flame") / "flame2023.npz"
    np.savez(path, **{k: v.toarray() if sparse.issparse(v) else v for k, v in raw.items()})
    return path


@pytest.fixture(scope="module")
def flame(npz):
    return load_head_model("flame", npz)


def params(flame, seed=0):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *s, scale: torch.randn(*s, generator=g) * scale  # noqa: E731
    return HeadParams(
        normal(300, scale=0.5), normal(100, scale=0.5), normal(3, scale=0.3), torch.zeros(3), normal(3, scale=0.2), normal(2, 3, scale=0.2)
    )


def reference(raw, p):
    """FLAME's published equations (Li et al. 2017, as SMPL's), written out with 4 x 4 matrices in float64."""
    from scipy.spatial.transform import Rotation

    betas = torch.cat((p.identity, p.expression)).double().numpy()
    shaped = raw["v_template"] + raw["shapedirs"] @ betas
    joints = raw["J_regressor"] @ shaped
    vectors = [np.zeros(3), p.neck.numpy(), p.jaw.numpy(), *p.eyes.numpy()]
    rotations = [Rotation.from_rotvec(w).as_matrix() for w in vectors]
    feature = np.concatenate([(r - np.eye(3)).ravel() for r in rotations[1:]])
    shaped = shaped + raw["posedirs"] @ feature
    world = []
    for j, rotation in enumerate(rotations):
        local = np.eye(4)
        parent = None if j == 0 else int(raw["kintree_table"][0, j])
        local[:3, :3], local[:3, 3] = rotation, joints[j] - (0 if parent is None else joints[parent])
        world.append(local if parent is None else world[parent] @ local)
    relative = np.stack([g @ _translation(-joints[j]) for j, g in enumerate(world)])
    blended = np.einsum("vj,jab->vab", raw["weights"], relative)
    return np.einsum("vab,vb->va", blended, np.concatenate([shaped, np.ones((V, 1))], 1))[:, :3], np.stack([g[:3, 3] for g in world])


def _translation(t):
    out = np.eye(4)
    out[:3, 3] = t
    return out


def test_posed_flame_equals_the_published_equations(raw, flame):
    p = params(flame)
    mesh = flame(p)
    vertices, joints = reference(raw, p)
    np.testing.assert_allclose(mesh.vertices.numpy(), vertices, atol=2e-5)
    np.testing.assert_allclose(mesh.joints.numpy(), joints, atol=2e-5)
    assert (flame.num_vertices, flame.num_faces, flame.num_identity, flame.num_expression) == (V, F, 300, 100)


def test_head_rotation_turns_at_the_neck(flame):
    zero = HeadParams.zeros(flame)
    w = torch.tensor([0.1, 0.3, 0.0])
    by_head, by_neck = flame(replace(zero, head=w)).vertices, flame(replace(zero, neck=w)).vertices
    torch.testing.assert_close(by_head, by_neck)


def test_layout_is_complete(flame):
    counts = torch.bincount(flame.face_part, minlength=len(PARTS))
    for name in ("forehead", "eye", "face", "hair", "neck", "lip"):
        assert counts[PARTS.index(name)] > 0, name
    assert counts[PARTS.index("teeth")] == 0  # FLAME has none
    assert flame.uv.min() >= 0 and flame.uv.max() <= 1 and flame.uv_faces.shape == flame.faces.shape
    corners = flame.uv[flame.uv_faces]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs() / 2
    assert 0.3 < area.sum() < 1.05
    assert (area[flame.face_part == PARTS.index("eye")] > 0).float().mean() > 0.4  # the fronts of the eyeballs
    points = dict(zip(flame.landmark_ids.tolist(), flame.landmarks(flame.template)))
    assert points[473][0] > 0 > points[468][0] and abs(float(points[1][0])) < 0.01


def test_geometry_rules_agree_with_the_baked_heads_labels():
    """The same rules on a head whose parts are known."""
    head = load_head_model()
    skin = head.region_mask("face", "scalp", "ear", "lips", "neck", "torso").numpy()
    corners = head.template[head.faces].double()
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1).numpy()
    part = label_by_geometry(corners.mean(1).numpy(), head.joint_template[4:6].double().numpy(), head.region_mask("eye_l", "eye_r").numpy())
    agree = part == head.face_part.numpy()
    assert area[skin & agree].sum() / area[skin].sum() > 0.88
    for name in ("nose", "lip", "ear", "hair", "face"):
        own = skin & (head.face_part.numpy() == PARTS.index(name))
        assert area[own & agree].sum() / area[own].sum() > 0.8, name


def test_own_embedding_and_uv_are_used(raw, tmp_path):
    file = tmp_path / "flame.npz"
    dense = {k: v.toarray() if sparse.issparse(v) else v for k, v in raw.items()}
    np.savez(file, **dense, vt=np.random.default_rng(0).random((V, 2)), ft=raw["f"])
    ids = np.arange(100, 205)
    np.savez(tmp_path / EMBEDDING_FILE, landmark_indices=ids, lmk_face_idx=ids * 3, lmk_b_coords=np.full((105, 3), 1 / 3))
    model = load_head_model("flame", file)
    assert model.landmark_ids.tolist() == ids.tolist() and len(model.uv) == V
    torch.testing.assert_close(model.landmarks(model.template)[2], model.template[model.faces[306]].mean(0))


class Chumpy:
    """Stands in for chumpy.ch.Ch while the published pickle is imitated."""

    def __init__(self, x):
        self.x = x


Chumpy.__module__, Chumpy.__name__, Chumpy.__qualname__ = "chumpy.ch", "Ch", "Ch"


@pytest.fixture
def chumpy(monkeypatch):
    package, module = types.ModuleType("chumpy"), types.ModuleType("chumpy.ch")
    module.Ch = Chumpy
    monkeypatch.setitem(sys.modules, "chumpy", package)
    monkeypatch.setitem(sys.modules, "chumpy.ch", module)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickle_gives_the_same_model(raw, flame, tmp_path, chumpy, monkeypatch, protocol):
    content = {**raw, "shapedirs": Chumpy(raw["shapedirs"]), "v_template": Chumpy(raw["v_template"]), "bs_style": "lbs"}
    content["posedirs"] = np.asfortranarray(raw["posedirs"])
    path = tmp_path / "generic_model.pkl"
    if protocol == 0:  # a text pickle of the big arrays is 60 MB: small ones show the same
        content = {k: content[k] for k in ("J_regressor", "kintree_table", "bs_style")} | {"v_template": Chumpy(raw["v_template"][:9])}
    path.write_bytes(pickle.dumps(content, protocol))
    monkeypatch.delitem(sys.modules, "chumpy.ch")  # reading needs no chumpy
    arrays = load_pickled_arrays(path)
    assert arrays["bs_style"] == "lbs" and sparse.issparse(arrays["J_regressor"])
    assert abs(arrays["J_regressor"] - raw["J_regressor"]).max() == 0
    np.testing.assert_array_equal(arrays["v_template"], raw["v_template"][: len(arrays["v_template"])])
    if protocol:
        model = load_head_model("flame", path)
        p = params(flame)
        assert model.model_id == flame.model_id
        torch.testing.assert_close(model(p).vertices, flame(p).vertices)


def test_python2_pickle_of_an_old_numpy_is_read(tmp_path):
    """The published files were written by Python 2: old module names, arrays as latin-1 strings, copy_reg."""
    data = np.arange(6, dtype="<f8").reshape(2, 3)
    text = (
        b"(dp0\nS'weights'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
        b"(I1\n(I2\nI3\ntp8\ncnumpy\ndtype\np9\n(S'f8'\nI0\nI1\ntp10\nRp11\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntp12\nbI00\nS"
        + repr(data.tobytes())[1:].encode()
        + b"\np13\ntp14\nbsS'v'\nccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nc__builtin__\nobject\nNtR(dS'x'\ng7\nsbs."
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(text)
    arrays = load_pickled_arrays(path)
    np.testing.assert_array_equal(arrays["weights"], data)
    np.testing.assert_array_equal(arrays["v"], data)


class Runs:
    """Pickles into a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "bomb",
    [
        lambda target: Runs(os.system, f"touch {target}"),
        lambda target: Runs(subprocess.check_call, ["touch", target]),
        lambda target: Runs(eval, f"open({target!r}, 'w')"),
        lambda target: Runs(open, target, "w"),
        lambda target: Runs(getattr, target, "upper"),
        lambda target: collections.Counter("a"),
        lambda target: np.array([Runs(open, target, "w")], dtype=object),
    ],
)
def test_code_in_a_pickle_is_not_run(tmp_path, bomb):
    target = str(tmp_path / "ran")
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"v_template": bomb(target)}, 2))
    with pytest.raises(FormatError, match="not run"):
        load_head_model("flame", path)
    assert not os.path.exists(target)


@pytest.mark.parametrize(
    ("opcodes", "what"),
    [
        (b"cnumpy.core.multiarray\nfromfile\n(S'/etc/hostname'\ntR.", "fromfile"),
        (b"cnumpy\nload\n(S'x.npy'\ntR.", "numpy.load"),
        (b"cscipy.sparse.linalg.os\nsystem\n(S'true'\ntR.", None),  # a scipy name is only ever an inert class
        (b"ccopy_reg\n_reconstructor\n(c__builtin__\nset\nc__builtin__\nobject\nNtR.", "live class"),
        (b"Vtext\n.", "dictionary"),
        (b"\x80\x02}q", "pickle"),
        (b"", "pickle"),
    ],
)
def test_hostile_and_damaged_pickles_are_one_clear_error(tmp_path, opcodes, what):
    path = tmp_path / "odd.pkl"
    path.write_bytes(opcodes)
    with pytest.raises(FormatError, match=what or "odd.pkl"):
        load_head_model("flame", path)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weights", None, "weights"),
        ("shapedirs", lambda a: a[..., :150], r"\(5023, 3, 400\)"),
        ("f", lambda a: a + 80, "indices below 5023"),
        ("v_template", lambda a: np.where(np.arange(V)[:, None] == 7, np.nan, a), "finite"),
        ("kintree_table", lambda a: a[:, :4], "kintree_table"),
    ],
)
def test_wrong_contents_are_named(raw, tmp_path, key, change, message):
    content = {k: v.toarray() if sparse.issparse(v) else v for k, v in raw.items()}
    content["shapedirs"] = content["shapedirs"].astype(np.float32)
    if change is None:
        del content[key]
    else:
        content[key] = change(content[key])
    path = tmp_path / "wrong.npz"
    np.savez(path, **content)
    with pytest.raises(FormatError, match=message):
        load_head_model("flame", path)


def test_npz_with_objects_is_refused(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, v_template=np.array([{}], dtype=object))
    with pytest.raises(FormatError, match="objects.npz"):
        load_head_model("flame", path)
