"""officerpc jobs."""

from typing import Annotated, Any

import typer

from server.cli.options import AsJson
from server.cli.session import Session, run
from server.cli.terminal import moment, show, show_list

app = typer.Typer(no_args_is_help=True, help="The queue of mails and other jobs.")


@app.command("list")
def list_jobs(
    state: Annotated[str, typer.Option(help="parked (given up), waiting or running.")] = "parked",
    as_json: AsJson = False,
) -> None:
    """List jobs of the queue, by default those that were given up."""

    async def work(session: Session) -> list[Any]:
        found: list[Any] = []
        while page := await session.call(
            "listJobs", {"state": state, "after": found[-1]["id"] if found else 0}
        ):
            found += page
        return found

    show_list(
        run(work), as_json,
        {"id": "id", "kind": "kind", "state": "state", "created (UTC)": lambda job: moment(job["createdAt"]),
         "due (UTC)": lambda job: moment(job["dueAt"])},
    )  # fmt: skip


@app.command("retry")
def retry_job(job_id: int, as_json: AsJson = False) -> None:
    """Put a job that was given up back into the queue."""
    run(lambda session: session.call("retryJob", {"id": job_id}))
    show({"retried": job_id}, as_json)
