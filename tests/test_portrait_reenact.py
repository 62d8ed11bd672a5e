"""reenact with a portrait of one photo: equal to the network by hand, encoded once, all options, embeddings of pictures, the program."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_people
from PIL import Image
from tiny_avatar import SIZE, clip_track, make_avatar
from tiny_portrait import METADATA, make_portrait
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.cameras import project
from avtool.capture.samples import load_samples
from avtool.capture.video import probe_video, read_video
from avtool.errors import AvtoolError, FormatError
from avtool.head import HeadModel, HeadParams, load_head_model
from avtool.metrics import psnr
from avtool.portrait import PRESETS, Portrait
from avtool.portrait.dataset import load_portrait_set
from avtool.portrait.frontal import SOURCE_BACKGROUND, SourceView
from avtool.portrait.motion import TORCHSCRIPT_SIDE, TorchScriptMotion
from avtool.portrait.oneshot import Driven, OneShot, below_photo, frame_bytes, load_source, load_to_drive, most_frontal, resampled, track_source
from avtool.prior.drive import Driver, driver_pictures, load_driver, steady_crops
from avtool.prior.motion import Motion
from avtool.prior.puppet import MAX_BATCH, batch_within
from avtool.prior.reenact import ReenactOptions, plan_motion, reenact

FRAMES, VIEWS = 12, 5
OWN = PRESETS["tiny"].size


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, head: HeadModel) -> Path:
    """portrait.safetensors, the source person/track.json, driver.mp4 with pictures and sound, and its driver.json."""
    from imageio_ffmpeg import get_ffmpeg_exe

    folder = tmp_path_factory.mktemp("one shot ü")
    make_portrait(head).save(folder / "portrait.safetensors", METADATA)
    toy_people.make_person(folder / "person", head, 4, views=VIEWS, size=SIZE, moments=VIEWS)
    source = f"testsrc=size={SIZE}x{SIZE}:rate=25"
    subprocess.run(
        [get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", source, "-f", "lavfi", "-i", "sine=440", "-t", str(FRAMES / 25),
         "-pix_fmt", "yuv420p", str(folder / "driver.mp4")], check=True,
    )  # fmt: skip
    clip_track(make_avatar(), folder / "driver.mp4", FRAMES).save(folder / "driver.json")
    return folder


@pytest.fixture(scope="module")
def network(world: Path) -> Driven:
    return load_to_drive(world / "portrait.safetensors", "cpu", None)


@pytest.fixture(scope="module")
def puppet(world: Path, network: Driven) -> OneShot:
    return load_source(str(world / "person" / "track.json"), network).puppet


@pytest.fixture(scope="module")
def driver(world: Path, head: HeadModel) -> Driver:
    return load_driver([str(world / "driver.json")], head)


def frames_of(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]).astype(float)


def test_frames_are_those_of_the_network_by_hand_and_batches_change_nothing(
    world: Path, head: HeadModel, puppet: OneShot, driver: Driver
) -> None:
    motion = plan_motion(puppet, driver, ReenactOptions(size=OWN)).motion[:5]
    white = torch.ones(3)
    batch, alphas = puppet.perform(motion, OWN, white, True)
    single = [puppet.perform(motion[k : k + 1], OWN, white, True)[0] for k in range(5)]
    assert torch.allclose(batch, torch.cat(single), atol=1e-5)
    data, portrait = load_portrait_set([world / "person"], head, OWN), puppet.portrait
    idx = torch.tensor([VIEWS // 2])
    who = data.params(idx)
    params = HeadParams(who.identity.expand(5, -1), motion.expression, motion.neck, motion.head, motion.jaw, motion.eyes)
    embed = puppet.encoder.embed
    with torch.no_grad():
        picture = portrait(
            data.source_views(idx.expand(5)), embed(who).expand(5, -1), embed(params), params, motion.viewmats, motion.Ks
        )
    expected = (picture.image + (1 - picture.alpha)).clamp(0, 1)
    assert torch.allclose(batch, expected, atol=1e-4) and torch.allclose(alphas, picture.alpha, atol=1e-4)
    assert float(alphas.mean()) > 0.1 and float((batch[0] - batch[4]).abs().max()) > 0.02, "the head is there, and moves"


def test_driver_source_and_pose_each_change_the_picture(world: Path, network: Driven, puppet: OneShot, driver: Driver) -> None:
    motion = plan_motion(puppet, driver, ReenactOptions(size=OWN)).motion[3:4]

    def shown(person: OneShot, **changes: Tensor) -> Tensor:
        return person.perform(replace(motion, **changes), OWN, torch.zeros(3), True)[0]

    first, other = shown(puppet), toy_people.make_person(world / f"other{id(motion)}", puppet.head, 9, views=1, size=SIZE)
    changed = {
        "expression": shown(puppet, expression=1 - motion.expression),
        "neck": shown(puppet, neck=motion.neck + torch.tensor([0.0, 0.4, 0.0])),
        "source": shown(load_source(str(other), network).puppet),
    }
    for name, picture in changed.items():
        assert float((picture - first).abs().max()) > 0.02, name


def test_the_source_is_encoded_and_neutralized_once(
    world: Path, network: Driven, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    vit = network.portrait.transformer
    for owner, name in ((network.portrait, "encode"), (vit, "neutralize"), (vit, "reenact")):
        inner = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, inner=inner, name=name: (calls.append(name), inner(*args))[1])
    person = load_source(str(world / "person"), network)
    assert person.seconds is None and person.name.endswith(f"{VIEWS // 2}.png"), "a track made beforehand, its frontal picture"
    for name in ("a", "b"):
        reenact(person.puppet, driver, tmp_path / name, ReenactOptions(size=48, batch_size=5))
    assert calls == ["encode", "neutralize"] + 2 * 3 * ["reenact"]


def test_a_video_keeps_sound_and_mark_and_shows_the_driver_beside(puppet: OneShot, driver: Driver, tmp_path: Path) -> None:
    from imageio_ffmpeg import get_ffmpeg_exe

    output = tmp_path / "out.mp4"
    report = reenact(puppet, driver, output, ReenactOptions(size=80, side_by_side=True), source_seconds=2.0)
    info = probe_video(output)
    assert (info.width, info.height, info.num_frames, info.has_audio) == (160, 80, FRAMES, True)
    told = subprocess.run([get_ffmpeg_exe(), "-hide_banner", "-i", str(output)], capture_output=True, text=True).stderr
    assert "ynthetic" in told
    assert report.frames_per_second == pytest.approx(FRAMES / report.render_seconds)
    assert report.frames_per_second_with_tracking is None and report.source_seconds == 2.0
    tracked = reenact(puppet, replace(driver, tracking_seconds=3.0), tmp_path / "x.mp4", ReenactOptions(size=32), source_seconds=2.0)
    assert tracked.frames_per_second_with_tracking == pytest.approx(FRAMES / (tracked.render_seconds + 5.0))
    shown = next(iter(read_video(output)))[:, :80].astype(float)
    real = next(driver_pictures(driver.track, steady_crops(driver.track), [0], 80)).astype(float)
    assert np.abs(shown - real).mean() < 12


def test_sizes_backgrounds_and_the_plain_volume(puppet: OneShot, driver: Driver, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 60, 3), (10, 200, 30), np.uint8)).save(tmp_path / "back.png")
    options = ReenactOptions(size=OWN, max_frames=2)
    for name, changes in {
        "own": {}, "large": {"size": 150}, "small": {"size": 32}, "plain": {"refine": False}, "red": {"background": "red"},
        "picture": {"background": str(tmp_path / "back.png")},
    }.items():  # fmt: skip
        reenact(puppet, driver, tmp_path / name, replace(options, **changes))
    own = frames_of(tmp_path / "own")
    for name, size in (("large", 150), ("small", 32)):
        found = frames_of(tmp_path / name)
        assert found.shape == (2, size, size, 3)
        back = resampled(torch.from_numpy(found / 255), OWN).numpy() * 255
        assert np.abs(back - own).mean() < 4, f"{name} is the same picture"
    red, picture, plain = (frames_of(tmp_path / name) for name in ("red", "picture", "plain"))
    seen = (own[..., 1:2] - red[..., 1:2]) / 255  # how much of the background: on white it adds green, on red none
    assert 0.95 < seen[:, 0, 0].min() and seen.min() < 0.5 and np.abs(red[..., 0] - own[..., 0]).max() <= 1
    bright = own.max(-1, keepdims=True) == 255  # cut off there: what white hid is not known
    off = np.abs(picture - (own - seen * (255 - np.array([10, 200, 30]))))
    assert off[np.broadcast_to(~bright, off.shape)].max() <= 2 and np.abs(picture[:, 0, 0] - [10, 200, 30]).max() < 12
    motion = plan_motion(puppet, driver, options).motion
    with torch.no_grad():
        params = puppet.params_for(motion)
        planes = puppet.portrait.drive(puppet.neutral, puppet.encoder.embed(params))
        low = puppet.portrait.render(planes, puppet.neutral.source, params, motion.viewmats, motion.Ks)
    expected = resampled(low.low, OWN) + 1 - resampled(low.low_alpha, OWN)
    assert np.abs(plain - 255 * expected.clamp(0, 1).numpy()).max() <= 1 and np.abs(plain - own).max() > 10


@pytest.mark.parametrize("camera", ["fixed", "orbit"])
def test_own_cameras_frame_the_head(puppet: OneShot, driver: Driver, camera: str) -> None:
    motion = plan_motion(puppet, driver, ReenactOptions(size=OWN, camera=camera)).motion
    _, alphas = puppet.perform(motion[:3], OWN, torch.ones(3), True)
    assert 0.1 < float(alphas.mean()) < 0.9
    assert bool((motion.viewmats == motion.viewmats[0]).all()) == (camera == "fixed")


def test_frame_rate_number_of_frames_and_transfer(puppet: OneShot, driver: Driver, tmp_path: Path) -> None:
    report = reenact(puppet, driver, tmp_path / "f%03d.png", ReenactOptions(size=32, fps=12.5, max_frames=4))
    assert report.frames == 4 and report.fps == 12.5 and report.transfer == "relative", "the driver is another person"
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"f{k:03d}.png" for k in range(4)]
    relative, absolute = (plan_motion(puppet, driver, ReenactOptions(transfer=how)).motion for how in ("relative", "absolute"))
    assert not torch.equal(relative.expression, absolute.expression)
    rough = plan_motion(puppet, driver, ReenactOptions(smooth=False)).motion
    assert not torch.equal(rough.viewmats, plan_motion(puppet, driver, ReenactOptions()).motion.viewmats)


def test_the_most_frontal_real_picture_is_the_source(world: Path, head: HeadModel) -> None:
    track = Track.load(world / "person" / "track.json")
    assert most_frontal(track, "x") == VIEWS // 2
    frames = [replace(frame, pseudo="0.png") if k != 1 else frame for k, frame in enumerate(track.frames)]
    assert most_frontal(replace(track, frames=frames), "x") == 1
    with pytest.raises(AvtoolError, match="pseudo views only"):
        most_frontal(replace(track, frames=[frames[0]]), "x")


class Colors(torch.nn.Module):
    """An embedding of pictures: their mean colors."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_an_embedding_that_reads_pictures_sees_the_drivers_frames(world: Path, head: HeadModel, driver: Driver, tmp_path: Path) -> None:
    for name, module in (("eye.pt", Colors()), ("other.pt", torch.nn.Sequential(Colors(), torch.nn.Identity()))):
        torch.jit.trace(module, torch.zeros(1, 3, TORCHSCRIPT_SIDE, TORCHSCRIPT_SIDE)).save(str(tmp_path / name))
    encoder = TorchScriptMotion(tmp_path / "eye.pt")
    file = tmp_path / "portrait.safetensors"
    make_portrait(head, encoder.size).save(file, {"stage": "motion", "motion": encoder.name})
    with pytest.raises(AvtoolError, match=f"{encoder.name}.*--motion torchscript:FILE"):
        load_to_drive(file, "cpu", None)
    with pytest.raises(FormatError, match="trained with"):
        load_to_drive(file, "cpu", None, f"torchscript:{tmp_path / 'other.pt'}")
    network = load_to_drive(file, "cpu", None, f"torchscript:{tmp_path / 'eye.pt'}")
    person = load_source(str(world / "person"), network).puppet
    # Mattes are stored, as no face is in the test pattern to make one from.
    Image.new("L", (OWN, OWN), 128).save(world / "half.png")
    track = replace(driver.track, frames=[replace(frame, matte="half.png") for frame in driver.track.frames])
    plan = plan_motion(person, replace(driver, track=track), ReenactOptions(size=OWN, fps=50.0, max_frames=6))
    assert plan.sources == [0, 1, 1, 2, 2, 3] or plan.sources == [0, 0, 1, 1, 2, 2]
    samples = load_samples(track, plan.sources, OWN)
    expected = encoder.embed_images(samples.images * 128 / 255 + 0.5 * 127 / 255)
    assert torch.allclose(plan.motion.embedding, expected, atol=1e-5)
    motion = plan.motion[:1]
    a, b = (person.perform(replace(motion, embedding=e), OWN, torch.ones(3), True)[0] for e in (motion.embedding, 1 - motion.embedding))
    assert float((a - b).abs().max()) > 1e-3, "what it saw is what drives"
    reenact(person, replace(driver, track=track), tmp_path / "out", ReenactOptions(size=32, max_frames=2))


