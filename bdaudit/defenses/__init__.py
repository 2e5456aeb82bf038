"""Post-training backdoor defences: what a cleaned model may have been through.

An audit never runs these on the model it judges. They make surrogates of it from the suspected
original (`bdaudit.surrogates`), and put models of a known history through the same treatment.
"""

from bdaudit.defenses.fine_pruning import FinePruningConfig, fine_prune
from bdaudit.defenses.finetune import FinetuneConfig, finetune
from bdaudit.defenses.fst import FstConfig, feature_shift_tune
from bdaudit.defenses.ft_sam import FtSamConfig, ft_sam
from bdaudit.defenses.tuning import TuningConfig

__all__ = [
    "FinePruningConfig",
    "FinetuneConfig",
    "FstConfig",
    "FtSamConfig",
    "TuningConfig",
    "feature_shift_tune",
    "fine_prune",
    "finetune",
    "ft_sam",
]
