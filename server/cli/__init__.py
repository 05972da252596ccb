"""The command officerpc: one module a subject; all use options, session and terminal."""

import importlib.metadata
from typing import Annotated

import typer

from server.cli import (
    audit,
    database,
    distribution,
    doctor,
    instances,
    jobs,
    keys,
    reference,
    serving,
    users,
    webhooks,
)
from server.cli.terminal import say

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A user-provisioning server.",
)
for subject in (serving, database, distribution, doctor, reference, audit):
    cli.add_typer(subject.app)
cli.add_typer(instances.app, name="instances")
cli.add_typer(keys.app, name="keys")
cli.add_typer(users.app, name="users")
cli.add_typer(jobs.app, name="jobs")
cli.add_typer(webhooks.app, name="webhooks")


def _version(wanted: bool) -> None:
    if wanted:
        say(importlib.metadata.version("officerpc"))
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A user-provisioning server."""


def main() -> None:
    """Run the command line."""
    cli()
