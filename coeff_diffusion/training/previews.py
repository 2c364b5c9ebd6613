"""What the subject looks like on the way, drawn as anyone would who loads its file: the same seeds at every step.

The first preview is of step 0, before anything is learned: what the base makes of the class word, to measure the others
by.
"""

from collections.abc import Callable

from ..images.files import save_picture
from ..inference.request import DrawCancelled, DrawRequest, StudioError
from ..inference.studio import Studio
from ..subject.coefficients import Coefficients
from .config import TrainConfig
from .reports import PreviewReport
from .run_folder import RunFolder


class Previews:
    """The previews of a run.

    Args:
        studio: draws.
        config: resolved settings, resolution included.
        output: where the pictures go.
        say: takes the lines meant for the user.
        should_stop: asked while a picture is drawn.
        on_preview: told of every preview that is saved.
    """

    def __init__(
        self,
        studio: Studio,
        config: TrainConfig,
        output: RunFolder,
        say: Callable[[str], None],
        should_stop: Callable[[], bool],
        on_preview: Callable[[PreviewReport], None] | None,
    ) -> None:
        self.studio, self.config, self.output = studio, config, output
        self.say, self.should_stop, self.on_preview = say, should_stop, on_preview
        self.said: list[str] = []  # what the base does not read of the prompt, once for all previews

    def due(self, step: int) -> bool:
        """Whether there is a preview after this step; 0 is before the first one."""
        every = self.config.validation_steps
        return bool(every) and (step == self.config.max_train_steps or step % every == 0)

    def drawn(self, step: int) -> bool:
        """Whether all its pictures are there."""
        return all(self.output.sample(step, number).is_file() for number in range(self.config.num_validation_images))

    def draw(self, step: int, subject: Coefficients) -> bool:
        """Draw and save; whether that came to its end.

        Raises:
            OSError: a picture could not be written.
        """
        config = self.config
        name = self.studio.load(subject, name=config.name)
        request = DrawRequest(
            str(config.validation_prompt),
            subjects={name: 1.0},
            seed=config.seed,
            batch_size=config.num_validation_images,
            width=config.resolution,
            height=config.resolution,
        )
        try:
            for note in self.studio.unread_notes(request):
                if note not in self.said:
                    self.say(f"previews: {note}")
                    self.said.append(note)
            pictures = self.studio.draw(request, should_stop=self.should_stop)
        except DrawCancelled:
            return False
        except StudioError as error:  # a picture that breaks up says something about the subject, but ends no training
            self.say(f"no preview of step {step}: {error}")
            return False
        finally:
            self.studio.unload(name)
        paths = [self.output.sample(step, number) for number in range(len(pictures))]
        self.output.samples.mkdir(exist_ok=True)
        for picture, path in zip(pictures, paths, strict=True):
            save_picture(picture.image, path, picture.parameters)
        if self.on_preview is not None:
            self.on_preview(PreviewReport(step, pictures, paths))
        return True
