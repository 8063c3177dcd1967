"""The pure functions that turn tokens and numbers into HTML and SVG."""

import re
import sys
from pathlib import Path

import pytest

from saekit import html


@pytest.mark.parametrize(
    ("token", "running", "alone"),
    [
        (" king", " king", "␣king"),
        ("\n\n", "↵↵", "↵↵"),
        ("\r\n", "↵", "↵"),
        ("a\tb", "a⇥b", "a⇥b"),
        ("   ", "␣␣␣", "␣␣␣"),
        (" ", "␣", "␣"),
        ("New York ", "New York␣", "New York␣"),
        ("7\u00a0km", "7 km", "7 km"),
        ("\u202eevil", "⟨U+202E⟩evil", "⟨U+202E⟩evil"),
        ("\x00\x7f", "␀␡", "␀␡"),
        ("a\u200bb", "a⟨U+200B⟩b", "a⟨U+200B⟩b"),
        ("\u2800", "⟨U+2800⟩", "⟨U+2800⟩"),
        ("\ud83d", "⟨U+D83D⟩", "⟨U+D83D⟩"),
        ("\U0001f469\u200d\U0001f469", "\U0001f469\u200d\U0001f469", "\U0001f469\u200d\U0001f469"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("a\u200db", "a⟨U+200D⟩b", "a⟨U+200D⟩b"),
        ("", "∅", "∅"),
    ],
)
def test_whitespace_can_be_seen(token, running, alone):
    assert html.visible(token) == running
    assert html.visible(token, leading_space=True) == alone


def test_context_marks_active_tokens_and_the_peak_by_more_than_colour():
    text = html.context(["<a>", " &b", " ", " c"], [0.0, 2.0, 0.0, 4.0], peak=3, maximum=4.0)
    marks = re.findall(
        r'<mark tabindex="0" data-told="([^"]+)" style="background-color:rgba\(255,140,0,([\d.]+)\)', text
    )
    assert [(float(value), float(alpha)) for value, alpha in marks] == [
        (2.0, pytest.approx(0.315, abs=0.006)),
        (4.0, html.MAX_ALPHA),
    ]
    assert re.findall(r"<b><u>(.*?)</u></b>", text) == ["c"]
    # With every tag taken away the text reads as it is; every token tells its activation.
    assert re.sub(r"<[^>]+>", "", text) == "&lt;a&gt; &amp;b  c"
    assert re.findall(r'data-told="([^"]+)"', text) == ["0", "2", "0", "4"]


@pytest.mark.parametrize("written", ["byte level", "fallback"])
def test_a_character_that_is_split_over_tokens_is_joined(written):
    from tokenizers.pre_tokenizers import ByteLevel

    bytes_of = ByteLevel(add_prefix_space=False, use_regex=False)
    smile, accent = "\U0001f642", "\u00e9"

    def parts(text, end):
        if written == "fallback":
            return [f"<0x{byte:02X}>" for byte in text.encode()]
        ((letters, _),) = bytes_of.pre_tokenize_str(text)  # one for each byte
        return [f"<{letters[:end]}>", f"<{letters[end:]}>"]

    first, second = parts(smile, 3), parts(accent, 1)
    tokens = ["a", *first, " b", "<s>", *second, first[0], " c"]
    n, m = len(first), len(second)
    expected = {1 + i: (smile, i == 0) for i in range(n)}
    expected |= {3 + n + i: (accent, i == 0) for i in range(m)}
    assert html.split_characters(tokens) == expected
    text = html.context(tokens, [0.0, 2.0, *[0.0] * (len(tokens) - 2)], 1, 2.0)
    shown = re.sub(r"<[^>]+>", "", text)
    assert shown == f"a{smile}{'⋯' * (n - 1)} b&lt;s&gt;{accent}{'⋯' * (m - 1)}{html.escape(first[0])} c"
    assert f'data-told="part of {smile} · 2"' in text


THEMES = Path(sys.prefix) / "share/jupyter/lab/themes/@jupyterlab"


def theme_colours(theme):
    """The variables of a JupyterLab theme; none elsewhere, where the style sheet has its own colours."""
    if theme == "elsewhere":
        return {}
    css = (THEMES / f"theme-{theme}-extension" / "index.css").read_text()
    return dict(re.findall(r"(--[\w-]+):\s*([^;}]+)", css))


def rgba(value, variables):
    """Red, green, blue and alpha of a CSS colour."""
    value = value.strip()
    if value.startswith("var("):
        name, _, fallback = value[4:-1].partition(",")
        return rgba(variables.get(name, fallback), variables)
    if value.startswith("rgba("):
        return tuple(float(part) for part in value[5:-1].split(","))
    digits = {"white": "fff", "black": "000"}.get(value, value.removeprefix("#"))
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    return (*(int(digits[i : i + 2], 16) for i in (0, 2, 4)), 1.0)


def over(above, below):
    """One colour on another."""
    return [above[3] * a + (1 - above[3]) * b for a, b in zip(above[:3], below[:3], strict=True)]


def contrast(text, paper):
    """WCAG's contrast of a colour, with alpha, on another."""

    def luminance(colour):
        shares = [x / 255 for x in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(over(text, paper)), luminance(paper[:3])))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "elsewhere"])
def test_text_can_be_read_and_the_focus_seen_in_every_theme(theme):
    variables = theme_colours(theme)

    def colour(name, fallback):
        return rgba(f"var({name},{fallback})", variables)

    papers = [colour(f"--jp-layout-color{i}", "#fff") for i in (0, 1)]
    ink = colour("--jp-content-font-color1", "#212121")
    tested = 0
    for selector, rule in re.findall(r"([^{}]+)\{([^{}]*)\}", html.STYLE):
        texts = re.findall(r"(?<![-\w])color: (var\([^;]*\))", rule)
        grounds = re.findall(r"background: (var\([^;]*\))", rule)
        behind = [rgba(ground, variables) for ground in grounds] or papers
        for text in texts:
            for paper in behind:
                tested += 1
                assert contrast(rgba(text, variables), paper) >= 4.5, (selector, text)
        for line in re.findall(r"outline: 2px solid (var\([^;]*\))", rule):
            assert min(contrast(rgba(line, variables), paper) for paper in papers) >= 3, selector
    assert tested > 12
    # On the deepest colour of a token, in ordinary and in quiet places.
    deepest = rgba(html.token_colour(1.0), variables)
    assert deepest[3] == html.MAX_ALPHA
    for paper in papers:
        assert contrast(ink, over(deepest, paper)) >= 4.5


def test_bars_grow_with_the_share_and_something_is_never_nothing():
    assert html.bar(0) == ""
    assert html.bar(1e-6) == "▏"
    assert html.bar(1) == "█" * 12
    assert html.bar(0.5) == "█" * 6
