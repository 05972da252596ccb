"""Plans of a store (seeds/003) and who has them."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from server.base.errors import Conflict, FieldError, Invalid, MemberForbidden, NotFound, ServiceError
from server.base.models import Params, Result, TenantParams
from server.directory import change
from server.directory.store import LastDay, PlanId, PlanName, assign_plan
from server.directory.users import ABSENT, Line, found
from server.methods.accounts import Id
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


def _currencies(prices: dict[str, int]) -> dict[str, int]:
    if any(not (len(code) == 3 and code.isascii() and code.isupper()) for code in prices):
        raise ValueError("must map codes of ISO 4217, such as USD, to amounts")
    return prices


Months = Annotated[int, Field(ge=1, le=1200)]
Prices = Annotated[
    dict[str, Annotated[int, Field(ge=0, lt=2**53)]],
    Field(max_length=200, json_schema_extra={"propertyNames": {"pattern": "^[A-Z]{3}$"}}),
    AfterValidator(_currencies),
]
Details = Annotated[str, Field(max_length=20_000)]


class PlanOptions(Params):
    """What belongs to reading and sales: kept, given back, and acted on by others."""

    recommended: bool = False
    # Not `private`, as the store's wire and the table have it: generated clients have it as a reserved word.
    isPrivate: bool = Field(False, description="Offered by direct link alone.")
    assignsCollections: bool = False
    concurrencyLimit: Annotated[int, Field(ge=1, le=999_999)] | None = None
    collections: Annotated[list[Line], Field(max_length=1000)] = Field(default_factory=list)
    downloadFiles: bool = False
    prices: Prices = Field(default_factory=dict, description="Currency -> cents.")
    freeTrial: bool = False
    freeTrialDays: Annotated[int, Field(ge=1, le=3650)] | None = Field(
        None, description="Needed where freeTrial is true."
    )


class CreatePlan(TenantParams, PlanOptions):
    """A new plan."""

    type: Literal["recurring", "prepaid"]
    name: PlanName
    details: Details = Field("", description="HTML, which nothing here renders.")
    duration: Months | None = Field(None, description="Months: of a prepaid plan, null for a recurring one.")


class Plan(Result):
    """A plan."""

    id: int
    type: str
    name: str
    details: str
    duration: int | None
    recommended: bool
    isPrivate: bool
    assignsCollections: bool
    concurrencyLimit: int | None
    collections: list[str]
    downloadFiles: bool
    prices: dict[str, int]
    freeTrial: bool
    freeTrialDays: int | None
    createdAt: int = Field(description="Unix seconds.")
    updatedAt: int = Field(description="Unix seconds.")


_OPTIONS: dict[str, Any] = {
    "recommended": False, "isPrivate": False, "assignsCollections": False, "concurrencyLimit": None,
    "collections": [], "downloadFiles": False, "prices": {}, "freeTrial": False, "freeTrialDays": None,
}  # fmt: skip
_PLAN = {
    "id": 1, "type": "prepaid", "name": "A year", "details": "", "duration": 12, **_OPTIONS,
    "createdAt": 1683471262, "updatedAt": 1683471262,
}  # fmt: skip
_COLUMNS = ("type", "name", "details", "duration")
# Option -> its name in the column `options`.
_STORED = {name: "private" if name == "isPrivate" else name for name in PlanOptions.model_fields}


def _shown(row: Any) -> dict[str, Any]:
    """A row of a plan as its result; options have the document's order whatever order they come in."""
    plan = dict(row)
    options, times = plan.pop("options"), {name: plan.pop(name) for name in ("createdAt", "updatedAt")}
    return plan | {name: options[stored] for name, stored in _STORED.items()} | times


def _checked(plan: BaseModel) -> dict[str, Any]:
    """The columns of a plan.

    Raises:
        Invalid: members that do not go with each other.
    """
    given: dict[str, Any] = plan.model_dump()
    failures = []
    if given["type"] == "prepaid" and given["duration"] is None:
        failures.append(FieldError("duration", "is required for a prepaid plan"))
    if given["type"] == "recurring" and given["duration"] is not None:
        failures.append(FieldError("duration", "must be null for a recurring plan"))
    if given["freeTrial"] and given["freeTrialDays"] is None:
        failures.append(FieldError("freeTrialDays", "is required for a free trial"))
    if failures:
        raise Invalid.of(failures)
    columns = {name: given[name] for name in _COLUMNS}
    return columns | {"options": {stored: given[name] for name, stored in _STORED.items()}}


@method(
    "createPlan",
    result=Plan,
    scope="plans:write",
    writes=True,
    examples=(
        Example(
            "A year, paid in advance",
            {"type": "prepaid", "name": "A year", "duration": 12, "prices": {"USD": 9900}},
            _PLAN | {"prices": {"USD": 9900}},
        ),
    ),
)
async def create_plan(call: Call, params: CreatePlan) -> Any:
    """Create a plan that users can be assigned."""
    row = await call.db.one("create_plan", instance_id=call.instance.id, **_checked(params))
    plan = _shown(found(row))
    call.audit_only(after=plan)
    return plan


