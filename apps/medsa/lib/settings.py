"""The app's settings: `configs/*.yaml` and `--conf` overrides, validated into frozen models.

This is the only YAML reader.

Settings stay at the edges: they build plain arguments and never enter the classes that do the work
(`IntensitySettings` is the exception: it is itself such an argument).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from lib.errors import SettingsError

# Keys that MONAI Label itself reads from the same --conf pairs.
MONAI_LABEL_KEYS = frozenset({"server_mode"})
DEFAULT_TASK = "demo"
NIGHT_HOURS = 4.0

# A label's clicks come in a request under the label's own name, beside these, which mean something else.
_PROMPT_KEYS = ("foreground", "background", "roi", "slice", "label", "labels", "label_prompt", "points")
_FILE_KEYS = ("label_as", "label_file", "label_info", "scribbles_fg_label", "scribbles_bg_label")
_SCRIBBLE_KEYS = ("foreground_scribbles", "background_scribbles", "selected_label_name")
_REQUEST_KEYS = (
    "model",
    "image",
    "session_id",
    "client_id",
    "user",
    "asker",
    "device",
    "reset_state",
    "save_label",
)
_ANSWER_KEYS = ("result_extension", "result_dtype", "result_compress", "restore_label_idx")
RESERVED_KEYS = frozenset(_PROMPT_KEYS + _FILE_KEYS + _SCRIBBLE_KEYS + _REQUEST_KEYS + _ANSWER_KEYS)

PATCH_SIZE, SMALLEST_IMAGE, LARGEST_IMAGE = 16, 256, 1024


def _checked_image_size(value: int) -> int:
    if not SMALLEST_IMAGE <= value <= LARGEST_IMAGE or value % PATCH_SIZE:
        raise ValueError(f"a multiple of {PATCH_SIZE} from {SMALLEST_IMAGE} to {LARGEST_IMAGE}")
    return value


def _checked_time_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("the name of a time zone, such as Europe/Berlin") from error
    return value


def _checked_patient_pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from error
    if groups != 1:
        raise ValueError("a regular expression with exactly one group")
    return value


Modality = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2,16}$")]  # a code string such as CT, MR, PT
LabelName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
LabelValue = Annotated[int, Field(strict=True, ge=1, le=255)]
ColourPart = Annotated[int, Field(ge=0, le=255)]
PositiveInt = Annotated[int, Field(gt=0)]
# Patches are 16 or 8 pixels. Below 256 too few tokens are left, and none was trained above 1024.
ImageSize = Annotated[int, AfterValidator(_checked_image_size)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
AnyModel = TypeVar("AnyModel", bound="_Settings")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class IntensitySettings(_Settings):
    """How intensities reach the model: by percentiles of the whole volume, or by a fixed HU window."""

    kind: Literal["percentile", "window"] = "percentile"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window_hu: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> "IntensitySettings":
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError("percentiles need 0 <= low < high <= 100")
        if self.kind == "window" and self.window_hu is None:
            raise ValueError("kind window needs window_hu: [low, high]")
        if self.window_hu is not None and not self.window_hu[0] < self.window_hu[1]:
            raise ValueError("window_hu needs low < high")
        return self


class CodedName(_Settings):
    """A name in a coding scheme, SNOMED CT where nothing else is said."""

    code: Annotated[str, StringConstraints(min_length=1, max_length=16)]
    meaning: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    scheme: Annotated[str, StringConstraints(min_length=1, max_length=16)] = "SCT"


class CodeSettings(CodedName):
    """What a label is called, which part of that it is if not all (`modifier`), and its colour, 0 to 255."""

    modifier: CodedName | None = None
    colour: tuple[ColourPart, ColourPart, ColourPart] = (255, 0, 0)


class TaskSettings(_Settings):
    """What is segmented: label names with their values in files, and how images are shown to the model.

    `patient` is a regular expression whose first group is the patient in an image id: cases of one patient are never
    apart, one trained on and one validated on. `flips` are the axes along which a mirrored image is as good as the
    image: none where labels tell left from right. `codes` are the labels' names in DICOM Segmentations.
    """

    name: str
    description: str
    labels: dict[LabelName, LabelValue] = Field(min_length=1)
    intensity: IntensitySettings
    slice_axis: Literal["auto", "i", "j", "k"] = "auto"
    patient: Annotated[str, AfterValidator(_checked_patient_pattern)] | None = None
    flips: tuple[Literal["i", "j", "k"], ...] = ()
    codes: dict[LabelName, CodeSettings] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> "TaskSettings":
        if len(set(self.labels.values())) < len(self.labels):
            raise ValueError("two labels share a value")
        if "background" in self.labels:
            raise ValueError("background is not a label: it is value 0 already")
        taken = sorted(RESERVED_KEYS.intersection(self.labels))
        if taken:
            raise ValueError(
                f"names other than {', '.join(sorted(RESERVED_KEYS))}; a request calls something else so"
            )
        unknown = sorted(set(self.codes) - set(self.labels))
        if unknown:
            raise ValueError(f"codes only for labels; {', '.join(unknown)} is none")
        return self


class AdapterSettings(_Settings):
    """Widths of the adapters in channels; `hyper_layers` counts the generated weights of HyP-Adpt.

    `prompt_arm` is how the decoder's first adapter uses the prompt, `depth` how many neighbouring slices are seen
    together (1: slices are seen one by one).
    """

    encoder_width: PositiveInt
    decoder_width: PositiveInt
    hyper_width: PositiveInt
    prompt_rank: PositiveInt
    hyper_layers: PositiveInt
    prompt_arm: Literal["none", "add", "concat", "hyper"]
    depth: Annotated[int, Field(ge=1, le=32)]


class BaseModelSettings(_Settings):
    """One base model: its dimensions, where its file is, and how large its adapters may be."""

    name: str
    image_size: PositiveInt
    patch_size: PositiveInt
    encoder_width: PositiveInt
    encoder_depth: PositiveInt
    encoder_heads: PositiveInt
    global_blocks: tuple[int, ...]
    window_size: PositiveInt
    file: str | None = None
    url: str | None = None
    bytes: PositiveInt | None = None
    sha256: Sha256 | None = None
    adapter_budget: float = Field(gt=0, lt=1)
    adapter: AdapterSettings

    @model_validator(mode="after")
    def _file_can_be_found_and_checked(self) -> "BaseModelSettings":
        if (self.file is None) == (self.url is None):
            raise ValueError("either file (shipped) or url (downloaded) is needed, not both")
        if self.url is not None and (self.sha256 is None or self.bytes is None):
            raise ValueError("url needs bytes and sha256")
        return self


class NightlySettings(_Settings):
    """The full retraining of a night: it starts at `at` (HH:MM in `time_zone`) and lasts `max_hours` at the most.

    `from` is what it starts from: the base, or the adapter that serves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    at: Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    time_zone: Annotated[str, AfterValidator(_checked_time_zone)] = "UTC"
    max_hours: float = Field(default=NIGHT_HOURS, gt=0, le=24)
    start: Literal["base", "champion"] = Field(default="base", alias="from")

    @field_validator("at", mode="before")
    @classmethod
    def _at_in_quotes(cls, value: Any) -> Any:
        # YAML reads 22:30 without quotes as a number to the base of sixty.
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError('HH:MM in quotes, as "22:30"')
        return value


