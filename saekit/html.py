"""Pure functions from results to HTML strings.

The result reads well with all styles stripped, as on GitHub: tables, `<b>` and `<mark>` carry the
meaning, and styles only add to it. All text is escaped. Colours come from JupyterLab's theme
variables, with fallbacks elsewhere.
"""

# ruff: noqa: RUF001 - typographic characters are meant: people read this text

from __future__ import annotations

import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

ORANGE = (255, 140, 0)  # of activations; with alpha over the page, so it works in both themes
MAX_ALPHA = 0.55  # keeps the text's contrast above 4.5:1 on light and on dark
STYLE = """<style>
.saekit { font-family: var(--jp-ui-font-family, system-ui, sans-serif); font-size: 13px; line-height: 1.5;
  color: var(--jp-content-font-color1, #212121); }
.saekit h3 { font-size: 16px; margin: 2px 0 4px; font-weight: 600; }
.saekit h4 { font-size: 13px; margin: 14px 0 4px; font-weight: 600; }
.saekit p { margin: 2px 0 6px; }
.saekit table { color: inherit; border-collapse: collapse; margin: 4px 0 10px; font-size: 13px; width: auto; border: none; }
.saekit caption { text-align: left; font-weight: 600; padding: 2px 0 4px; white-space: nowrap;
  color: var(--jp-content-font-color1, #212121); }
.saekit table td, .saekit table th { text-align: left; padding: 2px 10px 2px 4px; vertical-align: top;
  border: none; border-bottom: 1px solid var(--jp-border-color2, #e0e0e0); background: transparent; max-width: none;
  white-space: normal; line-height: 1.5; }
.saekit table th { font-weight: 500; color: var(--jp-content-font-color2, #616161); white-space: nowrap; }
.saekit table [align=right] { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.saekit mark { color: inherit; background-color: transparent; border-radius: 2px; }
.saekit .tokens { font-family: var(--jp-content-font-family, system-ui, sans-serif); font-size: 14px; }
.saekit .token { border: 1px solid var(--jp-border-color2, #d0d0d0); border-radius: 3px; padding: 0 3px;
  white-space: pre; font-family: var(--jp-code-font-family, monospace); font-size: 12px; }
.saekit .quiet, .saekit small { color: var(--jp-content-font-color2, #616161); font-size: 12px; }
.saekit summary { cursor: pointer; padding: 2px 0; }
.saekit code { font-family: var(--jp-code-font-family, monospace); font-size: 12px; background: transparent;
  color: inherit; user-select: all; }
.saekit .alert { border-left: 4px solid #d55e00; padding: 4px 10px; margin: 4px 0; }
.saekit svg, .saekit img { max-width: 100%; height: auto; }
.saekit .columns { display: flex; flex-wrap: wrap; gap: 4px 24px; align-items: flex-start; }
.saekit .columns h4 { margin-top: 6px; }
.saekit td .chips { white-space: nowrap; }
.saekit ul { margin: 2px 0 6px; padding-left: 22px; }
</style>"""


def page(*parts: str) -> str:
    """Make a self-contained block: the style, and the parts inside one element."""
    return f'{STYLE}<div class="saekit">{"".join(parts)}</div>'


# In a reopened notebook, JupyterLab leaves a bare sentence in place of the live widget.
_NO_MODEL = """<style>
.jp-OutputArea-child:has(.saekit-static)
  + .jp-OutputArea-child:has(> .jupyter-widgets):not(:has(> .jupyter-widgets > *)) { display: none; }
</style>"""


def static(page: str, model_id: str) -> str:
    """The static form beside a live widget, which hides it as long as it is there (`hide_static`)."""
    return f'<div class="saekit-static saekit-static-{model_id}">{_NO_MODEL}{page}</div>'


def hide_static(model_id: str) -> str:
    """The style by which a live widget hides its static form."""
    form = f".saekit-static-{model_id}"
    return f"<style>{form}, .jp-OutputArea-child:has({form}) {{ display: none !important; }}</style>"


def panel(*parts: str) -> str:
    """Put the parts inside one element; the style must be on the page already."""
    return f'<div class="saekit">{"".join(parts)}</div>'


