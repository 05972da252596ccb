"""The queue, for its operator: what waits, what was given up, and trying that again."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.errors import NotFound
from server.base.models import Params, Result
from server.directory.users import found
from server.methods.registry import Example, method
from server.tenants.call import Call


class ListJobs(Params):
    """Which jobs, and from where on."""

    state: Literal["parked", "waiting", "running"] = Field("parked", description="parked: given up.")
    after: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="The last id of the page before.")
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class QueuedJob(Result):
    """A job without what it is about, which may be personal."""

    id: int
    kind: str
    state: Literal["parked", "waiting", "running"]
    createdAt: int = Field(description="Unix seconds.")
    dueAt: int = Field(description="Unix seconds; when it is to be tried next, or was to be.")


@method(
    "listJobs",
    result=list[QueuedJob],
    scope="jobs:read",
    writes=False,
    operator=True,
    examples=(
        Example(
            "A mail that was given up",
            {},
            [{"id": 1000, "kind": "mail-code", "state": "parked", "createdAt": 1683471262,
              "dueAt": 1683471262}],
        ),
    ),
)  # fmt: skip
async def list_jobs(call: Call, params: ListJobs) -> Any:
    """List jobs of the queue (mails and others): by default those that were given up, the oldest first."""
    rows = await call.db.all("list_jobs", state=params.state, after=params.after, row_limit=params.limit)
    return [dict(row) for row in rows]


class JobId(Params):
    """A job."""

    id: Annotated[int, Field(ge=1, lt=2**63)]


@method(
    "retryJob",
    scope="jobs:write",
    writes=True,
    operator=True,
    errors=(NotFound,),
    examples=(Example("Once more", {"id": 1000}, True),),
)
async def retry_job(call: Call, params: JobId) -> Literal[True]:
    """Put a job that was given up back into the queue, to be tried as often as a new one."""
    found(await call.db.value("retry_job", job_id=params.id))
    call.audit_only(before={"id": params.id, "state": "parked"}, after={"id": params.id, "state": "waiting"})
    return True
