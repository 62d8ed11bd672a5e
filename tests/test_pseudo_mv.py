"""pseudo-mv: where the new cameras stand, what disagrees, and data sets that training reads, from avatars, portraits and a real clip."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_people
from PIL import Image
from tiny_avatar import make_avatar, photo_track

from avtool.__main__ import main
from avtool.artifacts.track import Track
from avtool.cameras import orbit_viewmats, project
from avtool.capture.samples import load_samples
from avtool.errors import AvtoolError
from avtool.head import HeadParams
from avtool.portrait.config import PRESETS
from avtool.portrait.dataset import MotionSampler, load_portrait_set
from avtool.portrait.frontal import SourceView
from avtool.portrait.motion import load_motion
from avtool.portrait.network import Portrait
from avtool.portrait.oneshot import resampled
from avtool.portrait.pseudo import THRESHOLD, PseudoOptions, chosen_frames, disagreement, make_pseudo_views
from avtool.portrait.pseudo_cameras import head_centers, turned_viewmats, view_angles
from avtool.portrait.pseudo_files import check_place, straight
from avtool.portrait.synthesizers import AvatarSynthesizer, PortraitSynthesizer
from avtool.prior.avatar import Avatar
from avtool.prior.dataset import load_training_set
from avtool.prior.drive import Driver, load_driver

FRAMES, VIEWS, SIZE = 3, 3, 64


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    return make_avatar()


@pytest.fixture(scope="module")
def filmed(avatar: Avatar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with track.json, pictures of the avatar's person, and avatar.safetensors."""
    folder = tmp_path_factory.mktemp("filmed ä")
    photo_track(avatar, folder, FRAMES).save(folder / "track.json")
    avatar.save(folder / "avatar.safetensors")
    return folder


