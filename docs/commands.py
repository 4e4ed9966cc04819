"""Let the site have a page on the commands, written from what `-h` says."""

from __future__ import annotations

from collections.abc import Iterator

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from trillium.cli.app import app

URI = "reference/commands.md"
OPENING = """\
# Commands

After this page you know every command of `trillium` with its arguments and options. `trillium -h` and
`trillium COMMAND -h` say the same.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, URI, content="\n".join(_page())))
    return files


def _page() -> Iterator[str]:
    program = typer.main.get_command(app)
    assert isinstance(program, click.Group)
    yield OPENING
    for name, command in program.commands.items():
        context = click.Context(command, info_name=f"trillium {name}")
        yield f"\n## `{name}`\n\n{command.help}\n\n```text"
        yield f"{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
        yield "| argument or option | meaning |\n|---|---|"
        for parameter in command.get_params(context):
            if record := parameter.get_help_record(context):
                words, meaning = (part.replace("\\[", "[").replace("|", "\\|") for part in record)
                yield f"| `{words}` | {meaning} |"