class TrainingSettings(_Settings):
    """When and how the adapter is trained.

    `train_minutes` is the time budget of one incremental run. It is started by `train_after` new or changed labels, or
    by fewer when none was saved for `train_idle_minutes` (0: never). `gate_margin` and `gate_confidence` are those of
    the gate's test of non-inferiority. `new_share` is how often a new case is drawn, `recorded_share` how often the
    prompts that an annotator gave are taken instead of simulated ones, where there are any. `small_share` is the part
    of the time in which images have half the size, `single_share` that in which slices are drawn one by one, without
    neighbours. A training that goes on from what serves has `refining_share` of the learning rate. An incremental run
    looks at `replayed_cases` at the most of the older cases to train on. On a CPU a training uses at most
    `train_threads` cores.
    """

    auto_train: bool = True
    train_after: PositiveInt = 5
    train_idle_minutes: float = Field(default=20.0, ge=0)
    nightly: NightlySettings | None = None
    train_minutes: float = Field(default=3.0, gt=0)
    train_threads: PositiveInt | None = None
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    learning_rate: float = Field(default=1e-2, gt=0)
    refining_share: float = Field(default=0.3, gt=0, le=1)
    small_share: float = Field(default=0.4, ge=0, le=1)
    single_share: float = Field(default=0.7, ge=0, le=1)
    batch_slices: PositiveInt = 8
    prompts_per_slice: PositiveInt = 4
    seed: int = Field(default=0, ge=0)
    gate_margin: float = Field(default=0.02, ge=0, lt=1)
    gate_confidence: float = Field(default=0.95, gt=0.5, lt=1)
    new_share: float = Field(default=0.5, ge=0, le=1)
    recorded_share: float = Field(default=0.5, ge=0, le=1)
    replayed_cases: PositiveInt = 100
    checkpoint_seconds: float = Field(default=20.0, ge=0)

    @field_validator("nightly", mode="before")
    @classmethod
    def _nightly_of_text(cls, value: Any) -> Any:
        # A --conf pair is a text: 02:00, or off, or {"at":"02:00","max_hours":4}, without spaces: MONAI Label's own
        # start script splits at them.
        if not isinstance(value, str):
            return value
        if re.fullmatch(r"\d\d:\d\d", value):
            return {"at": value}
        try:
            content = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError("a YAML mapping, or off") from error
        return None if content is False else content


