"""Spaces that come with the pipeline: the ranges of docs/search.md, by a name that `--space` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.config import Config

Specs = Mapping[str, str]
"""Dotted name → spec, as `--search.NAME SPEC` has it."""
LR_SPAN, DECAY_SPAN = (0.3, 3.0), (0.02, 2.0)
"""What learning rate and weight decay are multiplied by: 0.003 to 0.03 and 1e-5 to 1e-3 around sgd's 0.01
and 5e-4, and as far around those of adamw."""


def accm_losses(config: Config, num_classes: int) -> Specs:
    """ACCM and the losses of head `ccs`; a setting that the others leave idle is left out of a trial."""
    head = {
        # The floor for a probability of 0.99 at cosines 1 and 0 is ln(99 (K - 1)): 6.9 for K = 11.
        "tau": "log:5:40",
        "learn_tau": "false,true",
        "fusion": "residual-mlp,mlp,gate,replace,off",
        "assignment": "softmax,hard,pixel-softmax",
        "assignment_temperature": "log:0.25:4",
        "mass": "sum,above-chance,squared",
        "n0": "log:0.0001:0.1",
        "alpha": "0:1",
        "similarity": "cosine,dot",
        "lambda_coarse": "0.1:1",
        "lambda_inter": "0|log:0.001:3",
        "inter_form": "hinge,identity,softmax",
        # The mean pairwise cosine of K centers is at least -1 / (K - 1).
        "delta": f"{-1 / max(num_classes - 1, 2) + 1e-6:.6f}:0.5",
        "p": "1,2",
        "lambda_intra": "0|log:0.001:3",
        "intra_form": "cosine,l1,cross-entropy",
        "q": "1,2",
    }
    return {f"model.head.{name}": spec for name, spec in head.items()}


def recipe(config: Config, num_classes: int) -> Specs:
    """Optimizer, batch and augmentation, around what the config has."""
    optim, batch = config.optim, config.train.batch_global
    low = max(optim.lr * LR_SPAN[0], optim.min_lr)
    decay = optim.weight_decay or 5e-4
    return {
        "optim.lr": f"log:{low:g}:{optim.lr * LR_SPAN[1]:g}",
        "optim.weight_decay": f"log:{decay * DECAY_SPAN[0]:g}:{decay * DECAY_SPAN[1]:g}",
        "optim.head_lr_multiplier": "1,10",
        "train.batch_global": f"{batch},{batch * 2}",
        "data.augment.scale_min": "0.5:0.9",
        "data.augment.scale_max": "1.25:2.5",
        "data.augment.photometric": "true,false",
        "data.augment.max_class_share": "0.5:1",
    }


PRESETS: Mapping[str, Callable[[Config, int], Specs]] = {"accm-losses": accm_losses, "recipe": recipe}


def preset(name: str, config: Config, num_classes: int) -> Specs:
    """The specs of that preset."""
    return PRESETS[name](config, num_classes)
