"""Towers of CLIP-style models, loaded from one folder, and of single vision encoders."""

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, ViTConfig, ViTModel

from sdr_lightning.encoders import DualEncoder, TransformersImageTower, TransformersTextTower
from sdr_lightning.types import Tokens
from tests.encoders.tiny import BERT, images, randomise, text_tower, tokens

TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
    "bos_token_id": 0,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 16,
}
MEAN, STD = (0.1, 0.5, 0.9), (0.5, 0.25, 2.0)
HOW = {"mean": MEAN, "std": STD}
END = 49


def pair(kind, end=END):
    if kind == "siglip":
        text = TEXT | {"projection_size": 16, "eos_token_id": end}
        return SiglipModel(SiglipConfig(text_config=text, vision_config=VISION | {"hidden_size": 16}))
    return CLIPModel(CLIPConfig(text_config=TEXT | {"eos_token_id": end}, vision_config=VISION, projection_dim=12))


def write(model, path, **processor):
    model.save_pretrained(path)
    if processor:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(path)


def make(kind, root):
    model = randomise(pair(kind)).eval()
    path = root / kind
    path.mkdir()
    return model, write(model, path, image_mean=MEAN, image_std=STD, image_processor_type="CLIPImageProcessor")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    return {kind: make(kind, root) for kind in ("clip", "siglip")}


@pytest.fixture
def clip(pairs):
    return pairs["clip"]


def captions(lengths=(4, 7, 2), end=END, **options):
    """Build captions that end with the end token."""
    ids, mask = tokens(lengths, **options)
    ids = torch.where(mask.bool(), ids.clamp(3, 47), ids)
    for row, length in enumerate(lengths):
        ids[row, length - 1] = end
    return Tokens(ids, mask)


