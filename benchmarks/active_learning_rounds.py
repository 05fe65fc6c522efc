"""Simulated labelling: a strategy chooses, the truth is the label, the model learns, and is tested; again and again.

The strategies are the server's own functions on scores made by the server's own scoring; training between rounds goes
on from the weights before, as medsa did when the kept runs were made (`SINGLE_SHARE`, AdamW). A training is a number of
steps and not of minutes, so that runs of different machines can be compared; images are of the smallest size that is
trained on, where a step costs least. Every round is kept as soon as it is over, with the weights, so that hours of work
can be stopped and gone on with. Two strategies that have chosen the same cases with one seed have the same network: the
second one takes it over.
"""

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from active_learning_data import PoolStudy
from network import machine
from safetensors.torch import load_file, save_file
from training_curves import write_whole
from training_methods import cpu_seconds, fresh_base, options_of, settings_of, view_of

from lib.activelearning.geometry import typicality
from lib.activelearning.pool import Pool, pool_of
from lib.activelearning.ranking import STRATEGIES, names
from lib.embeddings import EmbeddingCache
from lib.evaluation.metrics import volume_dice
from lib.infers.serving import Served
from lib.model.medsa import MedSA
from lib.predictor import Predictor
from lib.scoring.scores import CaseScore, ScoreTable
from lib.scoring.survey import Surveyor
from lib.training.cases import Case
from lib.training.loop import train
from lib.training.optimizer import Optimizer
from lib.training.slabs import SMALLEST_GRID, TrainingCase, prepare_case

EVERYTHING = "everything"  # no strategy: all of the pool at once, in the steps of a whole run
SCORELESS = ("random", "first")  # what needs no scores is not given any
# Only what is drawn is scored, and what was: an absent label is measured by these, not by the whole pool.
DRAWN = ("foreground_random",)
ALIKE = ("diversity",)  # what looks only at what images are like, which no version changes: scored once
VARIED = ("medsa",)  # what looks at the disagreement of variations
# Neighbouring slices throughout and AdamW, as all kept runs were trained; what is shipped since draws slices one by one
# first and has Muon.
SINGLE_SHARE = 0.0
CACHE_BYTES = 1 << 28


@dataclass(frozen=True)
class Round:
    """`chosen` were added; `dice` of the tested cases without a click, in their order, none where it was not measured.

    Seconds are CPU seconds.
    """

    labels: int
    chosen: Sequence[str]
    dice: Sequence[float]
    scoring_seconds: float
    training_seconds: float


@dataclass(frozen=True)
class Run:
    """One strategy with one seed, with `steps` a round.

    `typicality` is the share of the pool that is more typical than the first case.
    """

    strategy: str
    seed: int
    steps: int
    rounds: Sequence[Round]
    typicality: float | None = None
    machine: dict[str, Any] = field(default_factory=dict)


