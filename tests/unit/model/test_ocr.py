"""OCR is its paper's equations, written once more as loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.model.backbone import BackboneChannels, BackboneFeatures
from pipeline.model.ocr import ObjectContext, OcrHead, attend, gather_regions
from tests.segmenters import CLASSES, OCR


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def test_regions_are_means_of_the_features_weighted_by_a_softmax_over_pixels():
    pixel_BDN, coarse_BKN = random(2, 5, 7), random(2, 3, 7, seed=1)
    expected = np.zeros((2, 3, 5))
    for b in range(2):
        for k in range(3):
            share_N = softmax(coarse_BKN[b, k].numpy())
            for p in range(7):
                expected[b, k] += share_N[p] * pixel_BDN[b, :, p].numpy()
    np.testing.assert_allclose(gather_regions(pixel_BDN, coarse_BKN).numpy(), expected, rtol=1e-12)


def test_context_is_a_mean_of_the_values_weighted_by_scaled_products_of_query_and_key():
    query_BEN, key_BEK, value_BEK = random(2, 4, 7), random(2, 4, 3, seed=1), random(2, 4, 3, seed=2)
    expected = np.zeros((2, 4, 7))
    for b in range(2):
        for p in range(7):
            products = [float(query_BEN[b, :, p] @ key_BEK[b, :, k]) / 4**0.5 for k in range(3)]
            for k, share in enumerate(softmax(np.array(products))):
                expected[b, :, p] += share * value_BEK[b, :, k].numpy()
    np.testing.assert_allclose(attend(query_BEN, key_BEK, value_BEK).numpy(), expected, rtol=1e-12)


def pointwise(block: torch.nn.Sequential, x_CN: np.ndarray) -> np.ndarray:
    """ReLU(BatchNorm(W x)) of one image in evaluation."""
    convolution, norm, _ = block
    y_CN = convolution.weight.detach().numpy()[:, :, 0, 0] @ x_CN
    mean, var = norm.running_mean.numpy()[:, None], norm.running_var.numpy()[:, None]
    gain, shift = norm.weight.detach().numpy()[:, None], norm.bias.detach().numpy()[:, None]
    return np.maximum((y_CN - mean) / np.sqrt(var + norm.eps) * gain + shift, 0.0)


def test_object_context_joins_the_attended_regions_to_each_pixel():
    torch.manual_seed(0)
    module = ObjectContext(6).double().eval()
    with torch.no_grad():
        for name, tensor in module.named_buffers():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith("var") else tensor.normal_()
    pixel_BDhw, region_BKD = random(2, 6, 3, 4), random(2, 5, 6, seed=1)
    found = module(pixel_BDhw, region_BKD).detach().numpy()
    for b in range(2):
        pixel_DN, region_DK = pixel_BDhw[b].flatten(1).numpy(), region_BKD[b].numpy().T
        query_EN = pointwise(module.query[1], pointwise(module.query[0], pixel_DN))
        key_EK = pointwise(module.key[1], pointwise(module.key[0], region_DK))
        value_EK = pointwise(module.value, region_DK)
        context_EN = np.stack(
            [value_EK @ softmax(key_EK.T @ query_EN[:, p] / 3**0.5) for p in range(12)], axis=1
        )
        joined_DN = pointwise(module.fuse, np.concatenate([pointwise(module.out, context_EN), pixel_DN]))
        np.testing.assert_allclose(found[b].reshape(6, 12), joined_DN, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gather_and_attention_run_in_float32_under_autocast(dtype):
    torch.manual_seed(0)
    head = OcrHead(BackboneChannels(8, 8, 8), CLASSES, OCR).eval()
    context, seen = head.context, {}

    def listen(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda _, inputs, output: seen.update({name: (inputs, output)}))

    for name in ("query", "key", "value", "out"):
        listen(name, getattr(context, name))
    listen("coarse", head.reduction.coarse)
    context.register_forward_pre_hook(lambda _, inputs: seen.update(context=inputs))
    features = random(2, 8, 5, 6).float()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        head(BackboneFeatures(features, features))
    reduced_BDhw, region_BKD = seen["context"]
    coarse_BKhw = seen["coarse"][1]
    assert coarse_BKhw.dtype == dtype
    assert torch.equal(
        region_BKD, gather_regions(*(x.float().flatten(2) for x in (reduced_BDhw, coarse_BKhw)))
    )
    told = [seen[name][1].float().flatten(2) for name in ("query", "key", "value")]
    ((attended_BEhw,), _) = seen["out"]
    assert torch.equal(attended_BEhw, attend(*told).to(dtype).unflatten(2, (5, 6)))


def test_the_regions_are_those_of_the_coarse_prediction():
    """A coarse prediction that is the same everywhere makes every region the image's mean feature."""
    torch.manual_seed(0)
    head = OcrHead(BackboneChannels(8, 8, 8), CLASSES, OCR).double().eval()
    with torch.no_grad():
        head.reduction.coarse.weight.zero_()
    seen = []
    head.context.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    features = random(2, 8, 5, 6)
    head(BackboneFeatures(features, features))
    ((reduced_BDhw, region_BKD),) = seen
    mean_BD = reduced_BDhw.mean((2, 3))
    torch.testing.assert_close(region_BKD, mean_BD[:, None].expand(-1, CLASSES, -1))
