"""Seeded damage to annotation files, images and checkpoints."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

# What programs and hands have written in place of a value.
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 0.5, 1e-30, 2**40, 2**70, -(2**63), 1e308, float("nan"),
    float("inf"), "", " ", "0", "12.5", "1e400", "NaN", "crazing", "\ud800", "a" * 300, "../..",
    "/etc/hosts", "C:\\images\\1.jpg", [], [1], [0, 0, 0, 0], [1, 2, 3, 4], ["1", "2", "3", "4"],
    [[0, 0, 9, 0, 9, 9]], {}, {"id": 1}, {"size": [9, 9], "counts": "xx"},
]  # fmt: skip


def all_paths(node: Any, path: tuple = ()) -> list[tuple]:
    """Return the keys that lead to each value inside nested dicts and lists."""
    children: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        children = list(node.items())
    elif isinstance(node, list):
        children = list(enumerate(node))

    paths = []
    for key, child in children:
        paths += [(*path, key), *all_paths(child, (*path, key))]
    return paths


def mutate_content(content: Any, rng: random.Random) -> Any:
    """Return a copy with one to three values replaced, deleted, repeated, or moved."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        paths = all_paths(content)
        if not paths:
            break

        *parents, key = rng.choice(paths)
        node = content
        for parent in parents:
            node = node[parent]

        kind = rng.choice(["replace", "replace", "replace", "delete", "repeat", "swap"])
        if kind == "replace":
            node[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == "delete":
            del node[key]
        elif kind == "repeat" and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif kind == "swap" and isinstance(node, dict):
            other = rng.choice(list(node))
            node[key], node[other] = node[other], node[key]
    return content


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return data that is cut, or in which bytes are changed, inserted, or left out."""
    changed = bytearray(data)
    place = rng.randrange(len(changed))
    kind = rng.choice(["flip", "flip", "cut", "insert", "remove", "zero"])
    if kind == "flip":
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[place:]
    elif kind == "insert":
        changed[place:place] = rng.randbytes(rng.randint(1, 16))
    elif kind == "remove":
        del changed[place : place + rng.randint(1, 16)]
    else:
        changed[place : place + 64] = bytes(len(changed[place : place + 64]))
    return bytes(changed)


def mutate_annotations(content: dict[str, Any], rng: random.Random) -> bytes:
    """Return an annotation file with damage to its values, or to its text."""
    if rng.random() < 0.75:
        return json.dumps(mutate_content(content, rng)).encode("utf-8", "surrogatepass")

    if rng.random() < 0.1:
        depth = rng.choice([900, 5000, 100_000])
        return b'{"images": ' + b"[" * depth + b"]" * depth + b"}"
    return mutate_bytes(json.dumps(content).encode(), rng)


def encode(pixels: np.ndarray, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def images(rng: random.Random) -> dict[str, bytes]:
    """Return small images of the usual formats by their file names."""
    values = np.random.default_rng(rng.randrange(2**32))
    rgb = values.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    deep = values.integers(0, 2**16, (40, 50), dtype=np.uint16)
    return {
        "rgb.png": encode(rgb, "PNG"),
        "gray16.png": encode(deep, "PNG"),
        "palette.png": encode(rgb[..., 0] // 64, "PNG"),
        "photo.jpg": encode(rgb, "JPEG", quality=80),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "scan.tif": encode(rgb, "TIFF", compression="tiff_lzw"),
        "deep.tif": encode(deep, "TIFF"),
        "float.tif": encode(values.random((40, 50), dtype=np.float32), "TIFF"),
        "web.webp": encode(rgb, "WEBP"),
        "old.bmp": encode(rgb, "BMP"),
        "old.gif": encode(rgb[..., 0], "GIF"),
        "old.tga": encode(rgb, "TGA"),
        "plain.ppm": encode(rgb, "PPM"),
    }


def flip_png_byte(data: bytes, rng: random.Random) -> bytes:
    """Return a PNG file with one changed byte, behind its signature."""
    changed = bytearray(data)
    changed[rng.randrange(8, len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def png_bomb(side: int) -> bytes:
    """Return a small PNG file that claims to have ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(bytes(10_000))),
            chunk(b"IEND", b""),
        ]
    )


def mutate_tensor(tensor: Any, rng: random.Random) -> Any:
    """Return something else in place of a tensor of a checkpoint."""
    changes: list[Callable[[], Any]] = [
        lambda: tensor.double(),
        lambda: tensor.half(),
        lambda: tensor.to_sparse(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.int32),
        lambda: tensor.bool(),
        lambda: tensor[:1] if tensor.dim() else tensor.reshape(1),
        lambda: tensor[None],
        lambda: tensor.new_empty(0),
        lambda: tensor.float().fill_(float("nan")),
        lambda: tensor.float().fill_(float("inf")),
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: tensor.tolist(),
        lambda: "a text",
        lambda: None,
        lambda: 3,
        lambda: {"weight": tensor},
    ]
    return rng.choice(changes)()


def mutate_checkpoint(content: dict[str, Any], rng: random.Random) -> bytes:
    """Return a checkpoint file with damage to its content, or to its bytes."""
    content = copy.deepcopy(content)
    kind = rng.choice(["tensor", "tensor", "key", "other", "bytes"])
    state = content["model"]
    name = rng.choice(list(state))

    if kind == "tensor":
        state[name] = mutate_tensor(state[name], rng)
    elif kind == "key":
        keys = [3, None, ("a", "b"), "", "module." + name, name + "\ud800", b"name"]
        state[rng.choice(keys)] = state.pop(name)
    elif kind == "other":
        plain = {key: value for key, value in content.items() if key != "model"}
        content = {**mutate_content(plain, rng), "model": state}
        if rng.random() < 0.2:
            content["model"] = copy.deepcopy(rng.choice(VALUES))

    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    return mutate_bytes(data, rng) if kind == "bytes" else data
