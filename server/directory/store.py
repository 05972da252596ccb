"""What the store (seeds/003) adds to a user: another id, a limit of sessions, flags, and plans."""

import re
import unicodedata
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo

from server.base.errors import FieldError, Invalid
from server.base.models import NO_CONTROLS
from server.postgres.db import Connection
from server.tenants.call import Call


def _external_id(text: str) -> str:
    if any(unicodedata.category(char) == "Cc" for char in text):
        raise ValueError("holds control characters")
    return text


def _day(text: str) -> str:
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError
        date.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a date such as 2024-02-29") from None
    return text


ExternalId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        description="What another system calls the user; unique in the instance.",
        json_schema_extra=NO_CONTROLS,
    ),
    AfterValidator(_external_id),
]
SessionsLimit = Annotated[
    int, Field(ge=1, le=999_999, description="Sessions at a time; a login beyond it ends the oldest one.")
]
PlanId = Annotated[int, Field(ge=1, lt=2**63)]
LastDay = Annotated[str, Field(max_length=10, json_schema_extra={"format": "date"}), AfterValidator(_day)]
PlanName = Annotated[
    str, Field(min_length=1, max_length=200, json_schema_extra=NO_CONTROLS), AfterValidator(_external_id)
]


def needs_plan(day: str | None, info: ValidationInfo) -> str | None:
    """A validator of planValidTo: it says something only beside a planId."""
    if day is not None and info.data.get("planId", day) is None:
        raise ValueError("needs a plan that it is the last day of")
    return day


async def change_store_user(db: Connection, instance_id: int, user_id: int, given: Mapping[str, Any]) -> Any:
    """Write what is given of externalId, sessionsLimit, isPlanAdmin, onlySeesReadable and isAdmin.

    Null takes an id or a limit away.

    Returns:
        id, before and after, of the user's states; None where nothing was given.
    """
    if not given:
        return None
    return await db.one(
        "change_store_user",
        instance_id=instance_id,
        user_id=user_id,
        given=list(given),
        external_id=given.get("externalId"),
        sessions_limit=given.get("sessionsLimit"),
        is_admin=given.get("isAdmin"),
        is_plan_admin=given.get("isPlanAdmin"),
        only_sees_readable=given.get("onlySeesReadable"),
    )


async def assign_plan(
    call: Call,
    instance_id: int,
    user_id: int,
    plan_id: int,
    last_day: str | None,
    name: str | None = None,
    *,
    keeps_end: bool = False,
) -> int:
    """Give a user a plan from today on, by the database's clock and in UTC.

    Args:
        last_day: YYYY-MM-DD; None for the plan's own duration.
        name: what the plan is called for this user; None for its own name.
        keeps_end: whether the end of one that the user has, and that has not ended, stays unless there is a
            last_day.

    Returns:
        the id of the assignment; that of a user who has the plan already is kept, with its new end.

    Raises:
        Invalid: there is no such plan in the instance, or the day is over.
    """
    assigned = await call.db.one(
        "assign_plan",
        instance_id=instance_id,
        user_id=user_id,
        plan_id=plan_id,
        valid_to=date.fromisoformat(last_day) if last_day else None,
        name=name,
        keeps_end=keeps_end,
    )
    if assigned is None:
        raise Invalid.of([await _why_not(call.db, instance_id, plan_id)])
    if assigned["before"] != assigned["after"]:
        call.record(
            "user.updated", user_id, before={"plan": assigned["before"]}, after={"plan": assigned["after"]}
        )
    return int(assigned["id"])


async def _why_not(db: Connection, instance_id: int, plan_id: int) -> FieldError:
    if await db.one("get_plan", instance_id=instance_id, plan_id=plan_id) is None:
        return FieldError("planId", "is no plan of this instance")
    return FieldError("planValidTo", "must not lie in the past")
