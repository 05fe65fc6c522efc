"""How a candidate is judged: the same cases and the same simulated clicks as the version that serves.

With enough validation cases the candidate answers those. Else it is the way of training that is judged, as in
cross-validation (Stone 1974): for each fold a model is trained in the same way without the fold's cases, and
answers these.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lib.model.medsa import MedSA
from lib.training.cases import Case
from lib.training.gate import Decision, Rules, decide
from lib.training.validation import ObjectScore, as_scores, validate
from lib.training.viewpoint import Viewpoint

Weights = Mapping[str, Tensor]
HALF = 0.5


@dataclass(frozen=True, eq=False)
class Exam:
    """Cases, and the weights of a model that was not trained on any of them."""

    cases: Collection[Case]
    trained: Weights


@dataclass(frozen=True, eq=False)
class Verdict:
    """The decision, the scores that it rests on, and which part of the way from the start to the trained
    weights it is of.
    """

    decision: Decision
    objects: tuple[ObjectScore, ...]
    share: float


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges by the champion's scores `before`. `model` is the network to answer with; its weights come and go.

    `start` are the weights that training began with; None where there is no way from them to the serving ones.
    `between` is called before every case, and may raise to end it.
    """

    model: MedSA
    view: Viewpoint
    before: Sequence[ObjectScore]
    expected: Sequence[str]
    rules: Rules
    start: Weights | None
    between: Callable[[], None]

    def judge(self, exams: Sequence[Exam]) -> Verdict:
        """The gate on the trained weights and, where it refuses those, on the mean of them and those of the start.

        With few labels a run learns its cases better than the structure; half of the way often keeps what is general
        (Wortsman et al., *Robust fine-tuning of zero-shot models*, CVPR 2022).
        """
        whole = self._verdict(exams, 1.0)
        if whole.decision.publish or self.start is None:
            return whole
        half = self._verdict(exams, HALF)
        reasons = tuple(f"half way to it: {reason}" for reason in half.decision.reasons)
        if half.decision.publish:
            return Verdict(Decision(True, reasons), half.objects, HALF)
        return Verdict(Decision(False, (*whole.decision.reasons, *reasons)), whole.objects, 1.0)

    def weights(self, trained: Weights, share: float) -> Weights:
        """`share` of the way from the start to the trained weights."""
        if share == 1.0 or self.start is None:
            return trained
        return {key: (1.0 - share) * self.start[key] + share * value for key, value in trained.items()}

    def _verdict(self, exams: Sequence[Exam], share: float) -> Verdict:
        objects: list[ObjectScore] = []
        for exam in exams:
            self.model.load_adapter_state(self.weights(exam.trained, share))
            objects += validate(self.model, exam.cases, self.view, self.between)
        labels = self.view.labels
        before, after = (as_scores(found, self.expected, labels) for found in (self.before, objects))
        return Verdict(decide(before, after, self.rules), tuple(objects), share)
