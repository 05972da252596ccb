"""Settings, the map in the README, and minimum versions of packages."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.base.settings import Settings, available_cores

ROOT = Path(__file__).parent.parent


def test_secrets_are_hidden_when_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFICERPC_DATABASE_URL", "postgresql://me:hunter2@db/x")
    monkeypatch.setenv("OFFICERPC_BOOTSTRAP_API_KEY", "a-secret-of-mine-1234")
    settings = Settings()
    for shown in (str(settings), repr(settings), str(settings.shown())):
        assert "hunter2" not in shown and "a-secret-of-mine" not in shown
    assert settings.shown()["OFFICERPC_DATABASE_URL"] == "**********"


def test_settings_are_cast_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("PORT", "http"),
        ("WORKERS", "0"),
        ("BOOTSTRAP_API_KEY", "short"),
        ("TRUSTED_PROXIES", "x"),
    ):
        monkeypatch.setenv(f"OFFICERPC_{name}", value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    bad = {str(error["loc"][0]) for error in refused.value.errors()}
    assert bad == {"port", "workers", "bootstrap_api_key", "trusted_proxies"}


def test_networks_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFICERPC_TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8")
    assert [str(network) for network in Settings().trusted_proxies] == ["127.0.0.1/32", "10.0.0.0/8"]


@pytest.mark.parametrize(
    "bad", ["*", "null", "shop.example", "https://shop.example/", "https://Shop.example"]
)
def test_origins_are_written_as_browsers_send_them(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFICERPC_CORS_ORIGINS", "https://shop.example, http://localhost:3000")
    assert Settings().cors_origins == ("https://shop.example", "http://localhost:3000")
    monkeypatch.setenv("OFFICERPC_CORS_ORIGINS", f"https://shop.example,{bad}")
    with pytest.raises(ValidationError, match="origin"):
        Settings()


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80"), ("[::1]", "[::1]:80")],
)
def test_ipv6_addresses_are_in_brackets_once(host: str, address: str) -> None:
    assert Settings(host=host, port=80).listen_address() == address
    assert Settings(host=host, port=80).own_address() == f"http://{address}"


def test_workers_share_the_cores() -> None:
    assert Settings(workers=1).threads_for_hashing() == available_cores()
    assert Settings(workers=64).threads_for_hashing() == 1
    assert Settings(workers=64, hash_threads=3).threads_for_hashing() == 3


@pytest.mark.parametrize(("package", "least"), [("aiohttp", (3, 14, 3)), ("asyncpg", (0, 32))])
def test_versions_that_a_fix_needs(package: str, least: tuple[int, ...]) -> None:
    installed = tuple(int(part) for part in version(package).split(".")[: len(least)])
    assert installed >= least


def test_every_path_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`((?:server|sql|scripts|tests)/[\w./-]*)`", text))
    assert len(named) > 10
    for path in sorted(named):
        assert (ROOT / path).exists(), path


def test_the_readme_knows_every_module_and_setting() -> None:
    text = (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "server").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if path.name != "__init__.py" and not path.name.startswith("_"):
            assert f"`{name}`" in text or f"`{path.parent.relative_to(ROOT).as_posix()}/`" in text, name
    for name in Settings.model_fields:
        assert f"OFFICERPC_{name.upper()}" in text, name


def test_importing_the_package_does_no_work() -> None:
    """No query is loaded, no hash made and no connection opened by an import."""
    code = (
        "import server.serving.app, aiosql, argon2, socket\n"
        "assert server.serving.app.METHODS and not server.serving.app.__dict__.get('QUERIES')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
