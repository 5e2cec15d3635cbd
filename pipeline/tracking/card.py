"""What a person reads about a run or a model first: plain text, the lines that matter on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a trained model, in plain values."""

    run_name: str
    miou: float | None
    step: int
    backbone: str
    """Such as `resnet18 (width 32, stride 8)` or `swin (transformers)`."""
    head: str
    """Such as `ccs, fusion gate` or `ocr`."""
    params_m: float
    """Parameters, in millions."""
    input_size: tuple[int, int]
    """Height and width that pictures are brought to."""
    data: str
    """Such as `mini (train 96, val 24 samples)`."""
    manifest_id: str
    git_commit: str
    iou: Mapping[str, float | None] = field(default_factory=dict)
    """Validation IoU by class name."""


def headline(facts: ModelFacts) -> str:
    """Four lines: result, model, data, code. The run page shows no more, the version list even less."""
    score = "not evaluated" if facts.miou is None else f"val mIoU {facts.miou:.3f} at step {facts.step}"
    weak = sorted((value, name) for name, value in facts.iou.items() if value is not None)[:3]
    worst = ", worst: " + ", ".join(f"{name} {value:.2f}" for value, name in weak) if weak else ""
    height, width = facts.input_size
    return (
        f"{score}{worst}\n"
        f"Model: {facts.backbone}, head {facts.head}, {facts.params_m:.1f}M parameters, "
        f"input {height}x{width}\n"
        f"Data: {facts.data}, manifest {facts.manifest_id[:12]}\n"
        f"Run {facts.run_name}, git {facts.git_commit[:12]}"
    )


def run_note(facts: ModelFacts, model_uri: str | None, report: str) -> str:
    """The note on a run's page: the headline, then where the model and the report are."""
    model = f"Model: `{model_uri}`" if model_uri else "The model is not registered."
    return f"{headline(facts)}\n\n{model}\n\nReport: {report}\n"


def model_card(facts: ModelFacts, uri: str) -> str:
    """The description of a registered version: headline, scores, how to use it, what it is not for."""
    rows = "\n".join(
        f"| {name} | {'absent' if value is None else f'{value:.3f}'} |" for name, value in facts.iou.items()
    )
    table = f"\n\n| class | val IoU |\n|---|---|\n{rows}" if rows else ""
    return (
        f"{headline(facts)}{table}\n\n"
        "### Use\n"
        "```python\n"
        "import mlflow, pandas\n"
        f'model = mlflow.pyfunc.load_model("{uri}")\n'
        'table = pandas.DataFrame({"image": [open("street.png", "rb").read()]})\n'
        'open("mask.png", "wb").write(model.predict(table)["mask"][0])\n'
        "```\n"
        "Input: column `image`, the bytes of a PNG or JPEG of any size. Output: column `mask`, a "
        "single-channel PNG of the same size holding label ids of the data set. In JSON both are base64.\n"
        "Without MLflow: `python jobs/predict.py --model URI PICTURE --out DIR`.\n\n"
        "### Limits\n"
        "Scores are for the evaluated part of the data above; other cameras, cities and weather are "
        "untested. Every pixel gets a class, whether or not the picture shows one.\n"
    )
