"""The figures of the whole loop, end to end, on the real server: `python benchmarks/loop.py --json FILE`.

Per data set: a copy of some images becomes the studies of a server; the simulated annotator works through
them over HTTP while the server trains; then the last adapter version meets version 0 on cases that nobody has
labelled. The cases are chosen here, by name, before anything is run. With `--work DIR` a stopped run goes on
where it was.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "apps" / "medsa"
sys.path[:0] = [str(APP), str(ROOT / "benchmarks")]

from loop_cases import CARDIAC_TUNED_ON, HIPPOCAMPUS_TUNED_ON  # noqa: E402 (folders, not packages)

from lib.commands.client import MedsaClient  # noqa: E402
from lib.commands.truth import find_cases, load_truth  # noqa: E402
from lib.prompts.promptset import PromptSet  # noqa: E402
from lib.prompts.simulate import first_click, next_click  # noqa: E402
from lib.training.pending import FINISHED  # noqa: E402
from lib.training.releases import Releases  # noqa: E402

START_PATIENCE_S, SCORING_PATIENCE_S = 180.0, 600.0
LATENCY_CASES, LATENCY_CLICKS = 5, 8
NO_BAR = "-"
LARGE = str(1 << 30)


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was measured, and the bar it has to reach."""

    name: str
    value: float
    unit: str
    bar: str
    holds: bool


@dataclass(frozen=True)
class DataSet:
    """Which cases are annotated and which tested; `label` names all that is not zero in the truth."""

    name: str
    folder: Path
    task: str
    label: str
    annotate: tuple[str, ...]
    test: tuple[str, ...]
    min_trainings: int | None = None  # None: no bar
    sure: bool = False  # whether the whole interval of the difference has to be above 0


def hippocampus(data: Path) -> DataSet:
    """By name the first 30 cases to annotate, the next 30 that nothing was tuned on to test."""
    folder = data / "hippocampus_mr"
    cases = [case for case in find_cases(folder / "images") if case in find_cases(folder / "labels")]
    unseen = [case for case in cases[30:] if case not in HIPPOCAMPUS_TUNED_ON]
    return DataSet(
        "hippocampus_mr",
        folder,
        "hippocampus",
        "hippocampus",
        tuple(cases[:30]),
        tuple(unseen[:30]),
        min_trainings=4,
        sure=True,
    )


def cardiac(data: Path) -> DataSet:
    """The end-diastolic stack of 12 patients to annotate, that of the 12 others to test.

    To annotate: the patients that something was tuned on, and every fourth of the rest (sorted by disease).
    """
    folder = data / "cardiac_lv_mr"
    stacks = [case for case in find_cases(folder / "images") if case.endswith("_ED")]
    tuned_on = [stack for stack in stacks if stack.removesuffix("_ED") in CARDIAC_TUNED_ON]
    rest = [stack for stack in stacks if stack not in tuned_on]
    annotate = (*tuned_on, *rest[0::4])
    test = tuple(stack for stack in stacks if stack not in annotate)
    return DataSet("cardiac_lv_mr", folder, "cardiac_lv", "left_ventricle", annotate, test)


def annotate_and_compare(data: DataSet, work: Path, conf: Mapping[str, str]) -> list[Figure]:
    """The simulated annotator on the one part, the comparison of versions on the other."""
    studies, state = work / "studies", work / "state"
    copy_images(data, data.annotate, studies)
    sessions = sorted(work.glob("simulate-*.json"))
    saved = len(list((studies / "labels" / "final").glob("*.nii.gz")))
    if saved < len(data.annotate):
        own = {"task": data.task, "state": str(state), "train_after": "5"}
        with server(studies, {**own, **conf}, work / "server.log") as url:
            target = work / f"simulate-{len(sessions) + 1}.json"
            options = ["--server", url, "--truth", str(data.folder / "labels"), "--merge", data.label]
            run_cli("simulate", *options, "--clicks", "3", "--json", str(target), may_fail=True)
    sessions = [json.loads(path.read_text()) for path in sorted(work.glob("simulate-*.json"))]
    return [*loop_figures(data, studies, state, sessions), *dice_figures(data, work, state, conf)]


