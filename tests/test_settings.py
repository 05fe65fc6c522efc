"""Settings: what ships is valid, and each mistake is named in one line."""

import shutil
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from lib.errors import SettingsError
from lib.settings import (
    LARGEST_IMAGE,
    PATCH_SIZE,
    SMALLEST_IMAGE,
    IntensitySettings,
    NightlySettings,
    ServingSettings,
    Settings,
    TaskSettings,
    TrainingSettings,
    load_pretraining,
    load_settings,
)

CONFIGS = Path(__file__).resolve().parent.parent / "apps" / "medsa" / "configs"
TASKS = ["cardiac_lv", "demo", "hippocampus", "hippocampus_parts", "object"]


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CONFIGS, tmp_path / "configs"))


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def refusal(configs: Path, **overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(configs, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestShipped:
    def test_all_tasks_are_listed_here(self) -> None:
        assert sorted(path.stem for path in (CONFIGS / "tasks").iterdir()) == TASKS

    @pytest.mark.parametrize("task", TASKS)
    def test_every_task_loads(self, task: str) -> None:
        settings = load_settings(CONFIGS, {"task": task})
        assert settings.task.name == task
        assert min(settings.task.labels.values()) == 1

    def test_demo_is_the_default(self) -> None:
        settings = load_settings(CONFIGS, {})
        assert settings.task.name == "demo"
        assert settings.task.labels == {"liver": 1, "spleen": 2, "kidney": 3}
        assert settings.task.intensity.window_hu == (-160, 240)

    def test_files_and_code_have_the_same_defaults(self) -> None:
        settings = load_settings(CONFIGS, {})
        assert settings.training == TrainingSettings()
        assert settings.serving == ServingSettings()
        for name, model in (("training", TrainingSettings), ("serving", ServingSettings)):
            assert set(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())) == set(model.model_fields)

    def test_bases(self) -> None:
        bases = load_settings(CONFIGS, {}).bases
        assert list(bases) == ["vit_t", "vit_b", "vit_l", "vit_h"]
        assert bases["vit_t"].file == "vit_t.safetensors"
        assert bases["vit_b"].bytes == 375_042_383
        for base in bases.values():
            assert base.encoder_width % base.encoder_heads == 0
            assert max(base.global_blocks) == base.encoder_depth - 1
            assert base.image_size % base.patch_size == 0
            assert PATCH_SIZE % base.patch_size == 0
            assert SMALLEST_IMAGE <= base.image_size <= LARGEST_IMAGE


class TestOverrides:
    def test_each_section_takes_its_own(self, tmp_path: Path) -> None:
        overrides = {
            "task": "object",
            "base": "vit_t",
            "train_after": "7",
            "train_minutes": "0.5",
            "auto_train": "false",
            "state": str(tmp_path),
            "server_mode": "true",
        }
        settings = load_settings(CONFIGS, overrides)
        assert settings.serving == ServingSettings(base="vit_t", state=tmp_path)
        assert settings.training == TrainingSettings(train_after=7, train_minutes=0.5, auto_train=False)

    def test_an_unknown_key_names_key_value_and_the_known_ones(self) -> None:
        message = refusal(CONFIGS, learnrate="5")
        assert message.startswith(
            "--conf learnrate: '5' is not accepted; allowed: the keys auto_train, base,"
        )

    @pytest.mark.parametrize("task", ["liver", "../training", "", "demo.yaml"])
    def test_an_unknown_task_names_the_known_ones(self, task: str) -> None:
        assert refusal(CONFIGS, task=task).endswith(f"allowed: {', '.join(TASKS)}")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("train_after", "many"),
            ("train_after", "0"),
            ("train_after", "2.5"),
            ("train_minutes", "nan"),
            ("train_minutes", "-1"),
            ("validation_fraction", "1"),
            ("auto_train", "perhaps"),
            ("base", "vit_x"),
            ("device", "tpu"),
            ("embedding_cache_mb", ""),
        ],
    )
    def test_a_value_that_does_not_fit(self, key: str, value: str) -> None:
        assert refusal(CONFIGS, **{key: value}).startswith(
            f"--conf {key}: {value!r} is not accepted; allowed: "
        )

    @pytest.mark.parametrize("value", [256, 272, 512, 1024])
    def test_image_sizes(self, value: int) -> None:
        assert load_settings(CONFIGS, {"image_size": str(value)}).serving.image_size == value

    @pytest.mark.parametrize("value", [-512, 0, 240, 250, 500, 1025, 1040])
    def test_image_sizes_that_no_base_can_have(self, value: int) -> None:
        assert refusal(CONFIGS, image_size=str(value)) == (
            f"--conf image_size: '{value}' is not accepted; allowed: a multiple of 16 from 256 to 1024"
        )

    @pytest.mark.parametrize("value", ["large", "512.5", "512x512"])
    def test_an_image_size_that_is_no_number(self, value: str) -> None:
        assert refusal(CONFIGS, image_size=value).startswith(f"--conf image_size: {value!r} is not accepted")

    def test_settings_cannot_be_changed(self) -> None:
        settings = load_settings(CONFIGS, {})
        with pytest.raises(ValueError, match="frozen"):
            settings.training.seed = 4  # type: ignore[misc]
        assert isinstance(settings, Settings)