def test_batches_are_as_large_as_memory_allows() -> None:
    cpu = torch.device("cpu")
    counts = {name: batch_within(frame_bytes(config, 256), cpu) for name, config in PRESETS.items()}
    assert counts == {"tiny": MAX_BATCH, "small": 4, "paper": 1}
    assert frame_bytes(PRESETS["small"], 2048) > 1.5 * frame_bytes(PRESETS["small"], 128)


def test_parts_of_a_motion_keep_what_belongs_to_a_frame() -> None:
    zero = torch.zeros(4, 3)
    motion = Motion(torch.arange(8.0).view(4, 2), zero, zero, zero, torch.zeros(4, 2, 3), torch.eye(4).repeat(4, 1, 1), zero, 25.0)
    part = motion[1:3]
    assert len(part) == 2 and part.fps == 25.0 and part.embedding is None and part.expression.tolist() == [[2, 3], [4, 5]]
    assert replace(motion, embedding=torch.arange(4.0)[:, None])[1:3].to("cpu").embedding.tolist() == [[1], [2]]


def test_the_program_makes_a_person_of_a_real_photo(avtool, world: Path, astronaut: Path) -> None:
    done = avtool(
        "reenact", "portrait.safetensors", "--source", astronaut, "driver.json", "-o", "out.mp4", "--size", "64", "--json", cwd=world
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["frames"] == FRAMES and data["source"] == str(astronaut) and data["source_seconds"] > 0
    assert data["frames_per_second"] > 0 and data["frames_per_second_with_tracking"] is None
    assert probe_video(world / "out.mp4").num_frames == FRAMES


def test_the_picture_of_a_real_photo_is_its_face_on_gray(network: Driven, astronaut: Path, shared: Path) -> None:
    """What the network is shown, at two real people: gray at the upper corner, skin in the middle."""
    for photo in (astronaut, shared / "data" / "obama_wh" / "photos" / "0.png"):
        seen: list[Tensor] = []

        class Watched(Portrait):
            def encode(self, source: SourceView):  # noqa: ANN202
                seen.append(source.images)
                return super().encode(source)

        watched = Watched(network.portrait.config, network.head).eval()
        person = load_source(str(photo), Driven(watched, network.encoder, network.head))
        assert person.seconds > 0 and len(seen) == 1
        picture = seen[0][0]
        assert float((picture[:3, :3] - 0.5).abs().max()) < 0.02
        face = picture[OWN // 2 - 4 : OWN // 2 + 4, OWN // 2 - 4 : OWN // 2 + 4].mean((0, 1))
        assert float(face[0]) > float(face[2]) + 0.05, "skin is redder than blue"


def test_a_bust_goes_on_where_the_photo_ends() -> None:
    """Rows below the last of the matte repeat one that is surely the person's; a bust down to the border is left as it is."""
    pictures, mattes = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(3, 16, 16, 1)
    mattes[0, 4:, 5:9], mattes[1, 4:11, 5:9] = 1.0, 1.0
    found = below_photo(pictures, mattes)
    assert torch.equal(found[0], pictures[0])
    assert torch.equal(found[1, :9], pictures[1, :9]) and torch.equal(found[1, 9:], pictures[1, 8:9].expand(7, 16, 3))
    assert found[2].isfinite().all(), "nor does an empty matte break it"


def test_the_shipped_portrait_shows_a_real_photo_and_moves_it(astronaut: Path, tmp_path: Path, avtool) -> None:
    """She stays who she is, opens her mouth, and only her face moves; by the program, as a newcomer calls it."""
    network = load_to_drive("default", "cpu", None)
    source = load_source(str(astronaut), network)
    puppet, size = source.puppet, network.portrait.config.size
    view, head = puppet.neutral.source, network.head
    opened = view.params.expression.clone()
    opened[:, head.expression_index("jawOpen")] = 0.9
    params, two = view.params, (2, -1)
    still = Motion(
        torch.cat((params.expression, opened)), params.neck.expand(two), params.head.expand(two), params.jaw.expand(two),
        params.eyes.expand(2, 2, 3), view.viewmats.expand(2, 4, 4), view.Ks.expand(2, 3, 3), None,
    )  # fmt: skip
    own, wide = puppet.perform(still, size, torch.full((3,), SOURCE_BACKGROUND), True)[0]
    photo = view.images[0]
    assert psnr(own.numpy(), photo.numpy()) > 24
    marks, _ = project(head.landmarks(head(params).vertices), view.viewmats, view.Ks)
    rows = {int(k): row for row, k in enumerate(head.landmark_ids)}
    x, y = marks[0, rows[14]].round().long().tolist()  # the lower lip
    changed = (wide - own).abs().mean(-1)
    lips, hair = changed[y - 2 : y + 6, x - 4 : x + 5], changed[: size // 6]
    assert float(lips.mean()) > 0.15 and float(hair.mean()) < 0.02
    track_source(astronaut, load_head_model()).save(tmp_path / "source.json")
    done = avtool("reenact", "default", "--source", "source.json", "source.json", "-o", "frames/%02d.png", "--size", 128, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 1 and (tmp_path / "frames" / "00.png").is_file()
