"""What holds the project together: requirements, Makefile, the install script, README."""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import cli
from lib.activelearning.ranking import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*")


def requirement_lines(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_exactly(name: str) -> None:
    lines = [line for line in requirement_lines(name) if line != "-r requirements.txt"]
    assert len(lines) >= 7
    assert [line for line in lines if not PIN.fullmatch(line)] == []


def test_development_adds_to_the_requirements_of_the_app() -> None:
    assert requirement_lines("requirements-dev.txt")[0] == "-r requirements.txt"


def third_party_imports(*folders: str) -> set[str]:
    """Top-level modules that the Python files below `folders` import from installed packages."""
    found: set[str] = set()
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 2
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    # Benchmarks import each other.
    own = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    return found - sys.stdlib_module_names - {"lib", "main", "cli"} - own


@pytest.mark.parametrize(
    ("folders", "files"),
    [
        (("apps",), ("requirements.txt",)),
        (("benchmarks", "tests"), ("requirements.txt", "requirements-dev.txt")),
    ],
)
def test_what_is_imported_is_required(folders: tuple[str, ...], files: tuple[str, ...]) -> None:
    imported = third_party_imports(*folders)
    required = {line.split("==")[0].lower() for name in files for line in requirement_lines(name)}
    packages = packages_distributions()
    lacking = {name for name in imported if not {dist.lower() for dist in packages[name]} & required}
    assert lacking == set()
    assert {"numpy", "torch"} <= imported


def test_pydicom_is_one_that_monai_label_starts_with() -> None:
    (line,) = [line for line in requirement_lines("requirements.txt") if line.startswith("pydicom==")]
    assert int(line.split("==")[1].split(".")[0]) < 3


def test_ci_runs_lint_and_all_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("make ")] == [
        "make lint",
        "make test",
        "make test-slow",
    ]


def make(*arguments: str) -> str:
    command = ["make", "--no-print-directory", "--dry-run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_serve_passes_studies_task_and_address_on() -> None:
    given = ("STUDIES=/data/mine", "DEMO=/data/dicom", "TASK=object", "PORT=8123", "CONF=--conf base vit_b")
    recipe = make("serve", *given)
    wanted = ('--studies "/data/mine"', '--demo "/data/dicom"', '--task "object"', '--port "8123"')
    for part in (*wanted, "--conf base vit_b"):
        assert part in recipe
    assert "--demo" not in make("serve")


def test_the_two_test_targets_leave_no_test_out() -> None:
    assert '-m "not server and not data and not large"' in make("test")
    # No exit code is forgiven, pytest's 5 for "no test was found" included.
    assert make("test-slow").rstrip().endswith('-m "server or data or large"')
    assert make("test-all").count("-m pytest") == 2


def test_readme_names_only_subcommands_and_targets_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"cli\.py ([a-z_]+)", readme))
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert named <= set(cli.COMMANDS)
    assert {"simulate", "evaluate", "releases", "rollback", "pretrain"} <= named
    assert {target for target in targets if f"\n{target}:" not in makefile} == set()
    assert {"serve", "test"} <= targets


def test_readme_lists_the_tasks() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tasks = sorted(path.stem for path in (cli.APP_DIR / "configs" / "tasks").glob("*.yaml"))
    assert len(tasks) >= 5
    assert [task for task in tasks if f"| `{task}` |" not in readme] == []


def test_readme_lists_what_the_server_offers() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| (infer|trainer|scoring|strategy) \| `(\w+)` \|", readme, re.MULTILINE))
    source = (cli.APP_DIR / "main.py").read_text(encoding="utf-8")
    assert {name for kind, name in rows if kind == "strategy"} == set(STRATEGIES)
    others = {(kind, name) for kind, name in rows if kind != "strategy"}
    tasks = ("medsa", "medsa_2d", "medsa_multi", "medsa_auto", "medsa_scribbles")
    assert others == {*(("infer", task) for task in tasks), ("trainer", "medsa"), ("scoring", "medsa")}
    assert all(f'"{name}":' in source for _, name in others)


def test_readme_keeps_the_server_on_this_machine() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    starts = re.findall(r"^monailabel start_server .*$", readme, re.MULTILINE)
    assert len(starts) == 1
    assert all("--host 127.0.0.1" in line for line in starts)


FAKE_PYTHON = """#!/bin/bash
echo "$(basename "$(dirname "$0")") $*" >> "{log}"
if [ "$1" = -c ]; then echo "3.11 fake"; fi
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
if [ "$1 $2" = "-m pip" ]; then exit "$(cat "{log}.pip" 2>/dev/null || echo 0)"; fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the install script, its inputs and an interpreter that only keeps a log."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("scripts/install.sh", "requirements.txt", "requirements-dev.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / "system" / "python3.11"
    python.parent.mkdir()
    python.write_text(FAKE_PYTHON.format(log=tmp_path / "log"))
    python.chmod(0o755)
    return folder


def install(checkout: Path, python: str | None = None) -> subprocess.CompletedProcess[str]:
    tmp = checkout.parent
    environment = {
        "PATH": f"{tmp}/bin:/usr/bin:/bin",
        "HOME": str(tmp),
        "MEDSA_CACHE": str(tmp / "cache"),
        "PYTHON": python or str(tmp / "system" / "python3.11"),
    }
    command = ["bash", str(checkout / "scripts" / "install.sh")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def pip_runs(checkout: Path) -> int:
    return (checkout.parent / "log").read_text().count("-m pip install")


def test_install_makes_the_environment_once_and_links_it(checkout: Path) -> None:
    assert install(checkout).returncode == 0
    assert install(checkout).returncode == 0
    assert pip_runs(checkout) == 1
    venv = (checkout / ".venv").resolve()
    assert venv.parent == checkout.parent / "cache"
    assert (venv / "complete").is_file()


def test_other_requirements_get_another_environment(checkout: Path) -> None:
    install(checkout)
    first = (checkout / ".venv").resolve()
    (checkout / "requirements.txt").write_text("numpy==1.26.4\n")
    assert install(checkout).returncode == 0
    assert (checkout / ".venv").resolve() != first
    assert pip_runs(checkout) == 2


def test_a_broken_install_fails_and_is_done_again(checkout: Path) -> None:
    broken = checkout.parent / "log.pip"
    broken.write_text("1")
    assert install(checkout).returncode == 1
    assert not (checkout / ".venv").exists()
    broken.unlink()
    assert install(checkout).returncode == 0
    assert pip_runs(checkout) == 2


def test_two_installs_at_once_make_one_environment(checkout: Path) -> None:
    environment = {
        **os.environ,
        "MEDSA_CACHE": str(checkout.parent / "cache"),
        "PYTHON": str(checkout.parent / "system" / "python3.11"),
    }
    command = ["bash", str(checkout / "scripts" / "install.sh")]
    running = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert pip_runs(checkout) == 1


def test_a_venv_of_ones_own_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    ended = install(checkout)
    assert ended.returncode == 1
    assert "move it away" in ended.stderr
    assert list((checkout / ".venv").iterdir()) == []


def test_without_python_the_packages_to_install_are_named(checkout: Path) -> None:
    # Whoever runs this test, the script must not reach the system's package manager.
    fake = checkout.parent / "bin"
    fake.mkdir()
    for name, body in (("id", "echo 1000"), ("apt-get", "exit 1")):
        (fake / name).write_text(f"#!/bin/bash\n{body}\n")
        (fake / name).chmod(0o755)
    ended = install(checkout, python="/nowhere/python3.11")
    assert ended.returncode == 1
    assert "sudo apt-get install python3.11 python3.11-venv" in ended.stderr