class ServingSettings(_Settings):
    """Which base serves, from which file, on which device, and how much is kept, queued and taken.

    `image_size` is the side of the model's image in pixels; None: the base's own. A cache of 0 MB is off. At most
    `queue_length` requests for the model are taken at once, each for at most `request_seconds`, with at most
    `max_body_mb` MB. With `warm` a case that is opened is encoded before the first click. Of a PACS the series of
    `pacs_modalities` are listed, it is looked at every `pacs_seconds`, and what was fetched lies in `pacs_cache`.
    """

    base: Literal["auto", "vit_t", "vit_b", "vit_l", "vit_h"] = "auto"
    checkpoint: Path | None = None
    image_size: ImageSize | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    embedding_cache_mb: int = Field(default=1024, ge=0)
    embedding_disk_mb: int = Field(default=4096, ge=0)
    warm: bool = True
    queue_length: PositiveInt = 32
    request_seconds: float = Field(default=120, gt=0)
    max_body_mb: PositiveInt = 1024
    lease_minutes: float = Field(default=60, gt=0)
    pacs_modalities: Annotated[tuple[Modality, ...], Field(min_length=1)] = ("CT", "MR")
    pacs_seconds: float = Field(default=10, gt=0)
    pacs_cache: Path | None = None
    state: Path | None = None

    @field_validator("pacs_modalities", mode="before")
    @classmethod
    def _modalities_of_text(cls, value: Any) -> Any:
        # A --conf pair is a text: CT,MR or [CT,MR], without spaces: MONAI Label's own start script splits at them.
        return re.findall(r"[^\s,\[\]\"']+", value) if isinstance(value, str) else value


class StageSettings(_Settings):
    """A part of pretraining: `steps` steps at `image_size` pixels."""

    image_size: Annotated[int, Field(ge=64, le=LARGEST_IMAGE, multiple_of=PATCH_SIZE)]
    steps: PositiveInt


