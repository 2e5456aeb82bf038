"""Build a CLIP of open_clip and make its text embeddings. Nothing is unpickled here.

open_clip gives the architectures, the tokenizer (its vocabulary comes with the package) and the
recipe for ensembled prompts. Its loaders are not used: weights always come through
`checkpoint.open_checkpoint`, and what it would fetch by a name lies in the model's folder.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.foundation.texts import read_json
from bdaudit.models.checkpoint import Checkpoint, open_checkpoint
from bdaudit.models.clip_settings import ClipSettings
from bdaudit.models.clip_text import TextTower, find_text_tower, open_tokenizer, text_files
from bdaudit.models.zeroshot import ZeroShotNetwork

__all__ = [
    "ClipPlan",
    "as_zero_shot",
    "clip_files",
    "config_of",
    "open_pretrained",
    "plan_clip",
    "preprocessing_of",
    "rename_clip_tensors",
    "tensors_and_prompts",
    "tokenizer_of",
]

_PREFIX = "open_clip/"
_NAME = re.compile(r"[\w.+-]+")
_CONFIG_KEYS = ("embed_dim", "vision_cfg", "text_cfg")
# Sizes that OpenAI's files keep as tensors beside the weights, and a counter of old text towers.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
_POSITION_IDS = "embeddings.position_ids"
_TEXT_PARTS = (
    "text_projection",
    "positional_embedding",
    "token_embedding.",
    "transformer.",
    "ln_final.",
)
_CLASSES_A_PASS = 10


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """An architecture of open_clip, before memory is taken for it.

    Attributes:
        arch: Its name, `open_clip/<name>`.
        config: As open_clip's JSON files have it.
        shapes: Shape of every tensor by name.
        text_tower: The config of its text tower, where that is one of transformers.
    """

    arch: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    text_tower: TextTower | None = None

    @property
    def name(self) -> str:
        """The name without the library's."""
        return self.arch.removeprefix(_PREFIX)

    def build(self) -> nn.Module:
        """Build the model on the CPU; torch's global generator is left as it was.

        Raises:
            ModelError: open_clip cannot build it.
        """
        with torch.random.fork_rng(devices=[]):
            return _instantiate(self.arch, self.config, self.text_tower)

    def build_visual(self) -> nn.Module:
        """Build the image tower alone, with weights from torch's global generator."""
        model: Any = _instantiate(self.arch, self.config, self.text_tower)
        visual: nn.Module = model.visual
        return visual


def plan_clip(arch: str, settings: ClipSettings) -> ClipPlan:
    """Find the config of an architecture and the shapes it implies.

    Args:
        arch: `open_clip/<name>`.
        settings: Where else to look for configs.

    Raises:
        ModelError: open_clip is not installed, has no such config (similar ones are named), the
            config is damaged, or asks for towers that come from elsewhere.
    """
    config = config_of(arch, settings.config_folder)
    tower = find_text_tower(arch, config["text_cfg"], settings.config_folder)
    with torch.device("meta"):
        shell = _instantiate(arch, config, tower)
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in shell.state_dict().items()
        if not name.endswith(_POSITION_IDS)
    }
    return ClipPlan(arch, config, shapes, tower)


def config_of(arch: str, folder: Path | None = None) -> dict[str, Any]:
    """Return the config of `open_clip/<name>`, from `folder` or else from open_clip itself.

    A folder may hold `<name>.json`, or the `open_clip_config.json` of a published model, which is
    then taken under whatever name.

    Raises:
        ModelError: There is none, or it is no config of a CLIP.
    """
    open_clip = _import_open_clip(arch)
    name = arch.removeprefix(_PREFIX)
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"arch: expected open_clip/NAME, such as open_clip/ViT-B-32, got {arch!r}; for a model "
            "that lies in a folder of its own give the folder as the config folder"
        )
    if folder is not None:
        file = _config_file(folder, name)
        if file is not None:
            return _read_config(file)
    config = open_clip.get_model_config(name)
    if config is None:
        own = [] if folder is None else sorted(path.stem for path in folder.glob("*.json"))
        near = difflib.get_close_matches(name, [*own, *open_clip.list_models()], n=3)
        raise ModelError(
            f"arch: open_clip {open_clip.__version__} has no config {name!r}"
            + ("" if folder is None else f", nor has {folder} (there: {', '.join(own) or 'none'})")
            + (f"; did you mean open_clip/{' or open_clip/'.join(near)}? Or" if near else ";")
            + " give the folder that holds NAME.json as the config folder (--clip-config)"
        )
    return dict(config)


