"""Every defence by the name it has on the command line and in files.

One line for each; what they share is their call, so that whoever runs one need not know which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bdaudit.defenses.anp import AnpConfig, prune_perturbed_neurons
from bdaudit.defenses.ban import BanConfig, ban_finetune
from bdaudit.defenses.clp import ClpConfig, prune_by_lipschitz
from bdaudit.defenses.etf import EtfConfig, tune_behind_simplex
from bdaudit.defenses.fine_pruning import FinePruningConfig, fine_prune
from bdaudit.defenses.finetune import FinetuneConfig, finetune
from bdaudit.defenses.fst import FstConfig, feature_shift_tune
from bdaudit.defenses.ft_sam import FtSamConfig, ft_sam
from bdaudit.defenses.i_bau import IBauConfig, unlearn_worst_trigger
from bdaudit.defenses.mm_bm import MmBmConfig, bound_activations
from bdaudit.defenses.nad import NadConfig, distil_attention
from bdaudit.defenses.nc_unlearning import NcUnlearnConfig, nc_unlearn
from bdaudit.defenses.pam import PamConfig, minimise_along_path
from bdaudit.defenses.rnp import RnpConfig, prune_unrecovered_neurons
from bdaudit.defenses.sau import SauConfig, shared_adversarial_unlearn
from bdaudit.defenses.seam import SeamConfig, forget_and_recover
from bdaudit.defenses.tsbd import TsbdConfig, tsbd
from bdaudit.errors import ConfigError, unknown_key
from bdaudit.foundation.plain_settings import Setting, config_from, flat_settings
from bdaudit.foundation.progress import Steps

__all__ = [
    "DEFENSES",
    "Defense",
    "defense_config",
    "defense_name",
    "defense_of",
    "flat_settings",
]


@dataclass(frozen=True, slots=True)
class Defense:
    """One defence.

    Attributes:
        name: Its key in `DEFENSES`.
        title: What people read.
        config_type: The dataclass of its settings; built without arguments it has the defaults.
        run: Called as `run(classifier, images, labels, config=..., generator=...)`.
        on_detectors: Whether it can be run on an object detector at all.
    """

    name: str
    title: str
    config_type: type
    run: Callable[..., Steps[nn.Module]]
    on_detectors: bool = True


_ALL = (
    Defense("finetune", "fine-tuning", FinetuneConfig, finetune),
    Defense("ft-sam", "FT-SAM", FtSamConfig, ft_sam),
    Defense("fine-pruning", "fine-pruning", FinePruningConfig, fine_prune),
    Defense("fst", "FST", FstConfig, feature_shift_tune, on_detectors=False),
    Defense("nc-unlearn", "NC unlearning", NcUnlearnConfig, nc_unlearn, on_detectors=False),
    Defense("sau", "SAU", SauConfig, shared_adversarial_unlearn),
    Defense("tsbd", "TSBD", TsbdConfig, tsbd),
    Defense("ban", "BAN fine-tuning", BanConfig, ban_finetune),
    Defense("nad", "NAD", NadConfig, distil_attention),
    Defense("anp", "ANP", AnpConfig, prune_perturbed_neurons),
    Defense("i-bau", "i-BAU", IBauConfig, unlearn_worst_trigger),
    Defense("pam", "PAM", PamConfig, minimise_along_path, on_detectors=False),
    Defense("clp", "CLP", ClpConfig, prune_by_lipschitz),
    Defense("rnp", "RNP", RnpConfig, prune_unrecovered_neurons),
    Defense("seam", "SEAM", SeamConfig, forget_and_recover),
    Defense("etf-ft", "ETF-FT", EtfConfig, tune_behind_simplex, on_detectors=False),
    Defense("mm-bm", "MM-BM", MmBmConfig, bound_activations),
)

DEFENSES: Mapping[str, Defense] = {defense.name: defense for defense in _ALL}


_ALSO = {"ft": "finetune", "fp": "fine-pruning", "nc": "nc-unlearn"}
"""What papers and tables call a defence, beside its title."""


def defense_name(text: str) -> str:
    """Return the name of a defence in `DEFENSES`, from the name, its title, or what papers say.

    "ft", "fine-tuning" and "finetune" are one, and so are "FT-SAM" and "ft_sam".

    Raises:
        ConfigError: There is none; the nearest known name is given.
    """
    known = {_squeezed(one.title): one.name for one in _ALL}
    known |= {_squeezed(name): name for name in DEFENSES}
    found = (_ALSO | known).get(_squeezed(text))
    if found is None:
        raise ConfigError(f"{unknown_key(text, DEFENSES)} (`bdaudit defend --list` shows all)")
    return found


def _squeezed(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def defense_of(config: object) -> Defense:
    """Return the defence that `config` holds the settings of.

    Raises:
        ConfigError: It is no defence's.
    """
    found = next((one for one in DEFENSES.values() if one.config_type is type(config)), None)
    if found is None:
        raise ConfigError(f"expected the settings of a defence, got {type(config).__name__}")
    return found


def defense_config(name: str, settings: Mapping[str, Setting] | None = None) -> Any:
    """Build the settings of a defence from plain data, as a TOML or JSON file holds it.

    Args:
        name: A key of `DEFENSES`.
        settings: Those that differ from the defaults. A nested group is a table, or is written
            with dots: `{"tuning": {"n_epochs": 3}}` and `{"tuning.n_epochs": 3}` say the same, so
            that what `flat_settings` gives is read back.

    Returns:
        An instance of the defence's `config_type`.

    Raises:
        ConfigError: No such defence or setting, a wrong type, or a value out of range.
    """
    if name not in DEFENSES:
        raise ConfigError(f"defense: {unknown_key(name, DEFENSES)}")
    return config_from(DEFENSES[name].config_type, settings or {}, f"defense {name}")
