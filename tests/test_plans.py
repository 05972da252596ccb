"""Plans of users: assigned, replaced and ended."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from conftest import Client

JANE = 2


def day(offset: int) -> str:
    """A day of UTC, so many from today on."""
    return (datetime.now(UTC).date() + timedelta(offset)).isoformat()


@pytest.fixture
async def plans(client: Client, jane: Any) -> None:
    """Plan 1 without an end, plan 2 of a month."""
    await client.call("createPlan", {"type": "recurring", "name": "Basic"})
    await client.call("createPlan", {"type": "prepaid", "name": "Gold", "duration": 1})


async def held(client: Client) -> list[tuple[int, str, str | None, str]]:
    """Jane's plans: which, from when, until when, and in what state."""
    user = await client.call("getStoreUser", {"id": JANE})
    return [(plan["planId"], plan["validFrom"], plan["validTo"], plan["state"]) for plan in user["plans"]]


async def told(client: Client, start: str) -> list[tuple[Any, Any]]:
    """What the feed tells of plans since then."""
    events = (await client.call("listChanges", {"cursor": start}))["events"]
    return [(event["data"]["before"]["plan"], event["data"]["after"]["plan"]) for event in events]


async def test_a_second_plan_is_named_beside_the_first(client: Client, plans: None) -> None:
    assert await client.call("assignPlan", {"userId": JANE, "planId": 1}) == {"id": 1, "others": []}
    assert await client.call("assignPlan", {"userId": JANE, "planId": 2}) == {
        "id": 2, "others": [{"id": 1, "planId": 1}],
    }  # fmt: skip


async def test_a_change_from_now(client: Client, plans: None) -> None:
    await client.call("assignPlan", {"userId": JANE, "planId": 1})
    start = (await client.call("listChanges", {"begin": "now"}))["cursor"]
    assert await client.call("changePlan", {"userId": JANE, "planId": 2}) == {"id": 2, "ended": [1]}
    [first, second] = await held(client)
    assert (first[0], first[3]) == (1, "ended")
    assert (second[0], second[1], second[3]) == (2, day(0), "active") and second[2] is not None
    old = {"planId": 1, "name": None, "validFrom": day(0), "validTo": None}
    new = {"planId": 2, "name": None, "validFrom": day(0), "validTo": second[2]}
    assert await told(client, start) == [(old, None), (None, new)]
    assert await client.call("assignPlan", {"userId": JANE, "planId": 1}) == {
        "id": 3, "others": [{"id": 2, "planId": 2}],
    }  # fmt: skip


async def test_a_change_from_a_day(client: Client, plans: None) -> None:
    await client.call("assignPlan", {"userId": JANE, "planId": 1})
    start = (await client.call("listChanges", {"begin": "now"}))["cursor"]
    change = {"userId": JANE, "planId": 2, "validFrom": day(10), "planValidTo": day(20)}
    assert await client.call("changePlan", change) == {"id": 2, "ended": [1]}
    assert await held(client) == [(1, day(0), day(9), "active"), (2, day(10), day(20), "scheduled")]
    old = {"planId": 1, "name": None, "validFrom": day(0), "validTo": None}
    new = {"planId": 2, "name": None, "validFrom": day(10), "validTo": day(20)}
    assert await told(client, start) == [(old, old | {"validTo": day(9)}), (None, new)]
    # Sent again it changes nothing more.
    assert await client.call("changePlan", change) == {"id": 2, "ended": []}
    assert await held(client) == [(1, day(0), day(9), "active"), (2, day(10), day(20), "scheduled")]
    # The plan that it has, from now on: what was scheduled does not begin.
    assert await client.call("changePlan", {"userId": JANE, "planId": 1}) == {"id": 1, "ended": [2]}
    assert await held(client) == [(1, day(0), None, "active")]


async def test_ending_a_plan(client: Client, plans: None) -> None:
    await client.call("assignPlan", {"userId": JANE, "planId": 1})
    end = {"userId": JANE, "planId": 1}
    for last in (day(5), day(0)):
        await client.call("unassignPlan", end | {"lastDay": last})
        assert await held(client) == [(1, day(0), last, "active")]
    start = (await client.call("listChanges", {"begin": "now"}))["cursor"]
    await client.call("unassignPlan", end)
    assert [plan[3] for plan in await held(client)] == ["ended"]
    before = {"planId": 1, "name": None, "validFrom": day(0), "validTo": day(0)}
    assert await told(client, start) == [(before, None)]
    assert await client.outcome("unassignPlan", end) == (400, "not found: the user does not have this plan")
    await client.call("changePlan", end | {"validFrom": day(3)})
    await client.call("unassignPlan", end | {"lastDay": day(1)})
    assert [plan[3] for plan in await held(client)] == ["ended"]


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("changePlan", {"planId": 9}, "planId: is no plan of this instance"),
        ("changePlan", {"planId": 1, "validFrom": day(-1)}, "validFrom: must not lie in the past"),
        ("changePlan", {"planId": 1, "planValidTo": day(-1)}, "planValidTo: must not lie in the past"),
        ("changePlan", {"planId": 1, "validFrom": day(9), "planValidTo": day(8)},
         "planValidTo: must not lie before validFrom"),
        ("changePlan", {"planId": 1, "validFrom": "soon"}, "validFrom: must be a date such as 2024-02-29"),
        ("changePlan", {"planId": 1, "userId": 99}, "not found"),
        ("changePlan", {"planId": 1, "validFrom": day(40)},
         "the user has this plan until before that day: change to it again once it has ended"),
        ("unassignPlan", {"planId": 1, "lastDay": day(-1)}, "lastDay: must not lie in the past"),
        ("unassignPlan", {"planId": 1, "lastDay": day(8)},
         f"lastDay: must not be later than the plan's last day, {day(7)}"),
        ("unassignPlan", {"planId": 2}, "not found: the user does not have this plan"),
        ("unassignPlan", {"planId": 1, "userId": 99}, "not found"),
    ],
)  # fmt: skip
async def test_what_cannot_be(
    method: str, params: dict[str, Any], message: str, client: Client, plans: None
) -> None:
    await client.call("assignPlan", {"userId": JANE, "planId": 1, "planValidTo": day(7)})
    before = await held(client)
    assert await client.outcome(method, {"userId": JANE} | params) == (400, message)
    assert await held(client) == before


async def test_changes_at_the_same_time_leave_one_plan(
    client: Client, plans: None, db: asyncpg.Connection
) -> None:
    await asyncio.gather(
        *(client.call("changePlan", {"userId": JANE, "planId": number % 2 + 1}) for number in range(10))
    )
    assert await db.fetchval("SELECT count(*) FROM user_plans WHERE ended_at IS NULL") == 1
