"""Plans of a store (seeds/003) and their assignments to users."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from server.base.errors import Conflict, FieldError, Invalid, MemberForbidden, NotFound, ServiceError
from server.base.models import Id, Params, Result, TenantParams
from server.directory import change
from server.directory.plans import (
    NO_PLAN,
    PLAN_IS_OVER,
    LastDay,
    PlanName,
    assign_plans,
    is_over,
)
from server.directory.rows import Row
from server.directory.users import ABSENT, Line, found
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
ConcurrencyLimit = Annotated[int, Field(ge=1, le=999_999)]
Collections = Annotated[list[Line], Field(max_length=1000)]
TrialDays = Annotated[int, Field(ge=1, le=3650)]


class PlanOptions(Params):
    """Options of reading and sales. They are only stored and returned here."""

    recommended: bool = False
    # Not `private`, as in the store's wire and the table: a reserved word in generated clients.
    isPrivate: bool = Field(False, description="Offered by direct link only.")
    assignsCollections: bool = False
    concurrencyLimit: ConcurrencyLimit | None = None
    collections: Collections = Field(default_factory=list)
    downloadFiles: bool = False
    prices: Prices = Field(default_factory=dict, description="Currency -> cents.")
    freeTrial: bool = False
    freeTrialDays: TrialDays | None = Field(None, description="Required if freeTrial is true.")


class CreatePlan(TenantParams, PlanOptions):
    """A new plan."""

    type: Literal["recurring", "prepaid"]
    name: PlanName
    details: Details = Field("", description="HTML, not rendered here.")
    duration: Months | None = Field(None, description="Months of a prepaid plan; null for a recurring one.")


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
    """The result for a row of a plan, with the options in the order of the document."""
    plan = dict(row)
    options, times = plan.pop("options"), {name: plan.pop(name) for name in ("createdAt", "updatedAt")}
    return plan | {name: options[stored] for name, stored in _STORED.items()} | times


def _checked(plan: BaseModel) -> dict[str, Any]:
    """The columns of a plan.

    Raises:
        Invalid: members that contradict each other.
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
    examples=(
        Example(
            "A year, paid in advance",
            {"type": "prepaid", "name": "A year", "duration": 12, "prices": {"USD": 9900}},
            _PLAN | {"prices": {"USD": 9900}},
        ),
    ),
)
async def create_plan(call: Call, params: CreatePlan) -> Any:
    """Create a plan."""
    row = await call.db.one("create_plan", instance_id=call.instance.id, **_checked(params))
    plan = _shown(found(row))
    call.audit_only(after=plan)
    return plan


class PlanRef(TenantParams):
    """A plan by its id."""

    id: Id


@method(
    "getPlan",
    result=Plan,
    scope="plans:read",
    errors=(NotFound,),
    examples=(Example("A plan", {"id": 1}, _PLAN),),
)
async def get_plan(call: Call, params: PlanRef) -> Any:
    """Look up a plan."""
    return _shown(found(await call.db.one("get_plan", instance_id=call.instance.id, plan_id=params.id)))


class ListPlans(TenantParams):
    """A filter and a page."""

    query: Line = Field("", description="Part of the name, in any case.")
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    perPage: Annotated[int, Field(ge=1, le=100)] = 10


class PlanPage(Result):
    """A page of plans, by id."""

    plans: list[Plan]
    page: int
    perPage: int
    total: int


@method(
    "listPlans",
    result=PlanPage,
    scope="plans:read",
    examples=(
        Example(
            "Part of a name", {"query": "year"}, {"plans": [_PLAN], "page": 1, "perPage": 10, "total": 1}
        ),
    ),
)
async def list_plans(call: Call, params: ListPlans) -> Any:
    """List the plans of an instance, by page number."""
    which = {"instance_id": call.instance.id, "name_part": params.query}
    rows = await call.db.all(
        "list_plans", **which, row_offset=(params.page - 1) * params.perPage, row_limit=params.perPage
    )
    total = await call.db.value("count_plans", **which)
    plans = [_shown(row) for row in rows]
    return {"plans": plans, "page": params.page, "perPage": params.perPage, "total": total}


