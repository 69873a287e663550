"""Ways to damage an adapter's folder, each with random numbers of its own."""

import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

BOMBS = [
    *("(a+)+$", "(.*a){30}$", r"(\w*)*\.x", "((((((a*)*)*)*)*)*)*b", "(.|a|.)*$", "(a|aa)+$"),
    *("a{1000000000}", "(?=a)b", r"(a)\1", "(?i)a", "(", "[", "a" * 5_000, "(" * 2_000, "(?P<"),
    *(".*" * 200 + "x", "(.*)+" * 30, "\\", "(?:a?){500}a{500}", ")|(", "^", "$", "|", ""),
]
CLIMBING = [
    *("../../etc/passwd", "/etc/passwd", "..", "a/../../b", "..\\..\\x", "__class__", "__dict__"),
    *("model.__init__", "forward", "~", "model..layers", ".", "", "\x00", "a\nb", "…", "%s", "{x}"),
]


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


ABSURD = [
    *(None, True, False, 0, -1, 1, 2, 8, 1.5, 10**9, 10**30, 10**400, -(10**9), 1e300, 1e-300),
    *(float("nan"), float("inf"), "", "8", "LORA", "ADALORA", "IA3", "pissa", "all", [], [1], {}),
    *([""], [None], {"a": 1}, {"": 2}, {"q": -1}, {"q": 10**9}, {"q": None}, {"q": [True]}, [[]]),
    *([*CLIMBING], dict.fromkeys(CLIMBING, 4), nested(30), nested(301), "x" * 10_000),
    *(dict.fromkeys(BOMBS[:8], 4), {str(n): 1 for n in range(3_000)}, ["lm_head"], ["dense"]),
]


def settings_text(folder):
    return (folder / "adapter_config.json").read_text()


def rewrite_settings(folder, change):
    settings = json.loads(settings_text(folder))
    change(settings)
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def set_field(folder, rng):
    def change(settings):
        extra = ["bias", "layer_replication", "use_qalora", "lora_bias", "target_parameters"]
        settings[rng.choice([*settings, *extra])] = rng.choice(ABSURD)

    rewrite_settings(folder, change)


def drop_field(folder, rng):
    rewrite_settings(folder, lambda s: s.pop(rng.choice(list(s))))


def add_pattern(folder, rng):
    def change(settings):
        field = rng.choice(["rank_pattern", "alpha_pattern"])
        key = rng.choice([*BOMBS, *CLIMBING])
        settings[field] = {key: rng.choice([2, 4, 10**9]), **settings[field]}

    rewrite_settings(folder, change)


def climb(folder, rng):
    field = rng.choice(["target_modules", "modules_to_save", "target_parameters"])
    rewrite_settings(folder, lambda s: s.update({field: rng.sample(CLIMBING, 3)}))


def double_field(folder, rng):
    settings = json.loads(settings_text(folder))
    key = rng.choice(list(settings))
    more = f'{{"{key}": {json.dumps(rng.choice(ABSURD))}, '
    (folder / "adapter_config.json").write_text(more + settings_text(folder).lstrip().lstrip("{"))


def odd_number(folder, rng):
    number = rng.choice(["1e400", "-1e400", "NaN", "Infinity", "9" * 5_000, "1e-400", "0x8", "08"])
    text = settings_text(folder).replace('"lora_alpha": 4', f'"lora_alpha": {number}')
    (folder / "adapter_config.json").write_text(text)


def odd_text(folder, rng):
    text = settings_text(folder)
    (folder / "adapter_config.json").write_bytes(
        rng.choice(
            [
                *(text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(), b"", b"\x00" * 50),
                *(b"[" * 100_000, b'{"a":' * 50_000, b"null", b'"LORA"', text.encode() * 2),
                text.encode() + b" " * 17 * 2**20,
            ]
        )
    )


def a_file(folder, rng):
    return folder / rng.choice(["adapter_config.json", "adapter_model.safetensors"])


def flip(folder, rng):
    path = a_file(folder, rng)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 4])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_header(folder, rng):
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    data[rng.randrange(8 + length)] = rng.choice(b'{}[]":,0123456789aFB ')
    path.write_bytes(data)


def cut(folder, rng):
    path = a_file(folder, rng)
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def insert(folder, rng):
    path = a_file(folder, rng)
    data, at = path.read_bytes(), rng.randrange(path.stat().st_size + 1)
    path.write_bytes(data[:at] + rng.randbytes(rng.choice([1, 8, 300])) + data[at:])


def blank(folder, rng):
    path = a_file(folder, rng)
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at : at + 64] = bytes(len(data[at : at + 64]))
    path.write_bytes(data)


