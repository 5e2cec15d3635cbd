"""BatchNorm over virtual shards: torch's own layer on each, one movement of the statistics a step."""

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.train.fixed_order import FixedOrder
from pipeline.train.shard_batch_norm import ShardBatchNorm, ShardStatistics, take_shard_statistics
from pipeline.train.summation_tree import LeafShare
from pipeline.world import World


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(4)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
    return model


def shards(count: int) -> torch.Tensor:
    return torch.randn(count, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_gradients_are_those_of_torchs_layer_on_each_shard_and_statistics_move_to_their_mean():
    stock, model = network().double(), network().double()
    take_shard_statistics(model)
    assert model.state_dict().keys() == stock.state_dict().keys()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reduction = FixedOrder(model, World(), 6)
    noted = []
    for layer in (stock[1], stock[3][0]):
        layer.register_forward_pre_hook(lambda _, args: noted.append(args[0].detach()))
    for index, shard in enumerate(shards(6).double()):
        with reduction.micro_batch(last=index == 5):
            reduction.backward(model(shard).square().sum())
        stock(shard).square().sum().backward()
    for (name, found), expected in zip(model.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=1e-12, msg=name)
    for offset, prefix in ((0, "1"), (1, "3.0")):
        seen = noted[offset::2]
        mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
        var = torch.stack([x.var((0, 2, 3), unbiased=True) for x in seen]).mean(0)
        state = model.state_dict()
        for name, target in (("running_mean", mean), ("running_var", var)):
            key = f"{prefix}.{name}"
            torch.testing.assert_close(state[key], 0.9 * before[key] + 0.1 * target)
        assert state[f"{prefix}.num_batches_tracked"] == 1


def test_nothing_moves_until_a_step_is_through_and_evaluation_is_torchs():
    stock, model = network(), network()
    take_shard_statistics(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(shards(1)[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    stock.eval(), model.eval()
    assert torch.equal(model(shards(1)[0]), stock(shards(1)[0]))


def test_numbers_that_are_not_finite_are_gone_in_the_next_step():
    model = network()
    take_shard_statistics(model)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    statistics = ShardStatistics(model, LeafShare(1, 0, 1))
    for shard in (torch.full((2, 3, 8, 8), torch.nan), shards(1)[0]):
        model.load_state_dict(kept)  # the step with NaN is undone
        statistics.forget()
        model(shard)
        statistics.put_aside(0)
        statistics.finish()
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_other_layers_with_statistics_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.BatchNorm1d(4))
    with pytest.raises(ConfigError, match=r"knows no BatchNorm1d \(2\).*--train\.determinism exact"):
        take_shard_statistics(model)
    fine = nn.Sequential(nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.BatchNorm2d(4))
    take_shard_statistics(fine)
    assert isinstance(fine[3], ShardBatchNorm)
