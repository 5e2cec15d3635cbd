"""What only a GPU can show; skipped, with the reason, where there is none."""

import math

import numpy as np
import pytest
import torch

from pipeline.config import BackboneConfig, DataConfig, HeadConfig, ModelConfig, OptimConfig
from pipeline.data.augment import CropBuffers, augment, colour_in_place
from pipeline.data.loader import Batch
from pipeline.model.segmenter import build_segmenter, channels_last
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import checkpoint, metrics
from pipeline.train.batch_norm import synchronize_batch_norm
from pipeline.train.colour import change_colours
from pipeline.train.finite import UpdateGate
from pipeline.train.loop import fit
from pipeline.train.optim import Ema, build_optimizer, optimizer_tensors, restore_optimizer
from pipeline.train.step import LateNumbers, supports_bfloat16, to_device
from pipeline.world import World


class WholeSample:
    key = "k"

    def __init__(self, image, label):
        self.image, self.label = image, label
        self.height, self.width = label.shape

    def image_region(self, rows, columns):
        return self.image[rows, columns]

    def label_region(self, rows, columns):
        return self.label[rows, columns]


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU here")
CUDA = torch.device("cuda", 0)
SMALL = ModelConfig(BackboneConfig(depth=18, base_width=8), HeadConfig(dim=16))


def test_late_numbers_are_read_as_they_were_while_the_device_is_busy():
    busy = torch.randn(4096, 4096, device=CUDA)
    late = [LateNumbers(torch.tensor([float(wish), 7.0], device=CUDA)) for wish in (0, 1)]
    for _ in range(20):
        busy = busy @ busy
    assert [numbers.read() for numbers in late] == [[0, 7], [1, 7]]


def test_a_slot_may_be_filled_anew_while_the_device_has_yet_to_look_at_its_batch():
    """What goes to the device was copied before, so no slot is read by a copy that is still to come."""
    busy = torch.randn(4096, 4096, device=CUDA)
    image_BHW3, label_BHW = np.empty((2, 256, 512, 3), np.uint8), np.empty((2, 256, 512), np.uint8)
    moved = []
    for number in range(10):
        for _ in range(10):
            busy = busy @ busy
        image_BHW3[:], label_BHW[:] = number, 100 + number
        moved.append(to_device(Batch(image_BHW3, label_BHW, (0, 1), ("a", "b")), CUDA))
    for number, micro in enumerate(moved):
        assert (micro.image_B3HW == number).all()
        assert (micro.label_BHW == 100 + number).all()


