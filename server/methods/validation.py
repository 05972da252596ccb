"""Validating params of createUser and replaceUserByEmail, without writing."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from server.base.errors import CONSTRAINTS, FieldError, Invalid, NotFound
from server.base.models import Failure, Result, TenantParams, Unchecked, validated
from server.directory.creation import early_failures
from server.directory.many import find_taken
from server.directory.plans import NO_PLAN, PLAN_IS_OVER, is_over
from server.directory.rules import password_failures
from server.directory.users import OF_ADMINISTRATOR, CreateUser, ReplaceUser, address, email_key, found, taken
from server.methods.registry import Example, method
from server.tenants import access
from server.tenants.call import Call


class ValidateUser(TenantParams, Unchecked):
    """Params of createUser, valid or not."""

    checked_by = CreateUser


class Validation(Result):
    """All failures."""

    valid: bool
    failures: list[Failure]


@method(
    "validateUser",
    result=Validation,
    scope="users:read",
    examples=(
        Example(
            "A taken e-mail and an unknown plan",
            {"email": "jane@example.com", "planId": 999},
            {"valid": False, "failures": [
                {"field": "email", "message": CONSTRAINTS["users_email"][2]},
                {"field": "planId", "message": "is no plan of this instance"},
            ]},
        ),
        Example("Valid", {"email": "new@example.com"}, {"valid": True, "failures": []}),
    ),
)  # fmt: skip
async def validate_user(call: Call, params: ValidateUser) -> Any:
    """Return every reason why createUser would refuse these params. Writes nothing.

    createUser accepts valid params unless the e-mail or externalId is taken in between.
    """
    return _validation(await creation_failures(call, params.model_extra or {}))


def _validation(failures: list[FieldError]) -> dict[str, Any]:
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
        if isinstance(error.__cause__, ValidationError):  # it also has the failures after the first 100
            bad |= {str(part) for detail in error.__cause__.errors() for part in detail["loc"][:1]}
    email = params.get("email")
    in_office365 = params.get("createInOffice365") is True
    failures += early_failures(call, _good_password(params, bad), in_office365)
    if params.get("isAdmin") is True and not access.may_administrate(call.caller):
        failures.append(FieldError("isAdmin", f"true needs the scope {access.ADMINISTRATE}"))
    if "email" not in bad and isinstance(email, str):
        failures += _taken("users_email", "email", await find_taken(call.db, call, [email_key(email)]))
    if not await call.db.value("has_seat", instance_id=call.instance.id):
        failures.append(FieldError("params", CONSTRAINTS["instance_counters_seats"][2]))
    external_id, plan_id, last_day = params.get("externalId"), params.get("planId"), params.get("planValidTo")
    if external_id is not None and "externalId" not in bad:
        failures += _taken(
            "users_external_id", "externalId", await find_taken(call.db, call, [], [external_id])
        )
    if plan_id is not None and "planId" not in bad:
        if await call.db.one("get_plan", instance_id=call.instance.id, plan_id=plan_id) is None:
            failures.append(NO_PLAN)
        if last_day is not None and "planValidTo" not in bad and await is_over(call.db, last_day):
            failures.append(PLAN_IS_OVER)
    return failures


def _taken(constraint: str, member: str, holders: Sequence[Any]) -> list[FieldError]:
    """The failure of a name that these users have, if any."""
    is_deleted = bool(holders) and holders[0]["deleted_at"] is not None
    return list(taken(constraint, member, is_deleted=is_deleted).fields) if holders else []


def _good_password(params: dict[str, Any], bad: set[str]) -> str | None:
    """The password if its type is valid, or None."""
    password = params.get("password")
    return password if "password" not in bad and isinstance(password, str) else None


def _differs(user: Any, member: str, given: dict[str, Any]) -> bool:
    """Whether a valid member of ReplaceUser would change the user."""
    match member:
        case "newEmail":
            return bool(address(given[member]) != user["email"])
        case "firstName" | "lastName":
            name = given[member] if given[member].strip() else None
            return bool(name != user["fields"].get(member.lower()))
    return True


class ValidateReplacement(TenantParams, Unchecked):
    """Params of replaceUserByEmail, valid or not."""

    checked_by = ReplaceUser


@method(
    "validateReplacement",
    result=Validation,
    scope="users:read",
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
    """Return every reason why replaceUserByEmail would refuse these params. Writes nothing."""
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
        changes_admin = isinstance(is_admin, bool) and is_admin != user["is_admin"]
        if changes_admin and not access.may_administrate(call.caller):
            failures.append(FieldError("isAdmin", f"a change needs the scope {access.ADMINISTRATE}"))
        if not access.may_change_user(call.caller, user):
            failures += [
                FieldError(member, OF_ADMINISTRATOR)
                for member in ("password", "newEmail", "firstName", "lastName")
                if isinstance(given.get(member), str) and member not in bad and _differs(user, member, given)
            ]
        if isinstance(new_email, str) and "newEmail" not in bad:
            new_key = email_key(new_email)
            if new_key != key:
                failures += _taken("users_email", "newEmail", await find_taken(call.db, call, [new_key]))
    return _validation(failures)
