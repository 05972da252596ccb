"""Users of a store (seeds/003): look up, list, create, change, deactivate."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from server.base.errors import DUPLICATES, FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import SECRET, Id, Result, TenantParams
from server.directory import change
from server.directory.creation import create
from server.directory.many import Batch
from server.directory.plans import LastDay, PlanName, assign_plans, needs_plan
from server.directory.rows import Edit
from server.directory.rules import hashed
from server.directory.users import (
    ABSENT,
    CreateUser,
    Email,
    ExternalId,
    NewEmail,
    SessionsLimit,
    UserId,
    email_key,
    found,
)
from server.methods.registry import Example, method
from server.outside.pictures import avatar_url
from server.tenants import access
from server.tenants.call import Call

DEEPEST = 1_000_000
"""Highest offset of listStoreUsers: Postgres reads and drops the rows before a page."""

NewPassword = Annotated[str, Field(min_length=8, max_length=255), SECRET]


class HeldPlan(Result):
    """A plan that a user has or had."""

    id: int = Field(description="Id of the assignment.")
    planId: int
    name: str
    validFrom: str = Field(description="YYYY-MM-DD, UTC.")
    validTo: str | None = Field(description="Last day; null: no end.")
    state: Literal["scheduled", "active", "ended"]


class StoreUser(Result):
    """A user, in the store's form."""

    id: int
    uuid: str
    email: str
    externalId: str | None
    displayName: str
    picture: str = Field(description="URL of the avatar, or empty.")
    isAdmin: bool
    isPlanAdmin: bool
    onlySeesReadable: bool
    sessionsLimit: int | None
    createdAt: int = Field(description="Unix seconds.")
    updatedAt: int = Field(description="Unix seconds.")
    deactivatedAt: int | None = Field(description="Unix seconds; null: active.")
    plansCount: int
    plans: list[HeldPlan] = Field(description="The newest 100.")


_USER = {
    "id": 2, "uuid": "af5af4f9-9b8d-4d79-b162-0cec4279cae5", "email": "jane@example.com", "externalId": None,
    "displayName": "Jane Doe", "picture": "", "isAdmin": False, "isPlanAdmin": False,
    "onlySeesReadable": False, "sessionsLimit": None, "createdAt": 1683471262, "updatedAt": 1683471262,
    "deactivatedAt": None, "plansCount": 0, "plans": [],
}  # fmt: skip


async def _read(call: Call, ids: list[int]) -> list[dict[str, Any]]:
    """Users by their ids, in this order, without deleted ones."""
    rows = await call.db.all("read_store_users", instance_id=call.instance.id, ids=ids)
    return [
        dict(row)
        | {
            "picture": avatar_url(call.settings, row["picture"]),
            "plans": [{name: plan[name] for name in HeldPlan.model_fields} for plan in row["plans"]],
        }
        for row in rows
    ]


async def find_id(
    call: Call, *, user_id: int | None = None, email: str | None = None, external_id: str | None = None
) -> int | None:
    """The id of a user that is not deleted, or None. The id takes precedence, then the e-mail."""
    found_id: int | None = await call.db.value(
        "find_store_user",
        instance_id=call.instance.id,
        user_id=user_id,
        email_key=None if email is None else email_key(email),
        external_id=external_id,
    )
    return found_id


class StoreUserRef(TenantParams):
    """A user by id, email or externalId. The id takes precedence, then the e-mail."""

    id: Id | None = None
    email: Email | None = None
    externalId: ExternalId | None = None

    @model_validator(mode="after")
    def _one_at_least(self) -> "StoreUserRef":
        if self.id is None and self.email is None and self.externalId is None:
            raise ValueError("give id, email or externalId")
        return self

    async def find_id(self, call: Call) -> int:
        """The id of the user.

        Raises:
            NotFound: no such user, or it is deleted.
        """
        user_id: int = found(
            await find_id(call, user_id=self.id, email=self.email, external_id=self.externalId)
        )
        return user_id


