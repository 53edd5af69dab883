"""Preparations: applied as said, and read off what comes with a model."""

from __future__ import annotations

import json
import struct
import types

import numpy as np
import pytest

import onnxfix
from onnxfix.errors import InputError
from onnxfix.inputs import Inputs, Preparation
from onnxfix.inputs.images import decode_as
from small_onnx import normal, parse


def test_pixels_become_what_the_recipe_says():
    pixels = np.array([[[[0, 51, 255]]]], np.uint8)
    np.testing.assert_allclose(Preparation()(pixels), [[[[0, 0.2, 1]]]], rtol=1e-6)
    prepared = Preparation(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2), order="BGR")(pixels)
    np.testing.assert_allclose(prepared, [[[[1.8, 0, -0.15]]]], rtol=1e-6, atol=1e-7)
    signed = Preparation(scale=1, mean=(128,), dtype="int8")(pixels)
    assert signed.dtype == np.int8
    np.testing.assert_array_equal(signed, [[[[-128, -77, 127]]]])


@pytest.mark.parametrize("wrong", [{"order": "GBR"}, {"filter": "sharp"}, {"std": (0.0,)}])
def test_a_recipe_that_cannot_be_followed_is_refused(wrong):
    with pytest.raises(InputError):
        Preparation(**wrong)


def test_torchvision_transforms_are_read():
    mode = types.SimpleNamespace(value="bicubic")
    transforms = types.SimpleNamespace(mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3], crop_size=[224], resize_size=[256], interpolation=mode)
    weights = types.SimpleNamespace(transforms=lambda: transforms)
    for given in (weights, transforms):
        found = Preparation.read(given)
        assert (found.mean, found.std, found.size, found.crop) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 256, (224, 224))
        assert found.filter == "bicubic"
    with pytest.raises(InputError, match="says nothing"):
        Preparation.read(types.SimpleNamespace())


def test_pictures_are_scaled_and_cut_as_torchvision_does(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from onnxfix.frameworks.torchvision_ops import ensure_torchvision_importable

    ensure_torchvision_importable()
    presets = pytest.importorskip("torchvision.transforms._presets", reason="torchvision is not installed")
    picture = image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 47, 3)).astype(np.uint8))
    picture.save(tmp_path / "a.png")
    transforms = presets.ImageClassification(crop_size=24, resize_size=30)
    found = Preparation.read(transforms)
    ours = found(decode_as(str(tmp_path / "a.png"), (24, 24), 3, found)[None])[0].transpose(2, 0, 1)
    np.testing.assert_allclose(ours, transforms(picture).numpy(), atol=2e-6)


def test_hugging_face_configurations_are_read(tmp_path):
    config = {
        "do_resize": True, "size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 200},
        "resample": 3, "do_rescale": True, "rescale_factor": 0.5, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    wanted = Preparation(scale=0.5, mean=(0.5,) * 3, std=(0.25,) * 3, size=256, crop=(224, 200), filter="bicubic")
    for given in (config, tmp_path, tmp_path / "preprocessor_config.json"):
        assert Preparation.read(given) == wanted
    assert Preparation.read({"do_resize": False, "do_rescale": False, "size": 224}) == Preparation(scale=1.0)
    with pytest.raises(InputError, match="says nothing"):
        Preparation.read({"vocab_size": 5})


def test_tflite_metadata_are_read(tmp_path):
    flatbuffers = pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    inner = flatbuffers.Builder(256)

    def vector(builder, items, prepend, size=4):
        builder.StartVector(size, len(items), 4)
        for item in reversed(items):
            prepend(item)
        return builder.EndVector()

    mean = vector(inner, [127.5], inner.PrependFloat32)
    std = vector(inner, [63.75], inner.PrependFloat32)

    def table(builder, count, **slots):
        builder.StartObject(count)
        for slot, offset in slots.items():
            builder.PrependUOffsetTRelativeSlot(int(slot[1:]), offset, 0)
        return builder.EndObject()

    options = table(inner, 2, s0=mean, s1=std)
    inner.StartObject(2)
    inner.PrependUint8Slot(0, 1, 0)
    inner.PrependUOffsetTRelativeSlot(1, options, 0)
    unit = inner.EndObject()
    units = vector(inner, [unit], inner.PrependUOffsetTRelative)
    tensor = table(inner, 7, s4=units)
    tensors = vector(inner, [tensor], inner.PrependUOffsetTRelative)
    subgraph = table(inner, 7, s2=tensors)
    subgraphs = vector(inner, [subgraph], inner.PrependUOffsetTRelative)
    inner.Finish(table(inner, 8, s3=subgraphs))

    outer = flatbuffers.Builder(1024)
    content = outer.CreateByteVector(bytes(inner.Output()))
    buffer = table(outer, 1, s0=content)
    buffers = vector(outer, [buffer], outer.PrependUOffsetTRelative)
    name = outer.CreateString("TFLITE_METADATA")
    outer.StartObject(2)
    outer.PrependUOffsetTRelativeSlot(0, name, 0)
    outer.PrependUint32Slot(1, 0, 0)
    entry = outer.EndObject()
    entries = vector(outer, [entry], outer.PrependUOffsetTRelative)
    outer.Finish(table(outer, 8, s4=buffers, s6=entries))
    (tmp_path / "m.tflite").write_bytes(bytes(outer.Output()))
    assert Preparation.read(tmp_path / "m.tflite") == Preparation(scale=1.0, mean=(127.5,), std=(63.75,))
    (tmp_path / "none.tflite").write_bytes(struct.pack("<I", 8) + bytes(40))
    with pytest.raises(InputError, match="metadata"):
        Preparation.read(tmp_path / "none.tflite")


def test_each_side_scales_and_cuts_pictures_in_its_own_way(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    for k in range(3):
        image.fromarray(np.roll(pixels, k, 1)).save(tmp_path / f"{k}.png")
    model = onnxfix.load(parse("net (float[N, 8, 8, 3] x) => (float[N, 8, 8, 2] y) { y = MatMul(x, w) }", w=normal(3, 2)))
    cut = Preparation(scale=1.0, size=(20, 30), crop=(8, 8))
    [chunk] = Inputs(tmp_path, source_preprocess=cut, target_preprocess="raw").chunks(model, model)
    np.testing.assert_array_equal(chunk.source["x"][0], pixels[6:14, 11:19])
    whole = np.asarray(image.fromarray(pixels).resize((8, 8), image.Resampling.BILINEAR))
    np.testing.assert_array_equal(chunk.target["x"][0], whole)
    both = Inputs(tmp_path, preprocess=cut)
    [chunk] = both.chunks(model, model)
    np.testing.assert_array_equal(chunk.source["x"], chunk.target["x"])
