"""Whatever bytes a file holds: one sentence with its path, no crash, no gigabytes."""

import json
import os
import random
import re
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch
from loading.formats import damage
from loading.formats.cases import named

from saekit.files import Stamp
from saekit.loading.names import load_sae, open_sae

GEMMA, TORCH, TENSORS = (
    "gemma_scope/gemma-scope-2b-pt-res",
    "dictionary_learning/autoencoder",
    "saelens/standard",
)
PACKED = "gemma_scope/gemma-scope-2b-pt-mlp"


def one_sentence(case, message="."):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_sae(case.source)
    text = str(caught.value)
    assert str(case.folder) in text
    assert "\n" not in text
    assert text.endswith(".")


@pytest.mark.parametrize("name", [GEMMA, TORCH, TENSORS])
@pytest.mark.parametrize(
    "content",
    [
        b"a few words\n",
        b"\x80\x02",
        b"\x80\x02}q\x00.",
        b"PK\x03\x04" + bytes(100),
        b"PK\x05\x06" + bytes(18),
        bytes(1000),
        random.Random(0).randbytes(3000),
        b'{"a": 1}',
        b"(lp0\nI1\na.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 3) + b"[1]",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_bytes_that_are_no_tensors(name, content, tmp_path):
    case = named(name).copy(tmp_path)
    case.weights.write_bytes(content)
    one_sentence(case)


@pytest.mark.parametrize("name", [GEMMA, PACKED, TORCH])
def test_a_flipped_byte_in_an_archive_is_found_by_its_checksum(name, tmp_path):
    case = named(name).copy(tmp_path)
    with zipfile.ZipFile(case.weights) as archive:
        member = max(archive.infolist(), key=lambda member: member.compress_size)
    whole = case.weights.read_bytes()
    generator = np.random.default_rng(0)
    middle = member.header_offset + 200 + generator.integers(0, member.compress_size - 200, 5)
    for place in middle.tolist():
        data = bytearray(whole)
        data[place] ^= 1
        case.weights.write_bytes(data)
        one_sentence(case, "is damaged or not")
    case.weights.write_bytes(whole)
    load_sae(case.source)


def test_an_encrypted_archive(tmp_path):
    case = named(GEMMA).copy(tmp_path)
    data = bytearray(case.weights.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(signature), bytes(data)):
            data[found.start() + offset] |= 1
    case.weights.write_bytes(data)
    one_sentence(case, "is encrypted, password required")


def npy(shape, data=b"", descr="<f4", version=1):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (npy((10**6, 10**7)), "claims the shape"),
        (npy((2**40,) * 3), "claims the shape"),
        (npy((-1, 40)), "."),
        (npy((12, 40), bytes(4 * 12 * 40), version=9), "."),
        (npy((12, 40), bytes(8 * 12 * 40), "|O8"), "objects"),
        (npy((12, 40), bytes(4 * 12 * 40), ">f4"), "."),
        (npy((12, 40), bytes(100), "<f4,<f4"), "."),
        (b"\x93NUMPY", "."),
        (b"", "."),
    ],
    ids=range(9),
)
def test_arrays_that_claim_what_they_do_not_hold(array, message, compression, tmp_path):
    case = named(GEMMA).copy(tmp_path)
    entries = damage.read(case.weights)
    with zipfile.ZipFile(case.weights, "w", compression) as archive:
        for name, tensor in entries.items():
            stored = npy(tuple(tensor.shape), tensor.numpy().tobytes())
            archive.writestr(f"{name}.npy", array if name == "W_enc" else stored)
    one_sentence(case, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:1].clone().expand(t.shape), "repeats fewer values than its shape"),
        (lambda t: torch.zeros(1).expand(1 << 20, 1 << 20), "repeats fewer values than its shape"),
        (lambda t: torch.empty(t.shape, device="meta"), "found no values .a meta tensor"),
        (lambda t: t.to_sparse(), "must be a dense tensor"),
        (lambda t: t.to(torch.float8_e4m3fn), "found torch.float8_e4m3fn"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "found torch.qint8"),
        (lambda t: t.bool(), "found torch.bool"),
        (lambda t: t.tolist(), "found list"),
        (lambda t: None, "found NoneType"),
    ],
    ids=["row", "huge", "meta", "sparse", "float8", "quantised", "bool", "list", "none"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_values(change, message, tmp_path):
    case = named(TORCH).copy(tmp_path)
    entries = damage.read(case.weights)
    damage.write(case.weights, entries | {"encoder.weight": change(entries["encoder.weight"])})
    one_sentence(case, message)


def test_settings_that_are_nested_deeply(tmp_path):
    for name in (TENSORS, TORCH, "sparsify/topk", "batchtopk/topk", "gemma_scope_2/resid_post"):
        case = named(name).copy(tmp_path)
        case.config.write_text('{"a":' * 100_000)
        one_sentence(case, "is not a JSON file")


@pytest.mark.parametrize("value", ["12", 12.0, True, None, [12], {"a": 1}, -12, 10**30])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        (TENSORS, ["d_in", "d_sae"]),
        ("saelens/topk", ["k"]),
        ("sparsify/topk", ["d_in", "k"]),
        ("batchtopk/topk", ["act_size", "dict_size", "top_k"]),
        ("connor_rob_hook_z/layer_3", ["act_size", "dict_size"]),
        (TORCH, ["trainer"]),
    ],
)
def test_settings_of_a_wrong_type_or_size(name, keys, value, tmp_path):
    case = named(name).copy(tmp_path)
    settings = json.loads(case.config.read_text())
    for key in keys:
        case.config.write_text(json.dumps(settings | {key: value}))
        one_sentence(case)


