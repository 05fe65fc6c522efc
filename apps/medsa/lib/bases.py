"""From settings to the base model that serves: the one place that knows both."""

from pathlib import Path

import torch

from lib.download import fetch
from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec
from lib.model.catalog import BaseCatalog, BaseChoice, BaseEntry, BaseRequest
from lib.settings import BaseModelSettings, ServingSettings, Settings

WEIGHTS_FOLDER = "weights"
DOWNLOADS_FOLDER = "checkpoints"


def choose_base(settings: Settings, app_dir: Path, published_on: str | None) -> BaseChoice:
    """The base for these settings; downloads an official checkpoint into `app_dir`/model/checkpoints if needed.

    `published_on` names the base of the serving adapter, if there is one. Raises CheckpointError.
    """
    request = BaseRequest(
        base=settings.serving.base,
        checkpoint=settings.serving.checkpoint,
        has_gpu=torch_device(settings.serving) == "cuda",
        published_on=published_on,
    )
    return catalog(settings, app_dir).choose(request)


def catalog(settings: Settings, app_dir: Path) -> BaseCatalog:
    """Every base the settings describe."""
    entries = {name: _entry(name, base) for name, base in settings.bases.items()}
    return BaseCatalog(entries, app_dir / WEIGHTS_FOLDER, app_dir / "model" / DOWNLOADS_FOLDER, fetch)


def torch_device(serving: ServingSettings) -> str:
    """`cuda` or `cpu`."""
    if serving.device != "auto":
        return serving.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _entry(name: str, base: BaseModelSettings) -> BaseEntry:
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
    dims = AdapterDims(**base.adapter.model_dump())
    return BaseEntry(spec, dims, base.file, base.url, base.bytes, base.sha256)
