"""The colours of figures and explorers: seaborn's colour-blind-safe palette, and greys."""

PALETTE = BLUE, ORANGE, GREEN, VERMILION, PINK, BROWN, ROSE, SKY = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00"),
    *("#cc78bc", "#ca9161", "#fbafe4", "#56b4e9"),
)
GREY, DARK_GREY, LIGHT_GREY, INK = "#8c8c8c", "#6e6e6e", "#dcdcdc", "#262626"

NOVEL, RECONSTRUCTION = VERMILION, SKY
META, LATENT = "#999933", "#882255"  # meta-latents, and the latents that they make up: of no kind's colour
NULL = GREY  # second seeds, chance lines, nulls


def shade(colour: str, white: float) -> str:
    """A colour mixed with this share of white.

    Examples
    --------
    >>> shade("#000000", 0.5)
    '#808080'
    """
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(part + white * (255 - part)):02x}" for part in parts)
