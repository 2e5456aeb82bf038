"""What the user says about a model that is only asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from bdaudit.blackbox.layout import Order
from bdaudit.blackbox.scale import ScoreScale
from bdaudit.blackbox.transport import TransportSettings
from bdaudit.errors import ConfigError
from bdaudit.foundation.plain_settings import LATER
from bdaudit.foundation.renamed import renamed
from bdaudit.models import ModelSettings

__all__ = ["BlackBoxOptions"]


@renamed({"order": "layout", "batch_size": "request_size"})
@dataclass(frozen=True, kw_only=True)
class BlackBoxOptions:
    """What the user says about a model that is only asked; `None` leaves it to the model.

    Attributes:
        settings: Image shape, class count, normalisation, kind of outputs, architecture.
        layout: Which dimension of an ONNX file's or server's input holds the channels.
        input_name: A server's input, where its metadata list none.
        output_name: The output with the scores, where there are several.
        binary: Whether tensors travel to a server as raw bytes.
        grid: Steps an image value can take between 0 and 1, where the images will be rounded on
            their way: 255 for an API that takes PNG files.
        scale: What the scores were on when a search that is resumed was started.
        first_label: Number of a detector's first class in its answers: 1, where 0 is the
            background, or 0.
        request_size: Images a call or request; `None` for 256, and 32 a request to a server.
        transport: Patience and speed toward a server.

    Raises:
        ConfigError: An option is out of range.
    """

    settings: ModelSettings = field(default_factory=ModelSettings)
    layout: Order | None = None
    input_name: str | None = None
    output_name: str | None = None
    binary: bool | None = None
    grid: int | None = None
    scale: ScoreScale | None = None
    request_size: int | None = None
    transport: TransportSettings = field(default_factory=TransportSettings)
    first_label: int = field(default=1, metadata=LATER)

    def __post_init__(self) -> None:
        if self.layout not in (None, "NCHW", "NHWC"):
            raise ConfigError(f"layout: expected NCHW or NHWC, got {self.layout!r}")
        if self.request_size is not None and self.request_size < 1:
            raise ConfigError(f"request_size: expected 1 or more, got {self.request_size}")
        if self.first_label not in (0, 1):
            raise ConfigError(f"first_label: expected 0 or 1, got {self.first_label}")

    @property
    def known_scale(self) -> ScoreScale | None:
        """What the scores are on as far as the user says."""
        if self.scale is not None or self.settings.outputs is None:
            return self.scale
        return ScoreScale(kind=self.settings.outputs)
