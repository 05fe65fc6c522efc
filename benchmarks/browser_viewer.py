"""OHIF in a real Chromium, used as a person uses it: for tests/browser and benchmarks/browser.py.

Nothing is sent to the medsa server from here but what the page sends; cornerstone's own objects are only asked where a
voxel lies on the screen and what the labelmap holds.
"""

import base64
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Locator, Page, sync_playwright

INSTALL = "apt-get install chromium"
PATIENCE_MS = 600_000
AXIAL = "mpr-axial"
FLAGS = (
    "--no-sandbox",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # WebGL without a GPU, as on a CI machine.
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    # Nothing but this machine is reached: the page must not need anything else.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
# Scrolls the viewport to a voxel and says where it lies on the page.
_PLACE = """async ([name, voxel]) => {
  const viewport = window.cornerstone.getRenderingEngines()[0].getViewport(name);
  const world = viewport.getImageData().imageData.indexToWorld(voxel);
  const camera = viewport.getCamera(), normal = camera.viewPlaneNormal;
  const depth = normal.reduce((sum, n, a) => sum + n * (world[a] - camera.focalPoint[a]), 0);
  const moved = point => point.map((value, a) => value + depth * normal[a]);
  viewport.setCamera({ ...camera, focalPoint: moved(camera.focalPoint), position: moved(camera.position) });
  viewport.render();
  await new Promise(resolve => setTimeout(resolve, 300));
  const canvas = viewport.worldToCanvas(world), box = viewport.element.getBoundingClientRect();
  return [box.x + canvas[0], box.y + canvas[1]];
}"""
_LABELMAP = """() => {
  const volume = window.services.segmentationService.getLabelmapVolume('1');
  const bytes = volume.voxelManager.getCompleteScalarDataArray();
  let text = '';
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return [volume.dimensions, btoa(text)];
}"""
_SEGMENTS = """() => {
  const { segments, config } = window.services.segmentationService.getSegmentation('1');
  return Object.values(segments ?? config.segments).filter(Boolean).map(one => [one.segmentIndex, one.label]);
}"""


# What a request for a mask says: Playwright does not show the body of one with a label file.
_REMEMBER_ASKED = """(() => {
  const { set } = FormData.prototype;
  FormData.prototype.set = function (name, value, ...rest) {
    if (name === 'params') window.askedParams = value;
    return set.call(this, name, value, ...rest);
  };
})()"""


def chromium() -> str | None:
    """The browser's program; None where there is none."""
    return shutil.which("chromium")


@contextmanager
def browser_page(width: int = 1600, height: int = 1000) -> Iterator[Page]:
    """A page of a fresh browser, whose profile is gone afterwards."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=list(FLAGS), timeout=PATIENCE_MS
        )
        try:
            context = browser.new_context(viewport={"width": width, "height": height})
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            yield page
        finally:
            browser.close()


class Viewer:
    """OHIF on `page`, from the server at `url`; `shots` gets a numbered screenshot of each step that is asked for."""

    def __init__(self, page: Page, url: str, shots: Path) -> None:
        self.page, self.url, self._shots = page, url, shots
        self._count = 0
        self.errors: list[str] = []
        page.add_init_script(_REMEMBER_ASKED)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    @property
    def dock(self) -> Locator:
        """medsa's part of the panel."""
        return self.page.locator("#medsa-dock")

    def study_list(self, *patients: str) -> None:
        """Opens the list, and waits until it shows `patients`."""
        self.page.goto(f"{self.url}/ohif/", wait_until="load")
        for patient in patients:
            self.page.get_by_text(patient, exact=True).first.wait_for()
        self._dismiss()

    def open_from_list(self, patient: str) -> None:
        """Opens a patient's study with the MONAI Label mode; returns when the first click can be made."""
        self.page.get_by_text(patient, exact=True).first.click()
        self.page.locator('button:has-text("MONAI Label")').first.click()
        self.wait_ready()

    def open(self, study: str, series: str) -> None:
        """Opens one series by its address."""
        query = f"StudyInstanceUIDs={study}&SeriesInstanceUIDs={series}"
        self.page.goto(f"{self.url}/ohif/monai-label?{query}", wait_until="load")
        self.wait_ready()

    def wait_ready(self) -> None:
        """Waits until the panel is connected and the case's saved label, if any, is shown."""
        self.page.locator("#medsa-dock[data-ready]").wait_for(state="attached")
        self._dismiss()

    def series(self) -> str:
        """SeriesInstanceUID of what is open."""
        return str(self.dock.get_attribute("data-ready"))

    def choose(self, label: str, model: str | None = None) -> None:
        """Chooses whose clicks come next, and which model answers them."""
        tab = self._tab("Point Prompts")
        if model is not None:
            tab.locator("select").select_option(model)
        row = tab.locator("tr.clickable-row").filter(has=self.page.get_by_text(label, exact=True))
        row.click()
        self.page.wait_for_timeout(300)

    def place(self, voxel: Sequence[int], viewport: str = AXIAL) -> tuple[float, float]:
        """Scrolls to a voxel (i, j, k); where it lies on the page."""
        x, y = self.page.evaluate(_PLACE, [viewport, list(voxel)])
        return float(x), float(y)

    def click(self, voxel: Sequence[int], viewport: str = AXIAL) -> dict[str, Any]:
        """A click on a voxel (i, j, k), which the model answers; what the page asked. Raises AssertionError."""
        self.page.evaluate("name => window.services.viewportGridService.setActiveViewportId(name)", viewport)
        before = int(self.dock.get_attribute("data-answers") or 0)
        with self.page.expect_response(lambda answer: "/infer/" in answer.url) as caught:
            self.press(voxel, viewport)
        self.page.wait_for_function(
            "count => Number(document.getElementById('medsa-dock').dataset.answers ?? 0) > count", arg=before
        )
        self.page.wait_for_timeout(300)  # the panel puts the mask into its labelmap
        assert caught.value.status == 200, f"{caught.value.status}: {caught.value.text()}"
        return dict(json.loads(self.page.evaluate("window.askedParams")))

    def press(self, voxel: Sequence[int], viewport: str = AXIAL) -> None:
        """A press of the mouse on a voxel (i, j, k), whatever comes of it."""
        x, y = self.place(voxel, viewport)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.wait_for_timeout(100)
        self.page.mouse.up()

    def run_automatic(self) -> None:
        """Auto-Segmentation: all labels without a click."""
        self.page.locator("label.tab-label", has_text="Auto-Segmentation").click()
        before = int(self.dock.get_attribute("data-answers") or 0)
        tab = self._tab("Auto-Segmentation")
        tab.locator("select").select_option("medsa_auto")
        tab.locator('button:text-is("Run")').click()
        self.page.wait_for_function(
            "count => Number(document.getElementById('medsa-dock').dataset.answers ?? 0) > count", arg=before
        )
        self.page.wait_for_timeout(300)

    def labelmap(self) -> NDArray[np.uint8]:
        """What the viewer shows, (i, j, k), with OHIF's own numbers."""
        shape, text = self.page.evaluate(_LABELMAP)
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape, order="F")

    def segments(self) -> dict[str, int]:
        """Name -> OHIF's number."""
        return {name: number for number, name in self.page.evaluate(_SEGMENTS)}

    def mask(self, label: str) -> NDArray[np.bool_]:
        """What the viewer shows of one label, (i, j, k)."""
        return self.labelmap() == self.segments()[label]

    def paint(self, label: str, voxel: Sequence[int], viewport: str = AXIAL) -> None:
        """A short stroke with OHIF's brush around a voxel."""
        self.open_tools()
        self.page.locator('[data-cy="Brush"], [data-tool="Brush"], button[id="Brush"]').first.click()
        self.page.evaluate(
            "number => window.services.segmentationService.setActiveSegment('1', number)",
            self.segments()[label],
        )
        x, y = self.place(voxel, viewport)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 6, y, steps=4)
        self.page.mouse.up()
        self.page.wait_for_timeout(800)

    def open_tools(self) -> None:
        """OHIF's segmentation panel, with the tools to paint with."""
        self.page.locator('[data-cy*="panelSegmentationWithTools"]').first.click()

    def submit(self) -> str:
        """Presses Submit label; what the dock says in the end."""
        self.page.locator("#medsa-submit").click()
        self.page.wait_for_function(
            "() => !document.getElementById('medsa-submit').disabled"
            " && !/^(Sending|Storing)/.test(document.getElementById('medsa-message').textContent)"
        )
        return self.message()

    def next_sample(self) -> None:
        """Presses Next sample, and waits until that case is ready."""
        with self.page.expect_navigation():
            self.page.locator("#medsa-next").click()
        self.wait_ready()

    def message(self) -> str:
        """What the dock says."""
        return self.page.locator("#medsa-message").inner_text()

    def shot(self, name: str) -> Path:
        """A screenshot of the step `name`."""
        self._count += 1
        path = self._shots / f"{self._count:02d}-{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path))
        return path

    def _tab(self, name: str) -> Locator:
        return self.page.locator(".monaiLabelPanel .tab").filter(
            has=self.page.locator("label.tab-label", has_text=name)
        )

    def _dismiss(self) -> None:
        """OHIF's note that it is for research only."""
        button = self.page.get_by_text("Confirm and Hide")
        if button.count():
            button.first.click()
