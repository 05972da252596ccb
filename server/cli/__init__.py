"""The command line, officerpc: one module a subject; session.py and terminal.py serve all of them."""

import typer

from server.cli import database, doctor, instances, jobs, keys, reference, serving, users

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A user-provisioning server.",
)
for subject in (serving, database, doctor, reference):
    cli.add_typer(subject.app)
cli.add_typer(instances.app, name="instances")
cli.add_typer(keys.app, name="keys")
cli.add_typer(users.app, name="users")
cli.add_typer(jobs.app, name="jobs")


def main() -> None:
    """Run the command line."""
    cli()
