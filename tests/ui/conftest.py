import pytest

from coeff_diffusion.ui.own_folder import own_folder


@pytest.fixture(autouse=True, scope="session")
def _own_folder() -> None:
    """No test writes where all users of the machine do, also where it builds a part of the page by itself."""
    own_folder()
