"""Creating users in the Microsoft directory of an instance: the request and the job."""

from functools import partial
from typing import Any

from server.events.changes import Change
from server.events.emit import emit, system_actor
from server.jobs.queue import Services, enqueue, job
from server.jobs.worker import Hopeless, Later, Suspended
from server.outside import graph
from server.outside.graph import Office365
from server.tenants.call import Call
from server.tenants.instances import InstanceSettings

NO_CREDENTIALS = "is not possible: the instance has no Microsoft Graph credentials (office365)"


def credentials_of(settings: InstanceSettings) -> Office365 | None:
    """The credentials of an instance; None without a client secret."""
    found = settings.office365
    return found if found is not None and found.clientSecret is not None else None


async def begin(call: Call, user_id: int) -> bool:
    """Enqueue the creation of a user there; False: it is pending or done already."""
    user = {"instance_id": call.instance.id, "user_id": user_id}
    begun = await call.db.one("begin_office365", **user)
    if begun is not None:
        await enqueue(call.db, "office365", user | {"request_id": call.context.request_id})
        call.audit_only(user_id, before={"office365": begun["state_before"]}, after={"office365": "pending"})
    return begun is not None


async def _note(
    services: Services,
    payload: dict[str, Any],
    *,
    state: str,
    object_id: str | None = None,
    error: str | None = None,
) -> None:
    """Store the outcome of a try; a changed state is in the audit under the id of the first request."""
    user = {"instance_id": payload["instance_id"], "user_id": payload["user_id"]}
    async with services.database.transaction() as db:
        noted = await db.one("note_office365", **user, state=state, object_id=object_id, error=error)
        if noted is None or noted["state_before"] == state:
            return
        after = {"office365": state, "objectId": object_id, "error": noted["error"]}
        before = {"office365": noted["state_before"]}
        after = {name: value for name, value in after.items() if value is not None}
        actor = system_actor("createInOffice365", payload.get("request_id", "office365"))
        await emit(db, user["instance_id"], actor, [Change("", user["user_id"], before, after)])


@job("office365", parked=partial(_note, state="failed"))
async def create_in_office365(services: Services, payload: dict[str, Any]) -> None:
    """One try. A user that an earlier try created counts as created; another user of its name does not."""
    async with services.database.connection() as db:
        user = await db.one(
            "get_office365_user", instance_id=payload["instance_id"], user_id=payload["user_id"]
        )
    if user is None or user["is_done"]:
        return
    if user["is_gone"]:
        await _note(services, payload, state="failed", error="deleted")
        return
    if user["is_suspended"]:
        # Stored each time: a pending creation that was not touched for six hours can be requested again.
        await _note(services, payload, state="pending", error="instance_suspended")
        raise Suspended
    credentials = credentials_of(InstanceSettings.model_validate(user["settings"]))
    if credentials is None:
        await _note(services, payload, state="failed", error="no_credentials")
        raise Hopeless
    try:
        object_id = await services.graph.create_user(
            services.settings,
            credentials,
            email=user["email"],
            display_name=user["display_name"],
            first_name=user["fields"].get("firstname"),
            last_name=user["fields"].get("lastname"),
            is_active=user["is_active"],
            mark=f"officerpc:{user['uuid']}",
        )
    except graph.Busy as error:
        await _note(services, payload, state="pending", error=error.told)
        raise Later(error.seconds) from error
    except graph.Refused as error:
        await _note(services, payload, state="failed", error=error.told)
        raise Hopeless from error
    await _note(services, payload, state="done", object_id=object_id)
