"""Real photographs, encoded, in shards."""

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

from PIL import Image


def photographs(count: int, side: int = 96) -> list[Image.Image]:
    """`count` different crops of the photographs that ship in scikit-learn and scikit-image."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    sources = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    crops = []
    for index in range(count):
        source = sources[index % len(sources)]
        step = index // len(sources)
        top = (step * 53) % (source.shape[0] - side)
        left = (step * 101) % (source.shape[1] - side)
        crops.append(Image.fromarray(source[top : top + side, left : left + side]))
    return crops


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_shard(path: Path, samples: dict[str, bytes | dict[str, bytes]]) -> Path:
    """A shard as img2dataset writes it. A value is the .jpg's bytes, or {extension: bytes} for anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            if isinstance(members, bytes):
                members = {"jpg": members, "txt": b"a photo", "json": json.dumps({"key": key}).encode()}
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def png_claiming(width, height):
    """A PNG of that size in its header, and next to nothing after it: what a decompression bomb looks like."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0" * 99)]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
