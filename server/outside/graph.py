"""Microsoft Graph: creates users in an instance's directory.

Sources: the client credentials flow of the Microsoft identity platform; "Create user", "Get user",
"onPremisesExtensionAttributes" and "Throttling" of Graph v1.0.
"""

import re
import time
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
from pydantic import Field, FieldSerializationInfo, SecretStr, field_serializer
from yarl import URL

from server.base.models import HIDDEN, IN_EVENTS, WITH_SECRETS, Host
from server.base.settings import Settings
from server.base.strict import Strict
from server.base.tokens import digest, new_secret

TIMEOUT = 20.0
"""Seconds that each request may take."""
EARLY = 60.0
"""Seconds before its expiry after which a token is not used."""
MAX_TOKENS = 1000
MARK = "extensionAttribute15"
"""The attribute with our idempotency marker; employeeId, with 16 characters, is too short for it."""

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
# Everything else is valid in a user principal name, and so in a nickname.
_NOT_IN_NICKNAME = re.compile(r"[^A-Za-z0-9'._!#^~-]")


class Office365(Strict):
    """An instance's application at Microsoft, which may create users (User.ReadWrite.All)."""

    tenantId: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,99}$",
        description="The directory (tenant): its id or one of its domains.",
    )
    clientId: str = Field(pattern=r"^[A-Za-z0-9-]{1,100}$", description="The application (client) id.")
    clientSecret: SecretStr | None = Field(
        None, min_length=1, max_length=500, description="Never shown: null in every answer."
    )
    domain: Host | None = Field(
        None, description="In place of the e-mail's domain, if that is not one of the directory."
    )
    usageLocation: str | None = Field(
        None, pattern=r"^[A-Z]{2}$", description="Country (ISO 3166-1) of new users; licences need it."
    )

    @field_serializer("clientSecret")
    def _shown(self, secret: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        if secret is None:
            return None
        if info.context == WITH_SECRETS:
            return secret.get_secret_value()
        return HIDDEN if info.context == IN_EVENTS else None


class Refused(Exception):
    """Graph refuses to create this user, and will again unless something is changed"""

    def __init__(self, code: str, message: str = "") -> None:
        self.code = code
        self.told = f"{code}: {message}" if message else code
        super().__init__(code)


class Busy(Refused):
    """Graph cannot be reached, or asks for a later retry"""

    def __init__(self, code: str, seconds: float = 0.0) -> None:
        self.seconds = seconds
        super().__init__(code)


class Graph:
    """Creates users, with one HTTP session for all instances and a token for each."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._tokens: dict[tuple[str, ...], tuple[float, str]] = {}

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def create_user(
        self,
        settings: Settings,
        credentials: Office365,
        *,
        email: str,
        display_name: str,
        first_name: str | None,
        last_name: str | None,
        is_active: bool,
        mark: str,
    ) -> str | None:
        """Create a user, who cannot sign in before an administrator of the directory sets a password.

        The password that Graph requires is random, must be changed at the first sign-in, and is not stored.
        The user's own password is known as a hash only, and must not be in a queue in clear.

        Args:
            mark: the idempotency marker; an existing user with it was created by an earlier try.

        Returns:
            Graph's id of the user.

        Raises:
            Busy: another try may succeed.
            Refused: no try will; `name_taken` if another user has the name.
        """
        name, _, domain = email.rpartition("@")
        principal = f"{name}@{credentials.domain or domain}"
        body: dict[str, Any] = {
            "accountEnabled": is_active,
            "displayName": display_name,
            "mailNickname": _NOT_IN_NICKNAME.sub("", name)[:64] or "user",
            "userPrincipalName": principal,
            "onPremisesExtensionAttributes": {MARK: mark},
            "passwordProfile": {"forceChangePasswordNextSignIn": True, "password": new_secret(28) + "aA9!"},
        }
        optional = {"givenName": first_name, "surname": last_name, "usageLocation": credentials.usageLocation}
        body |= {member: value for member, value in optional.items() if value}
        status, answer, retry_after = await self._asked(settings, credentials, "POST", "/users", json=body)
        if _exists_already(status, answer):
            # In parentheses any name is possible; quotes are doubled (OData).
            named = quote(principal.replace("'", "''"), safe="@")
            path = f"/users('{named}')?$select=id,onPremisesExtensionAttributes"
            status, answer, retry_after = await self._asked(settings, credentials, "GET", path)
            if status == 404:  # just created, and not replicated yet
                raise Busy("http_404", retry_after)
            marks = answer.get("onPremisesExtensionAttributes")
            if status == 200 and not (isinstance(marks, dict) and marks.get(MARK) == mark):
                raise Refused("name_taken")
        if 200 <= status < 300:
            object_id = answer.get("id")
            return object_id[:100] if isinstance(object_id, str) else None
        raise _failure(status, answer.get("error"), retry_after)

    async def _asked(
        self, settings: Settings, credentials: Office365, verb: str, path: str, **content: Any
    ) -> tuple[int, dict[str, Any], float]:
        url = f"{settings.graph_url}{path}"
        for _ in range(2):
            headers = {"Authorization": f"Bearer {await self._token(settings, credentials)}"}
            answered = await self._request(verb, url, headers=headers, **content)
            if answered[0] != 401:
                break
            self._tokens.pop(_token_key(settings, credentials), None)  # revoked early
        return answered

    async def _token(self, settings: Settings, credentials: Office365) -> str:
        """A valid token (RFC 6749, section 4.4)."""
        key = _token_key(settings, credentials)
        until, token = self._tokens.get(key, (0.0, ""))
        if until > time.monotonic():
            return token
        assert credentials.clientSecret is not None
        parts = urlsplit(settings.graph_url)
        form = {
            "grant_type": "client_credentials",
            "client_id": credentials.clientId,
            "client_secret": credentials.clientSecret.get_secret_value(),
            "scope": f"{parts.scheme}://{parts.netloc}/.default",
        }
        url = f"{settings.graph_login_url}/{credentials.tenantId}/oauth2/v2.0/token"
        asked = time.monotonic()
        status, answer, retry_after = await self._request("POST", url, data=form)
        if status != 200:
            described = {"code": answer.get("error"), "message": answer.get("error_description")}
            raise _failure(status, described, retry_after)
        token = answer.get("access_token", "")
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise Busy("no_token")
        try:
            lifetime = float(answer.get("expires_in") or 0)
        except (TypeError, ValueError):
            lifetime = 0.0
        if len(self._tokens) >= MAX_TOKENS:
            self._tokens.clear()
        self._tokens[key] = (asked + lifetime - EARLY, token)
        return token

    async def _request(self, verb: str, url: str, **content: Any) -> tuple[int, dict[str, Any], float]:
        """The status, the JSON object of the answer ({} if it is none), and the seconds of Retry-After."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT),
                json_serialize=lambda value: orjson.dumps(value).decode(),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        try:
            # No redirects: they could send a secret elsewhere.
            async with self._session.request(
                verb, URL(url, encoded=True), allow_redirects=False, **content
            ) as response:
                text = await response.read()
                seconds = response.headers.get("Retry-After", "")
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Busy("unreachable") from error
        try:
            answer = orjson.loads(text)
        except orjson.JSONDecodeError:
            answer = {}
        retry_after = float(seconds) if re.fullmatch(r"[0-9]{1,6}", seconds) else 0.0
        return status, answer if isinstance(answer, dict) else {}, retry_after


def _token_key(settings: Settings, credentials: Office365) -> tuple[str, ...]:
    secret = credentials.clientSecret.get_secret_value() if credentials.clientSecret else ""
    return (settings.graph_login_url, credentials.tenantId, credentials.clientId, digest(secret).hex())


def _exists_already(status: int, answer: dict[str, Any]) -> bool:
    """Whether a user with this name exists: perhaps ours, if a worker died before it stored the result."""
    if status == 409:
        return True
    error = answer.get("error")
    if status != 400 or not isinstance(error, dict):
        return False
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and detail.get("code") == "ObjectConflict":
            return detail.get("target") in (None, "userPrincipalName")
    # Not every answer has details; Graph has used these words for years.
    message = str(error.get("message"))
    return "userPrincipalName already exists" in message


def _failure(status: int, error: Any, retry_after: float) -> Refused:
    code, message = "", ""
    if isinstance(error, dict):
        code = re.sub(r"[^A-Za-z0-9_.-]", "", str(error.get("code") or ""))[:64]
        message = " ".join(str(error.get("message") or "").split())[:400]
    if status in _PASSING or status >= 500:
        return Busy(f"http_{status}", retry_after)
    return Refused(code or f"http_{status}", "".join(char for char in message if char.isprintable()))
