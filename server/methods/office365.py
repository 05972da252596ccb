"""Users that are also created in their instance's Microsoft directory (CreateInOffice365 of seeds/002)."""

from typing import Any, Literal

from pydantic import Field

from server.base.errors import Conflict, FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import Result
from server.directory import change, office365
from server.directory.names import has_email
from server.directory.users import UserRef, email_key, found
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


class Office365State(Result):
    """What came of creating a user in the Microsoft directory."""

    state: Literal["pending", "done", "failed"]
    objectId: str | None = Field(description="Microsoft's id, once it is done.")
    error: str | None = Field(description="What the last try met, in Microsoft's words.")
    updatedAt: int = Field(description="Unix seconds.")


@method(
    "getOffice365State",
    result=Office365State,
    scope="users:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example(
            "It failed",
            {"email": "one@example.com"},
            {"state": "failed", "objectId": None, "error": "Authorization_RequestDenied",
             "updatedAt": 1683471262},
        ),
    ),
)  # fmt: skip
async def get_office365_state(call: Call, params: UserRef) -> Any:
    """Look how creating a user in the Microsoft directory went (createUser with createInOffice365).

    pending while it is tried, again and again for five hours; then done or failed. With the error
    instance_suspended it waits, and goes on within an hour after the instance is reactivated. With the error
    name_taken the directory has somebody else of this name, such as another of our users whose address
    differs in the domain alone where the settings name one. A user for whom it was never asked is not found.
    """
    key = email_key(params.email)
    return dict(found(await call.db.one("get_office365_state", instance_id=call.instance.id, email_key=key)))


@method(
    "createInOffice365",
    scope="users:write",
    writes=True,
    errors=(NotFound, MemberForbidden, "no_credentials", "already_asked"),
    examples=(Example("Once more, after a failure", {"email": "one@example.com"}, True),),
)
async def create_in_office365(call: Call, params: UserRef) -> Literal[True]:
    """Have an existing user created in the Microsoft directory, for the first time or after a failure.

    The user gets a random password there, which nobody knows: an administrator of the directory, or its
    self-service, gives it one. An administrator's needs the scope users:admin.
    """
    user = await change.hold_user(call, email=params.email)
    access.require_user(call.caller, user)
    if office365.credentials_of(call.instance.settings) is None:
        raise Conflict("the instance has no Microsoft Graph credentials (office365)", code="no_credentials")
    if not has_email(user["email"]):
        raise Invalid.of([FieldError("email", "is a login, and the user has no e-mail")])
    if not await office365.begin(call, user["id"]):
        raise Conflict("this is under way or done already", code="already_asked")
    return True
