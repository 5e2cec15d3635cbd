"""The whole network, and a whole step, are one graph: nothing is read back, nothing runs outside it."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from pipeline.model.losses import segmentation_losses
from tests.segmenters import (
    DEFAULT,
    counts,
    every_head,
    make_batch,
    make_model,
    one_of_a_kind,
    small,
    tensors,
)

LABELS_AT_WORK = small(
    mask_ignored=True, ohem_share=0.3, lambda_balanced=0.5, center_source="label-image", n_min=2,
    inter_form="softmax", intra_form="l1", intra_mean="batch-class", detach_center=True,
)  # fmt: skip
"""All that makes more of the labels than the default does."""


@pytest.fixture(autouse=True)
def quiet_tracer():
    """The tracer's own warnings are nobody's fault here; its caches would be shared by the tests."""
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def assert_same(found, expected) -> None:
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@every_head
def test_the_exported_network_gives_the_same_result(head):
    model = make_model(head).eval()
    image, _ = make_batch()
    program = torch.export.export(model, (image,))
    assert_same(program.module()(image), model(image))


@one_of_a_kind
def test_one_exported_network_takes_pictures_of_every_size_and_number(head):
    model = make_model(head).eval()
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model, (make_batch(2, 64, 96)[0],), dynamic_shapes=({0: free, 2: free, 3: free},)
    )
    for shape in ((2, 64, 96), (3, 77, 131)):
        image, _ = make_batch(*shape)
        assert_same(program.module()(image), model(image))


def compiled_and_plain_step(head, backend):
    """Losses of a training step as one graph (a break raises), with its gradients, and as it stands."""
    model = make_model(head).train()
    image, label = make_batch()

    def step(image, label):
        return segmentation_losses(model(image, label), label, counts(model, label, head), head)

    expected = step(image, label)
    found = torch.compile(step, backend=backend, fullgraph=True)(image, label)
    found.total.backward()
    assert all(p.grad is not None for p in model.parameters())
    return found, expected


@every_head
def test_a_step_traces_as_one_graph_and_so_reads_no_value_back_to_the_host(head):
    assert_same(*compiled_and_plain_step(head, "eager"))


@one_of_a_kind
def test_forward_and_backward_of_a_step_compile_as_one_graph_each(head):
    assert_same(*compiled_and_plain_step(head, "aot_eager"))


def test_a_step_that_makes_the_most_of_the_labels_traces_as_one_graph():
    assert_same(*compiled_and_plain_step(LABELS_AT_WORK, "eager"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor's CPU kernels need a C++ compiler")
def test_the_compiled_head_gives_the_same_result():
    """Inductor's own kernels, of the head alone: those of a backbone take a minute to make.

    In float64, since its sums run in another order.
    """
    model = make_model(DEFAULT).double().eval()
    with torch.no_grad():
        features = model.backbone(torch.randn(2, 3, 40, 56, dtype=torch.float64))
        assert_same(torch.compile(model.head, fullgraph=True)(features), model.head(features))
