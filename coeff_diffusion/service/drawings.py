"""Drawing: one picture or a few, with the subjects of the library, beside the base."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from ..families.controlnets import is_fetched
from ..families.fingerprint import fingerprint, other_weights, weight_sample
from ..families.layout import layout_of
from ..families.registry import denoiser_of
from ..images.files import save_new_picture
from ..inference.request import DrawProgress, DrawRequest, Picture, StudioError
from ..inference.templates import Templates
from ..sources.image_card import chunks
from ..sources.open import open_subject
from ..subject.errors import CoefficientsError, shown
from ..subject.hub_id import is_hub_id
from ..subject.user_file import user_path
from .loading import SubjectLoader
from .messages import by_name
from .picture_settings import Settings, restored
from .prompts import Prompts, first_prompt

SHOWN_PROMPT = 60  # characters of a prompt in the list of what waits


@dataclass(frozen=True)
class Drawing:
    """The outcome of one press of the button.

    Attributes:
        base: what the base alone draws from the same noise; empty when no comparison was asked for.
        notes: sentences for the user about what was probably not meant.
        files: where the pictures were saved, the base's first.
    """

    base: list[Picture]
    pictures: list[Picture]
    notes: list[str]
    files: list[Path]

    def saved(self) -> "Saved":
        """What is kept to be shown of it, also to a page that is loaded again."""
        split = len(self.base)
        drawn = [
            (file, f"{' + '.join(picture.request.subjects) or 'base'}, seed {picture.seed}")
            for file, picture in zip(self.files[split:], self.pictures, strict=True)
        ]
        base = [
            (file, f"base, seed {picture.seed}") for file, picture in zip(self.files[:split], self.base, strict=True)
        ]
        shown = [one for pair in zip(base, drawn, strict=True) for one in pair] if base else drawn
        names = ", ".join(path.name for path in self.files)
        said = [*self.notes, f"Saved in {self.files[0].parent}: {names}"]
        return Saved(shown, said, self.pictures[0].seed, pair=len(self.base) == len(self.pictures) == 1)


@dataclass(frozen=True)
class Saved:
    """The outcome as files and words: it holds no pictures in memory, nor what they were drawn with.

    Attributes:
        shown: the files with what they show, each picture of the base right before its counterpart.
        said: the notes, and where the files are.
        seed: of the first picture.
        pair: whether it is one picture of the base and its counterpart.
    """

    shown: list[tuple[Path, str]]
    said: list[str]
    seed: int
    pair: bool


class Drawings:
    """Draws what the page asks for, with subjects of the library by the names they are listed under.

    Attributes:
        prompts: helps to write what is to be drawn.
        templates: the styles and wildcards that people may use.
        folders: whether a ControlNet or a refiner may lie in a folder of this computer, or come down from the Hub; not
            where others can reach the page.
    """

    def __init__(self, loader: SubjectLoader, output_dir: Path) -> None:
        self.loader, self.output_dir = loader, output_dir
        self.prompts, self.folders, self.templates = Prompts(loader), True, Templates()

    def draw(
        self,
        request: DrawRequest,
        compare: bool = True,
        on_step: Callable[[DrawProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        embed_subjects: bool = False,
        embed_start: bool = True,
    ) -> Drawing:
        """Draw and save. `request.subjects` names subjects of the library; they are loaded as needed.

        Args:
            compare: draw also by the base alone; without subjects there is nothing to compare.
            embed_subjects: put the subjects into each picture that they took part in (see `image_card`).
            embed_start: put the picture to start from, and the control picture, into each picture.

        Raises:
            StudioError, SchedulerError, CoefficientsError, OSError: with a message for the user.
        """
        self._check_folders(request)
        with self.loader.using(request.subjects) as studio:
            notes = [f"drawn as: {request.prompt}"] if request.template else []
            notes += studio.notes(request)
            if not request.prompt.strip():
                notes.append("the prompt is empty, so the base draws whatever comes to it")
            if embed_subjects:
                # Says now, not after the drawing, that they cannot be embedded.
                chunks(list(dict.fromkeys(studio.subjects[name] for name in request.subjects)))
            base: list[Picture] = []
            if compare and request.subjects:
                base, pictures = studio.compare(request, self._base_prompt(request), on_step, should_stop)
            else:
                pictures = studio.draw(request, on_step, should_stop)
        files = [
            save_new_picture(
                picture.image,
                self.output_dir,
                f"{picture.seed}{tag}",
                picture.parameters,
                [
                    *(chunks(list(dict.fromkeys(picture.subjects.values()))) if embed_subjects else ()),
                    *(chunk for one in (picture.request.pictures if embed_start else ()) for chunk in one.chunks()),
                ],
            )
            for tag, group in (("-base", base), ("", pictures))
            for picture in group
        ]
        return Drawing(base, pictures, notes, files)

    def settings_of(self, file: str | Path) -> Settings:
        """How a picture was drawn, as far as it can be set here; the subjects that it carries join the library.

        Raises:
            PictureError, CoefficientsError: the picture is damaged, or carries neither settings nor a subject.
        """
        return restored(self.loader, file)

    def add(self, file: str | Path) -> str:
        """Let a subject's file or card join the library, and return the name it is listed under.

        Raises:
            CoefficientsError: it is not a subject's file, or the subject does not fit the base. Nothing is added then.
        """
        with by_name(file):
            layout_of(self.loader.studio.pipe).check_fits(open_subject(file))
            return self.loader.library.add(file)

    def strengths(self, rows: Iterable[tuple[str, float]]) -> dict[str, float]:
        """The subjects of a request from rows of names and strengths; rows without a name do not count.

        Raises:
            StudioError: a subject stands in two rows.
        """
        strengths: dict[str, float] = {}
        for name, strength in rows:
            if name in strengths:
                raise StudioError(f"{name!r} stands in two rows; take it out of one of them")
            if name:
                strengths[name] = strength
        return strengths

    def describe(self, name: str) -> str:
        """One line about a subject of the library: the words that call it up, and what may make it look different."""
        info = open_subject(self.loader.library.path(name)).info
        called = f"{name}: write “{info.trigger}”" if info.trigger else f"{name}: acts on every prompt"
        called += f", with an adapter ({info.adapter})" if info.adapter else ""
        unet = denoiser_of(self.loader.studio.pipe)
        if info.base_fingerprint not in (
            "",
            fingerprint(unet),
        ):  # another kind of base: drawing is refused
            return called
        difference = other_weights(info, weight_sample(unet))
        return f"{called}; {difference}" if difference else called

    def has_adapter(self, name: str) -> bool:
        """Whether a subject of the library learned with an adapter. One that is gone, or cannot be read, has none."""
        try:
            return bool(open_subject(self.loader.library.path(name)).info.adapter)
        except CoefficientsError:
            return False

    def first_prompt(self, name: str) -> str:
        """What to draw with a subject of the library to see it: the prompt it was trained on."""
        return first_prompt(open_subject(self.loader.library.path(name)).info)

    def _check_folders(self, request: DrawRequest) -> None:
        """Raises StudioError: it names a folder or file, or what is not fetched yet, where that is not allowed."""
        control, refiner = request.control, request.refiner
        named = {"ControlNet": control and control.net, "refiner": refiner and refiner.name}
        for called, net in named.items():
            if net and not self.folders and (not is_hub_id(net) or user_path(net).exists() or not is_fetched(net)):
                raise StudioError(
                    f"the {called} is {shown(net)}; where others can reach the page, it has to be an id on the Hub "
                    "whose weights are on this computer already"
                )

    def _base_prompt(self, request: DrawRequest) -> str:
        try:
            return self.loader.studio.base_prompt(request.prompt)
        except StudioError as error:
            raise StudioError(f"{error}, or draw without comparing") from error


def in_few_words(request: DrawRequest) -> str:
    """A drawing as the list of what waits shows it: the prompt, the subjects, how many pictures."""
    prompt = shorten(request.prompt, SHOWN_PROMPT, placeholder=" ...") or "no prompt"
    count = f"{request.batch_size} pictures" if request.batch_size > 1 else "1 picture"
    return " · ".join([prompt, *([" + ".join(request.subjects)] if request.subjects else []), count])