class UpdatePlan(PlanRef):
    """Changes of a plan. Members left out stay as they are."""

    type: Literal["recurring", "prepaid"] = ABSENT
    name: PlanName = ABSENT
    details: Details = ABSENT
    duration: Months | None = None
    recommended: bool = ABSENT
    isPrivate: bool = ABSENT
    assignsCollections: bool = ABSENT
    concurrencyLimit: ConcurrencyLimit | None = None
    collections: Collections = ABSENT
    downloadFiles: bool = ABSENT
    prices: Prices = ABSENT
    freeTrial: bool = ABSENT
    freeTrialDays: TrialDays | None = None


@method(
    "updatePlan",
    scope="plans:write",
    errors=(NotFound,),
    examples=(Example("Another name", {"id": 1, "name": "Twelve months"}, True),),
)
async def update_plan(call: Call, params: UpdatePlan) -> Literal[True]:
    """Change a plan. Existing assignments keep their days."""
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
    """A user, a plan and its last day."""

    userId: Id
    planId: Id
    planValidTo: LastDay | None = Field(
        None, description="Last day, YYYY-MM-DD in UTC; null: by the plan's duration, if it has one."
    )
    planName: PlanName | None = Field(None, description="Name for this user only; null: that of the plan.")


class OtherPlan(Result):
    """Another plan of the user."""

    id: int = Field(description="Id of the assignment.")
    planId: int


class AssignedPlan(Result):
    """The assignment, and other plans of the user."""

    id: int = Field(description="Id of the assignment.")
    others: list[OtherPlan] = Field(description="Its other plans, active or scheduled.")


@method(
    "assignPlan",
    result=AssignedPlan,
    scope="users:write",
    errors=(NotFound, MemberForbidden),
    examples=(
        Example(
            "Until a day", {"userId": 2, "planId": 1, "planValidTo": "2099-12-31"}, {"id": 1, "others": []}
        ),
    ),
)  # fmt: skip
async def assign_plan_to_user(call: Call, params: AssignPlan) -> Any:
    """Assign a plan to a user from today on, in addition to its other plans.

    The result lists the other plans; changePlan replaces them. A user that already has the plan keeps it with
    the new end, so the call can be repeated. A plan ends by itself after its last day. For an administrator,
    needs the scope users:admin.
    """
    user = await change.hold_user(call, user_id=params.userId)
    plan = {params.userId: (params.planId, params.planValidTo)}
    assigned = (await assign_plans(call, plan, name=params.planName))[params.userId]
    _require_user(call, user)
    held = await call.db.all("list_active_plans", instance_id=call.instance.id, user_id=params.userId)
    others = [{"id": row["id"], "planId": row["plan_id"]} for row in held if row["id"] != assigned]
    return {"id": assigned, "others": others}


class ChangePlan(AssignPlan):
    """A user, its new plan, and the first and last day."""

    validFrom: LastDay | None = Field(None, description="First day, YYYY-MM-DD in UTC; null: today.")


class ChangedPlan(Result):
    """The new assignment, and those that it replaces."""

    id: int = Field(description="Id of the assignment.")
    ended: list[int] = Field(description="Ids of the assignments that end or are cancelled.")


