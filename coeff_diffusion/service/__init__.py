"""What the page and scripts call: everything a user can do, over one base, one library and one folder of pictures.

No gradio here, and no state in a browser: a page that is loaded again finds everything as it was.
"""

from .core import StudioService
from .drawings import Drawing, Drawings
from .jobs import Glimpse, Jobs
from .loading import SubjectLoader

__all__ = ["Drawing", "Drawings", "Glimpse", "Jobs", "StudioService", "SubjectLoader"]