class PlanRef(TenantParams):
    """A plan by its id."""

    id: PlanId


@method(
    "getPlan",
    result=Plan,
    scope="plans:read",
    writes=False,
    errors=(NotFound,),
    examples=(Example("A plan", {"id": 1}, _PLAN),),
)
async def get_plan(call: Call, params: PlanRef) -> Any:
    """Look at a plan."""
    return _shown(found(await call.db.one("get_plan", instance_id=call.instance.id, plan_id=params.id)))


class ListPlans(TenantParams):
    """Which plans, and which page of them."""

    query: Line = Field("", description="Part of the name, in any case.")
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    perPage: Annotated[int, Field(ge=1, le=100)] = 10


class PlanPage(Result):
    """A page of plans in the order of their ids."""

    plans: list[Plan]
    page: int
    perPage: int
    total: int


@method(
    "listPlans",
    result=PlanPage,
    scope="plans:read",
    writes=False,
    examples=(
        Example(
            "Part of a name", {"query": "year"}, {"plans": [_PLAN], "page": 1, "perPage": 10, "total": 1}
        ),
    ),
)
async def list_plans(call: Call, params: ListPlans) -> Any:
    """List the plans of an instance, page by page."""
    which = {"instance_id": call.instance.id, "name_part": params.query}
    rows = await call.db.all(
        "list_plans", **which, row_offset=(params.page - 1) * params.perPage, row_limit=params.perPage
    )
    total = await call.db.value("count_plans", **which)
    plans = [_shown(row) for row in rows]
    return {"plans": plans, "page": params.page, "perPage": params.perPage, "total": total}


class UpdatePlan(PlanRef):
    """What to change of a plan; what is left out stays as it is."""

    type: Literal["recurring", "prepaid"] = ABSENT
    name: PlanName = ABSENT
    details: Details = ABSENT
    duration: Months | None = None
    recommended: bool = ABSENT
    isPrivate: bool = ABSENT
    assignsCollections: bool = ABSENT
    concurrencyLimit: Annotated[int, Field(ge=1, le=999_999)] | None = None
    collections: Annotated[list[Line], Field(max_length=1000)] = ABSENT
    downloadFiles: bool = ABSENT
    prices: Prices = ABSENT
    freeTrial: bool = ABSENT
    freeTrialDays: Annotated[int, Field(ge=1, le=3650)] | None = None


@method(
    "updatePlan",
    scope="plans:write",
    writes=True,
    errors=(NotFound,),
    examples=(Example("Another name", {"id": 1, "name": "Twelve months"}, True),),
)
async def update_plan(call: Call, params: UpdatePlan) -> Literal[True]:
    """Change a plan. Those who have it keep the days that they were given."""
    ref = {"instance_id": call.instance.id, "plan_id": params.id}
    stored = dict(found(await call.db.one("hold_plan", **ref)))
    options = stored.pop("options")
    stored |= {name: options[there] for name, there in _STORED.items()}
    given = params.model_dump(exclude_unset=True, exclude={"id", "instance"})
    await call.db.run("change_plan", **ref, **_checked(CreatePlan(**stored | given)))
    plan = {"id": params.id}
    call.audit_only(before=plan | {name: stored[name] for name in given}, after=plan | given)
    return True


class AssignPlan(TenantParams):
    """Who gets which plan, and for how long."""

    userId: Id
    planId: PlanId
    planValidTo: LastDay | None = Field(
        None, description="The last day, YYYY-MM-DD in UTC; null: by the plan's duration, if it has one."
    )
    planName: PlanName | None = Field(None, description="What it is called for this user; null: as the plan.")


class OtherPlan(Result):
    """Another plan that a user has."""

    id: int = Field(description="Of the assignment.")
    planId: int


class AssignedPlan(Result):
    """A user's plan."""

    id: int = Field(description="Of the assignment.")
    others: list[OtherPlan] = Field(description="Plans that the user has, or will have, beside it.")


@method(
    "assignPlan",
    result=AssignedPlan,
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(
        Example(
            "Until a day", {"userId": 2, "planId": 1, "planValidTo": "2099-12-31"}, {"id": 1, "others": []}
        ),
    ),
)  # fmt: skip
async def assign_plan_to_user(call: Call, params: AssignPlan) -> Any:
    """Assign a plan to a user, from today on, beside the plans that it has.

    A user can have several plans, as the lists of the store show: the others stay, and the answer names them.
    changePlan puts a plan in their place. A user who has the plan already keeps it, with the new end, so that
    the same call can be sent again. When its last day is over a plan ends by itself. An administrator's
    needs the scope users:admin.
    """
    ref = {"instance_id": call.instance.id, "user_id": params.userId}
    access.require_user(call.caller, await change.hold_user(call, user_id=params.userId))
    assigned = await assign_plan(
        call, call.instance.id, params.userId, params.planId, params.planValidTo, params.planName
    )
    held = await call.db.all("list_active_plans", **ref)
    others = [{"id": row["id"], "planId": row["plan_id"]} for row in held if row["id"] != assigned]
    return {"id": assigned, "others": others}