@method(
    "changePlan",
    result=ChangedPlan,
    scope="users:write",
    errors=(NotFound, MemberForbidden, "plan_overlaps"),
    examples=(
        Example("At once", {"userId": 2, "planId": 1}, {"id": 1, "ended": []}),
        Example(
            "From a day on", {"userId": 2, "planId": 1, "validFrom": "2099-01-01"}, {"id": 1, "ended": []}
        ),
    ),
)  # fmt: skip
async def change_plan(call: Call, params: ChangePlan) -> Any:
    """Replace all plans of a user by one plan, now or from a day on.

    The other plans end at once, or the day before; plans that would begin later are cancelled. Until that day
    the new plan is scheduled. A user that already has the plan keeps it with the new end. Every plan that
    ends or begins emits a user.updated event. For an administrator, needs the scope users:admin.
    """
    user = await change.hold_user(call, user_id=params.userId)
    row = await call.db.one(
        "switch_plan",
        instance_id=call.instance.id,
        user_id=params.userId,
        plan_id=params.planId,
        name=params.planName,
        from_day=_day(params.validFrom),
        valid_to=_day(params.planValidTo),
    )
    if row is None:
        raise await _why_not_changed(call, params)
    for gone in row["ended"]:
        _emit(call, params.userId, gone)
    _emit(call, params.userId, row)
    _require_user(call, user)
    return {"id": row["id"], "ended": [gone["id"] for gone in row["ended"]]}


def _require_user(call: Call, user: Row) -> None:
    """Raise MemberForbidden if the call changed a plan of a user that the caller may not change."""
    if call.changes:
        access.require_user(call.caller, user)


def _emit(call: Call, user_id: int, row: Any) -> None:
    """Emit an event if a plan of a user changed from `before` to `after`; null: no plan."""
    before, after = row["before"], row["after"]
    if before != after:
        call.emit("user.updated", user_id, before={"plan": before}, after={"plan": after})


def _day(text: str | None) -> date | None:
    return None if text is None else date.fromisoformat(text)


async def _why_not_changed(call: Call, params: ChangePlan) -> ServiceError:
    first, last = params.validFrom, params.planValidTo
    if await call.db.one("get_plan", instance_id=call.instance.id, plan_id=params.planId) is None:
        return Invalid.of([NO_PLAN])
    if await is_over(call.db, first):
        return Invalid.of([PLAN_IS_OVER._replace(field="validFrom")])
    if last is not None and first is not None and last < first:
        return Invalid.of([FieldError("planValidTo", "must not lie before validFrom")])
    if await is_over(call.db, last):
        return Invalid.of([PLAN_IS_OVER])
    message = "the user has this plan until before that day: change to it again once it has ended"
    return Conflict(message, code="plan_overlaps", fields=[FieldError("planId", message)])


class UnassignPlan(TenantParams):
    """A user, its plan and the new last day."""

    userId: Id
    planId: Id
    lastDay: LastDay | None = Field(
        None,
        description="YYYY-MM-DD in UTC, from today to the plan's last day; null: ends at once.",
    )


@method(
    "unassignPlan",
    scope="users:write",
    errors=(NotFound, MemberForbidden),
    examples=(
        Example("At once", {"userId": 1, "planId": 1}, True),
        Example("With a day", {"userId": 1, "planId": 1, "lastDay": "2099-12-31"}, True),
    ),
)
async def unassign_plan(call: Call, params: UnassignPlan) -> Literal[True]:
    """End a plan of a user, at once or on a day. A plan that begins later is cancelled.

    A lastDay after the plan's last day is refused; use assignPlan for a later end. For an administrator,
    needs the scope users:admin.
    """
    user = await change.hold_user(call, user_id=params.userId)
    ended = await call.db.one(
        "end_plan",
        instance_id=call.instance.id,
        user_id=params.userId,
        plan_id=params.planId,
        last_day=_day(params.lastDay),
    )
    if ended is None:
        if await is_over(call.db, params.lastDay):
            raise Invalid.of([PLAN_IS_OVER._replace(field="lastDay")])
        message = "the user does not have this plan"
        raise NotFound(f"not found: {message}", fields=[FieldError("planId", message)])
    if ended["is_later"]:
        problem = f"must not be later than the plan's last day, {ended['before']['validTo']}"
        raise Invalid.of([FieldError("lastDay", problem)])
    _emit(call, params.userId, ended)
    _require_user(call, user)
    return True
