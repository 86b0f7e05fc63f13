"""Import of checkpoints of the public code, against a reference implementation of its model."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from sdr_lightning.encoders import (
    DualEncoder,
    FusionEncoder,
    TimmImageTower,
    TransformersImageTower,
    TransformersTextTower,
)
from sdr_lightning.methods import SDR
from sdr_lightning.methods.parameters import TextShare
from sdr_lightning.training import RetrievalModule
from sdr_lightning.training.checkpoints.public_code import import_public_sdr
from tests.encoders.tiny import images, tokens
from tests.reference import public_sdr as public
from tests.reference.public_sdr import Architecture

State = dict[str, Tensor]
TINY = Architecture(
    image_size=32,
    patch=4,
    window=4,
    embed_dim=8,
    depths=(2, 2),
    image_heads=(2, 4),
    vocabulary=50,
    positions=32,
    hidden=12,
    intermediate=20,
    layers=4,
    fusion_layer=2,
    text_heads=2,
    embedding=10,
    image_teacher=7,
    text_teacher=6,
)
ARCHITECTURES = {
    "windows of 4 in 8 x 8, shifted, and in 4 x 4": TINY,
    "three stages, the first two shifted": TINY._replace(patch=2, depths=(2, 3, 2), image_heads=(2, 4, 8)),
    "a stage smaller than its windows": TINY._replace(depths=(1, 2, 2), image_heads=(2, 2, 4)),
    "odd windows": TINY._replace(image_size=24, window=3),
    "one text layer, three fusion layers": TINY._replace(fusion_layer=1),
    "three text layers, one fusion layer": TINY._replace(fusion_layer=3),
}
CAPTIONS = tokens((4, 7, 2), padding=13)
PROJECTIONS = {f"method.project_{side}_teacher.{kind}" for side in ("image", "text") for kind in ("weight", "bias")}
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def swin(sizes: Architecture, **options: Any) -> TimmImageTower:
    layout = {
        **{"img_size": sizes.image_size, "patch_size": sizes.patch, "window_size": sizes.window},
        **{"embed_dim": sizes.embed_dim, "depths": list(sizes.depths), "num_heads": list(sizes.image_heads)},
    }
    return TimmImageTower(
        "swin_base_patch4_window12_384", model_args=layout, mean=public.MEAN, std=public.STD, **options
    )


def bert(sizes: Architecture) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.text_heads,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": sizes.positions,
    }


def method(sizes: Architecture = TINY, **options: Any) -> SDR:
    """Build an SDR method, by default with the terms of the paper."""
    widths = (sizes.embedding, sizes.image_teacher, sizes.text_teacher)
    return SDR(options.pop("weights", None), *widths, **{"relation": "fused", **options})


def student(
    sizes: Architecture = TINY, parts: dict[str, Any] | None = None, terms: SDR | None = None
) -> RetrievalModule:
    """Build a student with random weights; ``parts`` replaces arguments of its encoder."""
    torch.manual_seed(5)
    encoder: dict[str, Any] = {
        "image_tower": swin(sizes),
        "text_tower": TransformersTextTower(config=bert(sizes), pooling="cls", layers=sizes.fusion_layer),
        "embedding_width": sizes.embedding,
        "fusion": FusionEncoder(sizes.image_width, config=bert(sizes), first_layer=sizes.fusion_layer),
    }
    return RetrievalModule(DualEncoder(**encoder | (parts or {})), terms or method(sizes))


@torch.no_grad()
def outputs(module: RetrievalModule, sizes: Architecture = TINY) -> tuple[Tensor, Tensor, Tensor]:
    """Return image embeddings, text embeddings and matching logits of three pairs."""
    encoder = module.eval().encoder
    image, text = encoder.image(images(3, sizes.image_size)), encoder.text(CAPTIONS)
    assert encoder.fusion is not None
    assert image.tokens is not None
    fused = encoder.fusion(text, encoder.fusion.contexts(image.tokens), torch.arange(3))
    return image.embedding, text.embedding, encoder.fusion.head(fused)


def expected(state: State, sizes: Architecture = TINY) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same outputs of the reference implementation."""
    pixels = images(3, sizes.image_size)
    return (
        public.image_embeddings(state, sizes, pixels),
        public.text_embeddings(state, sizes, *CAPTIONS),
        public.matching_logits(state, sizes, pixels, *CAPTIONS),
    )


@contextmanager
def unchanged(module: RetrievalModule) -> Iterator[None]:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    yield
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


# --- Outputs after import.


