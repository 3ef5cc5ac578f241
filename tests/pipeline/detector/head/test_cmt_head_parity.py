"""The head against numbers of the published implementation (fp32, CPU)."""

import hashlib

import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes

from pipeline.detector.head.cmt_head import CmtAqrHead
from pipeline.detector.head.targets import Targets

EMBEDDING = 1e-5  # relative to the largest value: an independent fp64 recomputation came within 4e-6
DECODER = 5e-5  # the same through six layers
CENTRE_M = 5e-4  # metres: 5e-5 of the 108 m range is 5e-3; the fp64 recomputation came within 1.8e-4
LOSS = 1e-5  # relative; the fp64 recomputation came within 1e-6
GRADIENT = 1e-3  # of each tensor's maximum; the fp64 recomputation came within 4e-4
PREFIX = "pts_bbox_head."


@pytest.fixture(scope="module")
def head(parity, published):
    return parity.fill(CmtAqrHead(**published.head_config()), PREFIX).eval()


def run(head, data, **more):
    """Forward pass on a golden file; returns output and the state after layer 0."""
    layer0 = []
    hook = head.transformer.decoder.layers[0].register_forward_hook(lambda *a: layer0.append(a[-1]))
    pad_hw = tuple(data["in_pad_hw"].tolist())
    output = head(data["in_bev"], data["in_img"], data["in_lidar2img"], pad_hw, **more)
    hook.remove()
    return output, layer0[0]


@pytest.fixture(scope="module")
def square(parity, head):
    data = parity.load("head_square")
    with torch.no_grad():
        return data, *run(head, data)


def test_regenerated_weights_are_the_published_ones(parity, head):
    state = {PREFIX + k: v for k, v in head.state_dict().items()}
    expected = parity.hashes()["pts_bbox_head"]
    assert set(state) == set(expected)
    for key, (shape, digest) in expected.items():
        assert list(state[key].shape) == shape
        assert hashlib.sha256(state[key].numpy().tobytes()).hexdigest()[:16] == digest, key


@pytest.mark.parametrize("detector", ["vov", "r50"])
def test_keys_and_shapes_are_the_official_ones(parity, published, detector):
    head = CmtAqrHead(**published.head_config(num_query=900))
    official = {k: s for k, s in parity.keys(detector).items() if k.startswith(PREFIX)}
    assert {PREFIX + k: tuple(v.shape) for k, v in head.state_dict().items()} == official
    assert sum(p.numel() for p in head.parameters()) == 8_763_396  # the published head


def check_encodings(head, published, data, bev_key):
    with torch.no_grad():
        pad_hw = tuple(data["in_pad_hw"].tolist())
        memory = head.make_memory(data["in_bev"], data["in_img"], data["in_lidar2img"], pad_hw)
        cells = data["in_bev"].shape[-2] * data["in_bev"].shape[-1]
        of_bev, of_img = head.query_embeddings(data["reference_points"], memory)
    error = published.relative_error
    assert error(memory.tokens[:, :cells], data["shared_conv_out"].flatten(2).mT) <= EMBEDDING
    assert error(memory.position[0, :cells], data[bev_key]) <= EMBEDDING
    assert error(memory.position[:, cells:], data["rv_pos_embed"].reshape(2, -1, 256)) <= EMBEDDING
    assert error(of_bev, data["bev_query_embed"]) <= EMBEDDING
    assert error(of_img, data["rv_query_embed"]) <= EMBEDDING
    return memory


def test_encodings_and_query_embeddings(head, published, square):
    check_encodings(head, published, square[0], "bev_pos_embed")


def test_camera_rays(head, square):
    data = square[0]
    memory = head.make_memory(data["in_bev"], data["in_img"], data["in_lidar2img"], (64, 160))
    v, u = torch.meshgrid(torch.arange(4) * 16.0, torch.arange(10) * 16.0, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u), torch.ones_like(u)], dim=-1).view(40, 4)
    points = (pixels @ memory.rays.basis).view(12, 4, 10, 192)
    expected = data["rv_key_coords"]
    assert (points - expected).abs().max() <= EMBEDDING * expected.abs().max()


def test_decoder_layers(published, square):
    data, _, layer0 = square
    assert published.relative_error(layer0, data["layer0_state"]) <= DECODER


def check_outputs(published, output, data, prefix="out"):
    codes, expected = output.codes, published.codes(data, prefix)
    assert (codes[..., :2] - expected[..., :2]).abs().max() <= CENTRE_M
    for channels in ([2], [3, 4, 5], [6, 7], [8, 9]):
        assert published.relative_error(codes[..., channels], expected[..., channels]) <= DECODER
    assert published.relative_error(output.logits, data[f"{prefix}_cls_logits"]) <= DECODER


def test_every_layer_and_every_head(published, square):
    data, output, _ = square
    check_outputs(published, output.matching, data)


