"""One logical input set reaches each model in its own names, layout and dtype."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxfix
from onnxfix import Inputs
from onnxfix.errors import AlignmentError, InputError
from onnxfix.inputs import pair_inputs, pair_outputs

FLOAT, INT64, BOOL, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8


def model(*inputs, outputs=None):
    """A model whose outputs are its inputs; each input is (name, shape) or (name, shape, dtype)."""
    specs = [(*i, FLOAT) if len(i) == 2 else i for i in inputs]
    nodes = [helper.make_node("Identity", [n], [f"out_{n}"], name=f"copy_{n}") for n, _, _ in specs]
    infos = [helper.make_tensor_value_info(n, t, s) for n, s, t in specs]
    outs = [helper.make_tensor_value_info(f"out_{n}", t, outputs or s) for n, s, t in specs]
    graph = helper.make_graph(nodes, "g", infos, outs)
    return onnxfix.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def fed(data, source, side="source"):
    return list(Inputs.of(data).feeds(source, side))


def together(feeds, name):
    return np.concatenate([feed[name] for feed in feeds])


X = np.random.default_rng(0).normal(size=(5, 3, 8, 9)).astype(np.float32)


@pytest.mark.parametrize(
    "data",
    [X, {"x": X}, {"0": X}, {"whatever": X}, [X[:2], X[2:]], [(X[:3], np.zeros(3)), (X[3:], np.zeros(2))],
     [{"x": X[:1]}, {"x": X[1:]}], [(x, 7) for x in X], list(X), [{"x": x} for x in X], iter([X]), X.astype(np.float64)],
    ids=["array", "dict", "position", "other-name", "batches", "labelled", "dicts", "labelled-samples", "samples",
         "dict-samples", "iterator", "float64"],
)
def test_every_form_of_data_gives_the_same_samples(data):
    feeds = fed(data, model(("x", ["n", 3, 8, 9])))
    np.testing.assert_array_equal(together(feeds, "x"), X)
    assert all(feed["x"].dtype == np.float32 for feed in feeds)


def test_files_give_the_same_samples(tmp_path):
    np.savez(tmp_path / "named.npz", x=X)
    np.savez(tmp_path / "positional.npz", X)
    np.save(tmp_path / "plain.npy", X)
    for name in ("named.npz", "positional.npz", "plain.npy"):
        np.testing.assert_array_equal(together(fed(tmp_path / name, model(("x", ["n", 3, 8, 9]))), "x"), X)


def test_frameworks_iterables_are_read():
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(X), torch.arange(5)), batch_size=2
    )
    feeds = fed(loader, model(("x", ["n", 3, 8, 9])))
    assert [len(feed["x"]) for feed in feeds] == [2, 2, 1]
    np.testing.assert_array_equal(together(feeds, "x"), X)


def test_numbered_npz_entries_are_whole_feeds(tmp_path):
    a, b = np.ones((1, 3, 16, 16), np.float32), np.ones((1, 3, 32, 24), np.float32)
    np.savez(tmp_path / "d.npz", x=a, x__1=b, x__2=a)
    data = Inputs(tmp_path / "d.npz")
    assert [feed["x"].shape for feed in data.feeds(model(("x", ["n", 3, "h", "w"])))] == [a.shape, b.shape, a.shape]
    work, holdout = data.split(0.3)
    assert (work.count, holdout.count) == (2, 1)


def test_two_models_get_the_same_samples_in_their_own_layout():
    source, target = model(("x", ["n", 3, 8, 9])), model(("serving_default_x:0", ["m", 8, 9, 3]))
    for data in (X, X.transpose(0, 2, 3, 1), {"serving_default_x:0": X}):
        pairs = list(Inputs(data, batch_size=2).paired_feeds(source, target))
        assert len(pairs) == 3
        ours = np.concatenate([a["x"] for a, _ in pairs])
        theirs = np.concatenate([b["serving_default_x:0"] for _, b in pairs])
        np.testing.assert_array_equal(ours, X)
        np.testing.assert_array_equal(theirs, X.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("batch, lengths", [(1, [1] * 5), (4, [4, 4]), (8, [8])])
def test_a_fixed_batch_sets_the_chunks_of_both_models(batch, lengths):
    source, target = model(("x", ["n", 3, 8, 9])), model(("y", [batch, 3, 8, 9]))
    chunks = list(Inputs(X).chunks(source, target))
    assert [len(c.target["y"]) for c in chunks] == lengths
    assert sum(c.count for c in chunks) == 5
    np.testing.assert_array_equal(np.concatenate([c.target["y"][: c.count] for c in chunks]), X)
    np.testing.assert_array_equal(np.concatenate([c.source["x"][: c.count] for c in chunks]), X)


def test_outputs_that_hold_one_sample_mean_a_batch_of_one():
    feeds = fed(X, model(("x", ["n", 3, 8, 9]), outputs=[1, 3, 8, 9]))
    assert [feed["x"].shape[0] for feed in feeds] == [1] * 5


def test_a_feed_that_fits_a_static_model_stays_whole(tmp_path):
    points, index = np.ones((25, 3), np.float32), np.arange(25)
    np.savez(tmp_path / "d.npz", pts=points, idx=index, pts__1=points, idx__1=index)
    source = model(("pts", [25, 3]), ("idx", [25], INT64))
    assert [feed["idx"].shape for feed in Inputs(tmp_path / "d.npz").feeds(source)] == [(25,), (25,)]


def test_inputs_of_several_models_are_matched_by_name_order_or_shape():
    source = model(("ids", ["n", 8], INT64), ("mask", ["n", 8]))
    for target in (
        model(("mask", [1, 8]), ("ids", [1, 8], INT64)),
        model(("serving_default_mask:0", [1, 8]), ("serving_default_ids:0", [1, 8], INT64)),
        model(("a", [1, 8]), ("b", [1, 8], INT64)),
    ):
        pairs = {p.source.name: p.target for p in pair_inputs(source, target)}
        assert pairs["ids"].dtype == np.int64
        assert pairs["mask"].dtype == np.float32


def test_inputs_that_cannot_be_matched_name_both_models():
    with pytest.raises(AlignmentError, match=r"x: float32\[n, 3, 8, 8\].*y: float32\[n, 5\]"):
        pair_inputs(model(("x", ["n", 3, 8, 8])), model(("y", ["n", 5])))
    with pytest.raises(AlignmentError, match="cannot be matched"):
        pair_inputs(model(("x", ["n", 4])), model(("x", ["n", 4]), ("z", ["n", 4])))


def test_outputs_are_paired_by_position():
    pairs = pair_outputs(model(("x", ["n", 3, 8, 9])), model(("x", ["n", 8, 9, 3]), ("z", ["n", 4])))
    assert [p.permutation for p in pairs] == [(0, 2, 3, 1)]


def test_split_is_disjoint_complete_and_repeatable():
    data = Inputs({"x": np.arange(10, dtype=np.float32)[:, None]})
    work, holdout = data.split(0.3, seed=1)
    tiny = model(("x", ["n", 1]))
    a, b = (together(list(part.feeds(tiny)), "x").ravel() for part in (work, holdout))
    assert (len(a), len(b)) == (7, 3)
    assert sorted([*a, *b]) == list(range(10))
    again = together(list(data.split(0.3, seed=1)[1].feeds(tiny)), "x").ravel()
    np.testing.assert_array_equal(again, b)
    assert "3 of the 10 samples" in holdout.note


def test_a_single_sample_is_its_own_holdout_and_says_so():
    work, holdout = Inputs(X[:1]).split()
    assert work.count == holdout.count == 1
    assert "single sample" in holdout.note


def test_limit_and_take_count_samples():
    assert Inputs(X, limit=2).count == 2
    assert Inputs(X).take(3).count == 3
    endless = iter(lambda: (X[0], 1), None)
    assert [len(f["x"]) for f in Inputs(endless, limit=4).feeds(model(("x", ["n", 3, 8, 9])))] == [4]


def test_preprocessing_can_differ_for_each_side():
    source, target = model(("x", ["n", 3, 8, 9])), model(("y", ["n", 8, 9, 3]))
    data = Inputs({"image": X}, source_preprocess=lambda d: {"x": d["image"] / 2}, target_preprocess=lambda d: d["image"] + 1)
    (ours, theirs), = data.paired_feeds(source, target)
    np.testing.assert_array_equal(ours["x"], X / 2)
    np.testing.assert_array_equal(theirs["y"], (X + 1).transpose(0, 2, 3, 1))


def test_pictures_are_scaled_ordered_and_laid_out(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, colour in (("b.png", (255, 0, 0)), ("a.jpg", (0, 0, 0)), ("c.bmp", (0, 0, 255))):
        image.new("RGB", (20, 12), colour).save(tmp_path / name)
    (tmp_path / "labels.json").write_text("{}")
    nchw, nhwc = model(("x", ["n", 3, 8, 10])), model(("y", ["n", 8, 10, 3]))
    (ours, theirs), = Inputs(tmp_path).paired_feeds(nchw, nhwc)
    np.testing.assert_array_equal(ours["x"][:, :, 0, 0], [[0, 0, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(theirs["y"], ours["x"].transpose(0, 2, 3, 1))
    raw = fed(tmp_path, model(("x", ["n", 8, 10, 3], UINT8)))[0]["x"]
    np.testing.assert_array_equal(raw[1, 0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    "name, expected",  # of a pure red pixel, by the published formulas
    [("unit", [1, 0, 0]), ("tf", [1, -1, -1]), ("raw", [255, 0, 0]),
     ("torch", [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]),
     ("caffe", [-103.939, -116.779, 255 - 123.68])],
)
def test_named_preprocessing(tmp_path, name, expected):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")
    feed, = Inputs(tmp_path, preprocess=name).feeds(model(("x", ["n", 4, 4, 3])))
    np.testing.assert_allclose(feed["x"][0, 0, 0], expected, rtol=1e-6)


def test_dtypes_change_only_where_values_keep_their_meaning():
    ids = model(("ids", ["n", 4], INT64))
    whole = np.array([[0.0, 1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(fed(whole, ids)[0]["ids"], [[0, 1, 2, 3]])
    np.testing.assert_array_equal(fed(whole.astype(np.uint8), ids)[0]["ids"], [[0, 1, 2, 3]])
    assert fed(whole[:, :2].astype(bool), model(("m", ["n", 2], BOOL)))[0]["m"].dtype == np.bool_
    with pytest.raises(InputError, match=r"ids are float64, but the model expects int64.*whole"):
        fed(whole + 0.5, ids)
    with pytest.raises(InputError, match="between 0 and 255"):
        fed(np.full((1, 4), 300), model(("p", ["n", 4], UINT8)))
    with pytest.raises(InputError, match="expects int64: give numbers"):
        fed(np.array([["a", "b", "c", "d"]]), ids)


@pytest.mark.parametrize(
    "data, message",
    [
        (np.zeros((0, 3, 8, 9)), "empty"),
        ({}, "empty"),
        ([], "empty"),
        (7, "cannot be read"),
        ("missing.npz", "missing.npz does not exist"),
        (np.zeros((2, 3, 8, 8)), r"shape \[2, 3, 8, 8\], but the model expects x: float32\[n, 3, 8, 9\]"),
        (np.zeros((2, 7)), r"shape \[2, 7\]"),
        ({"a": X, "b": X}, r"\(a: float32\[5, 3, 8, 9\]; b: .*do not have what the models take \(x: float32"),
        ([{"x": X}, {"z": X}], "item 1 of the data has no x"),
    ],
)
def test_unusable_data_are_refused_in_words(data, message):
    with pytest.raises(InputError, match=message):
        fed(data, model(("x", ["n", 3, 8, 9])))


@pytest.mark.parametrize("value, what", [(np.nan, "NaN"), (np.inf, "infinity")])
def test_values_that_are_not_finite_are_located(value, what):
    bad = X.copy()
    bad[3, 1, 2, 4] = value
    with pytest.raises(InputError, match=rf"input x contain {what} at index \[3, 1, 2, 4\]"):
        fed({"x": bad}, model(("x", ["n", 3, 8, 9])))


def test_unequal_lengths_are_refused():
    two = model(("a", ["n", 2]), ("b", ["n", 2]))
    with pytest.raises(InputError, match=r"different numbers of samples \(a: 3, b: 4\)"):
        fed({"a": np.ones((3, 2)), "b": np.ones((4, 2))}, two)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "text.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    for name, message in (("cut.npz", "damaged"), ("text.csv", "no data"), ("empty", "no pictures")):
        with pytest.raises(InputError, match=message):
            Inputs(tmp_path / name)
