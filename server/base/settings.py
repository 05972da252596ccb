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
"""Variables that are not settings: for `officerpc users create`, scripts/seed.py and make test."""
BCRYPT_MAX_COST = 12
"""OWASP's password storage cheat sheet requires 10 or more; common systems use 10 to 12."""


def available_cores() -> int:
    """CPU cores that this process may use; in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """Every setting of the server; the environment variable is OFFICERPC_ and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="OFFICERPC_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=256, description="Worker processes.")
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        (), description="Networks, comma separated, whose X-Forwarded-For is trusted."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level logged."
    )

    database_url: SecretStr | None = Field(
        None, description="Postgres address; unset: an embedded server in the data directory."
    )
    database_direct_url: SecretStr | None = Field(
        None,
        description="Postgres address past the pooler (pgbouncer) at database_url: for migrations, LISTEN.",
    )
    data_dir: Path = Field(Path(".data"), description="Directory for the embedded server and other files.")
    pool_size: int = Field(10, ge=1, le=1000, description="Database connections of each worker.")
    connect_timeout: float = Field(5.0, gt=0, description="Seconds to open a database connection.")
    acquire_timeout: float = Field(5.0, gt=0, description="Seconds to wait for a free database connection.")
    statement_timeout: float = Field(10.0, gt=0, description="Seconds one statement may run.")
    lock_timeout: float = Field(5.0, gt=0, description="Seconds to wait for a lock.")
    idle_transaction_timeout: float = Field(15.0, gt=0, description="Seconds a transaction may be idle.")
    call_timeout: float = Field(25.0, gt=0, description="Seconds one call may take, with password hashing.")

    body_limit: int = Field(1024 * 1024, ge=1024, description="Bytes of a request body, decompressed.")
    body_timeout: float = Field(10.0, gt=0, description="Seconds for a client to send a body.")
    keepalive_timeout: float = Field(
        25.0, gt=0, le=30, description="Seconds an idle connection or incomplete headers may last."
    )
    write_timeout: float = Field(
        30.0, gt=0, description="Seconds after which a client that does not read its answer is disconnected."
    )
    shutdown_timeout: float = Field(20.0, gt=0, description="Seconds for running calls at shutdown.")
    unsent_limit: int = Field(
        64 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes of unread answers in each worker; beyond it the instance with most of them loses "
        "its oldest and their connections.",
    )
    batch_answer_limit: int = Field(
        4 * 1024 * 1024, ge=1024, description="Bytes of JSON-RPC batch answers; later items are refused."
    )
    scim_bulk_operations: int = Field(
        100, ge=1, le=1000, description="Operations that a SCIM bulk request may have."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins, comma separated, that may call from a browser (CORS); unset: none."
    )

    argon2_memory: int = Field(19456, ge=8, description="Memory of one password hash in KiB (RFC 9106).")
    argon2_time: int = Field(2, ge=1, description="Passes of one password hash.")
    argon2_parallelism: int = Field(1, ge=1, description="Lanes of one password hash.")
    bcrypt_max_cost: int = Field(
        BCRYPT_MAX_COST,
        ge=4,
        le=16,
        description="Highest cost of imported bcrypt hashes. Each step doubles the time; 12 takes 0.25 s. "
        "Stored hashes of any cost can log in.",
    )
    hash_threads: int = Field(
        0, ge=0, description="Hashing threads of each worker; 0: cores divided by workers."
    )
    hash_queue: int = Field(
        400, ge=1, description="Hashes of an instance that may wait in each worker; more: 503."
    )
    instance_queue: int = Field(
        400, ge=1, description="Calls of an instance that may wait for Postgres in each worker; more: 503."
    )

    session_hours: int = Field(24, ge=1, le=24 * 365, description="Hours until a login session expires.")
    retention_days: int = Field(
        30, ge=0, le=3650, description="Days a deleted user is kept, unless its instance has its own number."
    )
    key_cache_size: int = Field(10_000, ge=1, description="API keys that each worker caches.")
    rate_limit: int = Field(
        100, ge=0, description="Calls a minute of each key on the publica.la wire, in each worker; 0: any."
    )

    key_rate_limit: int = Field(
        0, ge=0, description="Calls a minute of each key without its own rate, in each worker; 0: any."
    )
    instance_rate_limit: int = Field(
        30_000,
        ge=0,
        description="Calls a minute of all keys of an instance without its own rate, in each worker; 0: any. "
        "One worker can answer about six times the default.",
    )

    run_jobs: bool = Field(
        True, description="Whether `officerpc serve` also runs jobs; false if `officerpc work` runs them."
    )
    public_url: str = Field(
        "", description="Address of this server for links to its files; unset: its host and port."
    )
    smtp_host: str = Field(
        "", description="SMTP server; unset: mails are written to .eml files in the data directory."
    )
    smtp_port: int = Field(587, ge=1, le=65535, description="SMTP port.")
    smtp_user: str = Field("", description="SMTP user name; unset: no login.")
    smtp_password: SecretStr | None = Field(None, description="SMTP password.")
    smtp_tls: Literal["starttls", "implicit", "none"] = Field("starttls", description="SMTP encryption.")
    mail_from: str = Field("officerpc@localhost", description="Sender of mails.")
    code_hours: int = Field(24, ge=1, le=24 * 30, description="Hours until a mailed code expires.")
    picture_limit: int = Field(8 * 1024 * 1024, ge=1024, description="Bytes of an uploaded picture.")
    picture_pixels: int = Field(40_000_000, ge=1, description="Pixels of an uploaded picture.")

    webhook_private_addresses: bool = Field(
        False, description="Whether webhooks may use private addresses, any port and http; for development."
    )
    webhook_ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode] = Field(
        (443, 8443), min_length=1, description="Ports, comma separated, that webhooks may use."
    )
    webhook_concurrency: int = Field(
        40,
        ge=1,
        le=256,
        description="Deliveries that each worker sends to one webhook at the same time; to all webhooks of "
        "an instance twice as many.",
    )

    graph_url: str = Field("https://graph.microsoft.com/v1.0", description="Microsoft Graph API.")
    graph_login_url: str = Field(
        "https://login.microsoftonline.com", description="Token endpoint for Microsoft Graph."
    )

    bootstrap_instance: str = Field("MYINSTANCE", description="Instance created at the first start.")
    bootstrap_admin_email: str = Field(
        "admin@example.com", description="Administrator of that instance, its first user."
    )
    bootstrap_api_key: SecretStr | None = Field(
        None, description="API key of that instance; unset: generated and printed once."
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
        # As browsers send them (RFC 6454, section 6.2): lower case, no path, no default port.
        for origin in value:
            if not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[1-9]\d{0,4})?", origin):
                raise ValueError("an origin is written as https://shop.example or https://shop.example:8443")
        return value

    @field_validator("graph_url", "graph_login_url")
    @classmethod
    def _encrypted(cls, value: str) -> str:
        # Secrets are sent there. http is allowed for a stand-in on the same machine.
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
        """Hashing threads of one worker: all workers together use each core once."""
        return self.hash_threads or max(1, available_cores() // self.workers)

    def listen_address(self) -> str:
        """Host and port as in a URL: an IPv6 address is in brackets (RFC 3986, section 3.2.2)."""
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"{host}:{self.port}"

    def own_address(self) -> str:
        """Where clients reach this server, without a slash at the end."""
        return self.public_url.rstrip("/") or f"http://{self.listen_address()}"

    def shown(self) -> dict[str, Any]:
        """Every setting by its environment name, with secrets hidden, ready for JSON."""
        return {f"OFFICERPC_{name.upper()}": value for name, value in self.model_dump(mode="json").items()}


def unknown_variables() -> dict[str, str | None]:
    """Unknown OFFICERPC_* variables, each with the most similar known name."""
    known = {f"OFFICERPC_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    unknown = sorted(name for name in os.environ if name.startswith("OFFICERPC_") and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, 1)), None) for name in unknown}
