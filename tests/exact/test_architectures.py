"""A thin slice of the matrix of architectures: each cell equals plain Transformers and PEFT."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from trillium.errors import UserError
from variants import slow_but

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAST = [
    ("mixtral", "causal_lm", "FedLLM"),  # a mixture of experts in one tensor
    ("lfm2", "causal_lm", "generation"),  # convolutions and attention, across a cut
    ("gemma3", "classification", "Split"),  # a deeper tower of images beside it
    ("t5", "classification", "FedLLM"),  # two stacks
    ("qwen2", "causal_lm", "evaluation"),  # a tokenizer of another class than the saved one
]
CASES = [
    *((label, "causal_lm", cell) for label in ("mixtral", "gpt_oss", "qwen3_next")
      for cell in ("load", "FedLLM", "all-linear", "KD", "Split", "U", "export", "merge", "plan")),
    *((label, "causal_lm", "generation") for label in ("mamba", "falcon_h1")),
    *(("mpt", "causal_lm", cell) for cell in ("FedLLM", "Split")),  # a whole number as a rate
    ("xlnet", "classification", "plan"),  # makes tensors where no context tells it to
    *(("gemma3", "causal_lm", cell) for cell in ("FedLLM", "Split", "export", "merge", "plan")),
    *(("phi3, LongRoPE", "causal_lm", cell) for cell in ("Split", "export")),
    *((label, "classification", cell) for label in ("longformer", "xlnet", "t5", "bart")
      for cell in ("FedLLM", "KD", "export")),
]  # fmt: skip
REFUSED = [
    *((label, "causal_lm") for label in ("recurrent_gemma", "rwkv")),
    *((label, "classification") for label in ("xlnet", "t5", "convbert", "mobilebert")),
]


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("architecture_cells")


def case_of(matrix: ModuleType, folder: Path, label: str, task: str) -> object:
    tiny = importlib.import_module("tiny_models")
    table = tiny.DECODERS if task == "causal_lm" else tiny.ENCODERS
    model_type, options = table[label]
    tiny.write_rows(folder)
    path = tiny.write_checkpoint(folder / "model", model_type, task, **options)
    return matrix.Case(path, task, folder)


@pytest.mark.parametrize(("label", "task", "cell"), slow_but(FAST, [*FAST, *CASES]))
def test_a_cell_holds(matrix: ModuleType, tmp_path: Path, label: str, task: str, cell: str) -> None:
    case = case_of(matrix, tmp_path, label, task)
    if cell == "generation":
        matrix.CELLS["Split"](case)
    matrix.CELLS[cell](case)


@pytest.mark.slow
@pytest.mark.parametrize(("label", "task"), REFUSED)
def test_what_no_cut_can_carry_is_refused(
    matrix: ModuleType, tmp_path: Path, label: str, task: str
) -> None:
    case = case_of(matrix, tmp_path, label, task)
    with pytest.raises(UserError, match=r"fedllm or kd|task=causal_lm") as caught:
        matrix.CELLS["Split"](case)
    assert caught.value.given
    assert caught.value.why


@pytest.mark.slow
def test_what_keeps_a_cache_of_its_own_does_not_write_across_a_cut(
    matrix: ModuleType, tmp_path: Path
) -> None:
    case = case_of(matrix, tmp_path, "minimax", "causal_lm")
    matrix.CELLS["Split"](case)
    with pytest.raises(UserError, match="in a form of its own"):
        matrix.CELLS["generation"](case)


def test_a_cell_tells_another_model_apart(matrix: ModuleType, tmp_path: Path) -> None:
    """What is equal would be so for nothing if another state passed, too."""
    case = case_of(matrix, tmp_path, "llama", "causal_lm")
    built = case.run("fedllm", "framework=fedllm")  # type: ignore[attr-defined]
    plain = case.plain("fedllm")  # type: ignore[attr-defined]
    with pytest.raises(matrix.Differs, match="weights differ"):
        case.close("fedllm", plain, built)  # type: ignore[attr-defined]
