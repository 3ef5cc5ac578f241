"""The head at small sizes: sizes from the config, bias flow, training and detection through data samples."""

import math

import pytest
import torch

from pipeline.config.plan import Choice
from pipeline.data.sample import Sample
from pipeline.detector import build  # noqa: F401  registers the modules of the config
from pipeline.detector.aqr.bias_generator import AttentionBiasGenerator
from pipeline.detector.head.cmt_head import CmtAqrHead
from pipeline.detector.openmmlab.data_samples import collate
from pipeline.runtime.collectives import RankMean

DIMS, HEADS, LAYERS, QUERIES, CLASSES = 32, 4, 3, 20, 10
BEV, IMAGE, PAD, VIEWS = (6, 8), (2, 5), (32, 80), 6
AQR_SITES = ["aqr.0.cross"]
DECODER_SITES = [f"decoder.{i}.{kind}" for i in range(LAYERS) for kind in ("self", "cross")]


def attention(**more):
    return {
        "type": "PETRMultiheadFlashAttention",
        "embed_dims": DIMS,
        "num_heads": HEADS,
        "dropout": 0.0,
        **more,
    }


def config(published, aqr=True, **changes):
    ffn = {"embed_dims": DIMS, "feedforward_channels": 64}
    layer = {
        "attn_cfgs": [attention(type="MultiheadAttention"), attention()],
        "ffn_cfgs": ffn,
        "operation_order": ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    }
    encoder = {
        "attn_cfgs": [attention()],
        "ffn_cfgs": ffn,
        "operation_order": ("cross_attn", "norm", "ffn", "norm"),
    }
    windows = {"window_lidar": 3, "window_camera": 3}
    changed = {
        "in_channels": 24,
        "hidden_dim": DIMS,
        "num_query": QUERIES,
        "depth_num": 8,
        "transformer": {"decoder": {"num_layers": LAYERS, "transformerlayers": layer}},
        **changes,
    }
    if aqr:
        changed["aqr_config"] = {
            "type": "AqrWeightGenerator",
            "embed_dims": DIMS,
            "encoder_config": {"transformerlayers": encoder},
            **windows,
        }
        changed["bias_config"] = {"type": AttentionBiasGenerator, **windows}
    return published.head_config(**changed)


def lidar2img():
    """Six cameras in a ring, 80 x 32 pixels."""
    matrices = []
    for i in range(VIEWS):
        a = i * math.pi / 3
        turn = torch.tensor(
            [
                [math.sin(a), -math.cos(a), 0, 0],
                [0, 0, -1, 0],
                [math.cos(a), math.sin(a), 0, 0],
                [0, 0, 0, 1],
            ]
        )
        intrinsics = torch.eye(4)
        intrinsics[0, 0] = intrinsics[1, 1] = 60
        intrinsics[0, 2], intrinsics[1, 2] = 40, 16
        matrices.append(intrinsics @ turn)
    return torch.stack(matrices).double()


def samples(counts):
    made = []
    for i, n in enumerate(counts):
        boxes = torch.rand(n, 9) * 4 + 1
        boxes[:, :2] = torch.rand(n, 2) * 80 - 40
        made.append(
            Sample(
                token=str(i),
                scene="s",
                images=torch.zeros(VIEWS, *PAD, 3, dtype=torch.uint8).numpy(),
                points=torch.zeros(1, 5).numpy(),
                lidar2img=lidar2img().numpy(),
                boxes=boxes.numpy(),
                labels=torch.randint(0, CLASSES, (n,)).numpy(),
                lidar2ego=torch.eye(4).double().numpy(),
                ego2global=torch.eye(4).double().numpy(),
            )
        )
    data_samples = collate(made)["data_samples"]
    for sample in data_samples:
        sample.set_metainfo({"batch_input_shape": PAD})
    return data_samples


def features(batch):
    return torch.rand(batch, 24, *BEV), torch.rand(batch * VIEWS, DIMS, *IMAGE)


def run(head, batch=2, **more):
    torch.manual_seed(1)
    return head(*features(batch), lidar2img().expand(batch, -1, -1, -1), PAD, **more)


@pytest.fixture
def head(published):
    return CmtAqrHead(**config(published)).eval()


def test_sizes_come_from_config_and_features(head):
    output = run(head)
    assert output.matching.codes.shape == (LAYERS, 2, QUERIES, 10)
    assert output.matching.logits.shape == (LAYERS, 2, QUERIES, CLASSES)
    assert output.weights.shape == (2, QUERIES, 2)
    assert output.denoising is None


def test_sites_in_order_of_computation(published, head):
    assert list(head.sites) == AQR_SITES + DECODER_SITES
    plain = CmtAqrHead(**config(published, aqr=False))
    assert list(plain.sites) == DECODER_SITES
    assert {str(site.choice) for site in plain.sites.values()} == {"none/sdpa_math"}