class Simulation:
    """Labels the pool of one study, with `steps` of training between rounds; keeps its runs in `out`."""

    def __init__(self, study: PoolStudy, steps: int, out: Path) -> None:
        self.study, self.steps, self.out = study, steps, out
        self.settings = settings_of(study.study.task)
        (self.label,) = self.settings.task.labels
        self._cases: dict[str, Case] = {}
        # What was last known of each case, as the server's folder of scores has it.
        self._tables: dict[tuple[str, int], dict[str, CaseScore]] = {}

    def file(self, strategy: str, seed: int) -> Path:
        """Where that run is kept."""
        return self.out / f"{self.study.name}-{strategy}-{seed}.json"

    def run(self, strategy: str, seed: int) -> Run:
        """The run as it was kept, else gone on with to its end."""
        found = self.kept(strategy, seed)
        counts = self.study.counts[-1:] if strategy == EVERYTHING else self.study.counts
        while len(found.rounds) < len(counts):
            found = self._with_another_round(found, len(found.rounds))
            write_whole(self.file(strategy, seed), asdict(found))
            self._tell(found)
        return found

    def kept(self, strategy: str, seed: int) -> Run:
        """What there is of a run."""
        file = self.file(strategy, seed)
        if not file.exists():
            return Run(strategy, seed, self.steps, (), machine=machine())
        content = json.loads(file.read_text())
        try:
            found = Run(**{**content, "rounds": tuple(Round(**one) for one in content["rounds"])})
        except (KeyError, TypeError) as error:
            raise SystemExit(f"{file} is no run of this benchmark ({error}): move it away") from error
        if found.steps != self.steps:
            raise SystemExit(
                f"{file} was made with {found.steps} steps a round, not {self.steps}: it is another curve"
            )
        return found

    def _tell(self, run: Run) -> None:
        last = run.rounds[-1]
        dice = f"Dice {np.mean(last.dice):.3f}, " if last.dice else ""
        print(
            f"{self.study.name} {run.strategy} {run.seed}: {last.labels} labels, {dice}"
            f"scored in {last.scoring_seconds:.0f} s, trained in {last.training_seconds:.0f} s",
            flush=True,
        )

    def _with_another_round(self, before: Run, number: int) -> Run:
        model = self._model(before)
        if before.strategy == EVERYTHING:
            chosen, seconds, rank = list(self.study.pool), 0.0, None
        else:
            chosen, seconds, rank = self._choose(before, model, number)
        count = sum(len(one.chosen) for one in before.rounds) + len(chosen)
        added = self._twin(before, chosen)
        if added is None:
            added = self._learned(before, model, chosen, count)
        added = replace(added, scoring_seconds=seconds)
        return replace(
            before,
            rounds=(*before.rounds, added),
            typicality=before.typicality if rank is None else rank,
        )

    def _twin(self, before: Run, chosen: Sequence[str]) -> Round | None:
        """The round of another strategy that has come to the same choices with this seed; its weights are copied."""
        number, wanted = len(before.rounds), [*(list(one.chosen) for one in before.rounds), list(chosen)]
        for strategy in () if before.strategy == EVERYTHING else STRATEGIES:
            other = self.kept(strategy, before.seed)
            same = [list(one.chosen) for one in other.rounds[: number + 1]] == wanted
            if same and self._weights(other, number).exists():
                shutil.copyfile(self._weights(other, number), self._weights(before, number))
                return other.rounds[number]
        return None

    def _learned(self, before: Run, model: MedSA, chosen: Sequence[str], count: int) -> Round:
        """The round in which `model` learns from what is `chosen` now too, which makes `count` labels."""
        labelled = [case for one in before.rounds for case in one.chosen]
        number, started = len(before.rounds), cpu_seconds()
        self._train(model, labelled, chosen, before, number)
        trained = round(cpu_seconds() - started, 1)
        predictor = self._predictor(model, before, number + 1)
        is_tested = before.strategy == EVERYTHING or count in self.study.tested_counts
        dice = [self._dice(predictor, case) for case in (self.study.tested if is_tested else ())]
        self._save(model, before)
        return Round(count, chosen, dice, 0.0, trained)

    def _choose(self, before: Run, model: MedSA, number: int) -> tuple[list[str], float, float | None]:
        """The next cases, the CPU seconds of scoring, and at the first round how typical the first one is."""
        labelled = {case for one in before.rounds for case in one.chosen}
        count, started = self.study.counts[number] - len(labelled), cpu_seconds()
        table = self._tables.setdefault((before.strategy, before.seed), {})
        survey = partial(self._survey, before, model, number, table)
        survey(self._asked_ahead(before.strategy, table, labelled))
        while True:
            pool = pool_of(self.study.pool, (self.label,), ScoreTable(table), labelled)
            rng = np.random.default_rng([before.seed, number])
            chosen = names(STRATEGIES[before.strategy](pool, rng))[:count]
            unknown = [case for case in chosen if case not in table] if before.strategy in DRAWN else []
            if not unknown:
                break
            survey(unknown)
        rank = _typicality_rank(pool, chosen[0]) if number == 0 and len(table) == len(pool.cases) else None
        return chosen, round(cpu_seconds() - started, 1), rank

    def _asked_ahead(self, strategy: str, table: dict[str, CaseScore], labelled: set[str]) -> list[str]:
        """What is scored before a choice: all that is unlabelled, as the server does, unless less decides.

        Of labelled cases what was last known counts; they are scored where a run goes on in another process.
        """
        if strategy in SCORELESS:
            return []
        if strategy in ALIKE:
            return [case for case in self.study.pool if case not in table]
        if strategy in DRAWN:
            for case in table.keys() - labelled:
                del table[case]  # by the version before
        return [
            case
            for case in self.study.pool
            if (case in labelled and case not in table) or (case not in labelled and strategy not in DRAWN)
        ]

    def _survey(
        self, run: Run, model: MedSA, number: int, table: dict[str, CaseScore], cases: Sequence[str]
    ) -> None:
        """Scores `cases` by the version of this round."""
        served = Served("vit_t", "", number, self._predictor(model, run, number))
        surveyor = Surveyor(served, (self.label,), varied=run.strategy in VARIED)
        for case in cases:
            known = table[case].embedding if case in table else None
            table[case] = surveyor.survey(self._case(case).volume, known).score

    def _train(
        self, model: MedSA, labelled: Sequence[str], chosen: Sequence[str], run: Run, number: int
    ) -> None:
        rounds = len(self.study.counts) if run.strategy == EVERYTHING else 1
        shipped = options_of(self.settings, float(self.steps * rounds), 1000 * run.seed + number)
        options = replace(shipped, single_share=SINGLE_SHARE)
        if labelled:
            training = self.settings.training
            options = replace(
                options,
                learning_rate=options.learning_rate * training.refining_share,
                new=frozenset(chosen),
                new_share=training.new_share,
            )
        cases = [self._prepared(model, case) for case in (*labelled, *chosen)]
        # It is asked for the time once a step.
        train(model, cases, options, clock=itertools.count().__next__, make_optimizer=Optimizer.adamw)

    def _prepared(self, model: MedSA, name: str) -> TrainingCase:
        spec = model.spec
        return prepare_case(self._case(name), view_of(self.settings), spec.image_size, spec.mask_size)

    def _model(self, before: Run) -> MedSA:
        """The network after the rounds `before`, at the smallest size that is trained on."""
        base = fresh_base(self.settings)
        model = base.at_size(SMALLEST_GRID * base.spec.patch_size)
        if before.rounds:
            model.load_adapter_state(load_file(self._weights(before, len(before.rounds) - 1)))
        return model

    def _predictor(self, model: MedSA, run: Run, number: int) -> Predictor:
        task, key = self.settings.task, f"{run.strategy} {run.seed} {number}"
        return Predictor(model, key, task.intensity, task.slice_axis, EmbeddingCache(CACHE_BYTES))

    def _dice(self, predictor: Predictor, name: str) -> float:
        case = self._case(name)
        return round(volume_dice(predictor.automatic_mask(case.volume, self.label) > 0, case.label > 0), 4)

    def _case(self, name: str) -> Case:
        if name not in self._cases:
            (self._cases[name],) = self.study.study.load([name])
        return self._cases[name]

    def _weights(self, run: Run, number: int) -> Path:
        """What the round `number` of a run ended with."""
        return self.out / "weights" / f"{self.file(run.strategy, run.seed).stem}-{number}.safetensors"

    def _save(self, model: MedSA, run: Run) -> None:
        target = self._weights(run, len(run.rounds))
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.adapter_state(), target)


def _typicality_rank(pool: Pool, case: str) -> float:
    """The share of the pool's images that are more typical of it."""
    typical = typicality(pool.embedding, np.random.default_rng(0))
    return float((typical > typical[pool.cases.index(case)]).mean())
