"""Hands the best model of a run over: exported, registered, proven, and only then given the alias.

It is here because it joins inference and tracking, which know nothing of each other. Nothing in it
fails a finished training: what MLflow refuses becomes one line, and the exported folder remains.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from mlflow import MlflowClient
from numpy.typing import NDArray
from safetensors import SafetensorError

from pipeline.config import Config, DataConfig
from pipeline.config.model_names import backbone_details, backbone_name, head_details
from pipeline.data.decode import decode_rgb
from pipeline.errors import CheckpointError, PipelineError, without_credentials
from pipeline.inference.export import encode_png, export_model, save_served_model
from pipeline.inference.predictor import Predictor
from pipeline.tracking.card import ModelFacts, model_card, run_note
from pipeline.tracking.journal import Metrics, Table, read_journal
from pipeline.tracking.mlflow_sync import MlflowRun, one_line_of
from pipeline.tracking.registry import Registration, is_proven, promote, register
from pipeline.tracking.report import REPORT
from pipeline.tracking.server import be_impatient, tracking_uri
from pipeline.train import metrics
from pipeline.train.checkpoint import WEIGHTS, best_checkpoint, newest_checkpoint

_LOAD_AND_PREDICT = """
import sys, mlflow.pyfunc, pandas
from pathlib import Path
uri, picture, mask = sys.argv[1:]
table = pandas.DataFrame({"image": [Path(picture).read_bytes()]})
Path(mask).write_bytes(mlflow.pyfunc.load_model(uri).predict(table)["mask"][0])
"""
LOAD_TIMEOUT_S = 120
PROMOTION_TIMEOUT_S = 45.0
"""How much longer to wait for an alias that is being moved: an answer is worth more than a guess."""
EXPORT = "export"
"""Folder, below a run's, of its best model."""


@dataclass(frozen=True)
class Published:
    """Where the best model is now."""

    model_uri: str | None
    """`models:/NAME/VERSION`, or the folder that holds it where it was not registered."""
    version: str | None
    line: str
    """One line for a person."""


def publish_best(
    run_dir: Path, run: MlflowRun, config: Config, git_commit: str, timeout_s: float = 180.0
) -> Published:
    """Export the best checkpoint of a run and register it, within `timeout_s` for MLflow's part.

    The alias @challenger moves only after the stored model, loaded by a new process that does not see
    this checkout, predicted the same mask as the checkpoint. Raises nothing for a disk or a file that
    refuses: the line says what happened, and the model is still in its checkpoint.
    """
    checkpoint = None
    try:
        checkpoint = best_checkpoint(run_dir) or newest_checkpoint(run_dir)
        if checkpoint is None:
            return Published(None, None, "no checkpoint, so no model to publish")
        return _export_and_publish(run_dir, run, config, git_commit, checkpoint, timeout_s)
    except (OSError, SafetensorError, PipelineError) as error:
        # safetensors has an error of its own for a full disk
        kept = str(checkpoint) if checkpoint else None
        line = f"the model is not published ({one_line_of(error)}); it stays in {kept or run_dir}"
        return Published(kept, None, line)


def _export_and_publish(
    run_dir: Path, run: MlflowRun, config: Config, git_commit: str, checkpoint: Path, timeout_s: float
) -> Published:
    export_model(checkpoint, run_dir / EXPORT)
    predictor = Predictor.from_folder(checkpoint)
    facts = model_facts(run_dir, predictor, config, git_commit)
    published = _publish(run_dir, run, config.tracking.registered_model, predictor, facts, timeout_s)
    where = published.model_uri if published.version else None
    run.set_note(run_note(facts, where, f"{REPORT}, among the artifacts and in {run_dir}"))
    return published


def _publish(
    run_dir: Path, run: MlflowRun, name: str, predictor: Predictor, facts: ModelFacts, timeout_s: float
) -> Published:
    exported = run_dir / EXPORT
    if not name:
        return Published(str(exported), None, f"model exported to {exported}; no name to register it under")
    if run.run_id is None or run.experiment_id is None:
        return _unregistered(exported, f"MLflow at {run.tracking_uri} is out of reach")
    what = _registration(name, (run.run_id, run.experiment_id), predictor, facts, exported)
    what = dataclasses.replace(what, metrics=_scores_at(run_dir, predictor.card.step))
    attempt = _Registering(tracking_uri(run_dir.parent), what, exported, predictor)
    attempt.start()
    return attempt.outcome_within(timeout_s)


def model_facts(run_dir: Path, predictor: Predictor, config: Config, git_commit: str) -> ModelFacts:
    """What the run's page and the version's page tell of a model."""
    card = predictor.card
    tables = [
        r for r in read_journal(run_dir)
        if isinstance(r, Table) and r.key == metrics.IOU_TABLE and r.step == card.step
    ]  # fmt: skip
    return ModelFacts(
        run_name=run_dir.name,
        miou=card.miou,
        step=card.step,
        backbone=backbone_details(card.model.backbone),
        head=head_details(card.model.head),
        params_m=sum(p.numel() for p in predictor.model.parameters()) / 1e6,
        input_size=(card.input_height, card.input_width),
        data=_data(config.data),
        manifest_id=card.manifest_id,
        git_commit=git_commit,
        iou={str(row[0]): row[1] for row in tables[-1].rows} if tables else {},
    )


def _data(config: DataConfig) -> str:
    """What it was trained on, and what the scores are of."""
    if config.held_out:
        drives = ", ".join(config.held_out_drives)
        return f"split {config.train_split} without {drives}; scores are of {drives}, which were held out"
    return f"splits {config.unindexed_train or config.train_split} and {config.val_split}"


