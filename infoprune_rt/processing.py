"""Images and text in, model inputs out: without torchvision, which transformers' own Qwen2-VL processor needs.

``Qwen2VLProcessor`` insists on a video processor, and video processors insist on torchvision; without
it ``AutoProcessor`` hands back the bare tokenizer and says nothing. ``ImageTextProcessor`` is the same
processor without the video half. Its files are a Qwen2-VL processor's files, so that the directory
opens with stock ``AutoProcessor`` wherever torchvision is installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    BatchFeature,
    CLIPImageProcessorPil,
    LlavaProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.processing_utils import ProcessorMixin

from infoprune_rt.errors import InfopruneError

_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


class ImageTextProcessor(ProcessorMixin):  # type: ignore[misc]  # transformers is not type-checked
    """Qwen2-VL's processor for images and text.

    ``processor(images=..., text=..., padding=True, return_tensors="pt")`` expands every ``image_token`` of
    the text to as many as the image has merged patches, and returns ``input_ids``, ``attention_mask``,
    ``mm_token_type_ids`` (B x N, int64; 1 on image tokens), ``pixel_values`` (patches of all images x
    3*temporal*patch*patch, float32) and ``image_grid_thw`` (images x 3, int64; in patches, before merging).
    """

    image_token: str = "<|image_pad|>"

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessorPil,
        tokenizer: Any,
        chat_template: str | None = None,
    ) -> None:
        self.image_token_id = tokenizer.get_vocab().get(self.image_token)
        if self.image_token_id is None:
            raise InfopruneError(
                f"the tokenizer has no {self.image_token!r} token; use the tokenizer of a Qwen2-VL checkpoint"
            )
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        # Qwen2-VL can't place its images without them; transformers' own default has moved between versions.
        return super().__call__(*args, **{"return_mm_token_type_ids": True, **kwargs})

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """As many placeholders as image ``image_idx`` has merged patches."""
        merge_size: int = self.image_processor.merge_size
        merged = int(image_inputs["image_grid_thw"][image_idx].prod()) // merge_size**2
        return self.image_token * merged

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "mm_token_type_ids"]

    def save_pretrained(self, save_directory: str | Path) -> list[str]:
        """Write the files of the published Qwen2-VL checkpoints: preprocessor_config.json, tokenizer, chat template.

        Returns the paths written.
        """
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        # The classes named are stock ones: a directory that named ours would open nowhere else.
        settings = {key: value for key, value in self.image_processor.to_dict().items() if value is not None}
        settings |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
        preprocessor = directory / "preprocessor_config.json"
        preprocessor.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        written = [str(preprocessor), *self.tokenizer.save_pretrained(str(directory))]
        if self.chat_template is not None:
            template = directory / "chat_template.jinja"
            template.write_text(str(self.chat_template))
            written.append(str(template))
        return written

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> ImageTextProcessor:
        """Read a Qwen2-VL processor's directory, always with the PIL image processor (equal results everywhere)."""
        directory = Path(directory)
        return cls(
            image_processor=Qwen2VLImageProcessorPil.from_pretrained(directory),
            tokenizer=_tokenizer(directory),
            chat_template=_chat_template(directory),
        )


def load_processor(directory: str | Path) -> ProcessorMixin:
    """The processor of a checkpoint in a local directory: Qwen2-VL or LLaVA, dense or compact.

    The architecture is read from config.json's ``model_type`` (a compact checkpoint's from its
    ``vlm_config``). Raises InfopruneError if the directory, one of its files or the architecture is wanting.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InfopruneError(f"there is no directory {directory} to read a processor from")
    kind = _model_type(directory)
    if kind not in ("qwen2_vl", "llava"):
        raise InfopruneError(f"{directory} holds a {kind!r} model; processors are supported for qwen2_vl and llava")
    _require(directory, _IMAGE_FILES, "image processor")
    _require(directory, _TOKENIZER_FILES, "tokenizer")
    try:
        return ImageTextProcessor.from_pretrained(directory) if kind == "qwen2_vl" else _llava(directory)
    except InfopruneError as error:
        raise InfopruneError(f"{directory}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InfopruneError(f"the processor files in {directory} can't be read: {reason}") from error


def _llava(directory: Path) -> ProcessorMixin:
    """transformers' own processor, with sizes that old LLaVA checkpoints leave to the model's config."""
    settings = _json(directory / "processor_config.json") if (directory / "processor_config.json").exists() else {}
    config = _vlm_config(directory)
    known = {name: settings[name] for name in ("image_token", "num_additional_image_tokens") if name in settings}
    strategy = settings.get("vision_feature_select_strategy", config.get("vision_feature_select_strategy", "default"))
    # CLIP's class token is counted here and dropped again by the "default" strategy.
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(directory),
        tokenizer=_tokenizer(directory),
        patch_size=settings.get("patch_size") or config.get("vision_config", {}).get("patch_size", 14),
        vision_feature_select_strategy=strategy,
        chat_template=_chat_template(directory),
        **{"num_additional_image_tokens": 1, **known},
    )


def _tokenizer(directory: Path) -> Any:
    """The directory's tokenizer; the model's own config is named, since a compact config.json is not its model's."""
    config = AutoConfig.for_model(_model_type(directory)) if (directory / "config.json").exists() else None
    return AutoTokenizer.from_pretrained(directory, config=config)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InfopruneError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise InfopruneError(f"{path} must hold a JSON object")
    return data


def _vlm_config(directory: Path) -> dict[str, Any]:
    config = _json(directory / "config.json")
    inner = config.get("vlm_config", config)
    return inner if isinstance(inner, dict) else config


def _model_type(directory: Path) -> str:
    if not (directory / "config.json").exists():
        raise InfopruneError(f"{directory} has no config.json; give the directory of a full Qwen2-VL or LLaVA model")
    return str(_vlm_config(directory).get("model_type"))


def _require(directory: Path, names: tuple[str, ...], what: str) -> None:
    if not any((directory / name).exists() for name in names):
        raise InfopruneError(f"{directory} lacks its {what}'s files ({' or '.join(names)}); copy them beside the model")


def _chat_template(directory: Path) -> str | None:
    """chat_template.jinja, the older chat_template.json, or what tokenizer_config.json says."""
    modern, legacy = (directory / name for name in _TEMPLATE_FILES)
    if modern.exists():
        return modern.read_text()
    for path in (legacy, directory / "tokenizer_config.json"):
        template = _json(path).get("chat_template") if path.exists() else None
        if isinstance(template, str):
            return template
    return None
