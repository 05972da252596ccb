"""Pages of every list: with n-1, n and n+1 rows and pages of n, none is missing or repeated, and the last one ends it."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import asyncpg
import pytest
from conftest import ADMIN, Client, insert_key, until

from server.methods.registry import METHODS

ENOUGH = 100
"""A page size at which every list here has one page."""


class Listing(NamedTuple):
    """A list method: how its pages are asked for, and where in the answer its rows are."""

    method: str
    params: dict[str, Any] = {}
    rows: str | None = None
    """The member with the rows; None: the answer is the rows, and the next page begins after the last id."""
    size: str = "limit"
    number: str = ""
    """The member that numbers pages; empty where there are cursors."""
    as_operator: bool = False


LISTINGS = [
    *(
        Listing("listUsers", {"status": status}, "users")
        for status in ("all", "admins", "suspended", "deleted")
    ),
    Listing("listUsers", {"emailStartsWith": "plain"}, "users"),
    Listing("listGroups", {}, "groups"),
    Listing("listGroupMembers", {"name": "Sales"}),
    Listing("listGroupMembers", {"name": "Admins"}),
    Listing("listSessions", {"email": ADMIN}),
    Listing("listAuthSessions", {}, "sessions"),
    Listing("listAuthSessions", {"userId": 1}, "sessions"),
    Listing("listApiKeys"),
    Listing("listInstances", {}, "instances", as_operator=True),
    Listing("listDeliveries", {"id": 1}, "deliveries"),
    Listing("listDeliveries", {"id": 1, "hasFailed": True}, "deliveries"),
    Listing("listAuditEvents", {}, "events"),
    Listing("listAuditEvents", {"type": "user.created"}, "events"),
    Listing("listAuditEvents", {"userId": 2}, "events"),
    Listing("listJobs", {"state": "waiting"}, as_operator=True),
    *(
        Listing("listStoreUsers", {"query": query}, "users", "perPage", "page")
        for query in (None, "deactivated", "admins")
    ),
    Listing("listPlans", {"query": "plan"}, "plans", "perPage", "page"),
    *(
        Listing("searchUsers", {"searchText": "example", "sortBy": sort}, "list", "perPage", "pageNumber")
        for sort in ("id", "-email", "fullname")
    ),
    Listing("searchUsers", {"searchText": "example", "accountId": 1}, "list", "perPage", "pageNumber"),
]


@pytest.fixture
async def crowd(client: Client, operator: Client, db: asyncpg.Connection) -> Client:
    """Three or more of everything that is listed."""
    kinds = {"plain": {}, "admin": {"isAdmin": True}, "suspended": {"isActive": False}, "deleted": {}}
    users = [
        {"email": f"{kind}{number}@example.com"} | more for kind, more in kinds.items() for number in range(3)
    ]
    await client.call("createUsers", {"users": users})
    for number in range(3):
        await client.call("deleteUserByEmail", {"email": f"deleted{number}@example.com"})
        await client.call(
            "updateUserByEmail", {"email": "plain0@example.com", "displayName": f"Name {number}"}
        )
        await client.call("createGroup", {"name": ("Sales", "Support", "Aid")[number]})
        await client.call("addToGroup", {"name": "Sales", "email": f"plain{number}@example.com"})
        await client.call("createPlan", {"type": "recurring", "name": f"Plan {number}"})
        await client.call(
            "createMember",
            {"login": f"member{number}@example.com", "password": "demo1234", "sponsorId": 1,
             "profile": {"firstname": "A", "lastname": "Name"}},
        )  # fmt: skip
        await client.call("updateProfile", {"id": 1, "profile": {"city": f"City {number}"}})
        await operator.call("createInstance", {"name": f"Instance{number}", "admin": {"email": ADMIN}})
        await insert_key(db, scopes=("users:read",))
    await client.call("createWebhook", {"url": "https://hooks.example.com/", "types": ["group.deleted"]})
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, state, attempts, due_at, error)"
        " SELECT 1, 1, gen_random_uuid(), 'user.created', '', 'pending', 1, now() + interval '1 day',"
        " CASE WHEN number < 4 THEN 'timeout' END FROM generate_series(1, 6) AS number"
    )
    await db.execute(
        "INSERT INTO sessions (instance_id, id, user_id, token_digest, expires_at)"
        " SELECT 1, number, 1 + number % 2, sha256(number::text::bytea), now() + interval '1 day'"
        " FROM generate_series(1, 8) AS number"
    )
    await db.execute("UPDATE instance_counters SET sessions = 8 WHERE instance_id = 1")
    return client


async def pages(client: Client, listing: Listing, size: int) -> AsyncIterator[list[Any]]:
    """The pages of a list until one says, or shows, that it is the last."""
    params = listing.params | {listing.size: size}
    number = 1
    while True:
        answer = await client.call(
            listing.method, params | ({listing.number: number} if listing.number else {})
        )
        rows = answer if listing.rows is None else answer[listing.rows]
        yield rows
        if listing.number:
            number += 1
            if (number - 1) * size >= answer["total"]:
                return
        elif listing.rows is None:
            if len(rows) < size:
                return
            params["after"] = rows[-1]["id"]
        elif (cursor := answer["next"]) is None:
            return
        else:
            params["after"] = cursor


@pytest.mark.parametrize("listing", LISTINGS, ids=lambda listing: f"{listing.method} {listing.params}")
async def test_pages(listing: Listing, crowd: Client, operator: Client) -> None:
    client = operator if listing.as_operator else crowd
    [everything] = [page async for page in pages(client, listing, ENOUGH)]
    count = len(everything)
    assert count >= 3 and all(everything.count(row) == 1 for row in everything)
    for size in (count + 1, count, count - 1, 1):
        expected = [everything[start : start + size] for start in range(0, count, size)]
        if listing.rows is None and count % size == 0:
            expected.append([])  # a plain list does not say that it ends
        assert [page async for page in pages(client, listing, size)] == expected, size


async def test_pages_of_the_feed(crowd: Client, db: asyncpg.Connection) -> None:
    """Its limit counts events of every type; those that are not for the feed are left out of a page."""
    await until(lambda: db.fetchval("SELECT NOT EXISTS (SELECT FROM events WHERE xid >= event_horizon())"))
    count = await db.fetchval("SELECT count(*) FROM events WHERE instance_id = 1")
    everything = (await crowd.call("listChanges", {"limit": ENOUGH}))["events"]
    assert len(everything) >= 3
    for size, number in ((count + 1, 1), (count, 1), (count - 1, 2), (1, count)):
        seen, pages = [], 0
        answer = {"cursor": None, "more": True}
        while answer["more"]:
            answer = await crowd.call("listChanges", {"limit": size, "cursor": answer["cursor"]})
            seen += answer["events"]
            pages += 1
        assert (seen, pages) == (everything, number)
        assert (await crowd.call("listChanges", {"cursor": answer["cursor"]}))["events"] == []


def test_every_list_is_here() -> None:
    paged = {
        name
        for name, method in METHODS.items()
        if {"after", "cursor", "page", "pageNumber"} & set(method.params.model_fields)
    }
    of_scim = {"searchScimUsers", "searchScimGroups"}  # RFC 9865's: test_scim_search.py
    assert paged == {listing.method for listing in LISTINGS} | {"listChanges"} | of_scim


@pytest.mark.parametrize("method", ["listUsers", "listGroups", "listAuthSessions"])
async def test_an_empty_cursor_is_the_first_page(method: str, crowd: Client) -> None:
    assert await crowd.call(method, {"after": ""}) == await crowd.call(method)
