"""``--engine`` (in tests/conftest.py) says which engine the suite is run against; the fixtures bring it to its start."""

import kinds
import pytest


@pytest.fixture(scope="session")
def kind(request):
    return kinds.KINDS[request.config.getoption("--engine")]


@pytest.fixture(scope="session")
def made(kind):
    """The engine, with its fresh adapter kept as the snapshot ``start``."""
    engine = kind.make()
    engine.snapshot("start")
    return engine


@pytest.fixture
def engine(made):
    """The engine as it was made: the first weights, no gradient, no moments, published."""
    made.restore("start")
    made.publish()
    return made
