"""Warnings that name the line of the caller's own code."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

INSIDE = tuple(str(Path(file).parent) + os.sep for file in (__file__, torch.__file__))


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the first frame outside saekit and torch, however deep the call is.

    torch counts because its decorators, such as `no_grad`, stand between the functions of saekit.

    Parameters
    ----------
    message : str
        One sentence.
    category : type of Warning
        Category of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_code.co_filename.startswith(INSIDE) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
