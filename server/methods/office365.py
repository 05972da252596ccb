"""Creating users in the Microsoft directory of an instance (CreateInOffice365 of seeds/002)."""

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
    """State of creating a user in the Microsoft directory."""

    state: Literal["pending", "done", "failed"]
    objectId: str | None = Field(description="Id in the Microsoft directory, if done.")
    error: str | None = Field(description="Error of the last attempt: a code, and Microsoft's message.")
    updatedAt: int = Field(description="Unix seconds.")


@method(
    "getOffice365State",
    result=Office365State,
    scope="users:read",
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
    """State of creating a user in the Microsoft directory (createUser with createInOffice365).

    pending: retried for up to five hours; then done or failed. Error instance_suspended: it continues within
    an hour after the instance is reactivated. Error name_taken: the directory has another user of this name;
    if the settings name a domain, this can be our user with the same local part. A user without a request to
    create it there is not found.
    """
    key = email_key(params.email)
    return dict(found(await call.db.one("get_office365_state", instance_id=call.instance.id, email_key=key)))


@method(
    "createInOffice365",
    scope="users:write",
    errors=(NotFound, MemberForbidden, "no_credentials", "already_asked"),
    examples=(Example("After a failure", {"email": "one@example.com"}, True),),
)
async def create_in_office365(call: Call, params: UserRef) -> Literal[True]:
    """Create an existing user in the Microsoft directory, for the first time or after a failure.

    The user gets a random password there, which is not shown: reset it in the directory. For an
    administrator, needs the scope users:admin.
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
