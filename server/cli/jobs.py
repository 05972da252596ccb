"""officerpc jobs."""

from typing import Annotated

import typer

from server.cli.options import AsJson
from server.cli.session import all_by_id, call, run
from server.cli.terminal import format_time, show, show_list

app = typer.Typer(no_args_is_help=True, help="The queue of mails and other jobs.")


@app.command("list")
def list_jobs(
    state: Annotated[str, typer.Option(help="parked (given up), waiting or running.")] = "parked",
    as_json: AsJson = False,
) -> None:
    """List jobs, by default the parked ones."""
    show_list(
        run(lambda session: all_by_id(session, "listJobs", {"state": state})), as_json,
        {"id": "id", "kind": "kind", "state": "state",
         "created (UTC)": lambda job: format_time(job["createdAt"]),
         "due (UTC)": lambda job: format_time(job["dueAt"])},
    )  # fmt: skip


@app.command("retry")
def retry_job(job_id: int, as_json: AsJson = False) -> None:
    """Put a parked job back into the queue."""
    call("retryJob", {"id": job_id})
    show({"retried": job_id}, as_json)
