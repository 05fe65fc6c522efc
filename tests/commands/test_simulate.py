"""`cli.py simulate`: exit codes, what ends it early, the file with the figures."""

import json
from pathlib import Path
from typing import Any

import pytest

import cli


@pytest.fixture
def arguments(
    server: Any, truth_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The command line of a session at the server in memory, which offers all its cases."""
    server.offers = list(truth_files)
    client = server.client()
    monkeypatch.setattr("lib.commands.simulate.httpx.Client", lambda **_: client)
    options = ["--truth", str(tmp_path / "truth"), "--json", str(tmp_path / "figures.json"), "--clicks", "1"]
    return ["simulate", "--server", "http://server", *options]


def figures(arguments: list[str]) -> dict[str, Any]:
    return json.loads(Path(arguments[arguments.index("--json") + 1]).read_text())


def test_all_cases_without_an_error_are_exit_code_0(arguments: list[str]) -> None:
    assert cli.main(arguments) == 0
    content = figures(arguments)
    assert (content["cases"], content["saved"], content["errors"]) == (3, 3, 0)


def test_a_broken_case_is_exit_code_1_and_hides_no_other(server: Any, arguments: list[str]) -> None:
    server.broken_cases = ("case0",)
    assert cli.main(arguments) == 1
    content = figures(arguments)
    assert (content["cases"], content["saved"], content["errors"]) == (3, 2, 1)


def test_ctrl_c_keeps_the_figures(
    server: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server.interrupted_at = "case1"
    assert cli.main(arguments) == 130
    content = figures(arguments)
    assert [(row["case_id"], row["saved"]) for row in content["rows"]] == [("case0", True), ("case1", False)]
    assert capsys.readouterr().err == "medsa: stopped\n"


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:port",
        "http://[::1",
        "127.0.0.1:8000",
        "http://",
        f"http://{'a' * 70}.example",
        "http://127.0.0.1:1",
    ],
)
def test_an_address_without_a_server_is_one_line_and_exit_code_2(
    address: str, truth_files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["simulate", "--server", address, "--truth", str(tmp_path / "truth")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("medsa: ")
    assert len(message.splitlines()) == 1