class TestTextsOfConf:
    @pytest.mark.parametrize("text", ["CT,PT", "[CT,PT]", '["CT","PT"]', "CT, PT"])
    def test_modalities(self, text: str) -> None:
        assert load_settings(CONFIGS, {"pacs_modalities": text}).serving.pacs_modalities == ("CT", "PT")

    @pytest.mark.parametrize("text", ["", "ct", "[]", "CT;PT"])
    def test_no_modalities(self, text: str) -> None:
        with pytest.raises(SettingsError, match="pacs_modalities"):
            load_settings(CONFIGS, {"pacs_modalities": text})

    @pytest.mark.parametrize("key", ["image_size", "checkpoint", "train_threads", "state"])
    def test_null_is_none(self, key: str) -> None:
        found = load_settings(CONFIGS, {key: "null"})
        assert {**found.serving.model_dump(), **found.training.model_dump()}[key] is None

    def test_null_is_no_value_of_a_key_that_needs_one(self) -> None:
        with pytest.raises(SettingsError, match="train_after: 'null'"):
            load_settings(CONFIGS, {"train_after": "null"})


class TestMistakesInFiles:
    @pytest.mark.parametrize(
        ("file", "old", "new", "expected"),
        [
            ("training.yaml", "train_after: 5", "train_afters: 5", "training.yaml: train_afters: 5 "),
            ("training.yaml", "train_after: 5", "train_after: soon", "training.yaml: train_after: 'soon' "),
            ("serving.yaml", "device: auto", "device: [cpu]", "serving.yaml: device: ['cpu'] "),
            ("tasks/demo.yaml", "liver: 1", "liver: 0", "tasks/demo.yaml: labels.liver: 0 "),
            ("tasks/demo.yaml", "liver: 1", "liver: 256", "tasks/demo.yaml: labels.liver: 256 "),
            ("tasks/demo.yaml", "liver: 1", "liver: true", "tasks/demo.yaml: labels.liver: True "),
            ("tasks/demo.yaml", "liver: 1", "liver: 2", "two labels share a value"),
            ("tasks/demo.yaml", "  liver: {", "  lung: {", "codes only for labels; lung is none"),
            ("tasks/demo.yaml", "221, 130", "256, 130", "codes.liver.colour"),
            (
                "tasks/demo.yaml",
                "meaning: Liver,",
                'meaning: Liver, modifier: {code: "1", meaning: ""},',
                "codes.liver.modifier.meaning",
            ),
            ("serving.yaml", "[CT, MR]", "[ct]", "pacs_modalities"),
            ("tasks/demo.yaml", "liver: 1", "background: 1", "background is not a label"),
            ("tasks/demo.yaml", "liver: 1", "roi: 1", "a request calls something else so"),
            ("tasks/demo.yaml", "liver: 1", "image: 1", "a request calls something else so"),
            (
                "tasks/demo.yaml",
                "kind: window",
                "kind: windows",
                "tasks/demo.yaml: intensity.kind: 'windows' ",
            ),
            (
                "tasks/demo.yaml",
                "window_hu: [-160, 240]",
                "window: 3",
                "tasks/demo.yaml: intensity.window: 3 ",
            ),
            ("tasks/demo.yaml", "[-160, 240]", "[240, -160]", "window_hu needs low < high"),
            ("tasks/demo.yaml", ", window_hu: [-160, 240]", "", "kind window needs window_hu"),
            ("tasks/demo.yaml", "slice_axis: auto", "slice_axis: z", "tasks/demo.yaml: slice_axis: 'z' "),
            ("tasks/demo.yaml", "description:", "text:", "tasks/demo.yaml: description: None "),
            ("tasks/demo.yaml", "description:", "name:", "tasks/demo.yaml: name: "),
            ("bases.yaml", "patch_size: 16", "patch_size: 0", "bases.yaml: vit_b.patch_size: 0 "),
            (
                "bases.yaml",
                "hyper_layers: 2",
                "hyper_layer: 2",
                "bases.yaml: vit_t.adapter.hyper_layers: None ",
            ),
            ("bases.yaml", "depth: 4", "depth: 33", "bases.yaml: vit_t.adapter.depth: 33 "),
            ("bases.yaml", "depth: 4", "depth: 0", "bases.yaml: vit_t.adapter.depth: 0 "),
            ("bases.yaml", "arm: hyper", "arm: both", "bases.yaml: vit_t.adapter.prompt_arm: 'both' "),
            ("bases.yaml", "file: vit_t.safetensors", "file: null", "bases.yaml: vit_t: "),
            ("bases.yaml", "sha256: ec2df", "sha256: zz", "bases.yaml: vit_b.sha256: "),
            ("training.yaml", "train_after: 5", "train_after: [5", "training.yaml: "),
        ],
    )
    def test_are_named(self, configs: Path, file: str, old: str, new: str, expected: str) -> None:
        replace_in(configs / file, old, new)
        assert expected in refusal(configs)

    @pytest.mark.parametrize("percentiles", [(-1, 50), (50, 50), (1, 101), (99, 1)])
    def test_percentiles(self, configs: Path, percentiles: tuple[float, float]) -> None:
        replace_in(configs / "tasks" / "object.yaml", "[0.5, 99.5]", str(list(percentiles)))
        assert "percentiles need 0 <= low < high <= 100" in refusal(configs, task="object")

    def test_empty_labels(self, configs: Path) -> None:
        replace_in(configs / "tasks" / "object.yaml", "{object: 1}", "{}")
        assert "tasks/object.yaml: labels: {} " in refusal(configs, task="object")

    def test_an_override_does_not_hide_a_mistake_in_the_file(self, configs: Path) -> None:
        replace_in(configs / "training.yaml", "train_after: 5", "train_after: soon")
        assert refusal(configs, train_after="3").startswith("training.yaml: train_after: 'soon' ")

    @pytest.mark.parametrize("content", ["- 1\n- 2\n", "5: x\n", "text\n"])
    def test_a_file_that_is_no_mapping(self, configs: Path, content: str) -> None:
        (configs / "serving.yaml").write_text(content)
        assert "a mapping of names to values" in refusal(configs)

    def test_a_base_that_is_no_mapping(self, configs: Path) -> None:
        (configs / "bases.yaml").write_text("vit_t: 5\n")
        assert (
            refusal(configs) == "bases.yaml: vit_t: 5 is not accepted; allowed: a mapping of keys to values"
        )

    def test_a_missing_file(self, configs: Path) -> None:
        (configs / "bases.yaml").unlink()
        assert refusal(configs).startswith("bases.yaml: ")

    def test_a_section_left_empty_has_the_defaults(self, configs: Path) -> None:
        (configs / "training.yaml").write_text("# nothing\n")
        assert load_settings(configs, {}).training == TrainingSettings()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("image_size: 128", "image_size: 100", "pretraining.yaml: stages.0.image_size: 100"),
        ("round_shares: [0.22,", "round_shares: [-1,", "pretraining.yaml: round_shares.0: -1"),
        ("ema_decay: 0.998", "ema_decay: 1.0", "pretraining.yaml: ema_decay: 1.0"),
        ("images: 8", "images: eight", "pretraining.yaml: images: 'eight'"),
        ("images: 8", "pictures: 8", "pretraining.yaml: "),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(configs: Path, old: str, new: str, told: str) -> None:
    replace_in(configs / "pretraining.yaml", old, new)
    with pytest.raises(SettingsError) as caught:
        load_pretraining(configs / "pretraining.yaml", {})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_without_any_round_is_refused(configs: Path) -> None:
    with pytest.raises(SettingsError, match=r"round_shares: .* numbers of which one"):
        load_pretraining(configs / "pretraining.yaml", {"round_shares": [0.0, 0.0]})


