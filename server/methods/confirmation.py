"""What users prove by a code in their mail: that an address is theirs (seeds/001, 7 and 10)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.base.errors import FieldError, Invalid, MemberForbidden, NotFound
from server.base.models import SECRET, TenantParams
from server.directory.groups import hold_member
from server.directory.provisioning import password_problem
from server.directory.users import Password, UserRef, email_key, found, record_password, written
from server.methods.codes import (
    EXAMPLE_CODES,
    LINK_SCHEMA,
    MAX_URL,
    WrongCode,
    checked_link,
    mail_code,
    redeem,
)
from server.methods.registry import Example, method
from server.tenants.call import Call

Code = Annotated[str, Field(min_length=1, max_length=200, description="As the mail's link has it."), SECRET]


class RequestPasswordReset(UserRef):
    """Who has forgotten a password."""

    confirmationUrl: Annotated[str, Field(max_length=MAX_URL, json_schema_extra=LINK_SCHEMA)] = Field(
        description="Where the link in the mail leads, with {{code}} in the code's place: https, and on a "
        "host of the instance's confirmationHosts."
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
            "Nobody, answered the same",
            {"email": "nobody@example.com", "confirmationUrl": "https://example.com/reset?code={{code}}"},
            True,
        ),
    ),
)
async def request_password_reset(call: Call, params: RequestPasswordReset) -> Any:
    """Mail a user a link with a code that lets it set a new password.

    The answer is the same, and takes as long, whether or not there is such a user.
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
    """A code and the password that its user chose."""

    code: Code
    newPassword: Password


async def _hash_new_password(call: Call, params: ResetPasswordWithCode) -> str:
    if problem := password_problem(params.newPassword, call.instance.settings.passwordPolicy):
        raise Invalid.of([FieldError("newPassword", problem)])
    return await call.hasher.hash(params.newPassword)


@method(
    "resetPasswordWithCode",
    result=Literal[True],
    scope="users:write",
    writes=True,
    prepare=_hash_new_password,
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
    """Set the password of the user who was mailed the code, and end its sessions.

    A code works once. A password that the instance's policy refuses leaves it as it is.
    """
    user = await redeem(call.db, call.instance.id, params.code, "reset")
    changed = await call.db.one(
        "set_password_by_id",
        instance_id=call.instance.id,
        user_id=user.user_id,
        password_hash=password_hash,
    )
    await record_password(call, found(changed))
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
    """Confirm the registration of the user who was mailed the code."""
    user = await redeem(call.db, call.instance.id, params.code, "confirm")
    await _confirm(call, user.user_id)
    return True


async def _confirm(call: Call, user_id: int) -> None:
    user = found(await call.db.one("confirm_user", instance_id=call.instance.id, user_id=user_id))
    call.emit_user_changes(user_id, user["before"], user["after"])


@method(
    "forceConfirmEmail",
    result=Literal[True],
    scope="users:confirm",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("Without a code", {"email": "jane@example.com"}, True),),
)
async def force_confirm_email(call: Call, params: UserRef) -> Any:
    """Confirm a registration without its code, and whether or not the code has expired.

    A user who is confirmed already stays so. An administrator's needs the scope users:admin.
    """
    key = email_key(params.email)
    user = written(call, await hold_member(call, key))
    await _confirm(call, user["id"])
    return True
