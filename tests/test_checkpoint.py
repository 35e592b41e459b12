"""Checkpoints hold everything, execute nothing, and say what is wrong with them."""

import pickle
import random

import jax
import numpy as np
import pytest
import safetensors.numpy

from perla.errors import UserError
from perla.runs import checkpoint
from perla.runs.checkpoint import Meta

TREE = {
    "scalar": np.float32(3),
    "num_layers": [np.zeros((0, 3), np.float32), np.arange(6.0).reshape(2, 3).T, None],
    "key": np.array([1, 2], np.uint32),
    "flag": np.array(True),
}
META = Meta(
    run="identity",
    evaluation=3,
    step=30,
    metrics_lines=4,
    metrics_digest="digest",
    wall_seconds=1.5,
    compile_seconds=0.5,
)


def template(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), tree)


def refusal(path, tree=TREE) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, template(tree))
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.fixture
def saved(tmp_path):
    path = checkpoint.path_of(tmp_path, 30)
    checkpoint.save(path, TREE, META)
    return path


def test_what_is_saved_is_loaded_to_the_bit(saved):
    tree, meta = checkpoint.load(saved, template(TREE))
    assert meta == META.replace(digest=meta.digest)
    assert jax.tree.structure(tree) == jax.tree.structure(TREE)
    for back, leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(TREE), strict=True):
        assert back.dtype == leaf.dtype
        np.testing.assert_array_equal(back, leaf)


def test_saving_leaves_one_file_and_nothing_else(saved):
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.safetensors")


def test_an_unreadable_file(tmp_path):
    path = tmp_path / "folder.safetensors"
    path.mkdir()
    assert "is a directory" in refusal(path)


@pytest.mark.parametrize("keep", [1, 7, 8, 9, 100, -1, -20])
def test_a_truncated_file(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    assert "truncated" in refusal(saved) or "not a checkpoint" in refusal(saved)


@pytest.mark.parametrize(
    "foreign",
    [b"", b"hello\n", pickle.dumps({"a": 1}), b"\x89PNG\r\n\x1a\n" * 20, b"PK\x03\x04" * 50],
    ids=["empty", "text", "pickle", "png", "zip"],
)
def test_a_foreign_file(tmp_path, foreign):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(foreign)
    assert "not a checkpoint" in refusal(path)


def test_a_safetensors_file_of_somebody_else(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}))
    assert "not a checkpoint of perla" in refusal(path)


def test_any_flipped_bit_is_noticed(saved):
    data = bytearray(saved.read_bytes())
    chance = random.Random(0)
    for _ in range(300):
        position, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
        data[position] ^= bit
        saved.write_bytes(data)
        refusal(saved)
        data[position] ^= bit


@pytest.mark.parametrize(
    "other",
    [
        TREE | {"key": np.zeros(3, np.uint32)},
        TREE | {"key": np.zeros(2, np.int32)},
        TREE | {"more": np.zeros(2)},
        {name: leaf for name, leaf in TREE.items() if name != "key"},
    ],
    ids=["shape", "type", "missing", "superfluous"],
)
def test_a_checkpoint_of_another_configuration(saved, other):
    text = refusal(saved, other)
    assert "another configuration" in text
    assert "key" in text or "more" in text


def test_a_checkpoint_of_another_format(tmp_path):
    path = tmp_path / "future.safetensors"
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}, {"perla": '{"format": 99}'}))
    assert "format 99" in refusal(path)


@pytest.mark.parametrize(
    ("keep", "kept"), [(2, [200, 10]), (1, [200]), (3, [200, 10, 9]), (None, [200, 10, 9, 0])]
)
def test_the_newest_are_kept(tmp_path, keep, kept):
    for step in (0, 10, 9, 200):
        checkpoint.save(checkpoint.path_of(tmp_path, step), TREE, META)
    checkpoint.prune(tmp_path, keep)
    assert checkpoint.newest_first(tmp_path) == [checkpoint.path_of(tmp_path, s) for s in kept]