def columns(*parts: str) -> str:
    """Parts side by side where there is room (below each other where styles are stripped)."""
    return f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def alert(message: str) -> str:
    """Render an error that assistive technology announces."""
    return panel(f'<div role="alert" class="alert"><b>Error:</b> {escape(message)}</div>')


# ---------------------------------------------------------------------- tokens

_WHITE = {"\n": "↵", "\r": "↵", "\t": "⇥"}


def visible(text: str, *, leading_space: bool = False) -> str:
    """Token text with visible whitespace; not escaped yet.

    Newlines become ↵, tabs ⇥ and spaces ␣, except a single leading space, which is ordinary
    in running text (shown too with `leading_space`). An empty token is ∅.
    """
    text = text.replace("\r\n", "\n")
    ordinary = not leading_space and re.match(r" (?=\S)", text)
    start, rest = (" ", text[1:]) if ordinary else ("", text)
    # Inside a token a single space between words stays as well.
    spaces = re.sub(r"^ +| +$| {2,}", lambda found: "␣" * len(found[0]), rest)
    return start + "".join(map(_shown, spaces)) or "∅"


def _shown(char: str) -> str:
    if char in _WHITE:
        return _WHITE[char]
    if unicodedata.category(char) == "Zs":  # such as a no-break space
        return " "
    return char if char.isprintable() else "\ufffd"


def chip(text: str) -> str:
    """One token on its own, with its leading space shown."""
    return f'<span class="token">{escape(visible(text, leading_space=True))}</span>'


def chips(tokens: Iterable[str]) -> str:
    """Render a few tokens, each on its own."""
    inside = " ".join(chip(token) for token in tokens)
    return inside and f'<span class="chips">{inside}</span>'


def plain(tokens: Iterable[str]) -> str:
    """Join a few tokens as plain text, for the options of a list. Not HTML."""
    return "  ".join(f"‘{visible(token, leading_space=True)}’" for token in tokens)


def context(tokens: Sequence[str], values: Sequence[float], peak: int, maximum: float) -> str:
    """Render running text with every token coloured by its activation.

    Parameters
    ----------
    tokens : sequence of str
        The token strings.
    values : sequence of float
        Activation on each, 0 where the latent is not active.
    peak : int
        Index of the token that the context was chosen for: bold and underlined.
    maximum : float
        Activation of the deepest colour.
    """
    parts = []
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        text = escape(visible(token))
        if value > 0:
            alpha = 0.08 + (MAX_ALPHA - 0.08) * min(1.0, value / maximum)
            if place == peak:
                word = text.lstrip(" ")
                text = f"{text[: len(text) - len(word)]}<b><u>{word}</u></b>"
            colour = f"rgba({ORANGE[0]},{ORANGE[1]},{ORANGE[2]},{alpha:.2f})"
            parts.append(
                f'<mark title="{value:.3g}" style="background-color:{colour};color:inherit">{text}</mark>'
            )
        else:
            # A silent space is a space; an active one is shown.
            parts.append(f'<span title="0">{" " if token == " " else text}</span>')
    return f'<span class="tokens">{"".join(parts)}</span>'


# ---------------------------------------------------------------------- tables and figures


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    numeric: Iterable[int] = (),
) -> str:
    """Make a table of cells that are already HTML; `numeric` columns are aligned right."""
    right = set(numeric)

    def row(cells: Sequence[str], tag: str) -> str:
        aligned = (
            f"<{tag} align={'right' if place in right else 'left'}>{cell}</{tag.split()[0]}>"
            for place, cell in enumerate(cells)
        )
        return f"<tr>{''.join(aligned)}</tr>"

    head = f"<thead>{row(header, 'th scope=col')}</thead>" if header else ""
    title = f"<caption>{caption}</caption>" if caption else ""
    return f"<table>{title}{head}<tbody>{''.join(row(cells, 'td') for cells in rows)}</tbody></table>"


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    """Make a section that opens on a click."""
    return f"<details{' open' if is_open else ''}><summary>{summary}</summary>{body}</details>"


def image(svg: str, alt: str) -> str:
    """Embed an SVG as an image, for static pages: where it is dropped, `alt` stays."""
    data = b64encode(svg.encode()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def bar(value: float, *, width: int = 12) -> str:
    """Draw a share of the maximum as a bar of block characters, which need no styles."""
    eighths = round(value * width * 8)
    if value > 0:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
