"""What names a repository of the Hub: the one pattern of the whole package. Nothing is asked here."""

import re

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")  # user/repository, user/repository@revision


def is_hub_id(text: str) -> bool:
    """Whether this is the id of a repository, not somebody's folder: "user/repository", without a revision."""
    found = HUB_ID.fullmatch(text)
    return found is not None and found[2] is None
