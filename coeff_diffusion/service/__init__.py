"""What the page and scripts call: everything a user can do, over one base, one library and one folder of pictures.

No gradio here, and no state in a browser: a page that is loaded again finds everything as it was.
"""

from .drawings import Drawing, Drawings
from .explorer import Exploration, Explorer
from .grid_cells import MAX_ROWS, GridRequest, read_strengths, spread
from .import_export import Exchange, Export, PushRequest, ReplaceError
from .inspector import Inspector, SubjectCharts, WordView
from .jobs import Glimpse, Jobs
from .library_view import Entry, Shelf
from .limits import MAX_SUBJECTS, check_reach, reach_of
from .loading import SubjectLoader
from .picture_settings import Settings
from .studio_service import StudioService
from .timelines import Moment, Timeline, Timelines
from .training_form import TrainingRequest
from .training_job import Training
from .training_queue import Trainings

__all__ = [
    "MAX_ROWS",
    "MAX_SUBJECTS",
    "Drawing",
    "Drawings",
    "Entry",
    "Exchange",
    "Exploration",
    "Explorer",
    "Export",
    "Glimpse",
    "GridRequest",
    "Inspector",
    "Jobs",
    "Moment",
    "PushRequest",
    "ReplaceError",
    "Settings",
    "Shelf",
    "StudioService",
    "SubjectCharts",
    "SubjectLoader",
    "Timeline",
    "Timelines",
    "Training",
    "TrainingRequest",
    "Trainings",
    "WordView",
    "check_reach",
    "reach_of",
    "read_strengths",
    "spread",
]
