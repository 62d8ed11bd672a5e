"""Safe writing, tensor files, point clouds and VHAP data sets."""

from __future__ import annotations

import json
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from avtool.artifacts.files import atomic_write, refuse_existing, sha256_file
from avtool.artifacts.formats.ply import read_ply, write_ply
from avtool.artifacts.points import Points
from avtool.artifacts.tensors import artifact_kind, artifact_name, load_tensors, require, save_tensors
from avtool.errors import AvtoolError, FormatError


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if ".tmp" in path.name]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "ä b.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        assert temporary.parent == path.parent and temporary.suffix == ".json"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and not leftovers(tmp_path)
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and not leftovers(tmp_path)


def test_outputs_are_checked_before_work(tmp_path: Path) -> None:
    refuse_existing(None, force=False)
    refuse_existing("-", force=False)
    refuse_existing(tmp_path / "new.json", force=False)
    assert not list(tmp_path.iterdir()), "the check itself must leave nothing"
    (tmp_path / "old.json").write_text("")
    with pytest.raises(AvtoolError, match="already exists.*--force"):
        refuse_existing(tmp_path / "old.json", force=False)
    refuse_existing(tmp_path / "old.json", force=True)
    with pytest.raises(AvtoolError, match="does not exist.*mkdir"):
        refuse_existing(tmp_path / "nowhere" / "new.json", force=True)
    with pytest.raises(AvtoolError, match="found a directory"):
        refuse_existing(tmp_path, force=True)
    with pytest.raises(AvtoolError, match="does not exist|cannot write"):
        refuse_existing("/proc/avtool.json", force=True)


def test_tensors_read_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    base = torch.arange(6.0)
    stored = {"a": base[:3], "b": base[3:].half(), "c": torch.tensor([1, 2])}
    save_tensors(path, stored, "prior/1", {"seed": 3, "command": "x"})
    tensors, metadata = load_tensors(path, "prior")
    for name, tensor in stored.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    assert metadata["avtool.schema"] == "prior/1" and metadata["seed"] == "3" and metadata["command"] == "x"
    first = sha256_file(path)
    save_tensors(path, stored, "prior/1", {"seed": 3, "command": "x"})
    assert sha256_file(path) == first, "equal inputs must give equal bytes"
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444 & ~_umask()


def _umask() -> int:
    import os

    current = os.umask(0)
    os.umask(current)
    return current


def test_damaged_tensor_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(100)}, "prior/1")
    whole = path.read_bytes()
    for length in (0, 5, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="complete safetensors") as caught:
            load_tensors(path, "prior")
        assert str(path) in str(caught.value)
    path.write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(FormatError, match="unreadable header"):
        load_tensors(path, "prior")


class Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FormatError, match="pickle"):
        load_tensors(path, "prior")
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(FormatError, match="pickle"):
        load_tensors(path, "prior")


def test_schemas_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, "avatar/1")
    with pytest.raises(FormatError, match="expected a prior \\(prior/1\\), found an avatar \\(avatar/1\\)"):
        load_tensors(path, "prior")
    save_tensors(path, {"a": torch.ones(3)}, "prior/2")
    with pytest.raises(FormatError, match="upgrade avtool"):
        load_tensors(path, "prior")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3)}, str(path))
    with pytest.raises(FormatError, match="another program"):
        load_tensors(path, "prior")
    with pytest.raises(AvtoolError, match="no such file"):
        load_tensors(tmp_path / "b.safetensors", "prior")


def test_the_kind_of_a_file_is_found_without_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(300)}, "portrait/1")
    whole = path.read_bytes()
    assert artifact_kind(path, ("avatar", "portrait")) == "portrait"
    assert artifact_name(whole) == "a portrait (portrait/1)" and artifact_name(b"text") is None
    with pytest.raises(FormatError, match=r"expected a prior \(prior/1\) or an avatar \(avatar/1\), found a portrait \(portrait/1\)"):
        artifact_kind(path, ("prior", "avatar"))
    path.write_bytes(whole[:40])
    with pytest.raises(FormatError, match="expected a complete safetensors file, found 40 bytes"):
        artifact_kind(path, ("portrait",))
    for content, words in ((b'{"schema": "track/1"}', "JSON"), (b"\x89PNG\r\n\x1a\n....", "PNG"), (b"\xff\xd8\xff\xe0" + bytes(9), "JPEG")):
        path.write_bytes(content)
        for read in (lambda: artifact_kind(path, ("portrait",)), lambda: load_tensors(path, "portrait")):
            with pytest.raises(FormatError, match=f"expected a safetensors file, found .*{words}"):
                read()
    with pytest.raises(AvtoolError, match="no such file"):
        artifact_kind(tmp_path / "b.safetensors", ("prior",))


