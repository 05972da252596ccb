"""How a user comes to be, whichever method makes it."""

from collections.abc import Mapping
from typing import Any

from server.base.errors import Contention, FieldError, Invalid
from server.base.passwords import is_common
from server.directory.names import Names, has_email, store_names, taken
from server.directory.store import assign_plan
from server.directory.users import (
    CreateUser,
    NewUser,
    ReplaceUser,
    ResetPassword,
    email_key,
    explain_taken,
)  # fmt: skip
from server.tenants.call import Call
from server.tenants.instances import PasswordPolicy


def password_problem(password: str, policy: PasswordPolicy) -> str | None:
    """What an instance's policy has against a password, or None."""
    if len(password) < policy.minLength:
        return f"must have at least {policy.minLength} characters"
    classes = {
        "lower" if char.islower() else "upper" if char.isupper() else "digit" if char.isdigit() else "other"
        for char in password
    }
    if len(classes) < policy.minClasses:
        return f"must mix at least {policy.minClasses} of lower case, upper case, digits and other characters"
    if policy.refuseCommon and is_common(password):
        return "is one of the 10,000 most common passwords"
    return None


async def hash_new_password(call: Call, params: "CreateUser | ResetPassword | ReplaceUser") -> str | None:
    """The hash of a password that the instance's policy accepts; None where there is no password."""
    if params.password is None:
        return None
    if problem := password_problem(params.password, call.instance.settings.passwordPolicy):
        raise Invalid.of([FieldError("password", problem)])
    return await call.hasher.hash(params.password)


def names_of(params: "NewUser | ReplaceUser") -> dict[str, str | None]:
    """The profile fields of the names that were given; null takes one away."""
    given = {"firstname": params.firstName, "lastname": params.lastName}
    return {alias: name if name.strip() else None for alias, name in given.items() if name is not None}


def shown_name(params: NewUser) -> str:
    """A new user's display name: its own, or first and last name, or the local part of the e-mail."""
    names = [name for name in names_of(params).values() if name is not None]
    return params.displayName or " ".join(names).strip()[:200] or params.email.rpartition("@")[0]


_UNSAID = {
    # Secrets, what is said elsewhere, and what is always said.
    "instance", "password", "passwordHash", "planId", "planValidTo", "firstName", "lastName", "email",
    "displayName", "isActive", "isAdmin",
}  # fmt: skip


def creation(
    params: NewUser,
    *,
    fields: Mapping[str, Any] | None = None,
    language: str = "en",
    is_confirmed: bool = True,
    login: str | None = None,
) -> dict[str, Any]:
    """What is written down of a user who is created; see insert_user for the arguments."""
    names = {alias: name for alias, name in names_of(params).items() if name is not None}
    # More than what was left to its default, so that nobody has to know the defaults of a day.
    always = {
        "email": params.email, "displayName": shown_name(params), "isActive": params.isActive,
        "isAdmin": params.isAdmin, "isConfirmed": is_confirmed, "language": language,
        "fields": names | dict(fields or {}),
    }  # fmt: skip
    if not has_email(params.email):
        always |= {"email": None, "login": params.email}
    elif login is not None:
        always["login"] = login
    return always | params.model_dump(exclude_defaults=True, exclude=_UNSAID)


async def insert_user(
    call: Call,
    instance_id: int,
    params: NewUser,
    password_hash: str | None,
    *,
    fields: dict[str, Any] | None = None,
    language: str = "en",
    is_confirmed: bool = True,
    login: str | None = None,
) -> Any:
    """Create and provision a user in one statement.

    Args:
        params: for a user without an e-mail its login stands there as email.
        fields: profile fields of the member platform by alias.
        language: ISO 639-1.
        is_confirmed: False until the code of its mail is redeemed.
        login: another name to log in with than the e-mail, found free by hold_free_names.
    """
    profile, values = params.profile.model_dump(), params.values.model_dump()
    explain_taken(call, params.email, params.externalId)
    event = creation(params, fields=fields, language=language, is_confirmed=is_confirmed, login=login)
    created = await call.db.one(
        "create_user",
        instance_id=instance_id,
        email=params.email,
        email_key=email_key(params.email),
        display_name=event["displayName"],
        is_active=params.isActive,
        is_admin=params.isAdmin,
        profile=profile,
        app_values=values,
        settings=params.settings,
        apps=params.apps,
        avatar=params.avatar,
        fields=event["fields"],
        language=language,
        is_confirmed=is_confirmed,
        external_id=params.externalId,
        sessions_limit=params.sessionsLimit,
        is_plan_admin=params.isPlanAdmin,
        only_sees_readable=params.onlySeesReadable,
        mail_quota=params.quotas and params.quotas.mail,
        files_quota=params.quotas and params.quotas.files,
        password_hash=password_hash or params.passwordHash,
        event=event if call.single else None,
        **call.actor().columns(),
    )
    if created is None:
        key = email_key(params.email)
        rows = await call.db.all("find_names", instance_id=instance_id, keys=[key])
        if rows:
            raise taken("email", is_deleted=rows[0]["is_deleted"])
        raise Contention(retry_after=1)
    row = dict(created)
    if login is not None:
        await store_names(call, row["id"], Names(params.email, login))
    if not call.single:
        call.emit("user.created", row["id"], after=event)
        if params.planId is not None:
            await assign_plan(call, instance_id, row["id"], params.planId, params.planValidTo)
    # Stored as jsonb the members would come back in another order than the document's.
    return row | {"profile": profile, "values": values}
