"""Scores of a finished model on a split, by the very code that evaluates during training."""

from __future__ import annotations

from pipeline.data.dataset import ShardDataset
from pipeline.errors import ConfigError
from pipeline.inference.predictor import Predictor
from pipeline.train.evaluate import evaluate
from pipeline.train.metrics import Scores
from pipeline.world import World


def score_split(predictor: Predictor, dataset: ShardDataset, batch_size: int = 4) -> Scores:
    """Scores over every sample of the split, at the labels' own size.

    Raises ConfigError where the model and the data set do not mean the same classes.
    """
    known, labelled = predictor.card.classes.names, dataset.classes.names
    if known != labelled:
        differing = sorted(set(known) ^ set(labelled)) or ["the order"]
        raise ConfigError(
            f"the model knows {len(known)} classes and {dataset.root} is labelled with {len(labelled)} "
            f"({', '.join(differing[:5])} differ); take shards packed with the model's class table"
        )
    input_size = (predictor.card.input_height, predictor.card.input_width)
    _, scores = evaluate(
        predictor.model, dataset, input_size, World(),
        batch_size=batch_size, loader_workers=1,
    )  # fmt: skip
    return scores


def score_table(scores: Scores, names: tuple[str, ...]) -> str:
    """The scores as lines of text, best class first; classes without a score are named at the end."""
    scored = sorted(
        ((value, name) for value, name in zip(scores.iou, names, strict=True) if value is not None),
        reverse=True,
    )
    width = max(map(len, [*names, "pixel accuracy"]))
    lines = [f"{name:<{width}}  {value:.3f}  {'█' * round(30 * value)}" for value, name in scored]
    absent = [name for value, name in zip(scores.iou, names, strict=True) if value is None]
    if absent:
        lines.append(f"neither labelled nor predicted: {', '.join(absent)}")
    lines += [
        f"{'mIoU':<{width}}  {scores.miou:.4f}  over {len(scored)} of {len(names)} classes",
        f"{'pixel accuracy':<{width}}  {scores.pixel_accuracy:.4f}",
    ]
    return "\n".join(lines)
