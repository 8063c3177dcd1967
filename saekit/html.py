"""Building blocks of pages: from results to HTML whose escaping is a type.

A builder takes `str`, which it escapes, or `Markup`, which is HTML already, and returns `Markup`. What
a string could do to the text around it (`<script>`, directional marks, control characters) is shown and
not done, see `harmless`. Templates and style sheets are files of `saekit/templates`.

Pages read well with all styles stripped, as on GitHub: tables, `<b>` and `<mark>` carry the meaning, and
styles only add to it. Colours come from JupyterLab's theme variables, with fallbacks elsewhere.
"""

# ruff: noqa: RUF001 - typographic characters are meant: people read this text

from __future__ import annotations

import functools
import re
import unicodedata
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import EscapeFormatter, Markup
from markupsafe import escape as _escaped

ORANGE = (255, 140, 0)  # of activations; with alpha over the page, so it works in both themes
MAX_ALPHA = 0.55  # keeps the text's contrast above 4.5:1 on light and on dark
MAX_SHOWN = 48  # characters of a token that are shown; the rest is told where one points at it


# ---------------------------------------------------------------------- text

_JOINERS = "\u200c\u200d"  # part of the spelling between letters of some scripts, and within an emoji
_BLANK = set("\u115f\u1160\u2800\u3164\uffa0")  # printable by their category, and yet nothing to see


def harmless(text: str) -> str:
    r"""The text with every character shown that would act on its surroundings or could not be seen.

    Line ends become ↵, tabs ⇥, other control characters their pictures (␀), and directional,
    zero-width and further characters that print nothing their number (⟨U+202E⟩). The joiners of a
    word or an emoji stay.

    Examples
    --------
    >>> harmless("a\nb \u202eevil")
    'a↵b ⟨U+202E⟩evil'
    """
    if text.isprintable() and _BLANK.isdisjoint(text):
        return text
    text = text.replace("\r\n", "\n")
    around = f" {text} "
    return "".join(_shown(char, around[i], around[i + 2]) for i, char in enumerate(text))


def _shown(char: str, before: str, after: str) -> str:
    if char in "\n\r\u2028\u2029":
        return "↵"
    if char == "\t":
        return "⇥"
    if char < " " or char == "\x7f":
        return chr(0x2400 + ord(char)) if char < " " else "␡"
    if unicodedata.category(char) == "Zs":  # such as a no-break space
        return " "
    if char in _JOINERS and min(before, after) > "\u02ff":
        return char
    if char.isprintable() and char not in _BLANK:
        return char
    return f"⟨U+{ord(char):04X}⟩"


def escape(value: Any) -> Markup:
    """A value as HTML: `Markup` is kept, and all else is made harmless and escaped.

    Examples
    --------
    >>> escape("a < b")
    Markup('a &lt; b')
    """
    return _escaped(_final(value))


def _final(value: Any) -> Any:
    """What templates show in place of a value."""
    if isinstance(value, int | float) or hasattr(value, "__html__"):
        return value
    return harmless(str(value))


def markup(template: str, *values: Any, **named: Any) -> Markup:
    """HTML from a template of `str.format`, written out where it is used, and values that are escaped.

    Examples
    --------
    >>> markup("<b>{}</b> of {:,}", "<i>", 1200)
    Markup('<b>&lt;i&gt;</b> of 1,200')
    """
    return Markup(EscapeFormatter(escape).vformat(template, values, named))  # noqa: S704 - escapes values


def join(parts: Iterable[Any], between: str | Markup = "") -> Markup:
    """The parts one after the other.

    Examples
    --------
    >>> join(["<", Markup("<br>"), ">"], " ")
    Markup('&lt; <br> &gt;')
    """
    return escape(between).join(map(escape, parts))


def bold(value: Any) -> Markup:
    """A value in bold.

    Examples
    --------
    >>> bold(3)
    Markup('<b>3</b>')
    """
    return markup("<b>{}</b>", value)


def small(*parts: Any) -> Markup:
    """The parts in small print.

    Examples
    --------
    >>> small("of ", bold(3))
    Markup('<small>of <b>3</b></small>')
    """
    return markup("<small>{}</small>", join(parts))


