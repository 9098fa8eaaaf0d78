"""What the tests of models share: the smallest sizes, every way to the features, an image that is all promise."""

import struct
import zlib
from pathlib import Path


# The smallest model that has every part: 4 patches of 4 codes, 5 levels.
TINY = {
    "image_size": 4,
    "num_channels": 1,
    "patch_size": 2,
    "num_levels": 5,
    "hidden_size": 16,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "code_embedding_size": 4,
    "depth_hidden_size": 8,
    "num_depth_groups": 2,
    "projection_hidden_size": 16,
    "projection_dim": 8,
}


# Every way to the features.
ENCODERS = {
    "causal": {},
    "two passes": {"encoder_attention": "two_pass"},
    "bidirectional": {"encoder_attention": "bidirectional", "generative_weight": 0},
}


def write_png_header(path: Path, width: int, height: int) -> None:
    """An RGB image of this size, as its header says; the pixels behind it end at once."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