@pytest.fixture(scope="module")
def portrait(avatar: Avatar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained portrait: its heads are fog in the shape of the mean head."""
    path = tmp_path_factory.mktemp("portrait") / "static.safetensors"
    Portrait.create(replace(PRESETS["tiny"], size=32), avatar.head).save(path, {"stage": "static"})
    return path


@pytest.fixture
def driver(filmed: Path, avatar: Avatar) -> Driver:
    return load_driver([str(filmed / "track.json")], avatar.head)


@pytest.fixture(scope="module")
def made(filmed: Path, avatar: Avatar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "mv"
    source = load_driver([str(filmed / "track.json")], avatar.head)
    report = make_pseudo_views(source, AvatarSynthesizer(avatar), output, PseudoOptions(views=VIEWS, size=SIZE))
    assert (report.kept, report.left_out, report.pseudo) == (FRAMES, 0, FRAMES * VIEWS)
    return output


# Cameras.


def test_spread_angles_cover_the_range_and_differ_from_frame_to_frame() -> None:
    drawn = [view_angles(k, 4, 0.7, 0.25, True, 3) for k in range(50)]
    yaws, pitches = (torch.stack(column) for column in zip(*drawn))
    assert yaws.abs().max() <= 0.7 and pitches.abs().max() <= 0.25
    assert bool((yaws.diff(dim=1) > 0.34).all()), "one view in each quarter of the range"
    assert len(set(yaws.flatten().tolist())) == 200
    for values, limit in ((yaws, 0.7), (pitches, 0.25)):
        gaps = torch.cat((torch.tensor([-limit]), values.flatten().sort().values, torch.tensor([limit]))).diff()
        assert gaps.max() < 0.04 * 2 * limit, "evenly all over the range"
    grid = torch.histogramdd(torch.stack((yaws.flatten(), pitches.flatten()), -1), bins=[5, 5], range=[-0.7, 0.7, -0.25, 0.25]).hist
    assert grid.min() >= 3, "no corner of yaw and pitch is left out"


@pytest.mark.parametrize("spread", [True, False])
def test_angles_follow_the_seed(spread: bool) -> None:
    first, again, other, next_frame = (view_angles(k, 5, 0.7, 0.2, spread, seed) for k, seed in ((2, 1), (2, 1), (2, 4), (3, 1)))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[0], next_frame[0])
    assert first[0].abs().max() <= 0.7 and first[1].abs().max() <= 0.2


def test_a_turned_frontal_camera_is_an_orbit() -> None:
    center, yaws, pitches = torch.tensor([0.02, 0.05, 0.01]), torch.tensor([0.0, 0.5, -0.4, 0.3]), torch.tensor([0.0, 0.0, 0.2, -0.3])
    frontal = orbit_viewmats([0.0], [0.0], 0.9, center)
    turned = turned_viewmats(frontal, center[None], yaws[None], pitches[None])[0]
    assert torch.allclose(turned, orbit_viewmats(yaws, pitches, 0.9, center), atol=1e-5)


def test_the_head_keeps_its_pixel_and_its_distance(driver: Driver, avatar: Avatar) -> None:
    track = driver.track
    centers = head_centers(avatar.head, avatar.head(track.params()).vertices)
    assert centers.shape == (FRAMES, 3) and bool((centers.abs() < 0.12).all())
    viewmats = track.viewmats()
    angles = torch.linspace(-0.6, 0.6, 5).expand(FRAMES, 5)
    turned = turned_viewmats(viewmats, centers, angles, 0.3 * angles)
    before, depth = project(centers[:, None], viewmats, track.Ks())
    after, depths = project(centers[:, None, None].expand(-1, 5, 1, 3), turned, track.Ks()[:, None])
    assert torch.allclose(after, before[:, None].expand_as(after), atol=1e-3)
    assert torch.allclose(depths, depth[:, None].expand_as(depths), atol=1e-5)
    rotations = turned[..., :3, :3]
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3).expand_as(rotations), atol=1e-5)
    params = replace(HeadParams.zeros(avatar.head, (1,)), head=torch.tensor([[0.0, 0.8, 0.0]]))
    still, nod = (head_centers(avatar.head, avatar.head(p).vertices)[0] for p in (params.neutral(), params))
    assert nod[0] - still[0] > 0.005, "the posed head's: turned to the left, it is further left"


# Agreement.


def disk(size: int, radius: float, color: tuple[float, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A colored disk (1, S, S, 3) and its matte (1, S, S, 1)."""
    axis = (torch.arange(size) + 0.5) / size - 0.5
    matte = ((axis[:, None] ** 2 + axis[None] ** 2).sqrt() < radius).float()[None, ..., None]
    return torch.tensor(color).expand(1, size, size, 3), matte


def test_disagreement_is_a_difference_of_colors_over_both_mattes() -> None:
    for size in (64, 256):
        real, matte = disk(size, 0.3, (0.8, 0.5, 0.4))
        nowhere = torch.zeros_like(matte, dtype=torch.bool)
        assert float(disagreement(real, matte, real * matte, matte, nowhere)) < 1e-6
        darker = (real - 0.1) * matte
        assert float(disagreement(real, matte, darker, matte, nowhere)) == pytest.approx(0.1, abs=0.004)
        noise = torch.rand(1, size, size, 3)
        background = torch.where(matte > 0, real, noise)
        assert float(disagreement(background, matte, real * matte, matte, nowhere)) < 1e-6, "what is behind does not count"
        _, wider = disk(size, 0.31, (0.0, 0.0, 0.0))
        assert float(disagreement(real, matte, real * wider, wider, nowhere)) < 0.02, "nor does a matte a little wider"
        shifted = (real * matte).roll(round(0.25 * size), 2), matte.roll(round(0.25 * size), 2)
        assert float(disagreement(real, matte, *shifted, nowhere)) > THRESHOLD
        beyond = nowhere.clone()
        beyond[:, size // 2 :] = True
        wrong = torch.cat((real[:, : size // 2], torch.zeros_like(real[:, size // 2 :])), 1) * matte
        assert float(disagreement(real, matte, wrong, matte, beyond)) < 1e-6
        empty = torch.zeros_like(matte)
        assert float(disagreement(real, empty, real * empty, empty, nowhere)) == 1.0, "nothing to compare is no agreement"


def test_straight_colors_are_cut_out_exactly() -> None:
    alpha = torch.rand(8, 8, 1) * (torch.rand(8, 8, 1) > 0.3)
    image = torch.rand(8, 8, 3) * alpha
    assert torch.allclose(straight(image, alpha) * alpha, image, atol=1e-3)
    assert bool((straight(image, alpha)[alpha[..., 0] == 0] == 1).all())


# Data sets.


def test_the_data_set_holds_the_moments_from_exact_cameras(made: Path, filmed: Path, avatar: Avatar) -> None:
    track, source = Track.load(made / "track.json"), Track.load(filmed / "track.json")
    real, pseudo = track.frames[:FRAMES], track.frames[FRAMES:]
    assert all(f.pseudo is None for f in real) and len(pseudo) == FRAMES * VIEWS
    for k, frame in enumerate(pseudo):
        twin = real[k // VIEWS]
        assert frame.pseudo == twin.image and (made / frame.pseudo).is_file()
        for name in ("expression", "neck", "head", "jaw", "eyes", "K"):
            np.testing.assert_array_equal(getattr(frame, name), getattr(twin, name))
        assert np.abs(np.asarray(frame.viewmat) - np.asarray(twin.viewmat)).max() > 0.01
    taken, given = load_samples(track, range(FRAMES), SIZE), load_samples(source, None, SIZE)
    assert torch.equal(taken.images, given.images) and torch.equal(taken.mattes, given.mattes)
    assert torch.allclose(taken.Ks, given.Ks, atol=1e-4) and torch.allclose(taken.viewmats, given.viewmats, atol=1e-6)
    scale = SIZE / source.frames[0].width
    np.testing.assert_allclose(real[0].landmarks, np.asarray(source.frames[0].landmarks) * scale, atol=2e-3)
    views = load_samples(track, range(FRAMES, len(track.frames)), SIZE)
    p = views.params
    with torch.no_grad():
        images, alphas = avatar.render(
            avatar.params_for(p.expression, p.neck, p.head, p.jaw, p.eyes), views.viewmats, views.Ks, SIZE, SIZE, background=(0.0, 0.0, 0.0)
        )
    assert (views.mattes - alphas).abs().max() < 0.01
    assert (views.images * views.mattes - images).abs().mean() < 0.002, "the picture times its matte is what was drawn"


def test_training_reads_the_data_set(made: Path, avatar: Avatar) -> None:
    data = load_training_set([made], avatar.head, SIZE)
    assert data.num_identities == 1 and data.pseudo.tolist() == [False] * FRAMES + [True] * FRAMES * VIEWS
    people = load_portrait_set([made], avatar.head, 32)
    assert [len(moment) for moment in people.moments] == [1 + VIEWS] * FRAMES
    sampler = MotionSampler(people, 2, 0, 60.0, real_target=0.5, real_driver=0.5)
    drawn = [sampler.batch() for _ in range(20)]
    targets, sources = torch.cat([b.target for b in drawn]), torch.cat([b.source for b in drawn])
    assert bool(people.data.pseudo[targets].any()) and not bool(people.data.pseudo[sources].any())


def test_report_and_montage_tell_what_was_done(made: Path) -> None:
    report = json.loads((made / "report.json").read_text(encoding="utf-8"))
    assert report["schema"] == "pseudo-mv/1" and report["synthesizer"] == "avatar" and report["kept"] == FRAMES
    assert "RGB in [0, 1]" in report["disagreement_unit"] and report["threshold"] == THRESHOLD
    assert [entry["source"] for entry in report["frames"]] == [f"{k}.png" for k in range(FRAMES)]
    assert all(entry["disagreement"] < 0.03 and (made / entry["image"]).is_file() for entry in report["frames"])
    with Image.open(made / "montage.png") as montage:
        assert montage.size == (160 * (2 + VIEWS), 160 * FRAMES)
    assert {p.name for p in made.iterdir()} == {"images", "mattes", "track.json", "report.json", "montage.png"}
    with Image.open(made / "images" / "00000_view0.png") as picture:
        assert "Synthetic" in picture.text["Comment"]
    with Image.open(made / "images" / "00000.png") as picture:
        assert "Comment" not in picture.text


def test_a_picture_that_disagrees_is_left_out_and_counted(filmed: Path, avatar: Avatar, tmp_path: Path) -> None:
    shutil.copytree(filmed, tmp_path / "in")
    with Image.open(tmp_path / "in" / "1.png") as image:
        Image.fromarray(255 - np.asarray(image)).save(tmp_path / "in" / "1.png")
    source = load_driver([str(tmp_path / "in" / "track.json")], avatar.head)
    report = make_pseudo_views(source, AvatarSynthesizer(avatar), tmp_path / "mv", PseudoOptions(views=2, size=SIZE))
    assert (report.kept, report.left_out, report.pseudo) == (FRAMES - 1, 1, 2 * (FRAMES - 1))
    names = sorted(p.name for p in (tmp_path / "mv" / "images").iterdir())
    assert names == [f"{k:05d}{end}.png" for k in (0, 2) for end in ("", "_view0", "_view1")]
    entries = json.loads((tmp_path / "mv" / "report.json").read_text())["frames"]
    assert entries[1]["image"] is None and entries[1]["disagreement"] > THRESHOLD
    rows = np.asarray(Image.open(tmp_path / "mv" / "montage.png")).reshape(FRAMES, 160, -1, 3)
    reddish = (rows[:, 1, 4:, 0].astype(int) - rows[:, 1, 4:, 1]).min(-1) > 100
    assert reddish.tolist() == [False, True, False]


def test_another_persons_avatar_makes_nothing(filmed: Path, avatar: Avatar, driver: Driver, tmp_path: Path) -> None:
    other = make_avatar()
    other.gapnet.appearance_mlp.weights[-1].data.neg_()
    other.gapnet.appearance_mlp.biases[-1].data.add_(2.0)
    with pytest.raises(AvtoolError, match=f"all {FRAMES} real pictures disagree .* more than 0.08"):
        make_pseudo_views(driver, AvatarSynthesizer(other), tmp_path / "mv", PseudoOptions(views=2, size=SIZE))
    assert not list(tmp_path.iterdir())


def test_interrupted_work_leaves_what_was_there(made: Path, avatar: Avatar, driver: Driver, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "mv")
    before = {p.name: p.read_bytes() for p in (tmp_path / "mv").rglob("*") if p.is_file()}

    def interrupt(done: int, total: int, message: str) -> None:
        raise KeyboardInterrupt

    for output in (tmp_path / "mv", tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            make_pseudo_views(driver, AvatarSynthesizer(avatar), output, PseudoOptions(views=1, size=32), interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["mv"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "mv").rglob("*") if p.is_file()} == before
    make_pseudo_views(driver, AvatarSynthesizer(avatar), tmp_path / "mv", PseudoOptions(views=1, size=32))
    assert [p.name for p in tmp_path.iterdir()] == ["mv"] and len(list((tmp_path / "mv" / "images").iterdir())) == 2 * FRAMES


def test_only_its_own_data_sets_are_replaced(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty", force=False)
    check_place(tmp_path / "new", force=False)
    with pytest.raises(AvtoolError, match="already exists .*--force"):
        check_place(made, force=False)
    check_place(made, force=True)
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    with pytest.raises(AvtoolError, match="something else"):
        check_place(tmp_path / "empty", force=True)


def test_which_pictures_are_used(driver: Driver, made: Path, avatar: Avatar) -> None:
    assert chosen_frames(driver, PseudoOptions()) == [0, 1, 2]
    assert chosen_frames(driver, PseudoOptions(every=2)) == [0, 2]
    assert chosen_frames(driver, PseudoOptions(max_frames=1)) == [0]
    again = load_driver([str(made)], avatar.head)
    assert chosen_frames(again, PseudoOptions()) == list(range(FRAMES)), "a pseudo picture is nobody's source"
    pseudo = replace(again.track, frames=again.track.frames[FRAMES:])
    with pytest.raises(AvtoolError, match="pseudo ones only"):
        chosen_frames(replace(again, track=pseudo), PseudoOptions())
    tracked_now = replace(driver, track=replace(driver.track, video="clip.mp4"), tracking_seconds=1.0)
    assert chosen_frames(tracked_now, PseudoOptions(every=2)) == [0, 1, 2], "thinned out by the tracker"


# Portraits.


def test_a_portrait_draws_what_it_was_shown(avatar: Avatar, portrait: Path, tmp_path: Path) -> None:
    """Toy people, and a network whose every source is its own: a moment of the first is not drawn from the second."""
    source = toy_people.make_person(tmp_path / "toy", avatar.head, seed=0, views=3, size=48)
    network = Portrait.load(portrait, head=avatar.head)
    drawing = PortraitSynthesizer(network, avatar.head)
    samples = load_samples(Track.load(source), None, 64)
    draw = drawing.moments(samples)
    which = torch.tensor([2, 0, 2])
    images, alphas = draw(which, samples.viewmats[which], samples.Ks[which])
    assert images.shape == (3, 64, 64, 3) and alphas.shape == (3, 64, 64, 1)
    assert bool((images <= alphas + 0.35).all()), "premultiplied"
    assert torch.equal(images[0], images[2])
    params, gray = samples.params[2:], samples.images[2:] * samples.mattes[2:] + 0.5 * (1 - samples.mattes[2:])
    half = samples.Ks[2:] * torch.tensor((0.5, 0.5, 1.0))[:, None]  # the network draws 32 pixels a side
    with torch.no_grad():
        source = SourceView(resampled(gray, 32), params, samples.viewmats[2:], half)
        direct = network.eval()(source, None, None, params, samples.viewmats[2:], half)
    assert torch.allclose(resampled(direct.image, 64)[0], images[0], atol=1e-4)


def test_the_command_with_a_portrait_on_toy_people(avatar: Avatar, portrait: Path, tmp_path: Path, avtool, monkeypatch) -> None:
    toy_people.make_person(tmp_path / "toy", avatar.head, seed=1, views=3, size=48)
    call = ("pseudo-mv", "toy/track.json", "--portrait", portrait, "-o", "mv", "--views", 2, "--threshold", 1)
    done = avtool(*call, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["pictures"] == 3 and report["pseudo_pictures"] == 6 and report["left_out"] == 0
    data = load_training_set([tmp_path / "mv"], avatar.head, 32)
    assert data.images.shape == (9, 32, 32, 3) and int(data.pseudo.sum()) == 6
    assert json.loads((tmp_path / "mv" / "report.json").read_text())["portrait_stage"] == "static"
    first = {p.name: p.read_bytes() for p in (tmp_path / "mv" / "images").iterdir()}
    monkeypatch.setattr("signal.signal", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    main_exits([*map(str, call), "--force", "-q"])
    assert {p.name: p.read_bytes() for p in (tmp_path / "mv" / "images").iterdir()} == first, "equal seeds, equal pictures"


def test_the_shipped_portrait_draws_where_none_is_named(avatar: Avatar, tmp_path: Path, avtool) -> None:
    toy_people.make_person(tmp_path / "toy", avatar.head, seed=1, views=1, size=48)
    done = avtool("pseudo-mv", "toy/track.json", "--threshold", 1, "--views", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "mv" / "report.json").read_text())["portrait_stage"] == "motion"
    with Image.open(sorted((tmp_path / "mv" / "images").iterdir())[-1]) as picture:
        assert picture.size == (128, 128)


@pytest.mark.parametrize("motion", ["tracker", "of another kind"])
def test_a_motion_portrait_is_its_own_driver(motion: str, avatar: Avatar, tmp_path: Path, capfd, monkeypatch) -> None:
    """The tracker's embedding is at hand; a portrait that was made with another goes without, and says so."""
    monkeypatch.setattr("signal.signal", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    toy_people.make_person(tmp_path / "toy", avatar.head, seed=1, views=1, size=48)
    size = load_motion("tracker", avatar.head).size
    network = Portrait.create(replace(PRESETS["tiny"], size=32, motion_size=size), avatar.head)
    network.save(tmp_path / "p.safetensors", {"stage": "motion", "motion": motion})
    seen = []
    planes = Portrait.planes
    monkeypatch.setattr(Portrait, "planes", lambda self, encoded, *motions: seen.append(motions) or planes(self, encoded, *motions))
    main_exits(["pseudo-mv", "toy/track.json", "--portrait", "p.safetensors", "--threshold", "1", "--views", "1", "-q"])
    assert ("stage motion" in capfd.readouterr().err) == (motion != "tracker")
    own = load_motion("tracker", avatar.head).embed(Track.load(tmp_path / "toy" / "track.json").params())
    for given in seen[0]:
        assert given is None if motion != "tracker" else torch.allclose(given, own, atol=1e-6)
    assert len(list((tmp_path / "mv" / "images").iterdir())) == 2


def main_exits(args: list[str]) -> None:
    """The program in this process; it must end well."""
    try:
        main(args)
    except SystemExit as stop:
        assert not stop.code


def test_the_help_tells_the_threshold() -> None:
    from typer.main import get_command

    from avtool.__main__ import build_app

    options = {parameter.name: parameter for parameter in get_command(build_app()).commands["pseudo-mv"].params}
    assert f"{THRESHOLD:g} when left out" in options["threshold"].help


# Real pictures, tracked first.


def test_the_command_on_a_real_clip(shared: Path, avatar: Avatar, portrait: Path, tmp_path: Path, avtool) -> None:
    clip = shared / "data" / "obama_wh" / "crop.mp4"
    call = ["pseudo-mv", clip, "--synthesizer", "portrait", "--portrait", portrait, "--every", 40, "--max-frames", 3, "--random"]
    done = avtool(*call, "--threshold", 1, "--size", 64, "--views", 2)
    assert done.returncode == 0, done.stderr
    assert "tracking" in done.stderr and "pictures: 3" in done.stderr and "left out: 0" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mv"]
    assert {p.name for p in (tmp_path / "mv").iterdir()} == {"images", "mattes", "track.json", "report.json", "montage.png"}
    report = json.loads((tmp_path / "mv" / "report.json").read_text())
    assert [entry["source"] for entry in report["frames"]] == [0, 40, 80] and report["cameras"] == "random"
    samples = load_samples(Track.load(tmp_path / "mv" / "track.json"), [0, 1, 2], 64)
    assert bool((samples.mattes.mean((1, 2, 3)) > 0.2).all()) and bool((samples.mattes[:, 32, 32] > 0.9).all())


def test_one_photo_is_enough_and_keeps_the_avatars_shape(astronaut: Path, avatar: Avatar, tmp_path: Path) -> None:
    drawing = AvatarSynthesizer(avatar)
    source = load_driver([str(astronaut)], avatar.head, looks=True, person=drawing.person)
    np.testing.assert_allclose(source.track.identity, avatar.identity.numpy(), atol=1e-6)
    report = make_pseudo_views(source, drawing, tmp_path / "mv", PseudoOptions(views=2, size=SIZE, threshold=1.0))
    assert (report.kept, report.pseudo) == (1, 2) and report.disagreement > THRESHOLD, "a random avatar is nobody"
    assert not (tmp_path / "mv" / "tracking").exists()
    assert load_samples(Track.load(tmp_path / "mv" / "track.json"), [0], SIZE).mattes.mean() > 0.2
