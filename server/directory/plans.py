"""Plans of users (seeds/003): their last days, and their assignment."""

from collections.abc import Mapping
from datetime import date
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from server.base.errors import FieldError, Invalid
from server.base.models import NO_CONTROLS, is_date, without_controls
from server.postgres.db import Connection
from server.tenants.call import Call


def _day(text: str) -> str:
    if not is_date(text):
        raise ValueError("must be a date such as 2024-02-29")
    return text


LastDay = Annotated[str, Field(max_length=10, json_schema_extra={"format": "date"}), AfterValidator(_day)]
PlanName = Annotated[
    str, Field(min_length=1, max_length=200, json_schema_extra=NO_CONTROLS), AfterValidator(without_controls)
]


NO_PLAN = FieldError("planId", "is no plan of this instance")
PLAN_IS_OVER = FieldError("planValidTo", "must not lie in the past")


async def is_over(db: Connection, day: str | None) -> bool:
    """Whether a day, YYYY-MM-DD, is past, in UTC by the database's clock; None is not."""
    return day is not None and bool(await db.value("is_over", last_day=date.fromisoformat(day)))


def needs_plan(day: str | None, info: ValidationInfo) -> str | None:
    """A validator of planValidTo, which needs a planId."""
    if day is not None and info.data.get("planId", day) is None:
        raise ValueError("needs a plan that it is the last day of")
    return day


async def assign_plans(
    call: Call,
    plans: Mapping[int, tuple[int, str | None]],
    *,
    name: str | None = None,
    keeps_end: bool = False,
) -> dict[int, int]:
    """Give users, who are held or new, a plan each from today on, by the database's clock and in UTC.

    Args:
        plans: by the id of the user: the id of the plan, and its last day, YYYY-MM-DD; None for the plan's
            own duration.
        name: what the plan is called for these users; None for its own name.
        keeps_end: without a last day, a plan that the user has and that has not ended keeps its end.

    Returns:
        by the id of the user: the id of the assignment. A user who has the plan keeps the assignment.

    Raises:
        Invalid: a plan does not exist in the instance, or a last day is over.
    """
    assigned = await call.db.all(
        "assign_plans",
        instance_id=call.instance.id,
        user_ids=list(plans),
        plan_ids=[plan_id for plan_id, _ in plans.values()],
        last_days=[last_day and date.fromisoformat(last_day) for _, last_day in plans.values()],
        name=name,
        keeps_end=keeps_end,
    )
    ids = {row["user_id"]: row["id"] for row in assigned}
    for user_id, (plan_id, _) in plans.items():
        if user_id not in ids:
            exists = await call.db.one("get_plan", instance_id=call.instance.id, plan_id=plan_id)
            raise Invalid.of([PLAN_IS_OVER if exists else NO_PLAN])
    for row in assigned:
        if row["before"] != row["after"]:
            call.emit(
                "user.updated", row["user_id"], before={"plan": row["before"]}, after={"plan": row["after"]}
            )
    return ids
