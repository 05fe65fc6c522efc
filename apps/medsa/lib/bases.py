"""From settings to the base model that serves: the one place that knows both."""

from dataclasses import replace
from pathlib import Path

import torch

from lib.download import fetch
from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec
from lib.model.catalog import BaseCatalog, BaseChoice, BaseEntry, BaseRequest
from lib.model.medsa import Precision
from lib.model.precision import has_fast_bfloat16
from lib.settings import BaseModelSettings, ServingSettings, Settings

WEIGHTS_FOLDER = "weights"
DOWNLOADS_FOLDER = "checkpoints"


def choose_base(
    settings: Settings, app_dir: Path, published_on: str | None, served_on: str | None = None
) -> BaseChoice:
    """The base for these settings; downloads an official checkpoint into `app_dir`/model/checkpoints if needed.

    `published_on` names the base of the serving adapter, if there is one, `served_on` the one that the server chose
    last, for others than the server. Raises CheckpointError.
    """
    request = BaseRequest(
        base=settings.serving.base,
        checkpoint=settings.serving.checkpoint,
        has_gpu=torch_device(settings.serving) == "cuda",
        published_on=published_on,
        served_on=served_on,
    )
    return catalog(settings, app_dir).choose(request)


def catalog(settings: Settings, app_dir: Path) -> BaseCatalog:
    """Every base the settings describe, at the image size they ask for."""
    image_size = settings.serving.image_size
    entries = {name: _entry(name, base, image_size) for name, base in settings.bases.items()}
    return BaseCatalog(entries, app_dir / WEIGHTS_FOLDER, app_dir / "model" / DOWNLOADS_FOLDER, fetch)


def torch_device(serving: ServingSettings) -> str:
    """`cuda` or `cpu`."""
    if serving.device != "auto":
        return serving.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def encoder_precision(serving: ServingSettings) -> Precision:
    """What the encoder computes in; `auto` is bfloat16 where the device has it in hardware."""
    if serving.precision != "auto":
        return serving.precision
    return "bfloat16" if has_fast_bfloat16(torch.device(torch_device(serving))) else "float32"


def _entry(name: str, base: BaseModelSettings, image_size: int | None) -> BaseEntry:
    spec = BaseSpec(
        name=name,
        image_size=base.image_size,
        patch_size=base.patch_size,
        encoder_width=base.encoder_width,
        encoder_depth=base.encoder_depth,
        encoder_heads=base.encoder_heads,
        global_blocks=base.global_blocks,
        window_size=base.window_size,
    )
    if image_size is not None:
        spec = replace(spec, image_size=image_size)
    dims = AdapterDims(**base.adapter.model_dump())
    return BaseEntry(spec, dims, base.file, base.url, base.bytes, base.sha256)