def test_each_layer_gets_the_kind_of_bias_it_chose(head):
    chosen = ("window", "none", "global")
    for i, kind in enumerate(chosen):
        head.sites[f"decoder.{i}.cross"].choice = Choice(kind, "sdpa_math")
    handed = {}
    for name, site in head.sites.items():
        site.register_forward_pre_hook(
            lambda _m, _a, kwargs, name=name: handed.__setitem__(name, kwargs.get("bias")), with_kwargs=True
        )
    run(head)
    kinds = [handed[f"decoder.{i}.cross"] for i in range(LAYERS)]
    assert [b if b is None else b.kind for b in kinds] == ["window", None, "global"]
    assert all(handed[f"decoder.{i}.self"] is None for i in range(LAYERS))
    assert handed["aqr.0.cross"].kind == "local"


def test_windows_lie_where_the_queries_are(head):
    made = []
    head.bias_generator.register_forward_hook(lambda *a: made.extend(a[-1]))
    points = torch.tensor([[0.5, 0.2, 0.5], [0.9, 0.99, 0.5], [-0.02, 1.02, 0.5]])  # the last lies outside
    head.reference_points.weight.data[:3] = points
    run(head)
    row_first, row_last, col_first, col_last = made[0].windows[0, :3, 0].T.tolist()
    # cells of 6 x 8 maps: (1, 4), (5, 7), and the corner (5, 0) for the point outside; windows of 3, cut
    assert (row_first, row_last) == ([0, 4, 4], [2, 5, 5])
    assert (col_first, col_last) == ([3, 6, 0], [5, 7, 1])


def test_windows_have_the_size_that_the_plan_chose(head):
    made = []
    head.bias_generator.register_forward_hook(lambda *a: made.extend(a[-1]))
    for i, window in enumerate((None, 1, 5)):
        head.sites[f"decoder.{i}.cross"].choice = Choice("window", "sdpa_math", window=window)
    head.reference_points.weight.data[0] = torch.tensor([0.5, 0.5, 0.5])  # cell (3, 4) of 6 x 8
    run(head)
    assert [bias.windows[0, 0, 0].tolist() for bias in made] == [[2, 4, 3, 5], [3, 3, 4, 4], [1, 5, 2, 6]]


def test_the_bias_of_layers_whose_config_names_none_is_that_of_the_generator(published):
    given = config(published)
    head = CmtAqrHead(**{**given, "bias_config": {**given["bias_config"], "use_local_bias": False}})
    assert {head.sites[f"decoder.{i}.cross"].choice.bias for i in range(LAYERS)} == {"global"}


def test_a_plan_without_bias_runs_as_plain_cmt(published, head):
    plain = CmtAqrHead(**config(published, aqr=False)).eval()
    plain.load_state_dict(
        {k: v for k, v in head.state_dict().items() if not k.startswith(("aqr", "bias_generator"))}
    )
    biased = run(head)
    for i in range(LAYERS):
        head.sites[f"decoder.{i}.cross"].choice = Choice("none", "sdpa_math")
    unbiased = run(head)
    assert unbiased.weights is None
    assert torch.equal(unbiased.matching.codes, run(plain).matching.codes)
    assert not torch.equal(unbiased.matching.codes, biased.matching.codes)


def test_a_bias_without_aqr_is_refused(published):
    head = CmtAqrHead(**config(published, aqr=False, default_bias="window"))
    with pytest.raises(ValueError, match="wants the bias window, but the head has no aqr_config"):
        run(head)


def test_training_reaches_every_parameter(head):
    head.train()
    # Queries start from zero, so the first self-attention reads only its value bias (zero at first), and its
    # query and key projections see equal contents: they matter to nothing.
    torch.nn.init.normal_(head.transformer.decoder.layers[0].attentions[0].attn.in_proj_bias)
    losses = head.loss(*features(2), samples([3, 2]))
    sum(losses.values()).backward()
    dead = "transformer.decoder.layers.0.attentions.0.attn.in_proj_weight"
    untouched = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in untouched if n != dead] == []
    assert head.bias_generator.bias_scale.grad != 0
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_denoising_queries_do_not_change_matching_ones(head):
    boxes = [torch.rand(3, 9) * 4 + 1, torch.rand(2, 9) * 4 + 1]
    labels = [torch.zeros(3, dtype=torch.long), torch.ones(2, dtype=torch.long)]
    with_dn, without = run(head, targets=(boxes, labels)), run(head)
    assert with_dn.denoising is not None
    torch.testing.assert_close(with_dn.matching.codes, without.matching.codes, rtol=1e-4, atol=1e-4)
    # one more term of weight 0 per sum; 108 m in single precision through three layers