def test_options_go_before_the_recipe(configs: Path) -> None:
    recipe = load_pretraining(configs / "pretraining.yaml", {"seed": "7", "workers": "0"})
    assert (recipe.seed, recipe.workers) == (7, 0)
    assert recipe.learning_rate == load_pretraining(configs / "pretraining.yaml", {}).learning_rate


def nightly_of(text: str) -> NightlySettings | None:
    return load_settings(CONFIGS, {"nightly": text}).training.nightly


def test_a_night_is_off_or_a_time_or_a_mapping() -> None:
    assert nightly_of("off") is None
    assert nightly_of("02:00") == NightlySettings(at="02:00")
    text = '{"at":"23:30","time_zone":"Europe/Berlin","max_hours":2,"from":"champion"}'
    assert nightly_of(text) == NightlySettings(
        at="23:30", time_zone="Europe/Berlin", max_hours=2, start="champion"
    )


@pytest.mark.parametrize(
    ("text", "field", "allowed"),
    [
        ("24:00", "nightly.at", "pattern"),
        ("soon", "nightly", "valid dictionary"),
        ("{", "nightly", "a YAML mapping, or off"),
        ('{"at":"2:00"}', "nightly.at", "pattern"),
        ("{at: 22:30}", "nightly.at", "HH:MM in quotes"),
        ('{"at":"02:00","time_zone":"Mars"}', "nightly.time_zone", "the name of a time zone"),
        ('{"at":"02:00","max_hours":0}', "nightly.max_hours", "greater than 0"),
        ('{"at":"02:00","max_hours":25}', "nightly.max_hours", "less than or equal to 24"),
        ('{"at":"02:00","from":"v3"}', "nightly.from", "'base' or 'champion'"),
        ('{"at":"02:00","until":"04:00"}', "nightly.until", "the keys"),
    ],
)
def test_a_night_that_is_none_is_named(text: str, field: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as raised:
        nightly_of(text)
    assert str(raised.value).startswith(f"--conf {field}: ")
    assert allowed in str(raised.value)


@pytest.mark.parametrize("pattern", ["(", "no group", "(a)(b)"])
def test_a_patient_pattern_has_exactly_one_group(pattern: str) -> None:
    with pytest.raises(ValidationError, match="regular expression"):
        TaskSettings(
            name="x", description="", labels={"a": 1}, intensity=IntensitySettings(), patient=pattern
        )
