"""What the parts of the network bring: the arms of the decoder's first adapter, with and without the depth branch.

Same seeds, same cases, same number of steps for all; the cases are chosen by name before anything is run, and none of
the tested ones was ever used to choose anything. `python benchmarks/ablation.py --json FILE --work DIR`: what DIR holds
is not trained again.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "apps" / "medsa"
sys.path[:0] = [str(APP), str(ROOT / "benchmarks")]

import torch  # noqa: E402 (the app is a folder, not an installed package)
from loop import DataSet, cardiac, data_folder, hippocampus, machine  # noqa: E402

from lib.bases import choose_base  # noqa: E402
from lib.commands.truth import find_cases  # noqa: E402
from lib.evaluation.bootstrap import paired_difference  # noqa: E402
from lib.memory import keep_freed_memory  # noqa: E402
from lib.model.catalog import build_model  # noqa: E402
from lib.settings import load_settings  # noqa: E402
from lib.training.cases import Case, CaseFile, load_cases  # noqa: E402
from lib.training.loop import TrainOptions, train  # noqa: E402
from lib.training.samples import prepare_case  # noqa: E402
from lib.training.validation import validate  # noqa: E402
from lib.training.viewpoint import Viewpoint  # noqa: E402