def loop_figures(
    data: DataSet, studies: Path, state: Path, sessions: Sequence[Mapping[str, Any]]
) -> list[Figure]:
    """What the annotator and the server's records say."""
    saved = len(list((studies / "labels" / "final").glob("*.nii.gz")))
    errors = sum(session["errors"] for session in sessions)
    trainings = sum(record.get("decision") in FINISHED for record in Releases(state).records())
    return [
        at_least(f"{data.name}: cases saved", saved, "cases", len(data.annotate)),
        at_least(f"{data.name}: trainings", trainings, "runs", data.min_trainings),
        Figure(f"{data.name}: errors", errors, "errors", "0", errors == 0),
    ]


def dice_figures(data: DataSet, work: Path, state: Path, conf: Mapping[str, str]) -> list[Figure]:
    """Volume Dice after one click on the test cases, the last version against version 0."""
    only, target = work / "test-cases.txt", work / "evaluate.json"
    only.write_text("\n".join(data.test) + "\n")
    if not target.exists():
        options = ["--task", data.task, "--state", str(state), *conf_options(conf)]
        options += ["--images", str(data.folder / "images"), "--labels", str(data.folder / "labels")]
        options += ["--only", str(only), "--merge", data.label, "--clicks", "1", "--json", str(target)]
        run_cli("evaluate", *options)
    content = json.loads(target.read_text())
    row = content["by_click"][0]
    found, name = row["difference"], f"{data.name}: volume Dice after 1 click"
    low_name, low_bar = f"{name}, difference, low end of 95 %", "> 0" if data.sure else NO_BAR
    return [
        Figure(f"{name}, version 0", row["before"], "Dice", NO_BAR, True),
        Figure(f"{name}, version {content['version']}", row["after"], "Dice", NO_BAR, True),
        Figure(f"{name}, difference", found["mean"], "Dice", "> 0", found["mean"] > 0),
        Figure(low_name, found["low"], "Dice", low_bar, not data.sure or found["low"] > 0),
    ]


def latency(data: DataSet, work: Path, conf: Mapping[str, str]) -> list[Figure]:
    """Seconds from click to answer over HTTP: the first on a volume, and those after it."""
    studies = work / "studies"
    cases = data.test[:LATENCY_CASES]
    copy_images(data, cases, studies)
    own = {"task": data.task, "state": str(work / "state"), "auto_train": "false"}
    with server(studies, {**own, **conf}, work / "server.log") as url, httpx.Client(base_url=url) as http:
        client = MedsaClient(http, "latency")
        wait_for_scoring(client)
        curves = [click_seconds(client, data, case) for case in cases]
    warm = [seconds for curve in curves for seconds in curve[1:]]
    cold = median(curve[0] for curve in curves)
    value = median(warm)
    return [
        Figure("click to answer, first click on a volume, median", cold, "s", NO_BAR, True),
        Figure("click to answer, embedding cached, median", value, "s", "< 0.5", value < 0.5),
    ]


def click_seconds(client: MedsaClient, data: DataSet, case: str) -> list[float]:
    """Always one more correcting click on the same volume."""
    truth = load_truth(find_cases(data.folder / "labels")[case], {data.label: 1}, merge=data.label)
    mask, spacing_mm = truth.label > 0, truth.grid.spacing_mm
    positive, negative = [first_click(mask, axis=2)], []
    seconds = []
    for _ in range(LATENCY_CLICKS):
        prompts = PromptSet(tuple(positive), tuple(negative), label=data.label)
        answer = client.infer("medsa", case, prompts)
        seconds.append(answer.seconds)
        correction = next_click(mask, answer.mask > 0, 2, spacing_mm)
        if correction is not None:
            (positive if correction[1] else negative).append(correction[0])
    return seconds


def startup(data: DataSet, work: Path, conf: Mapping[str, str]) -> list[Figure]:
    """From `make serve`, in an environment that is installed, to the first answer of /info/."""
    studies = work / "studies"
    copy_images(data, data.test[:LATENCY_CASES], studies)
    subprocess.run(["make", "install"], cwd=ROOT, check=True)
    port = free_port()
    command = ["make", "serve", f"STUDIES={studies}", f"TASK={data.task}", f"PORT={port}"]
    command.append(f"CONF={' '.join(conf_options({**conf, 'state': str(work / 'state')}))}")
    started = time.perf_counter()
    with child(command, work / "server.log") as process:
        wait_for_info(f"http://127.0.0.1:{port}", process)
        seconds = time.perf_counter() - started
    return [Figure("make serve until /info/ answers", seconds, "s", "< 30", seconds < 30)]


