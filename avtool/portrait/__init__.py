"""One photo to a 4D head in a single pass (Portrait4D-v2): the network, its volume renderer and its training."""

from avtool.portrait.config import PRESETS, PortraitConfig
from avtool.portrait.network import Encoded, Portrait, PortraitPicture

__all__ = ["PRESETS", "Encoded", "Portrait", "PortraitConfig", "PortraitPicture"]