def clip_files(arch: str, settings: ClipSettings) -> tuple[Path, ...]:
    """Name the files beside checkpoints that decide what a CLIP answers: config and weights."""
    named: list[Path | None] = []
    if settings.config_folder is not None:
        named.append(_config_file(settings.config_folder, arch.removeprefix(_PREFIX)))
        named += text_files(settings.config_folder)
    if settings.pretrained is not None and Path(settings.pretrained).is_file():
        named.append(Path(settings.pretrained))
    return tuple(file for file in named if file is not None)


def rename_clip_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], notes: list[str]
) -> dict[str, Tensor]:
    """Bring the layouts in which CLIPs are saved to the names that `shapes` has.

    Left out are sizes that OpenAI's files keep among the weights; the text tower's names get or
    lose their `text.`; an image tower saved alone gets its `visual.`.
    """
    renamed = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in _NOT_WEIGHTS and not name.endswith(_POSITION_IDS)
    }
    if "text.positional_embedding" in shapes and "positional_embedding" in renamed:
        renamed = {
            f"text.{name}" if name.startswith(_TEXT_PARTS) else name: tensor
            for name, tensor in renamed.items()
        }
        notes.append("put 'text.' before the names of the text tower")
    elif "positional_embedding" in shapes and "text.positional_embedding" in renamed:
        renamed = {name.removeprefix("text."): tensor for name, tensor in renamed.items()}
        notes.append("stripped 'text.'")
    image_tower = {name for name in shapes if name.startswith("visual.")}
    if {f"visual.{name}" for name in renamed} == image_tower:
        renamed = {f"visual.{name}": tensor for name, tensor in renamed.items()}
        notes.append("the file holds the image tower alone")
    for name in ("logit_scale", "logit_bias"):
        # A number in some versions, a vector of one in others.
        if name in renamed and name in shapes and renamed[name].numel() == 1:
            renamed[name] = renamed[name].reshape(shapes[name])
    return renamed


def open_pretrained(plan: ClipPlan, settings: ClipSettings) -> Checkpoint:
    """Open the weights that `settings.pretrained` names.

    A tag is fetched by open_clip through its usual cache, unless it is there already.

    Raises:
        ModelError: The tag is unknown, cannot be fetched, or the file cannot be opened safely.
    """
    pretrained = settings.pretrained
    assert pretrained is not None
    if Path(pretrained).is_file():
        return open_checkpoint(Path(pretrained))
    tag = _tag_config(plan, pretrained)
    open_clip = _import_open_clip(plan.arch)
    try:
        path = open_clip.download_pretrained(tag)
    except Exception as error:
        raise ModelError(
            f"pretrained: the weights {pretrained!r} of {plan.arch} are not on this machine and "
            f"cannot be fetched ({_gist(error)}); download them where there is a network and give "
            "the local file instead: --pretrained FILE"
        ) from error
    return open_checkpoint(Path(path))


