"""Users as a store (seeds/003) knows them: by id or external id, in pages, deactivated, logged out."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from server.base.errors import DUPLICATES, FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import SECRET, Result, TenantParams
from server.base.pages import After, Next, number_below, page, parts_of
from server.directory import change
from server.directory.creation import create
from server.directory.many import Batch
from server.directory.rows import Edit
from server.directory.rules import hashed
from server.directory.store import (
    ExternalId,
    LastDay,
    PlanId,
    PlanName,
    SessionsLimit,
    assign_plan,
    needs_plan,
)
from server.directory.users import (
    ABSENT,
    CreateUser,
    Email,
    NewEmail,
    UserId,
    email_key,
    found,
)
from server.methods.accounts import Id
from server.methods.registry import Example, method
from server.outside.pictures import avatar_url
from server.tenants import access
from server.tenants.call import Call

DEEPEST = 1_000_000
"""How many users a list can be turned over, page by page: a page is counted off from the first user on."""

NewPassword = Annotated[str, Field(min_length=8, max_length=255), SECRET]


class HeldPlan(Result):
    """A plan that a user has or had."""

    id: int = Field(description="Of the assignment.")
    planId: int
    name: str
    validFrom: str = Field(description="YYYY-MM-DD, UTC.")
    validTo: str | None = Field(description="The last day; null: no end.")
    state: Literal["scheduled", "active", "ended"]


class StoreUser(Result):
    """A user as the store shows it."""

    id: int
    uuid: str
    email: str
    externalId: str | None
    displayName: str
    picture: str = Field(description="The address of its avatar; empty for none.")
    isAdmin: bool
    isPlanAdmin: bool
    onlySeesReadable: bool
    sessionsLimit: int | None
    createdAt: int = Field(description="Unix seconds.")
    updatedAt: int = Field(description="Unix seconds.")
    deactivatedAt: int | None = Field(description="Unix seconds; since when isActive is false.")
    plansCount: int
    plans: list[HeldPlan] = Field(description="The newest hundred.")


_USER = {
    "id": 2, "uuid": "af5af4f9-9b8d-4d79-b162-0cec4279cae5", "email": "jane@example.com", "externalId": None,
    "displayName": "Jane Doe", "picture": "", "isAdmin": False, "isPlanAdmin": False,
    "onlySeesReadable": False, "sessionsLimit": None, "createdAt": 1683471262, "updatedAt": 1683471262,
    "deactivatedAt": None, "plansCount": 0, "plans": [],
}  # fmt: skip
_HELD = ("id", "planId", "name", "validFrom", "validTo", "state")


async def _read(call: Call, ids: list[int]) -> list[dict[str, Any]]:
    """Users by their ids, in the order of these; those who are gone are left out."""
    rows = await call.db.all("read_store_users", instance_id=call.instance.id, ids=ids)
    return [
        dict(row)
        | {
            "picture": avatar_url(call.settings, row["picture"]),
            "plans": [{name: plan[name] for name in _HELD} for plan in row["plans"]],
        }
        for row in rows
    ]


async def _find(
    call: Call, user_id: int | None = None, email: str | None = None, external_id: str | None = None
) -> int | None:
    """The id of a living user by whichever is given, or None."""
    found_id: int | None = await call.db.value(
        "find_store_user",
        instance_id=call.instance.id,
        user_id=user_id,
        email_key=None if email is None else email_key(email),
        external_id=external_id,
    )
    return found_id


class StoreUserRef(TenantParams):
    """A user by whichever is given; the id goes before the e-mail, and that before the external id."""

    id: Id | None = None
    email: Email | None = None
    externalId: ExternalId | None = None

    @model_validator(mode="after")
    def _one_at_least(self) -> "StoreUserRef":
        if self.id is None and self.email is None and self.externalId is None:
            raise ValueError("give id, email or externalId")
        return self


@method(
    "getStoreUser",
    result=StoreUser,
    scope="users:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example("By id", {"id": 2}, _USER),
        Example("By e-mail", {"email": "jane@example.com"}, _USER),
    ),
)
async def get_store_user(call: Call, params: StoreUserRef) -> Any:
    """A user, deactivated or not, as the store shows it."""
    user_id = found(await _find(call, params.id, params.email, params.externalId))
    users = await _read(call, [user_id])
    return found(users[0] if users else None)


_QUERY: dict[str, JsonValue] = {"pattern": r"^(deactivated|admins|[^\u0000]*@[^\u0000]*)$"}


class ListStoreUsers(TenantParams):
    """Which users, and which page of them."""

    query: Annotated[str, Field(max_length=254, json_schema_extra=_QUERY)] | None = Field(
        None,
        description="deactivated, admins, or an e-mail; null: all who are not deactivated.",
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
"""What list_store_users has pages of; anything else is an e-mail."""


class StoreUserPage(Result):
    """A page of users in the order of their ids."""

    users: list[StoreUser]
    page: int
    perPage: int
    total: int = Field(description="Of all pages.")


@method(
    "listStoreUsers",
    result=StoreUserPage,
    scope="users:read",
    writes=False,
    examples=(
        Example(
            "Nobody is deactivated",
            {"query": "deactivated"},
            {"users": [], "page": 1, "perPage": 10, "total": 0},
        ),
    ),
)
async def list_store_users(call: Call, params: ListStoreUsers) -> Any:
    """List users by number of page, in the order of their ids; deactivated ones only if asked for.

    A page past the end is empty. Pages begin within the first million users: listUsers goes further, and
    costs the same on every page.
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
    user_id = await _find(call, email=params.query)
    users = [] if user_id is None else await _read(call, [user_id])
    return shown | {"users": users if offset == 0 else [], "total": len(users)}