@pytest.mark.parametrize("sizes", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_imported_student_equals_the_public_code(sizes: Architecture) -> None:
    state, module = public.random_state(sizes), student(sizes)
    before = outputs(module, sizes)
    import_public_sdr(module, state)
    for mine, then, theirs in zip(outputs(module, sizes), before, expected(state, sizes), strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)
        assert ((then - theirs).abs().amax(1) > 0.1).all()


def test_image_tokens_equal_the_public_code() -> None:
    state, module = public.random_state(TINY), student()
    import_public_sdr(module, state)
    pixels = images()
    mine, theirs = module.eval().encoder.image(pixels).tokens, public.image_tokens(state, TINY, pixels)
    assert theirs.shape == (3, 1 + 4 * 4, 16)
    torch.testing.assert_close(mine, theirs, **TOLERANCE)
    torch.testing.assert_close(theirs[:, 0], theirs[:, 1:].mean(1))
    assert theirs[0, 1:].unique(dim=0).shape == (16, 16)  # all tokens differ


@pytest.mark.slow
def test_every_weight_affects_the_compared_outputs() -> None:
    """Except for biases of keys, which cancel in the softmax."""
    state = public.random_state(TINY)
    reference, generator = expected(state), torch.Generator().manual_seed(1)
    used = import_public_sdr(student(), state).used
    for key, name in used.items():
        if key.startswith("encoder.") and not name.endswith("self.key.bias"):
            noise = 0.3 * torch.randn(state[name].shape, generator=generator)
            moved = expected(state | {name: state[name] + noise})
            apart = max(float((a - b).abs().max()) for a, b in zip(moved, reference, strict=True))
            assert apart > 10 * TOLERANCE["atol"], name


def test_values_are_copied() -> None:
    state, module = public.random_state(TINY), student()
    own = module.state_dict()
    for key, name in import_public_sdr(module, state).used.items():
        assert torch.equal(own[key], state[name].reshape(own[key].shape)), name  # a state dict shares its storage


def test_scalars_are_imported() -> None:
    module = student()
    import_public_sdr(module, public.random_state(TINY))
    scalars = {name: value.item() for name, value in module.method.scalars().items()}
    assert scalars == {"temperature": 0.0625, "relation_temperature": 0.125, "lambda": 0.375}


def test_teacher_mlps_are_imported() -> None:
    state = public.random_state(TINY, teacher_mlps=True)
    module = student(terms=method(distance="wasserstein", teacher_mlps=True))
    imported = import_public_sdr(module, state)
    assert not imported.missing
    for mlp, name in (
        (module.method.structure.image_teacher_mlp, "img_wd_proj"),
        (module.method.structure.text_teacher_mlp, "text_wd_proj"),
    ):
        features = torch.randn(2, state[f"{name}.0.weight"].shape[1])
        theirs = public.linear(public.gelu(public.linear(features, state, f"{name}.0")), state, f"{name}.2")
        torch.testing.assert_close(mlp(features), theirs)


def test_half_precision_is_converted() -> None:
    state, module = public.random_state(TINY), student()
    import_public_sdr(
        module, {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    )
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
    for mine, theirs in zip(outputs(module), expected(state), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-2)


def test_frozen_towers_are_imported() -> None:
    text_tower = TransformersTextTower(config=bert(TINY), pooling="cls", layers=2, frozen=True)
    frozen = {"image_tower": swin(TINY, frozen=True), "text_tower": text_tower}
    state, module = public.random_state(TINY), student(parts=frozen)
    import_public_sdr(module, state)
    for mine, theirs in zip(outputs(module), expected(state), strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


# --- Reported keys.


def with_language_model_head(state: State) -> State:
    """Convert to the layout of X-VLM checkpoints, with a masked language modelling head around BERT."""
    inner = {key.replace("text_encoder.", "text_encoder.bert."): value for key, value in state.items()}
    return inner | {"text_encoder.cls.predictions.bias": torch.zeros(50)}


EXTRA = {
    "vision_encoder.head.weight": torch.zeros(2, 16),
    "text_encoder.pooler.dense.weight": torch.zeros(12, 12),
    "queue": torch.zeros(3),
}
KINDS: dict[str, tuple[Callable[[State], State], set[str], set[str]]] = {
    "ordered": (OrderedDict, set(), set()),
    "language model head": (with_language_model_head, {"text_encoder.cls.predictions.bias"}, set()),
    "first stage": (
        public.first_stage,
        set(),
        {*PROJECTIONS, "method.structure.temperature.value", "method.structure.text_share.value"},
    ),
    "extra keys": (lambda state: state | EXTRA, set(EXTRA), set()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_reported_once(kind: str) -> None:
    (change, unused, missing), sizes = KINDS[kind], list(ARCHITECTURES.values())[1 + list(KINDS).index(kind)]
    state, module = change(public.random_state(sizes)), student(sizes)
    buffers = {key for key in state if re.search(r"relative_position_index$|attn_mask$|position_ids$", key)}
    imported = import_public_sdr(module, state)
    assert imported.unused == sorted(buffers | unused)
    assert imported.missing == sorted(missing)
    assert sorted([*imported.used.values(), *imported.unused]) == sorted(state)
    assert sorted([*imported.used, *imported.missing]) == sorted(module.state_dict())
    for mine, theirs in zip(outputs(module, sizes), expected(state, sizes), strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


def test_key_mapping() -> None:
    used = import_public_sdr(student(), with_language_model_head(public.random_state(TINY))).used
    theirs, image, text = {name: key for key, name in used.items()}, "encoder.image_tower.model", "text_encoder.bert"
    assert (
        theirs["vision_encoder.layers.0.downsample.reduction.weight"] == f"{image}.layers.1.downsample.reduction.weight"
    )
    assert theirs["vision_encoder.layers.1.blocks.0.norm1.bias"] == f"{image}.layers.1.blocks.0.norm1.bias"
    bert_of = "encoder.text_tower.encoder.model.encoder"
    assert theirs[f"{text}.encoder.layer.1.output.dense.bias"] == f"{bert_of}.layer.1.output.dense.bias"
    assert theirs[f"{text}.encoder.layer.2.output.dense.bias"] == "encoder.fusion.layers.0.narrow.bias"
    assert theirs["temp"] == "method.temperature.value"


def test_missing_values_are_unchanged() -> None:
    module = student()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    imported = import_public_sdr(module, public.first_stage(public.random_state(TINY)))
    assert imported.missing
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]) == (key in imported.missing), key
    assert module.method.temperature().item() == 0.0625


def test_parameters_of_absent_terms_are_unused() -> None:
    module = student(terms=method(weights={"itc": 1, "itm": 1}))
    imported = import_public_sdr(module, public.random_state(TINY))
    assert not imported.missing
    assert {key for key in imported.unused if not key.startswith(("vision_encoder.", "text_encoder."))} == {
        *(f"sig_{side}_proj.{kind}" for side in ("vision", "text") for kind in ("weight", "bias")),
        "temp2",
        "lamba",
    }


def test_fixed_lambda_is_imported() -> None:
    module = student(terms=method(text_share=TextShare(0.5, "fixed")))
    import_public_sdr(module, public.random_state(TINY))
    assert module.method.structure.text_share().item() == 0.375


def shared_tensor(state: State) -> State:
    names = [f"vision_encoder.layers.0.blocks.{block}.norm1.bias" for block in (0, 1)]
    return state | dict.fromkeys(names, torch.ones(8))


def test_shared_tensors_are_reported_by_key() -> None:
    state = shared_tensor(public.random_state(TINY))
    imported = import_public_sdr(student(), state)
    assert sorted([*imported.used.values(), *imported.unused]) == sorted(state)


# --- Errors.


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.layers.0.downsample.norm.bias",
        "text_encoder.encoder.layer.1.attention.self.key.bias",
        "text_encoder.encoder.layer.3.crossattention.self.query.weight",
        "vision_proj.bias",
        "itm_head.3.weight",
    ],
)
def test_missing_encoder_weights_are_rejected(name: str) -> None:
    module, whole = student(), public.random_state(TINY)
    key = next(key for key, theirs in import_public_sdr(student(), whole).used.items() if theirs == name)
    state = {theirs: value for theirs, value in whole.items() if theirs != name}
    with unchanged(module), pytest.raises(ValueError, match=rf"lacks 1 weights of the encoder, first {re.escape(key)}"):
        import_public_sdr(module, state)


@pytest.mark.parametrize("prefix", ["vision_encoder.", "text_encoder."])
def test_missing_parts_are_rejected(prefix: str) -> None:
    module, state = student(), {k: v for k, v in public.random_state(TINY).items() if not k.startswith(prefix)}
    with (
        unchanged(module),
        pytest.raises(ValueError, match=r"the checkpoint lacks \d+ weights of the encoder, first \w+"),
    ):
        import_public_sdr(module, state)


ADVICE = "configure the architecture that the checkpoint was trained with"
OTHERS = {
    "width of the space": (
        TINY._replace(embedding=11),
        rf"vision_proj.weight is of shape \(11, 16\) and encoder.image_projection.1.weight of \(10, 16\): {ADVICE}",
    ),
    "vocabulary": (TINY._replace(vocabulary=51), r"word_embeddings.weight is of shape \(51, 12\) .* of \(50, 12\)"),
    "width of BERT": (TINY._replace(hidden=16), rf"text_encoder.* is of shape .*: {ADVICE}"),
    "teacher": (
        TINY._replace(image_teacher=8),
        rf"sig_vision_proj.weight is of shape \(10, 8\) .* of \(10, 7\): {ADVICE}",
    ),
    "heads of Swin": (
        TINY._replace(image_heads=(4, 4)),
        rf"bias_table is of shape \(49, 4\) .* of \(49, 2\): {ADVICE}",
    ),
    "fewer stages": (TINY._replace(depths=(2,), image_heads=(2,)), r"vision_encoder.*shape|lacks"),
    "fewer blocks": (TINY._replace(depths=(2, 1)), r"lacks 13 weights of the encoder, first .*layers.1.blocks.1"),
    "later fusion": (
        TINY._replace(fusion_layer=3),
        r"lacks 10 weights of the encoder, first encoder.fusion.layers.0.cross",
    ),
    "more blocks": (
        TINY._replace(depths=(2, 3)),
        rf"13 weights of the checkpoint have no place in the student, first vision_encoder.layers.1.blocks.2.*: {ADVICE}",
    ),
    "more layers": (
        TINY._replace(layers=5),
        rf"26 weights of the checkpoint have no place in the student, first text_encoder.encoder.layer.4.*: {ADVICE}",
    ),
    "earlier fusion": (
        TINY._replace(fusion_layer=1),
        rf"10 weights of the checkpoint have no place in the student, first .*layer.1.crossattention.*: {ADVICE}",
    ),
    "windows": (TINY._replace(window=2), rf"bias_table is of shape \(9, 2\) .* of \(49, 2\): {ADVICE}"),
}


@pytest.mark.parametrize(("sizes", "message"), OTHERS.values(), ids=list(OTHERS))
def test_other_architectures_are_rejected(sizes: Architecture, message: str) -> None:
    module = student()
    with unchanged(module), pytest.raises(ValueError, match=message):
        import_public_sdr(module, public.random_state(sizes))


def test_non_scalar_temperature_is_rejected() -> None:
    module, state = student(), public.random_state(TINY) | {"temp": torch.ones(2)}
    with (
        unchanged(module),
        pytest.raises(ValueError, match=r"temp is of shape \(2,\) and method.temperature.value of \(\)"),
    ):
        import_public_sdr(module, state)


def vision_transformer() -> TransformersImageTower:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    config = {"model_type": "vit", "image_size": 32, "patch_size": 16, **sizes}
    return TransformersImageTower(config=config, pooling="cls", mean=public.MEAN, std=public.STD)


KIND = "go into a student with a timm image tower and a fusion encoder"
STUDENTS: dict[str, tuple[Architecture, dict[str, Any], dict[str, Any], str]] = {
    "no fusion": (TINY, {"fusion": None}, {"weights": {"itc": 1}}, KIND),
    "another image tower": (TINY, {"image_tower": vision_transformer}, {}, KIND),
    "hidden layer": (
        TINY,
        {"hidden_width": 10},
        {},
        r"lacks 4 weights of the encoder, first encoder.image_projection",
    ),
    "norm": (
        TINY,
        {"normalise_features": True},
        {},
        r"lacks 8 weights of the encoder, first encoder.image_projection",
    ),
    "bounded lambda": (
        TINY,
        {},
        {"text_share": lambda: TextShare(0.5, "bounded")},
        "lambda has no bounds: configure text_share's kind as free or fixed",
    ),
    "text tower with all layers": (
        TINY,
        {"text_tower": lambda: TransformersTextTower(config=bert(TINY), pooling="cls")},
        {},
        "lacks .* weights of the encoder, first encoder.fusion",
    ),
    "no projections": (
        TINY._replace(hidden=16, embedding=16),
        {"embedding_width": None},
        {},
        "4 weights of the checkpoint have no place in the student, first text_proj.bias.* and its projections",
    ),
}


@pytest.mark.parametrize(("sizes", "parts", "options", "message"), STUDENTS.values(), ids=list(STUDENTS))
def test_unsupported_students_are_rejected(
    sizes: Architecture, parts: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    made = [{name: part() if callable(part) else part for name, part in given.items()} for given in (parts, options)]
    module = student(sizes, made[0], method(sizes, **made[1]))
    with unchanged(module), pytest.raises(ValueError, match=message):
        import_public_sdr(module, public.random_state(sizes))


def test_bounded_lambda_is_accepted_without_structure_terms() -> None:
    module = student(terms=method(weights={"itc": 1, "itm": 2}, text_share=TextShare(0.5, "bounded")))
    assert "lamba" in import_public_sdr(module, public.random_state(TINY)).unused