def preprocessing_of(
    plan: ClipPlan, settings: ClipSettings, notes: list[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std: those of the pretrained tag, or else open_clip's own.

    Raises:
        ModelError: `settings.pretrained` is neither a file nor a tag of this architecture.
    """
    open_clip = _import_open_clip(plan.arch)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    source = "open_clip's own normalisation"
    if settings.pretrained is not None and not Path(settings.pretrained).is_file():
        tag = _tag_config(plan, settings.pretrained)
        mean, std = tag.get("mean") or mean, tag.get("std") or std
        source = f"the normalisation of {settings.pretrained!r}"
        if bool(tag.get("quick_gelu")) != bool(plan.config.get("quick_gelu")):
            notes.append(
                f"{settings.pretrained!r} was trained with "
                f"{'QuickGELU' if tag.get('quick_gelu') else 'plain GELU'} and {plan.arch} has the "
                "other; tensors do not tell the two apart"
            )
    notes.append(f"images get {source}, bicubic resizing")
    return tuple(mean), tuple(std)


def tokenizer_of(plan: ClipPlan, settings: ClipSettings) -> Any:
    """Return the tokenizer of a plan: open_clip's own, or that in the folder of the model.

    Raises:
        ModelError: It would have to be downloaded, or a prompt does not suit it.
    """
    open_clip = _import_open_clip(plan.arch)
    text = plan.config["text_cfg"]
    if text.get("hf_tokenizer_name") or "siglip" in plan.name.lower() or plan.text_tower:
        tokenizer: Any = open_tokenizer(plan.arch, text, settings.config_folder, open_clip)
        _check_prompts(plan, settings, tokenizer, tokenizer.tokens_of)
        return tokenizer
    tokenizer = open_clip.SimpleTokenizer(
        context_length=int(text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)),
        **(text.get("tokenizer_kwargs") or {}),
    )

    def tokens_of(prompt: str) -> list[int]:
        ends = (tokenizer.sot_token_id, tokenizer.eot_token_id)
        return [ends[0], *tokenizer.encode(prompt), ends[1]]

    _check_prompts(plan, settings, tokenizer, tokens_of)
    return tokenizer


@torch.no_grad()
def as_zero_shot(
    clip: nn.Module,
    plan: ClipPlan,
    settings: ClipSettings,
    tokenizer: Any,
    *,
    device: torch.device | str,
) -> ZeroShotNetwork:
    """Compute the text embeddings once and leave the text tower behind.

    Args:
        clip: The model with its weights, float32, on the CPU.
        plan: What it was built from.
        settings: Names and templates. A class' embedding is the mean over its prompts, each of
            length 1, brought to length 1 again (Radford et al., ICML 2021, section 3.1.4).
        tokenizer: That of the plan (`tokenizer_of`).
        device: Where the text tower runs; the result is on the CPU.

    Raises:
        ModelError: Image and text embeddings differ in length.
    """
    open_clip = _import_open_clip(plan.arch)
    tower: Any = clip.eval().to(device)
    embeddings: Tensor = open_clip.build_zero_shot_classifier(
        tower,
        tokenizer,
        settings.class_names,
        # Functions, since str.format would read more into a template than the one place.
        [lambda name, t=template: t.replace("{}", name) for template in settings.templates],
        num_classes_per_batch=_CLASSES_A_PASS,
        device=device,
    ).T
    side = tower.visual.image_size
    image_size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    seen = tower.visual(torch.zeros(1, 3, *image_size, device=device))
    if not isinstance(seen, Tensor) or seen.shape != (1, embeddings.shape[1]):
        got = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
        raise ModelError(
            f"{plan.arch}: expected image embeddings as long as the text embeddings, "
            f"(1, {embeddings.shape[1]}), got {got}; correct the projections in the config"
        )
    bias = getattr(tower, "logit_bias", None)
    return ZeroShotNetwork(
        tower.visual.cpu(),
        embeddings.contiguous().cpu(),
        logit_scale=float(tower.logit_scale.exp()),
        logit_bias=0.0 if bias is None else float(bias),
        image_size=image_size,
        build_visual=plan.build_visual,
    )


def tensors_and_prompts(clip: nn.Module, settings: ClipSettings) -> dict[str, Tensor]:
    """Return what determines a zero-shot classifier: the whole CLIP's tensors, and its prompts.

    A digest over these does not hang on the rounding of one machine's text tower.
    """
    text = "\n".join(prompt for name in settings.class_names for prompt in settings.prompts(name))
    prompts = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return {**clip.state_dict(), "prompts": prompts}


def _import_open_clip(arch: str) -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        raise ModelError(
            f"arch: {arch} needs open_clip, which is not installed; pip install 'bdaudit[clip]'"
        ) from error
    return open_clip  # type: ignore[no-any-return]


def _config_file(folder: Path, name: str) -> Path | None:
    if not folder.is_dir():
        raise ModelError(f"{folder}: expected a folder of open_clip configs, there is none")
    named, published = folder / f"{name}.json", folder / "open_clip_config.json"
    return next((file for file in (named, published) if file.is_file()), None)


def _read_config(file: Path) -> dict[str, Any]:
    config = read_json(file, what="an open_clip config", error=ModelError)
    if isinstance(config, dict):
        config = config.get("model_cfg", config)
    if not isinstance(config, dict) or not all(key in config for key in _CONFIG_KEYS):
        raise ModelError(f"{file}: expected a config with the keys {', '.join(_CONFIG_KEYS)}")
    return config


def _instantiate(arch: str, config: Mapping[str, Any], tower: TextTower | None) -> nn.Module:
    """Build a model from its config, without weights of any kind."""
    open_clip = _import_open_clip(arch)
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    vision = {**settings["vision_cfg"], "timm_model_pretrained": False}
    text = dict(settings["text_cfg"])
    if "multimodal_cfg" in settings:
        raise ModelError(f"{arch}: is a CoCa; only models with two towers are supported")
    custom = config.get("custom_text") or tower is not None
    family = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        with nullcontext() if tower is None else tower.as_folder() as folder:
            if folder is not None:
                text |= {"hf_model_name": folder, "hf_model_pretrained": False}
            model: nn.Module = family(**{**settings, "vision_cfg": vision, "text_cfg": text})
    except Exception as error:
        raise ModelError(
            f"{arch}: open_clip cannot build it from its config: {_gist(error)}"
        ) from error
    return model


def _tag_config(plan: ClipPlan, tag: str) -> dict[str, Any]:
    open_clip = _import_open_clip(plan.arch)
    config: dict[str, Any] = open_clip.get_pretrained_cfg(plan.name, tag)
    if not config:
        known = open_clip.list_pretrained_tags_by_model(plan.name)
        raise ModelError(
            f"pretrained: {tag!r} is no file here and no tag of {plan.arch} "
            f"(known: {', '.join(known) or 'none'}); give one of these, or a local file"
        )
    return config


def _check_prompts(
    plan: ClipPlan, settings: ClipSettings, tokenizer: Any, tokens_of: Callable[[str], list[int]]
) -> None:
    """Refuse prompts that the tokenizer would cut short, or the text tower does not know."""
    known = dict(plan.config["text_cfg"]) if plan.text_tower is None else plan.text_tower.config
    vocabulary = known.get("vocab_size")
    for name in settings.class_names:
        for prompt in settings.prompts(name):
            tokens = tokens_of(prompt)
            if len(tokens) > tokenizer.context_length:
                raise ModelError(
                    f"prompt {prompt!r}: expected at most {tokenizer.context_length} tokens, its "
                    f"ends included, which {plan.arch} reads, got {len(tokens)}; shorten the name "
                    "or template"
                )
            if vocabulary is not None and max(tokens, default=0) >= int(vocabulary):
                raise ModelError(
                    f"{plan.arch}: its text tower knows {vocabulary} tokens, and the tokenizer "
                    f"gives {max(tokens)}; it is that of another model, or vocab_size is wrong"
                )


def _gist(error: Exception) -> str:
    text = str(error).strip()
    return textwrap.shorten(text, 160, placeholder=" ...") if text else type(error).__name__