class ChangePlan(AssignPlan):
    """Who gets which plan instead of the one it has, and from when on."""

    validFrom: LastDay | None = Field(
        None, description="The first day, YYYY-MM-DD in UTC; null: today, at once."
    )


class ChangedPlan(Result):
    """A user's plan, and those that it replaces."""

    id: int = Field(description="Of the assignment.")
    ended: list[int] = Field(description="The assignments that end, or do not begin, for it.")


@method(
    "changePlan",
    result=ChangedPlan,
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden, "plan_overlaps"),
    examples=(
        Example("At once", {"userId": 2, "planId": 1}, {"id": 1, "ended": []}),
        Example(
            "From a day on", {"userId": 2, "planId": 1, "validFrom": "2099-01-01"}, {"id": 1, "ended": []}
        ),
    ),
)  # fmt: skip
async def change_plan(call: Call, params: ChangePlan) -> Any:
    """Give a user a plan instead of all others that it has: from now, or from a day.

    The others end at once, or with the day before; what was to begin later does not begin. Until that day the
    new plan is scheduled. A user who has the plan already keeps it, with the new end. Each plan that ends and
    the one that begins is told as user.updated. An administrator's need the scope users:admin.
    """
    ref = {"instance_id": call.instance.id, "user_id": params.userId}
    access.require_user(call.caller, await change.hold_user(call, user_id=params.userId))
    first, last = _day(params.validFrom), _day(params.planValidTo)
    row = await call.db.one(
        "switch_plan", **ref, plan_id=params.planId, name=params.planName, from_day=first, valid_to=last
    )
    if row is None:
        raise await _why_not_changed(call, params.planId, first, last)
    for gone in row["ended"]:
        _record(call, params.userId, gone)
    _record(call, params.userId, row)
    return {"id": row["id"], "ended": [gone["id"] for gone in row["ended"]]}


def _record(call: Call, user_id: int, change: Any) -> None:
    """Note what became of a user's plan; null: it had none, or has it no more."""
    before, after = change["before"], change["after"]
    if before != after:
        call.emit("user.updated", user_id, before={"plan": before}, after={"plan": after})


def _day(text: str | None) -> date | None:
    return None if text is None else date.fromisoformat(text)


async def _why_not_changed(
    call: Call, plan_id: int, from_day: date | None, last_day: date | None
) -> ServiceError:
    if await call.db.one("get_plan", instance_id=call.instance.id, plan_id=plan_id) is None:
        return Invalid.of([FieldError("planId", "is no plan of this instance")])
    if from_day is not None and await call.db.value("is_over", last_day=from_day):
        return Invalid.of([FieldError("validFrom", "must not lie in the past")])
    if last_day is not None and from_day is not None and last_day < from_day:
        return Invalid.of([FieldError("planValidTo", "must not lie before validFrom")])
    if last_day is not None and await call.db.value("is_over", last_day=last_day):
        return Invalid.of([FieldError("planValidTo", "must not lie in the past")])
    message = "the user has this plan until before that day: change to it again once it has ended"
    return Conflict(message, code="plan_overlaps", fields=[FieldError("planId", message)])


class UnassignPlan(TenantParams):
    """Whose plan ends, and when."""

    userId: Id
    planId: PlanId
    lastDay: LastDay | None = Field(
        None,
        description="YYYY-MM-DD in UTC, from today to the plan's last day; null: it ends at once.",
    )


@method(
    "unassignPlan",
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(
        Example("At once", {"userId": 1, "planId": 1}, True),
        Example("With a day", {"userId": 1, "planId": 1, "lastDay": "2099-12-31"}, True),
    ),
)
async def unassign_plan(call: Call, params: UnassignPlan) -> Literal[True]:
    """End a plan that a user has, at once or with a day. One that has not begun by then is taken away.

    A lastDay after the plan's own last day is refused: assignPlan gives a plan a later end. An
    administrator's needs the scope users:admin.
    """
    ref = {"instance_id": call.instance.id, "user_id": params.userId}
    access.require_user(call.caller, await change.hold_user(call, user_id=params.userId))
    last_day = _day(params.lastDay)
    ended = await call.db.one("end_plan", **ref, plan_id=params.planId, last_day=last_day)
    if ended is None:
        if last_day is not None and await call.db.value("is_over", last_day=last_day):
            raise Invalid.of([FieldError("lastDay", "must not lie in the past")])
        message = "the user does not have this plan"
        raise NotFound(f"not found: {message}", fields=[FieldError("planId", message)])
    if ended["is_later"]:
        problem = f"must not be later than the plan's last day, {ended['before']['validTo']}"
        raise Invalid.of([FieldError("lastDay", problem)])
    _record(call, params.userId, ended)
    return True