def test_nan_is_named_when_written_and_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    bad = torch.ones(5)
    bad[3] = torch.nan
    with pytest.raises(FormatError, match="w: .*1 NaN or infinite values, the first at flat index 3"):
        save_tensors(path, {"w": bad}, "prior/1")
    assert not list(tmp_path.iterdir())
    from safetensors.torch import save_file

    save_file({"w": bad}, str(path), metadata={"avtool.schema": "prior/1"})
    with pytest.raises(FormatError, match="flat index 3"):
        load_tensors(path, "prior")


def test_shapes_are_required() -> None:
    tensors = {"a": torch.ones(3, 4)}
    require("f", tensors, {"a": (None, 4)})
    with pytest.raises(FormatError, match=r"a: expected shape \(any, 5\), found shape \(3, 4\)"):
        require("f", tensors, {"a": (None, 5)})
    with pytest.raises(FormatError, match="b: .*found nothing"):
        require("f", tensors, {"b": (1,)})


def make_points(count: int = 40) -> Points:
    generator = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    quats = torch.nn.functional.normalize(rand(count, 4) - 0.5, dim=-1)
    return Points(
        rand(count, 3) - 0.5, quats, 1e-3 + rand(count, 3) * 0.01, 0.05 + 0.9 * rand(count), rand(count, 3),
        torch.randint(0, 10000, (count,), generator=generator), rand(count, 3),
        torch.randint(0, 11, (count,), generator=generator), "anny-test", 64,
    )  # fmt: skip


