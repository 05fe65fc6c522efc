"""The task of MONAI Label's type `segmentation`: every trained label, without a click."""

from collections.abc import Callable, Collection, Mapping

from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.errors import UntrainedError
from lib.infers.answer_format import describe_slices, relabelled
from lib.infers.serving import ServingModel
from lib.infers.task import MedsaTask, Question, Reply
from lib.infers.volumes import VolumeCache
from lib.prompts.parse import parse_segmentation
from lib.prompts.promptset import PromptSet

WAY_OUT = "save labels, and POST /train/medsa or wait for the training that starts by itself"
# Version of the adapter -> the labels it was trained on.
TrainedLabels = Callable[[int], Collection[str]]


class MedsaSegmentation(MedsaTask):
    """`medsa_auto`: what the adapter has learned, each label with its own value."""

    def __init__(
        self, serving: ServingModel, volumes: VolumeCache, labels: Mapping[str, int], trained: TrainedLabels
    ) -> None:
        super().__init__(
            serving, volumes, InferType.SEGMENTATION, labels, 3, "No clicks -> every trained label"
        )
        self._trained = trained

    def _reply(self, question: Question) -> Reply:
        question.refuse_label_file()
        wanted = parse_segmentation(question.request, self.labels)
        version = question.served.adapter_version
        if version == 0:
            raise UntrainedError(f"nothing is trained yet: {WAY_OUT}")
        trained = self._trained(version)
        names = [name for name in wanted if name in trained]
        if not names:
            raise UntrainedError(
                f"version {version} was trained on {', '.join(trained)} only, not on {', '.join(wanted)}: {WAY_OUT}"
            )
        found = question.served.predictor.automatic_labels(question.volume, names, asker=question.asker)
        mask = relabelled(found.mask, (self.labels[name] for name in names))
        said = {
            name: {
                "prompts": PromptSet(label=name).describe(),
                **describe_slices(found.objects[name].slices, found.objects[name].quality),
            }
            for name in names
        }
        params = {"labels": said, "left_out": _left_out(self.labels, wanted, trained)}
        return Reply(mask, params, found.seconds)


def _left_out(labels: Collection[str], wanted: Collection[str], trained: Collection[str]) -> dict[str, str]:
    """Label -> why it was not answered."""
    return {
        name: "not asked for" if name not in wanted else "in none of the labels that were trained on"
        for name in labels
        if name not in wanted or name not in trained
    }