@pytest.mark.parametrize("name", ["head_square", "head_rect"])
def test_states_of_every_layer(parity, head, published, name):
    data = parity.load(name)
    key = "dec_out" if name == "head_square" else "natural_dec_out_last"
    states = []
    hook = head.transformer.decoder.register_forward_hook(lambda *a: states.append(a[-1]))
    with torch.no_grad():
        run(head, data)
    hook.remove()
    got = states[0] if name == "head_square" else states[0][-1]
    assert published.relative_error(got, data[key]) <= DECODER


def test_a_grid_that_is_not_square_follows_the_natural_variant(parity, head, published):
    data = parity.load("head_rect")
    check_encodings(head, published, data, "natural_bev_pos_embed")
    with torch.no_grad():
        output, _ = run(head, data)
    check_outputs(published, output.matching, data, prefix="natural_out")
    assert (output.matching.codes - published.codes(data, "out")).abs().max() > 1  # metres: the other variant


def test_reading_the_last_layer_alone_changes_nothing(head, square):
    data, output, _ = square
    with torch.no_grad():
        last, _ = run(head, data, last_only=True)
    assert last.matching.codes.shape[0] == 1
    torch.testing.assert_close(last.matching.codes[0], output.matching.codes[-1])
    torch.testing.assert_close(last.matching.logits[0], output.matching.logits[-1])


def test_decoded_boxes(head, published, square):
    data, _, _ = square
    decoded = head.bbox_coder.decode(published.codes(data, "out")[-1], data["out_cls_logits"][-1])
    for b, found in enumerate(decoded):
        assert torch.equal(found.labels, data[f"decoded{b}_labels"])
        torch.testing.assert_close(found.scores, data[f"decoded{b}_scores"])
        torch.testing.assert_close(found.boxes, data[f"decoded{b}_boxes_gravity"])
        boxes = LiDARInstance3DBoxes(
            found.boxes, box_dim=9, origin=(0.5, 0.5, 0.5)
        )  # as ``predict`` makes them
        torch.testing.assert_close(boxes.tensor, data[f"decoded{b}_boxes_bottom"])


@pytest.fixture(scope="module")
def trained(parity, head, published):
    """Forward and backward pass with denoising on."""
    data = {**parity.load("head_square"), **parity.load("trainfwd")}
    inputs = {name: data[name].clone().requires_grad_() for name in ("in_bev", "in_img")}
    boxes, labels = published.ground_truth(data)
    output, _ = run(head, {**data, **inputs}, targets=(boxes, labels), rand01=data["rand01"])
    losses = head.criterion(output.matching, boxes, labels, output.denoising)
    head.zero_grad()
    sum(losses.values()).backward()
    gradients = {PREFIX + name: p.grad.clone() for name, p in head.named_parameters()}
    head.zero_grad()
    return data, output, losses, gradients | {name: t.grad for name, t in inputs.items()}


def test_training_forward(published, trained):
    data, output, _, _ = trained
    check_outputs(published, output.matching, data)
    check_outputs(published, output.denoising[0], data, prefix="out_dn")


def test_training_matchings(head, published, trained):
    data, output, _, _ = trained
    boxes, labels = published.ground_truth(data)
    matched = head.criterion.assigner.assign(
        output.matching.codes, output.matching.logits, Targets.of(boxes, labels)
    )
    for layer, samples in enumerate(matched):
        for b, boxes_of_queries in enumerate(samples):
            query = (boxes_of_queries >= 0).nonzero().squeeze(1)
            assert torch.equal(query, data[f"match_l{layer}_s{b}_query"])
            assert torch.equal(boxes_of_queries[query], data[f"match_l{layer}_s{b}_gt"])


def test_training_losses(trained):
    data, _, losses, _ = trained
    for name in ("loss_cls", "loss_bbox", "dn_loss_cls", "dn_loss_bbox"):
        got = torch.stack([losses[name if i == 5 else f"d{i}.{name}"] for i in range(6)])
        torch.testing.assert_close(got.detach(), data[name], rtol=LOSS, atol=0)
    torch.testing.assert_close(sum(losses.values()).detach(), data["loss_total"], rtol=LOSS, atol=0)


def test_gradients(published, trained):
    data, _, _, gradients = trained
    keys = [k for k in data if k.startswith("grad/")]
    assert len(keys) == 11
    for key in keys:
        assert published.relative_error(gradients[key.removeprefix("grad/")], data[key]) <= GRADIENT, key


def test_gradient_norms(trained):
    data, _, _, gradients = trained
    # The first self-attention sees zero content: its projections get no gradient, only rounding noise.
    noise = PREFIX + "transformer.decoder.layers.0.attentions.0.attn.in_proj_weight"
    keys = [k for k in data if k.startswith("grad_norm/") and not k.endswith(noise)]
    assert len(keys) == len(gradients) - 1
    for key in keys:
        norm = gradients[key.removeprefix("grad_norm/")].double().norm()
        torch.testing.assert_close(norm, data[key], rtol=GRADIENT, atol=0, msg=lambda m, k=key: f"{k}: {m}")
