"""Looking into a subject: its coefficients as charts, where a word acts in a picture it draws, what one head does."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image, ImageChops, ImageStat

from ..commands.info import subject_facts
from ..families.layout import layout_of
from ..families.registry import denoiser_of
from ..images.generation_info import format_parameters, parse_parameters
from ..inference.attention_maps import recording, word_positions
from ..inference.request import DrawProgress, DrawRequest, Picture, StudioError, part_of
from ..inference.trigger import contains_trigger
from ..sources.open import open_subject
from ..subject.coefficients import Coefficients
from ..subject.heads import head_changes, without_head
from .charts import coefficient_chart, norm_chart, render, titles, word_chart
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


@dataclass(frozen=True)
class LayerHeads:
    """A layer whose heads can be switched off.

    Attributes:
        title: for people, as the charts have it.
        changes: how much the subject changes each head's map.
    """

    path: str
    title: str
    changes: list[float]


@dataclass(frozen=True)
class HeadView:
    """A picture with all heads of a subject and with one of them switched off, from the same noise.

    Attributes:
        pixels: how far apart the two are: root mean square, 0 to 255.
        notes: sentences for the user about what was probably not meant.
    """

    whole: Picture
    without: Picture
    pixels: float
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
        self._check(request, "without one the maps before and after are the same")
        with self.loader.using(request.subjects) as studio:
            positions = word_positions(studio.pipe.tokenizer, request.prompt, word)
            with recording(denoiser_of(studio.pipe), positions) as recorder:
                (picture,) = studio.draw(request, on_step, should_stop)
            notes = studio.notes(request)
        return WordView(picture, render(word_chart(picture.image, recorder.maps())), notes)

    def heads(self, name: str) -> list[LayerHeads]:
        """The layers of a subject in the order the data flows; none where it is a learned word alone.

        Raises:
            CoefficientsError: there is no such subject, or it is damaged.
        """
        subject = self._load(name)
        return [
            LayerHeads(path, title, head_changes(subject[path]).tolist())
            for path, title in titles(list(subject)).items()
        ]

    def without_head(
        self,
        request: DrawRequest,
        path: str,
        head: int,
        on_step: Callable[[DrawProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> HeadView:
        """Draw one picture twice: as `Drawings.draw` would, and with one head of the subject switched off.

        Args:
            request: names one subject of the library.
            path, head: which (see `subject.heads.without_head`).

        Raises:
            StudioError: not one subject is asked for, or nothing was learned for this head.
            SchedulerError, CoefficientsError, DrawCancelled: see `Studio.draw`.
        """
        self._check(request, "there is no head to switch off")
        (name,) = request.subjects
        subject = self._load(name)
        if not subject:
            raise StudioError(f"{name!r} is a learned word alone: it has no head to switch off")
        rest = without_head(subject, path, head)
        called = f"head {head + 1} of {titles(list(subject))[path]}"
        if rest == subject:
            raise StudioError(f"nothing was learned for {called}: it uses the base's own map already; choose another")
        first, second = (None, None) if on_step is None else (part_of(on_step, i, 2) for i in range(2))
        with self.loader.using(request.subjects) as studio:
            request = studio.resolved(request)  # one seed for both
            (whole,) = studio.draw(request, first, should_stop)
            notes = studio.notes(request)
        with self.loader.using((), {name: rest}) as studio:
            (without,) = studio.draw(request, second, should_stop)
        told = parse_parameters(without.parameters)
        told = replace(told, extra={**told.extra, "Head switched off": f"{path}:{head + 1}"})
        without = replace(without, parameters=format_parameters(told))
        bands = ImageStat.Stat(ImageChops.difference(whole.image, without.image)).rms
        return HeadView(whole, without, (sum(band**2 for band in bands) / len(bands)) ** 0.5, notes)

    @staticmethod
    def _check(request: DrawRequest, why: str) -> None:
        """Whether it asks for one picture of a subject; `why` says what it is needed for."""
        if not request.subjects:
            raise StudioError(f"choose a subject first: {why}")
        if request.batch_size != 1:
            raise StudioError(f"batch_size is {request.batch_size}, expected 1: one picture is looked at")

    def _load(self, name: str) -> Coefficients:
        return open_subject(self.loader.library.path(name))
