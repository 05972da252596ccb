"""What can go wrong with a call, and which database constraint means what.

Nothing here knows a wire: a wire turns a ServiceError into its own status and bytes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from server.base.error_codes import ERROR_CODES


class FieldError(NamedTuple):
    """One member of the params that the caller has to mend."""

    field: str
    message: str


KINDS: "dict[str, type[ServiceError]]" = {}
"""The kinds of errors by their own codes."""


class ServiceError(Exception):
    """internal error"""

    # The docstring of each kind is its default message. Its code, and any other given, stands in ERROR_CODES.
    code = "internal"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
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
            message: one line for the caller; by default the docstring of the kind.
            code: one of ERROR_CODES, more precise than the kind's own.
            fields: the members to mend, all of them.
            retry_after: seconds after which the same call may succeed.
            headers: what HTTP asks for with this error, such as Allow.

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
        """The members to mend, and where the form has no header for it, what else."""
        return self.fields

    def cause(self) -> str | None:
        """The kind of exception behind this error, for the log: never its text, which may quote data."""
        return type(self.__cause__).__name__ if self.__cause__ is not None else None


KINDS[ServiceError.code] = ServiceError


def kind_of(code: str) -> type[ServiceError]:
    """The kind that an error with this code is raised as.

    Raises:
        KeyError: the code is not in ERROR_CODES.
    """
    return KINDS[ERROR_CODES[code].kind or code]


class Invalid(ServiceError):
    """the request is not valid"""

    code = "invalid_params"

    @classmethod
    def of(cls, fields: Sequence[FieldError], *, code: str | None = None) -> "Invalid":
        """All bad members in one message.

        Args:
            code: see ServiceError.
        """
        return cls("; ".join(f"{field}: {message}" for field, message in fields), code=code, fields=fields)


class UnknownMethod(ServiceError):
    """unknown method"""

    code = "unknown_method"


class Malformed(ServiceError):
    """the body is not valid JSON"""

    code = "malformed_json"


class Unauthenticated(ServiceError):
    """not-allowed"""

    code = "unauthenticated"


class Forbidden(ServiceError):
    """not-allowed"""

    code = "forbidden"

    def __init__(
        self,
        message: str | None = None,
        *,
        scope: str | None = None,
        code: str | None = None,
        fields: Sequence[FieldError] = (),
    ) -> None:
        """
        Args:
            scope: the one that the key would need, told in a header: the body is the same for all.
        """
        super().__init__(
            message, code=code, fields=fields, headers={"X-Required-Scope": scope} if scope else None
        )
        self.scope = scope

    def told_fields(self) -> tuple[FieldError, ...]:
        """With the scope."""
        return self.fields + ((FieldError("scope", f"needs {self.scope}"),) if self.scope else ())


class MissingScope(Forbidden):
    """not-allowed"""

    # The key lacks the scope of the method, which X-Required-Scope names.
    code = "missing_scope"


class OperatorsOnly(Forbidden):
    """not-allowed"""

    # The method, or what is asked of it, takes an operator's key.
    code = "operators_only"


class InstanceSuspended(Forbidden):
    """not-allowed"""

    # The instance is suspended: its own keys can do nothing, operators' keys can read and manage it.
    code = "instance_suspended"


class MemberForbidden(Forbidden):
    """not-allowed"""

    # The method is allowed, but not this of it.
    code = "member_forbidden"


class NotHeld(Forbidden):
    """not-allowed"""

    # An instance that does not exist, or that the key does not hold: nothing tells the two apart.
    code = "not_held"


class NotFound(ServiceError):
    """not found"""

    code = "not_found"


class NoRoute(ServiceError):
    """no such address"""

    code = "no_route"


class WrongVerb(ServiceError):
    """this address does not take that HTTP method"""

    code = "method_not_allowed"


class BadExpectation(ServiceError):
    """this expectation cannot be met"""

    code = "bad_expect"


class Conflict(ServiceError):
    """the change conflicts with what is stored"""

    code = "conflict"


class UserDeleted(Conflict):
    """this user is deleted: restore or purge it first"""

    # The e-mail or externalId is that of a deleted user, who keeps both until it is purged.
    code = "user_deleted"


class PreconditionFailed(ServiceError):
    """what is to be changed was changed since"""

    code = "version_mismatch"


class IdempotencyConflict(ServiceError):
    """this idempotency key was used for another request"""

    code = "idempotency_conflict"


class StillRunning(ServiceError):
    """a call with this idempotency key is still running, try again"""

    code = "still_running"


class BadHttp(ServiceError):
    """this is not a valid HTTP request"""

    code = "bad_http"


class UriTooLong(ServiceError):
    """the address is too long"""

    code = "uri_too_long"


class HeadersTooLarge(ServiceError):
    """the headers are too large"""

    code = "headers_too_large"


class LengthRequired(ServiceError):
    """the header Content-Length is missing"""

    code = "length_required"


class TooLarge(ServiceError):
    """the body is too large"""

    code = "too_large"


class BatchFull(ServiceError):
    """the answers of this batch are too large; send this item and those after it in another one"""

    code = "batch_full"


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

    code = "unavailable"


class ConnectionLost(Unavailable):
    """the connection to the database was lost, try again"""

    code = "connection_lost"


class NotBegun(ConnectionLost):
    """the connection to the database was lost before anything was done, try again"""

    code = "not_begun"


class Contention(Unavailable):
    """concurrent changes got in each other's way, try again"""

    code = "contention"


class OutcomeUnknown(Unavailable):
    """the connection was lost while committing, look before trying again"""

    code = "outcome_unknown"


def _duplicate(name: str) -> str:
    # The text clients of this style of API match on; Postgres says it in the same words.
    return f'duplicate key value violates unique constraint "{name}"'


# Constraint -> (kind, code, message, the member of the params it is about). A violation that is not
# listed is a bug of ours and answered as one.
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
    # Gone while somebody was put into it, or it into something.
    "group_members_group": (NotFound, "not_found", "not found: there is no such group", "name"),
    "group_members_user": (NotFound, "not_found", "not found: there is no such user", "email"),
    "instances_name": (Conflict, "duplicate_instance", _duplicate("instances_name"), "name"),
    "api_keys_digest": (Conflict, "duplicate_key", _duplicate("api_keys_digest"), "key"),
    "positions_account": (Conflict, "already_placed", "the account stands in this tree already", "accountId"),
    "positions_depth": (Invalid, "too_deep", "the tree has 1000 levels already", "sponsorId"),
    "users_instance": (NotFound, "not_found", "not found", "instance"),
}  # fmt: skip

DUPLICATES = ("duplicate_email", "duplicate_external_id", "user_deleted")
"""The codes of what no two users of an instance share: whose it is already, a living or a deleted one."""

_NAME_IN_MESSAGE = re.compile(r'constraint "([^"]+)"')
_SHARD_SUFFIX = re.compile(r"_\d+$")


def from_constraint(constraint_name: str | None, message: str) -> ServiceError | None:
    """The error that a violated constraint stands for, or None if the table does not know it.

    Args:
        constraint_name: as Postgres reports it; None on a sharded cluster.
        message: the server's message, which names the shard's constraint there (users_email_102012).
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
