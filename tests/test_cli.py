"""The command line as a person uses it: subcommands, errors in one line, exit codes."""

import time
from importlib import import_module
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import cli
from lib.bases import catalog
from lib.model.base import load_base
from lib.settings import load_pretraining, load_settings
from lib.training.releases import Releases


def write_version(state: Path) -> None:
    record = {
        "decision": "published",
        "reasons": ["liver is better"],
        "time": "2026-01-01T10:00:00+00:00",
        "trained": ["a", "b"],
        "scores": {
            "champion": [{"clicks": [0.25, 0.5]}],
            "candidate": [{"clicks": [0.5, 0.75]}],
        },
    }
    Releases(state).publish(lambda folder: (folder / "README.md").write_text("card") and None, record)


def test_every_subcommand_has_options_and_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert len(cli.COMMANDS) >= 7
    for name in cli.COMMANDS:
        module = import_module(f"lib.commands.{name}")
        assert f"\n    {name}" in text
        assert (module.__doc__ or "").startswith(f"`cli.py {name}`")
        assert callable(module.add_arguments)
        assert callable(module.run)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_subcommand_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert "--" in capsys.readouterr().out


def test_an_unknown_subcommand_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["teach"])
    assert ended.value.code == 2
    assert "invalid choice: 'teach'" in capsys.readouterr().err


def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--out", str(tmp_path), "--cases", "0"]) == 2
    assert capsys.readouterr().err == "medsa: cases: 0 is not accepted; allowed: at least 1\n"


def test_demo_writes_once_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--out", str(tmp_path / "demo"), "--cases", "1"]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 0
    written, left = capsys.readouterr().out.splitlines()
    assert written.endswith("written")
    assert left.endswith("left alone")


def test_an_unknown_task_or_setting_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["releases", "--task", "heart"]) == 2
    assert "heart" in capsys.readouterr().err
    assert cli.main(["releases", "--conf", "speed", "11"]) == 2
    assert "speed" in capsys.readouterr().err


