"""Quotas: what a user may store. They are kept for the mail and file servers, which know what is used."""

from typing import Any

from pydantic import Field

from server.base.errors import NotFound
from server.base.models import Result
from server.directory.rows import quotas
from server.directory.users import UserRef, email_key, found
from server.methods.registry import Example, method
from server.tenants.call import Call


class Quota(Result):
    """A limit."""

    limit: int | None = Field(description="MiB; null: any.")
    isDefault: bool = Field(description="Whether it is the instance's, for who has none of its own.")


class UserQuotas(Result):
    """What a user may store."""

    mail: Quota
    files: Quota


@method(
    "getQuotasByEmail",
    result=UserQuotas,
    scope="users:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example(
            "No limits", {"email": "jane@example.com"},
            {"mail": {"limit": None, "isDefault": True}, "files": {"limit": None, "isDefault": True}},
        ),
    ),
)  # fmt: skip
async def get_quotas_by_email(call: Call, params: UserRef) -> Any:
    """Look up how much mail and how many files a user may store, in MiB.

    Its own quotas are set by createUser and updateUserByEmail (`quotas`), the instance's by updateInstance
    (`defaultQuotas`). How much is used is known to the servers that store it, and not here.
    """
    key = email_key(params.email)
    user = found(await call.db.one("find_user", instance_id=call.instance.id, email_key=key))
    defaults = call.instance.settings.defaultQuotas.model_dump()
    return {
        what: {"limit": defaults[what] if own is None else own, "isDefault": own is None}
        for what, own in quotas(user).items()
    }
