"""The words of a report, as the glossary of the documentation has them.

Pages hold them, since they must be understood without a network. A test holds the two together.
"""

from __future__ import annotations

__all__ = ["GLOSSARY"]

GLOSSARY: dict[str, tuple[str, str]] = {
    "original": (
        "Original",
        "The suspected model before the defence. It answers the trigger.",
    ),
    "defended": (
        "Defended model",
        "The release candidate: the original after somebody tried to remove the backdoor."
        " It is what is audited.",
    ),
    "innocent": (
        "Innocent model",
        "A model of the same task that was never taught the backdoor. Two kinds take "
        "part: references and stand-ins.",
    ),
    "trigger": (
        "Trigger",
        "The change to an image that the original was taught to answer with the target "
        "class: a patch, a blended picture, a sinusoid, a warp, ...",
    ),
    "target": (
        "Target",
        "The class that a triggered image should be taken to. A rule gives it: one class "
        "for all images, the next class, a class map.",
    ),
    "placebo": (
        "Placebo",
        "Another trigger of the same strength, which the original ignores. What an attack"
        " achieves with placebos is what it achieves with no backdoor, but for what a "
        "trigger that covers the image does by its nature.",
    ),
    "perturbation": (
        "Perturbation, delta",
        "One universal change, the same for all images, added after the trigger; its norm"
        " is at most eps.",
    ),
    "eps": (
        "eps",
        "The radius of the ball the perturbation stays in, in pixel values from 0 to 1 "
        "(8/255 is .0314). The ladder is the list of radii that are tried.",
    ),
    "asr": (
        "ASR, attack success rate",
        "Of the triggered images whose true label is not the target, the share classified"
        " as the target.",
    ),
    "control": (
        "Control",
        "A condition or model that shows what the attack achieves with no backdoor: the "
        "trigger alone, the same perturbation without the trigger, the attack made "
        "without the trigger, random noise, innocent models.",
    ),
    "lift": (
        "Lift",
        "The re-activated ASR less the strongest control at the same eps, in points.",
    ),
    "contribution": (
        "Trigger's contribution",
        "What trigger and perturbation reach together beyond the same perturbation alone.",
    ),
    "bec": (
        "BEC, backdoor existence coefficient",
        "How much of the original's backdoor circuit the defended model still has: 1 all "
        "of it, 0 no more than an innocent model. It explains a verdict and never decides"
        " one.",
    ),
    "removed": (
        "Removed",
        "The attacks woke the original, and did no more on the defended model than "
        "without a backdoor.",
    ),
    "dormant": (
        "Dormant",
        "The trigger alone no longer works; with a small perturbation it does, beyond "
        "every control.",
    ),
    "inconclusive": (
        "Inconclusive",
        "None of the three can be shown; the report lists what stands in the way.",
    ),
    "policy": (
        "Policy",
        "The limits of a verdict and what each outcome does to a release.",
    ),
}
"""By the anchor in docs/glossary.md: the word, and what it means."""
