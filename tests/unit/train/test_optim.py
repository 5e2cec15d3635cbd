"""The schedule against its formula; the optimizer's groups; the averaged weights."""

import pytest
import torch

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig, OptimConfig
from pipeline.model.segmenter import build_segmenter
from pipeline.train.optim import Ema, build_optimizer, learning_rate, set_learning_rate

SMALL = ModelConfig(
    BackboneConfig(depth=18, base_width=8), HeadConfig(dim=8, fusion="gate", learn_alpha=True, learn_tau=True)
)


def test_rate_decays_by_the_fields_poly_formula():
    config = OptimConfig(lr=0.01, min_lr=1e-4, poly_power=0.9)
    # mmsegmentation's published form: (lr - min) * (1 - t/T) ** 0.9 + min
    for step in (0, 1, 40_000, 79_999):
        expected = (0.01 - 1e-4) * (1 - step / 80_000) ** 0.9 + 1e-4
        assert learning_rate(config, step, 80_000) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(config, 80_000, 80_000) == pytest.approx(1e-4)


def test_warm_up_rises_and_joins_the_decay():
    config = OptimConfig(lr=0.01, min_lr=0.0, warmup_steps=10)
    rates = [learning_rate(config, step, 100) for step in range(12)]
    assert rates[0] == pytest.approx(0.01 * 0.01)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == learning_rate(OptimConfig(lr=0.01, min_lr=0.0), 10, 100)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_parameter_is_in_one_group_and_vectors_are_not_decayed(name):
    model = build_segmenter(SMALL, 5)
    config = OptimConfig(name=name, lr=0.02, weight_decay=0.1, head_lr_multiplier=10.0)
    optimizer = build_optimizer(config, model)
    set_learning_rate(optimizer, 0.002)
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert parameter not in seen
            seen[parameter] = group
    assert seen.keys() == set(model.parameters())
    assert {parameter.ndim for parameter in seen} >= {0, 1, 2, 4}  # alpha and tau are numbers
    head = set(model.head_parameters())
    for parameter, group in seen.items():
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
        assert group["lr"] == pytest.approx(0.02 if parameter in head else 0.002)


def test_sgd_moves_as_torchs_plain_one_from_the_first_step_on():
    model, plain = build_segmenter(SMALL, 5), build_segmenter(SMALL, 5)
    plain.load_state_dict(model.state_dict())
    config = OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0)
    ours = build_optimizer(config, model)
    theirs = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, foreach=False)
    for _ in range(3):
        for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        ours.step(), theirs.step()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_ema_is_the_weighted_mean_of_the_weights_and_takes_the_latest_buffers():
    model, averaged = build_segmenter(SMALL, 5), build_segmenter(SMALL, 5)
    ema = Ema(model, averaged, decay=0.9)
    weight, mine = model.backbone.conv1.weight, averaged.backbone.conv1.weight
    expected = weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
            model.backbone.bn1.running_mean.add_(step)
        ema.update(model, step, torch.zeros(()))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(averaged.backbone.bn1.running_mean, model.backbone.bn1.running_mean)
    assert not averaged.training