@pytest.mark.parametrize("counts", [[0, 0], [0, 4], [QUERIES + 1, 1]])
def test_batches_with_few_or_many_boxes_train(head, counts):
    head.train()
    losses = head.loss(*features(2), samples(counts))
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    no_denoising = max(counts) in (0, QUERIES + 1)
    assert bool(losses["dn_loss_cls"] == 0) == no_denoising
    assert set(losses) == {
        f"{layer}{dn}loss_{what}"
        for layer in ("d0.", "d1.", "")
        for dn in ("", "dn_")
        for what in ("cls", "bbox")
    }


@pytest.mark.parametrize("counts", [[3, 2], [0, 0], [0, 4], [QUERIES, 1], [QUERIES + 3, 1]])
def test_what_losses_are_divided_by_is_known_before_the_forward_pass(head, counts, monkeypatch):
    head.train()
    inputs, data = features(2), samples(counts)
    before = head.loss_divisors(data).read().tolist()
    places, noised = [], []
    assign, noise = head.criterion.assigner.assign, head.noise
    monkeypatch.setattr(
        head.criterion.assigner, "assign", lambda *given: places.append(assign(*given)) or places[-1]
    )
    monkeypatch.setattr(head, "noise", lambda *given: noised.append(noise(*given)) or noised[-1])
    head.loss(*inputs, data)
    matched = (places[0] >= 0).sum(dim=(1, 2)).tolist()
    slots = 0 if noised[0] is None else len(noised[0].slot)
    assert [before] * LAYERS == [[count, 2 * QUERIES - count, slots] for count in matched]


def test_losses_are_divided_by_what_was_known_before(head):
    head.train()
    inputs, data = features(2), samples([3, 2])

    def losses(divisors):
        torch.manual_seed(3)
        return torch.stack(list(head.loss(*inputs, data, divisors).values()))

    early = head.loss_divisors(data)
    assert torch.equal(losses(early), losses(None))
    torch.testing.assert_close(losses(RankMean(2 * early.read())), losses(None) / 2)


def test_same_seed_same_losses(head):
    head.train()
    seen = []
    for _ in range(2):
        torch.manual_seed(3)
        inputs, data = features(2), samples([3, 2])
        seen.append(torch.stack(list(head.loss(*inputs, data).values())))
    assert torch.equal(seen[0], seen[1])


def test_autocast_leaves_positions_and_task_heads_in_single_precision(head):
    points = torch.rand(2, QUERIES, 3)
    inputs = (*features(2), lidar2img().expand(2, -1, -1, -1), PAD)
    exact = head.make_memory(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rough = head.make_memory(*inputs)
        embedded = head.embed_queries(points, rough)
        states = torch.rand(LAYERS, 2, QUERIES, DIMS)
        codes = head.predict_boxes(states, points).codes
    assert not torch.equal(
        rough.tokens, exact.tokens
    )  # the convolution is in half precision: autocast was on
    assert torch.equal(rough.position, exact.position)
    assert torch.equal(embedded, head.embed_queries(points, exact))
    assert torch.equal(codes, head.predict_boxes(states, points).codes)


def test_the_whole_head_runs_under_autocast(head):
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.train().loss(*features(2), samples([3, 2]))
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())


def test_predict_gives_mmdet3d_instances(head):
    found = head.predict(*features(2), samples([0, 0]))
    assert len(found) == 2
    for instances in found:
        assert type(instances.bboxes_3d).__name__ == "LiDARInstance3DBoxes"
        assert instances.bboxes_3d.tensor.shape == (len(instances.scores_3d), 9)
        assert (instances.scores_3d.diff() <= 0).all()
        assert instances.labels_3d.max() < CLASSES


def test_nan_features_are_refused_in_training(head):
    bev, img = features(1)
    bev[0, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="predicts NaN or inf"):
        head.train().loss(bev, img, samples([2]))


def test_meta_information_that_lacks_is_named(head):
    data = samples([1, 1])
    data[1] = type(data[0])()
    with pytest.raises(ValueError, match=r"data_samples \[1\]: the meta information has no 'lidar2img'"):
        head.predict(*features(2), data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": [{"num_class": 5}, {"num_class": 5}]}, "expected one group"),
        ({"tasks": [{"num_class": 7}]}, "tasks have 7 classes"),
        ({"common_heads": {"center": (2, 2)}}, "a box code needs the channels"),
        ({"separate_head": {"final_kernel": 2}}, "expected an odd"),
        ({"aqr_config": None}, "go together"),
        ({"train_cfg": {"grid_size": [1024, 1024, 40]}}, "unknown keys grid_size"),
        ({"denoising": {"split": 0.5, "noise": 1}}, "noise"),
    ],
)
def test_configs_that_are_refused(published, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        CmtAqrHead(**{**config(published), **change})


def test_wrong_number_of_image_maps_is_refused(head):
    with pytest.raises(ValueError, match="expected 1 samples of 6 views = 6 maps, got 5"):
        head(torch.rand(1, 24, *BEV), torch.rand(5, DIMS, *IMAGE), lidar2img()[None], PAD)
