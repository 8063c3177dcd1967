"""The splitting explorer: how a latent splits as dictionaries grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ipywidgets import widgets
from markupsafe import Markup

from saekit import html
from saekit.analysis.splitting import SplittingTree
from saekit.charts.chart import Chart
from saekit.charts.trees import splitting_tree
from saekit.identity import Identity
from saekit.widgets.base import Explorer, LatentState
from saekit.widgets.evidence import Evidence, require_evidence_of_each
from saekit.wording import SEPARATOR, share

N_STARTS = 12  # most-split latents to start from
MAX_ROWS = 12  # children in the table
MAX_NODES = 60  # nodes of the tree as text
MOST_CHILDREN, MOST_LEAVES = 8, 16  # of the tree that is drawn
STRETCH = 1.4  # of a drawing, which then has more room for words


class SplittingExplorer(Explorer):
    """Walk the splitting tree: the latent, its parent, its children and the tokens each fires on.

    Changing the width goes to the ancestor or the most similar descendant of that width, or to its
    most split latent if there is neither.

    Parameters
    ----------
    tree : SplittingTree
        From `saekit.splitting_tree`.
    evidence : mapping of int to Evidence
        About each width (`saekit.collect_evidence`).
    width, latent : int, optional
        Where to start; the most split latent if left out.

    Attributes
    ----------
    state : traitlets.HasTraits
        `width` and `latent`.

    Raises
    ------
    TypeError
        If there is no evidence.
    ValueError
        If a width of the tree has no evidence, or evidence about another dictionary.

    Examples
    --------
    >>> explorer = saekit.SplittingExplorer(saekit.splitting_tree(saes), evidence)
    >>> explorer.state.width
    16
    """

    def __init__(
        self,
        tree: SplittingTree,
        evidence: Mapping[int, Evidence] | None = None,
        *,
        width: int | None = None,
        latent: int | None = None,
    ) -> None:
        first = next(iter(tree.pairs.values())).small
        self._members = [first, *(pair.large for pair in tree.pairs.values())]
        evidence = require_evidence_of_each(evidence, self._members, "SplittingExplorer")
        self.tree, self.evidence = tree, evidence
        self._table = tree.table  # computed once
        self._starts = tree.most_split(N_STARTS)
        if width is None:
            width = int(self._starts["width"].iat[0]) if len(self._starts) else tree.widths[0]
        latent = self._most_split(width) if latent is None else latent
        super().__init__(LatentState(tree.widths, width, latent, follow=self._relative))

    def _build(self) -> list[widgets.Widget]:
        controls = self._latent_controls(self.tree.widths)
        self._up = self._button("↑ Parent", "Go to the parent", self._to_parent)
        self._down = self._button("↓ First child", "Go to the most similar child", self._to_child)
        self._head, self._drawing, self._relatives, self._text = (self._panel() for _ in range(4))
        starts = [
            (f"{row.children} children   width {row.width}   {self.evidence[row.width].label(row.latent)}",
             (row.width, row.latent))
            for row in self._starts.itertuples()
        ]  # fmt: skip
        self._start = self._list(
            "Most split", "Latents with the most children: choose one to go there", starts
        )
        self._start.layout.display = None if starts else "none"
        self._near = self._list("Go to", "Parent and children: choose one to go there", [])
        for chooser in (self._start, self._near):
            chooser.observe(lambda change: self._go(change["new"]), "value")
        lists = widgets.HBox([self._near, self._start], layout={"flex_flow": "row wrap"})
        bar = widgets.HBox([*controls, self._up, self._down], layout={"flex_flow": "row wrap"})
        return [bar, self._head, self._drawing, lists, self._relatives, self._text]

    def _render(self) -> None:
        width, latent = self.state.width, self.state.latent
        self._show_latent()
        parent, children = self.tree.parent(width, latent), self.tree.children(width, latent)
        self._up.disabled, self._down.disabled = parent is None, not children
        self._head.value = html.panel(self._header())
        self._drawing.value = html.panel(self._tree(as_image=False))
        self._relatives.value = html.panel(self._family(parent, children), self._as_text())
        self._text.value = html.panel(self.evidence[width].contexts_table(latent, 5))
        near = [("parent", parent)] if parent else []
        near += [("child", child) for child in children]
        self._fill(
            self._near,
            [
                (
                    f"{role}   cosine {node['cosine']:.2f}   {self._label(node)}",
                    (node["width"], node["latent"]),
                )
                for role, node in near
            ],
        )
        here = (width, latent)
        self._start.value = here if here in [value for _, value in self._start.options] else None

    def _parts(self) -> list[Markup]:
        width, latent = self.state.width, self.state.latent
        return [
            self._header(),
            self._tree(as_image=True),
            self._family(self.tree.parent(width, latent), self.tree.children(width, latent)),
            self._as_text(),
            self.evidence[width].contexts_table(latent, 5),
            self._starts_table(),
        ]

    # ------------------------------------------------------------------ pieces

    def _header(self) -> Markup:
        width, latent = self.state.width, self.state.latent
        path = [*reversed(self.tree.ancestors(width, latent)), {"width": width, "latent": latent}]
        crumbs = html.join((_numbered(node) for node in path), " → ")
        words = html.chips(self.evidence[width].words(latent, 5))
        title = html.markup("<h3>Latent {} of width {:,} {}</h3>", latent, width, words)
        path_and_status = html.markup("<p>Path (width/latent): {}. {}</p>", crumbs, self._status())
        return title + path_and_status + self.evidence[width].facts(latent) + self._base_rate()

    def _status(self) -> Markup:
        width, latent = self.state.width, self.state.latent
        node = self.tree.subtree(width, latent)
        sentences = []
        if self.tree.parent(width, latent) is None and width != self.tree.widths[0]:
            best = f"best cosine {node['cosine']:.2f}, under θ = {self.tree.theta:g}"
            sentences.append(html.markup("<b>Novel</b> at this width: no parent ({}).", best))
        becomes = {
            "split": html.markup("<b>Splits</b> into {} latents at the next width.", len(node["children"])),
            "identical": Markup("<b>Identical</b> at the next width: one child, each other's best match."),
            "refined": Markup("<b>Refined</b> at the next width: one child, which is not identical."),
            "lost": Markup("<b>Lost</b> at the next width: no child."),
            "leaf": "This is the greatest width.",
        }
        return html.join([*sentences, becomes[node["status"]]], " ")

    def _base_rate(self) -> Markup:
        """How common the latent's fate is, between widths and between seeds."""
        width = self.state.width
        if width not in self.tree.pairs:
            return Markup()
        status = self.tree.pairs[width].frame_small["status"].iat[self.state.latent]
        row = self._table[(self._table["small_width"] == width) & (self._table["measure"] == status)].iloc[0]
        null = f"between two seeds of width {width:,}: {share(row['null_small'])}"
        if row["null_small"] != row["null_small"]:
            null = f"there is no second seed of width {width:,} to compare with"
        fate = (
            f"Of the latents of width {width:,}, {share(row['share'])} are {status} at width "
            f"{int(row['large_width']):,} ({null})."
        )
        return html.markup("<p>{}</p>", html.small(fate))

    def _charts(self) -> dict[str, Chart]:
        width, latent = self.state.width, self.state.latent
        chart = splitting_tree(
            self.tree,
            width,
            latent,
            self._words,
            ancestors=self.tree.ancestors(width, latent)[::-1],
            most_children=MOST_CHILDREN,
            most_leaves=MOST_LEAVES,
        )
        n = len(self.tree.children(width, latent))
        alt = f"Splitting tree of latent {latent} of width {width}: {n} children, listed in the tables"
        return {"tree": replace(chart, alt=alt)}

    def _tree(self, *, as_image: bool) -> Markup:
        return self._charts()["tree"].html(as_image=as_image, stretch=STRETCH)

    def _identities(self) -> list[Identity]:
        return self._members

    def _words(self, width: int, latent: int) -> str:
        return SEPARATOR.join(word.strip() for word in self.evidence[width].words(latent)) or "dead"

    def _family(self, parent: dict[str, Any] | None, children: list[dict[str, Any]]) -> Markup:
        here = {"width": self.state.width, "latent": self.state.latent, "cosine": float("nan")}
        shown: list[tuple[str, Any]] = ([("parent", parent)] if parent else []) + [(html.bold("this"), here)]
        shown += [("child", child) for child in children[:MAX_ROWS]]
        rows = [
            (
                role,
                f"{node['width']:,}",
                html.goto(node["width"], node["latent"], html.bold(node["latent"])),
                f"{node['cosine']:.2f}" if node["cosine"] == node["cosine"] else "",
                html.chips(self.evidence[node["width"]].words(node["latent"])) or "dead",
                self.evidence[node["width"]].best_context(node["latent"]),
            )
            for role, node in shown
        ]
        hidden = len(children) - MAX_ROWS
        more = html.small(f" ({hidden} more children not shown)") if hidden > 0 else ""
        return html.table(
            ("", "width", "latent", "cosine", "fires on", "strongest example"),
            rows,
            numeric=(1, 2, 3),
            caption=html.join(["Parent and children", more]),
        )

    def _as_text(self) -> Markup:
        left = MAX_NODES

        def item(node: dict[str, Any]) -> Markup:
            nonlocal left
            left -= 1
            words = html.chips(self.evidence[node["width"]].words(node["latent"])) or "dead"
            children = [item(child) for child in node["children"] if left > 0]
            hidden = len(node["children"]) - len(children)
            if hidden:
                children.append(html.markup("<li>{} more</li>", hidden))
            below = html.markup("<ul>{}</ul>", html.join(children)) if children else ""
            return html.markup("<li>{} {}{}</li>", _numbered(node), words, below)

        root = self.tree.subtree(self.state.width, self.state.latent)
        if not root["children"]:
            return Markup()
        return html.details("The whole tree as text", html.markup("<ul>{}</ul>", item(root)))

    def _starts_table(self) -> Markup:
        rows = [
            (
                str(row.children),
                f"{row.width:,}",
                html.goto(row.width, row.latent),
                html.chips(self.evidence[row.width].words(row.latent)) or "dead",
            )
            for row in self._starts.itertuples()
        ]
        header = ("children", "width", "latent", "fires on")
        if not rows:
            return Markup()
        return html.details("Most split latents", html.table(header, rows, numeric=(0, 1, 2)))

    def _label(self, node: dict[str, Any]) -> str:
        return f"width {node['width']}   {self.evidence[node['width']].label(node['latent'])}"

    # ------------------------------------------------------------------ actions

    def _to_parent(self) -> None:
        parent = self.tree.parent(self.state.width, self.state.latent)
        if parent is not None:
            self.show(width=parent["width"], latent=parent["latent"])

    def _to_child(self) -> None:
        children = self.tree.children(self.state.width, self.state.latent)
        if children:
            self.show(width=children[0]["width"], latent=children[0]["latent"])

    def _most_split(self, width: int) -> int:
        found = self.tree.most_split(1, width=width)
        return int(found["latent"].iat[0]) if len(found) else 0

    def _relative(self, old_width: int, latent: int, width: int) -> int:
        for ancestor in self.tree.ancestors(old_width, latent):
            if ancestor["width"] == width:
                return ancestor["latent"]
        node = {"width": old_width, "latent": latent}
        while node["width"] < width:
            children = self.tree.children(node["width"], node["latent"])
            if not children:
                break
            node = children[0]
        return node["latent"] if node["width"] == width else self._most_split(width)


def _numbered(node: dict[str, Any]) -> Markup:
    width, latent = node["width"], node["latent"]
    return html.goto(width, latent, html.markup("{:,}/<b>{}</b>", width, latent))
