"""Looking into a subject: its coefficients as charts, and where a word acts in a picture it draws."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from ..commands.info import subject_facts
from ..families.layout import layout_of
from ..families.registry import denoiser_of
from ..inference.attention_maps import recording, word_positions
from ..inference.request import DrawProgress, DrawRequest, Picture, StudioError
from ..inference.trigger import contains_trigger
from ..sources.open import open_subject
from ..subject.coefficients import Coefficients
from .charts import coefficient_chart, norm_chart, render, word_chart
from .loading import SubjectLoader


@dataclass(frozen=True)
class SubjectCharts:
    """A subject in charts.

    Attributes:
        coefficients: a heat map of each layer.
        norms: bars for each block.
    """

    coefficients: Image.Image
    norms: Image.Image


@dataclass(frozen=True)
class WordView:
    """A picture, and where a word acts in it.

    Attributes:
        chart: the word's maps over the picture, before and after recombination.
        notes: sentences for the user about what was probably not meant.
    """

    picture: Picture
    chart: Image.Image
    notes: list[str]


class Inspector:
    """Looks into subjects of the library, by the names they are listed under."""

    def __init__(self, loader: SubjectLoader) -> None:
        self.loader = loader

    def suggestion(self, name: str, prompt: str = "") -> tuple[str, str]:
        """A prompt that shows the subject, and the word of it to look at; both empty where its file tells neither.

        Args:
            prompt: what stands there already; it stays if it calls the subject up.

        Raises:
            CoefficientsError: there is no such subject, or it is damaged.
        """
        info = self._load(name).info
        if prompt.strip() and (not info.trigger or contains_trigger(prompt, info.trigger)):
            return prompt, info.trigger
        return info.instance_prompt or info.trigger, info.trigger

    def charts(self, name: str) -> SubjectCharts:
        """The subject in charts.

        Raises:
            CoefficientsError: there is no such subject, it is damaged or does not fit the base.
            StudioError: it has no coefficients.
        """
        subject = self._load(name)
        layout_of(self.loader.studio.pipe).check_fits(subject)
        if not subject:
            raise StudioError(f"{name!r} is a learned word alone: it has no coefficients to look at")
        facts = subject_facts(subject, self.loader.library.path(name).stat().st_size)
        return SubjectCharts(render(coefficient_chart(subject)), render(norm_chart(facts["norms"])))

    def look(
        self,
        request: DrawRequest,
        word: str,
        on_step: Callable[[DrawProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> WordView:
        """Draw one picture, the very one that `Drawings.draw` would give, and see where a word of its prompt acts.

        Args:
            word: one word of the prompt, or several in a row.

        Raises:
            StudioError: no subject is asked for, or the word is not in the prompt.
            SchedulerError, CoefficientsError, DrawCancelled: see `Studio.draw`.
        """
        if not request.subjects:
            raise StudioError("choose a subject first: without one the maps before and after are the same")
        if request.batch_size != 1:
            raise StudioError(f"batch_size is {request.batch_size}, expected 1: maps are of one picture")
        with self.loader.using(request.subjects) as studio:
            positions = word_positions(studio.pipe.tokenizer, request.prompt, word)
            with recording(denoiser_of(studio.pipe), positions) as recorder:
                (picture,) = studio.draw(request, on_step, should_stop)
            notes = studio.notes(request)
        return WordView(picture, render(word_chart(picture.image, recorder.maps())), notes)

    def _load(self, name: str) -> Coefficients:
        return open_subject(self.loader.library.path(name))
