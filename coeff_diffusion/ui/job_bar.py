"""The button that starts a job of a tab, the one that cancels it, and the line that says how it goes."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr

from ..inference.request import DrawCancelled, DrawProgress
from ..service import Glimpse, StudioService
from .common import QUIET, REFUSALS, refusal, status_line

Values = dict[Any, Any]
News = dict[Any, Any]
Handler = Callable[[Values, gr.Request], Iterator[News]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class JobBar:
    """Made by `job_bar`.

    Attributes:
        kind: of job, "explore": a job ends an earlier one of its kind, and none that the same browser runs elsewhere.
    """

    start: gr.Button
    cancel: gr.Button
    status: gr.HTML
    kind: str

    def parts(self) -> list[Any]:
        """All of them, for the outputs of an event."""
        return [self.start, self.cancel, self.status]

    def busy(self, *sentences: str) -> News:
        """A job has begun."""
        return {
            self.start: gr.Button(interactive=False),
            self.cancel: gr.Button(interactive=True),
            self.status: status_line("Getting ready ...", *sentences),
        }

    def idle(self, *sentences: str, refused: bool = False) -> News:
        """Ready for the next job, with what there is to say about this one."""
        return {
            self.start: gr.Button(interactive=True),
            self.cancel: gr.Button(interactive=False),
            self.status: status_line(*sentences, refused=refused),
        }

    def run(
        self,
        service: StudioService,
        request: gr.Request,
        work: Callable[[Callable[[DrawProgress], None], Callable[[], bool]], Result],
    ) -> Generator[Glimpse, None, Result]:
        """The job of whoever asks (see `Jobs.run`)."""
        return service.jobs.run(self._owner(request), work)

    def minding(self, handler: Handler) -> Handler:
        """An event's handler after which the bar is ready again, however the job ended, and says how it did."""

        def minded(values: Values, request: gr.Request) -> Iterator[News]:
            try:
                yield from handler(values, request)
            except DrawCancelled:
                yield self.idle("Cancelled; nothing was saved.")
            except REFUSALS as error:
                yield self.idle(str(error), refused=True)
                raise refusal(error) from error
            except Exception:
                yield self.idle("Something went wrong; the terminal of the program says more.", refused=True)
                raise

        return minded

    def wire_cancel(self, service: StudioService, page: gr.Blocks) -> None:
        """End the job by the button, and when its page is closed."""

        def leave(request: gr.Request) -> None:
            service.jobs.cancel(self._owner(request))  # it says so itself: what is said here could come after its end

        self.cancel.click(leave, None, None, queue=False, **QUIET)
        page.unload(leave)

    def _owner(self, request: gr.Request) -> str:
        return f"{request.session_hash}-{self.kind}"


def job_bar(kind: str, label: str, hint: str = "") -> JobBar:
    """Put a bar on the page.

    Args:
        kind: of job; its parts are called after it: `draw-button`, `draw-cancel`, `draw-status`.
        label: of the button that starts it.
        hint: what the line says before the first job.
    """
    with gr.Row():
        start = gr.Button(label, variant="primary", scale=3, min_width=150, elem_id=f"{kind}-button")
        cancel = gr.Button("Cancel", interactive=False, scale=1, min_width=90, elem_id=f"{kind}-cancel")
    return JobBar(start, cancel, gr.HTML(status_line(hint) if hint else "", elem_id=f"{kind}-status"), kind)
