"""`trillium plan` as it is typed, and the plan that a run leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig
from typer.testing import CliRunner

import tiny
import trillium
from trillium.cli.app import app
from trillium.config.comparison import comparison
from trillium.config.experiment import experiment, read_yaml
from trillium.errors import UserError
from trillium.experiment.arm import run_one
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.plan import result
from trillium.report.planned import held
from trillium.report.read import read_run
from trillium.report.write import write_report

WORDS = [
    "model.id=distilgpt2",
    "data.num_clients=2",
    "data.public_size=16",
    "rounds=1",
    "training.max_length=16",
    "plan.data.examples=16",
]


def test_a_plan_is_shown_and_written(tmp_path: Path) -> None:
    recipe = tmp_path / "new" / "chosen.yaml"
    words = ["distilgpt2", *WORDS[1:], "split.framework.cut=2", "plan.client.device.memory=1GB"]
    shown = CliRunner().invoke(app, ["plan", *words, "--recipe", str(recipe)])
    assert shown.exit_code == 0, shown.output
    assert "Peak memory" in shown.output
    assert "fedllm_full is out" in shown.output
    made = comparison(read_yaml(recipe), {}).experiments()
    labels = {"fedllm", "kd", "split", "local_only", "centralised"}  # cheapest, and baselines
    assert {label for label, _ in made} == labels
    assert {config.model.id for config in made.values()} == {"distilbert/distilgpt2"}
    assert f"trillium compare {recipe}" in " ".join(shown.output.split("\n"))
    words = [*words[:-2], "framework=fedllm", "--recipe", str(recipe)]
    assert CliRunner().invoke(app, ["plan", *words]).exit_code == 0
    assert experiment(read_yaml(recipe)).model.id == "distilbert/distilgpt2"


def test_what_cannot_be_written_is_said_before_anything_is_planned(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for option, path in (
        ("--recipe", tmp_path),
        ("--recipe", tmp_path / "file" / "plan.yaml"),
        ("--plots", tmp_path / "file"),
    ):
        found = CliRunner().invoke(app, ["plan", "distilgpt2", option, str(path)])
        assert isinstance(found.exception, UserError)
        assert found.exception.given == f"{option} {path}"


@pytest.mark.slow
def test_the_program_shows_all_of_a_plan() -> None:
    code = "from trillium.cli.app import program; program()"
    call = [sys.executable, "-c", code, "plan", *WORDS, "framework=fedllm", "--json"]
    found = subprocess.run(call, check=True, capture_output=True, text=True)
    assert [arm["arm"] for arm in json.loads(found.stdout)["arms"]] == ["fedllm"]
    call[-1] = "plan.client.devise=1"
    wrong = subprocess.run(call, check=False, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "Instead:" in wrong.stderr


def test_a_model_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise OSError("not there")

    monkeypatch.setattr(AutoConfig, "from_pretrained", absent)
    shown = CliRunner().invoke(app, ["plan", "lama-3-8b"])
    assert isinstance(shown.exception, UserError)
    assert shown.exception.instead == "Did you mean 'llama-3-8b'?"


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("plan.client.devcie.memory=4GB", "Did you mean 'device'?"),
        ("plan.tiers.phone.device.mem=4GB", "Did you mean 'memory'?"),
    ],
)
def test_what_a_plan_is_not_told(word: str, instead: str) -> None:
    shown = CliRunner().invoke(app, ["plan", *WORDS, word])
    assert isinstance(shown.exception, UserError)
    assert shown.exception.instead == instead


def test_settings_that_no_arm_can_have_are_an_error() -> None:
    shown = CliRunner().invoke(app, ["plan", *WORDS, "adaptre.r=4"])
    assert isinstance(shown.exception, UserError)
    assert "adapter" in shown.exception.instead
    shown = CliRunner().invoke(app, ["plan", *WORDS, "kd.framework.temprature=2"])
    assert shown.exit_code == 0, shown.output
    assert "- kd is not planned" in shown.output


def test_what_has_no_plan_is_not_said_to_be_too_large() -> None:
    shown = CliRunner().invoke(app, ["plan", *WORDS, "framework=kd", "model.quantize=nf4"])
    assert shown.exit_code == 0, shown.output
    assert "- kd is not planned" in shown.output
    assert "is out" not in shown.output


def test_one_model_at_most() -> None:
    shown = CliRunner().invoke(app, ["plan", "gpt2", "--model", "distilgpt2"])
    assert isinstance(shown.exception, UserError)


def test_plots_of_a_sweep(tmp_path: Path) -> None:
    told = ["plan.client.device.flops=1TFLOPS", "plan.client.link={up: 1Mbit, down: 1Mbit}"]
    words = [*WORDS, *told, "framework=fedllm", "adapter.r=2,4", "--plots", str(tmp_path)]
    shown = CliRunner().invoke(app, ["plan", *words])
    assert shown.exit_code == 0, shown.output
    assert "▒" in shown.output
    for name in ("plan_costs.png", "plan_time.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert "fedllm_<wbr>r4" in page
    assert "<pre" not in page, "it is a page, not what the terminal shows"
    assert page.count("data:image/png;base64,") == 2
    assert '<p class="outcome">Which is most accurate is not known.</p>' in page
    assert "the fewest bytes of each framework: fedllm_r2" in page
    assert "Peak memory" in page


def test_a_plan_as_json() -> None:
    shown = CliRunner().invoke(app, ["plan", *WORDS, "framework=fedllm", "adapter.r=2,4", "--json"])
    assert shown.exit_code == 0, shown.output
    arms = {arm["arm"]: arm for arm in json.loads(shown.output)["arms"]}
    few, many = (arms[f"fedllm_r{r}"]["tiers"]["all"]["up"]["kinds"]["parameters"] for r in (2, 4))
    head = 2 * 768 * 4
    assert many - head == 2 * (few - head)


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from trillium.cli.app import app\n"
        "try: app(['plan', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_run_leaves_its_plan_and_the_report_holds_it_to_the_ledger(
    hub: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run", "fedllm")
    run_one(tiny.experiment_config(hub, "framework=fedllm", "rounds=1"), folder)
    lines = held(read_run(folder.path))
    assert [line.difference for line in lines] == ["exact"] * len(lines)
    assert {line.title for line in lines} >= {"Bytes up, all clients", "Client FLOPs, all clients"}
    assert "Planned and measured" in write_report(folder.path).read_text(encoding="utf-8")


def test_a_run_without_a_plan_says_why(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("a plan for this", "there is none yet", "Run it")

    monkeypatch.setattr(result, "predict", refuse)
    folder = RunFolder(tmp_path / "run", "fedllm")
    run_one(tiny.experiment_config(hub, "framework=fedllm", "rounds=1"), folder)
    plan = json.loads((folder.path / "plan.json").read_text(encoding="utf-8"))
    assert "there is none yet" in plan["not_planned"]
    assert held(read_run(folder.path)) == []


@pytest.fixture
def recipe(hub: Path, tmp_path: Path) -> Path:
    """Three arms over a file of rows, as a user would write them."""
    lines = [
        json.dumps({"text": f"w{i % 9} w{i % 7} w{i}", "label": "ab"[i % 2]}) for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    settings = {
        "rounds": 2,
        "model": {"id": str(hub / "bert"), "random_weights": True},
        "data": {
            "source": {"name": "files", "train": str(tmp_path / "rows.jsonl")},
            "num_clients": 3,
            "public_size": 8,
        },
        "training": {"batch_size": 4},
        "arms": {"fedllm": {"framework": "fedllm"}, "kd": {"framework": "kd"}},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(settings))
    return path


def test_the_plan_of_a_recipe_is_of_its_data(recipe: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["plan", str(recipe)])
    assert shown.exit_code == 0, shown.output
    assert "Of the data as they are: 3 clients with" in shown.output
    assert "Assumed" not in shown.output
    assert "Runs on the device" not in shown.output  # none was named
    made = trillium.plan(str(recipe))
    for label, config in comparison(read_yaml(recipe), {}).experiments().items():
        run = build(config)
        run.run()
        tiers = next(arm for arm in made.arms if arm.label == label[0]).tiers
        up = [
            e.bytes for e in run.fleet.ledger.entries if (e.direction, e.purpose) == ("up", "train")
        ]
        assert tiers[0].run.up.bytes == pytest.approx(sum(up) / 3)
        flops = [e.flops or 0.0 for e in run.fleet.ledger.entries if e.purpose == "train"]
        assert tiers[0].run.flops == pytest.approx(sum(flops) / 3)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["plan.data.examples=40"], "plan.data says how many there are"),
        (["data.source={train: nowhere.csv}"], "nowhere.csv: there is no such file"),
    ],
)
def test_what_is_assumed_is_said_and_why(recipe: Path, words: list[str], why: str) -> None:
    shown = CliRunner().invoke(app, ["plan", str(recipe), *words])
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.output.split())
    assert "Assumed, as" in said
    assert why in said
    assert "2 classes" in said


def test_one_setting_is_not_recommended() -> None:
    alone = CliRunner().invoke(app, ["plan", "gpt2", "framework=fedllm", *WORDS[1:]])
    assert "Take" not in alone.output
    assert "Assumed, as plan.data says how many there are" in " ".join(alone.output.split())


def test_a_file_that_is_typed_must_be_there() -> None:
    found = CliRunner().invoke(app, ["plan", "gpt2", "--data", "nowhere.csv"])
    assert isinstance(found.exception, UserError)
    assert found.exception.given == "--data nowhere.csv"