class StoreUserMembers(TenantParams):
    """What createStoreUser and updateStoreUser both take."""

    email: NewEmail
    externalId: ExternalId
    newPassword: NewPassword = ABSENT
    planId: PlanId | None = Field(None, description="A plan to assign.")
    planValidTo: LastDay | None = Field(None, description="Its last day, instead of its duration.")

    _plan_end = field_validator("planValidTo")(needs_plan)


class CreateStoreUser(StoreUserMembers):
    """A new user of a store; without newPassword it cannot log in until it gets one."""

    sessionsLimit: SessionsLimit | None = None
    isAdmin: bool = Field(False, description="Administrator; true needs the scope users:admin.")
    isPlanAdmin: bool = False
    onlySeesReadable: bool = False


@method(
    "createStoreUser",
    result=StoreUser,
    scope="users:write",
    writes=True,
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
    """Create a user, as createUser does, that another system knows by an id of its own."""
    user = CreateUser(
        email=params.email, isAdmin=params.isAdmin, externalId=params.externalId,
        sessionsLimit=params.sessionsLimit, isPlanAdmin=params.isPlanAdmin,
        onlySeesReadable=params.onlySeesReadable, planId=params.planId, planValidTo=params.planValidTo,
    )  # fmt: skip
    created = (await create(call, Batch.one(user, password_hash)))[0]
    return (await _read(call, [created["id"]]))[0]


class UpdateStoreUser(StoreUserMembers):
    """What a user is to be; of what is not required, the rest stays as it is."""

    id: Id
    onlySeesReadable: bool
    sessionsLimit: SessionsLimit | None = Field(None, description="Null: no limit; left out: as it is.")
    isAdmin: bool = Field(ABSENT, description="Another value than before needs the scope users:admin.")
    isPlanAdmin: bool = ABSENT
    planName: PlanName | None = Field(
        None, description="What its newest plan, which may be that of planId, is called for this user."
    )


@method(
    "updateStoreUser",
    scope="users:write",
    writes=True,
    prepare=hashed("newPassword"),
    errors=(NotFound, MemberForbidden, *DUPLICATES),
    examples=(
        Example(
            "Another e-mail",
            {"id": 2, "email": "jane.roe@example.com", "externalId": "shop-2", "onlySeesReadable": True},
            True,
        ),
    ),
)
async def update_store_user(call: Call, params: UpdateStoreUser, password_hash: str | None) -> Literal[True]:
    """Change a user, deactivated or not.

    A new password ends its sessions. A lower sessionsLimit shows at its next login. The planId of a plan that
    it has already changes nothing without planValidTo: the same call can be sent again on another day.
    To change an administrator needs the scope users:admin.
    """
    user = await change.hold_user(call, user_id=params.id)
    after = change.changed(user, params.model_dump(exclude_unset=True))
    await change.change(call, Edit(user, change.with_email(after, params.email), password_hash))
    if params.planId is not None:
        await assign_plan(
            call, call.instance.id, params.id, params.planId, params.planValidTo, keeps_end=True
        )
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
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Deactivate", {"id": 2}, True),),
)
async def deactivate_user_by_id(call: Call, params: UserId) -> Literal[True]:
    """Suspend a user, as isActive false does: it cannot log in and its sessions end.

    An administrator's suspension needs the scope users:admin, and so does its end.
    """
    return await _set_active(call, params.id, False)


