"""What a small SAM of other dimensions would cost: `python benchmarks/base_sizes.py --json FILE`.

Untrained networks, so time and size only: encoding one slice when serving, and the two halves of a pretraining step
(8 images encoded, 32 prompts decoded, forwards and backwards). bfloat16, two threads, medians.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "apps" / "medsa"), str(ROOT / "benchmarks")]

from network import entry_of, judged, machine  # noqa: E402 (a folder, not a package)

from lib.memory import keep_freed_memory  # noqa: E402
from lib.model.base import BaseSpec, build_sam  # noqa: E402
from lib.model.medsa import MedSA, PlanePrompts  # noqa: E402

THREADS, IMAGES, PROMPTS, BAR_MS = 2, 8, 32, 60.0
# Image size, patch size, width, depth, heads; the last block and the one in the middle look at the whole map.
TRIED = (
    (256, 16, 192, 6, 3),
    (128, 8, 192, 6, 3),
    (256, 8, 192, 6, 3),
    (256, 8, 256, 6, 4),
    (256, 8, 192, 8, 3),
    (320, 8, 192, 6, 3),
)


def spec_of(image_size: int, patch_size: int, width: int, depth: int, heads: int) -> BaseSpec:
    """A base with these dimensions."""
    return BaseSpec("tried", image_size, patch_size, width, depth, heads, (depth // 2 - 1, depth - 1), 8)


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median over `rounds`, after one that does not count."""
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(spec: BaseSpec) -> dict[str, float]:
    """Parameters in millions, milliseconds to encode one slice, seconds of the halves of a training step."""
    model = MedSA(build_sam(spec), spec, None).train()
    images = torch.rand(IMAGES, 3, spec.image_size, spec.image_size) * 255
    embeddings = torch.randn(PROMPTS, 256, spec.grid, spec.grid, requires_grad=True)
    prompts = PlanePrompts(torch.rand(PROMPTS, 2, 2) * spec.image_size, torch.ones(PROMPTS, 2).long())

    def encode() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            features = model.encode(images)
        features.mean().backward()

    def decode() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            answer = model.decode(embeddings, prompts)
        answer.logits.float().mean().backward()

    found = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "encode_step": seconds(encode, 3),
        "decode_step": seconds(decode, 3),
    }
    return {**found, "encode": serving_ms(model, images[:1])}


@torch.inference_mode()
def serving_ms(model: MedSA, image: torch.Tensor) -> float:
    """Milliseconds to encode one slice with rounded weights; the model is of no use for training after that."""
    model.eval().use_bfloat16()
    return 1e3 * seconds(lambda: model.encode(image), 15)


def main() -> int:
    """Prints a line for each, and writes the times as figures with the bar on one slice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    figures = []
    print("pixels  patch  width  depth  tokens  parameters  one slice  step: encode  decode")
    for dimensions in TRIED:
        spec = spec_of(*dimensions)
        found = measure(spec)
        size, patch, width, depth, _ = dimensions
        print(
            f"{size:6}  {patch:5}  {width:5}  {depth:5}  {spec.grid**2:6}  {found['parameters']:8.2f} M  "
            f"{found['encode']:6.1f} ms  {found['encode_step']:10.2f} s  {found['decode_step']:.2f} s",
            flush=True,
        )
        name = f"{size} px, patch {patch}, width {width}, depth {depth}: one slice"
        figures.append(entry_of(judged(name, found["encode"], "ms", f"<= {BAR_MS:g}")))
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
