"""Login sessions: opaque tokens of 40 characters, stored hashed."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from server.base.errors import Invalid, MemberForbidden, NotFound
from server.base.models import SECRET, Result, TenantParams
from server.base.pages import Limit
from server.base.tokens import digest, new_secret
from server.directory import change, throttle
from server.directory.lookups import named, read_user
from server.directory.rows import Edit
from server.directory.users import (
    USER,
    Password,
    User,
    UserRef,
    email_key,
    found,
)
from server.methods.registry import Example, method
from server.tenants.call import Call

TOKEN_LENGTH = 40
Token = Annotated[str, Field(min_length=1, max_length=200, description="As login answered it."), SECRET]

EXAMPLE_TOKEN = "ExampleTokenExampleTokenExampleToken1234"  # noqa: S105
_LOGGED_IN = USER | {"token": EXAMPLE_TOKEN, "tokenExpiresAt": 1683557662}


class WrongLogin(Invalid):
    """Login or password is incorrect"""

    code = "wrong_login"


class Login(TenantParams):
    """Who logs in."""

    email: Annotated[str, Field(min_length=1, max_length=254, description="Its e-mail, or its login.")]
    password: Password
    clientAddress: throttle.ClientAddress | None = None


class Verified(NamedTuple):
    """A right password: whose, against which stored hash, and the hash to store instead, if any."""

    user_id: int
    # What getUserByEmail finds the user by, whatever name it logs in with.
    email_key: str
    password_hash: str
    new_password_hash: str | None


async def verify_password(call: Call, params: Login) -> Verified:
    """Check a password without holding a connection while it is hashed.

    Raises:
        WrongLogin: wrong password, or a user who is unknown, suspended, deleted or without a password; all of
            them take the time of one verification, as this server hashes. Hashes made otherwise differ.
        TooMany: too many have failed for this account, or from this address, whatever the password is.
    """
    key = email_key(params.email)
    forgiven = throttle.of_account(key, params.clientAddress)
    subjects = forgiven + throttle.of_address(params.clientAddress)
    await throttle.check(call.database.look_up, call.instance.id, subjects)
    row = await call.database.look_up(
        "get_credential", instance_id=call.instance.id, **named(login=params.email)
    )
    right = await call.hasher.verify(row and row["password_hash"], params.password)
    if row is None or not right:
        async with call.database.connection() as db:
            await throttle.note_failure(db.one, call.instance.id, subjects)
        raise WrongLogin
    if call.context.dry_run:
        await throttle.check(call.database.look_up, call.instance.id, subjects)
    else:
        async with call.database.connection() as db:
            await throttle.note_success(db.one, call.instance.id, forgiven, subjects)
    return Verified(row["user_id"], row["email_key"], row["password_hash"], None)


async def verify_and_renew(call: Call, params: Login) -> Verified:
    """verify_password, and a new hash where the stored one was made with bcrypt or other parameters."""
    verified = await verify_password(call, params)
    if call.hasher.outdated(verified.password_hash, params.password):
        return verified._replace(new_password_hash=await call.hasher.hash(params.password))
    return verified


@method(
    "login",
    result=User,
    scope="sessions:write",
    writes=True,
    prepare=verify_and_renew,
    keeps_answer=False,
    errors=(WrongLogin, "login_delayed"),
    examples=(
        Example("A right password", {"email": "jane@example.com", "password": "demo1234"}, _LOGGED_IN),
    ),
)
async def login(call: Call, params: Login, verified: Verified) -> Any:
    """Log a user in, by its e-mail or its login: the user as getUserByEmail shows it, with a session token.

    The token is shown here once; tokenExpiresAt is in Unix seconds. Where the user has a sessionsLimit, its
    oldest sessions beyond that end.

    After five failures of an account, known or not, from a clientAddress further logins are refused for a
    second, with 429 and Retry-After, then for two, four and so on up to a quarter of an hour; one failure is
    forgiven every quarter of an hour, and all of them by a right password from there. The same goes for
    twenty failures from a clientAddress, whatever the accounts, one of which is forgiven every minute. After
    five failures of an account from anywhere further logins are refused for at most four seconds, wherever
    they come from. While a login is refused the right password is too. Failed logins count in a dry run as
    well.

    An Idempotency-Key is ignored: sent again, a login checks the password again and begins another session,
    so that no stored answer stands for a password that has changed or a session that has ended.

    Give the clientAddress: without it nobody can tell who guesses from who owns the account, and guesses are
    slowed by the last rule alone.

    An unknown account takes as long as one whose password was hashed here. One that came with a passwordHash
    made otherwise, such as bcrypt, takes another time until its user has logged in, and can be told by it.
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
        raise WrongLogin  # suspended, deleted or given another password while we verified
    if session["sessions_limit"] is not None:
        # A statement of its own: that of the session does not see those of logins that it waited for.
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
    """A session by its token."""

    clientAddress: throttle.ClientAddress | None = None


@method(
    "loginWithToken",
    result=User,
    scope="sessions:write",
    writes=False,
    errors=(WrongLogin, "login_delayed"),
    examples=(Example("A living session", {"token": EXAMPLE_TOKEN}, _LOGGED_IN),),
)
async def login_with_token(call: Call, params: LoginWithToken) -> Any:
    """The user of a living session, as login answered it; the session is not prolonged.

    Wrong tokens count as failed logins of the clientAddress, where that is given.
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
    writes=True,
    errors=(NotFound,),
    examples=(Example("End a session", {"token": EXAMPLE_TOKEN}, True),),
)
async def logout(call: Call, params: TokenRef) -> Literal[True]:
    """End one session."""
    session = found(
        await call.db.one("end_session", instance_id=call.instance.id, token_digest=digest(params.token))
    )
    call.emit("session.revoked", session["user_id"], before={"sessionId": session["id"]})
    return True


class ListSessions(UserRef):
    """Whose sessions, and from where on."""

    after: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="The id of the last session of the page before."
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
    writes=False,
    errors=(NotFound,),
    examples=(
        Example(
            "One living session",
            {"email": "jane@example.com"},
            [{"id": 1, "email": "jane@example.com", "createdAt": 1683471262, "expiresAt": 1683557662}],
        ),
    ),
)
async def list_sessions(call: Call, params: ListSessions) -> Any:
    """List the living sessions of a user, the oldest first."""
    user = {"instance_id": call.instance.id, "email_key": email_key(params.email)}
    rows = await call.db.all("list_sessions", **user, after=params.after, row_limit=params.limit)
    if not rows and await call.db.one("find_user", **user) is None:
        raise NotFound
    return [dict(row) for row in rows]


@method(
    "forceLogoutByEmail",
    scope="sessions:write",
    writes=True,
    errors=(NotFound, MemberForbidden),
    examples=(Example("End all sessions", {"email": "jane@example.com"}, True),),
)
async def force_logout_by_email(call: Call, params: UserRef) -> Literal[True]:
    """End every session of a user, whether or not there is any.

    An administrator's needs the scope users:admin.
    """
    user = await change.hold_user(call, email=params.email)
    await change.change(call, Edit(user, user, logs_out=True))
    return True
