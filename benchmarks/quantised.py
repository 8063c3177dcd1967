"""How far fewer bits per weight change the bundled dictionaries.

    python benchmarks/quantised.py --widths 1152 4608 --rows 16

Encoder and decoder rows are rounded to int8 with one scale per row, to 12 bits in the same way, and to
half precision. Of each the script prints the relative change of FVU and CE degradation on held-out
tokens, and the largest change of a cosine between two decoder rows. The bounds for storing fewer bits
are 0.1% for the first two and 0.001 for the last; bundled rows are in half precision themselves.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
from torch import Tensor

import saekit


def rounded(rows: Tensor, bits: int) -> Tensor:
    """Rows as signed integers of so many bits, with one scale per row."""
    scale = rows.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (rows / scale.clamp(min=1e-30)).round() * scale


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda rows: rounded(rows, 8),
    "12 bits": lambda rows: rounded(rows, 12),
    "half": lambda rows: rows.half().float(),
}


def largest_cosine_change(before: Tensor, after: Tensor, block: int = 512) -> float:
    """The largest change of a cosine between two rows."""
    before, after = (rows / rows.norm(dim=1, keepdim=True) for rows in (before, after))
    return max(
        (before[start : start + block] @ before.T - after[start : start + block] @ after.T).abs().max().item()
        for start in range(0, len(before), block)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[1152, 4608])
    parser.add_argument("--rows", type=int, default=16, help="rows of 128 tokens for cross-entropy")
    options = parser.parse_args()
    store, model = saekit.embedded_store("held-out"), saekit.load_model()
    table = []
    for kind in ("relu", "batchtopk"):
        for width in options.widths:
            dictionary = saekit.load_family(kind).get(width, 0)
            others = {}
            for name, narrow in FORMATS.items():
                W_dec = narrow(dictionary.W_dec)
                W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
                others[name] = replace(dictionary, W_enc=narrow(dictionary.W_enc.T).T, W_dec=W_dec)
            everyone = [dictionary, *others.values()]
            fvu = [saekit.evaluate(each, store).fvu for each in everyone]
            ce = saekit.ce_degradation(model, everyone, store, max_rows=options.rows).frame["ce_degradation"]
            for place, (name, other) in enumerate(others.items(), start=1):
                table.append(
                    {"kind": kind, "width": width, "stored as": name}
                    | {"FVU change": fvu[place] / fvu[0] - 1, "CE change": ce.iloc[place] / ce.iloc[0] - 1}
                    | {"cosine change": largest_cosine_change(dictionary.W_dec, other.W_dec)}
                )
    print(pd.DataFrame(table).to_string(index=False, float_format="{:+.5f}".format))


if __name__ == "__main__":
    main()