def test_colours_are_changed_to_the_pixels_that_opencv_makes():
    """Whatever TF32 and fused multiply-adds do: the matrices leave nothing to round."""
    images = np.random.default_rng(0).integers(0, 256, (256, 64, 96, 3), np.uint8)
    labels = np.zeros((64, 96), np.uint8)
    source = WholeSample(images[0].copy(), labels)
    settings = DataConfig(input_height=64, input_width=96, crop_height=64, crop_width=96)
    crops = [augment(source, settings, 0, p, CropBuffers(images[p], labels.copy())) for p in range(256)]
    colour_B34, inside_B4 = np.stack([c.colour_34 for c in crops]), np.array([c.inside for c in crops])
    found = change_colours(*(torch.from_numpy(a).to(CUDA) for a in (images, colour_B34, inside_B4)))
    for image, crop in zip(images, crops, strict=True):
        colour_in_place(image, crop.colour_34, crop.inside)
    assert np.array_equal(found.cpu().numpy(), images)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_restored_optimizer_continues_bit_for_bit(name):
    def step(model, optimizer):
        for index, parameter in enumerate(model.parameters()):
            generator = torch.Generator(CUDA).manual_seed(index)
            parameter.grad = torch.randn(parameter.shape, generator=generator, device=CUDA)
        optimizer.step()

    model, other = (build_segmenter(SMALL, 5).to(CUDA) for _ in range(2))
    channels_last(model), channels_last(other)
    optimizer, restored = (build_optimizer(OptimConfig(name=name), m) for m in (model, other))
    step(model, optimizer)
    tensors = {k: v.cpu() for k, v in optimizer_tensors(model, optimizer).items()}
    other.load_state_dict(model.state_dict())
    restore_optimizer(other, restored, tensors)
    step(model, optimizer)
    step(other, restored)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_that_is_not_finite_changes_no_bit_and_the_host_waits_for_nothing(name):
    model, averaged = (build_segmenter(SMALL, 5).to(CUDA) for _ in range(2))
    optimizer = build_optimizer(OptimConfig(name=name), model)
    gate, ema = UpdateGate(model, optimizer, World(), CUDA), Ema(model, averaged, 0.9)

    def bits():
        tensors = [*model.state_dict().values(), *averaged.state_dict().values()]
        tensors += optimizer_tensors(model, optimizer).values()
        return [tensor.detach().clone() for tensor in tensors]

    def step(number, loss):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.cuda.set_sync_debug_mode("error")
        try:
            gate.begin()
            for buffer in model.buffers():
                buffer.add_(1)
            gate.finish(loss, loss)
            ema.update(model, number, gate.skipped)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    good, bad = torch.tensor([1.0, torch.nan], dtype=torch.float64, device=CUDA)
    step(1, good)
    before = bits()
    step(2, bad)
    assert all(torch.equal(old, new) for old, new in zip(before, bits(), strict=True))
    step(3, good)
    assert gate.outcome.tolist() == [0, 1, 1]
    assert sum(not torch.equal(old, new) for old, new in zip(before, bits(), strict=True)) > len(before) / 2


def test_batch_norm_over_ranks_is_torchs_fused_one():
    model = synchronize_batch_norm(build_segmenter(SMALL, 5), CUDA)
    kinds = {type(module) for module in model.modules() if "BatchNorm" in type(module).__name__}
    assert kinds == {torch.nn.SyncBatchNorm}


@pytest.mark.parametrize("mode", ["exact", "elastic"])
@pytest.mark.parametrize("kind", ["ccs", "plain", "ocr", "deeplabv3plus"])
def test_determinism_finds_a_kernel_for_every_operator_and_the_same_bits_twice(
    shards, tmp_path, surroundings, mode, kind
):
    settings = {
        "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
        "model.backbone.base_width": 8, "model.head.dim": 16, "model.head.kind": kind, "train.steps": 4,
        "model.head.ohem_share": 0.5, "model.head.lambda_balanced": 0.5, "train.batch_global": 8,
        "train.virtual_shards": 4, "train.determinism": mode, "train.pictures": 0, "launch.use_gpu": "yes",
    }  # fmt: skip
    config = with_settings(recipe("laptop"), settings)
    found = []
    for run in ("one", "two"):
        fit(config, shards, tmp_path / run, surroundings())
        folder = checkpoint.newest_checkpoint(tmp_path / run)
        names = (checkpoint.WEIGHTS, checkpoint.OPTIMIZER)
        found.append({f"{n} {k}": v for n in names for k, v in checkpoint.read_tensors(folder, n).items()})
    one, two = found
    assert [key for key in one if not torch.equal(one[key], two[key])] == []


def test_fit_trains_stops_and_goes_on(shards, tmp_path, surroundings):
    settings = {
        "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
        "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 4, "train.steps": 8,
        "train.evaluate_every": 4, "train.metrics_every": 1, "train.ema_decay": 0.9, "launch.use_gpu": "yes",
    }  # fmt: skip
    config = with_settings(recipe("laptop"), settings)
    assert supports_bfloat16(CUDA)
    stopped = fit(config, shards, tmp_path, surroundings("a", 2))
    ended = surroundings("b", None)
    assert (stopped.status, fit(config, shards, tmp_path, ended).status) == ("preempted", "ok")
    losses = [value for (key, _), value in ended.points.items() if key == metrics.LOSS]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
