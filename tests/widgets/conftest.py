import pytest
from toy_world import make_world


@pytest.fixture(scope="session")
def world():
    return make_world()


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """Errors of callbacks are raised, and no widget outlives its test."""
    from ipywidgets import Widget

    monkeypatch.setenv("SAEKIT_STRICT", "1")
    monkeypatch.delenv("SAEKIT_STATIC", raising=False)
    yield
    Widget.close_all()
