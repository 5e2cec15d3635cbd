"""The best model of a run in the registry: what is stored works alone, and only that moves the alias."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from pipeline.config import BackboneConfig, Config, HeadConfig, ModelConfig
from pipeline.data.labels import CITYSCAPES
from pipeline.inference.export import encode_png
from pipeline.inference.predictor import Predictor
from pipeline.launch import publish
from pipeline.model.segmenter import build_segmenter
from pipeline.settings import flatten, to_dict
from pipeline.tracking.journal import Journal
from pipeline.tracking.mlflow_store import RunDescription
from pipeline.tracking.mlflow_sync import MlflowRun
from pipeline.tracking.registry import Registration, is_proven, promote
from pipeline.train.checkpoint import STATE, WEIGHTS
from pipeline.train.model_card import ModelCard
from tests.checkpoints import write_checkpoint

MODEL = ModelConfig(BackboneConfig(base_width=8), HeadConfig(dim=16))
CONFIG = replace(Config(), model=MODEL)


def write_model(run_dir: Path, step: int, miou: float, seed: int) -> Path:
    torch.manual_seed(seed)
    model = build_segmenter(MODEL, 19)
    card = ModelCard(MODEL, CITYSCAPES, 32, 64, "ab" * 32, step, miou)
    folder = run_dir / "checkpoints" / f"step_{step:08d}-a"
    write_checkpoint(folder, {WEIGHTS: model.state_dict()}, card, {})
    assert (folder / STATE).exists()
    return folder


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, MlflowRun, publish.Published]]:
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run_dir = runs / "demo"
        journal = Journal(run_dir, "a")
        for step, miou in ((10, 0.5), (20, 0.4)):
            write_model(run_dir, step, miou, seed=step)
            journal.metrics(step, {"val/miou": miou, "val/pixel_accuracy": 0.9})
            journal.table(
                "val/iou_per_class", step, ["class", "iou", "n"], [["road", miou, 7], ["sky", None, 0]]
            )
        journal.close()
        description = RunDescription(runs, run_dir, "demo", "test", flatten(CONFIG), to_dict(CONFIG))
        run = MlflowRun.open(description, wait_s=60)
        done = publish.publish_best(run_dir, run, CONFIG, "c0ffee" * 6)
        assert run.finish("FINISHED") is None
        yield runs, run, done


def client(runs: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{runs}/mlflow.db")


def test_the_best_checkpoint_is_registered_as_challenger_with_what_a_person_wants_to_know(published) -> None:
    runs, run, done = published
    assert done.model_uri == "models:/mini-ccs/1", done.line
    version = client(runs).get_model_version_by_alias("mini-ccs", "challenger")
    assert int(version.version) == 1
    assert version.tags["val.miou"] == "0.5000"
    assert {"gate", "backbone", "params_m", "data", "git"} <= version.tags.keys()
    assert version.description.startswith("val mIoU 0.500 at step 10, worst: road 0.50\n")
    assert "| sky | absent |" in version.description
    note = client(runs).get_run(run.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("val mIoU 0.500")
    assert "models:/mini-ccs/1" in note


def test_the_scores_belong_to_the_model_and_are_not_doubled_in_the_run(published) -> None:
    runs, run, _ = published
    history = client(runs).get_metric_history(run.run_id, "val/miou")
    assert sorted((m.step, m.value) for m in history) == [(10, 0.5), (20, 0.4)]
    (output,) = client(runs).get_run(run.run_id).outputs.model_outputs
    logged = client(runs).get_logged_model(output.model_id)
    assert {m.key: m.value for m in logged.metrics} == {"val/miou": 0.5, "val/pixel_accuracy": 0.9}
    assert str(logged.status) == "READY" or logged.status.value == "READY"


def test_the_stored_model_predicts_far_from_the_project_and_without_pickle(published, tmp_path: Path) -> None:
    runs, _, _ = published
    image_HW3 = np.random.default_rng(0).integers(0, 256, (45, 70, 3)).astype(np.uint8)
    (tmp_path / "picture.png").write_bytes(encode_png(image_HW3))
    code = (
        "import sys, base64, pandas, mlflow.pyfunc\n"
        "from pathlib import Path\n"
        "assert not any((Path(p) / 'jobs').exists() for p in sys.path), sys.path\n"
        "m = mlflow.pyfunc.load_model('models:/mini-ccs@challenger')\n"
        "import pipeline; print(pipeline.__file__)\n"
        "d = Path('picture.png').read_bytes()\n"
        "out = m.predict(pandas.DataFrame({'image': [d, d]}))\n"
        "assert list(out.columns) == ['mask'] and out['mask'][0] == out['mask'][1]\n"
        "Path('mask.png').write_bytes(out['mask'][0])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{runs}/mlflow.db",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    project = Path(__file__).resolve().parents[2]
    assert not done.stdout.strip().startswith(str(project)), "it must bring its own copy of the package"
    mask_HW = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    predictor = Predictor.from_folder(runs / "demo" / "checkpoints" / "step_00000010-a")
    np.testing.assert_array_equal(mask_HW, CITYSCAPES.to_label_ids(predictor.predict(image_HW3)))


@pytest.mark.parametrize("uri", ["models:/mini-ccs@challenger", "models:/mini-ccs/1", "runs:/{run}"])
def test_every_uri_of_the_model_gives_the_checkpoint_s_masks(published, uri: str) -> None:
    runs, run, _ = published
    stored = Predictor.load(uri.format(run=run.run_id), f"sqlite:///{runs}/mlflow.db")
    expected = Predictor.from_folder(runs / "demo" / "checkpoints" / "step_00000010-a")
    image_HW3 = np.random.default_rng(1).integers(0, 256, (33, 50, 3)).astype(np.uint8)
    np.testing.assert_array_equal(stored.predict(image_HW3), expected.predict(image_HW3))
    assert stored.card == expected.card


def test_the_stored_files_hold_no_pickle_and_pin_few_requirements(published) -> None:
    runs, _, _ = published
    files = [p for p in (runs / "mlartifacts").rglob("*") if p.is_file() and "models" in p.parts]
    assert not [p for p in files if p.suffix in (".pkl", ".pt", ".pth", ".pickle")]
    (requirements,) = [p for p in files if p.name == "requirements.txt"]
    names = {line.partition("==")[0] for line in requirements.read_text().split()}
    assert names == {"mlflow", "torch", "numpy", "opencv-python", "safetensors"}


def test_publishing_again_reuses_the_version(published) -> None:
    runs, _, _ = published
    description = RunDescription(runs, runs / "demo", "demo", "test", flatten(CONFIG), to_dict(CONFIG))
    run = MlflowRun.open(description, wait_s=60)
    again = publish.publish_best(runs / "demo", run, CONFIG, "c0ffee" * 6)
    assert run.finish("FINISHED") is None
    assert again.model_uri == "models:/mini-ccs/1", again.line


def test_a_stored_model_that_predicts_otherwise_never_gets_the_alias(
    published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, _, _ = published
    write_model(runs / "other", 5, 0.9, seed=99)
    description = RunDescription(runs, runs / "other", "other", "test", flatten(CONFIG), to_dict(CONFIG))
    run = MlflowRun.open(description, wait_s=60)
    wrong = write_model(tmp_path, 5, 0.9, seed=1)
    save = publish.save_served_model
    monkeypatch.setattr(
        publish, "save_served_model", lambda _, folder, model_id: save(wrong, folder, model_id)
    )
    done = publish.publish_best(runs / "other", run, CONFIG, "c0ffee" * 6)
    assert run.finish("FINISHED") is None
    assert "predicts another mask" in done.line
    assert done.model_uri == str(runs / "other" / "export"), "the whole model is still at hand"
    assert int(client(runs).get_model_version_by_alias("mini-ccs", "challenger").version) == 1
    assert json.loads((runs / "other" / "export" / "model.json").read_text())["step"] == 5


@pytest.mark.parametrize("obstacle", ["export", "checkpoint"])
def test_a_disk_or_a_file_that_refuses_costs_one_line_and_the_model_stays(
    tmp_path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_model(tmp_path / "demo", 5, 0.9, seed=0)
    if obstacle == "export":
        (tmp_path / "demo" / "export").touch()  # a file where the folder must go
    else:
        monkeypatch.setattr(publish, "best_checkpoint", lambda _: checkpoint)
        (checkpoint / WEIGHTS).write_bytes(b"damaged after it was chosen")
    runs = RunDescription(tmp_path, tmp_path / "demo", "demo", "test", {}, {})
    done = publish.publish_best(tmp_path / "demo", MlflowRun(runs), CONFIG, "c0ffee")
    assert done.model_uri == str(checkpoint)
    assert done.version is None
    assert "the model is not published" in done.line
    assert str(checkpoint) in done.line
    assert "\n" not in done.line


class Registry:
    """A registry that halts at one of its steps until `gate` opens, and remembers what was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, halt: str) -> None:
        self.halt, self.done, self.gate = halt, [], threading.Event()
        monkeypatch.setattr(publish, "MlflowClient", lambda uri: None)
        monkeypatch.setattr(publish, "register", self.register)
        monkeypatch.setattr(publish, "is_proven", lambda *_: False)
        monkeypatch.setattr(publish, "same_mask", lambda *_: self.reach("prove"))
        monkeypatch.setattr(publish, "promote", lambda *_: self.reach("promote"))

    def reach(self, step: str) -> bool:
        if step == self.halt:
            assert self.gate.wait(20)
        self.done.append(step)
        return True

    def register(self, client, what, save, folder, before_version) -> str:
        self.reach("upload")
        before_version()
        self.reach("version")
        return "1"