def same_mask(uri: str, tracking: str, predictor: Predictor) -> bool:
    """True where the stored model, loaded by a new process elsewhere, predicts what `predictor` does.

    Raises CheckpointError where it cannot be loaded or does not predict.
    """
    picture = encode_png(_proof_picture())
    expected_HW = predictor.card.classes.to_label_ids(predictor.predict(decode_rgb(picture, "the example")))
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        source, target = Path(folder) / "picture.png", Path(folder) / "mask.png"
        source.write_bytes(picture)
        hidden = ("PYTHONPATH", "PYTHONHOME")  # the checkout must not lend it what the artifact lacks
        # The address goes by the environment, never by the command line, where others could read it.
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        environment |= {"MLFLOW_TRACKING_URI": tracking, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
        command = [sys.executable, "-c", _LOAD_AND_PREDICT, uri, str(source), str(target)]
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and code
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False,
                timeout=LOAD_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise CheckpointError(f"{uri} took over {LOAD_TIMEOUT_S}s to load and predict") from error
        if done.returncode != 0 or not target.exists():
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise CheckpointError(f"{uri} cannot be loaded and used: {last}")
        mask_HW = cv2.imread(str(target), cv2.IMREAD_UNCHANGED)
        return mask_HW is not None and bool(np.array_equal(mask_HW, expected_HW))


def _proof_picture() -> NDArray[np.uint8]:
    """Coloured patches of many kinds, so that a wrong weight shows somewhere."""
    patches = np.random.default_rng(0).integers(0, 256, (12, 18, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(patches, (288, 192), interpolation=cv2.INTER_CUBIC), np.uint8)


class _Registering(threading.Thread):
    """MLflow's part, in a thread so that a server that hangs costs no more than the wait for it."""

    def __init__(self, tracking: str, what: Registration, exported: Path, predictor: Predictor) -> None:
        super().__init__(name="register", daemon=True)
        self._tracking, self._what, self._exported, self._predictor = tracking, what, exported, predictor
        self._outcome: Published | None = None
        self._lock = threading.Lock()
        self._cancelled = self._promoting = False

    def outcome_within(self, timeout_s: float) -> Published:
        """What came of it; after the time-out the thread makes no version and moves no alias any more."""
        self.join(timeout_s)
        with self._lock:
            self._cancelled = not self._promoting
        if self._promoting:
            self.join(PROMOTION_TIMEOUT_S)  # too late to call it back
        reason = f"MLflow did not answer within {timeout_s:.0f}s"
        if self._promoting:
            reason += f"; @challenger may yet move to {self._what.name}'s newest version"
        return self._outcome or _unregistered(self._exported, reason)

    def run(self) -> None:
        """Register, prove, promote."""
        try:
            self._outcome = self._register()
        except Exception as error:  # noqa: BLE001 - whatever MLflow does, the training was a success
            self._outcome = _unregistered(self._exported, f"{type(error).__name__}: {one_line_of(error)}")

    def _raise_if_cancelled(self) -> None:
        if self._cancelled:
            raise TimeoutError("nobody waits for it any more")

    def _register(self) -> Published:
        be_impatient()
        client, name = MlflowClient(self._tracking), self._what.name
        with tempfile.TemporaryDirectory(prefix="serve-") as temporary:
            version = register(
                client,
                self._what,
                lambda folder, model_id: save_served_model(self._exported, folder, model_id),
                Path(temporary) / "model",
                self._raise_if_cancelled,
            )
        uri = f"models:/{name}/{version}"
        if is_proven(client, name, version):
            return Published(uri, version, f"{uri} is registered already, and was loaded back then")
        if not same_mask(uri, self._tracking, self._predictor):
            raise CheckpointError(f"{uri} predicts another mask than its checkpoint; @challenger stays")
        with self._lock:
            self._raise_if_cancelled()
            self._promoting = True
        promote(client, name, version)
        where = without_credentials(self._tracking)
        return Published(uri, version, f"registered {uri} as @challenger after loading it back from {where}")


def _scores_at(run_dir: Path, step: int) -> dict[str, tuple[float, float]]:
    """The recorded scores of a step, each with the time at which the journal has it."""
    return {
        key: (record.values[key], record.time_s)
        for record in read_journal(run_dir)
        if isinstance(record, Metrics) and record.step == step
        for key in (metrics.VAL_MIOU, metrics.VAL_PIXEL_ACCURACY)
        if key in record.values
    }


def _registration(
    name: str, run: tuple[str, str], predictor: Predictor, facts: ModelFacts, exported: Path
) -> Registration:
    card, head = predictor.card, predictor.card.model.head
    tags = {
        "val.miou": "none" if card.miou is None else f"{card.miou:.4f}",
        "head": head.kind,
        "gate": head.fusion if head.kind == "ccs" else "none",
        "backbone": backbone_name(card.model.backbone),
        "params_m": f"{facts.params_m:.1f}",
        "data": card.manifest_id[:12],
        "git": facts.git_commit[:12],
    }
    with (exported / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Registration(
        name=name,
        run_id=run[0],
        experiment_id=run[1],
        step=card.step,
        weights_sha256=digest,
        description=model_card(facts, f"models:/{name}@challenger"),
        tags=tags,
        params={"head": facts.head, "backbone": facts.backbone, "input": "{}x{}".format(*facts.input_size)},
    )


def _unregistered(exported: Path, reason: str) -> Published:
    return Published(
        str(exported), None, f"the model is not registered ({reason}); it is whole in {exported}"
    )
