"""Jobs of the queue, for operators: list and retry."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.errors import NotFound
from server.base.models import Id, Params, Result
from server.directory.users import found
from server.methods.registry import Example, method
from server.tenants.call import Call


class ListJobs(Params):
    """A state and a page."""

    state: Literal["parked", "waiting", "running"] = Field("parked", description="parked: given up.")
    after: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Last id of the previous page.")
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class QueuedJob(Result):
    """A job, without its payload, which may hold personal data."""

    id: int
    kind: str
    state: Literal["parked", "waiting", "running"]
    createdAt: int = Field(description="Unix seconds.")
    dueAt: int = Field(description="Unix seconds; time of the next attempt.")


@method(
    "listJobs",
    result=list[QueuedJob],
    scope="jobs:read",
    operator=True,
    examples=(
        Example(
            "A parked mail",
            {},
            [{"id": 1000, "kind": "mail-code", "state": "parked", "createdAt": 1683471262,
              "dueAt": 1683471262}],
        ),
    ),
)  # fmt: skip
async def list_jobs(call: Call, params: ListJobs) -> Any:
    """List jobs of the queue (mails and others), oldest first; by default those parked after failing."""
    rows = await call.db.all("list_jobs", state=params.state, after=params.after, row_limit=params.limit)
    return [dict(row) for row in rows]


class JobId(Params):
    """A job by its id."""

    id: Id


@method(
    "retryJob",
    scope="jobs:write",
    operator=True,
    errors=(NotFound,),
    examples=(Example("Retry", {"id": 1000}, True),),
)
async def retry_job(call: Call, params: JobId) -> Literal[True]:
    """Return a parked job to the queue, with as many attempts as a new one."""
    found(await call.db.value("retry_job", job_id=params.id))
    call.audit_only(before={"id": params.id, "state": "parked"}, after={"id": params.id, "state": "waiting"})
    return True
