"""The model as MLflow serves it (models from code): picture bytes in, label mask out.

Input: a table with the column `image`, each cell the bytes of a PNG or JPEG of any size. Output: a
table with the column `mask`, each cell a single-channel PNG of the picture's size that holds the
label ids of the data set's class table. In JSON both are base64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from pipeline.data.decode import decode_rgb, refuse_broken_png
from pipeline.inference.export import encode_png
from pipeline.inference.predictor import Predictor


class SegmenterModel(PythonModel):
    """A Predictor behind MLflow's interface."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401 - mlflow's context has no type
        """Load the weights once, from the artifact folder."""
        self._predictor = Predictor.from_folder(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:  # noqa: ANN401
        """One mask a row; raises DatasetError naming the row whose bytes are no picture."""
        masks = [self._mask(data, row) for row, data in enumerate(model_input["image"])]
        return pd.DataFrame({"mask": masks})

    def _mask(self, data: bytes, row: int) -> bytes:
        name = f"the image of row {row}"
        refuse_broken_png(data, name)
        mask_HW = self._predictor.predict(decode_rgb(data, name))
        return encode_png(self._predictor.card.classes.to_label_ids(mask_HW))


set_model(SegmenterModel())
