"""What the page and scripts call: everything a user can do, over one base, one library and one folder of pictures.

No gradio here, and no state in a browser: a page that is loaded again finds everything as it was.
"""

from .cells import MAX_ROWS, GridRequest, read_strengths, spread
from .core import StudioService
from .drawings import Drawing, Drawings
from .exchange import Exchange, Export, PushRequest, ReplaceError
from .explorer import Exploration, Explorer
from .inspector import Inspector, SubjectCharts, WordView
from .jobs import Glimpse, Jobs
from .loading import SubjectLoader
from .reach import MAX_PICTURES, MAX_SUBJECTS, REACH, check_reach, reach_of_sides
from .restoring import Settings
from .shelf import Entry, Shelf
from .timelines import Moment, Timeline, Timelines
from .training import Training
from .training_requests import TrainingRequest
from .trainings import Trainings

__all__ = [
    "MAX_PICTURES",
    "MAX_ROWS",
    "MAX_SUBJECTS",
    "REACH",
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
    "reach_of_sides",
    "read_strengths",
    "spread",
]
