"""Typed settings, read once from the environment (OFFICERPC_*)."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, IPvAnyNetwork, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

OTHER_VARIABLES = frozenset(
    {"OFFICERPC_NEW_PASSWORD", "OFFICERPC_URL", "OFFICERPC_API_KEY", "OFFICERPC_TEST_DATABASE"}
)
"""Variables that are no settings: of users create, of the seed script, and of make test."""
BCRYPT_MAX_COST = 12
"""OWASP's cheat sheet on password storage asks for 10 at least; common systems make hashes of 10 to 12."""


def available_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """Every setting of the server; the environment variable is OFFICERPC_ and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="OFFICERPC_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=256, description="Worker processes.")
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        (), description="Networks, comma separated, whose X-Forwarded-For is believed."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")

    database_url: SecretStr | None = Field(
        None, description="Postgres address; unset: an embedded server in the data directory."
    )
    database_direct_url: SecretStr | None = Field(
        None,
        description="Postgres address past a transaction pooler such as pgbouncer. When set, database_url is "
        "taken to be the pooler; migrations and LISTEN go to this address.",
    )
    data_dir: Path = Field(Path(".data"), description="Directory for the embedded server and other files.")
    pool_size: int = Field(10, ge=1, le=1000, description="Database connections of each worker.")
    connect_timeout: float = Field(5.0, gt=0, description="Seconds to open a database connection.")
    acquire_timeout: float = Field(5.0, gt=0, description="Seconds to wait for a free connection.")
    statement_timeout: float = Field(10.0, gt=0, description="Seconds one statement may run.")
    lock_timeout: float = Field(5.0, gt=0, description="Seconds to wait for a lock.")
    idle_transaction_timeout: float = Field(15.0, gt=0, description="Seconds a transaction may idle.")
    call_timeout: float = Field(25.0, gt=0, description="Seconds one call may take, hashing included.")

    body_limit: int = Field(1024 * 1024, ge=1024, description="Bytes of a request body, after inflating.")
    body_timeout: float = Field(10.0, gt=0, description="Seconds a client may take to send a body.")
    keepalive_timeout: float = Field(
        25.0,
        gt=0,
        le=30,
        description="Seconds an idle connection, or one with unfinished headers, stays open.",
    )
    write_timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds after which a client that does not read its answer is disconnected.",
    )
    shutdown_timeout: float = Field(20.0, gt=0, description="Seconds that running calls get at shutdown.")
    unsent_limit: int = Field(
        64 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes of answers that clients have not read yet, in each worker; beyond it the oldest "
        "of whoever holds most are dropped with their connections.",
    )
    batch_answer_limit: int = Field(
        4 * 1024 * 1024,
        ge=1024,
        description="Bytes that the answers of a JSON-RPC batch may have before the rest of it is refused.",
    )
    scim_bulk_operations: int = Field(
        100, ge=1, le=1000, description="Operations that a SCIM bulk request may have."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins, comma separated, whose pages may call from a browser; unset: none."
    )

    argon2_memory: int = Field(19456, ge=8, description="Memory of one password hash in KiB (RFC 9106).")
    argon2_time: int = Field(2, ge=1, description="Passes of one password hash.")
    argon2_parallelism: int = Field(1, ge=1, description="Lanes of one password hash.")
    bcrypt_max_cost: int = Field(
        BCRYPT_MAX_COST,
        ge=4,
        le=16,
        description="Highest cost of bcrypt hashes that are taken from elsewhere; a step doubles the time, "
        "which is a quarter of a second at 12. Stored ones log in whatever they cost.",
    )
    hash_threads: int = Field(
        0, ge=0, description="Hashing threads of each worker; 0: the cores divided by the workers."
    )
    hash_queue: int = Field(
        400,
        ge=1,
        description="Hashes of one instance that may wait in one worker; more are refused with 503 and "
        "Retry-After.",
    )
    instance_queue: int = Field(
        400,
        ge=1,
        description="Calls of one instance that may wait for a database connection in one worker; more are "
        "refused with 503 and Retry-After.",
    )

    session_hours: int = Field(24, ge=1, le=24 * 365, description="Hours a login session lives.")
    retention_days: int = Field(
        30, ge=0, le=3650, description="Days a deleted user is kept, unless its instance says otherwise."
    )
    key_cache_size: int = Field(10_000, ge=1, description="API keys a worker remembers.")
    rate_limit: int = Field(
        100,
        ge=0,
        description="Calls a minute that each key may make on the publica.la wire, in each worker; 0: any.",
    )

    key_rate_limit: int = Field(
        0,
        ge=0,
        description="Calls a minute that each key without a rate of its own may make on all wires together, "
        "in each worker; 0: any.",
    )
    instance_rate_limit: int = Field(
        30_000,
        ge=0,
        description="Calls a minute that the keys of each instance without a rate of its own may make "
        "together, on all wires and in each worker; 0: any. One worker answers about six times as many.",
    )

    run_jobs: bool = Field(
        True, description="Whether serve also works the queue; false where officerpc work does it apart."
    )
    public_url: str = Field(
        "", description="Where clients reach this server, for links to its files; unset: as it listens."
    )
    smtp_host: str = Field(
        "", description="Mail server; unset: mails become .eml files in the data directory."
    )
    smtp_port: int = Field(587, ge=1, le=65535, description="Its port.")
    smtp_user: str = Field("", description="Name to log in with; unset: no login.")
    smtp_password: SecretStr | None = Field(None, description="Password to log in with.")
    smtp_tls: Literal["starttls", "implicit", "none"] = Field("starttls", description="How it is encrypted.")
    mail_from: str = Field("officerpc@localhost", description="Sender of mails.")
    code_hours: int = Field(24, ge=1, le=24 * 30, description="Hours a code in a mail can be redeemed.")
    picture_limit: int = Field(8 * 1024 * 1024, ge=1024, description="Bytes of a picture that is sent in.")
    picture_pixels: int = Field(40_000_000, ge=1, description="Pixels of a picture that is sent in.")

    webhook_private_addresses: bool = Field(
        False,
        description="Whether webhooks may lead to private addresses, any port and http, as in development.",
    )
    webhook_ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode] = Field(
        (443, 8443), min_length=1, description="Ports, comma separated, that webhooks may lead to."
    )
    webhook_concurrency: int = Field(
        40,
        ge=1,
        le=256,
        description="Deliveries that each worker sends to one webhook at the same time, at most; to those of "
        "one instance together twice as many.",
    )

    graph_url: str = Field("https://graph.microsoft.com/v1.0", description="Microsoft Graph.")
    graph_login_url: str = Field(
        "https://login.microsoftonline.com", description="Where tokens for Microsoft Graph come from."
    )

    bootstrap_instance: str = Field("MYINSTANCE", description="Instance created on first start.")
    bootstrap_admin_email: str = Field(
        "admin@example.com", description="Administrator of that instance, its first user."
    )
    bootstrap_api_key: SecretStr | None = Field(
        None, description="API key of that instance; unset: generated at creation and printed once."
    )

    @field_validator("trusted_proxies", "cors_origins", "webhook_ports", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("database_url", "database_direct_url", "bootstrap_api_key", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("database_url", "database_direct_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("a database address begins with postgresql://")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # As browsers write them (RFC 6454, section 6.2): small letters, no path, no default port.
        for origin in value:
            if not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[1-9]\d{0,4})?", origin):
                raise ValueError("an origin is written as https://shop.example or https://shop.example:8443")
        return value

    @field_validator("graph_url", "graph_login_url")
    @classmethod
    def _encrypted(cls, value: str) -> str:
        # Secrets go there. A stand-in on the same machine may do without.
        if not re.match(r"https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/]", value + "/"):
            raise ValueError("must be an https address")
        return value.rstrip("/")

    @field_validator("bootstrap_api_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not (
            16 <= len(value.get_secret_value()) <= 200 and value.get_secret_value().isascii()
        ):
            raise ValueError("an API key has 16 to 200 ASCII characters")
        return value

    def threads_for_hashing(self) -> int:
        """Hashing threads of one worker, so that all workers together use each core once."""
        return self.hash_threads or max(1, available_cores() // self.workers)

    def own_address(self) -> str:
        """Where clients reach this server, without a slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.public_url.rstrip("/") or f"http://{host}:{self.port}"

    def shown(self) -> dict[str, Any]:
        """Every setting by its environment name, with secrets hidden, ready for JSON."""
        return {f"OFFICERPC_{name.upper()}": value for name, value in self.model_dump(mode="json").items()}


def unknown_variables() -> dict[str, str | None]:
    """The OFFICERPC_* variables that nothing reads, each with the name that was probably meant."""
    known = {f"OFFICERPC_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    unknown = sorted(name for name in os.environ if name.startswith("OFFICERPC_") and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, 1)), None) for name in unknown}