def cut(text: str, length: int = MAX_SHOWN) -> str:
    """The first characters of a text, with … for the rest.

    Examples
    --------
    >>> cut("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= length else f"{text[: length - 1]}…"


# ---------------------------------------------------------------------- pages

_environment = Environment(
    loader=PackageLoader("saekit"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_final,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> Markup:
    """Fill in a template of `saekit/templates`; a value that it does not get is an error.

    Examples
    --------
    >>> render("parts.html")
    Markup('')
    """
    return Markup(_environment.get_template(template).render(**values).strip())  # noqa: S704 - autoescape


@functools.cache
def _macros() -> Any:
    return _environment.get_template("parts.html").module


def _part(name: str, *values: Any) -> Markup:
    """Call a macro of `parts.html`."""
    return Markup(getattr(_macros(), name)(*values))  # noqa: S704 - autoescape


STYLE = render("style.html")


def page(*parts: str | Markup) -> Markup:
    """Make a self-contained block: the style, and the parts inside one element."""
    return STYLE + panel(*parts)


def static(page: Markup, model_id: str) -> Markup:
    """The static form beside a live widget, which hides it as long as it is there (`hide_static`)."""
    return _part("static", page, model_id)


def hide_static(model_id: str) -> Markup:
    """The style by which a live widget hides its static form."""
    return _part("hide_static", model_id)


def panel(*parts: str | Markup) -> Markup:
    """Put the parts inside one element; the style must be on the page already."""
    return markup('<div class="saekit">{}</div>', join(parts))


def columns(*parts: str | Markup) -> Markup:
    """Parts side by side where there is room (below each other where styles are stripped)."""
    return markup('<div class="columns">{}</div>', join(markup("<div>{}</div>", part) for part in parts))


def alert(message: str) -> Markup:
    """Render an error that assistive technology announces."""
    lines = join(message.splitlines(), Markup("<br>"))
    return panel(markup('<div role="alert" class="alert"><b>Error:</b> {}</div>', lines))


_address: ContextVar[Callable[[int, int], str | None]] = ContextVar("address", default=lambda _w, _l: None)


@contextmanager
def linked(address: Callable[[int, int], str | None]) -> Iterator[None]:
    """Within this context, `goto` links to `address(width, latent)`, where that is not None.

    Examples
    --------
    >>> with linked(lambda width, latent: f"{width}/{latent}.html"):
    ...     goto(1152, 3)
    Markup('<a href="1152/3.html">3</a>')
    """
    token = _address.set(address)
    try:
        yield
    finally:
        _address.reset(token)


def goto(width: int, latent: int, text: Any = None) -> Markup:
    """Name a latent: a link to its page within `linked`.

    Elsewhere it is plain text, and in a live explorer a click on it opens the latent.

    Examples
    --------
    >>> goto(1152, 3)
    Markup('<span data-goto="1152/3">3</span>')
    """
    shown = latent if text is None else text
    address = _address.get()(width, latent)
    if address is not None:
        return markup('<a href="{}">{}</a>', address, shown)
    return markup('<span data-goto="{}/{}">{}</span>', width, latent, shown)


# ---------------------------------------------------------------------- tokens


@functools.lru_cache(1 << 16)
def visible(text: str, *, leading_space: bool = False) -> str:
    """Token text with visible whitespace; plain text.

    Newlines become ↵, tabs ⇥ and spaces ␣, except a single leading space, which is ordinary
    in running text (shown too with `leading_space`). An empty token is ∅.
    """
    text = text.replace("\r\n", "\n")
    ordinary = not leading_space and re.match(r" (?=\S)", text)
    start, rest = (" ", text[1:]) if ordinary else ("", text)
    # Inside a token a single space between words stays as well.
    spaces = re.sub(r"^ +| +$| {2,}", lambda found: "␣" * len(found[0]), rest)
    return start + harmless(spaces) or "∅"


def chip(text: str) -> Markup:
    """One token on its own, with its leading space shown."""
    whole = visible(text, leading_space=True)
    return _part("chip", cut(whole), whole)


def chips(tokens: Iterable[str]) -> Markup:
    """Render a few tokens, each on its own."""
    inside = join(map(chip, tokens), " ")
    return inside and markup('<span class="chips">{}</span>', inside)


def plain(tokens: Iterable[str]) -> str:
    """Join a few tokens as plain text, for the options of a list. Not HTML."""
    return "  ".join(f"‘{cut(visible(token, leading_space=True))}’" for token in tokens)


def context(
    tokens: Sequence[str],
    values: Sequence[float],
    peak: int | None,
    maximum: float,
    *,
    notes: Mapping[int, str] | None = None,
    near: int | None = None,
) -> Markup:
    """Render running text with every token coloured by its activation.

    A token under the pointer shows its activation; one that is active can be reached by the keyboard.

    Parameters
    ----------
    tokens : sequence of str
        The token strings.
    values : sequence of float
        Activation on each, 0 where the latent is not active.
    peak : int or None
        Index of the token that the context was chosen for: bold and underlined.
    maximum : float
        Activation of the deepest colour.
    notes : mapping of int to str, optional
        What is told beside the activation of the token at an index.
    near : int, optional
        Tokens on each side of the peak that are shown at first; those further away are shown where the
        page's "whole rows" is ticked.
    """
    notes = notes or {}
    split = split_characters(tokens)
    cells = []
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        whole = visible(token)
        text = cut(whole)
        told = f"{value:.3g}" if value > 0 else "0"
        if place in split:
            character, first = split[place]
            whole = text = character if first else "⋯"
            told = f"part of {character} · {told}"
        if place in notes:
            told += f" · {notes[place]}"
        if text != whole:
            told = f"{whole} · {told}"
        if value <= 0 and token == " ":
            text = " "  # a silent space is a space; an active one is shown
        word = text.lstrip(" ") if place == peak else ""
        cells.append(
            {
                "text": text if not word else text[: len(text) - len(word)],
                "peak": word,
                "told": told,
                "colour": token_colour(value / maximum) if value > 0 else "",
            }
        )
    start, stop = 0, len(cells)
    if near is not None and peak is not None:
        start, stop = max(0, peak - near), min(len(cells), peak + near + 1)
    return _part("tokens", _joined(cells[:start]), cells[start:stop], _joined(cells[stop:]))


def _joined(cells: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Tokens far from the peak, with silent neighbours as one."""
    found: list[dict[str, str]] = []
    for cell in cells:
        if found and not found[-1]["colour"] and not cell["colour"]:
            found[-1] = {**cell, "text": found[-1]["text"] + cell["text"]}
        else:
            found.append(cell)
    return found


