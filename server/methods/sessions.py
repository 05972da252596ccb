"""Logins and sessions. A session token is an opaque string of 40 characters, stored as its digest."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from server.base.errors import Invalid, MemberForbidden, NotFound
from server.base.models import SECRET, Id, Result, TenantParams
from server.base.pages import After, Limit, Next, number_below, page, parts_of
from server.base.tokens import digest, new_secret
from server.directory import change, throttle
from server.directory.lookups import named, read_user
from server.directory.rows import Edit
from server.directory.users import USER, ExternalId, Password, User, UserRef, email_key, found
from server.methods.registry import Example, method
from server.methods.store import StoreUserRef, find_id
from server.tenants import access
from server.tenants.call import Call

TOKEN_LENGTH = 40
Token = Annotated[str, Field(min_length=1, max_length=200, description="From login."), SECRET]

EXAMPLE_TOKEN = "ExampleTokenExampleTokenExampleToken1234"  # noqa: S105
_LOGGED_IN = USER | {"token": EXAMPLE_TOKEN, "tokenExpiresAt": 1683557662}


class WrongLogin(Invalid):
    """Login or password is incorrect"""

    code = "wrong_login"


class Login(TenantParams):
    """Credentials of a user."""

    email: Annotated[str, Field(min_length=1, max_length=254, description="E-mail or login, in any case.")]
    password: Password
    clientAddress: throttle.ClientAddress | None = None


class Verified(NamedTuple):
    """The user with a correct password, and what create_session needs."""

    user_id: int
    # Key for read_user; differs from the name at login if that is no e-mail.
    email_key: str
    password_hash: str
    # To be stored instead, or None.
    new_password_hash: str | None


async def verify_password(call: Call, login: str, password: str, client_address: str | None) -> Verified:
    """Check a password. No database connection is held during hashing.

    Args:
        login: e-mail or login, in any case.
        client_address: of the end user, or None.

    Raises:
        WrongLogin: wrong password, or the user is unknown, suspended, deleted or has no password. All
            take the time to verify a hash made by this server; imported hashes may differ.
        TooMany: too many failed logins of this account or client address; also for the correct password.
    """
    forgiven = throttle.of_account(email_key(login), client_address)
    subjects = forgiven + throttle.of_address(client_address)
    await throttle.check(call.database.look_up, call.instance.id, subjects)
    row = await call.database.look_up("get_credential", instance_id=call.instance.id, **named(login=login))
    is_correct = await call.hasher.verify(row and row["password_hash"], password)
    if row is None or not is_correct:
        async with call.database.connection() as db:
            await throttle.note_failure(db.one, call.instance.id, subjects)
        raise WrongLogin
    if call.context.dry_run:
        await throttle.check(call.database.look_up, call.instance.id, subjects)
    else:
        async with call.database.connection() as db:
            await throttle.note_success(db.one, call.instance.id, forgiven, subjects)
    return Verified(row["user_id"], row["email_key"], row["password_hash"], None)


async def _prepare_login(call: Call, params: Login) -> Verified:
    verified = await verify_password(call, params.email, params.password, params.clientAddress)
    if call.hasher.outdated(verified.password_hash, params.password):
        return verified._replace(new_password_hash=await call.hasher.hash(params.password))
    return verified


@method(
    "login",
    result=User,
    scope="sessions:write",
    prepare=_prepare_login,
    keeps_answer=False,
    errors=(WrongLogin, "login_delayed"),
    examples=(
        Example("Correct password", {"email": "jane@example.com", "password": "demo1234"}, _LOGGED_IN),
    ),
)
async def login(call: Call, params: Login, verified: Verified) -> Any:
    """Log a user in by e-mail or login. Returns the user as getUserByEmail does, with a session token.

    The token is shown only here; tokenExpiresAt is in Unix seconds. If the user has a sessionsLimit, its
    oldest sessions above it end.

    Failed logins delay further ones, which get 429 and Retry-After, even with the correct password.

    - Per account (existing or not) and clientAddress: after five failures one second, then two, four and so
      on, up to 15 minutes. One failure is forgotten every 15 minutes, all of them after a correct password
      from that address.
    - Per clientAddress: the same after twenty failures for any accounts. One is forgotten every minute.
    - Per account: after five failures from any addresses, at most four seconds.

    Failed logins in a dry run count too. Give the clientAddress: without it only the last rule slows down an
    attacker, and it also delays the owner of the account.

    An Idempotency-Key is ignored: a retry checks the password again and starts another session, as a stored
    answer could show an old password or an ended session as valid.

    An unknown account takes as long as a password that was hashed here. A user with an imported passwordHash,
    such as bcrypt, takes another time until its first login, so an attacker can tell that it exists.
    """
    token = new_secret(TOKEN_LENGTH)
    session = await call.db.one(
        "create_session",
        instance_id=call.instance.id,
        user_id=verified.user_id,
        password_hash=verified.password_hash,
        new_password_hash=verified.new_password_hash,
        token_digest=digest(token),
        lifetime=call.settings.session_hours * 3600,
    )
    user = await read_user(call, verified.email_key)
    if session is None or user is None:
        raise WrongLogin  # suspended, deleted or password changed during the check
    if session["sessions_limit"] is not None:
        # A statement of its own: create_session does not see the sessions of logins that it waited for.
        ended = await call.db.value(
            "end_excess_sessions",
            instance_id=call.instance.id,
            user_id=verified.user_id,
            sessions_limit=session["sessions_limit"],
        )
        if ended:
            limit = session["sessions_limit"]
            call.emit(
                "session.revoked", verified.user_id,
                before={"sessions": limit + ended}, after={"sessions": limit},
            )  # fmt: skip
    call.emit(
        "session.created",
        verified.user_id,
        after={"sessionId": session["id"], "expiresAt": session["expires_at"]},
    )
    return dict(user) | {"token": token, "tokenExpiresAt": session["expires_at"]}


class TokenRef(TenantParams):
    """A session by its token."""

    token: Token


class LoginWithToken(TokenRef):
    """A session by its token, and the address of its user."""

    clientAddress: throttle.ClientAddress | None = None


@method(
    "loginWithToken",
    result=User,
    scope="sessions:write",
    writes=False,
    errors=(WrongLogin, "login_delayed"),
    examples=(Example("A session", {"token": EXAMPLE_TOKEN}, _LOGGED_IN),),
)
async def login_with_token(call: Call, params: LoginWithToken) -> Any:
    """The user of a session, as login returned it. The session is not extended.

    Wrong tokens count as failed logins of the clientAddress, if given.
    """
    subjects = throttle.of_address(params.clientAddress)
    await throttle.check(call.db.one, call.instance.id, subjects)
    session = await call.db.one(
        "find_session", instance_id=call.instance.id, token_digest=digest(params.token)
    )
    user = await read_user(call, session["email_key"]) if session else None
    if session is None or user is None:
        await throttle.note_failure(call.db.one, call.instance.id, subjects)
        raise WrongLogin
    return dict(user) | {"token": params.token, "tokenExpiresAt": session["expires_at"]}


@method(
    "logout",
    scope="sessions:write",
    errors=(NotFound,),
    examples=(Example("End a session", {"token": EXAMPLE_TOKEN}, True),),
)
async def logout(call: Call, params: TokenRef) -> Literal[True]:
    """End one session, by token."""
    session = found(
        await call.db.one("end_session", instance_id=call.instance.id, token_digest=digest(params.token))
    )
    call.emit("session.revoked", session["user_id"], before={"sessionId": session["id"]})
    return True


class ListSessions(UserRef):
    """A user and a page."""

    after: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="Id of the last session of the previous page."
    )
    limit: Limit = 100


class Session(Result):
    """A session without its token."""

    id: int
    email: str
    createdAt: int = Field(description="Unix seconds.")
    expiresAt: int = Field(description="Unix seconds.")


@method(
    "listSessions",
    result=list[Session],
    scope="sessions:read",
    errors=(NotFound,),
    examples=(
        Example(
            "One session",
            {"email": "jane@example.com"},
            [{"id": 1, "email": "jane@example.com", "createdAt": 1683471262, "expiresAt": 1683557662}],
        ),
    ),
)
async def list_sessions(call: Call, params: ListSessions) -> Any:
    """List the sessions of a user, oldest first, without expired ones."""
    user = {"instance_id": call.instance.id, "email_key": email_key(params.email)}
    rows = await call.db.all("list_sessions", **user, after=params.after, row_limit=params.limit)
    if not rows and await call.db.one("find_user", **user) is None:
        raise NotFound
    return [dict(row) for row in rows]


async def _log_out(call: Call, *, user_id: int | None = None, email: str | None = None) -> Literal[True]:
    user = await change.hold_user(call, user_id=user_id, email=email)
    ref = {"instance_id": call.instance.id, "email_key": user["email_key"]}
    # Without a session nothing changes, which every key may do.
    may_change = access.may_change_user(call.caller, user)
    if may_change or await call.db.all("list_sessions", **ref, after=0, row_limit=1):
        await change.change(call, Edit(user, user, logs_out=True))
    return True


@method(
    "forceLogoutByEmail",
    scope="sessions:write",
    errors=(NotFound, MemberForbidden),
    examples=(Example("End all sessions", {"email": "jane@example.com"}, True),),
)
async def force_logout_by_email(call: Call, params: UserRef) -> Literal[True]:
    """End all sessions of a user. For an administrator, needs the scope users:admin."""
    return await _log_out(call, email=params.email)


@method(
    "forceLogoutById",
    scope="sessions:write",
    errors=(NotFound, MemberForbidden),
    examples=(Example("End all sessions", {"id": 2}, True),),
)
async def force_logout_by_id(call: Call, params: StoreUserRef) -> Literal[True]:
    """End all sessions of a user, as forceLogoutByEmail does."""
    return await _log_out(call, user_id=await params.find_id(call))


class ListAuthSessions(TenantParams):
    """A filter and a page."""

    userId: Id | None = Field(None, description="Sessions of this user.")
    externalId: ExternalId | None = Field(None, description="Sessions of the user with this external id.")
    after: After = None
    limit: Annotated[int, Field(ge=1, le=200)] = 100


class AuthSession(Session):
    """A session and its user."""

    userId: int
    externalId: str | None


class AuthSessionPage(Result):
    """A page of sessions, newest first."""

    sessions: list[AuthSession]
    next: Next


@method(
    "listAuthSessions",
    result=AuthSessionPage,
    scope="sessions:read",
    examples=(
        Example(
            "One session", {"userId": 2},
            {"sessions": [{"id": 1, "userId": 2, "email": "jane@example.com", "externalId": None,
                           "createdAt": 1683471262, "expiresAt": 1683557662}],
             "next": None},
        ),
    ),
)  # fmt: skip
async def list_auth_sessions(call: Call, params: ListAuthSessions) -> Any:
    """List the sessions of an instance or of one user, without expired ones. An unknown user has none."""
    before = parts_of(params.after, number_below(2**63))[0] if params.after else 2**63 - 1
    user_id = params.userId
    if params.externalId is not None:
        by_external_id = await find_id(call, external_id=params.externalId)
        if by_external_id is None or user_id not in (None, by_external_id):
            return {"sessions": [], "next": None}
        user_id = by_external_id
    rows = await call.db.all(
        "list_auth_sessions",
        instance_id=call.instance.id,
        user_id=user_id,
        before=before,
        row_limit=params.limit + 1,
    )
    shown, after = page(rows, params.limit, lambda row: str(row["id"]))
    return {"sessions": [dict(row) for row in shown], "next": after}


class SessionId(TenantParams):
    """A session by its id."""

    id: Id


@method(
    "endSession",
    scope="sessions:write",
    errors=(NotFound, MemberForbidden),
    examples=(Example("End a session", {"id": 1}, True),),
)
async def end_session(call: Call, params: SessionId) -> Literal[True]:
    """End one session, by id. For an administrator, needs the scope users:admin."""
    session = found(
        await call.db.one("end_session_by_id", instance_id=call.instance.id, session_id=params.id)
    )
    access.require_user(call.caller, session)
    call.emit("session.revoked", session["user_id"], before={"sessionId": session["id"]})
    return True
