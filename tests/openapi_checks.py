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
}
EXCUSED |= {RUSSIAN[message] for message in EXCUSED & RUSSIAN.keys()}


def _told(response: Any, case: Any) -> Any:
    """The response with the status that it tells: the member platform has it in the body's errorCode."""
    try:
        envelope = json.loads(response.content)
        code, errors = envelope["errorCode"], envelope["primary"]["errors"]
    except (ValueError, TypeError, KeyError):
        return response
    told = copy.copy(response)
    told.status_code = code or response.status_code
    messages = {error["field"]: error["message"] for error in errors} or {"": envelope["errorMessage"]}
    if all(message in EXCUSED or _is_whole(case.body, field) for field, message in messages.items()):
        told.status_code = 404 if code else response.status_code
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
