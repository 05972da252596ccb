"""Errors of calls, and the error that stands for each database constraint.

Nothing here depends on a wire: each wire renders a ServiceError with its own status and format.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from server.base.error_codes import ERROR_CODES


class FieldError(NamedTuple):
    """A bad member of the params."""

    field: str
    message: str


KINDS: "dict[str, type[ServiceError]]" = {}
"""The kinds of errors by code."""


class ServiceError(Exception):
    """internal error"""

    # The docstring of a kind is its default message. Its code is its name in snake case, unless it sets one.
    code = "internal"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "code" not in vars(cls):
            cls.code = re.sub("(?<=.)([A-Z])", r"_\1", cls.__name__).lower()
        if cls.code not in ERROR_CODES:
            raise ValueError(f"{cls.__name__}: {cls.code} is not in ERROR_CODES")
        KINDS.setdefault(cls.code, cls)

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        fields: Sequence[FieldError] = (),
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            message: one line for the caller; default: the docstring of the kind.
            code: one of ERROR_CODES, more precise than the kind's own.
            fields: all bad members.
            retry_after: seconds after which the same call may succeed.
            headers: HTTP headers of this error, such as Allow.

        Raises:
            KeyError: the code is not in ERROR_CODES.
        """
        self.message = message or (type(self).__doc__ or "").strip()
        self.code = code or type(self).code
        self.fields = tuple(fields)
        self.retry_after = retry_after
        self.retryable = ERROR_CODES[self.code].retryable or retry_after is not None
        self.headers = dict(headers or {})
        super().__init__(self.message)

    def told_fields(self) -> tuple[FieldError, ...]:
        """The fields, for a format without headers: a missing scope is one of them."""
        return self.fields

    def cause(self) -> str | None:
        """The type of the exception behind this error, for the log; not its text, which may contain data."""
        return type(self.__cause__).__name__ if self.__cause__ is not None else None


KINDS[ServiceError.code] = ServiceError


def kind_of(code: str) -> type[ServiceError]:
    """The kind of error that has this code.

    Raises:
        KeyError: the code is not in ERROR_CODES.
    """
    return KINDS[ERROR_CODES[code].kind or code]


class Invalid(ServiceError):
    """the request is not valid"""

    code = "invalid_params"

    @classmethod
    def of(cls, fields: Sequence[FieldError], *, code: str | None = None) -> "Invalid":
        """One message that names all bad members.

        Args:
            code: see ServiceError.
        """
        return cls("; ".join(f"{field}: {message}" for field, message in fields), code=code, fields=fields)


class UnknownMethod(ServiceError):
    """unknown method"""


class Malformed(ServiceError):
    """the body is not valid JSON"""

    code = "malformed_json"


class Unauthenticated(ServiceError):
    """not-allowed"""


class Forbidden(ServiceError):
    """not-allowed"""

    def __init__(self, message: str | None = None, *, scope: str | None = None, **options: Any) -> None:
        """
        Args:
            scope: the missing one, for the header X-Required-Scope. The body is the same for every Forbidden.
        """
        super().__init__(message, headers={"X-Required-Scope": scope} if scope else None, **options)
        self.scope = scope

    def told_fields(self) -> tuple[FieldError, ...]:
        """The fields and the missing scope."""
        return self.fields + ((FieldError("scope", f"needs {self.scope}"),) if self.scope else ())


class MissingScope(Forbidden):
    """not-allowed"""


class OperatorsOnly(Forbidden):
    """not-allowed"""


class InstanceSuspended(Forbidden):
    """not-allowed"""


class MemberForbidden(Forbidden):
    """not-allowed"""


class NotHeld(Forbidden):
    """not-allowed"""


class NotFound(ServiceError):
    """not found"""


class NoRoute(ServiceError):
    """no such address"""


class WrongVerb(ServiceError):
    """this address does not take that HTTP method"""

    code = "method_not_allowed"


class BadExpectation(ServiceError):
    """this expectation cannot be met"""

    code = "bad_expect"


class Conflict(ServiceError):
    """the change conflicts with what is stored"""


class UserDeleted(Conflict):
    """this user is deleted: restore or purge it first"""