@pytest.mark.parametrize(
    ("halt", "done"), [("upload", ["upload"]), ("prove", ["upload", "version", "prove"])]
)
def test_after_its_time_out_a_registration_makes_no_version_and_moves_no_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halt: str, done: list[str]
) -> None:
    registry = Registry(monkeypatch, halt)
    attempt = publish._Registering("sqlite://", Registration("m", "r", "e", 1, "", ""), tmp_path, None)
    attempt.start()
    assert "MLflow did not answer within" in attempt.outcome_within(0.2).line
    registry.gate.set()
    attempt.join(20)
    assert not attempt.is_alive()
    assert registry.done == done


def test_an_alias_that_is_being_moved_at_the_time_out_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(monkeypatch, "promote")
    attempt = publish._Registering("sqlite://", Registration("m", "r", "e", 1, "", ""), tmp_path, None)
    attempt.start()
    threading.Timer(0.5, registry.gate.set).start()
    assert attempt.outcome_within(0.2).model_uri == "models:/m/1"
    assert registry.done[-1] == "promote"


def test_a_version_whose_alias_was_refused_is_promoted_by_the_next_try(published, monkeypatch) -> None:
    runs, _, _ = published
    there = client(runs)
    first = there.get_model_version("mini-ccs", "1")
    version = there.create_model_version("mini-ccs", first.source, first.run_id).version

    def refuse(*_: str) -> None:
        raise ConnectionError("the server went away")

    with monkeypatch.context() as patch:
        patch.setattr(there, "set_registered_model_alias", refuse)
        with pytest.raises(ConnectionError):
            promote(there, "mini-ccs", version)
    assert not is_proven(there, "mini-ccs", version)
    promote(there, "mini-ccs", version, alias="rehearsal")
    assert is_proven(there, "mini-ccs", version)
    assert there.get_model_version_by_alias("mini-ccs", "rehearsal").version == version
    there.delete_model_version("mini-ccs", version)
