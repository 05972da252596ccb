"""What schemathesis cannot know of our wires. It imports this as its hooks."""

import copy
import json
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from server.wires.online_office import RUSSIAN

# Well formed and refused all the same: it depends on what is stored, or on what no schema can say.
EXCUSED = {
    "Login or password is incorrect",
    "the code is not valid or has expired",
    "is no account with a place in tree 0",
    "leads to a host that is not on the instance's list (confirmationHosts)",
    "is not what a page gave as next",
    "must be base64",
    "must be a PNG, JPEG or GIF picture",
    "is damaged or cut short",
    "is taken by another user",
    "has already been taken",
    "is no plan of this instance",
    "must not lie in the past",
    # What goes with what, or with what is stored.
    "needs a plan that it is the last day of",
    "is required for a prepaid plan",
    "must be null for a recurring plan",
    "is required for a free trial",
    "lies beyond the first 1000000 users",
    "is taken by another environment",
    "has no Microsoft Graph credentials (office365)",
    "name at least one member to change",  # all of them null
    "must be an https address",  # unless the instance lists the host for http
    "is required: confirmationUrl goes there",  # where neither login nor profile has an e-mail
    "is that of a deleted user: restore or purge that user first",
    "this user is deleted: restore or purge it first",
    "is given twice",  # under both of its names
}
STORED_OR_SAID = "depends on what is stored, or on what no schema says"
OF_MEANING = {"invalidFilter", "invalidPath", "noTarget", "mutability", "uniqueness", "invalidCursor"}
"""scimTypes of texts with a grammar of their own, and of what is stored."""
DESCRIBED = {
    "schemas", "userName", "displayName", "Operations", "op", "path", "value", "failOnErrors", "attributes",
    "excludedAttributes", "filter", "sortBy", "sortOrder", "startIndex", "count", "cursor",
}  # fmt: skip
"""Members of SCIM's bodies and queries of which the document says what they may be."""
EXCUSED |= {
    STORED_OR_SAID,
    "cannot be given together with attributes",
    "is not an attribute that can be sorted by",
    "is required for add",
    "is required for replace",
    "is not a user of this instance",
    "contains a member that is not a user of this instance",
    "cannot be given together with startIndex",
    "the JSON holds a NUL character",  # in what SCIM ignores
    "the JSON holds an integer beyond 64 bits",
}
EXCUSED |= {RUSSIAN[message] for message in EXCUSED & RUSSIAN.keys()}


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """The instance under test has no profile fields of its own.

    Idempotency-Key and Dry-Run are left out, which have their own tests: one key for two requests is refused,
    and what a dry run made is not there.
    """
    shared = [{"$ref": f"#/components/parameters/{name}"} for name in ("Idempotency-Key", "Dry-Run")]
    for item in raw_schema["paths"].values():
        for operation in item.values():
            if isinstance(operation, dict):
                operation["parameters"] = [one for one in operation["parameters"] if one not in shared]
                for one in operation["parameters"]:
                    _without_lengths(one)
                _without_own_fields(operation.get("requestBody"))


def _without_lengths(parameter: dict[str, Any]) -> None:
    """A list of the most names, each as long as it may be, is more than an address can hold (414)."""
    schema = parameter.get("schema", {})
    if parameter.get("in") == "query" and schema.get("type") == "array":
        schema.pop("maxItems", None)
        schema["items"] = {"type": "string", "pattern": "^[a-zA-Z]{1,20}$"}


def _without_own_fields(schema: Any) -> None:
    if isinstance(schema, dict) and "firstname" in schema.get("properties", {}):
        del schema["propertyNames"]
        schema["additionalProperties"] = False
    elif isinstance(schema, (dict, list)):
        for part in schema.values() if isinstance(schema, dict) else schema:
            _without_own_fields(part)


def _refusal(answer: Any) -> tuple[int, list[tuple[str, str]]] | None:
    """Status and reasons, a field and a message each, as a wire tells them; None for other bodies."""
    match answer:
        case {"errorCode": 0}:
            return None
        case {"errorCode": code, "primary": {"errors": []}, "errorMessage": message}:
            return code, [("", message)]
        case {"errorCode": code, "primary": {"errors": errors}}:
            return code, [(error["field"], error["message"]) for error in errors]
        case [{"MemberNames": _, "ErrorMessage": _}, *_]:
            return 400, [("".join(one["MemberNames"]), one["ErrorMessage"]) for one in answer]
        case {"schemas": _, "status": status, "detail": detail}:
            field, _, _ = detail.partition(": ")
            kind = answer.get("scimType")
            # The document describes the least of a resource: /Schemas has its other attributes.
            is_undescribed = kind == "invalidValue" and field.partition(".")[0] not in DESCRIBED
            is_excused = kind in OF_MEANING or status in ("412", "413") or is_undescribed
            return int(status), [(field, STORED_OR_SAID if is_excused else detail)]
        case {"message": _, "errors": errors}:
            return 422, [(name, one) for name, all_of_it in errors.items() for one in all_of_it]
    return None


def _told(response: Any, case: Any) -> Any:
    """The response with the status that its body tells, and 404 where what is refused is excused."""
    try:
        refusal = _refusal(json.loads(response.content))
    except ValueError:
        refusal = None
    if refusal is None:
        return response
    told = copy.copy(response)
    told.status_code, reasons = refusal
    if all(
        message.rstrip(".").endswith(tuple(EXCUSED)) or _is_whole(case.body, field)
        for field, message in reasons
    ):
        told.status_code = 404
    return told


def _is_whole(body: Any, field: str) -> bool:
    """Whether it is such as 5.0, an integer to JSON Schema, but not to us."""
    for name in field.split("."):
        body = body.get(name) if isinstance(body, dict) else None
    return isinstance(body, float) and body.is_integer()


@schemathesis.check
def told_negative_data_rejection(ctx: Any, response: Any, case: Any) -> bool | None:
    return negative_data_rejection(ctx, _told(response, case), case)


@schemathesis.check
def told_positive_data_acceptance(ctx: Any, response: Any, case: Any) -> bool | None:
    return positive_data_acceptance(ctx, _told(response, case), case)


_NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20)
schemathesis.openapi.format("email", st.builds("{}@{}.example".format, _NAMES, _NAMES))
schemathesis.openapi.format("phone", st.integers(0, 9999).map("+973 3600 {:04}".format))
