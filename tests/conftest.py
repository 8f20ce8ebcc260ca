"""Settings and grids that all tests share."""

import matplotlib
import pytest
import torch
from hypothesis import settings

from tract.levels import cosine, karras

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings

# The same examples in every run: a test that fails today also fails tomorrow.
settings.register_profile("tract", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("tract")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """A cache of the tests' own, for them and for processes that they start."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # its list of fonts takes long to make
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(params=[cosine, karras], ids=["VP", "VE"])
def levels(request):
    """A grid of 32 steps, variance preserving and variance exploding in turn."""
    return request.param(32)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