class PretrainingSettings(_Settings):
    """The recipe of the project's own base; `configs/pretraining.yaml` explains every key."""

    stages: tuple[StageSettings, ...] = Field(min_length=1)
    decay_steps: PositiveInt
    warmup_steps: PositiveInt
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    images: PositiveInt
    objects: PositiveInt
    round_shares: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1, max_length=32)
    ema_decay: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0, lt=1 << 31)
    checkpoint_seconds: float = Field(ge=0)
    workers: int = Field(ge=0)
    start: Path | None = None

    @field_validator("round_shares")
    @classmethod
    def _some_round_is_possible(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not sum(value) > 0:
            raise ValueError("numbers of which one at least is above 0")
        return value


class Settings(_Settings):
    """Everything that is set, for one task."""

    task: TaskSettings
    training: TrainingSettings
    serving: ServingSettings
    bases: dict[str, BaseModelSettings]


def load_settings(config_dir: Path, overrides: Mapping[str, str]) -> Settings:
    """The settings in `config_dir`, with `overrides` (the `--conf` pairs) on top.

    Raises SettingsError, in one line, naming the file (or --conf) and key, the value and what is allowed.
    """
    _check_keys(overrides)
    task = overrides.get("task", DEFAULT_TASK)
    return Settings(
        task=_load_task(config_dir / "tasks", task),
        training=_load_section(TrainingSettings, config_dir / "training.yaml", overrides),
        serving=_load_section(ServingSettings, config_dir / "serving.yaml", overrides),
        bases=_load_bases(config_dir / "bases.yaml"),
    )


def load_pretraining(path: Path, overrides: Mapping[str, Any]) -> PretrainingSettings:
    """The recipe in the YAML file `path`, with `overrides` on top; raises SettingsError like `load_settings`."""
    return _load_section(PretrainingSettings, path, overrides, "option ")


def _check_keys(overrides: Mapping[str, str]) -> None:
    own = ["task", *TrainingSettings.model_fields, *ServingSettings.model_fields]
    for key, value in overrides.items():
        if key not in own and key not in MONAI_LABEL_KEYS:
            raise SettingsError(f"--conf {key}", value, f"the keys {', '.join(sorted(own))}")


def _load_task(folder: Path, name: str) -> TaskSettings:
    # Compared with the listing, so that a name such as ../x opens nothing.
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise SettingsError("--conf task", name, ", ".join(names) or f"no task in {folder}")
    return _named(TaskSettings, name, _read_yaml(folder / f"{name}.yaml"), f"tasks/{name}.yaml: ")


def _load_bases(path: Path) -> dict[str, BaseModelSettings]:
    return {
        str(name): _named(BaseModelSettings, str(name), content, f"{path.name}: {name}.")
        for name, content in _read_yaml(path).items()
    }


def _load_section(
    model: type[AnyModel], path: Path, overrides: Mapping[str, Any], where: str = "--conf "
) -> AnyModel:
    # The file alone first, so that an override never hides a mistake in it, nor is blamed for one.
    of_file = _validate(model, _read_yaml(path), f"{path.name}: ")
    given = {key: _plain(model, key, value) for key, value in overrides.items() if key in model.model_fields}
    return _validate(model, {**of_file.model_dump(), **given}, where)


def _plain(model: type[BaseModel], key: str, value: Any) -> Any:
    """A --conf pair is a text: null is none, as in the file, for a key that may be none."""
    return None if value == "null" and model.model_fields[key].default is None else value


def _named(model: type[AnyModel], name: str, content: Any, where: str) -> AnyModel:
    """`content` as a `model` whose name comes from the file or entry, not from the content."""
    if not isinstance(content, dict):
        raise SettingsError(where.rstrip(": ."), content, "a mapping of keys to values")
    if "name" in content:
        raise SettingsError(f"{where}name", content["name"], "no such key; the name is the file's or entry's")
    return _validate(model, {"name": name, **content}, where)


def _validate(model: type[AnyModel], content: dict[str, Any], where: str) -> AnyModel:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _settings_error(model, error, where) from error


def _settings_error(model: type[BaseModel], error: ValidationError, where: str) -> SettingsError:
    """The first problem of `error` in one line; `where` is what comes before the key."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    field = f"{where}{'.'.join(path)}".rstrip(": .")
    if problem["type"] == "extra_forbidden":
        return SettingsError(field, problem["input"], f"the keys {', '.join(_keys_beside(model, path))}")
    if problem["type"] == "missing":
        return SettingsError(field, None, "a value; this key is needed")
    return SettingsError(
        field, problem["input"], problem["msg"].removeprefix("Value error, ").replace("\n", " ")
    )


def _keys_beside(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path[:-1]:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return sorted(set(model.model_fields) - {"name"})


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(path.name, reason, "a readable YAML file") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(path.name, content, "a mapping of names to values")
    return content
