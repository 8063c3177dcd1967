"""Interactive explorers of results for notebooks, with a static form for pages that run nothing."""

from saekit.widgets.atlas import Atlas, build_atlas
from saekit.widgets.circuit_explorer import CircuitExplorer
from saekit.widgets.edit_explorer import EditExplorer
from saekit.widgets.evidence import Evidence, collect_evidence
from saekit.widgets.latent_explorer import LatentExplorer
from saekit.widgets.latent_page import latent_page
from saekit.widgets.meta_explorer import MetaExplorer
from saekit.widgets.novelty_explorer import NoveltyExplorer
from saekit.widgets.probing_explorer import ProbingExplorer
from saekit.widgets.splitting_explorer import SplittingExplorer
from saekit.widgets.stitching_explorer import StitchingExplorer
from saekit.widgets.workspace import Workspace, explore
from saekit.widgets.world_explorer import WorldExplorer

__all__ = [
    "Atlas",
    "CircuitExplorer",
    "EditExplorer",
    "Evidence",
    "LatentExplorer",
    "MetaExplorer",
    "NoveltyExplorer",
    "ProbingExplorer",
    "SplittingExplorer",
    "StitchingExplorer",
    "Workspace",
    "WorldExplorer",
    "build_atlas",
    "collect_evidence",
    "explore",
    "latent_page",
]
