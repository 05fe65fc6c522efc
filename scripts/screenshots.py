"""Makes docs/images from the screenshots that tests/browser/test_loop.py has kept: `make screenshots`."""

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("study-list", "clicked-spleen", "painted", "submitted", "next-case-without-a-click")
WIDTH, COLOURS = 960, 256


def main(shots: Path, target: Path) -> int:
    """One small PNG a step; exit code 1 where a step has no screenshot."""
    target.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        found = sorted(shots.rglob(f"*-{step}.png"))
        if not found:
            print(f"screenshots: none of {step} in {shots}; run the test first", file=sys.stderr)
            return 1
        with Image.open(found[-1]) as image:
            small = image.convert("RGB").resize(
                (WIDTH, WIDTH * image.height // image.width), Image.Resampling.LANCZOS
            )
        small.quantize(COLOURS, method=Image.Quantize.FASTOCTREE).save(
            target / f"ohif-{step}.png", optimize=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(ROOT / "artifacts" / "browser", ROOT / "docs" / "images"))