def test_points_read_back_and_follow_the_3dgs_order(tmp_path: Path) -> None:
    points = make_points()
    points.save(tmp_path / "points.ply")
    loaded = Points.load(tmp_path / "points.ply")
    for name in ("means", "quats", "scales", "opacities", "colors", "barycentrics"):
        torch.testing.assert_close(getattr(loaded, name), getattr(points, name), atol=1e-5, rtol=1e-4)
    assert torch.equal(loaded.face_idx, points.face_idx) and torch.equal(loaded.part, points.part)
    assert (loaded.head_model, loaded.uv_size) == ("anny-test", 64)
    columns, _ = read_ply(tmp_path / "points.ply")
    assert list(columns)[:17] == (
        "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    )
    expected = torch.log(points.opacities / (1 - points.opacities)).numpy()
    np.testing.assert_allclose(columns["opacity"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(columns["scale_1"], points.scales[:, 1].log().numpy(), rtol=1e-5)
    np.testing.assert_allclose(0.5 + 0.28209479 * columns["f_dc_2"], points.colors[:, 2].numpy(), atol=1e-6)


def test_damaged_point_clouds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "points.ply"
    make_points().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(FormatError, match="truncated"):
        Points.load(path)
    path.write_bytes(b"solid stl\n")
    with pytest.raises(FormatError, match="expected a PLY file"):
        Points.load(path)
    path.write_bytes(whole.replace(b"binary_little_endian", b"ascii"))
    with pytest.raises(FormatError, match="binary_little_endian"):
        Points.load(path)
    path.write_bytes(whole.replace(b"points/1", b"points/9"))
    with pytest.raises(FormatError, match="points/1"):
        Points.load(path)
    with pytest.raises(FormatError, match="x: expected finite numbers, found 1 NaN or infinite, the first at index 1"):
        write_ply(path, {"x": np.array([0, np.nan], np.float32)})


# A data set as VHAP writes it, over a small file of FLAME's layout.


@pytest.fixture(scope="module")
def flame(tmp_path_factory: pytest.TempPathFactory):
    from avtool.head import load_head_model

    rng = np.random.default_rng(0)
    count = 400
    sphere = rng.normal(size=(count, 3))
    sphere = 0.1 * sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    weights = np.zeros((count, 5))
    weights[np.arange(count), rng.integers(0, 5, count)] = 1
    weights[:20, 3:] = [1, 0]
    weights[20:40, 3:] = [0, 1]
    weights[:40, :3] = 0
    from scipy.spatial import ConvexHull

    path = tmp_path_factory.mktemp("flame") / "flame.npz"
    np.savez(
        path, v_template=sphere, shapedirs=rng.normal(size=(count, 3, 400)) * 1e-3,
        posedirs=rng.normal(size=(count, 3, 36)) * 1e-3, J_regressor=_rows(rng, count), weights=weights,
        kintree_table=np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]), f=ConvexHull(sphere).simplices,
    )  # fmt: skip
    return load_head_model("flame", path), {**np.load(path), "path": path}


def _rows(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.random((5, count)) ** 8
    return rows / rows.sum(1, keepdims=True)


def _rotation(axis_angle: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(axis_angle).as_matrix()


def flame_vertices(raw: dict, p: dict) -> np.ndarray:
    """FLAME's own definition, written out: what the importer has to agree with."""
    shaped = raw["v_template"] + raw["shapedirs"] @ np.concatenate([p["shape"], p["expr"][0]])
    joints = raw["J_regressor"] @ shaped
    eyes = p["eyes_pose"][0]
    poses = [p["rotation"][0], p["neck_pose"][0], p["jaw_pose"][0], eyes[:3], eyes[3:]]
    local = [_rotation(w) for w in poses]
    feature = np.concatenate([(r - np.eye(3)).reshape(-1) for r in local[1:]])
    shaped = shaped + raw["posedirs"] @ feature
    world = []
    for j, parent in enumerate((-1, 0, 1, 1, 1)):
        step = np.eye(4)
        step[:3, :3] = local[j]
        step[:3, 3] = joints[j] - (joints[parent] if parent >= 0 else 0)
        world.append(step if parent < 0 else world[parent] @ step)
    moved = 0
    for j in range(5):
        rotation, at = world[j][:3, :3], world[j][:3, 3]
        moved = moved + raw["weights"][:, j : j + 1] * ((shaped - joints[j]) @ rotation.T + at)
    return moved + p["translation"][0]


@pytest.fixture
def vhap(tmp_path: Path):
    """Directory with transforms.json and two frames' parameters; returns it with the parameters."""
    rng = np.random.default_rng(5)
    (tmp_path / "flame_param").mkdir()
    shape, frames, parameters = rng.normal(size=300), [], []
    for i in range(2):
        p = {
            "shape": shape, "expr": rng.normal(size=(1, 100)), "rotation": rng.normal(size=(1, 3)) * 0.3,
            "neck_pose": rng.normal(size=(1, 3)) * 0.2, "jaw_pose": rng.normal(size=(1, 3)) * 0.1,
            "eyes_pose": rng.normal(size=(1, 6)) * 0.1, "translation": rng.normal(size=(1, 3)) * 0.05,
        }  # fmt: skip
        np.savez(tmp_path / "flame_param" / f"{i:05d}.npz", **p)
        to_world = np.eye(4)
        to_world[:3, :3], to_world[:3, 3] = _rotation(rng.normal(size=3) * 0.2), (0.02, -0.01, 1.0)
        frames.append({
            "timestep_index": i, "camera_index": 0, "fl_x": 900.0, "fl_y": 910.0, "cx": 260.0, "cy": 380.0, "w": 550,
            "h": 802, "transform_matrix": to_world.tolist(), "file_path": f"images/{i:05d}_00.png",
            "fg_mask_path": f"fg_masks/{i:05d}_00.png", "flame_param_path": f"flame_param/{i:05d}.npz",
        })  # fmt: skip
        parameters.append(p)
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
    return tmp_path, parameters, frames


def test_a_vhap_data_set_projects_to_the_same_pixels(flame, vhap) -> None:
    """The whole chain of conventions at once: FLAME's pose, OpenGL axes, and cy that counts from the bottom."""
    from avtool.artifacts.track import Track
    from avtool.cameras import project

    head, raw = flame
    directory, parameters, frames = vhap
    track = Track.load(directory, head)
    uv, depth = project(head(track.params()).vertices, track.viewmats(), track.Ks())
    for i, (p, frame) in enumerate(zip(parameters, frames)):
        camera = (flame_vertices(raw, p) - np.array(frame["transform_matrix"])[:3, 3]) @ np.array(
            frame["transform_matrix"]
        )[:3, :3]
        # OpenGL: the camera looks along -z, y up; pixels count down from the top.
        x = frame["cx"] + frame["fl_x"] * camera[:, 0] / -camera[:, 2]
        y_from_bottom = frame["cy"] + frame["fl_y"] * camera[:, 1] / -camera[:, 2]
        np.testing.assert_allclose(uv[i, :, 0].numpy(), x, atol=0.02)
        np.testing.assert_allclose(uv[i, :, 1].numpy(), frame["h"] - y_from_bottom, atol=0.02)
        np.testing.assert_allclose(depth[i].numpy(), -camera[:, 2], atol=1e-5)
    assert track.frames[0].matte == "fg_masks/00000_00.png" and track.frames[0].crop == (-126.0, 0.0, 802.0)


def test_the_track_command_imports_a_vhap_data_set(flame, vhap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avtool.__main__ import main
    from avtool.artifacts.track import Track

    head, raw = flame
    directory, *_ = vhap
    monkeypatch.setattr("signal.signal", lambda *args: None)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "track.json"
    with pytest.raises(SystemExit) as stop:
        main(["track", str(directory), "-o", str(output), "--head-model", "flame", "--head-model-path", str(raw["path"])])
    assert not stop.value.code
    imported = Track.load(output)
    assert imported.head_model == head.model_id and len(imported.frames) == 2
    torch.testing.assert_close(imported.viewmats(), Track.load(directory, head).viewmats(), atol=1e-6, rtol=0)
    assert imported.resolve(imported.frames[0].image) == output.parent / ".." / "images" / "00000_00.png"


def test_nerfstudio_and_nersemble_names_are_known(flame, vhap) -> None:
    from avtool.artifacts.track import Track

    head, _ = flame
    directory, parameters, frames = vhap
    before = Track.load(directory / "transforms.json", head)
    for i, p in enumerate(parameters):
        renamed = {"expr": "expression", "neck_pose": "neck", "jaw_pose": "jaw", "eyes_pose": "eyes"}
        values = {renamed.get(key, key): value for key, value in p.items()}
        np.savez(directory / "flame_param" / f"{i:05d}.npz", scale=np.ones((1, 1)), **values)
        frames[i]["mask_path"] = frames[i].pop("fg_mask_path")
        frames[i].pop("timestep_index")
        frames[i]["cy"] = frames[i]["h"] - frames[i]["cy"]
    (directory / "transforms.json").write_text(json.dumps({"frames": frames}))
    after = Track.load(directory / "transforms.json", head)
    for a, b in zip(before.frames, after.frames):
        assert a.matte == b.matte
        for name in ("K", "viewmat", "expression", "neck", "jaw", "eyes"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-9, err_msg=name)


def test_a_common_scale_changes_no_picture(flame, vhap) -> None:
    from avtool.artifacts.track import Track
    from avtool.cameras import project

    head, raw = flame
    directory, parameters, frames = vhap
    p = {**parameters[0], "scale": np.array([[1.7]])}
    np.savez(directory / "flame_param" / "00000.npz", **p)
    track = Track.load(directory, head)
    uv, _ = project(head(track.params()).vertices, track.viewmats(), track.Ks())
    still = {**p, "translation": np.zeros((1, 3))}
    world = 1.7 * flame_vertices(raw, still) + p["translation"][0]
    to_world = np.array(frames[0]["transform_matrix"])
    camera = (world - to_world[:3, 3]) @ to_world[:3, :3]
    x = frames[0]["cx"] + frames[0]["fl_x"] * camera[:, 0] / -camera[:, 2]
    np.testing.assert_allclose(uv[0, :, 0].numpy(), x, atol=0.05)


def test_bad_vhap_data_sets_are_refused(flame, vhap) -> None:
    from avtool.artifacts.track import Track
    from avtool.head import load_head_model

    head, _ = flame
    directory, parameters, frames = vhap
    with pytest.raises(AvtoolError, match="--head-model flame"):
        Track.load(directory)
    with pytest.raises(AvtoolError, match="the head model is anny"):
        Track.load(directory, load_head_model("anny"))

    def attempt(words: str, **changes: object) -> None:
        np.savez(directory / "flame_param" / "00001.npz", **{**parameters[1], **changes})
        with pytest.raises(FormatError, match=words):
            Track.load(directory, head)

    attempt("the same person", shape=np.zeros(300))
    attempt("expr: expected at most 100", expr=np.ones((1, 120)))
    attempt("jaw_pose: expected 3 numbers", jaw_pose=np.zeros((2, 3)))
    attempt("finite", neck_pose=np.full((1, 3), np.nan))
    attempt("dynamic_offset", dynamic_offset=np.ones((1, 400, 3)))
    (directory / "flame_param" / "00001.npz").write_bytes(b"PK\3\4 broken")
    with pytest.raises(FormatError, match="an npz file of numbers"):
        Track.load(directory, head)
    (directory / "flame_param" / "00001.npz").unlink()
    with pytest.raises(AvtoolError, match="copy the flame_param directory"):
        Track.load(directory, head)
    (directory / "transforms.json").write_text(json.dumps({"frames": [{"file_path": "a.png"}]}))
    with pytest.raises(FormatError, match="flame_param_path"):
        Track.load(directory, head)
