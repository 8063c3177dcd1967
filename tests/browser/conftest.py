import pytest
from browser_checks import started


@pytest.fixture(scope="module")
def browser():
    with started() as browser:
        yield browser
