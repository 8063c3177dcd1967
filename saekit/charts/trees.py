"""Graphs of latents: a splitting tree, and a latent with its meta-latents and theirs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saekit.analysis.splitting import STATUSES
from saekit.charts.chart import Chart
from saekit.charts.model import PAGE, Box, Dots, Key, Line, Link, Mark, Panel, Scale, Text
from saekit.colours import BLUE, GREY, LATENT, LIGHT_GREY, META, PINK, SKY, shade
from saekit.wording import counted

if TYPE_CHECKING:
    from saekit.analysis.meta.latents import RelatedLatents
    from saekit.analysis.splitting import SplittingTree

STATUS_COLOURS = {"split": PINK, "identical": BLUE, "refined": shade(SKY, 0.4), "lost": LIGHT_GREY}
STATUS_MARKERS = {"split": "o", "identical": "s", "refined": "^", "lost": "X", "leaf": "o"}
LEAF_ROOM = 104.4  # points right of the last column
STUB = 0.12  # share of a column before edges part
_EDGE = GREY


def splitting_tree(
    tree: SplittingTree,
    width: int,
    latent: int,
    labels: Callable[[int, int], str] | None = None,
    *,
    ancestors: Sequence[dict[str, Any]] = (),
    most_children: int | None = None,
    most_leaves: int | None = None,
) -> Chart:
    """Draw a latent with its descendants, one column per width.

    Parameters
    ----------
    tree : SplittingTree
        Of a family.
    width, latent : int
        The root.
    labels : callable, optional
        `labels(width, latent)` is a text for it, cut to the room there is.
    ancestors : sequence of dict
        Its ancestors from the oldest on, drawn left of it; the root then has a ring.
    most_children, most_leaves : int, optional
        Draw at most so many children of a latent, and about so many leaves; how many are hidden is stated.

    Examples
    --------
    >>> splitting_tree(saekit.splitting_tree(family), 8, 2).data[["width", "latent", "parent"]]
       width  latent  parent
    0      8       2      -1
    1     12       2       2
    2     12       8       2
    """

    def label(node: dict[str, Any]) -> str:
        return labels(node["width"], node["latent"]) if labels else ""

    nodes, more = _place(tree.subtree(width, latent), most_children, most_leaves)
    used = [node["width"] for node in (*ancestors, *nodes)]
    columns = [w for w in tree.widths if min(used) <= w <= max(used)]
    data = pd.DataFrame(nodes)
    data["label"] = [label(node) for node in nodes]
    n_rows = max([data["row"].max(), *(row for _, row, _ in more)]) + 1
    step = (PAGE - LEAF_ROOM - 7) / len(columns)
    at = {column: step * (place + 1) for place, column in enumerate(columns)}
    edges: list[Mark] = []
    texts: list[Mark] = [
        Text(at[column], -1.0, f"width {column}", line="bottom", colour="quiet") for column in columns
    ]
    dots: list[Mark] = []

    def edge(start: float, end: float, row: float, cosine: float) -> None:
        edges.append(Line([start, end], [row, row], _EDGE, _thickness(cosine, tree.theta)))

    def dot(node: dict[str, Any], row: float) -> None:
        status, about = node["status"], f"latent {node['latent']} of width {node['width']}"
        if node["cosine"] == node["cosine"]:
            about += f", cosine {node['cosine']:.2f} with its parent"
        fill, mark = STATUS_COLOURS.get(status, "paper"), STATUS_MARKERS[status]
        told = [f"{about}: {label(node) or status}"]
        dots.append(Dots(at[node["width"]], row, fill, mark, 4.5, edge="ink", titles=told))

    def above(node: dict[str, Any], row: float, room: float) -> None:
        text = f"{node['latent']}  {label(node)}".rstrip()
        x, named = at[node["width"]], (node["width"], node["latent"])
        texts.append(Text(x, row, text, "end", "bottom", size=6.5, move=(-4, 2.2), room=room, goto=named))

    root = nodes[0]
    for place, node in enumerate(ancestors):
        after = ancestors[place + 1] if place + 1 < len(ancestors) else root
        edge(at[node["width"]], at[after["width"]], root["row"], after["cosine"])
        dot(node, root["row"])
        above(node, root["row"], (1 - STUB * bool(place)) * step - 10)
    for node in nodes:
        x, row = at[node["width"]], node["row"]
        if node is not root:
            edge(at[node["parent_width"]] + STUB * step, x, row, node["cosine"])
        below = [child["row"] for child in nodes if child["parent_place"] == node["place"]]
        below += [at_row for parent, at_row, _ in more if parent is node]
        if below:
            edges.append(Line([x, x + STUB * step], [row, row], _EDGE, 0.8))
            edges.append(Line([x + STUB * step] * 2, [min(below), max(below)], _EDGE, 0.8))
            above(node, row, (1 if node is root and not ancestors else 1 - STUB) * step - 10)
        else:
            text = f"{node['latent']}  {label(node)}".rstrip()
            hidden = f"  + {node['n_children']} more" if node["n_children"] else ""
            room = LEAF_ROOM - 7 + PAGE - LEAF_ROOM - 7 - x
            named = node["width"], node["latent"]
            texts.append(Text(x, row, text + hidden, "start", size=6.5, move=(5, 0), room=room, goto=named))
        dot(node, row)
    for parent, row, n in more:
        x = at[columns[columns.index(parent["width"]) + 1]]
        edges.append(Line([at[parent["width"]] + STUB * step, x], [row, row], _EDGE, 0.6, ":"))
        texts.append(Text(x, row, f"+ {n} more", "start", colour="quiet", size=6.5, move=(5, 0)))
    if ancestors:
        dots.append(Dots(at[width], root["row"], "none", "o", 9, edge="ink", edge_width=1.2))
    descendants, leaves = len(nodes) - 1, int((data["n_children"] == 0).sum())
    panel = Panel(
        Scale(0, PAGE),
        Scale(n_rows - 0.4, -1.8),
        (*edges, *dots, *texts),
        data=data.drop(columns=["place", "parent_place"]),
        bare=True,
    )
    return Chart(
        ((panel,),),
        alt=f"Tree of latent {latent} of width {width} with {counted(descendants, 'descendant')}",
        height=31.6 + 12.6 * (n_rows + 0.4),
        keys=tuple(_tree_keys(tree.theta, data["status"], bool(descendants or ancestors))),
        key_columns=7,
        caption=f"How one latent splits. Latent {latent} of width {width} and its descendants at θ = "
        f"{tree.theta:g} up to width {columns[-1]}: {descendants} latents, {leaves} of them without "
        "children. Line thickness shows the cosine between the decoder directions of parent and child; "
        "markers show the fate of each latent at the next width",
    )


def _tree_keys(theta: float, statuses: Collection[str], edges: bool) -> Iterable[Key]:
    for status in (*STATUSES, "leaf"):
        if status in set(statuses):
            text = "at the greatest width" if status == "leaf" else status
            yield Key(text, STATUS_COLOURS.get(status, "paper"), STATUS_MARKERS[status], edge="ink")
    for cosine in (theta, 1.0) if edges else ():
        yield Key(f"cosine {cosine:g}", _EDGE, dash="-", width=_thickness(cosine, theta))


def _thickness(cosine: float, theta: float) -> float:
    """Width of an edge in points, from theta (thin) to 1 (thick)."""
    return 0.6 + 2.4 * max(0.0, (cosine - theta) / max(1 - theta, 1e-9))


def _place(
    root: dict[str, Any], most_children: int | None, most_leaves: int | None
) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], float, int]]]:
    """Nodes, parents first, with a row for each leaf and parents in the middle; and what is hidden where."""
    nodes: list[dict[str, Any]] = []
    more: list[tuple[dict[str, Any], float, int]] = []
    next_row = 0

    def visit(node: dict[str, Any], parent: dict[str, Any] | None) -> float:
        nonlocal next_row
        placed = {
            "place": len(nodes),
            "parent_place": -1 if parent is None else parent["place"],
            "parent_width": 0 if parent is None else parent["width"],
            "parent": -1 if parent is None else parent["latent"],
            "width": node["width"],
            "latent": node["latent"],
            "cosine": node["cosine"],
            "status": node["status"],
            "n_children": len(node["children"]),
        }
        nodes.append(placed)
        rows: list[float] = []
        for child in node["children"][:most_children]:
            if most_leaves is not None and next_row >= most_leaves:
                break
            rows.append(visit(child, placed))
        hidden = len(node["children"]) - len(rows)
        if rows and hidden:
            more.append((placed, float(next_row), hidden))
        if not rows or hidden:
            next_row += 1
        placed["row"] = (rows[0] + rows[-1]) / 2 if rows else float(next_row - 1)
        return placed["row"]

    visit(root, None)
    return nodes, more


# ---------------------------------------------------------------------- meta-latents

_LEFT, _MIDDLE, _RIGHT = (2.9, 86.4), (119.5, 239.0), (267.8, 374.4)  # points, from left to right
_STEP, _GAP = 10.2, 7.2  # from member to member, and more between meta-latents


def related_latents(result: RelatedLatents, off: Collection[int] = ()) -> Chart:
    """Draw a latent with its meta-latents, and each of these with the latents that it is most active on.

    Parameters
    ----------
    result : RelatedLatents
        The graph.
    off : collection of int
        Meta-latents that are switched off: their lines are broken.

    Examples
    --------
    >>> related_latents(saekit.related_latents(meta, 6)).data.columns.tolist()
    ['meta_activation', 'activation', 'meta_latent', 'meta_label', 'width', 'latent', 'label']
    """
    nodes = result.nodes.set_index("node")
    centre = nodes.loc[0]
    edges = result.edges.join(nodes[["latent", "label"]].add_prefix("meta_"), on="meta_node")
    edges = edges.join(nodes[["width", "latent", "label"]], on="latent_node")
    own = edges[edges["latent_node"] == 0].set_index("meta_node")["activation"]
    members = edges[edges["latent_node"] != 0]
    alone = edges[~edges["meta_node"].isin(members["meta_node"])]  # of a meta-latent of this latent only
    rows = pd.concat([members, alone]).sort_values("meta_node", kind="stable", ignore_index=True)
    rows.insert(0, "meta_activation", rows["meta_node"].map(own))
    rank = np.unique(rows["meta_node"], return_inverse=True)[1]
    y = _STEP * np.arange(len(rows)) + _GAP * rank if len(rows) else np.zeros(1)
    middle = float(y[0] + y[-1]) / 2
    widths = set(nodes.loc[nodes["role"] != "meta-latent", "width"])
    links: list[Mark] = []
    texts: list[Mark] = _boxed(
        _LEFT, middle, f"{centre['width']}/{centre['latent']}", centre["label"], LATENT
    )
    for _, group in rows.groupby("meta_node"):
        first, here = group.iloc[0], float(y[group.index].mean())
        dash = "--" if first["meta_latent"] in off else "-"
        strength = 10 * first["meta_activation"] if dash == "-" else 1.0
        links.append(Link((_LEFT[1], middle), (_MIDDLE[0], here), META, strength, dash=dash))
        title = f"{first['meta_latent']} ({first['meta_activation']:.2f})"
        texts += _boxed(_MIDDLE, here, title, first["meta_label"], META)
        for member in group[group["latent_node"] != 0].itertuples():
            end, strength = float(y[member.Index]), 4 * member.activation if dash == "-" else 0.8
            links.append(Link((_MIDDLE[1], here), (_RIGHT[0], end), LATENT, strength, dash=dash))
            name = f"{member.latent}" if len(widths) == 1 else f"{member.width}/{member.latent}"
            text, room = f"{name}  {member.label}".rstrip(), _RIGHT[1] - _RIGHT[0] - 5
            named = member.width, member.latent
            texts.append(Text(_RIGHT[0] + 3.6, end, text, "start", size=6.5, room=room, goto=named))
            value = f"{member.activation:.2f}"
            texts.append(Text(PAGE - 2.2, end, value, "end", colour="quiet", size=6.5))
    height = max(float(y[-1]) + _STEP + 8.6, 28.0)
    top = (height - float(y[-1])) / 2
    numbers = ", ".join(f"{nodes.loc[node, 'latent']} ({value:.2f})" for node, value in own.items())
    panel = Panel(
        Scale(0, PAGE),
        Scale(height - top, -top),
        (*links, *texts),
        data=rows.drop(columns=["meta_node", "latent_node"]),
        bare=True,
    )
    return Chart(
        ((panel,),),
        alt=f"Graph of latent {centre['latent']} of width {centre['width']} with "
        + (f"its meta-latents {numbers}, and the latents of each" if numbers else "no meta-latents"),
        height=height,
        caption=f"The meta-latents of one latent. Latent {centre['latent']} of width {centre['width']} "
        "(left), its strongest meta-latents with their activations (middle), and the other latents on which "
        "each of these is most active (right). Line widths are proportional to activations. "
        f"Meta-latents: {numbers}",
    )


def _boxed(span: tuple[float, float], y: float, name: str, label: str, colour: str) -> list[Mark]:
    """A name and its label in a box."""
    half, shift = (10.8, 4.9) if label else (6.8, 0.0)
    middle, room = (span[0] + span[1]) / 2, span[1] - span[0] - 5.8
    found: list[Mark] = [
        Box(span[0], y - half, span[1], y + half, edge=colour),
        Text(middle, y - shift, name),
    ]
    return [*found, Text(middle, y + shift, label, size=6.5, room=room)] if label else found
