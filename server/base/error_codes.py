"""Every error code of the API: its meaning and its remedy.

A code never gets another meaning. OpenRPC, OpenAPI, the reference in server/methods/README.md and
`officerpc errors` are made from this table. A new code is one entry here.
"""

from typing import Literal, NamedTuple, TypeAlias

Source: TypeAlias = Literal["request", "wire", "call", "write", "kept", "method"]
"""What can return a code.

request: any HTTP request, before its method is known. wire: the same, on one wire only. call: any method.
write: any writing method. kept: any idempotent method. method: the methods that list it in `errors`.
"""


class ErrorCode(NamedTuple):
    """What a code stands for."""

    # HTTP status of the plain envelope at /rpc; the other wires have their own statuses.
    status: int
    source: Source
    meaning: str
    # What the caller can do.
    remedy: str
    # Whether the same call may succeed when it is sent again unchanged.
    retryable: bool = False
    # The code of the class (errors.py) that it is raised as; None: its own class.
    kind: str | None = None


_LATER = "Send the same call again after the seconds in Retry-After."
_STORED = "Look up what is stored, and change the call or the other object."
_FIELDS = "Correct the members that the message and `fields` name."

ERROR_CODES: dict[str, ErrorCode] = {
    # --- the request --------------------------------------------------------------------------------------
    "bad_http": ErrorCode(
        400, "request", "The bytes are not a valid HTTP request.",
        "Correct the client, or the proxy before it."
    ),
    "bad_dry_run": ErrorCode(
        400, "request", "The header Dry-Run is neither true nor false.", "Send true or false, once.",
        kind="invalid_params",
    ),
    "bad_expect": ErrorCode(
        417, "request", "The header Expect asks for something that the server does not do.",
        "Send no Expect header, or 100-continue.",
    ),
    "bad_idempotency_key": ErrorCode(
        400, "request", "The idempotency key is not valid, or there are several.",
        "Send one key of 1 to 255 printable ASCII characters.", kind="invalid_params",
    ),
    "internal": ErrorCode(
        500, "call", "The server failed because of a fault of its own.",
        "Report the X-Request-Id to the operator. A write may be sent again under its idempotency key.",
    ),
    "invalid_request": ErrorCode(
        400, "wire", "The JSON is not a JSON-RPC 2.0 request, or a batch has no items or too many.",
        "Correct the envelope; send at most 100 items.", kind="invalid_params",
    ),
    "length_required": ErrorCode(
        411, "wire", "A Workspace 365 request that must have a Content-Length has none.",
        "Send Content-Length, 0 for an empty body.",
    ),
    "malformed_json": ErrorCode(
        400, "request",
        "The body is not JSON, or breaks a limit: duplicate members, NUL, depth, big integers.",
        "Correct the body.",
    ),
    "method_not_allowed": ErrorCode(
        405, "request", "The address does not take this HTTP method.", "Use one that the header Allow names."
    ),
    "no_route": ErrorCode(
        404, "request", "There is no such address.",
        "Compare the address with /openapi.json; calls go to /rpc."
    ),
    "provisioning_disabled": ErrorCode(
        403, "wire", "The Workspace 365 interface is switched off for this environment.",
        "Ask the operator to set provisioningEnabled.", kind="forbidden",
    ),
    "request_timeout": ErrorCode(
        408, "request", "The body did not arrive in time.",
        "Send the request again, without pauses in its body."
    ),
    "headers_too_large": ErrorCode(
        431, "request", "A header is too long, or there are too many.", "Send fewer or shorter headers."
    ),
    "several_keys": ErrorCode(
        400, "request", "The request has more than one API key.", "Send one key in one header.",
        kind="invalid_params",
    ),
    "too_large": ErrorCode(
        413, "request", "The body is larger than allowed.",
        "Send fewer items or smaller values: 1 MiB, more where a picture is part of it.",
    ),
    "unknown_method": ErrorCode(
        400, "wire", "There is no method of this name.", "Take the name from rpc.discover; case matters."
    ),
    "unsupported_media_type": ErrorCode(
        415, "request", "The body is not declared to be JSON in UTF-8.",
        "Send Content-Type: application/json."
    ),
    "uri_too_long": ErrorCode(
        414, "request", "The address of the request is too long.", "Send the params in the body."
    ),
    # --- the key and what it may do -----------------------------------------------------------------------
    "forbidden": ErrorCode(
        403, "call", "The key may not do this; a more precise code says why wherever one is known.",
        "Use a key that may, or ask the operator.",
    ),
    "instance_suspended": ErrorCode(
        403, "call", "The instance is suspended: logins and writes are refused, and its own keys everything.",
        "The operator reactivates it by updateInstance with isActive true.",
    ),
    "lifetime_not_held": ErrorCode(
        403, "method", "The key to be rotated lives longer than the calling key.",
        "Use a key that lives at least as long, or ask the operator.", kind="forbidden",
    ),
    "member_forbidden": ErrorCode(
        403, "method", "The method is allowed, but this change needs a further scope.",
        "Use a key with the scope that X-Required-Scope names, users:admin for administrators.",
    ),
    "missing_scope": ErrorCode(
        403, "call", "The key lacks the scope of the method.",
        "Use a key with the scope that X-Required-Scope names.",
    ),
    "network_not_held": ErrorCode(
        403, "method", "The new key would be valid in networks where the key that makes it is not.",
        "Give networks that lie within those of the calling key.", kind="forbidden",
    ),
    "not_held": ErrorCode(
        403, "call", "The instance does not exist, or the key does not hold it.",
        "Compare the name of the instance; ask for a key that holds it.",
    ),
    "operators_only": ErrorCode(
        403, "call", "Only an operator's key may do this.", "Use an operator's key."
    ),
    "rate_not_held": ErrorCode(
        403, "method", "The new key could make more calls a minute than the key that makes it.",
        "Give a ratePerMinute that is not above that of the calling key.", kind="forbidden",
    ),
    "scope_not_held": ErrorCode(
        403, "method", "The key concerned has scopes that the calling key lacks.",
        "Ask for fewer scopes, or use a key that has them.", kind="forbidden",
    ),
    "unauthenticated": ErrorCode(
        401, "call", "There is no API key, or it is unknown, revoked, expired or used from another network.",
        "Send a valid key; ask whoever issued it.",
    ),
    "wrong_code": ErrorCode(
        400, "method", "The confirmation or reset code is unknown, used or expired.",
        "Have a new code sent.",
    ),
    "wrong_login": ErrorCode(
        400, "method", "The login or its password or token is wrong, or the user may not log in.",
        "Ask the user again.",
    ),
    # --- the params and what is stored --------------------------------------------------------------------
    "already_asked": ErrorCode(
        400, "method", "The user is in Microsoft 365 already, or is being created there.",
        "Nothing; getOffice365State tells the state.", kind="conflict",
    ),
    "already_placed": ErrorCode(
        400, "method", "The account has a position in this tree already.", _STORED, kind="conflict"
    ),
    "conflict": ErrorCode(400, "method", "The change conflicts with what is stored.", _STORED),
    "duplicate_email": ErrorCode(
        400, "method", "Another user of the instance has this e-mail or login.",
        "Use another e-mail, or change that user.", kind="conflict",
    ),
    "duplicate_external_id": ErrorCode(
        400, "method", "Another user or group of the instance has this externalId.",
        "Use another externalId, or change that user or group.", kind="conflict",
    ),
    "duplicate_group": ErrorCode(
        400, "method", "A group of the instance has this name, in any case.",
        "Use another name.", kind="conflict"
    ),
    "duplicate_instance": ErrorCode(
        400, "method", "An instance has this name.", "Use another name.", kind="conflict"
    ),
    "duplicate_key": ErrorCode(400, "method", "This API key exists already.", "Call again.", kind="conflict"),
    "idempotency_conflict": ErrorCode(
        422, "kept", "The idempotency key was used for another request within 24 hours.",
        "Use a new key for a new request; send a retry unchanged.",
    ),
    "invalid_params": ErrorCode(400, "call", "The params do not fit the method.", _FIELDS),
    "invalid_filter": ErrorCode(
        400, "method", "The SCIM filter is no filter, or compares what cannot be compared so.",
        "Correct the filter (RFC 7644, 3.4.2.2).", kind="invalid_params",
    ),
    "invalid_path": ErrorCode(
        400, "method", "The path of a SCIM operation names no attribute.",
        "Correct the path (RFC 7644, 3.5.2).", kind="invalid_params",
    ),
    "invalid_value": ErrorCode(
        400, "method", "A SCIM attribute cannot have this value.", _FIELDS, kind="invalid_params"
    ),
    "mutability": ErrorCode(
        400, "method", "A SCIM operation writes what can only be read, or removes what must be there.",
        "Leave the operation out.", kind="invalid_params",
    ),
    "named_twice": ErrorCode(
        400, "method", "Another item of the same call names the same user.", "Send one item for each user.",
        kind="conflict",
    ),
    "no_credentials": ErrorCode(
        400, "method", "The instance has no Microsoft Graph credentials.",
        "Set settings.office365 of the instance first.", kind="conflict",
    ),
    "no_position": ErrorCode(
        400, "method", "The account has no position in this tree.",
        "Place it by addToTree, or name another treeId.", kind="not_found",
    ),
    "no_target": ErrorCode(
        400, "method", "A SCIM operation has no path where it needs one, or its path selects nothing.",
        "Give a path that selects what is to change.", kind="invalid_params",
    ),
    "not_deleted": ErrorCode(
        400, "method", "Only a deleted user can be purged.", "Call deleteUserByEmail first.", kind="conflict"
    ),
    "not_found": ErrorCode(
        400, "method", "What the call names does not exist in this instance.", "Compare the id or the name."
    ),
    "plan_overlaps": ErrorCode(
        400, "method", "The user has this plan, until before the day from which it is to be given again.",
        "Change to it once it has ended, or give an earlier day.", kind="conflict",
    ),
    "reserved_group": ErrorCode(
        400, "method", "The group Admins always exists and cannot be changed by this method.",
        "Change isAdmin of the users by updateUserByEmail.", kind="conflict",
    ),
    "seats_exhausted": ErrorCode(
        400, "method", "The instance has as many users as it may (maxUsers).",
        "Delete users, or ask the operator for more seats, by updateInstance.", kind="conflict",
    ),
    "seats_taken": ErrorCode(
        400, "method", "The instance has more users than the new maxUsers.",
        "Give a higher maxUsers, or delete users first.", kind="conflict",
    ),
    "too_deep": ErrorCode(
        400, "method", "The tree has 1,000 levels already.", "Choose a sponsor further up.",
        kind="invalid_params",
    ),
    "too_many_matches": ErrorCode(
        400, "method", "The SCIM filter selects more than can be searched.",
        "Give a narrower filter.", kind="invalid_params",
    ),
    "too_many_webhooks": ErrorCode(
        400, "method", "The instance has as many webhooks as it may.", "Delete one first.", kind="conflict"
    ),
    "user_deleted": ErrorCode(
        400, "method", "The user is deleted; until it is purged it keeps its e-mail and externalId.",
        "Restore it by restoreUserByEmail, or purge it by purgeUserByEmail.",
    ),
    "version_mismatch": ErrorCode(
        412, "method", "The SCIM resource was changed since the version that was given.",
        "Read it again, and make the change of what it is now.",
    ),
    "webhook_off": ErrorCode(
        400, "method", "The webhook is switched off.", "Switch it on by updateWebhook first.", kind="conflict"
    ),
    # --- limits and faults --------------------------------------------------------------------------------
    "batch_full": ErrorCode(
        413, "wire", "The answers of the JSON-RPC batch are too large; this item was not run.",
        "Send this item and those after it in another batch.", retryable=True,
    ),
    "busy": ErrorCode(
        503, "call", "Too many calls of the instance wait for the database, for hashing or for pictures.",
        _LATER, retryable=True, kind="unavailable",
    ),
    "connection_lost": ErrorCode(
        503, "call", "The connection to the database was lost.", "Send the same call again.", retryable=True
    ),
    "contention": ErrorCode(
        503, "call", "Concurrent changes of the same rows got in each other's way.",
        "Send the same call again.",
        retryable=True,
    ),
    "login_delayed": ErrorCode(
        429, "method", "Too many logins to this account failed.",
        _LATER, retryable=True, kind="too_many_calls"
    ),
    "not_begun": ErrorCode(
        503, "write", "The connection to the database was lost before anything was done.",
        "Send the same call again.", retryable=True,
    ),
    "outcome_unknown": ErrorCode(
        503, "write", "The connection to the database was lost in the commit; the work may be done.",
        "Look before you send it again, or send it again under the idempotency key that it had.",
    ),
    "still_running": ErrorCode(
        409, "kept", "The call with this idempotency key is still running.", _LATER, retryable=True
    ),
    "too_many_calls": ErrorCode(
        429, "call", "The key, or all keys of its instance, made as many calls as they may in a minute.",
        _LATER, retryable=True,
    ),
    "unavailable": ErrorCode(
        503, "call", "The service is busy, or its database cannot be reached.", _LATER, retryable=True
    ),
}  # fmt: skip
