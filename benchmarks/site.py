"""What a static site costs: pages per second, bytes per page, and memory as the pages grow in number.

    python benchmarks/site.py                                  # the bundled relu 576
    python benchmarks/site.py --synthetic 49152 --pages 4000   # a dictionary that learnt nothing

The atlas is built first and does not count. Memory is what the process holds beside that, at its peak,
after each quarter of the pages: it should not grow with them.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import saekit
from saekit.widgets import Atlas, build_atlas

TOKENS, L0 = 8192, 32  # of the synthetic family


def main() -> None:
    """Write a site to a temporary folder, in four parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="relu")
    parser.add_argument("--width", type=int, default=576, help="width of the bundled family")
    parser.add_argument("--synthetic", type=int, metavar="WIDTH", help="a random dictionary instead")
    parser.add_argument("--pages", type=int, help="first latents only")
    options = parser.parse_args()
    if options.synthetic:
        width, atlas = options.synthetic, synthetic(options.synthetic)
    else:
        width, atlas = options.width, bundled(options.family, options.width)
    atlas.table(width)
    n = options.pages or width
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for place, latents in enumerate(np.array_split(np.arange(n), 4)):
            before, wall, cpu = held(), time.perf_counter(), time.process_time()
            with Peak() as peak:
                site = Path(folder) / str(place)
                saekit.export_site(atlas, site, widths=[width], latents=latents, progress=False)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            sizes = np.array([page.stat().st_size for page in site.glob("*/*/*.html")])
            index = sum(file.stat().st_size for file in site.glob("*/search-*.js"))
            rows.append(
                {
                    "pages": len(sizes),
                    "pages_per_s": len(sizes) / wall,
                    "pages_per_cpu_s": len(sizes) / cpu,
                    "kB_mean": sizes.mean() / 1e3,
                    "kB_max": sizes.max() / 1e3,
                    "index_B_per_latent": index / len(sizes),
                    "peak_MB_beside_atlas": (peak.value - before) / 1e6,
                }
            )
    print(pd.DataFrame(rows).round(1).to_string(index=False))
    print(f"peak of the whole process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def bundled(name: str, width: int) -> Atlas:
    """The atlas of one width of a bundled family, with its seeds."""
    whole = saekit.load_family(name)
    family = saekit.Family(whole.get(width, seed) for seed in whole.seeds(width))
    model = saekit.load_model()
    return build_atlas(family, saekit.embedded_store("held-out", model=model), model, progress=False)


def synthetic(width: int) -> Atlas:
    """The atlas of a random dictionary, about `L0` of whose latents are active per token."""
    model = saekit.load_model()
    store = saekit.embedded_store("held-out", n_tokens=TOKENS, model=model)
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(width, store.d_in, generator=generator), dim=1)
    sample = store.read(store.positions[:512]).float()
    centre = sample.mean(0)
    threshold = ((sample - centre) @ rows.T).flatten().topk(L0 * len(sample)).values[-1]
    sae = saekit.Dictionary(
        W_enc=rows.T.contiguous(),
        b_enc=-(rows @ centre),
        W_dec=rows,
        b_dec=centre,
        threshold=threshold.expand(width).clone(),
        info={"kind": "relu", "seed": 0, "hook_point": store.hook_point},
    )
    family = saekit.Family([sae])
    return build_atlas(
        family, store, vocabulary=model.tokenizer, keep=False, progress=False, allow_mismatch=True
    )


def held() -> int:
    """Bytes of memory that the process holds now, without pages of files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


class Peak:
    """The most memory that the process holds within a block, sampled."""

    def __enter__(self) -> Peak:
        self.value, self._done = held(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.value = max(self.value, held())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


if __name__ == "__main__":
    main()
