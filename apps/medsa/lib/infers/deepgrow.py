"""Tasks of MONAI Label's type `deepgrow`: one object, marked with clicks, a box, strokes or a mask."""

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.infers.answer_format import describe_slices
from lib.infers.label_file import SCRIBBLES
from lib.infers.serving import ServingModel
from lib.infers.task import MedsaTask, Question, Reply
from lib.infers.volumes import VolumeCache
from lib.predictor import Prediction
from lib.prompts.parse import parse_deepgrow, parse_deepgrow_2d, parse_label
from lib.prompts.promptset import PromptSet


class MedsaDeepgrow(MedsaTask):
    """`medsa`: the whole object, as a mask of 0 and 1 on the image's own grid."""

    def __init__(self, serving: ServingModel, volumes: VolumeCache, labels: Mapping[str, int]) -> None:
        text = "Clicks, a box or a mask -> the whole object"
        super().__init__(serving, volumes, InferType.DEEPGROW, labels, 3, text)

    def _reply(self, question: Question) -> Reply:
        prompts = parse_deepgrow(question.request, question.grid, self.labels, question.drawn(self.labels))
        found = question.served.predictor.predict(question.volume, prompts, asker=question.asker)
        return object_reply(prompts, found)


class MedsaDeepgrow2d(MedsaTask):
    """`medsa_2d`: the object on the slice that was named, else on those that were marked."""

    def __init__(self, serving: ServingModel, volumes: VolumeCache, labels: Mapping[str, int]) -> None:
        text = "Clicks, a box or a mask -> the marked slice only"
        super().__init__(serving, volumes, InferType.DEEPGROW, labels, 2, text)

    def _reply(self, question: Question) -> Reply:
        prompts, index = parse_deepgrow_2d(
            question.request, question.grid, self.labels, question.drawn(self.labels)
        )
        found = question.served.predictor.predict(
            question.volume, prompts, whole_object=False, only_slice=index, asker=question.asker
        )
        return object_reply(prompts, found)


class MedsaScribbles(MedsaTask):
    """`medsa_scribbles`, for 3D Slicer's own tool: strokes, in a label file, and a roi that bounds the object."""

    def __init__(self, serving: ServingModel, volumes: VolumeCache, labels: Mapping[str, int]) -> None:
        super().__init__(
            serving, volumes, InferType.SCRIBBLES, labels, 3, "Strokes and a box -> the whole object"
        )

    def _reply(self, question: Question) -> Reply:
        selected = parse_label(
            "selected_label_name", question.request.get("selected_label_name"), self.labels
        )
        request: dict[str, Any] = {**question.request}
        request["label"] = request.get("label") or selected
        prompts = parse_deepgrow(request, question.grid, self.labels, question.drawn(self.labels, SCRIBBLES))
        found = question.served.predictor.predict(question.volume, prompts, asker=question.asker)
        return object_reply(prompts, found)


def object_reply(prompts: PromptSet, found: Prediction) -> Reply:
    """The answer for one object: its label, the prompts as understood, slices and quality."""
    said = {
        "label": prompts.label,
        "prompts": prompts.describe(),
        **describe_slices(found.slices, found.quality),
    }
    return Reply(found.mask, said, found.seconds)