class PreconditionFailed(ServiceError):
    """what is to be changed was changed since"""

    code = "version_mismatch"


class IdempotencyConflict(ServiceError):
    """this idempotency key was used for another request"""


class StillRunning(ServiceError):
    """a call with this idempotency key is still running, try again"""


class BadHttp(ServiceError):
    """this is not a valid HTTP request"""


class UriTooLong(ServiceError):
    """the address is too long"""


class HeadersTooLarge(ServiceError):
    """the headers are too large"""


class LengthRequired(ServiceError):
    """the header Content-Length is missing"""


class TooLarge(ServiceError):
    """the body is too large"""


class BatchFull(ServiceError):
    """the answers of this batch are too large; send this item and those after it in another one"""


class WrongType(ServiceError):
    """send the body as Content-Type: application/json"""

    code = "unsupported_media_type"


class TooSlow(ServiceError):
    """the body did not arrive in time"""

    code = "request_timeout"


class TooMany(ServiceError):
    """too many calls, try again later"""

    code = "too_many_calls"


class Unavailable(ServiceError):
    """the service is busy or its database is away, try again"""


class ConnectionLost(Unavailable):
    """the connection to the database was lost, try again"""


class NotBegun(ConnectionLost):
    """the connection to the database was lost before anything was done, try again"""


class Contention(Unavailable):
    """concurrent changes got in each other's way, try again"""


class OutcomeUnknown(Unavailable):
    """the connection was lost while committing, look before trying again"""


def _duplicate(name: str) -> str:
    # Postgres's own words, which clients of this kind of API look for.
    return f'duplicate key value violates unique constraint "{name}"'


# Constraint -> (kind, code, message, member of the params). A violation of any other constraint is a bug.
CONSTRAINTS: dict[str, tuple[type[ServiceError], str, str, str]] = {
    "users_email": (Conflict, "duplicate_email", _duplicate("users_email"), "email"),
    "users_external_id": (Conflict, "duplicate_external_id", _duplicate("users_external_id"), "externalId"),
    "instance_counters_seats": (
        Conflict, "seats_exhausted", "the instance has no seat left (maxUsers)", "params",
    ),
    "groups_name": (Conflict, "duplicate_group", _duplicate("groups_name"), "name"),
    "groups_external_id": (
        Conflict, "duplicate_external_id", _duplicate("groups_external_id"), "externalId",
    ),
    # The group or the user was deleted during the call.
    "group_members_group": (NotFound, "not_found", "not found: there is no such group", "name"),
    "group_members_user": (NotFound, "not_found", "not found: there is no such user", "email"),
    "instances_name": (Conflict, "duplicate_instance", _duplicate("instances_name"), "name"),
    "api_keys_digest": (Conflict, "duplicate_key", _duplicate("api_keys_digest"), "key"),
    "positions_account": (Conflict, "already_placed", "the account stands in this tree already", "accountId"),
    "positions_depth": (Invalid, "too_deep", "the tree has 1000 levels already", "sponsorId"),
    "users_instance": (NotFound, "not_found", "not found", "instance"),
}  # fmt: skip

DUPLICATES = ("duplicate_email", "duplicate_external_id", "user_deleted")
"""The codes for an e-mail or externalId of another user, who may be deleted."""

_NAME_IN_MESSAGE = re.compile(r'constraint "([^"]+)"')
_SHARD_SUFFIX = re.compile(r"_\d+$")


def from_constraint(constraint_name: str | None, message: str) -> ServiceError | None:
    """The error for a violated constraint, or None if it is not in CONSTRAINTS.

    Args:
        constraint_name: as Postgres reports it; None on Citus.
        message: the server's message, which on Citus has the shard's constraint (users_email_102012).
    """
    name = constraint_name
    if name is None:
        found = _NAME_IN_MESSAGE.search(message)
        name = found[1] if found else ""
    known = CONSTRAINTS.get(name) or CONSTRAINTS.get(_SHARD_SUFFIX.sub("", name))
    if known is None:
        return None
    kind, code, text, member = known
    return kind(text, code=code, fields=[FieldError(member, text)])
