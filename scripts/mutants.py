"""Mutation tests: puts small faults into the source, one at a time, and runs tests (make mutants).

tests/mutants.toml lists the faults. Each is applied to a copy of the tree, and its tests are run there.
Status 1 if the tests missed one, 2 if the list does not match the source or a test fails without a fault.
"""

import argparse
import concurrent.futures
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).parent.parent
LIST = "tests/mutants.toml"
COPIED = ("server", "sql", "tests", "scripts", "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")
LIMIT = 600
"""Seconds after which a run is stopped. A fault that makes the tests hang counts as noticed."""

Outcome = Literal["noticed", "alive", "broken"]
"""broken: its tests could not run, for example because the source cannot be imported."""


class Mutant(NamedTuple):
    """A fault: replaces a text in a file."""

    name: str
    path: str
    old: str
    new: str
    # Arguments of pytest.
    tests: tuple[str, ...]


class ListError(Exception):
    """The list does not match the source, or the tests fail without a mutant."""


def load(root: Path) -> list[Mutant]:
    """The mutants of a tree.

    Raises:
        ListError: entries are out of date; the message names all of them.
    """
    entries = tomllib.loads((root / LIST).read_text())["mutant"]
    mutants = [Mutant(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]
    problems = []
    names = [mutant.name for mutant in mutants]
    for mutant in mutants:
        file = root / mutant.path
        count = file.read_text().count(mutant.old) if file.exists() else 0
        if names.count(mutant.name) > 1:
            problems.append(f"{mutant.name}: the name is given twice")
        if count != 1:
            problems.append(f"{mutant.name}: the old text is {count} times in {mutant.path}, not once")
        if mutant.old == mutant.new or not mutant.tests:
            problems.append(f"{mutant.name}: it changes nothing, or names no tests")
        missing = {test for test in mutant.tests if not (root / test.partition("::")[0]).exists()}
        problems += [f"{mutant.name}: there is no {test}" for test in sorted(missing)]
    if problems:
        raise ListError("the list is out of date:\n" + "\n".join(problems))
    return mutants


@contextmanager
def applied(mutant: Mutant, tree: Path) -> Iterator[None]:
    """Put the fault into a tree until the block ends."""
    file = tree / mutant.path
    text = file.read_text()
    file.write_text(text.replace(mutant.old, mutant.new))
    try:
        yield
    finally:
        file.write_text(text)


def run_tests(tests: Sequence[str], tree: Path) -> Outcome:
    """Run tests in a tree until one fails."""
    # PYTHONPATH: all processes import the package of the copy, not the installed one.
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not schemathesis", *tests
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile() as output:
        try:
            status = subprocess.run(
                command, cwd=tree, env=environment, stdout=output, stderr=output, timeout=LIMIT, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return "noticed"
    outcomes: dict[int, Outcome] = {0: "alive", 1: "noticed"}
    return outcomes.get(status, "broken")


def copied(root: Path, target: Path) -> Path:
    """Copy the files of a tree that the tests need."""
    for name in COPIED:
        source = root / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.exists():
            shutil.copy(source, target / name)
    return target


def run(root: Path, mutants: Sequence[Mutant], workers: int) -> Iterator[tuple[Mutant, Outcome]]:
    """The outcome of each mutant, in the order in which they finish.

    Raises:
        ListError: tests fail without a mutant.
    """
    with tempfile.TemporaryDirectory(prefix="officerpc-mutants-") as folder:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(workers):
            trees.put(copied(root, Path(folder) / str(number)))

        def outcome(mutant: Mutant | None, tests: Sequence[str]) -> Outcome:
            tree = trees.get()
            try:
                if mutant is None:
                    return run_tests(tests, tree)
                with applied(mutant, tree):
                    return run_tests(tests, tree)
            finally:
                trees.put(tree)

        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            wanted = sorted({test for mutant in mutants for test in mutant.tests})
            shares = [share for number in range(workers) if (share := wanted[number::workers])]
            if set(pool.map(lambda share: outcome(None, share), shares)) != {"alive"}:
                raise ListError("the tests fail without any mutant: make test says why")
            tasks = {pool.submit(outcome, mutant, mutant.tests): mutant for mutant in mutants}
            for task in concurrent.futures.as_completed(tasks):
                yield tasks[task], task.result()


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the mutants, print the outcomes and return the status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-k", default="", metavar="TEXT", help="only mutants with this text in their names")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of parallel runs")
    parser.add_argument("--list", action="store_true", help="only check the list")
    parser.add_argument("--json", action="store_true", help="print the outcomes as one JSON object")
    options = parser.parse_args(arguments)
    outcomes: dict[str, Outcome] = {}
    try:
        mutants = [mutant for mutant in load(root) if options.k in mutant.name]
        if not mutants:
            raise ListError(f"no mutant is named {options.k}")
        for mutant, outcome in () if options.list else run(root, mutants, options.workers):
            outcomes[mutant.name] = outcome
            print(f"[{len(outcomes)}/{len(mutants)}] {outcome:8} {mutant.name}", file=sys.stderr, flush=True)
    except ListError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(outcomes))
    missed = [name for name, outcome in outcomes.items() if outcome != "noticed"]
    if missed:
        print("not noticed: " + ", ".join(sorted(missed)), file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