def split_characters(tokens: Sequence[str]) -> dict[int, tuple[str, bool]]:
    """Characters whose bytes are split over neighbouring tokens, such as an emoji.

    A token that is not whole characters is shown as the tokenizer stores it, in angle brackets
    (`saekit.models.token_strings`).

    Returns
    -------
    dict
        By index of the token, the characters that it is a part of, and whether it is their first part.

    Examples
    --------
    >>> split_characters(["a", "<ðŁĻ>", "<Ĥ>"])
    {1: ('🙂', True), 2: ('🙂', False)}
    """
    found: dict[int, tuple[str, bool]] = {}
    start, together = 0, b""
    for place, token in enumerate(tokens):
        part = _part_of_character(token)
        if part is None:
            together = b""
            continue
        start = start if together else place
        together += part
        text = _decoded(together)
        if text is not None:
            found |= {i: (text, i == start) for i in range(start, place + 1)}
            together = b""
    return found


def _part_of_character(token: str) -> bytes | None:
    """The bytes of a token that is not whole characters; None of any other."""
    inside = re.fullmatch(r"<(.+)>", token)
    if inside is None:
        return None
    if number := re.fullmatch(r"0x([0-9A-F]{2})", inside[1]):  # SentencePiece
        part = bytes.fromhex(number[1])
    elif all(char in _BYTES for char in inside[1]):
        part = bytes(_BYTES[char] for char in inside[1])
    else:
        return None
    return part if _decoded(part) is None else None


def _decoded(part: bytes) -> str | None:
    try:
        return part.decode()
    except UnicodeDecodeError:
        return None


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write for bytes: printable ones are themselves."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_letters()


def token_colour(share: float) -> str:
    """Background of a token whose activation is this share of the greatest, as CSS."""
    alpha = 0.08 + (MAX_ALPHA - 0.08) * min(1.0, share)
    return f"rgba({ORANGE[0]},{ORANGE[1]},{ORANGE[2]},{alpha:.2f})"


# ---------------------------------------------------------------------- tables and figures


def table(
    header: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    *,
    caption: str | Markup = "",
    numeric: Iterable[int] = (),
) -> Markup:
    """Make a table; `numeric` columns are aligned right."""
    right = set(numeric)

    def aligned(cells: Sequence[Any]) -> list[tuple[str, Any]]:
        return [("right" if place in right else "left", cell) for place, cell in enumerate(cells)]

    return _part("table", aligned(header), [aligned(cells) for cells in rows], caption)


def details(summary: str | Markup, body: str | Markup, *, is_open: bool = False) -> Markup:
    """Make a section that opens on a click."""
    return _part("details", summary, body, is_open)


def image(svg: str, alt: str) -> Markup:
    """Embed an SVG as an image, for static pages: where it is dropped, `alt` stays."""
    data = b64encode(svg.encode()).decode()
    return markup('<img alt="{}" src="data:image/svg+xml;base64,{}">', alt, data)


def drawing(svg: str, alt: str, *, as_image: bool) -> Markup:
    """Show an SVG that saekit drew: inline, in the page's theme, or as an image."""
    return image(svg, alt) if as_image else Markup(svg)  # noqa: S704 - drawn with `escape`


def bar(value: float, *, width: int = 12) -> str:
    """Draw a share of the maximum as a bar of block characters, which need no styles."""
    eighths = round(value * width * 8)
    if value > 0:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
