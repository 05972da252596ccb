"""Password resets and confirmations by a code in a mail (seeds/001, 7 and 10)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.errors import MemberForbidden, NotFound
from server.base.models import SECRET, TenantParams
from server.directory import change
from server.directory.rows import Edit, Row
from server.directory.rules import hashed
from server.directory.users import Password, UserRef, email_key
from server.methods.codes import EXAMPLE_CODES, ConfirmationUrl, WrongCode, checked_link, mail_code, redeem
from server.methods.registry import Example, method
from server.tenants.call import Call

Code = Annotated[str, Field(min_length=1, max_length=200, description="From the link in the mail."), SECRET]


class RequestPasswordReset(UserRef):
    """A user who forgot the password."""

    confirmationUrl: ConfirmationUrl = Field(
        description="Address of the link in the mail, with {{code}} as placeholder: https, to one of the "
        "instance's confirmationHosts."
    )


@method(
    "requestPasswordReset",
    result=Literal[True],
    scope="users:write",
    writes=True,
    examples=(
        Example(
            "A link by mail",
            {"email": "jane@example.com", "confirmationUrl": "https://example.com/reset?code={{code}}"},
            True,
        ),
        Example(
            "An unknown user: the same answer",
            {"email": "nobody@example.com", "confirmationUrl": "https://example.com/reset?code={{code}}"},
            True,
        ),
    ),
)
async def request_password_reset(call: Call, params: RequestPasswordReset) -> Any:
    """Mail a user a link with a code to set a new password.

    For an unknown user the answer is the same and takes the same time.
    """
    await mail_code(
        call.db,
        instance_id=call.instance.id,
        email_key=email_key(params.email),
        purpose="reset",
        confirmation_url=checked_link(params.confirmationUrl, call.instance.settings),
    )
    return True


class ResetPasswordWithCode(TenantParams):
    """A code and the user's new password."""

    code: Code
    newPassword: Password


@method(
    "resetPasswordWithCode",
    result=Literal[True],
    scope="users:write",
    writes=True,
    prepare=hashed("newPassword"),
    errors=(WrongCode,),
    examples=(
        Example(
            "A code of requestPasswordReset",
            {"code": EXAMPLE_CODES["reset"], "newPassword": "onemoretime"},
            True,
        ),
    ),
)
async def reset_password_with_code(call: Call, params: ResetPasswordWithCode, password_hash: str) -> Any:
    """Set a user's password with a mailed code, and end the user's sessions.

    A code works once. If the instance's policy refuses the password, the code stays valid.
    """
    user = await redeem(call, params.code, "reset")
    await change.write(call, [Edit(user, user, password_hash)])
    return True


class ConfirmEmail(TenantParams):
    """A code."""

    code: Code


@method(
    "confirmEmail",
    result=Literal[True],
    scope="users:write",
    writes=True,
    errors=(WrongCode,),
    examples=(Example("A code of createMember", {"code": EXAMPLE_CODES["confirm"]}, True),),
)
async def confirm_email(call: Call, params: ConfirmEmail) -> Any:
    """Confirm a user's registration with a mailed code."""
    user = await redeem(call, params.code, "confirm")
    await change.write(call, [_confirmation(user)])
    return True


def _confirmation(user: Row) -> Edit:
    return Edit(user, user | {"confirmed_at": user["confirmed_at"] or user["moment"]})


@method(
    "forceConfirmEmail",
    result=Literal[True],
    scope="users:confirm",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Without a code", {"email": "jane@example.com"}, True),),
)
async def force_confirm_email(call: Call, params: UserRef) -> Any:
    """Confirm a user's registration without a code.

    A confirmed user stays confirmed. Confirming an administrator needs the scope users:admin.
    """
    await change.change(call, _confirmation(await change.hold_user(call, email=params.email)))
    return True
