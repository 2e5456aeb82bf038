"""What an audit looks for under the names that other people's catalogues give it.

MITRE ATLAS, the Common Weakness Enumeration and OWASP's list for machine learning. Each entry says
what it is here; nothing is listed that only sounds alike. The same table is in docs/taxonomies.md,
and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bdaudit.foundation.modes import Mode
from bdaudit.records import AuditRecord
from bdaudit.report.wording import find_decisive

__all__ = ["ENTRIES", "TAXONOMIES", "Entry", "Finding", "Taxonomy", "access_of", "entries_of"]

Finding = Literal["active", "dormant", "inconclusive", "policy", "lost"]
"""What an audit may have to say: its verdict, that the policy forbids the release, or that a
trigger which the policy wants is lost."""


@dataclass(frozen=True)
class Taxonomy:
    """A catalogue.

    Attributes:
        name: As it calls itself in short.
        version: The edition that identifiers and names were taken from.
        title: Its full name.
        organization: Who keeps it.
        url: Where it is read.
        entry_url: Where an entry is read, with its number for `{}`.
    """

    name: str
    version: str
    title: str
    organization: str
    url: str
    entry_url: str


ATLAS = Taxonomy(
    name="MITRE ATLAS",
    version="2026.07",
    title="Adversarial Threat Landscape for Artificial-Intelligence Systems",
    organization="MITRE",
    url="https://atlas.mitre.org/",
    entry_url="https://atlas.mitre.org/techniques/{}",
)
CWE = Taxonomy(
    name="CWE",
    version="4.17",
    title="Common Weakness Enumeration",
    organization="MITRE",
    url="https://cwe.mitre.org/",
    entry_url="https://cwe.mitre.org/data/definitions/{}.html",
)
OWASP = Taxonomy(
    name="OWASP ML Top 10",
    version="2023",
    title="OWASP Machine Learning Security Top Ten",
    organization="OWASP",
    url="https://owasp.org/www-project-machine-learning-security-top-10/",
    entry_url="https://owasp.org/www-project-machine-learning-security-top-10/docs/{}.html",
)
TAXONOMIES = (ATLAS, CWE, OWASP)


@dataclass(frozen=True)
class Entry:
    """One entry of a catalogue, and what it is in an audit.

    Attributes:
        taxonomy: The catalogue.
        identifier: As the catalogue writes it.
        name: As the catalogue writes it.
        here: What of an audit it is, in words.
        findings: What an audit may have to say that it belongs to; empty where an audit never says
            it, and the entry is listed for that.
        modes: The kinds of attack that it describes; empty where it is not about how one attacks.
        number: What stands for `{}` in the address; the identifier by default.
    """

    taxonomy: Taxonomy
    identifier: str
    name: str
    here: str
    findings: tuple[Finding, ...]
    modes: tuple[Mode, ...] = ()
    number: str | None = None

    @property
    def url(self) -> str:
        """Where the entry is read."""
        return self.taxonomy.entry_url.format(self.number or self.identifier)


_BACKDOOR: tuple[Finding, ...] = ("active", "dormant", "inconclusive")
_ASLEEP: tuple[Finding, ...] = ("dormant", "inconclusive")

ENTRIES = (
    Entry(
        ATLAS,
        "AML.T0018.000",
        "Poison AI Model",
        "the backdoor in the weights",
        _BACKDOOR,
    ),
    Entry(
        ATLAS,
        "AML.T0043.004",
        "Insert Backdoor Trigger",
        "the trigger on the images",
        _BACKDOOR,
    ),
    Entry(
        ATLAS,
        "AML.T0044",
        "Full AI Model Access",
        "what the white-box attack needs",
        _ASLEEP,
        ("white",),
    ),
    Entry(
        ATLAS,
        "AML.T0040",
        "AI Model Inference API Access",
        "what the attack by queries needs",
        _ASLEEP,
        ("query",),
    ),
    Entry(
        ATLAS,
        "AML.T0047",
        "AI-Enabled Product or Service",
        "enough for the transfer attack, which never asks the model while it searches",
        _ASLEEP,
        ("transfer",),
    ),
    Entry(
        ATLAS,
        "AML.T0041",
        "Physical Environment Access",
        "not tried: perturbations are added to pixels, and nothing is printed or photographed",
        (),
    ),
    Entry(
        ATLAS,
        "AML.T0043.000",
        "White-Box Optimization",
        "the search for the perturbation, with gradients",
        _ASLEEP,
        ("white",),
    ),
    Entry(
        ATLAS,
        "AML.T0043.001",
        "Black-Box Optimization",
        "the search for the perturbation, by queries",
        _ASLEEP,
        ("query",),
    ),
    Entry(
        ATLAS,
        "AML.T0043.002",
        "Black-Box Transfer",
        "the search for the perturbation, on surrogates",
        _ASLEEP,
        ("transfer",),
    ),
    Entry(
        CWE,
        "CWE-912",
        "Hidden Functionality",
        "the backdoor: behaviour that nobody was told of and that a trigger turns on",
        _BACKDOOR,
        number="912",
    ),
    Entry(
        CWE,
        "CWE-1039",
        "Inadequate Detection or Handling of Adversarial Input Perturbations in Automated "
        "Recognition Mechanism",
        "a perturbation too small to see wakes the backdoor",
        _ASLEEP,
        number="1039",
    ),
    Entry(
        OWASP,
        "ML10:2023",
        "Model Poisoning",
        "the backdoor in the weights",
        _BACKDOOR,
        number="ML10_2023-Model_Poisoning",
    ),
    Entry(
        OWASP,
        "ML01:2023",
        "Input Manipulation Attack",
        "the trigger, and the perturbation that wakes a dormant backdoor",
        _BACKDOOR,
        number="ML01_2023-Input_Manipulation_Attack",
    ),
)
"""Every entry, the catalogues in order."""


def entries_of(finding: Finding, *, modes: Iterable[Mode] = ()) -> list[Entry]:
    """Return the entries that a finding belongs to, without those about how one attacks.

    Args:
        finding: What the audit says.
        modes: The kinds of attack whose entries are wanted as well.
    """
    wanted = set(modes)
    return [
        entry
        for entry in ENTRIES
        if finding in entry.findings and (not entry.modes or wanted & set(entry.modes))
    ]


def access_of(record: AuditRecord) -> tuple[Mode, ...]:
    """Return the kinds of attack that a verdict is about.

    Of a dormant model the one that decided; otherwise all that were tried.
    """
    decisive = find_decisive(record)
    verdict = record.verdict
    if verdict is not None and verdict.outcome == "dormant" and decisive is not None:
        return (decisive[0].mode,)
    runs = record.runs_of(role="defended", condition="trigger")
    return tuple(dict.fromkeys(run.mode for run in runs))
