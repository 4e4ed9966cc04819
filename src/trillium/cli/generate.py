"""`trillium generate`: let the model of a run write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trillium.cli.verbs import working
from trillium.cli.words import AsJson, Client, Folder

if TYPE_CHECKING:
    from trillium.experiment.generation import Crossed


def generate(
    folder: Folder,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts to continue.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--prompts", help="File with prompts, one on each line.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most tokens to write for each prompt.")
    ] = 64,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="NUMBER",
            help="Temperature of sampling; 0 always takes the most probable token.",
        ),
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            metavar="NUMBER",
            help="Sample among the most probable tokens that together have this probability.",
        ),
    ] = 1.0,
    client: Client = None,
    node: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Node of a deployment that runs the first blocks of a split model."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate text with the trained language model of a run.

    A split model stays cut: the first client holds the prompts, and the bytes that cross are shown.
    With --node it is a node of the deployment that the run was made by.
    """
    texts = [*(prompts or []), *(_lines(file) if file is not None else [])]
    from trillium.errors import UserError

    if not 0 < top_p <= 1:
        raise UserError(f"--top-p {top_p}", "it is a probability", "Write a number up to 1")
    if node is not None and client is not None:
        raise UserError(
            f"--node {node} --client {client}",
            "the one is a part of the shared model, the other a model of its own",
            "Give one of them",
        )
    from dataclasses import asdict

    if node is not None:
        from trillium.cli.deploy import check_installed

        check_installed()
    with working("Writing"):
        from trillium.experiment.generation import generate_run
        from trillium.quiet import quiet
        from trillium.tasks.writing import Writing

        quiet()
        writing = Writing(max_new_tokens, temperature, top_p)
        if node is None:
            found = generate_run(folder, texts, writing, client)
        else:
            from trillium.deploy.writing import write_at

            found = write_at(folder, node, texts, writing)
    if as_json:
        lines = [
            {"prompt": prompt, "text": text, "num_tokens": size}
            for prompt, text, size in zip(texts, found.texts, found.num_tokens, strict=True)
        ]
        crossed = None if found.crossed is None else asdict(found.crossed)
        print(json.dumps({"folder": str(folder), "texts": lines, "crossed": crossed}, indent=1))
        return
    for prompt, text in zip(texts, found.texts, strict=True):
        print(f"> {prompt}\n{text}\n")
    if found.crossed is not None:
        print(_sentence(found.crossed, sum(found.num_tokens)))


def _lines(file: Path) -> list[str]:
    """Return the prompts of a file; empty lines are none."""
    from trillium.errors import UserError

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--prompts {file}", f"it cannot be read ({error})", "Give a text file"
        ) from error
    return [line for line in text.splitlines() if line.strip()]


def _sentence(crossed: Crossed, num_tokens: int) -> str:
    """Say what crossed."""
    from trillium.report.human import prefixed

    def both(up: float, down: float) -> str:
        return f"{prefixed(up, 'B')} up, {prefixed(down, 'B')} down"

    return (
        f"Bytes between {crossed.client} and the server: "
        f"{both(crossed.prompt_bytes_up, crossed.prompt_bytes_down)} before the first token; "
        f"{both(crossed.bytes_up, crossed.bytes_down)} for {num_tokens} tokens; "
        f"{both(crossed.bytes_up_per_token, crossed.bytes_down_per_token)} for each token."
    )


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(generate)
