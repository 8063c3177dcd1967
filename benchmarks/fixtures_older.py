"""Recorded fixtures of older versions of SAELens, each written and computed by the version itself.

    python benchmarks/fixtures_older.py
    python benchmarks/fixtures_older.py --out /tmp/fixtures --versions 6.1.0,6.13.0

Each version is installed without dependencies into a folder of its own, beside the peers' environment
(requirements/peers.txt) in which the script runs. Cases and `expected.safetensors` are as
`benchmarks/fixtures.py` describes them; `older.json` lists them. A second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import environment
from fixtures import FIXTURES

from saekit.files import home, write_json

VERSIONS = ("6.1.0", "6.13.0", "6.14.0")  # the first, and those around what changed
LIST = "older.json"


def main() -> None:
    """Install each version, and let it write its cases in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FIXTURES)
    parser.add_argument("--versions", type=lambda text: text.split(","), default=VERSIONS)
    parser.add_argument("--environment", type=Path, help="folder of the peers' environment")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    environment.enter(options.environment)
    if options.write:
        print(json.dumps([record(case, options.out) for case in cases(options.write)]))
        return
    listed = {}
    for version in options.versions:
        paths = [str(install(version)), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, __file__, "--write", version, "--out", str(options.out)]
        command += ["--environment", sys.prefix]
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        for row in json.loads(done.stdout.splitlines()[-1]):
            print(f"{row['case']}: {row['active']:.3f} of the latents active")
            listed[row["case"]] = {"load": row["load"], "refused": row["refused"]}
    write_json(options.out / LIST, listed)


def install(version: str) -> Path:
    """The folder of a version of SAELens, installed into it without dependencies."""
    folder = home() / "peers" / f"sae-lens-{version}"
    if not (folder / "sae_lens").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", str(folder), f"sae-lens=={version}"], check=True)
    return folder


def record(case: Any, out: Path) -> dict[str, Any]:
    """Write a case, see `recorded.record`."""
    import recorded

    return recorded.record(case, out)


def cases(version: str) -> Iterator[Any]:
    """Checkpoints and finished SAEs of every training class, by the version that is on the path."""
    import sae_lens
    import torch
    from recorded import D_IN, WIDTH, Case, K, Run, fill
    from sae_lens.saes.sae import SAE, SAEMetadata, TrainingSAE

    assert sae_lens.__version__ == version, f"expected SAELens {version}, found {sae_lens.__version__}"

    def make(kind: str, generator: torch.Generator, settings: dict[str, Any]) -> Any:
        metadata = SAEMetadata(model_name="gpt2-small", hook_name="blocks.8.hook_resid_pre", context_size=128)
        config = getattr(sae_lens, f"{kind}TrainingSAEConfig")
        sae = getattr(sae_lens, f"{kind}TrainingSAE")(
            config(d_in=D_IN, d_sae=WIDTH, metadata=metadata, **settings)
        )
        fill(sae, generator, topk_threshold=0.9)
        return sae

    def usable(folder: Path) -> Any:
        """A checkpoint; a BatchTopK one as its version converts it for use."""
        sae = TrainingSAE.load_from_disk(folder)
        if not hasattr(sae, "topk_threshold"):
            return sae
        with tempfile.TemporaryDirectory() as converted:
            sae.save_inference_model(converted)
            return SAE.load_from_disk(converted)

    def run(sae: Any) -> Run:
        decoder = sae.W_dec.detach()
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            decoder = decoder / decoder.norm(dim=1, keepdim=True)
        return Run(sae.encode, sae.decode, decoder)

    def checkpoint(kind: str, settings: dict[str, Any]) -> Case:
        def write(folder: Path, generator: torch.Generator) -> Run:
            make(kind, generator, settings).save_model(folder)
            return run(usable(folder))

        shows = f"a training checkpoint of SAELens {version}"
        return Case(f"saelens_older/{version}_checkpoint_{kind.lower()}", shows, write)

    def finished(kind: str, settings: dict[str, Any]) -> Case:
        def write(folder: Path, generator: torch.Generator) -> Run:
            make(kind, generator, settings).save_inference_model(folder)
            return run(SAE.load_from_disk(folder))

        shows = f"an SAE that SAELens {version} has finished"
        return Case(f"saelens_older/{version}_finished_{kind.lower()}", shows, write)

    for kind, settings in (
        ("BatchTopK", {"k": K}),
        ("TopK", {"k": K}),
        ("Standard", {}),
        ("JumpReLU", {}),
        ("Gated", {}),
    ):
        yield checkpoint(kind, settings)
        if kind in ("BatchTopK", "TopK"):
            yield finished(kind, settings)


if __name__ == "__main__":
    main()