def header_length(folder, rng):
    path = folder / "adapter_model.safetensors"
    length = rng.choice([0, 1, 7, 10**6, 2**31, 2**53, 2**63, 2**64 - 1])
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def header_field(folder, rng):
    path = folder / "adapter_model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    key = rng.choice(list(header))
    entry = header[key]
    if key == "__metadata__":
        name = rng.choice(list(entry))
        texts = ["", "{}", "[", "[" * 5_000, '{"a": 1}', "[[1]]", "null", "x" * 1_000]
        entry[name] = rng.choice([*texts, 5, None, {}])
    else:
        what = rng.choice(["dtype", "shape", "data_offsets", "name", "twice"])
        if what == "dtype":
            kinds = ["F64", "I32", "BF16", "F8_E4M3", "BOOL", "C64", "F4", "", "U8", 3]
            entry["dtype"] = rng.choice(kinds)
        elif what == "shape":
            shape = entry["shape"]
            wrong = [shape[::-1], [], [-1], [10**18, 0], [2**63], [*shape, 1], [0], None, ["2"]]
            entry["shape"] = rng.choice(wrong)
        elif what == "data_offsets":
            entry["data_offsets"] = rng.choice([[0, 0], [0, 2**40], [-4, 4], [8, 4], [0], "x"])
        elif what == "twice":
            header[key.replace("lora_A", "lora_A.other")] = entry
        else:
            header[rng.choice([*CLIMBING, "x" * 3_000, "a." * 200 + "lora_A.weight"])] = entry
            del header[key]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def rewrite_tensors(folder, change):
    """Change the tensors and keep what stands beside them."""
    from safetensors import safe_open

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    change(tensors)
    save_file({k: t.contiguous().clone() for k, t in tensors.items()}, path, metadata=metadata)


def odd_tensor(folder, rng):
    def change(tensors):
        key = rng.choice(list(tensors))
        old = tensors[key]
        flat = old.flatten()
        tensors[key] = rng.choice(
            [
                *(old.mT if old.ndim > 1 else old[None], old * float("nan"), old + float("inf")),
                *(
                    old.double() * 1e300,
                    old.int(),
                    old.bool(),
                    old[:0],
                    flat,
                    flat[0],
                    -old,
                    old * 2,
                ),
                *(
                    torch.zeros(3, 3),
                    torch.zeros(1, 1, 1, 1, 1, 1, 1),
                    old[None],
                    old[:1],
                    old.half(),
                ),
            ]
        )

    rewrite_tensors(folder, change)


def moved_tensor(folder, rng):
    def change(tensors):
        first, second = rng.sample(list(tensors), 2)
        what = rng.choice(["exchange", "drop", "copy", "rename", "extra"])
        if what == "exchange":
            tensors[first], tensors[second] = tensors[second], tensors[first]
        elif what == "drop":
            del tensors[first]
        elif what == "copy":
            tensors[second] = tensors[first]
        else:
            head, tail = first.rsplit(".lora_", 1) if ".lora_" in first else (first, "A.weight")
            path = rng.choice([*CLIMBING, "x" * 2_000, head + "x", "a." * 100 + "b"])
            tensors[f"base_model.model.{path}.lora_{tail}"] = tensors[first]
            if what == "rename":
                del tensors[first]

    rewrite_tensors(folder, change)


def without_metadata(folder, rng):
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata=rng.choice([None, {"format": "pt"}]))


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("the pickle ran",))


def pickled(folder, rng):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    target = folder / rng.choice(["adapter_model.safetensors", "adapter_model.bin"])
    if rng.random() < 0.5:
        target.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save(tensors, target)


def linked(folder, rng):
    path = a_file(folder, rng)
    away = folder / "elsewhere"
    shutil.move(path, away)
    targets = [away, path, "nowhere", "/dev/zero", "/etc/passwd", folder, "/", "/dev/null"]
    path.symlink_to(rng.choice(targets))


def no_file(folder, rng):
    path = a_file(folder, rng)
    path.unlink()
    rng.choice([path.mkdir, path.touch, lambda: os.mkfifo(path), lambda: None])()


def exchanged(folder, rng):
    one, two = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first if rng.random() < 0.5 else second)


WAYS = [
    *(set_field, set_field, set_field, drop_field, add_pattern, climb, double_field, odd_number),
    *(odd_text, flip, flip, flip_header, flip_header, cut, insert, blank, header_length),
    *(header_field, header_field, odd_tensor, odd_tensor, moved_tensor, moved_tensor),
    *(without_metadata, pickled, linked, no_file, exchanged),
]
