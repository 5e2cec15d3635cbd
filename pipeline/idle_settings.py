"""Settings that a config would ignore: refused when they are typed, since nobody types one for nothing.

A default may lie idle; a typed value may not. The table says for each rule when it holds, which
settings it silences, why, and what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.config import CCS_ONLY, Config, HeadConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """While `holds`, a config reads none of `settings`."""

    holds: Callable[[Config], bool]
    settings: frozenset[str]
    """Dotted names."""
    reason: str
    """Why; `{config…}` stands for a value of the config."""
    remedy: str
    """What to do, other than to leave the settings out."""


def refuse_idle_settings(config: Config, typed: Iterable[str]) -> None:
    """Raises ConfigError where a setting that was typed would be ignored by this config."""
    names = list(typed)
    for rule in RULES:
        idle = [name for name in names if name in rule.settings]
        if idle and rule.holds(config):
            reason = rule.reason.format(config=config)
            raise ConfigError(f"{reason}: leave out --{', --'.join(idle)}, or {rule.remedy}")


def idle_among(config: Config, names: Iterable[str]) -> frozenset[str]:
    """Those of the settings that this config would ignore."""
    candidates = frozenset(names)
    return frozenset[str]().union(*(rule.settings & candidates for rule in RULES if rule.holds(config)))


def silencing(config: Config, name: str) -> list[Rule]:
    """The rules by which this config ignores the setting."""
    return [rule for rule in RULES if name in rule.settings and rule.holds(config)]


def _of(section: str, *names: str) -> frozenset[str]:
    return frozenset(f"{section}.{name}" for name in names)


def _head(*names: str) -> frozenset[str]:
    return _of("model.head", *names)


def _by_head(holds: Callable[[HeadConfig], bool]) -> Callable[[Config], bool]:
    return lambda config: holds(config.model.head)


RULES = (
    Rule(
        lambda config: bool(config.model.backbone.architecture),
        _of("model.backbone", "depth", "base_width", "stem", "output_stride"),
        "--model.backbone.architecture says what the backbone is", "take no --model.backbone.architecture",
    ),
    Rule(
        _by_head(lambda head: head.kind != "ccs"), _head(*CCS_ONLY),
        "head {config.model.head.kind} computes no class center similarity", "take --model.head.kind ccs",
    ),
    Rule(
        _by_head(lambda head: head.fusion == "off"),
        _head("assignment", "assignment_temperature", "mass", "n0", "mask_ignored", "alpha", "learn_alpha"),
        "fusion off takes no scene centers", "take another --model.head.fusion",
    ),
    Rule(
        _by_head(lambda head: head.kind == "ccs" and head.fusion == "off" and head.lambda_coarse == 0),
        _head("dropout"), "without fusion and lambda_coarse nothing is made of what dropout leaves",
        "take a --model.head.lambda_coarse above 0",
    ),
    Rule(
        _by_head(lambda head: head.fusion not in ("gate", "residual-mlp")), _head("n0"),
        "n0 is of fusions gate and residual-mlp alone", "take one of them as --model.head.fusion",
    ),
    Rule(
        _by_head(lambda head: head.fusion != "gate"), _head("alpha", "learn_alpha"),
        "alpha scales the gate alone", "take --model.head.fusion gate",
    ),
    Rule(
        _by_head(lambda head: head.learn_alpha), _head("alpha"),
        "a learned alpha starts at 0", "take --model.head.learn_alpha false",
    ),
    Rule(
        _by_head(lambda head: head.assignment == "hard"), _head("assignment_temperature", "mass"),
        "a hard assignment gives each pixel to one class whole", "take another --model.head.assignment",
    ),
    Rule(
        _by_head(lambda head: head.lambda_inter == 0), _head("inter_form", "delta", "p"),
        "lambda_inter is 0", "take a --model.head.lambda_inter above 0",
    ),
    Rule(
        _by_head(lambda head: head.inter_form != "hinge"), _head("delta", "p"),
        "delta and p are of the hinge", "take --model.head.inter_form hinge",
    ),
    Rule(
        _by_head(lambda head: head.lambda_intra == 0),
        _head("intra_form", "q", "intra_mean", "detach_center"),
        "lambda_intra is 0", "take a --model.head.lambda_intra above 0",
    ),
    Rule(
        _by_head(lambda head: head.intra_form != "cosine"), _head("q"),
        "q is of intra_form cosine", "take --model.head.intra_form cosine",
    ),
    Rule(
        _by_head(lambda head: head.lambda_inter == head.lambda_intra == 0), _head("center_source"),
        "lambda_inter and lambda_intra are 0", "take one of them above 0",
    ),
    Rule(
        _by_head(lambda head: head.lambda_balanced == 0 and not head.sees_present_classes), _head("n_min"),
        "no loss asks which classes are present", "take a --model.head.lambda_balanced above 0",
    ),
    Rule(
        lambda config: config.data.loader_workers == 0, _of("data", "prefetch", "worker_timeout_s"),
        "there are no loader workers", "take --data.loader_workers above 0",
    ),
    Rule(
        lambda config: bool(config.data.unindexed_train),
        _of("data", "streams", "block", "decoded_cache", "worker_timeout_s"),
        "unindexed shards are streamed as they lie", "index the shards with python jobs/shards.py index",
    ),
    Rule(
        lambda config: bool(config.data.held_out), _of("data", "val_split"),
        "the drives of data.held_out are evaluated", "take no --data.held_out",
    ),
    Rule(
        lambda config: config.train.determinism != "elastic", _of("train", "virtual_shards"),
        "virtual shards are of elastic determinism alone", "take --train.determinism elastic",
    ),
    Rule(
        lambda config: config.train.determinism == "elastic", _of("train", "accumulation"),
        "elastic determinism has a micro-batch for each virtual shard", "take --train.virtual_shards instead",
    ),
    Rule(
        lambda config: config.optim.warmup_steps >= config.train.steps, _of("optim", "warmup_steps"),
        "a warm-up of {config.optim.warmup_steps} steps never ends within {config.train.steps}",
        "take fewer of them than --train.steps",
    ),
)  # fmt: skip
"""Looked at from top to bottom; the first that holds for a typed setting speaks."""
