"""officerpc keys."""

import time
from typing import Annotated, Any

import typer

from server.cli.options import AsJson
from server.cli.session import Session, all_by_id, call, read_settings, run
from server.cli.terminal import fail, format_time, show, show_list

app = typer.Typer(no_args_is_help=True, help="API keys.")


@app.command("create")
def create_key(
    name: str,
    instance: Annotated[
        list[str] | None, typer.Option("--instance", "-i", help="Instances; the first is the default.")
    ] = None,
    operator: Annotated[bool, typer.Option("--operator", help="A key for all instances.")] = False,
    scope: Annotated[
        list[str] | None, typer.Option("--scope", "-s", help="Scopes. Default: all it can have.")
    ] = None,
    expires_in: Annotated[int | None, typer.Option(help="Seconds until it expires.")] = None,
    rate: Annotated[int | None, typer.Option(help="Calls a minute; 0: no limit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key. It is shown only once."""
    from server.tenants.principals import grantable_scopes

    params: dict[str, Any] = {
        "name": name, "scopes": scope or list(grantable_scopes(operator=operator)), "isOperator": operator,
        "expiresIn": expires_in, "ratePerMinute": rate,
    }  # fmt: skip
    if not operator:
        params["instances"] = instance or [read_settings().bootstrap_instance]
    elif instance:
        fail("an operator's key has access to all instances: omit --instance")
    show(call("createApiKey", params), as_json)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys without their secrets."""
    show_list(
        run(_all_keys), as_json,
        {"id": "id", "name": "name", "begins with": "prefix", "instances": _instances, "scopes": _scopes,
         "state": _state, "expires (UTC)": lambda key: format_time(key["expiresAt"])},
    )  # fmt: skip


async def _all_keys(session: Session) -> list[Any]:
    return await all_by_id(session, "listApiKeys", {})


def _instances(key: Any) -> str:
    return "all" if key["isOperator"] else ", ".join(key["instances"]) or "none (deleted)"


def _scopes(key: Any) -> str:
    from server.tenants.principals import grantable_scopes

    possible = grantable_scopes(operator=key["isOperator"])
    held = set(key["scopes"]).intersection(possible)
    return "all" if len(held) == len(possible) else f"{len(held)} of {len(possible)}"


def _state(key: Any) -> str:
    if key["revokedAt"] is not None:
        return "revoked"
    return "expired" if key["expiresAt"] is not None and key["expiresAt"] <= time.time() else "active"


@app.command("scopes")
def change_scopes(
    key_id: Annotated[int | None, typer.Argument(help="Id of a key. Default: all that lack scopes.")] = None,
    grant: Annotated[list[str] | None, typer.Option(help="A scope to add, or all. May be repeated.")] = None,
    withdraw: Annotated[list[str] | None, typer.Option(help="A scope to remove. May be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the scopes that keys lack, or change the scopes of one key.

    An upgrade grants no new scopes to existing keys: grant them here.
    """
    if key_id is None and (grant or withdraw):
        fail("give the id of the key to change")

    async def work(session: Session) -> list[Any]:
        from server.tenants.principals import grantable_scopes

        keys = [key for key in await _all_keys(session) if _state(key) == "active"]
        if key_id is not None:
            keys = [key for key in keys if key["id"] == key_id]
            if not keys:
                fail(f"{key_id}: not found")
        found = []
        for key in keys:
            possible = grantable_scopes(operator=key["isOperator"])
            lacks = [scope for scope in possible if scope not in key["scopes"]]
            if grant or withdraw:
                added = lacks if grant == ["all"] else grant or []
                scopes = sorted((set(key["scopes"]) | set(added)) - set(withdraw or ()))
                await session.call("updateApiKey", {"id": key["id"], "scopes": scopes})
                key["scopes"], lacks = scopes, [scope for scope in possible if scope not in scopes]
            if lacks or key_id is not None:
                found.append({name: key[name] for name in ("id", "name", "instances", "isOperator", "scopes")}
                             | {"lacks": lacks})  # fmt: skip
        return found

    show_list(
        run(work), as_json,
        {"id": "id", "name": "name", "instances": _instances, "scopes": _scopes, "lacks": "lacks"},
    )  # fmt: skip


@app.command("rotate")
def rotate_key(
    key_id: int,
    overlap: Annotated[int, typer.Option(help="Seconds until the old key expires.")] = 3600,
    as_json: AsJson = False,
) -> None:
    """Replace a key by a new one. It is shown only once."""
    show(call("rotateApiKey", {"id": key_id, "overlap": overlap}), as_json)


@app.command("revoke")
def revoke_key(key_id: int, as_json: AsJson = False) -> None:
    """Revoke a key at once."""
    call("revokeApiKey", {"id": key_id})
    show({"revoked": key_id}, as_json)
