"""Creates users with realistic names over the public RPC: make seed N=1000.

Uses OFFICERPC_URL and OFFICERPC_API_KEY. User n is the same in every run, so another run, or a larger N,
creates only the missing users.
"""

import asyncio
import os
import random
import secrets
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import aiohttp
import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_GIVEN = """
Aaliyah Adam Aiko Ali Amara Amina Ana Anders André Anna Antonio Aoife Arjun Aylin Beatriz Björn Camille
Carlos Chen Chidi Chloé Clara Daniel David Diego Elena Elif Emeka Emily Emma Erik Fatima Felipe Femi
Freya George Giulia Grace Hana Hannah Hassan Henrik Hiroshi Ibrahim Ines Isabel Ivan Jack James Jane
João José Julia Kaito Karim Kateřina Khalid Kofi Laila Lars Lea Leila Lin Lucas Lucía Luis Maja Maria
Mariam Marta Mateo Mei Michał Mohammed Nadia Nguyen Nia Nikhil Noah Noor Olga Oliver Omar Pablo Paul
Petra Priya Rania Ravi Rosa Ruth Saanvi Salman Samuel Sara Sofia Sven Tariq Thandi Thomas Tomás Yara
Yuki Yusuf Zainab Zoë Zuzana
"""
_FAMILY = """
Abdullah Achterberg Adeyemi Ahmed Al-Khalifa Almeida Andersson Banerjee Bauer Becker Bianchi Brown
Carvalho Chowdhury Cohen Costa Diallo Dubois Eriksen Evans Farouk Fernández Fischer Fontaine Garcia
González Gupta Gómez Haddad Hansen Hernández Horváth Hughes Ivanova Jansen Jensen Johnson Jones Kaya
Keller Khan Kim Kimura Kováč Kumar Laurent Lefèvre Lewis Lopez Mansour Martin Mbeki Mehta Meyer Moreau
Murphy Müller Nakamura Nasser Ndiaye Nguyen Nielsen Novák Nowak Okafor Okonkwo Oliveira Osei Öztürk
Papadopoulos Patel Pereira Petrov Popescu Qureshi Ramos Rossi Sanchez Santos Sato Schmidt Schneider
Sharma Silva Singh Smith Suzuki Tanaka Taylor Thompson Torres Tran Vargas Wagner Walker Weber Williams
Wilson Wong Zhang Zimmermann
"""
GIVEN, FAMILY = _GIVEN.split(), _FAMILY.split()
DEPARTMENTS = {
    "Sales": ("Account Manager", "Sales Associate", "Key Account Manager", "Sales Director"),
    "Engineering": ("Software Engineer", "Staff Engineer", "Engineering Manager", "Reliability Engineer"),
    "Finance": ("Accountant", "Controller", "Payroll Specialist", "Financial Analyst"),
    "People": ("Recruiter", "People Partner", "Office Manager", "Head of People"),
    "Support": ("Support Agent", "Support Engineer", "Team Lead", "Customer Success Manager"),
    "Marketing": ("Content Writer", "Brand Manager", "Campaign Manager", "Designer"),
    "Operations": ("Logistics Planner", "Buyer", "Facility Manager", "Operations Analyst"),
    "Legal": ("Counsel", "Compliance Officer", "Paralegal", "Data Protection Officer"),
}
# City, time zone, and prefix of telephone numbers.
LOCATIONS = (
    ("Amsterdam", "Europe/Amsterdam", "+31 20"), ("Berlin", "Europe/Berlin", "+49 30"),
    ("Dubai", "Asia/Dubai", "+971 4"), ("Lagos", "Africa/Lagos", "+234 1"),
    ("Lisbon", "Europe/Lisbon", "+351 21"), ("London", "Europe/London", "+44 20"),
    ("Madrid", "Europe/Madrid", "+34 91"), ("Manama", "Asia/Bahrain", "+973 17"),
    ("Mumbai", "Asia/Kolkata", "+91 22"), ("Paris", "Europe/Paris", "+33 1"),
    ("Prague", "Europe/Prague", "+420 2"), ("São Paulo", "America/Sao_Paulo", "+55 11"),
    ("Singapore", "Asia/Singapore", "+65 6"), ("Tokyo", "Asia/Tokyo", "+81 3"),
)  # fmt: skip
# Reserved for examples (RFC 2606).
DOMAINS = ("example.com", "example.net", "example.org", "mail.example.com", "office.example.org")
# Letters without a Unicode decomposition.
_UNDIVIDED = str.maketrans({"ł": "l", "ø": "o", "ß": "ss"})

ATTEMPTS = 6
err = Console(stderr=True)


class SeedError(Exception):
    """The run cannot continue; the message is one line."""


