"""A stored model predicts what the network in memory predicts, at the picture's size, or says why not."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig
from pipeline.data.eval_loader import resize_input
from pipeline.data.labels import CITYSCAPES
from pipeline.errors import CheckpointError, ConfigError, WorldStateError
from pipeline.inference.export import export_model
from pipeline.inference.predictor import Predictor
from pipeline.model.segmenter import Segmenter, build_segmenter
from pipeline.train.checkpoint import AVERAGED, COMMIT, WEIGHTS
from pipeline.train.model_card import ModelCard
from tests.checkpoints import write_checkpoint

MODEL = ModelConfig(BackboneConfig(base_width=8), HeadConfig(dim=16))


def network(seed: int) -> Segmenter:
    torch.manual_seed(seed)
    return build_segmenter(MODEL, 19).eval()


def checkpoint(folder: Path, seed: int = 0, averaged: int | None = None, miou: float = 0.5) -> Path:
    tensors = {WEIGHTS: network(seed).state_dict()}
    if averaged is not None:
        tensors[AVERAGED] = network(averaged).state_dict()
    card = ModelCard(MODEL, CITYSCAPES, 32, 64, "ab" * 32, 7, miou)
    write_checkpoint(folder, tensors, card, {})
    return folder


def picture(height: int = 41, width: int = 77) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def expected_mask(model: Segmenter, image_HW3: np.ndarray) -> np.ndarray:
    """Written out by hand: recorded input size, logits to the picture's size, argmax."""
    resized = torch.from_numpy(resize_input(image_HW3, 32, 64)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = F.interpolate(model(resized).logits_BKhw, image_HW3.shape[:2], mode="bilinear")
    return logits[0].argmax(0).numpy().astype(np.uint8)


@pytest.mark.parametrize("size", [(41, 77), (32, 64), (1, 1), (7, 300)])
def test_a_picture_of_any_size_gives_the_network_s_mask_at_its_own_size(tmp_path: Path, size) -> None:
    predictor = Predictor.load(str(checkpoint(tmp_path / "c")))
    mask_HW = predictor.predict(picture(*size))
    assert mask_HW.shape == size
    assert mask_HW.dtype == np.uint8
    np.testing.assert_array_equal(mask_HW, expected_mask(network(0), picture(*size)))


def test_averaged_weights_are_what_predicts_and_what_is_exported(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", seed=0, averaged=1)
    exported = export_model(folder, tmp_path / "export")
    assert sorted(p.name for p in exported.iterdir()) == ["model.json", "model.safetensors"]
    np.testing.assert_array_equal(
        Predictor.load(str(folder)).predict(picture()), expected_mask(network(1), picture())
    )
    for name, tensor in network(1).state_dict().items():
        assert torch.equal(load_file(exported / WEIGHTS)[name], tensor)
    assert Predictor.load(str(exported)).card == Predictor.load(str(folder)).card


def test_an_export_replaces_the_older_one(tmp_path: Path) -> None:
    export_model(checkpoint(tmp_path / "a", seed=0), tmp_path / "export")
    export_model(checkpoint(tmp_path / "b", seed=3), tmp_path / "export")
    np.testing.assert_array_equal(
        Predictor.load(str(tmp_path / "export")).predict(picture()), expected_mask(network(3), picture())
    )
    assert not list(tmp_path.glob(".export-*"))


def test_a_run_s_folder_means_its_best_checkpoint(tmp_path: Path) -> None:
    for step, miou in ((10, 0.4), (20, 0.6), (30, 0.5)):
        checkpoint(tmp_path / "run" / "checkpoints" / f"step_{step:08d}-a", seed=step, miou=miou)
    assert Predictor.load(str(tmp_path / "run")).card.miou == 0.6


@pytest.mark.parametrize(
    ("uri", "error", "expected"),
    [
        ("", ConfigError, "--model is empty"),
        ("{tmp}/absent", CheckpointError, "no such folder; type a checkpoint folder"),
        ("{tmp}", CheckpointError, r"has no model\.json"),
        ("s3://bucket/model", ConfigError, "is not read by this version"),
        ("models:/mini-ccs@champion", CheckpointError, "there is no MLflow database"),
    ],
)
def test_a_uri_that_leads_nowhere_is_one_clear_line(
    tmp_path: Path, uri: str, error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected) as caught:
        Predictor.load(uri.format(tmp=tmp_path), f"sqlite:///{tmp_path}/mlflow.db")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mlflow.db").exists(), "asking must not make a database"


def test_a_model_that_mlflow_does_not_have_is_one_clear_line(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(uri).search_experiments()
    for wanted in ("models:/nobody@challenger", "models:/nobody/3", "runs:/0123456789abcdef"):
        with pytest.raises(CheckpointError, match="cannot get") as caught:
            Predictor.load(wanted, uri)
        assert "\n" not in str(caught.value)
        assert wanted in str(caught.value)


@pytest.mark.parametrize("damage", ["flip", "cut", "uncommitted", "card", "format"])
def test_a_damaged_model_is_refused(tmp_path: Path, damage: str) -> None:
    folder = checkpoint(tmp_path / "c")
    weights, card = folder / WEIGHTS, folder / "model.json"
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "uncommitted":
        (folder / COMMIT).unlink()
    else:
        shutil.copytree(folder, folder := tmp_path / "e", ignore=shutil.ignore_patterns(COMMIT, "state.json"))
        card = folder / "model.json"
        card.write_text("{" if damage == "card" else json.dumps({"format": "other/9"}))
    with pytest.raises(CheckpointError):
        Predictor.load(str(folder))


def test_weights_of_another_architecture_are_refused_with_the_key(tmp_path: Path) -> None:
    exported = export_model(checkpoint(tmp_path / "c"), tmp_path / "e")
    tensors = load_file(exported / WEIGHTS)
    gone = next(name for name in tensors if name.startswith("head.") and "weight" in name)
    del tensors[gone]
    save_file(tensors, exported / WEIGHTS)
    with pytest.raises(CheckpointError, match=gone.replace(".", r"\.")):
        Predictor.load(str(exported))


def test_a_server_that_is_out_of_reach_is_the_worlds_fault(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:  # bound but not listening: refused at once
        closed.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(WorldStateError, match="is the server up") as caught:
            Predictor.load("models:/mini-ccs@challenger", server)
    assert "\n" not in str(caught.value)
