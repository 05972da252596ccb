"""What createUser and replaceUserByEmail would refuse, told without writing anything."""

from datetime import date
from typing import Any

from pydantic import ValidationError

from server.base.errors import CONSTRAINTS, FieldError, Invalid, NotFound
from server.base.models import Failure, Result, TenantParams, Unchecked, validated
from server.directory.creation import early_failures
from server.directory.many import find_taken
from server.directory.rules import password_failures
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
        failures.append(FieldError("isAdmin", "true needs the scope users:admin"))
    if "email" not in bad and isinstance(email, str):
        failures += await _taken(call, "users_email", "email", email_keys=[email_key(email)])
    if not await call.db.value("has_seat", instance_id=call.instance.id):
        failures.append(FieldError("params", CONSTRAINTS["instance_counters_seats"][2]))
    external_id = params.get("externalId")
    if external_id is not None and "externalId" not in bad:
        failures += await _taken(call, "users_external_id", "externalId", external_ids=[external_id])
    return failures + await _plan_failures(call, params, bad)


async def _taken(call: Call, constraint: str, member: str, **given: list[str]) -> list[FieldError]:
    """Why an e-mail or external id cannot be given to anybody else.

    Args:
        constraint: the one that it would break.
        member: of the params, that holds it.
        given: email_keys or external_ids.
    """
    rows = await find_taken(call.db, call, **given)
    return [
        failure
        for row in rows[:1]
        for failure in taken(constraint, member, is_deleted=row["is_deleted"]).fields
    ]


async def _plan_failures(call: Call, params: dict[str, Any], bad: set[str]) -> list[FieldError]:
    """Why there is no such plan to assign, or not until that day."""
    failures: list[FieldError] = []
    plan_id, day = params.get("planId"), params.get("planValidTo")
    if plan_id is None or "planId" in bad:
        return failures
    if await call.db.one("get_plan", instance_id=call.instance.id, plan_id=plan_id) is None:
        failures.append(FieldError("planId", "is no plan of this instance"))
    last_day = None if day is None or "planValidTo" in bad else date.fromisoformat(day)
    if last_day is not None and await call.db.value("is_over", last_day=last_day):
        failures.append(FieldError("planValidTo", "must not lie in the past"))
    return failures


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
            failures += [] if may else [FieldError("isAdmin", "a change needs the scope users:admin")]
        if not access.may_change_user(call.caller, user):
            failures += [
                FieldError(member, OF_ADMINISTRATOR)
                for member in ("password", "newEmail", "firstName", "lastName")
                if isinstance(given.get(member), str) and member not in bad and _differs(user, member, given)
            ]
        if isinstance(new_email, str) and "newEmail" not in bad:
            new_key = email_key(new_email)
            if new_key != key:
                failures += await _taken(call, "users_email", "newEmail", email_keys=[new_key])
    return {"valid": not failures, "failures": [failure._asdict() for failure in failures]}