def test_releases_lists_what_was_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    write_version(tmp_path)
    assert cli.main(["releases", "--state", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for part in ("serving version: 1", "published", "0.375", "0.625", "liver is better"):
        assert part in text


def test_rollback_moves_the_pointer_and_refuses_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path)
    write_version(tmp_path)
    assert cli.main(["rollback", "--state", str(tmp_path), "1"]) == 0
    assert Releases(tmp_path).champion_version() == 1
    assert cli.main(["rollback", "--state", str(tmp_path), "9"]) == 2
    assert Releases(tmp_path).champion_version() == 1
    assert "version: 9 is not accepted" in capsys.readouterr().err


def test_rollback_without_a_version_goes_to_what_served_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path)
    write_version(tmp_path)
    assert cli.main(["rollback", "--state", str(tmp_path)]) == 0
    assert cli.main(["releases", "--state", str(tmp_path), "rollback"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "version 1 serves now",
        "version 0 serves now: the base without adapter",
    ]
    assert cli.main(["rollback", "--state", str(tmp_path)]) == 2
    assert cli.main(["releases", "rollback", "2", "--state", str(tmp_path)]) == 0
    assert Releases(tmp_path).champion_version() == 2


def test_train_without_a_label_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), studies / "a.nii.gz")
    command = ["train", "--state", str(tmp_path / "state"), "--studies"]
    assert cli.main([*command, str(studies)]) == 2
    assert "no labels" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_train_finds_labels_that_were_put_into_the_folder_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = tmp_path / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    for number in range(3):
        label = np.zeros((16, 16, 2), np.uint8)
        label[4 : 10 + number, 5:11] = 1
        image = label * 100 + np.random.default_rng(number).integers(0, 20, label.shape, np.uint8)
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(image, affine), studies / f"case{number}.nii.gz")
        nibabel.save(
            nibabel.Nifti1Image(label, affine), studies / "labels" / "final" / f"case{number}.nii.gz"
        )
    state = tmp_path / "state"
    settings = [
        part
        for pair in (("base", "vit_t"), ("device", "cpu"), ("train_minutes", "0.02"))
        for part in ("--conf", *pair)
    ]
    command = ["train", "--task", "object", "--state", str(state), "--studies", str(studies), *settings]
    assert cli.main(command) == 0
    (record,) = Releases(state).records()
    assert record["decision"] in ("published", "refused")
    assert sorted([*record["trained"], *record["validated"]]) == ["case0", "case1", "case2"]
    assert record["steps"] >= 1
    assert "trained on 2, validated on 1, 2 left out in turn" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--version", "newest"], ["--version", "3"], ["--only", "nowhere.txt"]]
)
def test_evaluate_names_what_does_not_fit(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--out", str(tmp_path), "--cases", "1"]) == 0
    folders = ["--images", str(tmp_path / "studies"), "--labels", str(tmp_path / "truth")]
    assert cli.main(["evaluate", "--state", str(tmp_path / "state"), *folders, *arguments]) == 2
    message = capsys.readouterr().err
    assert arguments[1] in message
    assert len(message.splitlines()) == 1


def test_simulate_at_no_server_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--out", str(tmp_path), "--cases", "1"]) == 0
    truth = str(tmp_path / "truth")
    assert cli.main(["simulate", "--server", "http://127.0.0.1:1", "--truth", truth]) == 2
    assert "GET /info/" in capsys.readouterr().err


def test_pretrain_writes_into_the_runs_folder_unless_told() -> None:
    options = cli.build_parser(["pretrain"]).parse_args(["pretrain"])
    assert options.out == Path("runs/vit_t")
    assert options.steps is None  # the recipe's


def test_the_recipe_ends_at_the_size_that_serves() -> None:
    recipe = load_pretraining(cli.APP_DIR / "configs" / "pretraining.yaml", {})
    base = load_settings(cli.APP_DIR / "configs", {}).bases["vit_t"]
    assert recipe.stages[-1].image_size == base.image_size
    assert all(stage.image_size % base.patch_size == 0 for stage in recipe.stages)
    assert recipe.decay_steps < sum(stage.steps for stage in recipe.stages)


def test_pretrain_trains_shows_progress_and_keeps_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "1", "1", "--images", "1", "--workers", "0", "--threads", "1"]
    assert cli.main(["pretrain", "--out", str(tmp_path), *options]) == 0
    shown = capsys.readouterr().out
    assert "step 2 of 2  256 px" in shown
    spec = catalog(load_settings(cli.APP_DIR / "configs", {}), cli.APP_DIR).entries["vit_t"].spec
    load_base(spec, tmp_path / "vit_t.safetensors")
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "learning_rate", "dice/prompt_1"} <= set(curves.Tags()["scalars"])
    # The same again has nothing left to do.
    assert cli.main(["pretrain", "--out", str(tmp_path), *options]) == 0
    assert "step" not in capsys.readouterr().out
    # What a run that was killed had shown beyond its checkpoint is gone once it goes on.
    with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
        writer.add_scalar("loss", 99.0, 7)
    time.sleep(1.1)  # files of curves are read in the order of the seconds in their names
    options[2] = "2"
    assert cli.main(["pretrain", "--out", str(tmp_path), *options]) == 0
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("loss")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--steps", "5"], "--steps: [5] is not accepted; allowed: 2 numbers above 0"),
        (["--steps", "0", "5"], "--steps: [0, 5] is not accepted"),
        (["--learning-rate", "-1"], "learning_rate: '-1' is not accepted"),
        (["--workers", "many"], "workers: 'many' is not accepted"),
        (["--start", "no/such/file.pth"], "no such file"),
    ],
)
def test_pretrain_names_what_does_not_fit(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pretrain", "--out", str(tmp_path), *options]) == 2
    message = capsys.readouterr().err
    assert told in message
    assert len(message.splitlines()) == 1


def test_the_demo_task_has_the_labels_of_the_demo_studies() -> None:
    from lib.commands.phantom import LABELS

    assert load_settings(cli.APP_DIR / "configs", {"task": "demo"}).task.labels == LABELS
