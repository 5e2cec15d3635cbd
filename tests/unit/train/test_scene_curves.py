"""The ACCM's numbers on their way to the curves: of the newest step, summed over micro-batches and ranks."""

import pytest
import torch

from pipeline.config import HeadConfig
from pipeline.model.output import SceneState, SegmenterOutput
from pipeline.model.scene_numbers import scene_numbers
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import metrics
from pipeline.train.loop import fit
from pipeline.train.scene_curves import SceneCurves
from tests.nothing_read import NothingIsReadBack

CPU = torch.device("cpu")
NAMES = ("road", "sky", "pole")
SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.depth": 10, "model.backbone.base_width": 8, "model.head.dim": 16, "train.steps": 2,
    "train.batch_global": 4, "train.evaluate_every": 2, "train.metrics_every": 1, "train.pictures": 0,
    "optim.warmup_steps": 0, "launch.use_gpu": "no",
}  # fmt: skip


def output(images: int, seed: int, gate: float) -> SegmenterOutput:
    """Centers that lie the share `gate` of the way from the global to the scene's."""
    generator = torch.Generator().manual_seed(seed)
    global_KD = torch.nn.Parameter(torch.randn(3, 8, generator=generator))
    scene_BKD = torch.randn(images, 3, 8, generator=generator)
    center_BKD = global_KD + gate * (scene_BKD - global_KD)
    big = torch.zeros(images, 3, 40, 40)
    ones_BK = torch.ones(images, 3)
    return SegmenterOutput(
        big, big, big, center_BKD, global_KD, SceneState(100 * ones_BK, scene_BKD, ones_BK)
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_sums_of_micro_batches_and_ranks_give_the_means_over_the_images_of_all(ranks):
    curves = [SceneCurves(NAMES, CPU) for _ in range(ranks)]
    curves[0].keep(output(1, 5, gate=0.9))  # of a step before
    curves[0].forget()
    curves[0].keep(output(1, 0, gate=0.2))
    curves[-1].keep(output(3, 1, gate=0.6))
    sums = torch.cat([rank.sums(2 // ranks) for rank in curves])
    assert len(sums) == 2
    values = curves[0].values(sums.sum(0).tolist())
    for name in NAMES:
        assert values[f"accm/gate/{name}"] == pytest.approx((0.2 + 3 * 0.6) / 4)
    parts = [scene_numbers(*output(*args)[3:6]) for args in ((1, 0, 0.2), (3, 1, 0.6))]
    assert values[metrics.SCENE_COSINE] == pytest.approx(float(sum(p.scene_cosine for p in parts)) / 4)
    assert values[metrics.SCENE_DISTANCE] == pytest.approx(float(sum(p.scene_distance for p in parts)) / 4)


def test_what_is_kept_is_small_and_is_not_changed_by_the_optimizer():
    curves, seen = SceneCurves(NAMES, CPU), output(2, 0, gate=0.5)
    curves.keep(seen)
    before = curves.sums(1)
    with torch.no_grad():
        seen.global_KD.add_(1.0)
    assert torch.equal(curves.sums(1), before)
    ((centers, global_, scene),) = curves._seen
    held = [centers, global_, *scene]
    assert sum(t.untyped_storage().nbytes() for t in held) < 1000
    assert not any(t.requires_grad for t in held)


def test_neither_keeping_nor_summing_waits_for_the_device():
    curves, seen = SceneCurves(NAMES, CPU), output(2, 0, gate=0.5)
    with NothingIsReadBack():
        curves.keep(seen)
        sums = curves.sums(1)
        with pytest.raises(AssertionError):
            float(sums[0, 0])


def test_a_head_without_scenes_has_no_such_curves():
    curves = SceneCurves(NAMES, CPU)
    curves.keep(output(1, 0, 0.5)._replace(scene=None))
    assert curves.sums(3).shape == (3, 0)
    assert curves.values([]) == {}


@pytest.mark.parametrize(
    ("head", "shown"),
    [({"kind": "ccs", "fusion": "replace"}, True), ({"kind": "ccs", "fusion": "off"}, False),
     ({"kind": "plain"}, False)],
)  # fmt: skip
def test_a_run_records_them_beside_its_losses(shards, tmp_path, surroundings, head, shown):
    settings = SETTINGS | {f"model.head.{name}": value for name, value in head.items()}
    context = surroundings()
    fit(with_settings(recipe("laptop"), settings), shards, tmp_path, context)
    found = {key for key, step in context.points if key.startswith("accm/") and step == 2}
    assert (metrics.SCENE_COSINE in found, metrics.SCENE_DISTANCE in found) == (shown, shown)
    assert len(found) == (19 + 2 if shown else 0)
    if shown:
        assert HeadConfig().mass == "sum"  # every class has some mass, so each is replaced
        assert context.points["accm/gate/road", 2] == pytest.approx(1.0, abs=1e-5)
