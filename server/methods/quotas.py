"""Quotas of storage, for the mail and file servers, which know the space used."""

from typing import Any

from pydantic import Field

from server.base.errors import NotFound
from server.base.models import Result
from server.directory.rows import quotas
from server.directory.users import UserRef, email_key, found
from server.methods.registry import Example, method
from server.tenants.call import Call


class Quota(Result):
    """A limit of storage."""

    limit: int | None = Field(description="MiB; null: unlimited.")
    isDefault: bool = Field(description="Whether it is the default of the instance.")


class UserQuotas(Result):
    """Quotas of a user."""

    mail: Quota
    files: Quota


@method(
    "getQuotasByEmail",
    result=UserQuotas,
    scope="users:read",
    errors=(NotFound,),
    examples=(
        Example(
            "No limits", {"email": "jane@example.com"},
            {"mail": {"limit": None, "isDefault": True}, "files": {"limit": None, "isDefault": True}},
        ),
    ),
)  # fmt: skip
async def get_quotas_by_email(call: Call, params: UserRef) -> Any:
    """Look up the quotas of a user, in MiB, not the space used.

    createUser and updateUserByEmail set them (`quotas`); updateInstance sets the defaults (`defaultQuotas`).
    """
    key = email_key(params.email)
    user = found(await call.db.one("find_user", instance_id=call.instance.id, email_key=key))
    defaults = call.instance.settings.defaultQuotas.model_dump()
    return {
        what: {"limit": defaults[what] if own is None else own, "isDefault": own is None}
        for what, own in quotas(user).items()
    }
