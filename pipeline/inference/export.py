"""What leaves training: weights and their card in a folder, and the same wrapped for MLflow to serve.

Neither holds a pickle. The wrapped model carries this package along, so it runs where the project
is not installed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from pipeline.train.checkpoint import WEIGHTS, read_model
from pipeline.train.model_card import MODEL_CARD, read_card

PACKAGE = Path(__file__).resolve().parents[1]
REQUIREMENTS = ("torch", "numpy", "opencv-python", "safetensors")
"""All that prediction imports; pinned by hand, as MLflow's inference would run the model to find out."""
OTHER_BACKBONES = "transformers"
"""What a backbone with an architecture of its own needs beside them."""
EXAMPLE_PX = 64


def export_model(checkpoint: Path, folder: Path) -> Path:
    """Write the model to predict with, averaged weights where there are, as `folder`; replaces an older."""
    card, weights = read_model(checkpoint)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        part = Path(temporary) / folder.name
        part.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part / WEIGHTS)
        (part / WEIGHTS).chmod(0o644)  # safetensors gives the owner alone access; teammates load models too
        # Not the checkpoint's file: its score lies beside it.
        (part / MODEL_CARD).write_text(json.dumps(card.to_dict(), indent=1, sort_keys=True) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    return folder


def save_served_model(exported: Path, folder: Path, model_id: str | None = None) -> None:
    """Write an MLflow model folder: column `image` (PNG or JPEG bytes) in, `mask` (PNG of label ids) out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it makes mlflow warn of type hints of its own
        # Seconds to import; only whoever registers a model needs them.
        import mlflow.pyfunc  # noqa: PLC0415
        import pandas as pd  # noqa: PLC0415
        from mlflow.models import Model, ModelSignature  # noqa: PLC0415
        from mlflow.types import ColSpec, DataType, Schema  # noqa: PLC0415
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]), outputs=Schema([ColSpec(DataType.binary, "mask")])
    )
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        # The example is not run here: whoever registers the model runs the stored one, in a new process.
        warnings.simplefilter("ignore")
        code = Path(temporary) / PACKAGE.name
        shutil.copytree(PACKAGE, code, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(code / "inference" / "pyfunc_model.py"),
            artifacts={"model": str(exported)},
            code_paths=[str(code)],
            signature=signature,
            input_example=pd.DataFrame({"image": [example_png()]}),
            pip_requirements=requirements(exported),
            mlflow_model=Model(model_id=model_id),
        )


def requirements(exported: Path) -> list[str]:
    """What the model in that folder needs to predict, pinned to what is installed here."""
    other = [OTHER_BACKBONES] if read_card(exported).model.backbone.architecture else []
    return [f"{name}=={version(name).partition('+')[0]}" for name in (*REQUIREMENTS, *other)]


def example_png() -> bytes:
    """A small picture with some structure: a bright sky over a dark road and a red thing on it."""
    image_HW3 = np.full((EXAMPLE_PX, EXAMPLE_PX, 3), (70, 130, 180), np.uint8)
    image_HW3[EXAMPLE_PX // 2 :] = (96, 96, 100)
    image_HW3[30:50, 20:40] = (200, 30, 30)
    return encode_png(image_HW3)


def encode_png(image: NDArray[Any]) -> bytes:
    """PNG of an RGB picture or of a single plane, uint8."""
    written, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image)
    assert written, image.shape
    return png.tobytes()
