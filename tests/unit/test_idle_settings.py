"""A typed setting that would be ignored is refused; one that is refused really changes nothing."""

import pytest
import torch

from pipeline.config import CCS_ONLY, BackboneConfig, Config, HeadConfig, ModelConfig
from pipeline.errors import ConfigError
from pipeline.idle_settings import RULES, refuse_idle_settings
from pipeline.model.denominators import count_labels
from pipeline.model.losses import segmentation_losses
from pipeline.model.segmenter import build_segmenter
from pipeline.recipes import recipe
from pipeline.settings import flatten, with_settings

ALWAYS_READ = {
    "model.backbone.architecture", "model.backbone.weights", "model.head.kind", "model.head.dim",
    "model.head.lambda_coarse", "model.head.lambda_balanced", "model.head.ohem_share",
}  # fmt: skip
"""By every network; the others are idle in some."""


def test_each_setting_of_the_network_is_read_by_all_or_has_a_rule():
    ruled = set().union(*(rule.settings for rule in RULES))
    names = {name for name in flatten(Config()) if name.startswith("model.")}
    assert ruled <= set(flatten(Config()))
    assert names - ruled == ALWAYS_READ
    assert not ALWAYS_READ & ruled


@pytest.mark.parametrize("kind", ["plain", "ocr", "deeplabv3plus"])
def test_other_heads_refuse_every_setting_of_similarity_and_no_other(kind):
    config = with_settings(recipe("laptop"), {"model.head.kind": kind, "model.head.lambda_balanced": 1.0})
    for name in flatten(config):
        if name.removeprefix("model.head.") in CCS_ONLY:
            with pytest.raises(ConfigError, match=f"head {kind} computes no .*: leave out --{name}, or take"):
                refuse_idle_settings(config, [name])
        elif name.startswith("model."):
            refuse_idle_settings(config, [name])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"model.head.fusion": "off", "model.head.n0": "0.01"}, "no scene centers"),
        ({"model.head.fusion": "off", "model.head.assignment": "hard"}, "no scene centers"),
        ({"model.head.fusion": "mlp", "model.head.n0": "0.01"}, "n0 is of fusions gate and residual-mlp"),
        ({"model.head.fusion": "mlp", "model.head.alpha": "0.5"}, "fusion gate"),
        ({"model.head.fusion": "replace", "model.head.learn_alpha": "true"}, "fusion gate"),
        ({"model.head.assignment": "hard", "model.head.mass": "squared"}, "to one class whole"),
        ({"model.head.lambda_inter": "0", "model.head.delta": "0.1"}, "lambda_inter is 0"),
        ({"model.head.inter_form": "identity", "model.head.p": "1"}, "--model.head.inter_form hinge"),
        ({"model.head.lambda_intra": "0", "model.head.q": "1"}, "lambda_intra is 0"),
        ({"model.head.lambda_intra": "0", "model.head.intra_mean": "pixel"}, "lambda_intra is 0"),
        ({"model.head.intra_form": "l1", "model.head.q": "1"}, "--model.head.intra_form cosine"),
        ({"model.backbone.architecture": "hub/net", "model.backbone.stem": "v1c"}, "says what the backbone"),
        ({"data.prefetch": "8"}, "loader_workers"),
        ({"data.held_out": "ulm", "data.val_split": "val"}, "the drives of data.held_out are evaluated"),
        ({"train.virtual_shards": "4"}, "elastic determinism alone"),
        ({"train.determinism": "exact", "train.virtual_shards": "4"}, "elastic determinism alone"),
        ({"train.determinism": "elastic", "train.accumulation": "2"}, "a micro-batch for each virtual shard"),
        ({"optim.warmup_steps": "9999"}, "a warm-up of 9999 steps never ends"),
    ],
)
def test_a_typed_setting_that_would_be_ignored_is_refused(typed, message):
    config = with_settings(recipe("laptop"), typed)
    with pytest.raises(ConfigError, match=message) as error:
        refuse_idle_settings(config, typed)
    assert "\n" not in str(error.value)
    refuse_idle_settings(config, [next(iter(typed))] if len(typed) > 1 else [])


