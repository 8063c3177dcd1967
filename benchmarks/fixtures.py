"""The recorded fixtures of foreign formats that the tests of the readers use, made again.

    python benchmarks/fixtures.py
    python benchmarks/fixtures.py --out /tmp/fixtures --only saelens/topk

The first call builds an environment with SAELens, dictionary_learning and sparsify
(requirements/peers.txt); the script then runs inside it. Files are written by the libraries' own code,
with random parameters; beside them, `expected.safetensors` holds random activations and what the library
computes of them (see the README that is written too). A second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import os
from importlib.metadata import version
from pathlib import Path

import environment

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "loading" / "formats" / "fixtures"
README = """\
# Recorded fixtures

Written by `python benchmarks/fixtures.py`, with {versions}
(`openai`, `batchtopk` and `connor_rob_hook_z` have no package; `gemma_scope` runs in SAELens' class).
All tensors are random numbers: nothing of any library or published SAE is in them, and they may be used
under this project's licence.

A case is a folder with files exactly as the library writes them, and `expected.safetensors`, in float32:

- `x` `[{n}, {d_in}]`, activations;
- `latents` `[{n}, d_sae]` and `x_hat` `[{n}, {d_in}]` (`[{n}, d_out]` of a transcoder), what the library
  computes of `x`, in its own units;
- `decoder_norm` `[d_sae]`, the norm of what a unit of each latent adds to `x_hat` (to the normalised
  `x_hat`, where each token is normalised on its own): times this, latents are those of unit decoder rows.

`dictionary_learning/batchtopk_unset` also has `latents_default`. What is to be refused has no such file.
`cases.json` names what to load of each case, and what a refusal must name. `saelens_older` holds what older
versions of SAELens wrote and computed themselves: `python benchmarks/fixtures_older.py`, which lists
them in `older.json`.

| case | loads | shows |
|---|---|---|
{table}
"""


def main() -> None:
    """Write every case, the list of them, and their table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FIXTURES)
    parser.add_argument("--only", help="cases whose names contain this; the list and table stay")
    parser.add_argument("--environment", type=Path, help=environment.enter.__doc__.splitlines()[0])
    options = parser.parse_args()
    os.environ["PYTHONHASHSEED"] = "0"  # SAELens writes some settings in the order of a set
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels need a GPU
    environment.enter(options.environment)

    import pandas as pd
    import recorded
    import recorded_dictionary_learning
    import recorded_repositories
    import recorded_saelens
    import recorded_sparsify

    cases = [
        *recorded_saelens.cases(),
        *recorded_dictionary_learning.cases(),
        *recorded_sparsify.cases(),
        *recorded_saelens.gemma_scope(),
        *recorded_repositories.openai(),
        *recorded_repositories.batchtopk(),
        *recorded_saelens.hook_z(),
    ]
    chosen = [case for case in cases if not options.only or options.only in case.name]
    rows = [recorded.record(case, options.out) for case in chosen]
    for row in rows:
        files = [file for file in (options.out / row["case"]).rglob("*") if file.is_file()]
        row["kB"] = sum(file.stat().st_size for file in files) / 1000
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    print(f"{table['kB'].sum():,.0f} kB in all")
    if options.only:
        return
    listed = {row["case"]: {"load": row["load"], "refused": row["refused"]} for row in rows}
    recorded.write_config(options.out / "cases.json", listed, indent=1)
    packages = ("sae-lens", "dictionary-learning", "eai-sparsify", "torch")
    text = README.format(
        versions=", ".join(f"{package} {version(package)}" for package in packages),
        n=recorded.TOKENS,
        d_in=recorded.D_IN,
        table="\n".join(f"| {case.name} | {case.load} | {case.shows} |" for case in cases),
    )
    (options.out / "README.md").write_text(text)


if __name__ == "__main__":
    main()