@method(
    "reactivateUserById",
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Re-activate", {"id": 2}, True),),
)
async def reactivate_user_by_id(call: Call, params: UserId) -> Literal[True]:
    """Let a suspended user log in again."""
    return await _set_active(call, params.id, True)


@method(
    "forceLogoutById",
    scope="sessions:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("End all sessions", {"id": 2}, True),),
)
async def force_logout_by_id(call: Call, params: StoreUserRef) -> Literal[True]:
    """End every session of a user, whether or not there is any.

    An administrator's needs the scope users:admin.
    """
    user_id = found(await _find(call, params.id, params.email, params.externalId))
    user = await change.hold_user(call, user_id=user_id)
    await change.change(call, Edit(user, user, logs_out=True))
    return True


class ListAuthSessions(TenantParams):
    """Whose sessions, and from where on."""

    userId: Id | None = Field(None, description="Only this user's.")
    externalId: ExternalId | None = Field(None, description="Only this user's, by its external id.")
    after: After = None
    limit: Annotated[int, Field(ge=1, le=200)] = 100


class AuthSession(Result):
    """A session, and whose it is."""

    id: int
    userId: int
    email: str
    externalId: str | None
    createdAt: int = Field(description="Unix seconds.")
    expiresAt: int = Field(description="Unix seconds.")


class AuthSessionPage(Result):
    """A page of sessions, the newest first."""

    sessions: list[AuthSession]
    next: Next


@method(
    "listAuthSessions",
    result=AuthSessionPage,
    scope="sessions:read",
    writes=False,
    examples=(
        Example(
            "One living session", {"userId": 2},
            {"sessions": [{"id": 1, "userId": 2, "email": "jane@example.com", "externalId": None,
                           "createdAt": 1683471262, "expiresAt": 1683557662}],
             "next": None},
        ),
    ),
)  # fmt: skip
async def list_auth_sessions(call: Call, params: ListAuthSessions) -> Any:
    """List the living sessions of an instance, or of one user; of nobody, where there is no such user."""
    before = parts_of(params.after, number_below(2**63))[0] if params.after else 2**63 - 1
    user_id = params.userId
    if params.externalId is not None:
        by_external_id = await _find(call, external_id=params.externalId)
        if by_external_id is None or user_id not in (None, by_external_id):
            return {"sessions": [], "next": None}
        user_id = by_external_id
    rows = await call.db.all(
        "list_auth_sessions",
        instance_id=call.instance.id,
        user_id=user_id,
        before=before,
        row_limit=params.limit + 1,
    )
    shown, after = page(rows, params.limit, lambda row: str(row["id"]))
    return {"sessions": [dict(row) for row in shown], "next": after}


class SessionId(TenantParams):
    """A session by its id."""

    id: Id


@method(
    "endSession",
    scope="sessions:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("End a session", {"id": 1}, True),),
)
async def end_session(call: Call, params: SessionId) -> Literal[True]:
    """End one session by its id; an administrator's needs the scope users:admin."""
    session = found(
        await call.db.one("end_session_by_id", instance_id=call.instance.id, session_id=params.id)
    )
    access.require_user(call.caller, session)
    call.emit("session.revoked", session["user_id"], before={"sessionId": session["id"]})
    return True
