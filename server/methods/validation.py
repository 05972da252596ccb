"""What createUser and replaceUserByEmail would refuse, told without writing anything."""

from typing import Any

from pydantic import ValidationError

from server.base.errors import CONSTRAINTS, FieldError, Invalid, NotFound
from server.base.models import Failure, Result, TenantParams, Unchecked, validated
from server.directory.creation import early_failures
from server.directory.rules import password_failures
from server.directory.store import store_failures
from server.directory.users import OF_ADMINISTRATOR, CreateUser, ReplaceUser, address, email_key, found, taken
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


class ValidateUser(TenantParams, Unchecked):
    """The params of createUser, good or bad."""

    checked_by = CreateUser


class Validation(Result):
    """Every failure at once."""

    valid: bool
    failures: list[Failure]


@method(
    "validateUser",
    result=Validation,
    scope="users:read",
    writes=False,
    examples=(
        Example(
            "A taken e-mail and an unknown plan",
            {"email": "jane@example.com", "planId": 999},
            {"valid": False, "failures": [
                {"field": "email", "message": CONSTRAINTS["users_email"][2]},
                {"field": "planId", "message": "is no plan of this instance"},
            ]},
        ),
        Example("Nothing wrong", {"email": "new@example.com"}, {"valid": True, "failures": []}),
    ),
)  # fmt: skip
async def validate_user(call: Call, params: ValidateUser) -> Any:
    """Say everything that createUser would refuse about its params, and write nothing.

    Takes the params of createUser. What validates is accepted by createUser as long as nobody takes the
    e-mail in between.
    """
    failures = await creation_failures(call, params.model_extra or {})
    return {"valid": not failures, "failures": [failure._asdict() for failure in failures]}


async def creation_failures(call: Call, params: dict[str, Any]) -> list[FieldError]:
    """Every reason why createUser would refuse these params."""
    failures: list[FieldError] = []
    bad: set[str] = set()
    try:
        validated(CreateUser, params, settings=call.settings)
    except Invalid as error:
        failures += error.fields
        bad = {failure.field.partition(".")[0] for failure in failures}
        if isinstance(error.__cause__, ValidationError):  # which names those beyond the first hundred too
            bad |= {str(part) for found in error.__cause__.errors() for part in found["loc"][:1]}
    email = params.get("email")
    in_office365 = params.get("createInOffice365") is True
    failures += early_failures(call, _good_password(params, bad), in_office365)
    if params.get("isAdmin") is True and not access.may_administrate(call.caller):
        failures.append(FieldError("isAdmin", f"true needs the scope {access.ADMINISTRATE}"))
    if "email" not in bad and isinstance(email, str):
        failures += await _taken(call, "email", email_key(email))
    if not await call.db.value("has_seat", instance_id=call.instance.id):
        failures.append(FieldError("params", CONSTRAINTS["instance_counters_seats"][2]))
    return failures + await store_failures(call.db, call.instance.id, params, bad)


async def _taken(call: Call, member: str, key: str) -> list[FieldError]:
    """Why an e-mail cannot be given to anybody else."""
    rows = await call.db.all("find_taken", instance_id=call.instance.id, email_keys=[key], external_ids=[])
    is_deleted = bool(rows) and rows[0]["deleted_at"] is not None
    return list(taken("users_email", member, is_deleted=is_deleted).fields) if rows else []


def _good_password(params: dict[str, Any], bad: set[str]) -> str | None:
    """The password, as far as it is one by its model."""
    password = params.get("password")
    return password if "password" not in bad and isinstance(password, str) else None


def _differs(user: Any, member: str, given: dict[str, Any]) -> bool:
    """Whether a good member of ReplaceUser says something else than what is stored."""
    match member:
        case "newEmail":
            return bool(address(given[member]) != user["email"])
        case "firstName" | "lastName":
            name = given[member] if given[member].strip() else None
            return bool(name != user["fields"].get(member.lower()))
    return True


class ValidateReplacement(TenantParams, Unchecked):
    """The params of replaceUserByEmail, good or bad."""

    checked_by = ReplaceUser


@method(
    "validateReplacement",
    result=Validation,
    scope="users:read",
    writes=False,
    errors=(NotFound,),
    examples=(
        Example(
            "A taken e-mail",
            {"email": "jane@example.com", "newEmail": "admin@example.com"},
            {"valid": False, "failures": [
                {"field": "newEmail", "message": CONSTRAINTS["users_email"][2]},
            ]},
        ),
    ),
)  # fmt: skip
async def validate_replacement(call: Call, params: ValidateReplacement) -> Any:
    """Say everything that replaceUserByEmail would refuse about its params, and write nothing."""
    given = params.model_extra or {}
    failures: list[FieldError] = []
    try:
        validated(ReplaceUser, given)
    except Invalid as error:
        failures += error.fields
    bad = {failure.field for failure in failures}
    policy = call.instance.settings.passwordPolicy
    failures += password_failures("password", _good_password(given, bad), policy)
    email, new_email, is_admin = given.get("email"), given.get("newEmail"), given.get("isAdmin")
    if isinstance(email, str) and "email" not in bad:
        key = email_key(email)
        user = found(await call.db.one("find_user", instance_id=call.instance.id, email_key=key))
        if isinstance(is_admin, bool) and is_admin != user["is_admin"]:
            may = access.may_administrate(call.caller)
            failures += (
                [] if may else [FieldError("isAdmin", f"a change needs the scope {access.ADMINISTRATE}")]
            )
        if not access.may_change_user(call.caller, user):
            failures += [
                FieldError(member, OF_ADMINISTRATOR)
                for member in ("password", "newEmail", "firstName", "lastName")
                if isinstance(given.get(member), str) and member not in bad and _differs(user, member, given)
            ]
        if isinstance(new_email, str) and "newEmail" not in bad:
            new_key = email_key(new_email)
            failures += await _taken(call, "newEmail", new_key) if new_key != key else []
    return {"valid": not failures, "failures": [failure._asdict() for failure in failures]}
