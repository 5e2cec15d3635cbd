"""A finished run that is started again: nothing to train, but MLflow may still lack what it gave."""

from __future__ import annotations

import logging

from pipeline.launch.job import Result
from pipeline.launch.run_folder import GIT_COMMIT, write_json
from pipeline.launch.run_record import describe, publish, report
from pipeline.launch.train_job import Request
from pipeline.tracking.mlflow_sync import MlflowRun, ship_pending

logger = logging.getLogger(__name__)


def settle(request: Request, finished: Result, result: Result) -> None:
    """Ship what is pending, register what could not be, and fill in the RESULT of back then.

    A model is registered where the first time failed, or where another name was typed.
    """
    commit = str(finished.pop(GIT_COMMIT, "unknown"))
    result.update(finished)
    if not request.preflight_only:
        pending = ship_pending(request.run_dir, request.config.tracking.wait_s)
        if pending:
            logger.info("[event] %s", pending)
        if _lacks_registration(request, result["model_uri"]):
            _register(request, result, commit)
    logger.info("[done]  run=%s is finished already, with these settings: nothing to do", request.name)


def _lacks_registration(request: Request, model_uri: str | None) -> bool:
    name = request.config.tracking.registered_model
    registered = _registered_name(model_uri)
    if not name or registered == name:
        return False
    return registered is None or request.name_typed


def _registered_name(model_uri: str | None) -> str | None:
    """The NAME of `models:/NAME/VERSION`; None for a folder."""
    prefix = "models:/"
    return model_uri[len(prefix) :].rpartition("/")[0] if model_uri and model_uri.startswith(prefix) else None


def _register(request: Request, result: Result, commit: str) -> None:
    """Publish again, and record it where that gave a version; the run's own tags stay as they are."""
    run = MlflowRun.open(describe(request, tags={}))
    try:
        published = publish(request, run, commit)
        if published.version is not None:
            result["model_uri"] = published.model_uri
            report(request, run, result)
    finally:
        pending = run.finish("FINISHED", request.config.tracking.wait_s)
        if pending:
            logger.info("[event] %s", pending)
    result["run_id"] = run.run_id
    write_json(request.run_dir / "result.json", result | {GIT_COMMIT: commit})
