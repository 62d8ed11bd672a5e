"""What bad input gets, command by command: one clear line, the right exit code, nothing half-written, no traceback."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_avatar
import tiny_portrait
import torch
import toy_people
from PIL import Image

from avtool.__main__ import COMMANDS, main
from avtool.capture.video import VideoWriter
from avtool.portrait.config import PRESETS as PORTRAITS
from avtool.portrait.network import Portrait
from avtool.prior.checkpoint import Checkpoint
from avtool.prior.prior import Prior

# Every command with valid input, all of it tiny; the tests then damage one thing.
CALLS = {
    "track": ["track", "photos", "-o", "out.json"],
    "init-points": ["init-points", "track.json", "-o", "out.ply", "--preset", "test"],
    "synth-data": ["synth-data", "-o", "out.heads", "--identities", "1", "--views", "1", "--size", "32"],
    "train-prior": [
        "train-prior", "people", "-o", "out.safetensors", "--preset", "tiny", "--refiner", "tiny", "--uv-size", "64",
        "--image-size", "32", "--steps", "2", "--batch-size", "4", "--views-per-identity", "2",
    ],
    "train-portrait": [
        "train-portrait", "moments", "-o", "out.safetensors", "--preset", "tiny", "--size", "32", "--steps", "2", "--batch-size", "2",
    ],
    "pseudo-mv": ["pseudo-mv", "track.json", "--avatar", "avatar.safetensors", "-o", "out.mv", "--size", "64", "--views", "2"],
    "invert": ["invert", "track.json", "--prior", "prior.safetensors", "-o", "out.safetensors"],
    "finetune": ["finetune", "inverted.safetensors", "track.json", "-o", "out.safetensors"],
    "reenact": ["reenact", "avatar.safetensors", "driver.json", "-o", "out.mp4", "--size", "64"],
    "eval": ["eval", "avatar.safetensors", "track.json", "-o", "out.json", "--size", "64"],
}  # fmt: skip
READS_TRACK = [name for name, call in CALLS.items() if {"track.json", "driver.json"} & set(call)]
READS_TENSORS = {
    "pseudo-mv": "avatar.safetensors", "invert": "prior.safetensors", "finetune": "inverted.safetensors", "reenact": "avatar.safetensors",
    "eval": "avatar.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory, astronaut: Path) -> Path:
    """A directory with valid input of every command."""
    directory = tmp_path_factory.mktemp("valid")
    (directory / "photos").mkdir()
    shutil.copyfile(astronaut, directory / "photos" / "astronaut.png")
    avatar = tiny_avatar.make_avatar()
    avatar.save(directory / "avatar.safetensors")
    avatar.save(directory / "inverted.safetensors")
    track = tiny_avatar.photo_track(avatar, directory / "rendered", 2)
    track.save(directory / "track.json")
    track.save(directory / "driver.json")
    Prior.create(avatar.head, 3, preset="tiny", uv_size=64, refiner="tiny").save(directory / "prior.safetensors")
    portrait = tiny_portrait.make_portrait(avatar.head)
    portrait.save(directory / "portrait.safetensors", tiny_portrait.METADATA)
    portrait.save(directory / "static.safetensors", {**tiny_portrait.METADATA, "stage": "static"})
    toy_people.make_people(directory / "people", avatar.head, count=2, views=2, size=48)
    toy_people.make_people(directory / "moments", avatar.head, count=2, views=4, size=32, moments=2)
    return directory


@pytest.fixture
def world(valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the valid input to damage; the working directory, with a space and an umlaut in its name."""
    directory = tmp_path / "wörk dir"
    shutil.copytree(valid, directory)
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs the program inside this process: (exit code, standard output, standard error)."""
    monkeypatch.setattr("signal.signal", lambda *args: None)

    def run(*args: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            main([str(arg) for arg in args])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def last_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def assert_refused(world: Path, before: dict[str, bytes], result: tuple[int, str, str], *words: str) -> str:
    """Exit code 1, one closing line with the words, no traceback, no file changed or left."""
    code, out, err = result
    line = last_line(err)
    assert code == 1, err
    assert line.startswith("avtool: error: "), err
    assert "Traceback" not in err and "unexpected" not in line, err
    assert out == ""
    for word in words:
        assert word.lower() in line.lower(), f"{word!r} is not in: {line}"
    assert files(world) == before
    return line


# Outputs: refused before any work starts.


@pytest.mark.parametrize("name", COMMANDS)
def test_an_existing_output_is_refused_before_any_work(world: Path, call, name: str) -> None:
    output = CALLS[name][CALLS[name].index("-o") + 1]
    Path(output).write_text("mine")
    before = files(world)
    start = time.perf_counter()
    assert_refused(world, before, call(*CALLS[name]), output, "exists", "--force")
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("output", ["nowhere/deep/out", "/proc/nothing/out"])
def test_an_unwritable_output_directory_is_refused_before_any_work(world: Path, call, name: str, output: str) -> None:
    args = list(CALLS[name])
    place = args.index("-o") + 1
    args[place] = output + Path(args[place]).suffix
    start = time.perf_counter()
    assert_refused(world, files(world), call(*args), output)
    assert time.perf_counter() - start < 5.0


# Photos.


def test_a_photo_without_a_face_is_an_error_when_it_is_the_only_one(world: Path, call) -> None:
    noise_picture(Path("photos/astronaut.png"))
    assert_refused(world, files(world), call(*CALLS["track"]), "astronaut.png: expected a face")


def test_a_photo_without_a_face_is_skipped_when_others_remain(world: Path, call) -> None:
    noise_picture(Path("photos/zwei ä.png"))
    code, _, err = call(*CALLS["track"])
    assert code == 0, err
    assert any("zwei ä.png: expected a face" in line and "skipped" in line for line in err.splitlines()), err
    assert [Path(f["image"]).name for f in json.loads(Path("out.json").read_text())["frames"]] == ["astronaut.png"]


def noise_picture(path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 300, dtype=np.uint8), (300, 1))
    Image.fromarray(np.stack([ramp] * 3, axis=-1)).save(path)


def test_of_several_faces_the_largest_is_taken_with_a_warning(world: Path, call) -> None:
    with Image.open("photos/astronaut.png") as image:
        small = image.resize((400, 400))
        both = Image.new("RGB", (920, 512))
        both.paste(image, (0, 0))
        both.paste(small, (515, 50))
    both.save("photos/astronaut.png")
    code, _, err = call(*CALLS["track"])
    assert code == 0, err
    assert any("faces" in line and "largest" in line for line in err.splitlines()), err
    landmarks = np.array(json.loads(Path("out.json").read_text())["frames"][0]["landmarks"])
    assert landmarks[:, 0].max() < 512


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_or_truncated_photo(world: Path, call, content: bytes | None) -> None:
    path = Path("photos/astronaut.png")
    path.write_bytes(path.read_bytes()[:20000] if content is None else content)
    assert_refused(world, files(world), call("track", path, "-o", "out.json"), "astronaut.png")


@pytest.mark.parametrize("keep", [0.0, 0.1])
def test_an_unreadable_or_truncated_video(world: Path, call, carphone: Path, keep: float) -> None:
    content = carphone.read_bytes()
    Path("clip ü.mp4").write_bytes(content[: int(keep * len(content))] or b"no video")
    assert_refused(world, files(world), call("track", "clip ü.mp4", "-o", "out.json"), "clip ü.mp4")
    assert_refused(world, files(world), call("reenact", "avatar.safetensors", "clip ü.mp4", "-o", "out.mp4"), "clip ü.mp4")


def test_a_directory_without_images(world: Path, call) -> None:
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("nothing to see")
    assert_refused(world, files(world), call("track", "empty", "-o", "out.json"), "empty", "images")


def test_input_that_does_not_exist(world: Path, call) -> None:
    for args, output in (
        (("track", "nothing.png"), "out.json"),
        (("invert", "nothing.json"), "out.safetensors"),
        (("reenact", "avatar.safetensors", "nothing.mp4"), "out.mp4"),
        (("eval", "nothing.safetensors", "track.json"), "out.json"),
    ):
        assert_refused(world, files(world), call(*args, "-o", output), "nothing")


def test_a_20_pixel_face(world: Path, call) -> None:
    """Too small to fit, or fitted with what there is; never a crash."""
    with Image.open("photos/astronaut.png") as image:
        face = image.resize((98, 98), Image.Resampling.LANCZOS)  # the face is 105 of 512 pixels high
        wall = Image.new("RGB", (640, 480), (120, 120, 120))
        wall.paste(face, (300, 200))
    wall.save("photos/astronaut.png")
    before = files(world)
    code, out, err = call(*CALLS["track"])
    if code == 0:
        assert "small" in err
    else:
        assert_refused(world, before, (code, out, err), "face")


def test_a_100_megapixel_photo_is_downscaled(world: Path) -> None:
    """In a process of its own, whose memory can be read: the pixels alone would be 300 MB at 8 bits, 1.2 GB as floats."""
    with Image.open("photos/astronaut.png") as image:
        image.convert("RGB").resize((10000, 10000), Image.Resampling.BILINEAR).save("photos/big.jpg", quality=80)
    Path("photos/astronaut.png").unlink()
    code = (
        "import resource, sys\nfrom avtool.__main__ import main\ntry:\n main(sys.argv[1:])\n"
        "finally:\n sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"
    )
    done = subprocess.run([sys.executable, "-c", code, *CALLS["track"]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2_500_000, f"{int(done.stdout) / 1e6:.1f} GB"
    frame = json.loads(Path("out.json").read_text())["frames"][0]
    assert frame["residual"] < 0.05


@pytest.mark.parametrize("kind", ["gray", "rgba", "16 bit"])
def test_unusual_pixels_under_an_unusual_name(world: Path, call, kind: str) -> None:
    with Image.open("photos/astronaut.png") as image:
        gray = np.asarray(image.convert("L"))
        if kind == "gray":
            picture = Image.fromarray(gray)
        elif kind == "rgba":
            picture = image.convert("RGBA")
        else:
            picture = Image.fromarray(gray.astype(np.uint16) * 257)
    Path("ein Ordner ☺").mkdir()
    picture.save(f"ein Ordner ☺/Foto {kind} ß.png")
    code, _, err = call("track", "ein Ordner ☺", "-o", "ergebnis ✓.json")
    assert code == 0, err
    frame = json.loads(Path("ergebnis ✓.json").read_text(encoding="utf-8"))["frames"][0]
    assert frame["residual"] < 0.05 and frame["width"] == 512


# Tracks.


def edit_tracks(change) -> None:
    for name in ("track.json", "driver.json"):
        data = json.loads(Path(name).read_text())
        change(data)
        Path(name).write_text(json.dumps(data))


@pytest.mark.parametrize("name", READS_TRACK)
def test_a_track_of_another_head_model(world: Path, call, name: str) -> None:
    edit_tracks(lambda data: data.update(head_model="flame-0123456789"))
    assert_refused(world, files(world), call(*CALLS[name]), "flame-0123456789", "anny")


@pytest.mark.parametrize("name", READS_TRACK)
def test_a_newer_or_wrong_schema_or_nan_in_a_track(world: Path, call, name: str) -> None:
    edit_tracks(lambda data: data.update(schema="track/9"))
    assert_refused(world, files(world), call(*CALLS[name]), "track/9", "upgrade")
    edit_tracks(lambda data: data.update(schema="metrics/1"))
    assert_refused(world, files(world), call(*CALLS[name]), "metrics/1", "track/1")
    edit_tracks(lambda data: data.update(schema="track/1", identity=[float("nan")] * len(data["identity"])))
    assert_refused(world, files(world), call(*CALLS[name]), "NaN", "identity")


def test_a_track_whose_pictures_are_gone(world: Path, call) -> None:
    shutil.rmtree("rendered")
    for name in ("invert", "finetune", "eval", "pseudo-mv"):
        assert_refused(world, files(world), call(*CALLS[name]), "0.png")


def test_training_names_the_bad_person(world: Path, call) -> None:
    Path("people/person01/track.json").write_text("{")
    assert_refused(world, files(world), call(*CALLS["train-prior"]), "person01")
    shutil.rmtree("people")
    Path("people").mkdir()
    assert_refused(world, files(world), call(*CALLS["train-prior"]), "people")


def test_pseudo_data_that_finetune_cannot_use(world: Path, call) -> None:
    """No data set, one without pseudo pictures, one of another head model; and a person without a real picture."""
    toy_people.make_person(Path("mv"), tiny_avatar.make_avatar().head, 0, views=3, size=32)
    finetune = [*CALLS["finetune"], "--pseudo"]
    Path("empty").mkdir()
    assert_refused(world, files(world), call(*finetune, "nowhere"), "nowhere", "pseudo pictures", "pseudo-mv")
    assert_refused(world, files(world), call(*finetune, "empty"), "empty", "without track.json")
    assert_refused(world, files(world), call(*finetune, "avatar.safetensors"), "avatar.safetensors", "expected a track", "found an avatar")
    assert_refused(world, files(world), call(*finetune, "mv"), "mv/track.json", "3 real ones only")
    text = json.loads(Path("mv/track.json").read_text())
    text["frames"][1]["pseudo"] = "0.png"
    Path("mv/track.json").write_text(json.dumps({**text, "head_model": "flame-0123456789"}))
    assert_refused(world, files(world), call(*finetune, "mv"), "mv", "flame-0123456789", "anny")
    Path("mv/track.json").write_text(json.dumps(text))
    Path("mv/1.png").unlink()
    assert_refused(world, files(world), call(*finetune, "mv"), "1.png")
    for frame in text["frames"]:
        frame["pseudo"] = "0.png"
    Path("mv/track.json").write_text(json.dumps(text))
    assert_refused(world, files(world), call("finetune", "inverted.safetensors", "mv/track.json", "-o", "out.safetensors"), "3 pseudo")
    shutil.copytree("rendered", "mv", dirs_exist_ok=True)
    assert_refused(world, files(world), call("train-prior", "mv", *CALLS["train-prior"][2:]), "mv", "real picture")


# Tensor files.


@pytest.mark.parametrize("name", READS_TENSORS)
def test_a_damaged_tensor_file(world: Path, call, name: str) -> None:
    path = Path(READS_TENSORS[name])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert_refused(world, files(world), call(*CALLS[name]), str(path), "complete safetensors")
    path.write_bytes(pickle.dumps({"a": 1}))
    assert_refused(world, files(world), call(*CALLS[name]), str(path), "pickle")
    torch.save({"a": torch.ones(3)}, path)
    assert_refused(world, files(world), call(*CALLS[name]), str(path), "pickle")
    kind = path.stem if path.stem == "prior" else "avatar"
    path.write_bytes(whole.replace(f"{kind}/1".encode(), f"{kind}/7".encode()))
    assert_refused(world, files(world), call(*CALLS[name]), f"{kind}/7", "upgrade")


@pytest.mark.parametrize("name", READS_TENSORS)
def test_an_artifact_of_another_kind(world: Path, call, name: str) -> None:
    other = "avatar.safetensors" if name == "invert" else "prior.safetensors"
    shutil.copyfile(other, READS_TENSORS[name])
    assert_refused(world, files(world), call(*CALLS[name]), "prior/1", "avatar/1")


# What a command needs, what it is given instead, and what the line says of both.
MISTAKEN = {
    "a portrait as prior": ["invert", "track.json", "--prior", "portrait.safetensors", "-o", "out", ["prior/1", "portrait/1"]],
    "a portrait to finetune": ["finetune", "portrait.safetensors", "track.json", "-o", "out", ["avatar/1", "portrait/1"]],
    "a portrait to eval": ["eval", "portrait.safetensors", "track.json", "-o", "out", ["avatar/1", "portrait/1"]],
    "a portrait as track": ["init-points", "portrait.safetensors", "-o", "out.ply", ["a track", "portrait/1"]],
    "a portrait as checkpoint": ["train-prior", "people", "--resume", "portrait.safetensors", "-o", "out.st", ["checkpoint/1", "portrait/1"]],
    "an avatar as --init": [
        "train-portrait", "moments", "--stage", "motion", "--init", "avatar.safetensors", "-o", "out.st", ["portrait/1", "avatar/1"]
    ],
    "an avatar to train on": ["train-prior", "people", "--init", "avatar.safetensors", "-o", "out.st", ["prior/1", "avatar/1"]],
    "no prior to train on": ["train-prior", "people", "--init", "nothing.st", "-o", "out.st", ["nothing.st", "no such file"]],
    "a prior to drive": ["reenact", "prior.safetensors", "driver.json", "-o", "out", ["avatar/1", "portrait/1", "prior/1"]],
    "a track to drive": ["reenact", "track.json", "driver.json", "-o", "out", ["safetensors", "JSON"]],
    "a photo to drive": ["reenact", "photos/astronaut.png", "driver.json", "-o", "out", ["safetensors", "PNG"]],
    "a portrait without a source": ["reenact", "portrait.safetensors", "driver.json", "-o", "out", ["portrait", "--source"]],
    "a source for an avatar": [
        "reenact", "avatar.safetensors", "driver.json", "--source", "photos/astronaut.png", "-o", "out", ["--source", "is an avatar"]
    ],
    "an embedding for an avatar": [
        "reenact", "avatar.safetensors", "driver.json", "--motion", "tracker", "-o", "out", ["--motion", "is an avatar"]
    ],
    "a static portrait": [
        "reenact", "static.safetensors", "driver.json", "--source", "photos/astronaut.png", "-o", "out",
        ["static", "--stage motion --init static.safetensors"],
    ],
    "an embedding of another portrait": [
        "reenact", "portrait.safetensors", "driver.json", "--source", "track.json", "--motion", "nothing", "-o", "out", ["nothing", "tracker"]
    ],
    "no source there": ["reenact", "portrait.safetensors", "driver.json", "--source", "gone.png", "-o", "out", ["gone.png", "no such"]],
    "a directory as source": ["reenact", "portrait.safetensors", "driver.json", "--source", "photos", "-o", "out", ["photos", "track"]],
    "no driver there": ["reenact", "portrait.safetensors", "gone.mp4", "--source", "photos/astronaut.png", "-o", "out", ["gone.mp4", "no such"]],
    "standard input twice": ["reenact", "portrait.safetensors", "-", "--source", "-", "-o", "out", ["standard input"]],
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKEN)
def test_one_kind_of_file_for_another(world: Path, call, mistake: str) -> None:
    *args, words = MISTAKEN[mistake]
    assert_refused(world, files(world), call(*args), *words)


ONE_SHOT = ["reenact", "portrait.safetensors", "driver.json", "--source", "photos/astronaut.png", "-o", "out.mp4"]


def test_a_source_without_a_face(world: Path, call) -> None:
    noise_picture(Path("photos/astronaut.png"))
    assert_refused(world, files(world), call(*ONE_SHOT), "astronaut.png: expected a face")


def test_a_source_with_two_faces_is_refused_not_guessed(world: Path, call, shared: Path) -> None:
    """Two real people side by side: where `track` takes the larger one and warns, nobody may be driven by chance."""
    faces = [Image.open(shared / "data" / name / "photos" / "0.png").convert("RGB").resize((384, 384)) for name in ("obama_wh", "latentsync_demo2")]
    both = Image.new("RGB", (768, 384))
    for k, face in enumerate(faces):
        both.paste(face, (384 * k, 0))
    both.save("photos/astronaut.png")
    before = files(world)
    line = assert_refused(world, before, call(*ONE_SHOT), "astronaut.png", "one face", "found 2", "crop")
    assert line.count("astronaut.png") == 1


def test_a_source_track_of_another_head_model(world: Path, call) -> None:
    data = json.loads(Path("track.json").read_text())
    Path("track.json").write_text(json.dumps({**data, "head_model": "flame-0123456789"}))
    args = [arg if arg != "photos/astronaut.png" else "track.json" for arg in ONE_SHOT]
    assert_refused(world, files(world), call(*args), "track.json", "flame-0123456789", "anny")


@pytest.mark.parametrize("name", READS_TENSORS)
def test_nan_in_a_tensor_file(world: Path, call, name: str) -> None:
    path = Path(READS_TENSORS[name])
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first, _ = header["gapnet.features"]["data_offsets"]
    assert header["gapnet.features"]["dtype"] == "F16"
    content[8 + length + first : 8 + length + first + 2] = b"\x00\x7e"
    path.write_bytes(content)
    assert_refused(world, files(world), call(*CALLS[name]), "gapnet.features", "NaN", "index 0")


# Pseudo views.


def test_pseudo_mv_wants_one_file_that_draws(world: Path, call) -> None:
    before = files(world)
    for args, words in (
        (("--synthesizer", "portrait", "--avatar", "avatar.safetensors"), "does not go with --avatar"),
        (("--synthesizer", "avatar", "--portrait", "avatar.safetensors"), "needs --avatar FILE"),
        (("--portrait", "avatar.safetensors", "--avatar", "avatar.safetensors"), "found both"),
        (("--avatar", "avatar.safetensors", "--yaw", "0", "--pitch", "0"), "no camera is new"),
    ):
        code, out, err = call("pseudo-mv", "track.json", "-o", "out.mv", *args)
        assert code == 2 and out == "" and words in " ".join(err.split()), err
    assert files(world) == before


def test_pseudo_mv_with_a_file_of_another_kind(world: Path, call) -> None:
    Portrait.create(PORTRAITS["tiny"], tiny_avatar.make_avatar().head).save("portrait.safetensors", {"stage": "static"})
    start, before = ("pseudo-mv", "track.json", "-o", "out.mv"), files(world)
    assert_refused(world, before, call(*start, "--portrait", "avatar.safetensors"), "avatar.safetensors", "portrait/1", "avatar/1")
    assert_refused(world, before, call(*start, "--avatar", "portrait.safetensors"), "portrait.safetensors", "avatar/1", "portrait/1")
    assert_refused(world, before, call(*start, "--portrait", "nothing.safetensors"), "nothing.safetensors: no such file")
    strict = call(*start, "--portrait", "portrait.safetensors", "--threshold", "0.001")
    assert_refused(world, before, strict, "all 2 real pictures disagree", "--threshold")


def test_pseudo_mv_of_pictures_without_a_face(world: Path, call) -> None:
    noise_picture(Path("noise.png"))
    wall = np.asarray(Image.open("noise.png"))
    with VideoWriter("wall.mp4", 25, (wall.shape[1], wall.shape[0])) as writer:
        for _ in range(5):
            writer.write(wall)
    for name in ("noise.png", "wall.mp4", "nothing.mp4"):
        assert_refused(world, files(world), call("pseudo-mv", name, *CALLS["pseudo-mv"][2:]), name)


def test_pseudo_mv_replaces_nothing_but_its_own(world: Path, call) -> None:
    Path("out.mv").mkdir()
    Path("out.mv/notes.txt").write_text("mine")
    assert_refused(world, files(world), call(*CALLS["pseudo-mv"]), "out.mv", "exists", "--force")
    assert_refused(world, files(world), call(*CALLS["pseudo-mv"], "--force"), "out.mv", "something else")


# Ctrl-C.

LONG = {
    "track": ["track", "clip.mp4", "-o", "out.json"],
    "synth-data": ["synth-data", "-o", "out.heads", "--identities", "500", "--views", "4", "--size", "64", "--jobs", "2"],
    "train-prior": [
        "train-prior", "people", "-o", "out.safetensors", "--preset", "tiny", "--refiner", "tiny", "--uv-size", "64",
        "--image-size", "32", "--steps", "100000", "--batch-size", "4",
        "--views-per-identity", "2",
    ],
    "invert": [*CALLS["invert"], "--steps", "100000"],
    "finetune": [*CALLS["finetune"], "--steps", "100000"],
    "reenact": ["reenact", "avatar.safetensors", "clip.json", "-o", "out.mp4", "--size", "512", "--fps", "240"],
    "pseudo-mv": ["pseudo-mv", "track.json", "--avatar", "avatar.safetensors", "-o", "out.mv", "--size", "1024", "--views", "64"],
    "reenact a photo": [
        "reenact", "portrait.safetensors", "--source", "track.json", "clip.json", "-o", "out.mp4", "--size", "512", "--fps", "240",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_leaves_nothing_half_written(world: Path, carphone: Path, name: str) -> None:
    shutil.copyfile(carphone, "clip.mp4")
    tiny_avatar.clip_track(tiny_avatar.make_avatar(), world / "clip.mp4", 100).save("clip.json")
    Path("out.txt").write_text("kept")
    before = files(world)
    process = subprocess.Popen(
        [sys.executable, "-m", "avtool", *LONG[name]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "COVERAGE": ""},
    )  # fmt: skip
    # The processes that synth-data starts do its work: its own clock says little.
    wait_until_working(process, limit=15 if name == "synth-data" else 120)
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the program and to its children
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in last_line(err) and "Traceback" not in err, err
    assert out == ""
    after = files(world)
    extra = {path for path in after if path not in before}
    assert not [path for path in extra if ".tmp" in path or path.startswith(("out.json", "out.mv")) or path == "out.mp4"], extra
    assert {path: after[path] for path in before} == before


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signal masks")
def test_ctrl_c_finds_starting_workers_silent(world: Path) -> None:
    """They import for seconds before they draw, and are hit then, too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "avtool", *LONG["synth-data"]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "COVERAGE": ""},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any(path.name == "dataset.json" for path in world.rglob("dataset.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)  # the data set is claimed; two workers have been started and import
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "", err
    assert "interrupted" in last_line(err) and "Traceback" not in err, err


def test_ctrl_c_comes_through_a_callback_that_swallows_it(tmp_path: Path) -> None:
    """As numba's compiler has one, in C: what is raised in it is printed and gone."""
    code = (
        "import ctypes, os, signal, sys, time, types\n"
        "from avtool import __main__ as program\n"
        "def swallow(): os.kill(os.getpid(), signal.SIGINT)\n"
        "def work(*args, **kwargs):\n"
        "    ctypes.CFUNCTYPE(None)(swallow)()\n"
        "    try:\n"
        "        time.sleep(30)\n"
        "    finally:\n"
        "        time.sleep(1.5)\n"
        "        print('cleaned up', flush=True)\n"
        "program.build_app = lambda: work\n"
        "program.main([])\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 130 and done.stdout == "cleaned up\n" and "interrupted" in last_line(done.stderr)
    assert "Traceback" not in done.stderr and time.monotonic() - started < 15


def wait_until_working(process: subprocess.Popen, seconds: float = 5.0, limit: float = 120) -> None:
    """Until the process has computed for a while: longer than it takes to import and to load."""
    ticks = os.sysconf("SC_CLK_TCK")
    deadline = time.monotonic() + limit
    while process.poll() is None and time.monotonic() < deadline:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        if (int(fields[11]) + int(fields[12])) / ticks > seconds:
            return
        time.sleep(0.05)


def test_an_interrupted_training_resumes(world: Path, call) -> None:
    """What Ctrl-C leaves is a valid checkpoint, and training goes on from it."""
    Path("often.yaml").write_text("checkpoint_every: 2\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "avtool", *LONG["train-prior"], "--config", "often.yaml"], stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    checkpoint = Path("out.checkpoint.safetensors")
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not Path("out.safetensors").exists()
    step = Checkpoint.load(checkpoint).step
    assert step >= 2
    resumed = list(CALLS["train-prior"])
    resumed[resumed.index("--steps") + 1] = str(step + 2)
    code, _, err = call(*resumed, "--config", "often.yaml", "--resume", checkpoint)
    assert code == 0, err
    assert Checkpoint.load(checkpoint).step == step + 2
    assert Prior.load("out.safetensors").num_identities == 2