def person(number: int) -> dict[str, Any]:
    """Params of createUser for user `number`: the same in every run, except the password."""
    pick = random.Random(number)
    given, family = pick.choice(GIVEN), pick.choice(FAMILY)
    department = pick.choice(list(DEPARTMENTS))
    location, timezone, area = pick.choice(LOCATIONS)
    local = f"{_ascii(given)}.{_ascii(family)}{number}"
    return {
        "email": f"{local}@{pick.choice(DOMAINS)}",
        "displayName": f"{given} {family}",
        # Random and not shown. The fixed start satisfies policies that require several kinds of characters.
        "password": "Aa1-" + secrets.token_urlsafe(12),
        "profile": {
            "uid": f"E{number:06}",
            "title": pick.choice(DEPARTMENTS[department]),
            "department": department,
            "location": location,
            "phones": [f"{area} {pick.randrange(10**6, 10**7)}" for _ in range(pick.choice((0, 1, 1, 2)))],
            "grade": f"{pick.choice('ABCD')}{pick.randint(1, 5)}",
        },
        "values": {"timezone": timezone},
    }


def _ascii(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name.lower().translate(_UNDIVIDED))
    return letters.encode("ascii", "ignore").decode()


async def create(session: aiohttp.ClientSession, url: str, params: dict[str, Any]) -> str:
    """Create one user. Answers 429 and 503 and lost connections are retried.

    Returns:
        created, existing, or the error message of the server.

    Raises:
        SeedError: the server cannot be reached or refuses the key.
    """
    body = orjson.dumps({"method": "createUser", "params": params})
    message = ""
    for attempt in range(1, ATTEMPTS + 1):
        pause = 0.2 * 2**attempt
        try:
            async with session.post(url, data=body) as response:
                code = response.headers.get("X-Error-Code")
                message = (await response.text())[:200]
                if response.status == 200 and code is None:
                    return "created"
                if code == "duplicate_email":
                    return "existing"
                if response.status in (401, 403):
                    raise SeedError(f"{url} refuses the key ({response.status} {message})")
                if response.status in (404, 405):
                    raise SeedError(f"{url} is not the address of /rpc ({response.status})")
                if response.status not in (429, 503):
                    return message
                asked = response.headers.get("Retry-After", "")
                pause = float(asked) if asked.isdigit() else pause
        except aiohttp.ClientConnectorError as error:
            raise SeedError(f"{url} cannot be reached: {error.strerror or error}") from error
        except aiohttp.InvalidURL as error:
            raise SeedError(f"OFFICERPC_URL is not a URL: {url}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            # If the user was created, the next attempt finds it existing.
            message = f"connection lost ({type(error).__name__})"
        await asyncio.sleep(pause * random.uniform(1, 1.5))
    return message


async def seed(
    url: str, key: str, count: int, instance: str | None, concurrency: int, advance: Callable[[str], None]
) -> str | None:
    """Create users 1 to `count`.

    Args:
        concurrency: number of concurrent calls.
        advance: called for each user with created, existing or failed.

    Returns:
        the last error message of the server, if there was one.

    Raises:
        SeedError: see create.
    """
    numbers = iter(range(1, count + 1))
    refused: str | None = None

    async def worker() -> None:
        nonlocal refused
        for number in numbers:
            params = person(number) | ({"instance": instance} if instance else {})
            outcome = await create(session, url, params)
            if outcome not in ("created", "existing"):
                refused, outcome = outcome, "failed"
            advance(outcome)

    headers = {"x-api-key": key, "Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(concurrency, count)):
                    workers.create_task(worker())
        except ExceptionGroup as group:
            # All workers fail for the same reason.
            raise group.exceptions[0] from None
    return refused


def main(
    count: Annotated[int, typer.Argument(min=1, metavar="N", help="Number of users.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    instance: Annotated[
        str | None, typer.Option("--instance", "-i", help="Default: the instance of the key.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, max=200, help="Concurrent calls.")
    ] = 16,
) -> None:
    """Create N users at OFFICERPC_URL with the key OFFICERPC_API_KEY. Status 1 if any failed."""
    url = os.environ.get("OFFICERPC_URL") or "http://127.0.0.1:8080/rpc"
    key = os.environ.get("OFFICERPC_API_KEY")
    if not key:
        _fail("set OFFICERPC_API_KEY to an API key with the scope users:write")
    outcomes: Counter[str] = Counter()
    started = time.perf_counter()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("users"),
        TimeRemainingColumn(),
    )  # fmt: skip
    try:
        with Progress(*columns, console=err) as bar:
            task = bar.add_task("Seeding", total=count)

            def advance(outcome: str) -> None:
                outcomes[outcome] += 1
                bar.advance(task)

            refused = asyncio.run(seed(url, key, count, instance, concurrency, advance))
    except SeedError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        refused = "interrupted"
    seconds = time.perf_counter() - started
    rate = (outcomes["created"] + outcomes["existing"]) / seconds
    result = {
        **{outcome: outcomes[outcome] for outcome in ("created", "existing", "failed")},
        "seconds": round(seconds, 3),
        "rate": round(rate, 1),
    }
    if as_json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
    else:
        counted = ", ".join(f"{result[outcome]} {outcome}" for outcome in ("created", "existing", "failed"))
        err.print(f"{counted} in {seconds:.1f} s: {rate:.1f} users/s", highlight=False)
    if refused is not None:
        _fail(refused)


def _fail(message: str) -> NoReturn:
    err.print(f"seed: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
