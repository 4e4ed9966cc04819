"""Texts of a file that a finished run measures or reads in part are counted, and that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny import experiment_config
from trillium.experiment.folder import RunFolder
from trillium.experiment.prediction import predict_run
from trillium.experiment.run import build
from trillium.experiment.trained import evaluate_run
from trillium.tasks.writing import Writing


def test_a_file_of_longer_texts_is_cut_and_that_is_said(
    hub: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = experiment_config(hub, "rounds=1", model="bert")
    build(config, RunFolder(tmp_path / "run", "run")).run()
    evaluate_run(tmp_path / "run", {})
    assert "were cut" not in caplog.text
    rows = [{"text": "w1 " * 40, "label": f"class {n}"} for n in range(3)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"name": "files", "train": str(tmp_path / "long.jsonl")}
    evaluate_run(tmp_path / "run", {"data": {"source": source}})
    predict_run(tmp_path / "run", {"data": {"source": source}}, Writing(4))
    assert caplog.text.count("3 of 3 texts were cut to") == 2
