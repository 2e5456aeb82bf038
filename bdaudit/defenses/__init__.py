"""Post-training backdoor defences: what a cleaned model may have been through.

An audit never runs these on the model it judges. They make surrogates of it from the suspected
original (`bdaudit.relatives.surrogates`), and put models of a known history through the same
treatment.
"""

from bdaudit.defenses.ban import BanConfig, ban_finetune
from bdaudit.defenses.fine_pruning import FinePruningConfig, fine_prune
from bdaudit.defenses.finetune import FinetuneConfig, finetune
from bdaudit.defenses.fst import FstConfig, feature_shift_tune
from bdaudit.defenses.ft_sam import FtSamConfig, ft_sam
from bdaudit.defenses.nc_unlearning import NcUnlearnConfig, nc_unlearn
from bdaudit.defenses.sau import SauConfig, shared_adversarial_unlearn
from bdaudit.defenses.tsbd import TsbdConfig, tsbd
from bdaudit.defenses.tuning import TuningConfig, suited_tuning

__all__ = [
    "BanConfig",
    "FinePruningConfig",
    "FinetuneConfig",
    "FstConfig",
    "FtSamConfig",
    "NcUnlearnConfig",
    "SauConfig",
    "TsbdConfig",
    "TuningConfig",
    "ban_finetune",
    "feature_shift_tune",
    "fine_prune",
    "finetune",
    "ft_sam",
    "nc_unlearn",
    "shared_adversarial_unlearn",
    "suited_tuning",
    "tsbd",
]