def test_settings_that_two_others_silence_name_both():
    typed = {
        "model.head.lambda_inter": "0",
        "model.head.lambda_intra": "0",
        "model.head.lambda_balanced": "0",
    }
    config = with_settings(recipe("laptop"), typed)
    with pytest.raises(ConfigError, match="lambda_inter and lambda_intra are 0: leave out"):
        refuse_idle_settings(config, ["model.head.center_source"])
    with pytest.raises(ConfigError, match="no loss asks which classes are present: leave out"):
        refuse_idle_settings(config, ["model.head.n_min"])
    one = with_settings(config, {"model.head.lambda_inter": 0.1})
    refuse_idle_settings(one, ["model.head.n_min", "model.head.center_source"])
    refuse_idle_settings(with_settings(config, {"model.head.lambda_balanced": 1.0}), ["model.head.n_min"])


PLAIN_FORMS = {
    "kind": "ccs", "dropout": 0.0, "projection": True, "assignment": "softmax", "assignment_temperature": 1.0,
    "mass": "sum", "mask_ignored": False, "n0": 0.001, "alpha": 1.0, "learn_alpha": False,
    "similarity": "cosine", "tau": 15.0, "learn_tau": False, "class_norm": False, "lambda_coarse": 0.4,
    "ohem_share": 1.0, "lambda_balanced": 0.0, "center_source": "accm", "lambda_inter": 0.1,
    "inter_form": "hinge", "delta": 0.0, "p": 2, "lambda_intra": 0.1, "intra_form": "cosine", "q": 2,
    "intra_mean": "image-class", "n_min": 1, "detach_center": True,
}  # fmt: skip
"""Everything that a case does not say, whatever the defaults come to be."""
GATE, OFF = PLAIN_FORMS | {"fusion": "gate"}, PLAIN_FORMS | {"fusion": "off"}
IDLE = [
    *((OFF, other) for other in (
        {"assignment": "hard"}, {"assignment_temperature": 0.5}, {"mass": "squared"}, {"mask_ignored": True},
        {"n0": 0.1}, {"alpha": 0.5}, {"learn_alpha": True},
    )),
    (OFF | {"lambda_coarse": 0.0}, {"dropout": 0.5}),
    (GATE | {"fusion": "mlp"}, {"n0": 0.1}),
    (GATE | {"fusion": "replace"}, {"n0": 0.1}),
    (GATE | {"fusion": "residual-mlp"}, {"alpha": 0.5}),
    (GATE | {"fusion": "residual-mlp"}, {"learn_alpha": True}),
    (GATE | {"learn_alpha": True}, {"alpha": 0.5}),
    (GATE | {"assignment": "hard"}, {"assignment_temperature": 0.5}),
    (GATE | {"assignment": "hard"}, {"mass": "above-chance"}),
    (GATE | {"lambda_inter": 0.0}, {"inter_form": "softmax"}),
    (GATE | {"lambda_inter": 0.0}, {"delta": 0.2}),
    (GATE | {"inter_form": "identity"}, {"p": 1}),
    (GATE | {"inter_form": "softmax"}, {"delta": 0.2}),
    (GATE | {"lambda_intra": 0.0}, {"intra_form": "l1"}),
    (GATE | {"lambda_intra": 0.0}, {"q": 1}),
    (GATE | {"lambda_intra": 0.0}, {"intra_mean": "pixel"}),
    (GATE | {"lambda_intra": 0.0}, {"detach_center": False}),
    (GATE | {"intra_form": "l1"}, {"q": 1}),
    (GATE | {"lambda_inter": 0.0, "lambda_intra": 0.0}, {"n_min": 9}),
    (GATE | {"lambda_inter": 0.0, "lambda_intra": 0.0}, {"center_source": "global"}),
]  # fmt: skip
READ = [
    (GATE, {"assignment": "pixel-softmax"}), (GATE, {"assignment_temperature": 0.5}), (GATE, {"n0": 0.1}),
    (GATE, {"mass": "squared"}), (GATE, {"mask_ignored": True}), (GATE, {"alpha": 0.5}),
    (GATE, {"learn_alpha": True}), (GATE | {"assignment": "pixel-softmax"}, {"mass": "squared"}),
    (GATE | {"p": 1}, {"inter_form": "identity"}), (GATE, {"delta": 0.2}), (GATE, {"p": 1}),
    (GATE, {"inter_form": "softmax"}), (GATE, {"intra_form": "l1"}), (GATE, {"q": 1}),
    (GATE, {"intra_form": "cross-entropy"}), (GATE, {"intra_mean": "pixel"}), (GATE, {"n_min": 9}),
    (GATE, {"detach_center": False}), (GATE, {"center_source": "global"}),
    (GATE, {"center_source": "label-image"}), (OFF, {"center_source": "label-image"}),
    (OFF, {"lambda_balanced": 1.0}), (OFF | {"lambda_inter": 0.0, "lambda_balanced": 1.0}, {"n_min": 9}),
    (OFF, {"similarity": "dot"}), (OFF, {"tau": 9.0}), (OFF, {"class_norm": True}),
    (OFF, {"dropout": 0.5}), (GATE | {"lambda_coarse": 0.0}, {"dropout": 0.5}),
    (OFF, {"projection": False}), (OFF, {"learn_tau": True}), (OFF, {"ohem_share": 0.5}),
]  # fmt: skip


