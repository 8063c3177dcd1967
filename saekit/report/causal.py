"""The section of the canonicity report on causes: do the latents matter to what the model says?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from saekit import plots
from saekit.analysis.edits import RANDOM, Edits
from saekit.analysis.effects.circuits import CircuitComparison
from saekit.analysis.effects.nodes import NodeEffects
from saekit.family import Family
from saekit.figures import Plot
from saekit.report.page import Section, Table
from saekit.wording import fixed, listed, number, percent

METHOD_NAMES = plots.effects.METHOD_NAMES
ERROR_STYLES = plots.effects.ERROR_STYLES
KINDS: Mapping[str, type] = {"effects": NodeEffects, "circuits": CircuitComparison, "edits": Edits}
NOTHING = 0.5  # mean of cause and isolation where everything is left as it is


@dataclass(frozen=True, eq=False)
class Causes:
    """Results on a family's causes, each checked to be of its dictionaries.

    Attributes
    ----------
    effects : sequence of NodeEffects
        Effects of nodes.
    circuits : sequence of CircuitComparison
        Circuits, one comparison per task.
    edits : sequence of Edits
        Edits of facts.
    """

    effects: Sequence[NodeEffects] = ()
    circuits: Sequence[CircuitComparison] = ()
    edits: Sequence[Edits] = ()

    def require(self, family: Family) -> None:
        """Refuse results of another kind, or of none of the family's dictionaries.

        Raises
        ------
        TypeError
            If one is not the result that its name says.
        ValueError
            If one is of none of the family's dictionaries.
        """
        own = {member.identity for member in family}
        for name, kind in KINDS.items():
            found = getattr(self, name)
            if not isinstance(found, Sequence) or not all(isinstance(one, kind) for one in found):
                shown = [type(one).__name__ for one in (found if isinstance(found, Sequence) else [found])]
                raise TypeError(f"{name} must be a sequence of {kind.__name__}, found {listed(shown)}.")
            for one in found:
                of = (one.dictionary,) if isinstance(one, Edits) else one.dictionaries
                if not own.intersection(of):
                    raise ValueError(f"The {name} are of {listed(of)}, none of which is in {family}.")

    def section(self) -> Section:
        """What the results say, their figures and tables."""
        parts: list[Table | tuple[str, Plot]] = []
        says: list[str] = []
        value = unit = ""
        if self.circuits:
            found = _circuit_rows(self.circuits)
            says += [_circuit_sentence(one, found) for one in self.circuits]
            for place, compared in enumerate(self.circuits):
                name = f"causes_circuits_{place}" if place else "causes_circuits"
                parts.append((name, plots.circuits_by_dictionary(compared)))
            parts.append(_circuit_table(found, self.circuits[0].target))
            value, unit = _circuit_value(self.circuits[0], found)
        if self.effects:
            for place, one in enumerate(self.effects):
                if len(one.agreement):
                    name = f"causes_effects_{place}" if place else "causes_effects"
                    parts.append((name, plots.effects_agreement(one)))
            table = _effects_table(self.effects)
            says.append(_effects_sentence(table.frame))
            parts.append(table)
        for place, edits in enumerate(self.edits):
            name = f"causes_edits_{place}" if place else "causes_edits"
            says.append(_edits_sentence(edits))
            parts += [(name, plots.edits_by_method(edits)), _edits_table(f"{name}_table", edits)]
            if not value:
                best = edits.table["disentangle"].max()
                value, unit = (
                    fixed(best),
                    (
                        "mean of cause and isolation of the best edit of a fact (leaving everything as it "
                        f"is: {NOTHING})"
                    ),
                )
        return Section(
            title="Causes",
            question="Does it matter to the model?",
            says=" ".join(says),
            parts=parts,
            numbers={
                name: [one.summary for one in getattr(self, name)]
                for name in ("circuits", "effects", "edits")
            },
            value=value,
            unit=unit,
        )


# ---------------------------------------------------------------------- circuits


def _circuit_rows(comparisons: Sequence[CircuitComparison]) -> pd.DataFrame:
    """One row per task, dictionary and treatment of errors: the smallest circuit that reaches the target."""
    rows = []
    for compared in comparisons:
        table = compared.frame.set_index("name")
        for (name, errors), circuit in compared.circuits.items():
            needed = circuit.nodes_for(compared.target)
            at = circuit.frame[circuit.frame["n_nodes"] == min(needed, circuit.frame["n_nodes"].iloc[-1])]
            row: dict[str, Any] = {"task": compared.prompts, "dictionary": name, "errors": errors}
            row |= {"nodes": needed, "of": len(circuit.nodes)}
            row |= {
                column: at[column].iloc[0] if column in at else np.nan
                for name in ("faithfulness", "completeness", "random_faithfulness", "random_completeness")
                for column in (name, f"{name}_low", f"{name}_high")
            }
            rows.append(row | {"error_share": table.loc[name, "error_share"]})
    return pd.DataFrame(rows)


def _widest(compared: CircuitComparison, found: pd.DataFrame) -> pd.Series:
    """The row of the widest dictionary, with the first treatment of errors."""
    table = compared.frame
    name = table.loc[table["width"].idxmax(), "name"]
    chosen = found[(found["task"] == compared.prompts) & (found["dictionary"] == name)]
    return chosen.iloc[0]


def _beside_random(row: pd.Series) -> str:
    if np.isnan(row["random_faithfulness"]):
        return "no random nodes were measured beside them"
    return f"as many random nodes restore {percent(row['random_faithfulness'])}"


def _circuit_sentence(compared: CircuitComparison, found: pd.DataFrame) -> str:
    row, metric = _widest(compared, found), compared.metric.replace("_", " ")
    if np.isinf(row["nodes"]):
        first = f"no circuit of {row['dictionary']} restores {percent(compared.target)} of the {metric}"
    else:
        first = (
            f"{row['nodes']:,.0f} of {row['of']:,} nodes of {row['dictionary']} restore "
            f"{percent(row['faithfulness'])} of the {metric} (95% interval "
            f"{percent(row['faithfulness_low'])} to {percent(row['faithfulness_high'])}); "
            f"{_beside_random(row)}"
        )
    shares = compared.frame.set_index("name")["error_share"]
    least, most = percent(shares.min()), percent(shares.max())
    span = least if least == most else f"{least} to {most}"
    return f"On {compared.prompts}, {first}. SAE errors have {span} of all effects."


def _circuit_value(compared: CircuitComparison, found: pd.DataFrame) -> tuple[str, str]:
    row = _widest(compared, found)
    metric = compared.metric.replace("_", " ")
    value = "never" if np.isinf(row["nodes"]) else f"{row['nodes']:,.0f}"
    return value, (
        f"nodes of {row['dictionary']} restore {percent(compared.target)} of the {metric} "
        f"({compared.prompts}; {_beside_random(row)})"
    )


def _interval(frame: pd.DataFrame, name: str, write: Any) -> list[str]:
    """A number with its 95% interval, as text."""
    columns = (frame[name], frame[f"{name}_low"], frame[f"{name}_high"])
    return [
        write(value) if np.isnan(low) else f"{write(value)} ({write(low)} to {write(high)})"
        for value, low, high in zip(*columns, strict=True)
    ]


def _circuit_table(found: pd.DataFrame, target: float) -> Table:
    shown = {
        "task": "task",
        "dictionary": "dictionary",
        "treatment": "errors",
        "needed": f"nodes for {percent(target)}",
        "of": "of",
        "faithful": "faithfulness",
        "random": "of random nodes",
        "complete": "without them",
        "random_without": "without random nodes",
        "error_share": "share of errors",
    }
    frame = found.assign(
        treatment=found["errors"].map({name: style[0] for name, style in ERROR_STYLES.items()}),
        needed=["never" if np.isinf(n) else f"{n:,.0f}" for n in found["nodes"]],
        faithful=_interval(found, "faithfulness", percent),
        random=_interval(found, "random_faithfulness", percent),
        complete=_interval(found, "completeness", percent),
        random_without=_interval(found, "random_completeness", percent),
    )
    return Table(
        "causes_circuits_table",
        "The smallest measured circuit that reaches the target, or all nodes where none does. Faithfulness: "
        "share of the model's effect that these nodes alone restore, with all others at their baseline; "
        "beside it as many random nodes, and what is left without either. Share of errors: of the absolute "
        "effects of all nodes. In brackets, 95% bootstrap intervals over prompts.",
        frame,
        shown,
    )


# ---------------------------------------------------------------------- effects


def _effects_table(effects: Sequence[NodeEffects]) -> Table:
    rows = []
    for one in effects:
        names = dict(zip(one.places, map(str, one.dictionaries), strict=True))
        keys = ["place", "kind", "method"]
        agreement = one.agreement.set_index(keys) if len(one.agreement) else one.agreement
        for sums in one.by_kind.to_dict("records"):
            for method in (method for method in METHOD_NAMES if method in one.methods):
                row = {"task": one.prompts.name, "dictionary": names[sums["place"]], "kind": sums["kind"]}
                row |= {"method": METHOD_NAMES[method], "sum": sums[method], "total": sums["total"]}
                key = (sums["place"], sums["kind"], method)
                known = agreement.loc[key] if key in agreement.index else {}
                for name in ("", "_low", "_high"):
                    row[f"correlation{name}"] = known.get(name.removeprefix("_") or "correlation", np.nan)
                rows.append(row)
    frame = pd.DataFrame(rows)
    return Table(
        "causes_effects_table",
        "Effects of single nodes on the metric, summed over latents or errors and averaged over prompts, "
        "next to the change with all nodes at their baseline; and Pearson's correlation with exact effects "
        "on a sample of nodes, where these were measured, with the 95% bootstrap interval over prompts.",
        frame.assign(agreement=_interval(frame, "correlation", fixed)),
        {
            "task": "task",
            "dictionary": "dictionary",
            "kind": "nodes",
            "method": "method",
            "sum": "sum of effects",
            "total": "all at once",
            "agreement": "correlation with exact",
        },
    )


def _effects_sentence(frame: pd.DataFrame) -> str:
    known = frame[(frame["kind"] == "latent") & frame["correlation"].notna()]
    if known.empty:
        return "No exact effects were measured beside the estimates."
    worst, best = (known.loc[known["correlation"].agg(f"idx{end}")] for end in ("min", "max"))
    return (
        f"Estimated effects of latents correlate with exact ones with {fixed(worst['correlation'])} "
        f"({worst['method']}, {worst['task']}) to {fixed(best['correlation'])} ({best['method']}, "
        f"{best['task']})."
    )


# ---------------------------------------------------------------------- edits


def _edits_sentence(edits: Edits) -> str:
    table = edits.table
    over = table[table["disentangle_low"] > NOTHING]
    at_random = table[table["method"] == RANDOM].set_index("n")["cause"]
    swaps = table[(table["method"] == "latents") & table["n"].isin(at_random.index)]
    latents = swaps.loc[swaps["cause"].idxmax()]
    clear = (
        "no method separates one fact from the others (no interval of the mean of cause and isolation is "
        f"over {NOTHING}, which leaving everything as it is reaches)"
        if over.empty
        else f"{listed([f'{row.method} ({row.n})' for row in over.itertuples()])} separate one fact from the "
        f"others (interval of the mean of cause and isolation over {NOTHING})"
    )
    return (
        f"Swapping {latents['n']} latents of {edits.dictionary} changes {percent(latents['cause'])} of the "
        f"facts that it should ({percent(latents['cause_low'])} to {percent(latents['cause_high'])}), a "
        f"random direction as long {percent(at_random[latents['n']])}; {clear}."
    )


def _edits_table(name: str, edits: Edits) -> Table:
    frame = edits.table
    measures = {"cause": percent, "isolation": percent, "disentangle": fixed, "damage": number}
    texts = {f"{each}_text": _interval(frame, each, write) for each, write in measures.items()}
    return Table(
        name,
        f"Edits of facts about {len(edits.entities)} entities that the model knows, by latents of "
        f"{edits.dictionary} and by other means. Cause: edits after which the edited attribute is the other "
        "entity's; isolation: other attributes that stay; disentangle: their mean. Damage: increase in loss "
        "on unrelated text, in nats per token. In brackets, 95% bootstrap intervals over pairs of entities, "
        "or over rows of text.",
        frame.assign(**texts),
        {
            "method": "method",
            "n": "components",
            "norm": "size of the change",
            **{f"{each}_text": each for each in measures},
        },
    )
