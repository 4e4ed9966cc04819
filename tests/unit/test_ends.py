"""What ends a response: the template, the tokenizer and the model's own list, in training and after."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from tiny import federation
from trillium.tasks.causal_lm import CausalLM
from trillium.tasks.ends import before_end, end_ids, template_end
from trillium.tasks.writing import write_whole

TURN_END = "[BOS]"  # a special token that is not the tokenizer's end token
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] | upper }} {{ m['content'] }} [BOS] {% endfor %}"
    "{% if add_generation_prompt %}A {% endif %}"
)


@pytest.fixture
def folder(hub: Path, tmp_path: Path) -> Path:
    """A model whose own list of ends is longer than its tokenizer's, and a template with another."""
    shutil.copytree(hub / "gpt2", tmp_path / "hub" / "gpt2")
    shutil.copy(hub / "causal_lm.jsonl", tmp_path / "hub")
    GenerationConfig(eos_token_id=[3, 17]).save_pretrained(tmp_path / "hub" / "gpt2")
    return tmp_path / "hub"


def with_template(folder: Path, template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder / "gpt2")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder / "gpt2")
    return tokenizer


def test_ends_are_the_tokenizers_the_templates_and_all_of_the_models(folder: Path) -> None:
    tokenizer = with_template(folder, TEMPLATE)
    assert template_end(tokenizer) == tokenizer.bos_token_id == 2
    built = federation(folder, task="causal_lm")
    assert end_ids(built.model.tokenizer, built.model.module) == [2, 3, 17]


@pytest.mark.parametrize(
    "template", [None, "{{ raise_exception('no') }}", "{{ messages[1].content }}!"]
)
def test_a_template_that_ends_nothing_has_no_end(folder: Path, template: str | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "gpt2")
    tokenizer.chat_template = template
    assert template_end(tokenizer) is None


class Scripted(torch.nn.Module):
    """Writes the tokens 5, 6, 7 … whatever it is asked."""

    def __init__(self, settings: GenerationConfig) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(1))
        self.generation_config = settings
        self.asked: Any = None

    def generate(self, input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        self.asked = settings.get("generation_config", settings)
        new = torch.arange(5, 11).expand(len(input_ids), -1)
        return torch.cat([input_ids, new], 1)


def test_generation_stops_at_every_end_of_the_models_list(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "gpt2")
    module = Scripted(GenerationConfig(eos_token_id=[9, 7]))
    written = write_whole(module, tokenizer, torch.device("cpu"), [[4]], max_new_tokens=6)
    assert written == [[5, 6, 7]]
    assert module.asked.eos_token_id == [3, 7, 9]
    assert before_end(written[0], [3, 7, 9]) == [5, 6]
    module.asked = None
    CausalLM(generate=1).answers(
        module, federation(folder, task="causal_lm").server.test, tokenizer, 8
    )
    assert module.asked.eos_token_id == [3, 7, 9]


def test_a_run_says_that_nothing_ends_a_response(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        federation(folder, task="causal_lm")
    assert "nothing ends a response" not in caplog.text
    tokenizer = AutoTokenizer.from_pretrained(folder / "gpt2")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder / "gpt2")
    with caplog.at_level(logging.WARNING):
        federation(folder, task="causal_lm")
    assert "nothing ends a response" in caplog.text
