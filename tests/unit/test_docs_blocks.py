"""No code block of the documentation fails: commands parse, recipes load, Python runs."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import typer
import yaml

from pages import DOCS, ROOT, load
from trillium.cli.app import app
from trillium.cli.words import ask
from trillium.config.comparison import OWN_KEYS, acting_arms, comparison
from trillium.config.experiment import experiment, merge, read_yaml, recipe_path, recipes
from trillium.config.given import default_comparison

pytestmark = [pytest.mark.usefixtures("registered"), pytest.mark.slow]

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sh", "bash", "python", "yaml", "toml", "text"}
# Commands of others: only the shell's grammar is checked.
OTHERS = {
    "cat", "cd", "cp", "export", "flower-superlink", "flwr", "git", "less", "mkdir", "nginx",
    "pip", "python3", "ray", "source", "until",
}  # fmt: skip
COMMAND = typer.main.get_command(app)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    body: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            indent, language, body = found.groups()
            lines = "".join(x.removeprefix(indent) for x in body.splitlines(keepends=True))
            yield Block(page, text[: found.start()].count("\n") + 1, language, lines)


BLOCKS = list(blocks())


def of(*languages: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=str)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_block_says_what_it_is(page: Path) -> None:
    found = [block for block in BLOCKS if block.page == page]
    assert len(found) * 2 == len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.M))
    unknown = [str(block) for block in found if block.language not in LANGUAGES]
    assert not unknown, f"of these languages: {sorted(LANGUAGES)}"


# Shell


def commands(body: str) -> Iterator[list[str]]:
    """Yield the words of each command; here-documents, loops and comments are left out."""
    body = re.sub(r"<<(\w+)\n.*?^\1$", "", body, flags=re.MULTILINE | re.DOTALL)
    for line in body.replace("\\\n", " ").splitlines():
        words = shlex.split(re.split(r" \| | > ", line)[0], comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


@of("sh", "bash")
def test_shell(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = subprocess.run(
        ["bash", "-n"], input=block.body, text=True, capture_output=True, check=False
    )
    assert not grammar.returncode, grammar.stderr
    monkeypatch.chdir(tmp_path)
    targets = set(re.findall(r"^([.a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for name, *words in commands(block.body):
        if name == "trillium":
            accepted(words, block)
        elif name == "make":
            assert {word for word in words if "=" not in word} <= targets, words
        elif name == "python" and words[0] != "-m":
            assert (ROOT / words[0]).is_file(), words
        elif name == "python" and words[1] == "pytest":
            assert (ROOT / words[2]).is_file(), words
        elif name.startswith(".ci/"):
            assert (ROOT / name).is_file(), name
        else:
            assert name in OTHERS | {"python", "import-linter"}, f"{name} in {block}"


def accepted(words: list[str], block: Block) -> None:
    """Let the command line parse a command, and the configuration read what it sets."""
    if words[0] in ("--install-completion", "--show-completion"):
        return
    written = {"--to", "--recipe"}  # the word behind these is a file that will be there
    read = [
        word for before, word in zip(["", *words], words, strict=False) if before not in written
    ]
    for file in (Path(word) for word in read if "=" not in word and word.endswith(".yaml")):
        if not file.exists():  # one of the repository, or one that the reader has
            kind = "run" if {"run", "up", "deploy"} & set(words) else "compare"
            shipped = recipe_path(file.stem if file.stem in recipes() else kind)
            own = ROOT / file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text((own if own.exists() else shipped).read_text("utf-8"), "utf-8")
    assert isinstance(COMMAND, click.Group)
    with COMMAND.make_context("trillium", list(words)) as context:
        verb, command, rest = COMMAND.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert command is not None
        try:
            given = command.make_context(verb, list(rest), parent=context).params
        except click.exceptions.Exit:
            return  # it has shown its help
    if verb in ("run", "compare", "plan", "up", "deploy") and block.page.stem != "extending":
        configured(str(verb), given)


def configured(verb: str, given: dict[str, Any]) -> None:
    """Make the configuration of a command that has one."""
    words = given.get("words") or []
    if verb in ("up", "deploy"):
        words = [str(given["recipe"]), *(given["settings"] or [])]
    if verb == "plan":
        from trillium.cli.plan import _asked
        from trillium.plan.advice import constraints
        from trillium.plan.arms import arms_of
        from trillium.plan.planning import planning_of

        asks = _asked(given["words"] or [], given["model"])
        planning_of(asks.told)
        constraints(given["constraint"] or [])
        acting_arms(arms_of(asks.tree), {}, keep_refused=True)
        return
    found = ask(words, given.get("model"), given.get("data"), sweeps=verb == "compare")
    if verb == "compare":
        recipe = found.recipe or default_comparison(found.tree)
        named = given["only"].split(",") if given["only"] else ()
        comparison(recipe, found.tree, named, found.sweeps).experiments(None)
    else:
        experiment(found.single())


# Recipes


@of("yaml")
def test_yaml(block: Block) -> None:
    tree = yaml.safe_load(block.body)
    if set(tree) & set(OWN_KEYS):
        comparison(merge(read_yaml(recipe_path("compare")), tree), {}).experiments(None)
    else:
        experiment(tree)


# Python


def defines(node: ast.stmt) -> bool:
    """Whether a statement computes nothing: a definition, an import, a constant, a docstring."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return not any(isinstance(part, ast.Call) for part in ast.walk(node))
    return isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef)


@of("python")
def test_python(block: Block, tmp_path: Path) -> None:
    """What a block imports exists; one that only defines something is executed."""
    tree = ast.parse(block.body)
    modules: dict[str, ModuleType] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            named = modules.get(node.value.id)
            assert named is None or hasattr(named, node.attr), ast.unparse(node)
    if all(map(defines, tree.body)):
        path = tmp_path / f"block_{block.line}.py"
        path.write_text(block.body, encoding="utf-8")
        load(path)