@method(
    "getStoreUser",
    result=StoreUser,
    scope="users:read",
    errors=(NotFound,),
    examples=(
        Example("By id", {"id": 2}, _USER),
        Example("By e-mail", {"email": "jane@example.com"}, _USER),
    ),
)
async def get_store_user(call: Call, params: StoreUserRef) -> Any:
    """Look up a user, active or deactivated."""
    users = await _read(call, [await params.find_id(call)])
    return found(users[0] if users else None)


_QUERY: dict[str, JsonValue] = {"pattern": r"^(deactivated|admins|[^\u0000]*@[^\u0000]*)$"}


class ListStoreUsers(TenantParams):
    """A filter and a page."""

    query: Annotated[str, Field(max_length=254, json_schema_extra=_QUERY)] | None = Field(
        None,
        description="deactivated, admins, or an e-mail; null: all active users.",
        examples=["deactivated"],
    )
    page: Annotated[int, Field(ge=1, le=DEEPEST)] = 1
    perPage: Annotated[int, Field(ge=1, le=100)] = 10

    @field_validator("query")
    @classmethod
    def _known(cls, query: str | None) -> str | None:
        if query not in _PAGES and ("@" not in query or "\0" in query):
            raise ValueError("must be deactivated, admins or an e-mail")
        return query


_PAGES = (None, "deactivated", "admins")
"""Filters of list_store_users; anything else is an e-mail."""


class StoreUserPage(Result):
    """A page of users, by id."""

    users: list[StoreUser]
    page: int
    perPage: int
    total: int = Field(description="Users on all pages.")


@method(
    "listStoreUsers",
    result=StoreUserPage,
    scope="users:read",
    examples=(
        Example(
            "No deactivated users",
            {"query": "deactivated"},
            {"users": [], "page": 1, "perPage": 10, "total": 0},
        ),
    ),
)
async def list_store_users(call: Call, params: ListStoreUsers) -> Any:
    """List users by page number, in the order of their ids; deactivated users only with that query.

    A page past the end is empty. Only the first million users can be listed. listUsers has no such limit, and
    its last page costs as much as its first.
    """
    offset = (params.page - 1) * params.perPage
    if offset >= DEEPEST:
        raise Invalid.of([FieldError("page", f"lies beyond the first {DEEPEST} users")])
    shown = {"page": params.page, "perPage": params.perPage}
    if params.query in _PAGES:
        page = found(
            await call.db.one(
                "page_store_users",
                instance_id=call.instance.id,
                query=params.query,
                row_offset=offset,
                row_limit=params.perPage,
            )
        )
        return shown | {"users": await _read(call, page["ids"]), "total": page["total"]}
    user_id = await find_id(call, email=params.query)
    users = [] if user_id is None else await _read(call, [user_id])
    return shown | {"users": users if offset == 0 else [], "total": len(users)}


class StoreUserMembers(TenantParams):
    """Params of both createStoreUser and updateStoreUser."""

    email: NewEmail
    externalId: ExternalId
    newPassword: NewPassword = ABSENT
    planId: Id | None = Field(None, description="Plan to assign.")
    planValidTo: LastDay | None = Field(None, description="Last day of the plan; null: by its duration.")

    _plan_end = field_validator("planValidTo")(needs_plan)


class CreateStoreUser(StoreUserMembers):
    """A new user of a store. Without newPassword it cannot log in until a password is set."""

    sessionsLimit: SessionsLimit | None = None
    isAdmin: bool = Field(False, description="Administrator; true needs the scope users:admin.")
    isPlanAdmin: bool = False
    onlySeesReadable: bool = False


