"""The workspace in a browser, for people without a notebook: a notebook of ours through Voila."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saekit.files import write_bytes, write_json
from saekit.site.pages import TEMPLATES

HOST = "127.0.0.1"
PORT = 8866
KERNEL = TEMPLATE = "saekit"


def require_voila() -> None:
    """Refuse to serve without Voila.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    if importlib.util.find_spec("voila") is None:
        raise ImportError("Serving needs Voila, which is not installed: pip install 'saekit[serve]'.")


def require_free(host: str, port: int) -> None:
    """Refuse a place where nothing can listen.

    Raises
    ------
    OSError
        If another program listens there, or the host is not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"Nothing can be served at {host}, port {port} ({reason}): choose another --port."
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Examples
    --------
    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0")]
    [True, True, True, False]
    """
    return host in ("localhost", "::1") or host.startswith("127.")


def serve(source: str, *, host: str = HOST, port: int = PORT, open_browser: bool = True) -> None:
    """Show what a piece of Python displays to everyone who opens an address, until Ctrl-C.

    Each visitor gets a process of their own, in which the code runs in the current folder. The page, its
    widgets and scripts come from this machine alone.

    Parameters
    ----------
    source : str
        Python whose last expression is displayed, such as a `Workspace`. It is not shown.
    host : str
        Address to listen on.
    port : int
        Port to listen on.
    open_browser : bool
        Open the page in the browser of this machine.

    Raises
    ------
    ImportError
        If Voila is not installed.
    OSError
        If nothing can listen there.
    """
    require_voila()
    require_free(host, port)
    from voila.app import Voila

    with tempfile.TemporaryDirectory(prefix="saekit-") as folder:
        notebook = _write(Path(folder), source)
        with _jupyter_path(folder), warnings.catch_warnings():
            # Without an address for MathJax, no page asks another machine for it, and text stays text.
            warnings.filterwarnings("ignore", "Voila.mathjax_url is deprecated")
            Voila.launch_instance(
                [
                    str(notebook),
                    f"--Voila.ip={host}",
                    f"--Voila.port={port}",
                    "--Voila.port_retries=0",
                    f"--Voila.open_browser={open_browser}",
                    "--Voila.log_level=ERROR",
                    "--Voila.mathjax_url=",
                    f"--VoilaConfiguration.template={TEMPLATE}",
                    "--VoilaConfiguration.allow_template_override=NO",
                    "--VoilaConfiguration.strip_sources=True",
                ]
            )


def _write(folder: Path, source: str) -> Path:
    """Write the notebook, its kernel (this Python) and its template; return the notebook."""
    write_json(
        folder / "kernels" / KERNEL / "kernel.json",
        {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": KERNEL,
            "language": "python",
            "env": {"SAEKIT_STATIC": ""},
        },
    )
    template = folder / "voila" / "templates" / TEMPLATE
    write_json(template / "conf.json", {"base_template": "lab"})
    write_bytes(template / "index.html.j2", (TEMPLATES / "voila" / "index.html.j2").read_bytes())
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "workspace",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": f"import os\nos.chdir({os.getcwd()!r})\n{source}",
    }
    kernel = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    write_bytes(folder / "saekit.ipynb", json.dumps(notebook).encode())
    return folder / "saekit.ipynb"


@contextmanager
def _jupyter_path(folder: str) -> Iterator[None]:
    """Within this context, Jupyter finds what is in a folder before anything else."""
    before = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["JUPYTER_PATH"]
        else:
            os.environ["JUPYTER_PATH"] = before
