"""Judge the judge: verdicts of many audits against what the models are known to be.

Pure functions of finished records; nothing is measured here. A verdict is judged anew from its
record, so other limits, or the attacks of one kind alone, cost no second audit.
"""

from bdaudit.benchmarking.calibration import SearchSpace, calibrate
from bdaudit.benchmarking.cases import Audited, case_key, describe_case
from bdaudit.benchmarking.summary import summarise

__all__ = ["Audited", "SearchSpace", "calibrate", "case_key", "describe_case", "summarise"]