def by_hand(pixels):
    return (pixels / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


# --- Equivalence with the original models.


@pytest.mark.parametrize(("kind", "projected", "lengths"), [("clip", True, (4, 7, 2)), ("siglip", False, (20, 20, 20))])
def test_similarities_equal_those_of_the_original_model(pairs, kind, projected, lengths):
    model, folder = pairs[kind]
    encoder = DualEncoder(
        TransformersImageTower(folder, projected=projected),
        TransformersTextTower(folder, pooling="own", projected=projected),
        embedding_width=None,
    ).eval()
    texts = captions(lengths)
    similarities = encoder.encode_image(images()) @ encoder.encode_text(texts).T
    image, text = model.get_image_features(by_hand(images())), model.get_text_features(*texts)
    if not isinstance(image, torch.Tensor):  # transformers 4 returns the features themselves
        image, text = image.pooler_output, text.pooler_output
    expected = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    torch.testing.assert_close(similarities, expected, rtol=0, atol=1e-5)
    output = model(texts.input_ids, by_hand(images()), texts.attention_mask)
    logits = output.logits_per_image - (0 if kind == "clip" else model.logit_bias)
    torch.testing.assert_close(similarities, logits / model.logit_scale.exp(), rtol=0, atol=1e-5)
    assert similarities.std() > 0.02
    assert encoder.newly_initialized_parameters() == []
    assert {name.split(".")[1] for name in encoder.state_dict()} == {"encoder"}  # no temperature, bias or projection


@pytest.mark.parametrize("end", [2, 7])
def test_clip_pools_the_end_token(tmp_path, end):
    model = randomise(pair("clip", end)).eval()
    tower = TransformersTextTower(write(model, tmp_path), pooling="own").eval()
    texts = captions(end=end)
    if end == 2:  # in the first CLIP releases, the end token is the one with the largest index
        texts = Tokens(torch.where(texts.input_ids == 2, 49, texts.input_ids), texts.attention_mask)
    encoded = tower.encode(texts)
    for row, length in enumerate((4, 7, 2)):
        torch.testing.assert_close(encoded.embedding[row], encoded.tokens[row, length - 1])


@pytest.mark.parametrize(
    ("kind", "pooling"), [("bert", "own"), ("clip", "own"), ("clip", "mean"), ("siglip", "own"), ("siglip", "mean")]
)
def test_features_of_captions_do_not_depend_on_padding(pairs, kind, pooling):
    if kind == "bert":
        tower = randomise(text_tower(pooling=pooling)).eval()
    else:
        tower = TransformersTextTower(pairs[kind][1], pooling=pooling).eval()
    features = tower(captions())
    torch.testing.assert_close(tower(captions(padded_to=20)), features)
    alone = Tokens(*(side[2:, :2] for side in captions()))
    torch.testing.assert_close(tower(alone), features[2:])


# --- Pooling, projection, depth.


@pytest.mark.parametrize(("kind", "pooling"), [("clip", "own"), ("clip", "cls"), ("clip", "mean"), ("siglip", "own")])
def test_image_pooling(pairs, kind, pooling):
    model, folder = pairs[kind]
    tower = TransformersImageTower(folder, pooling=pooling).eval()
    encoded, output = tower.encode(images()), model.vision_model(by_hand(images()))
    hidden = output.last_hidden_state
    expected = {"own": output.pooler_output, "cls": hidden[:, 0], "mean": hidden.mean(1)}[pooling]
    torch.testing.assert_close(encoded.embedding, expected)
    torch.testing.assert_close(encoded.tokens, hidden)
    assert encoded.mask is None
    assert encoded.tokens.shape == (3, 5 if kind == "clip" else 4, tower.tokens_width)
    assert torch.equal(tower(images()), encoded.embedding)


@pytest.mark.parametrize("pooling", ["own", "mean"])
def test_projection_is_applied_to_pooled_features(clip, pooling):
    model, folder = clip
    for make_tower, inputs, projection, width in (
        (TransformersImageTower, images(), model.visual_projection, 24),
        (TransformersTextTower, captions(), model.text_projection, 16),
    ):
        plain = make_tower(folder, pooling=pooling).eval()
        tower = make_tower(folder, pooling=pooling, projected=True).eval()
        assert (plain.width, plain.tokens_width, tower.width, tower.tokens_width) == (width, width, 12, width)
        torch.testing.assert_close(tower(inputs), plain(inputs) @ projection.weight.T)
        assert torch.equal(tower.encode(inputs).tokens, plain.encode(inputs).tokens)


@pytest.mark.parametrize("layers", [1, None])
def test_number_of_text_layers(clip, layers):
    model, folder = clip
    tower = TransformersTextTower(folder, pooling="own", layers=layers).eval()
    assert len(tower.encoder.model.encoder.layers) == (layers or 3)
    hidden = model.text_model(*captions(), output_hidden_states=True).hidden_states[layers or 3]
    torch.testing.assert_close(tower.encode(captions()).tokens, model.text_model.final_layer_norm(hidden))
    random = TransformersTextTower(config=BERT | {"num_hidden_layers": 3}, layers=layers)
    assert len(random.encoder.model.encoder.layer) == (layers or 3)


def test_own_pooling_of_bert_is_its_pooler():
    tower, captions_ = randomise(text_tower(pooling="own")).eval(), captions()
    dense = tower.encoder.model.pooler.dense
    encoded = tower.encode(captions_)
    torch.testing.assert_close(encoded.embedding, torch.tanh(dense(encoded.tokens[:, 0])))


# --- Pixels.


@pytest.mark.parametrize("given", [{}, {"mean": (0.2, 0.3, 0.4)}, {"std": (0.6, 0.7, 0.8)}])
def test_normalisation_defaults_to_that_of_the_model(clip, given):
    tower = TransformersImageTower(clip[1], **given)
    for name, own in (("mean", MEAN), ("std", STD)):
        assert getattr(tower, name).shape == (1, 3, 1, 1)
        assert getattr(tower, name).flatten().tolist() == pytest.approx(given.get(name, own))
    assert not {"mean", "std"} & tower.state_dict().keys()


def test_normalisation_is_read_from_processor_config(clip, tmp_path):
    path = write(clip[0], tmp_path)
    content = {"image_processor": {"image_mean": MEAN, "image_std": STD, "image_processor_type": "CLIPImageProcessor"}}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    tower = TransformersImageTower(path)
    assert tower.mean.flatten().tolist() == pytest.approx(MEAN)
    assert tower.std.flatten().tolist() == pytest.approx(STD)


@pytest.mark.parametrize(
    ("processor", "given"), [(None, {}), (None, {"mean": MEAN}), ({}, {"std": STD}), ({"image_mean": MEAN}, {})]
)
def test_unknown_normalisation_is_rejected(clip, tmp_path, processor, given):
    source = {"config": VISION | {"model_type": "clip_vision_model"}}
    if processor is not None:
        source = {"weights": write(clip[0], tmp_path, **processor)}
    with pytest.raises(
        ValueError, match="pixel normalisation of the weights is unknown: set mean and std of the image_tower"
    ):
        TransformersImageTower(**source, **given)
    TransformersImageTower(**source, **HOW)


def test_uint8_and_float_pixels_are_equivalent(clip):
    tower, pixels = TransformersImageTower(clip[1]).eval(), images()
    assert torch.equal(tower(pixels), tower(pixels.float() / 255))
    torch.testing.assert_close(tower(pixels), clip[0].vision_model(by_hand(pixels)).pooler_output)


# --- Fingerprints and gradients.


def test_image_fingerprint_covers_weights_and_settings(clip, tmp_path):
    model, folder = clip
    first = TransformersImageTower(folder)
    same = [
        TransformersImageTower(folder),
        TransformersImageTower(folder, frozen=True),
        TransformersImageTower(write(model, tmp_path), **HOW),
    ]
    assert {tower.fingerprint() for tower in same} == {first.fingerprint()}
    changed = TransformersImageTower(folder)
    with torch.no_grad():
        changed.encoder.model.post_layernorm.bias[0] += 1
    others = [
        TransformersImageTower(folder, pooling="cls"),
        TransformersImageTower(folder, pooling="mean"),
        TransformersImageTower(folder, projected=True),
        TransformersImageTower(folder, mean=(0.5, 0.5, 0.5)),
        TransformersImageTower(folder, std=(0.5, 0.5, 0.5)),
        changed,
    ]
    assert len({tower.fingerprint() for tower in [first, *others]}) == 7


def test_fingerprint_covers_configuration_and_text_settings(clip):
    def towers(**change):
        torch.manual_seed(0)
        yield TransformersImageTower(config=VISION | {"model_type": "clip_vision_model"} | change, **HOW)

    prints = {t.fingerprint() for c in ({}, {"num_attention_heads": 4}, {"hidden_act": "relu"}) for t in towers(**c)}
    assert len(prints) == 3
    texts = [{}, {"projected": True}, {"layers": 2}, {"pooling": "own"}, {"pooling": "cls"}]
    assert len({TransformersTextTower(clip[1], **options).fingerprint() for options in texts}) == len(texts)


SMALL = {key: VISION[key] for key in VISION if key != "hidden_size"} | {"hidden_size": 16}
IMAGE_MODELS = {
    name: SMALL | {"model_type": name} for name in ("clip_vision_model", "siglip_vision_model", "vit", "deit")
}
IMAGE_MODELS["beit"] = SMALL | {"model_type": "beit"}
TEXT_MODELS = {
    name: TEXT | {"model_type": name, "eos_token_id": END, "max_position_embeddings": 40}
    for name in ("bert", "roberta", "mpnet", "xlm-roberta", "albert", "clip_text_model")
}
TEXT_MODELS["siglip"] = {"model_type": "siglip", "text_config": TEXT | {"projection_size": 16}, "vision_config": SMALL}


@pytest.mark.parametrize("name", [*IMAGE_MODELS, *TEXT_MODELS])
def test_every_parameter_gets_a_gradient(name):
    for pooling in ("own", "mean"):  # DDP requires that no pooler is unused
        if name in IMAGE_MODELS:
            tower, inputs = TransformersImageTower(config=IMAGE_MODELS[name], pooling=pooling, **HOW), images()
        else:
            tower, inputs = TransformersTextTower(config=TEXT_MODELS[name], pooling=pooling), captions()
        tower(inputs).square().sum().backward()
        assert [name for name, p in tower.named_parameters() if p.requires_grad and p.grad is None] == [], pooling


# --- Errors.


def test_unsupported_pooling_is_rejected():
    settings = {"model_type": "distilbert", "vocab_size": 50, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
    tower = TransformersTextTower(config=settings, pooling="own")
    with pytest.raises(ValueError, match="DistilBertModel has no pooler of its own: set pooling to mean or cls"):
        tower(captions())
    with pytest.raises(ValueError, match="pooling must be mean, cls or own, got 'max'"):
        TransformersImageTower(config=IMAGE_MODELS["vit"], pooling="max", **HOW)


@pytest.mark.parametrize("name", ["siglip", "vit", "bert"])
def test_missing_projection_is_rejected(pairs, name):
    tower, source = {
        "siglip": (TransformersTextTower, {"weights": pairs["siglip"][1]}),
        "vit": (TransformersImageTower, {"config": IMAGE_MODELS["vit"]} | HOW),
        "bert": (TransformersTextTower, {"config": BERT}),
    }[name]
    with pytest.raises(ValueError, match=rf"{name}\w* has no projection of its own: set projected to false"):
        tower(**source, projected=True)


@pytest.mark.parametrize("layers", [0, 4])
def test_invalid_number_of_layers_is_rejected(clip, layers):
    for source in ({"weights": clip[1]}, {"config": BERT | {"num_hidden_layers": 3}}):
        with pytest.raises(ValueError, match=rf"layers must be from 1 to the model's 3, got {layers}"):
            TransformersTextTower(**source, layers=layers)


def test_image_tower_needs_either_weights_or_config(clip):
    for arguments in ({}, {"weights": clip[1], "config": IMAGE_MODELS["vit"]}):
        with pytest.raises(ValueError, match=r"the image tower needs either weights or config .* and not both"):
            TransformersImageTower(**arguments)


def test_unavailable_image_weights_are_rejected(offline, tmp_path):
    for reference in ("nobody/has-this-model", str(tmp_path), str(tmp_path / "nothing")):
        with pytest.raises(ValueError, match=r"^image tower .*set image_tower.init_args.weights to a local") as caught:
            TransformersImageTower(reference)
        assert repr(reference) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tower", "settings", "model", "arguments"),
    [
        (TransformersImageTower, ViTConfig, ViTModel, HOW),
        (TransformersTextTower, BertConfig, BertModel, {}),
    ],
)
def test_weights_without_the_configured_pooler_are_rejected(tmp_path, tower, settings, model, arguments):
    sizes = SMALL if model is ViTModel else {key: value for key, value in BERT.items() if key != "model_type"}
    model(settings(**sizes), add_pooling_layer=False).save_pretrained(tmp_path)
    tower(str(tmp_path), pooling="cls", **arguments)
    with pytest.raises(ValueError, match="pooler"):
        tower(str(tmp_path), pooling="own", **arguments)


def test_half_precision_weights_are_loaded_as_float32(tmp_path):
    model = randomise(pair("clip")).half()
    tower = TransformersImageTower(write(model, tmp_path), projected=True, **HOW).eval()
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    assert tower(images()).dtype == torch.float32


@pytest.mark.parametrize(
    ("tower", "config"),
    [
        (TransformersImageTower, {"model_type": "resnet"}),
        (TransformersTextTower, SMALL | {"model_type": "vit"}),
        (TransformersTextTower, TEXT | {"model_type": "siglip_text_model"}),  # supported as a part of SigLIP only
    ],
)
def test_unsupported_models_are_rejected(tower, config):
    arguments = HOW if tower is TransformersImageTower else {}
    with pytest.raises(ValueError, match=config["model_type"]) as caught:
        tower(config=dict(config), pooling="mean", **arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_text_encoder_of_a_vision_text_dual_encoder():
    pair_config = {"model_type": "vision-text-dual-encoder", "projection_dim": 12, "text_config": BERT}
    pair_config["vision_config"] = IMAGE_MODELS["vit"]
    tower = TransformersTextTower(config=pair_config, pooling="own", projected=True)
    assert tower(captions()).shape == (3, 12)