@method(
    "createStoreUser",
    result=StoreUser,
    scope="users:write",
    prepare=hashed("newPassword"),
    member_scopes={"isAdmin": "users:admin"},
    errors=(*DUPLICATES, "seats_exhausted"),
    examples=(
        Example(
            "With a password",
            {"email": "ann@example.com", "externalId": "shop-1", "newPassword": "Abcd1234"},
            _USER | {"id": 6, "email": "ann@example.com", "externalId": "shop-1", "displayName": "ann"},
        ),
    ),
)
async def create_store_user(call: Call, params: CreateStoreUser, password_hash: str | None) -> Any:
    """Create a user with the externalId of another system, as createUser does."""
    user = CreateUser(**params.model_dump(exclude_unset=True, exclude={"instance", "newPassword"}))
    created = (await create(call, Batch.one(user, password_hash)))[0]
    return (await _read(call, [created["id"]]))[0]


class UpdateStoreUser(StoreUserMembers):
    """New values of a user. Optional members left out stay as they are."""

    id: Id
    onlySeesReadable: bool
    sessionsLimit: SessionsLimit | None = Field(None, description="Null: no limit; left out: unchanged.")
    isAdmin: bool = Field(ABSENT, description="A change needs the scope users:admin.")
    isPlanAdmin: bool = ABSENT
    planName: PlanName | None = Field(
        None, description="Name of the user's newest plan (of planId, if given), for this user only."
    )


@method(
    "updateStoreUser",
    scope="users:write",
    prepare=hashed("newPassword"),
    errors=(NotFound, MemberForbidden, *DUPLICATES),
    examples=(
        Example(
            "New e-mail",
            {"id": 2, "email": "jane.roe@example.com", "externalId": "shop-2", "onlySeesReadable": True},
            True,
        ),
    ),
)
async def update_store_user(call: Call, params: UpdateStoreUser, password_hash: str | None) -> Literal[True]:
    """Change a user, active or deactivated.

    A new password ends its sessions. A lower sessionsLimit takes effect at the next login. The planId of a
    plan that the user already has changes nothing without planValidTo, so the same call can be repeated on
    another day. For an administrator, needs the scope users:admin.
    """
    user = await change.hold_user(call, user_id=params.id)
    after = change.changed(user, params.model_dump(exclude_unset=True))
    await change.change(call, Edit(user, change.with_email(after, params.email), password_hash))
    if params.planId is not None:
        await assign_plans(call, {params.id: (params.planId, params.planValidTo)}, keeps_end=True)
    if params.planName is not None:
        named = await call.db.one(
            "name_newest_plan", instance_id=call.instance.id, user_id=params.id, name=params.planName
        )
        if named is not None and named["old_name"] != params.planName:
            plan = {"planId": named["plan_id"]}
            call.emit(
                "user.updated",
                params.id,
                before={"plan": plan | {"name": named["old_name"]}},
                after={"plan": plan | {"name": params.planName}},
            )
    if call.changes:
        access.require_user(call.caller, user)
    return True


async def _set_active(call: Call, user_id: int, is_active: bool) -> Literal[True]:
    user = await change.hold_user(call, user_id=user_id)
    await change.change(call, Edit(user, user | {"is_active": is_active}))
    return True


@method(
    "deactivateUserById",
    scope="users:write",
    errors=(NotFound, MemberForbidden),
    examples=(Example("Deactivate", {"id": 2}, True),),
)
async def deactivate_user_by_id(call: Call, params: UserId) -> Literal[True]:
    """Suspend a user, as isActive false does: it cannot log in, and its sessions end.

    For an administrator, needs the scope users:admin.
    """
    return await _set_active(call, params.id, False)


@method(
    "reactivateUserById",
    scope="users:write",
    errors=(NotFound, MemberForbidden),
    examples=(Example("Reactivate", {"id": 2}, True),),
)
async def reactivate_user_by_id(call: Call, params: UserId) -> Literal[True]:
    """Let a suspended user log in again.

    For an administrator, needs the scope users:admin.
    """
    return await _set_active(call, params.id, True)
