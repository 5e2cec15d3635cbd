"""The mini city: a Cityscapes tree with exact labels that colour and row alone cannot solve."""

import cv2
import numpy as np
import pytest
import torch

from pipeline.data.labels import CITYSCAPES, IGNORE
from pipeline.data.mini_city import tree
from pipeline.data.mini_city.canvas import LABEL, SKY_DEPTH_M, Camera, Canvas
from pipeline.data.mini_city.plan import HEIGHT_PX, TRAIN, VAL, WIDTH_PX, draw_light
from pipeline.data.mini_city.tree import make_mini_city, render_scene
from pipeline.errors import DatasetError

CLASSES = {
    "road", "sidewalk", "building", "pole", "traffic sign", "vegetation", "terrain", "sky", "person", "car"
}  # fmt: skip


def files_under(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*.png"))}


def render_all(families, count, val):
    scenes = [
        render_scene(families[i % len(families)], np.random.default_rng([0, i, val])) for i in range(count)
    ]
    images = np.stack([image for image, _ in scenes])
    return images, np.stack([CITYSCAPES.to_train_ids(label) for _, label in scenes])


@pytest.fixture(scope="module")
def train_scenes():
    return render_all(TRAIN, 36, False)


@pytest.fixture(scope="module")
def val_scenes():
    return render_all(VAL, 18, True)


def mean_iou(prediction, label):
    valid = label != IGNORE
    pairs = label[valid].astype(np.int64) * 19 + prediction[valid]
    confusion = np.bincount(pairs, minlength=361).reshape(19, 19)
    present = confusion.sum(1) > 0
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return float((confusion.diagonal()[present] / union[present]).mean())


def color_and_row(images):
    """Every second pixel in both directions as (red, green, blue, row), each in -1..1."""
    rows = np.broadcast_to(np.linspace(-1, 1, HEIGHT_PX)[None, :, None, None], (*images.shape[:3], 1))
    pixels = np.concatenate([images / 127.5 - 1, rows], axis=-1)[:, ::2, ::2]
    return pixels.reshape(-1, 4).astype(np.float32)


def histogram_bayes(pixels, truth, bins):
    """Log of how often each class was seen in each (red, green, blue, row) bin and beside it."""
    edges = bins - 1e-4

    def bin_of(pixels):
        return np.ravel_multi_index(tuple(((pixels + 1) / 2 * edges).astype(np.int64).T), (bins,) * 4)

    counts = np.bincount(bin_of(pixels) * 19 + truth, minlength=bins**4 * 19)
    counts = counts.reshape(bins, bins, bins, bins, 19).astype(np.float32)
    for axis in range(4):
        counts = counts + np.float32(0.3) * (np.roll(counts, 1, axis) + np.roll(counts, -1, axis))
    logits = np.log(counts.reshape(-1, 19) + 1e-6)
    return lambda pixels: logits[bin_of(pixels)]


def small_network(pixels, truth):
    """A multilayer perceptron on (red, green, blue, row)."""
    generator = torch.Generator().manual_seed(0)
    inputs, classes = torch.from_numpy(pixels), torch.from_numpy(truth)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Linear(4, 48), torch.nn.ReLU(), torch.nn.Linear(48, 48), torch.nn.ReLU(),
            torch.nn.Linear(48, 19),
        )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=8e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        chosen = torch.randint(0, len(classes), (2048,), generator=generator)
        loss = torch.nn.functional.cross_entropy(network(inputs[chosen]), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    def predict(pixels):
        with torch.no_grad():
            return network(torch.from_numpy(pixels)).numpy()

    return predict


def test_a_classifier_of_color_and_row_stays_under_035(train_scenes, val_scenes):
    (x, y), (x_val, y_val) = (
        (color_and_row(images), labels[:, ::2, ::2].reshape(-1))
        for images, labels in (train_scenes, val_scenes)
    )
    x, y = x[y != IGNORE], y[y != IGNORE].astype(np.int64)
    log_prior = np.log(np.maximum(np.bincount(y, minlength=19) / y.size, 1e-9)).astype(np.float32)
    never_seen = log_prior < -20
    on_train, on_val = {}, {}
    for name, logits in (
        ("8 bins", histogram_bayes(x, y, 8)), ("16 bins", histogram_bayes(x, y, 16)),
        ("network", small_network(x, y)),
    ):  # fmt: skip
        said, said_val = logits(x), logits(x_val)
        for balance in (0.0, 0.5, 1.0):  # of rare classes against frequent ones
            shift = np.where(never_seen, np.inf, balance * log_prior)
            on_train[name, balance] = mean_iou((said - shift).argmax(1), y)
            on_val[name, balance] = mean_iou((said_val - shift).argmax(1), y_val)
    assert max(on_train.values()) > 0.38, f"the baselines learnt nothing: {on_train}"
    assert max(on_val.values()) > 0.20, f"the baselines learnt nothing that lasts: {on_val}"
    assert max(on_val.values()) < 0.35, on_val


def test_both_splits_hold_all_ten_classes_and_some_ignored_pixels(train_scenes, val_scenes):
    for _, labels in (train_scenes, val_scenes):
        ids, counts = np.unique(labels, return_counts=True)
        assert {CITYSCAPES.names[i] for i in ids if i != IGNORE} == CLASSES
        assert (counts / labels.size).min() > 0.004
        assert 0.001 < (labels == IGNORE).mean() < 0.08


def test_the_tree_is_cityscapes_layout_with_one_label_for_each_image(tmp_path):
    assert make_mini_city(tmp_path, train=3, val=2)._asdict() == {"train": 3, "val": 2}
    images = sorted(p.relative_to(tmp_path / "leftImg8bit") for p in tmp_path.glob("leftImg8bit/*/*/*.png"))
    labels = sorted(p.relative_to(tmp_path / "gtFine") for p in tmp_path.glob("gtFine/*/*/*.png"))
    assert len(images) == 5
    assert [str(p).replace("_leftImg8bit", "_gtFine_labelIds") for p in images] == [str(p) for p in labels]
    for path in images:
        assert path.name.startswith(f"{path.parent.name}_0000")
        assert path.name.endswith("_000019_leftImg8bit.png")
    image = cv2.imread(str(tmp_path / "leftImg8bit" / images[0]), cv2.IMREAD_UNCHANGED)
    label = cv2.imread(str(tmp_path / "gtFine" / labels[0]), cv2.IMREAD_UNCHANGED)
    assert image.shape == (HEIGHT_PX, WIDTH_PX, 3)
    assert label.shape == (HEIGHT_PX, WIDTH_PX)
    assert label.dtype == np.uint8
    expected = render_scene(TRAIN[0], np.random.default_rng([0, 0, False]))
    np.testing.assert_array_equal(image[..., ::-1], expected[0])
    np.testing.assert_array_equal(label, expected[1])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_pictures(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_mini_city(tmp_path / name, train=1, val=1, seed=seed)
    a, b, c = (files_under(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a)


def test_validation_shares_no_city_and_no_weather_with_training():
    assert not {f.city for f in TRAIN} & {f.city for f in VAL}
    assert not {w for f in TRAIN for w in f.weather} & {w for f in VAL for w in f.weather}


@pytest.mark.parametrize("content", ["file", "folder"])
def test_a_place_that_holds_files_is_refused_and_left_alone(tmp_path, content):
    out = tmp_path / "out"
    kept = out if content == "file" else out / "kept.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(DatasetError, match="not an empty folder"):
        make_mini_city(out, train=1, val=1)
    assert kept.read_text() == "mine"


def test_a_drawing_that_is_cut_off_leaves_no_city_and_the_next_one_is_whole(tmp_path, monkeypatch):
    out, drawn = tmp_path / "out", []

    def interrupted(family, rng):
        drawn.append(family)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return render_scene(family, rng)

    monkeypatch.setattr(tree, "render_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_mini_city(out, train=4, val=1)
    assert not out.exists()
    monkeypatch.undo()
    make_mini_city(out, train=4, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list(out.rglob("*_labelIds.png"))) == 5


@pytest.fixture
def canvas():
    rng = np.random.default_rng(0)
    camera = Camera(width=200, height=100, focal=180.0, horizon=40.0, eye_m=1.5, s_m=1.0, curve=0.01)
    canvas = Canvas(camera, draw_light(TRAIN[0], rng), rng)
    canvas.color[:] = -1.0
    return canvas


def test_ground_inverts_projection_on_a_bend(canvas):
    s, z = canvas.camera.ground(first_row=45)
    points = np.stack([s, np.zeros_like(s), z], axis=-1).reshape(-1, 3)
    columns, rows = canvas.camera.project(points).T
    seen = z.reshape(-1) > 1.3
    np.testing.assert_allclose(columns[seen], np.tile(np.arange(200.0), 55)[seen], atol=1e-2)
    np.testing.assert_allclose(rows[seen], np.repeat(np.arange(45.0, 100.0), 200)[seen], atol=1e-2)


def test_color_label_and_depth_are_painted_on_the_same_pixels(canvas):
    canvas.fill([(1.0, 0.0, 6.0), (2.0, 2.2, 6.3), (0.2, 1.1, 5.7)], (0.1, 0.2, 0.3), "car")
    wall = np.full((20, 30, 3), 0.5, np.float32)
    canvas.hang(wall, [(-4, 5, 3), (-4, 5, 9), (-4, 0, 9), (-4, 0, 3)], "building")
    for label, color, depth in (("car", 0.2, 6.0), ("building", 0.5, 6.0)):
        there = canvas.label == LABEL[label]
        assert 50 < there.sum() < 10_000
        np.testing.assert_array_equal(there, np.isclose(canvas.color[..., 1], color))
        np.testing.assert_allclose(canvas.depth[there], depth, atol=0.2)
    untouched = canvas.label == 0
    assert np.all(canvas.color[untouched] == -1.0)
    assert np.all(canvas.depth[untouched] == SKY_DEPTH_M)


def test_what_lies_behind_the_camera_is_not_painted(canvas):
    canvas.fill([(0.0, 0.0, -3.0), (1.0, 0.0, -3.0), (1.0, 1.0, 0.5)], (1, 1, 1), "car")
    canvas.hang(np.ones((4, 4, 3), np.float32), [(2, 3, -9), (2, 3, -2), (2, 0, -2), (2, 0, -9)], "building")
    assert not canvas.label.any()


def test_a_shadow_falls_away_from_the_sun_and_a_low_sun_makes_it_longer(canvas):
    short, long = (draw_light(family, np.random.default_rng(1)) for family in (TRAIN[0], VAL[2]))
    for light in (short, long):
        ds, dz = light.shadow_of(2.0)
        assert ds * light.to_sun[0] <= 0
        assert dz * light.to_sun[2] <= 0
    assert np.hypot(*long.shadow_of(2.0)) > np.hypot(*short.shadow_of(2.0))