def at_least(name: str, value: float, unit: str, bar: float | None) -> Figure:
    """A figure that has to reach `bar`, if there is one."""
    return Figure(name, value, unit, NO_BAR if bar is None else f">= {bar:g}", bar is None or value >= bar)


def copy_images(data: DataSet, cases: Sequence[str], studies: Path) -> None:
    """Copies, because the server writes beside them."""
    studies.mkdir(parents=True, exist_ok=True)
    files = find_cases(data.folder / "images")
    for case in cases:
        if not (studies / files[case].name).exists():
            shutil.copyfile(files[case], studies / files[case].name)


def conf_options(conf: Mapping[str, str]) -> list[str]:
    """Settings as options of the server and of the command line."""
    return [part for key, value in conf.items() for part in ("--conf", key, value)]


def run_cli(*arguments: str, may_fail: bool = False) -> None:
    """One subcommand of the app's command line, its output on this terminal."""
    subprocess.run([sys.executable, str(APP / "cli.py"), *arguments], cwd=ROOT, check=not may_fail)


@contextmanager
def server(studies: Path, conf: Mapping[str, str], log: Path) -> Iterator[str]:
    """The address of a server on `studies`, which is stopped at the end."""
    port = free_port()
    command = ["monailabel", "start_server", "--app", str(APP)]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    command += conf_options(conf)
    with child(command, log) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for_info(url, process)
        yield url


@contextmanager
def child(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which ends with the block, children included."""
    # monailabel is a shell script that runs whichever `python` comes first.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # As `make serve` sets them: threads that wait must not spin on a machine with few cores, and what is freed is kept.
    keep_freed = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": LARGE, "MALLOC_TRIM_THRESHOLD_": LARGE}
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **keep_freed, **os.environ, "PATH": path}
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # The group may be gone already, when the server ended by itself.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_info(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns at the first good answer of /info/; raises RuntimeError when the server ends or is silent."""
    deadline = time.monotonic() + START_PATIENCE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}; see its log")
        try:
            if httpx.get(f"{url}/info/", timeout=10).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"no answer from {url} within {START_PATIENCE_S:.0f} s")


def wait_for_scoring(client: MedsaClient) -> None:
    """Scoring would compete for the processor with the clicks that are measured."""
    deadline = time.monotonic() + SCORING_PATIENCE_S
    while (status := client.status())["scoring"] or status["unscored_cases"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"scoring did not end within {SCORING_PATIENCE_S:.0f} s")
        time.sleep(1.0)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    models = [line for line in _cpu_lines() if line.startswith("model name")]
    return {
        "cpu": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def measure(which: str, data: Path, work: Path, conf: Mapping[str, str]) -> list[Figure]:
    """The figures of one set, or of all."""
    figures = []
    for name, (choose, run) in SETS.items():
        if which in (name, "all"):
            folder = work / name
            folder.mkdir(parents=True, exist_ok=True)
            figures += run(choose(data), folder, conf)
    return figures


SETS = {
    "hippocampus": (hippocampus, annotate_and_compare),
    "cardiac": (cardiac, annotate_and_compare),
    "latency": (hippocampus, latency),
    "startup": (hippocampus, startup),
}


def options_of_this_run() -> argparse.Namespace:
    """What the command line says."""
    data = os.environ.get("MEDSA_DATA") or ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--data", type=Path, default=Path(data), help="folder of the data sets")
    parser.add_argument("--set", default="all", choices=["all", *SETS])
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="kept, and gone on with (default: temporary)"
    )
    parser.add_argument(
        "--conf",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="settings of the server, e.g. train_minutes 5",
    )
    return parser.parse_args()


def main() -> int:
    """Measures, prints and writes; a missed bar is a result, not an error."""
    options = options_of_this_run()
    conf = {"base": "vit_t", **dict(options.conf)}
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        figures = measure(options.set, options.data, work, conf)
    for figure in figures:
        mark = "" if figure.bar == NO_BAR else f" (bar {figure.bar}, {'holds' if figure.holds else 'MISSED'})"
        print(f"{figure.name}: {figure.value:.3f} {figure.unit}{mark}")
    content = {"machine": machine(), "conf": conf, "figures": [asdict(figure) for figure in figures]}
    options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
