"""The task of MONAI Label's type `deepedit`: all labels' clicks in one request, all labels in one mask."""

from collections.abc import Mapping

from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.infers.answer_format import describe_slices, relabelled
from lib.infers.serving import ServingModel
from lib.infers.task import MedsaTask, Question, Reply
from lib.infers.volumes import VolumeCache
from lib.prompts.parse import parse_deepedit


class MedsaDeepedit(MedsaTask):
    """`medsa_multi`: every clicked label with its own value, no voxel twice."""

    def __init__(self, serving: ServingModel, volumes: VolumeCache, labels: Mapping[str, int]) -> None:
        text = "Clicks of several labels -> all their objects"
        super().__init__(serving, volumes, InferType.DEEPEDIT, labels, 3, text)

    def _reply(self, question: Question) -> Reply:
        question.refuse_label_file()
        by_label = parse_deepedit(question.request, question.grid, self.labels)
        found = question.served.predictor.predict_labels(question.volume, by_label, asker=question.asker)
        mask = relabelled(found.mask, (self.labels[name] for name in by_label))
        said = {
            name: {
                "prompts": prompts.describe(),
                **describe_slices(found.objects[name].slices, found.objects[name].quality),
            }
            for name, prompts in by_label.items()
        }
        return Reply(mask, {"labels": said}, found.seconds)
