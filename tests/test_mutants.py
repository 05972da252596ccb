"""scripts/mutants.py: it reports which faults the tests notice, on a small tree."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "scripts"))
import mutants

LIST = """
[[mutant]]
name = "one-more"
path = "server/limit.py"
old = "number < 3"
new = "number <= 3"
tests = ["tests/test_limit.py"]

[[mutant]]
name = "no-zero"
path = "server/limit.py"
old = "0 <= number"
new = "0 < number"
tests = ["tests/test_limit.py"]

[[mutant]]
name = "no-python"
path = "server/limit.py"
old = "return"
new = "retrun"
tests = ["tests/test_limit.py"]
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package with a function whose test leaves something out."""
    files = {
        "pyproject.toml": "[tool.pytest.ini_options]\nmarkers = ['schemathesis']\naddopts = '-p no:schemathesis -p no:hypothesispytest'\n",
        "server/__init__.py": "",
        "server/limit.py": "def allowed(number):\n    return 0 <= number < 3\n",
        "tests/test_limit.py": (
            "from server.limit import allowed\n\n\n"
            "def test_it():\n    assert allowed(2) and not allowed(3) and not allowed(-1)\n"
        ),
        "tests/mutants.toml": LIST,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.slow
def test_noticed_alive_and_broken(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is not noticed, or cannot be tried, is an error; the tree stays as it is."""
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert mutants.main(["--json", "--workers", "2"], tree) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"one-more": "noticed", "no-zero": "alive", "no-python": "broken"}
    assert "not noticed: no-python, no-zero\n" in printed.err
    assert "[3/3]" in printed.err
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_some_of_them(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mutants.main(["--json", "-k", "more"], tree) == 0
    assert json.loads(capsys.readouterr().out) == {"one-more": "noticed"}
    assert mutants.main(["-k", "nonsense"], tree) == 2


def test_tests_that_fail_anyway_notice_nothing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "tests/test_limit.py").write_text("def test_it():\n    assert False\n")
    assert mutants.main([], tree) == 2
    assert "without any mutant" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('old = "number < 3"', 'old = "number < 4"', "one-more: the old text is 0 times in server/limit.py"),
        ('old = "number < 3"', 'old = "number"', "one-more: the old text is 2 times in server/limit.py"),
        ('path = "server/limit.py"', 'path = "server/gone.py"', "one-more: the old text is 0 times in server/gone.py"),
        ('new = "number <= 3"', 'new = "number < 3"', "one-more: it changes nothing"),
        ('["tests/test_limit.py"]', '["tests/test_gone.py::test_it"]', "one-more: there is no tests/test_gone.py"),
        ('name = "no-zero"', 'name = "one-more"', "one-more: the name is given twice"),
    ],
)  # fmt: skip
def test_a_list_that_is_out_of_date(
    old: str, new: str, told: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is run, and every entry that does not fit is named."""
    (tree / "tests/mutants.toml").write_text(LIST.replace(old, new, 1))
    assert mutants.main(["--list"], tree) == 2
    assert told in capsys.readouterr().err
