"""The data set of a run as MLflow records it: which shards, how many, and the digest that pins them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import register_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag

DIGEST_LENGTH = 32
"""MLflow keeps 36 characters of a digest; the whole manifest id is in the source."""


@dataclass(frozen=True)
class DatasetInfo:
    """One split of a packed data set, as it takes part in a run."""

    name: str
    root: str
    split: str
    context: Literal["training", "evaluation"]
    manifest_id: str
    samples: int
    shards: int
    num_bytes: int
    classes: tuple[str, ...]
    part: str = ""
    """Which of the split's samples these are, such as `without camvid_000006`; empty for all of them."""


class WebDatasetSource(DatasetSource):
    """Shards under a root, pinned by the sha256 of their manifest."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self.info = dict(info)

    @staticmethod
    def _get_source_type() -> str:
        return "webdataset"

    def load(self, **_: Any) -> str:  # noqa: ANN401 - mlflow's signature
        """The root below which the shards lie."""
        return str(self.info["root"])

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:  # noqa: ANN401 - mlflow's signature
        return False  # made by this pipeline alone; nothing is guessed from a string

    @classmethod
    def _resolve(cls, raw_source: Any) -> WebDatasetSource:  # noqa: ANN401 - mlflow's signature
        raise ValueError(f"a webdataset source is not guessed from {raw_source!r}")

    def to_dict(self) -> dict[str, Any]:
        """What the run page shows."""
        return dict(self.info)

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> WebDatasetSource:
        """The source that `to_dict` wrote."""
        return cls(source_dict)


register_dataset_source(WebDatasetSource)  # type: ignore[arg-type]  # it takes the class, its hint is wrong


class _Metadata(MetaDataset):
    """A data set that MLflow knows by metadata alone."""

    @property
    def profile(self) -> None:
        """No statistics."""
        return


def _digest(info: DatasetInfo) -> str:
    """What pins the samples: MLflow takes data sets of one name and digest for the same one."""
    digest = info.manifest_id
    if info.part:
        digest = hashlib.sha256(f"{digest} {info.part}".encode()).hexdigest()
    return digest[:DIGEST_LENGTH]


def dataset_input(info: DatasetInfo) -> DatasetInput:
    """The entity that `MlflowClient.log_inputs` takes, tagged as training or evaluation data."""
    source = WebDatasetSource(
        {
            "root": info.root,
            "split": info.split,
            "manifest_sha256": info.manifest_id,
            "samples": info.samples,
            "shards": info.shards,
            "bytes": info.num_bytes,
            "classes": list(info.classes),
        }
        | ({"part": info.part} if info.part else {})
    )
    name = f"{info.name}-{info.split}"
    dataset = _Metadata(source, name=name, digest=_digest(info))
    return DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", info.context)])
