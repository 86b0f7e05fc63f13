"""The fusion encoder against BERT layers of transformers with cross-attention, and loading of BERT weights."""

import json

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from sdr_lightning.encoders import FusionEncoder, TransformersTextTower
from sdr_lightning.encoders.fusion import FusionLayer, bert_name
from sdr_lightning.types import Encoded
from tests.encoders.tiny import BERT, randomise, tokens

WIDTH, IMAGE_WIDTH = BERT["hidden_size"], 10
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIG = BERT | {"num_hidden_layers": 4, "initializer_range": 0.4, "layer_norm_eps": 1e-3}
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 0, "atol": 1e-10}}
DTYPES = list(TOLERANCE)


def fusion_encoder(first_layer=2, dtype=torch.float32, **config):
    return randomise(FusionEncoder(IMAGE_WIDTH, config=CONFIG | config, first_layer=first_layer)).to(dtype)


def captions(lengths=(4, 7, 2), padding=3.0, padded_to=None, dtype=torch.float32):
    """Return random caption tokens, padded on the right with arbitrary values."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.full((len(lengths), padded_to or max(lengths), WIDTH), padding, dtype=dtype)
    mask = torch.zeros(hidden.shape[:2], dtype=torch.int64)
    for row, length in enumerate(lengths):
        hidden[row, :length] = torch.randn(length, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        mask[row, :length] = 1
    return Encoded(hidden[:, 0], hidden, mask)


def image_tokens(count=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 5, IMAGE_WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def reference_layer(layer, **config):
    """Build a BERT decoder layer with the same weights."""
    arguments = {key: value for key, value in CONFIG.items() if key != "model_type"} | config
    settings = BertConfig(**arguments, is_decoder=True, add_cross_attention=True, attn_implementation="eager")
    reference = BertLayer(settings)
    attention = reference.crossattention.self
    attention.key, attention.value = nn.Linear(IMAGE_WIDTH, WIDTH), nn.Linear(IMAGE_WIDTH, WIDTH)
    reference.load_state_dict({bert_name(name): tensor for name, tensor in layer.state_dict().items()})
    return reference.to(next(layer.parameters()).dtype).train(layer.training)


def reference_forward(layers, text, images, rows):
    """Apply the layers to all tokens, with a copy of its image for each caption."""
    hidden = text.tokens
    bias = torch.zeros(text.mask.shape, dtype=hidden.dtype).masked_fill(text.mask == 0, torch.finfo(hidden.dtype).min)
    chosen = images[rows] if rows is not None else images.expand(len(hidden), -1, -1)
    for layer in layers:
        output = layer(hidden, bias[:, None, None, :], encoder_hidden_states=chosen)
        hidden = output if torch.is_tensor(output) else output[0]  # a tuple before transformers 5
    return hidden


ROWS = {
    "several captions per image": (2, torch.tensor([1, 0, 1])),
    "unused image": (3, torch.tensor([0, 0, 0])),
    "one image for all": (1, None),
}


@pytest.mark.parametrize(
    ("rows", "first_layer", "dtype"),
    [
        ("several captions per image", 1, torch.float64),
        ("several captions per image", 1, torch.float32),
        ("unused image", 3, torch.float64),
        ("one image for all", 1, torch.float64),
    ],
)
def test_fused_token_and_gradients_equal_those_of_bert_layers(rows, first_layer, dtype):
    count, rows = ROWS[rows]
    encoder = fusion_encoder(first_layer, dtype).eval()
    layers = [reference_layer(layer) for layer in encoder.layers]
    assert len(layers) == 4 - first_layer
    weighting = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(6)).to(dtype)
    results = []
    for reference in (False, True):
        text, images = captions(dtype=dtype), image_tokens(count, dtype).requires_grad_()
        text.tokens.requires_grad_()
        if reference:
            fused = reference_forward(layers, text, images, rows)[:, 0]
        else:
            fused = encoder(text, encoder.contexts(images), rows)
        (fused * weighting).sum().backward()
        results.append([fused, text.tokens.grad, images.grad])
    torch.testing.assert_close(*results, **TOLERANCE[dtype])
    for own, other in zip(encoder.layers, layers, strict=True):
        theirs = {name: parameter.grad for name, parameter in other.named_parameters()}
        scale = 10 * TOLERANCE[dtype]["atol"]
        for name, parameter in own.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[bert_name(name)], rtol=1e-4, atol=scale, msg=name)


@pytest.mark.parametrize(("first_alone", "masked"), [(False, True), (True, False)])
def test_layer_output_equals_that_of_a_bert_layer(first_alone, masked):
    (layer,) = fusion_encoder(3, torch.float64).eval().layers
    assert isinstance(layer, FusionLayer)
    text, images = captions(dtype=torch.float64), image_tokens(3, torch.float64)
    if not masked:
        text = text._replace(mask=torch.ones_like(text.mask))
    expected = reference_forward([reference_layer(layer)], text, images, torch.arange(3))
    mask = text.mask.bool()[:, None, None, :] if masked else None
    result = layer(text.tokens, mask, layer.cross_attention.context(images), first_alone)
    torch.testing.assert_close(result, expected[:, :1] if first_alone else expected, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
def test_other_activations(activation):
    try:
        encoder = fusion_encoder(3, torch.float64, hidden_act=activation).eval()
    except ValueError as error:
        assert "hidden_act" in str(error)  # noqa: PT017
        return
    text, images = captions(dtype=torch.float64), image_tokens(1, torch.float64)
    expected = reference_forward([reference_layer(encoder.layers[0], hidden_act=activation)], text, images, None)[:, 0]
    torch.testing.assert_close(encoder(text, encoder.contexts(images)), expected, rtol=0, atol=1e-8)


def test_dropout_is_applied_before_the_residual_sum():
    everything = {"hidden_dropout_prob": 1.0, "attention_probs_dropout_prob": 0.0}
    encoder = fusion_encoder(2, **everything).train()
    text, images = captions(), image_tokens(1)
    expected = reference_forward([reference_layer(layer, **everything) for layer in encoder.layers], text, images, None)
    torch.testing.assert_close(encoder(text, encoder.contexts(images)), expected[:, 0])


@pytest.mark.parametrize("kind", list(NO_DROPOUT))
def test_dropout_is_applied_in_training_only(kind):
    encoder = fusion_encoder(**NO_DROPOUT | {kind: 0.5}).train()
    text, contexts = captions(), encoder.contexts(image_tokens(1))
    torch.manual_seed(0)
    assert not torch.allclose(encoder(text, contexts), encoder(text, contexts), atol=1e-3)
    encoder.eval()
    assert torch.equal(encoder(text, contexts), encoder(text, contexts))
    expected = fusion_encoder(**NO_DROPOUT).train()(text, contexts)
    torch.testing.assert_close(encoder(text, contexts), expected)


# --- Dependence on tokens and images.


@pytest.mark.parametrize("first_layer", [3, 2])
def test_fused_token_depends_on_all_tokens_but_padding(first_layer):
    encoder = fusion_encoder(first_layer).eval()
    contexts = encoder.contexts(image_tokens(1))
    text = captions()
    fused = encoder(text, contexts)
    for row, length in enumerate((4, 7, 2)):
        changed = text.tokens.clone()
        changed[row, length - 1] += 1
        moved = (encoder(text._replace(tokens=changed), contexts) - fused).abs().amax(1) > 1e-3
        assert moved.tolist() == [each == row for each in range(3)]
    for other in (captions(padding=-50.0), captions(padded_to=20)):
        torch.testing.assert_close(encoder(other, contexts), fused)
    alone = Encoded(text.embedding[:1], text.tokens[:1, :4])  # no mask: no padding
    torch.testing.assert_close(encoder(alone, contexts), fused[:1])
    assert not torch.allclose(encoder(text._replace(mask=None), contexts)[2], fused[2], atol=1e-3)


def test_rows_select_the_image_of_each_caption():
    encoder = fusion_encoder().eval()
    text, images, rows = captions(), image_tokens(3), torch.tensor([2, 0, 2])
    fused = encoder(text, encoder.contexts(images), rows)
    apart = [
        encoder(Encoded(*(side[p : p + 1] for side in text)), encoder.contexts(images[r : r + 1]))
        for p, r in enumerate(rows)
    ]
    torch.testing.assert_close(fused, torch.cat(apart))
    assert not torch.allclose(encoder(text, encoder.contexts(images), torch.tensor([1, 0, 2]))[0], fused[0], atol=1e-3)
    order = torch.tensor([1, 2, 0])  # captions, images, and rows that follow both
    shuffled = Encoded(*(side[order] for side in text))
    places = torch.argsort(order)[rows[order]]
    torch.testing.assert_close(encoder(shuffled, encoder.contexts(images[order]), places), fused[order])


def test_fused_token_is_invariant_to_token_order():
    encoder = fusion_encoder().eval()
    text, images = captions((6, 6)), image_tokens(1)
    fused = encoder(text, encoder.contexts(images))
    torch.testing.assert_close(encoder(text, encoder.contexts(images.flip(1))), fused)
    flipped = torch.cat([text.tokens[:, :1], text.tokens[:, 1:].flip(1)], dim=1)  # all but the first
    torch.testing.assert_close(encoder(text._replace(tokens=flipped), encoder.contexts(images)), fused)
    for token in range(images.shape[1]):
        changed = images.clone()
        changed[0, token] += 1
        assert not torch.allclose(encoder(text, encoder.contexts(changed)), fused, atol=1e-3)


def test_contexts_can_be_reused():
    encoder = fusion_encoder().eval()
    contexts = encoder.contexts(image_tokens(2))
    assert len(contexts) == 2
    assert all(side.shape == (2, 2, 5, WIDTH // 2) for context in contexts for side in context)
    rows = torch.tensor([0, 1, 1])
    first = encoder(captions(), contexts, rows)
    assert torch.equal(encoder(captions(), contexts, rows), first)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        encoder(captions(), contexts[:1], rows)


# --- BERT weights.


@pytest.fixture(scope="module")
def bert():
    """Return a BERT of four layers; its norms after attention are initial, so that applying them twice has no effect."""
    model = BertModel(BertConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"} | {"layer_norm_eps": 1e-12}))
    randomise(model, seed=8)
    for layer in model.encoder.layer:
        nn.init.ones_(layer.attention.output.LayerNorm.weight)
        nn.init.zeros_(layer.attention.output.LayerNorm.bias)
    return model.eval()


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    bert.save_pretrained(path)
    return str(path)


CROSS = [
    f"cross_attention.{part}.{kind}" for part in ("query", "key", "value", "output") for kind in ("weight", "bias")
]
HEAD = [f"head.{number}.{kind}" for number in (0, 1, 3) for kind in ("weight", "bias")]
NEW = {f"layers.{n}.{name}" for n in (0, 1) for name in [*CROSS, "cross_norm.weight", "cross_norm.bias"]} | {*HEAD}


def test_text_tower_and_fusion_encoder_add_up_to_bert(bert, folder):
    text = TransformersTextTower(folder, layers=2, pooling="cls").eval()
    fusion = FusionEncoder(IMAGE_WIDTH, folder, first_layer=2).eval()
    encoded = text.encode(tokens())
    hidden = bert(*tokens(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(encoded.tokens, hidden[2])
    torch.testing.assert_close(encoded.embedding, hidden[2][:, 0])
    assert torch.equal(encoded.mask, tokens().attention_mask)
    contexts = fusion.contexts(image_tokens(1))
    assert not torch.allclose(fusion(encoded, contexts), hidden[4][:, 0], atol=1e-3)
    for layer in fusion.layers:
        nn.init.zeros_(layer.cross_attention.output.weight)
        nn.init.zeros_(layer.cross_attention.output.bias)
    # Cross-attention returns zeros now, and a norm without scale and bias after another norm is the identity.
    torch.testing.assert_close(fusion(encoded, contexts), hidden[4][:, 0], rtol=1e-4, atol=1e-5)


def test_only_cross_attention_and_head_are_newly_initialized(bert, folder):
    own = [FusionEncoder(IMAGE_WIDTH, folder, first_layer=2) for _ in range(2)]
    assert own[0].pretrained
    assert set(own[0].newly_initialized_parameters()) == NEW
    known = bert.state_dict()
    other = dict(own[1].named_parameters())
    for name, parameter in own[0].named_parameters():
        if name not in NEW:
            _, number, rest = name.split(".", 2)
            assert torch.equal(parameter, known[f"encoder.layer.{2 + int(number)}.{bert_name(rest)}"]), name
        elif parameter.ndim == 2:
            assert not torch.equal(parameter, other[name]), name
    random = FusionEncoder(IMAGE_WIDTH, config=CONFIG, first_layer=2)
    assert not random.pretrained
    assert random.newly_initialized_parameters() == [name for name, _ in random.named_parameters()]


@pytest.mark.parametrize("pretrained", [False, True])
def test_new_layers_have_the_initialisation_of_bert(folder, pretrained):
    torch.manual_seed(0)
    source = {"weights": folder} if pretrained else {"config": CONFIG}
    for layer in FusionEncoder(IMAGE_WIDTH, **source, first_layer=2).layers:
        for name, part in layer.cross_attention.named_children():
            assert 0.3 < part.weight.std() < 0.5, name  # initializer_range
            assert torch.count_nonzero(part.bias) == 0
        assert torch.equal(layer.cross_norm.weight, torch.ones(WIDTH))
        assert torch.count_nonzero(layer.cross_norm.bias) == 0


@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "BertModel without a pooler", "half precision"])
def test_bert_weights_of_other_classes_and_precisions(bert, tmp_path, class_name):
    import transformers

    if class_name == "BertForMaskedLM":
        model = transformers.BertForMaskedLM(bert.config)
        model.bert.load_state_dict(bert.state_dict(), strict=False)
    else:
        model = BertModel(bert.config, add_pooling_layer=False)
        model.load_state_dict(bert.state_dict(), strict=False)
    (model.half() if class_name == "half precision" else model).save_pretrained(tmp_path)
    text = TransformersTextTower(str(tmp_path), layers=2)
    fusion = FusionEncoder(IMAGE_WIDTH, str(tmp_path), first_layer=2)
    for parameter in [*text.parameters(), *fusion.parameters()]:
        assert parameter.dtype == torch.float32  # what the other parts are, and what autocast expects
    loose = {"rtol": 1e-3, "atol": 1e-3}
    for own, theirs in (
        (fusion.layers[1].widen.weight, bert.encoder.layer[3].intermediate.dense.weight),
        (text.encoder.model.encoder.layer[1].output.dense.weight, bert.encoder.layer[1].output.dense.weight),
    ):
        torch.testing.assert_close(own, theirs, **loose if class_name == "half precision" else {"rtol": 0, "atol": 0})


@pytest.mark.parametrize("part", ["fusion", "text"])
def test_weights_with_missing_layers_are_rejected(folder, tmp_path, part):
    BertModel.from_pretrained(folder).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 5}))
    with pytest.raises(ValueError, match=r"encoder\.layer\.4"):
        FusionEncoder(8, str(tmp_path), first_layer=2) if part == "fusion" else TransformersTextTower(str(tmp_path))


# --- Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"the fusion encoder needs either weights or config .* and not both"),
        (
            {"weights": "somewhere", "config": CONFIG},
            r"the fusion encoder needs either weights or config .* and not both",
        ),
        ({"config": {"model_type": "vit"}}, "made of BERT layers, got model_type vit"),
        ({"config": {"model_type": "bertt"}}, "config needs a model_type that transformers knows"),
        ({"config": CONFIG, "first_layer": 4}, "first_layer must be from 0 to 3, got 4"),
        ({"config": CONFIG, "first_layer": -1}, "first_layer must be from 0 to 3, got -1"),
        ({"config": BERT}, "first_layer must be from 0 to 0, got 6"),
        (
            {"config": CONFIG | {"num_attention_heads": 3}, "first_layer": 2},
            "width of 16 cannot be divided over 3 heads",
        ),
        ({"weights": "package:no_such_package/model"}, "names the package no_such_package, which is not installed"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        FusionEncoder(IMAGE_WIDTH, **arguments)
    assert "\n" not in str(caught.value)


def test_unavailable_weights_are_rejected(offline, folder, tmp_path):
    (tmp_path / "config only").mkdir()
    BertConfig().save_pretrained(tmp_path / "config only")
    for reference in ("nobody/has-this-model", str(tmp_path), str(tmp_path / "nothing"), str(tmp_path / "config only")):
        with pytest.raises(
            ValueError, match=r"is no local folder and unavailable from the hub|holds no readable model"
        ) as caught:
            FusionEncoder(IMAGE_WIDTH, reference)
        assert f"fusion encoder {reference!r}" in str(caught.value)
        assert "set fusion.init_args.weights to a local folder" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("found", ["none", "a width of 12"])
def test_captions_without_matching_tokens_are_rejected(found):
    encoder = fusion_encoder()
    text = Encoded(torch.zeros(3, WIDTH), None if found == "none" else torch.zeros(3, 4, 12))
    with pytest.raises(ValueError, match=f"reads caption tokens of width 16, found {found}"):
        encoder(text, encoder.contexts(image_tokens(1)))


def test_recomputed_activations_change_no_bit_and_save_memory():
    """With dropout, for which the same random numbers are drawn again."""
    kept, gradients, outputs = [], [], []
    for recompute in (False, True):
        encoder, sizes = fusion_encoder(0).train(), {}
        if recompute:
            encoder.checkpoint_activations()
        own = {parameter.data_ptr() for parameter in encoder.parameters()}

        def keep(tensor, sizes=sizes, own=own):
            if tensor.data_ptr() not in own:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(3)
        images, text = image_tokens(2).requires_grad_(), captions((4, 7, 2))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            fused = encoder(text, encoder.contexts(images), torch.tensor([0, 1, 1]))
        fused.square().sum().backward()
        kept.append(sum(sizes.values()))
        outputs.append(fused)
        gradients.append([images.grad, *(p.grad for p in encoder.layers.parameters())])
    assert torch.equal(*outputs)
    assert all(map(torch.equal, *gradients))
    assert kept[1] < kept[0] / 2