def gradients(head: dict) -> dict[str, torch.Tensor]:
    """Loss and gradients of one small training batch with that head; dropout off, the same weights."""
    backbone = BackboneConfig(depth=10, base_width=8)
    settings = HeadConfig(**{"dim": 8} | head)
    torch.manual_seed(0)
    model = build_segmenter(ModelConfig(backbone, settings), 5).double()
    for name, parameter in model.named_parameters():  # by name: what starts at zero would hide a difference
        generator = torch.Generator().manual_seed(sum(name.encode()))
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3, 32, 48), generator=generator, dtype=torch.uint8)
    label = torch.randint(0, 4, (2, 4, 6), generator=generator, dtype=torch.uint8)
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
    label[:, :9] = 255
    counts = count_labels(
        label, model.feature_size(32, 48), 5, n_min=settings.n_min, ohem_share=settings.ohem_share
    )
    loss = segmentation_losses(model(image, label), label, counts, settings).total
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": loss.detach()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def case(head: dict, other: dict) -> str:
    """What differs from the plain forms, as the name of a case."""
    unusual = {k: v for k, v in head.items() if PLAIN_FORMS.get(k) != v}
    return f"{unusual}-{other}"


@pytest.mark.parametrize(("head", "other"), [pytest.param(*pair, id=case(*pair)) for pair in IDLE])
def test_a_refused_setting_changes_neither_loss_nor_gradients(head, other):
    typed = {f"model.head.{name}": value for name, value in other.items()}
    base = {f"model.head.{name}": value for name, value in head.items()}
    with pytest.raises(ConfigError):
        refuse_idle_settings(with_settings(recipe("laptop"), base | typed), typed)
    assert same(gradients(head), gradients(head | other))


@pytest.mark.parametrize(("head", "other"), [pytest.param(*pair, id=case(*pair)) for pair in READ])
def test_a_setting_that_is_taken_changes_loss_or_gradients(head, other):
    typed = {f"model.head.{name}": value for name, value in other.items()}
    base = {f"model.head.{name}": value for name, value in head.items()}
    refuse_idle_settings(with_settings(recipe("laptop"), base | typed), typed)
    assert not same(gradients(head), gradients(head | other))
