"""What a job still owes MLflow survives on disk, without secrets; a damaged note harms nothing."""

import dataclasses
import logging
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.errors import without_credentials
from pipeline.settings import flatten, to_dict
from pipeline.tracking.dataset_source import DatasetInfo
from pipeline.tracking.mlflow_store import RunDescription
from pipeline.tracking.mlflow_sync import ship_pending
from pipeline.tracking.pending import PENDING, forget_pending, load_pending, save_pending


def describe(folder: Path) -> RunDescription:
    info = DatasetInfo("mini", "/data", "val", "evaluation", "ab" * 32, 4, 1, 9, ("road", "sky"))
    config = Config()
    return RunDescription(
        folder, folder / "x", "x", "e", flatten(config), to_dict(config), (info,), {"a": "b"}, "note"
    )


def test_what_is_owed_comes_back_as_it_was(tmp_path: Path) -> None:
    description = dataclasses.replace(describe(tmp_path), parent=tmp_path / "search")
    save_pending(description, "FINISHED", [(tmp_path / "report.html", "")], [tmp_path / "x" / "000"])
    pending = load_pending(tmp_path / "x")
    assert pending is not None
    assert pending.description == description
    assert pending.children == [tmp_path / "x" / "000"]
    assert pending.status == "FINISHED"
    assert pending.artifacts == [(tmp_path / "report.html", "")]
    forget_pending(tmp_path / "x")
    assert load_pending(tmp_path / "x") is None
    assert ship_pending(tmp_path / "x") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"description": {}}'])
def test_a_damaged_note_is_a_warning_and_no_more(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / PENDING).write_text(content)
    with caplog.at_level(logging.WARNING):
        assert ship_pending(tmp_path) is None
    assert PENDING in caplog.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:secret@host:5000/x failed", "http://host:5000/x failed"),
        ("postgresql://u:p@ss@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////abs/mlflow.db", "sqlite:////abs/mlflow.db"),
        ("mail me@example.org about http://host/a@b", "mail me@example.org about http://host/a@b"),
    ],
)
def test_credentials_are_taken_out_of_every_address(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
