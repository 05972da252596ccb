"""Calls a server through the client that openapi-python-client generated from the OpenAPI document.

Arguments: the folder of the package `generated`, the URL of the server, a key of an instance, an operator's
key. Prints a JSON object: the number of operations, and for each call its status and the type of its answer.
"""

import importlib
import inspect
import json
import sys
import typing
from pathlib import Path
from typing import Any

CALLS: dict[str, dict[str, Any]] = {
    "online_office.get_online_office_user_exists": {"login": "ann@one.example"},
    "online_office.get_online_office_user_get": {"id": 2},
    "online_office.get_online_office_user_search": {"search_text": "ann"},
    "online_office.get_online_office_profile_field_get_list": {},
    "online_office.get_online_office_account_get_branch": {"account_id": 1},
    "online_office.post_online_office_user_create": {
        "body": {
            "login": "bea@one.example",
            "sponsorId": 1,
            "profile": {"firstname": "Bea", "lastname": "Member"},
        }
    },
    "online_office.post_online_office_user_change_language": {"body": {"authId": 2, "language": "ru"}},
    "online_office.post_online_office_user_delete": {"body": {"authId": 999, "withAccount": 1}},
    "workspace365.post_provisioning_environment_name_user": {
        "environment_name": "MYINSTANCE",
        "body": {"EmailAddress": "cem@one.example", "Password": "demo1234"},
    },
    "workspace365.post_provisioning_environment_name_user_validate": {
        "environment_name": "MYINSTANCE",
        "body": {"EmailAddress": "ann@one.example"},
    },
    "workspace365.get_provisioning_environment": {},
    "publica.get_integration_api_v1_dashboard_users": {"email": "ann@one.example"},
    "publica.get_integration_api_v1_dashboard_users_user_id": {"user_id": "2"},
    "publica.post_integration_api_v1_dashboard_users": {
        "body": {"email": "dia@one.example", "external_id": "shop-1"},
        "idempotency_key": "order-17",
    },
    "publica.post_integration_api_v1_dashboard_plans": {
        "body": {"type": "prepaid", "name": "A year", "duration": 12}
    },
    "publica.get_integration_api_v1_dashboard_plans": {},
    "publica.put_integration_api_v1_dashboard_users_user_id_re_activate": {"user_id": 2},
    "publica.get_integration_api_v1_auth_sessions": {"user_id": 2},
    "publica.get_integration_api_v1_dashboard_plans_plan_id": {"plan_id": 999},
    "files.get_files_name": {"name": "none"},
}


def model_of(annotation: Any) -> Any:
    """The first model in an annotation, which can be a union."""
    return next(kind for kind in (annotation, *typing.get_args(annotation)) if hasattr(kind, "from_dict"))


def main(folder: str, url: str, key: str, operator_key: str) -> None:
    """Make every call of CALLS."""
    sys.path.insert(0, folder)
    client_module = importlib.import_module("generated.client")
    outcomes = {}
    for name, given in CALLS.items():
        module = importlib.import_module(f"generated.api.{name}")
        chosen = operator_key if name.endswith("_environment") else key
        client = client_module.AuthenticatedClient(
            base_url=url, token=chosen, prefix="", auth_header_name="x-api-key"
        )
        arguments = dict(given)
        if "body" in given:
            annotation = inspect.signature(module.sync_detailed).parameters["body"].annotation
            arguments["body"] = model_of(annotation).from_dict(given["body"])
        answer = module.sync_detailed(client=client, **arguments)
        parsed = answer.parsed
        kind = type(parsed[0] if isinstance(parsed, list) and parsed else parsed).__name__
        outcomes[name] = [answer.status_code, kind]
    operations = [path for path in Path(folder).glob("generated/api/*/*.py") if path.stem != "__init__"]
    sys.stdout.write(json.dumps({"operations": len(operations), "calls": outcomes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
