"""The registry of encoder families: ModelSpec.family names an entry."""

from pez.encoder.dinov2 import DINOv2, DINOv2WithRegisters
from pez.encoder.hugging_face import ARCHITECTURES, HuggingFace, Siglip2, family_of
from pez.encoder.protocol import Encoder
from pez.encoder.videomae import VideoMAE
from pez.encoder.videoprism import VideoPrism
from pez.encoder.vjepa1 import VJEPA1
from pez.encoder.vjepa2 import VJEPA2
from pez.encoder.vjepa2_1 import VJEPA2_1

FAMILIES: dict[str, type[Encoder]] = {
    "vjepa2": VJEPA2,
    "vjepa2_1": VJEPA2_1,
    "vjepa1": VJEPA1,
    "videomae": VideoMAE,
    "dinov2": DINOv2,
    "dinov2_with_registers": DINOv2WithRegisters,
    "videoprism": VideoPrism,
    **{name: family_of(row, Siglip2 if name == "siglip2" else HuggingFace) for name, row in ARCHITECTURES.items()},
}