def test_files_that_are_no_files_of_tensors_by_their_name(tmp_path):
    for name in ("notes.txt", "sae.bin", "cfg.json"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(ValueError, match=f"{name} holds no SAE that saekit recognises"):
            load_sae(tmp_path / name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_neither_cut_files_nor_claims_of_gigabytes_end_the_process(tmp_path):
    """In a process of its own: SIGBUS would kill it, and it may use 3 GB of addresses beyond what it has."""
    cut = [named(name).copy(tmp_path / "cut") for name in (GEMMA, TORCH, TENSORS)]
    case = named(GEMMA).copy(tmp_path)
    with zipfile.ZipFile(case.weights, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", npy((10**5, 10**6)))
    other = named(TORCH).copy(tmp_path)
    entries = damage.read(other.weights)
    damage.write(other.weights, entries | {"encoder.weight": torch.zeros(1).expand(1 << 18, 1 << 18)})
    script = f"""
import os, resource
from saekit.loading.names import load_sae, open_sae
for source, weights in {[(str(case.source), str(case.weights)) for case in cut]!r}:
    sae = open_sae(source)
    os.truncate(weights, 40)
    try:
        sae.fold()
    except ValueError as error:
        print(error)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30,) * 2)
for source in ({str(case.source)!r}, {str(other.source)!r}):
    try:
        load_sae(source)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5, lines
    for line, each in zip(lines, cut, strict=False):
        assert f"{each.weights} has changed since it was opened: open it again" in line


# ------------------------------------------------------------------------------ files that change


def test_a_file_written_over_or_removed_is_an_error(tmp_path):
    case = named(TENSORS).copy(tmp_path)
    sae, data = open_sae(case.source), case.weights.read_bytes()
    assert [stamp.path for stamp in sae.stamps] == [case.weights]
    sae.fold()
    os.utime(case.weights, ns=(0, Stamp.of(case.weights).changed + 1))
    with pytest.raises(ValueError, match="has changed since it was opened"):
        sae.fold()
    path = case.weights
    path.unlink()
    with pytest.raises(ValueError, match="has changed since it was opened"):
        sae.fold()
    path.write_bytes(data)
    open_sae(case.source).fold()


def test_every_file_that_is_mapped_is_watched(tmp_path):
    case = named("saelens/checkpoint_standard_whitened").copy(tmp_path)
    assert {stamp.path.name for stamp in open_sae(case.source).stamps} == {
        "sae_weights.safetensors",
        "activation_whitening.safetensors",
    }


def test_the_checksum_is_that_of_the_archive(tmp_path):
    """Checked independently: the CRC of the bytes between the headers."""
    path = named(GEMMA).weights
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            assert zlib.crc32(archive.read(member)) == member.CRC
