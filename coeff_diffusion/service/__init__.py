"""What the page and scripts call: everything a user can do, over one base, one library and one folder of pictures.

No gradio here, and no state in a browser: a page that is loaded again finds everything as it was.
"""

from ..inference.limits import MAX_SUBJECTS, check_limits, limits_of
from .bases import Bases
from .drawings import Drawing, Drawings, Saved, in_few_words
from .explorer import Exploration, Explorer
from .grid_cells import MAX_ROWS, GridRequest, read_strengths, spread
from .history import Drawn, History
from .import_export import Export, ImportExport, PushRequest, ReplaceError
from .inspector import HeadView, Inspector, LayerHeads, SubjectCharts, WordView
from .job import Glimpse, Job
from .jobs import Jobs, OnStep, ShouldStop
from .library_view import Entry, LibraryView
from .loading import SubjectLoader
from .picture_settings import Settings
from .studio_service import StudioService
from .timelines import Moment, Timeline, Timelines
from .training_form import TrainingForm
from .training_job import TrainingJob
from .training_queue import TrainingQueue

__all__ = [
    "MAX_ROWS",
    "MAX_SUBJECTS",
    "Bases",
    "Drawing",
    "Drawings",
    "Drawn",
    "Entry",
    "Exploration",
    "Explorer",
    "Export",
    "Glimpse",
    "GridRequest",
    "HeadView",
    "History",
    "ImportExport",
    "Inspector",
    "Job",
    "Jobs",
    "LayerHeads",
    "LibraryView",
    "Moment",
    "OnStep",
    "PushRequest",
    "ReplaceError",
    "Saved",
    "Settings",
    "ShouldStop",
    "StudioService",
    "SubjectCharts",
    "SubjectLoader",
    "Timeline",
    "Timelines",
    "TrainingForm",
    "TrainingJob",
    "TrainingQueue",
    "WordView",
    "check_limits",
    "in_few_words",
    "limits_of",
    "read_strengths",
    "spread",
]
