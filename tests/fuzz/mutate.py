"""Valid things made hostile: bytes, texts, JSON values. Everything is drawn from the `Random` that is given."""

import json
import random
from typing import Any

from hostile import NAMES

# Where integers of 8, 16, 32 and 64 bits end.
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
NUMBERS = (*EDGES, -1, -(2**63), 10**20, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"))
# What a file must not make the program open. Hosts are of this machine: nothing leaves it where a guard fails.
ADDRESSES = (
    "http://127.0.0.1:9/a.png", "http://[::1]:9/a.png", "http://169.254.169.254/latest/meta-data/a.png",
    "http://0x7f000001:9/a.png", "HTTP://127.1:9/a.png", "https://10.0.0.1/a.png", "http://[::ffff:127.0.0.1]:9/a",
    "http://[", "http://127.0.0.1:99999/a", "http:///a.png", "file:///etc/passwd", "local:///etc/passwd",
    "ftp://127.0.0.1/a.png", "reference://a::file://in/evil.json", "simplecache::file:///etc/passwd",
    "zip://a.png::http://127.0.0.1:9/z.zip", "memory://a.png", "github://a:b@c/d.png", "sftp://127.0.0.1/a.png",
    "data:image/png;base64,AAAA", "://", "a://b", "dir://x::ssh://127.0.0.1",
)  # fmt: skip
PATHS = (
    "../evil.png", "../../../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/environ", ".", "..",
    "/", "", " ", "~/a.png", "a\x00b.png", "C:\\a.png", "con.png", "a/" * 200 + "b.png", "x" * 300 + ".png",
)  # fmt: skip


def mutated(rng: random.Random, data: bytes, most: int = 8) -> bytes:
    """`data` with one to `most` small changes, or cut off."""
    found = bytearray(data)
    for _ in range(rng.randint(1, most)):
        place = rng.randrange(len(found) + 1)
        piece = found[place : place + rng.choice((1, 2, 4, 16, 512))]
        match rng.randrange(7):
            case 0:
                found[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del found[place : place + len(piece)]
            case 2:
                found[place:place] = piece * rng.randint(1, 3)
            case 3:
                found[place:place] = rng.randbytes(rng.choice((1, 4, 64)))
            case 4:
                size = rng.choice((1, 2, 4, 8))
                value = rng.choice(EDGES) % 256**size
                found[place : place + size] = value.to_bytes(size, rng.choice(("big", "little")))
            case 5:
                other = rng.randrange(len(found) + 1)
                found[other : other + len(piece)] = piece
            case 6 if rng.random() < 0.3:
                del found[place:]
            case _:
                found[place : place + 1] = bytes([rng.choice(b"\x00\xff \n\"'{}[]<>,;:=/\\.-0")])
    return bytes(found)


def text(rng: random.Random) -> str:
    """A text that nobody means well with."""
    match rng.randrange(6):
        case 0:
            return rng.choice(PATHS)
        case 1:
            return rng.choice(ADDRESSES)
        case 2:
            return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(1, 8)))
        case 3:
            return rng.choice(NAMES) * rng.choice((1, 1, 1, 50, 5000))
        case 4:
            return rng.choice(
                ("nan", "None", "null", "true", "1e999", "-1", "0x10", "[]", "{}", "['a', 'b']", "b'a'")
            )
        case _:
            return rng.choice(NAMES) + rng.choice(NAMES)


def value(rng: random.Random, depth: int = 3) -> Any:
    """Something that JSON can hold, or nearly."""
    match rng.randrange(9 if depth else 6):
        case 0 | 1:
            return text(rng)
        case 2 | 3:
            return rng.choice(NUMBERS)
        case 4:
            return rng.choice((None, True, False))
        case 5:
            return rng.randint(-3, 300)
        case 6:
            return [value(rng, depth - 1) for _ in range(rng.randint(0, 4))]
        case 7:
            return {text(rng): value(rng, depth - 1) for _ in range(rng.randint(0, 4))}
        case _:
            nested: Any = []
            for _ in range(rng.choice((5, 100, 500))):
                nested = [nested] if rng.random() < 0.5 else {"a": nested}
            return nested


def altered(rng: random.Random, tree: Any) -> Any:
    """A copy of a tree of mappings and lists in which one place is something else, or gone, or there is one more."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.1:
        return value(rng)
    if isinstance(tree, list):
        place = rng.randrange(len(tree))
        return [*tree[:place], altered(rng, tree[place]), *tree[place + 1 :]]
    name = rng.choice(list(tree))
    match rng.randrange(6):
        case 0:
            return {key: old for key, old in tree.items() if key != name}
        case 1:
            return {**tree, text(rng): value(rng)}
        case 2:
            return {text(rng) if key == name else key: old for key, old in tree.items()}
        case _:
            return {**tree, name: altered(rng, tree[name])}


def as_json(rng: random.Random, tree: Any) -> bytes:
    """Of a tree, as any writer may have it: with NaN, halves of characters, in other encodings, damaged."""
    found = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.02:
        found = rng.choice(("[", '{"a":')) * 100_000 + found
    encoding = rng.choice(("utf-8",) * 6 + ("utf-8-sig", "utf-16", "latin-1"))
    data = found.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    return mutated(rng, data, 3) if rng.random() < 0.2 else data
