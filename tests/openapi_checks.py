"""What schemathesis cannot know of our wires. It imports this as its hooks."""

import copy
import json
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from server.fronts.online_office import RUSSIAN

# Well formed and refused all the same: it depends on what is stored, or on what no schema can say.
EXCUSED = {
    "Login or password is incorrect",
    "the code is not valid or has expired",
    "is no account with a place in tree 0",
    "is not a field of this instance",
    "leads to a host that is not on the instance's list (confirmationHosts)",
    "is not what a page gave as next",
    "is taken by another user",
    "is taken by another environment",
    "has no Microsoft Graph credentials (office365)",
    "name at least one member to change",  # all of them null
}
EXCUSED |= {RUSSIAN[message] for message in EXCUSED & RUSSIAN.keys()}


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
    if all(message.endswith(tuple(EXCUSED)) or _is_whole(case.body, field) for field, message in reasons):
        told.status_code = 404
    return told


def _is_whole(body: Any, field: str) -> bool:
    """Whether it is such as 5.0, an integer to JSON Schema, but not to us."""
    return isinstance(body, dict) and isinstance(value := body.get(field), float) and value.is_integer()


@schemathesis.check
def told_negative_data_rejection(ctx: Any, response: Any, case: Any) -> bool | None:
    return negative_data_rejection(ctx, _told(response, case), case)


@schemathesis.check
def told_positive_data_acceptance(ctx: Any, response: Any, case: Any) -> bool | None:
    return positive_data_acceptance(ctx, _told(response, case), case)


_NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20)
schemathesis.openapi.format("email", st.builds("{}@{}.example".format, _NAMES, _NAMES))
schemathesis.openapi.format("phone", st.integers(0, 9999).map("+973 3600 {:04}".format))
