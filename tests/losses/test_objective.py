import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdr_lightning.losses import TERMS, RebalancingObjective, objective
from sdr_lightning.losses.parameters import Temperature, TextShare
from sdr_lightning.types import PairEmbeddings
from tests.reference import losses as reference

IDS = [3, 8, 3, 5, 8, 8]
WIDTH, IMAGE_WIDTH, TEXT_WIDTH = 4, 5, 3
ALL = {"itc": 1.0, "iic": 0.5, "ttc": 2.0, "kd": 3.0, "kdi": 0.7, "kdt": 1.3}
STRUCTURE = ("kd", "kdi", "kdt")
RELATIONS = ["image_image", "text_text", "image_text", "averaged"]


def random_rows(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_pairs(seed=0, ids=IDS):
    image = F.normalize(random_rows(len(ids), WIDTH, 4 * seed), dim=1).requires_grad_()
    text = F.normalize(random_rows(len(ids), WIDTH, 4 * seed + 1), dim=1).requires_grad_()
    image_teacher = random_rows(len(ids), IMAGE_WIDTH, 4 * seed + 2)
    text_teacher = random_rows(len(ids), TEXT_WIDTH, 4 * seed + 3)
    return PairEmbeddings(image, text, torch.tensor(ids), image_teacher, text_teacher)


def make_objective(weights=ALL, tau=0.2, tau2=0.4, share=0.3, learnable=True, **kwargs):
    torch.manual_seed(0)
    return RebalancingObjective(
        weights,
        WIDTH,
        IMAGE_WIDTH,
        TEXT_WIDTH,
        temperature=Temperature(tau, learnable),
        relation_temperature=Temperature(tau2, learnable),
        text_share=TextShare(share, 'free' if learnable else 'fixed'),
        **kwargs,
    ).double()


def reference_terms(module, pairs, **changed):
    """All six terms by the reference; a changed input replaces the module's or the pairs' own."""
    given = {
        "image": pairs.image.tolist(),
        "text": pairs.text.tolist(),
        "tau": module.temperature().item(),
        "tau2": module.relation_temperature().item(),
        "share": module.text_share().item(),
        "image_weight": module.project_image_teacher.weight.tolist(),
        "image_bias": [module.project_image_teacher.bias.tolist()],
        "text_weight": module.project_text_teacher.weight.tolist(),
        "text_bias": [module.project_text_teacher.bias.tolist()],
    } | changed
    image_teacher, text_teacher = pairs.image_teacher.tolist(), pairs.text_teacher.tolist()
    ids = pairs.image_index.tolist()
    image, text, tau = given["image"], given["text"], given["tau"]
    return {
        "itc": reference.itc(image, text, ids, tau),
        "iic": reference.distil(image, image_teacher, given["image_weight"], given["image_bias"][0], ids, tau),
        "ttc": reference.distil(text, text_teacher, given["text_weight"], given["text_bias"][0], ids, tau),
    } | reference.structure(
        image, text, image_teacher, text_teacher, given["share"], given["tau2"], module.relation, module.distance
    )


def gradients(module, pairs, term):
    inputs = {"image": pairs.image, "text": pairs.text} | dict(module.named_parameters())
    found = torch.autograd.grad(module(pairs)[term], list(inputs.values()), allow_unused=True, materialize_grads=False)
    return dict(zip(inputs, found, strict=True))


@pytest.mark.parametrize("distance", ["mae", "mse"])
@pytest.mark.parametrize("relation", RELATIONS)
def test_terms_equal_the_reference(relation, distance):
    module = make_objective(relation=relation, distance=distance)
    for seed in range(3):
        pairs = random_pairs(seed)
        terms = module(pairs)
        expected = reference_terms(module, pairs)
        assert list(terms) == list(TERMS)
        for name, value in terms.items():
            assert value.dtype == torch.float64
            assert value.item() == pytest.approx(expected[name], rel=1e-6), name


@pytest.mark.parametrize(("relation", "distance"), [("averaged", "mae"), ("image_text", "mse")])
def test_gradients_equal_the_reference(relation, distance):
    module, pairs = make_objective(relation=relation, distance=distance), random_pairs(1)
    module.total(module(pairs)).backward()

    def total(**changed):
        terms = reference_terms(module, pairs, **changed)
        return sum(ALL[name] * value for name, value in terms.items())

    projections = {"image": module.project_image_teacher, "text": module.project_text_teacher}
    for name, tensor in {
        "image": pairs.image,
        "text": pairs.text,
        **{f"{side}_weight": layer.weight for side, layer in projections.items()},
        **{f"{side}_bias": layer.bias for side, layer in projections.items()},
    }.items():
        plain = tensor.view(-1, tensor.shape[-1]).tolist()
        expected = reference.gradient(lambda rows, name=name: total(**{name: rows}), plain)
        torch.testing.assert_close(
            tensor.grad.view(-1, tensor.shape[-1]), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6
        )
    for name, parameter in {
        "tau": module.temperature.value,
        "tau2": module.relation_temperature.value,
        "share": module.text_share.value,
    }.items():
        expected = reference.derivative(lambda value, name=name: total(**{name: value}), parameter.item())
        assert parameter.grad.item() == pytest.approx(expected, rel=1e-5), name


def test_gradients_by_gradcheck():
    module, pairs = make_objective(distance="mse"), random_pairs()
    scalars = [module.temperature.value, module.relation_temperature.value, module.text_share.value]

    def total(image, text, *_):
        return module.total(module(pairs._replace(image=image, text=text)))

    assert torch.autograd.gradcheck(total, (pairs.image, pairs.text, *scalars))


def test_the_total_is_the_sum_of_weights_times_unweighted_terms():
    pairs = random_pairs()
    terms = make_objective()(pairs)
    torch.testing.assert_close(make_objective().total(terms), sum(ALL[name] * value for name, value in terms.items()))
    plain = make_objective(dict.fromkeys(TERMS, 1))(pairs)
    torch.testing.assert_close(plain, terms)  # a term does not depend on any weight


def test_a_total_by_hand():
    module = RebalancingObjective({"itc": 0.5, "kd": 2.0}, WIDTH)
    assert module.total({"itc": torch.tensor(3.0), "kd": torch.tensor(0.25)}).item() == 2.0


def test_a_term_is_the_same_alone_and_among_the_others():
    pairs, together = random_pairs(), make_objective()
    for name, value in together(pairs).items():
        alone = make_objective({name: 1})
        alone.load_state_dict({key: together.state_dict()[key] for key in alone.state_dict()})
        torch.testing.assert_close(alone(pairs), {name: value})


# --- Which terms are computed.


@pytest.mark.parametrize("zero", list(TERMS))
def test_a_term_with_weight_zero_is_neither_computed_nor_given_parameters(zero):
    absent = {name: weight for name, weight in ALL.items() if name != zero}
    module = make_objective(absent | {zero: 0})
    assert set(module(random_pairs())) == set(absent)
    assert module.state_dict().keys() == make_objective(absent).state_dict().keys()
    assert any("project_image" in key for key in module.state_dict()) == (zero != "iic")
    assert any("project_text" in key for key in module.state_dict()) == (zero != "ttc")


def test_matching_alone_needs_nothing_of_the_teachers():
    module = RebalancingObjective(ALL | dict.fromkeys(["iic", "ttc", "kd", "kdi", "kdt"], 0), WIDTH)
    pairs = random_pairs()._replace(image_teacher=None, text_teacher=None)
    assert list(module(pairs)) == ["itc"]
    assert [name for name, _ in module.named_parameters()] == ["temperature.value"]
    assert not module.has_structure
    assert not module.needs_image_teacher
    assert not module.needs_text_teacher


def test_the_students_relation_is_not_computed_without_kd(monkeypatch):
    def refuse(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(objective, "student_relation", refuse)
    make_objective({"kdi": 1, "kdt": 1})(random_pairs())
    with pytest.raises(AssertionError, match="computed"):
        make_objective({"kd": 1})(random_pairs())


@pytest.mark.parametrize(
    ("term", "image", "text"),
    [("itc", False, False), ("iic", True, False), ("ttc", False, True)] + [(name, True, True) for name in STRUCTURE],
)
def test_which_teachers_a_term_needs(term, image, text):
    module, pairs = make_objective({term: 1}), random_pairs()
    assert (module.needs_image_teacher, module.needs_text_teacher) == (image, text)
    for modality, needed in (("image", image), ("text", text)):
        without = pairs._replace(**{f"{modality}_teacher": None})
        if needed:
            with pytest.raises(ValueError, match=rf"needs {modality}-teacher features.*{modality}_bank"):
                module(without)
        else:
            module(without)


# --- Structure.


def factor(relation):
    """Unit rows whose cosines are the given positive definite relation."""
    return torch.linalg.cholesky(relation)


@pytest.mark.parametrize("kind", RELATIONS)
@pytest.mark.parametrize("distance", ["mae", "mse"])
def test_kd_is_zero_when_the_students_relation_is_the_fused_one(kind, distance):
    module = make_objective({"kd": 1, "itc": 1}, share=0.3, relation=kind, distance=distance)
    image_teacher, text_teacher = random_rows(4, 6, 1), random_rows(4, 7, 2)
    cosines = [F.normalize(t, dim=1) @ F.normalize(t, dim=1).T for t in (image_teacher, text_teacher)]
    share = module.text_share().item()
    student = factor(share * cosines[1] + (1 - share) * cosines[0])
    other = F.normalize(random_rows(4, 4, 3), dim=1)
    image = other if kind == "text_text" else student
    text = other if kind == "image_image" else student
    pairs = PairEmbeddings(image, text, torch.arange(4), image_teacher, text_teacher)
    assert module(pairs)["kd"].item() < 1e-12
    swapped = pairs._replace(image_teacher=text_teacher, text_teacher=image_teacher)
    assert module(swapped)["kd"].item() > 1e-3


def test_structure_by_hand():
    # Two pairs: each relation matrix has one number off its diagonal.
    cosine = {"student": 0.0, "image": 0.6, "text": -0.8}
    pairs = PairEmbeddings(
        torch.eye(2),
        torch.eye(2),
        torch.tensor([0, 1]),
        torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        torch.tensor([[2.0, 0.0], [-0.8, 0.6]]),
    )
    module = RebalancingObjective(
        {"kd": 1, "kdi": 1, "kdt": 1},
        2,
        relation_temperature=Temperature(0.5),
        text_share=TextShare(0.25),
    )
    fused = 0.25 * cosine["text"] + 0.75 * cosine["image"]
    terms = {name: value.item() for name, value in module(pairs).items()}
    assert terms == pytest.approx(
        {
            "kd": abs(cosine["student"] - fused) / 0.5,
            "kdi": abs(cosine["image"] - fused) / 0.5,
            "kdt": abs(cosine["text"] - fused) / 0.5,
        }
    )


@pytest.mark.parametrize("kind", RELATIONS)
def test_structure_does_not_see_a_rotation_of_the_common_space(kind):
    module, pairs = make_objective(relation=kind), random_pairs()
    rotation = torch.linalg.qr(random_rows(WIDTH, WIDTH, 9)).Q
    rotated = module(pairs._replace(image=pairs.image @ rotation, text=pairs.text @ rotation))
    plain = module(pairs)
    for name in ("itc", *STRUCTURE):
        torch.testing.assert_close(rotated[name], plain[name])
    for name in ("iic", "ttc"):  # these are tied to the teachers' projections
        assert abs(rotated[name] - plain[name]) > 1e-3


@pytest.mark.parametrize("kind", RELATIONS)
def test_permuting_the_pairs_permutes_every_terms_gradient(kind):
    module, pairs = make_objective(relation=kind), random_pairs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = PairEmbeddings(*(tensor[order].detach() for tensor in pairs))
    permuted.image.requires_grad_()
    permuted.text.requires_grad_()
    torch.testing.assert_close(module(permuted), module(pairs))
    for name in TERMS:
        before, after = gradients(module, pairs, name), gradients(module, permuted, name)
        for key in before:
            if before[key] is None:
                assert after[key] is None
            else:
                moved = before[key][order] if key in ("image", "text") else before[key]
                torch.testing.assert_close(after[key], moved)


@pytest.mark.parametrize(("distance", "power"), [("mae", 1), ("mse", 2)])
def test_growing_tau2_shrinks_every_structure_term(distance, power):
    pairs = random_pairs()
    cold = make_objective(tau2=0.1, distance=distance)(pairs)
    warm = make_objective(tau2=0.8, distance=distance)(pairs)
    for name in STRUCTURE:
        assert (cold[name] / warm[name]).item() == pytest.approx(8**power, rel=1e-6)
    torch.testing.assert_close(warm["itc"], cold["itc"])


def test_with_mae_the_teachers_two_terms_sum_to_their_distance_whatever_lambda():
    pairs = random_pairs()
    relations = [reference.relation(teacher.tolist()) for teacher in (pairs.image_teacher, pairs.text_teacher)]
    expected = reference.distance(*relations, "mae") / 0.4
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        module = make_objective({"kdi": 1, "kdt": 1}, share=share)
        total = module.total(module(pairs))
        assert total.item() == pytest.approx(expected, rel=1e-6)
        if 0 < share < 1:
            total.backward()
            assert abs(module.text_share.value.grad.item()) < 1e-12
    outside = make_objective({"kdi": 1, "kdt": 1}, share=1.5)
    assert outside.total(outside(pairs)).item() == pytest.approx(2 * expected, rel=1e-6)


def test_lambda_is_the_share_of_the_text_teacher():
    pairs = random_pairs()
    text_only = make_objective(share=1.0)(pairs)
    assert text_only["kdt"].item() == pytest.approx(0, abs=1e-12)
    assert text_only["kdi"] > 0.1
    image_only = make_objective(share=0.0)(pairs)
    assert image_only["kdi"].item() == pytest.approx(0, abs=1e-12)
    assert image_only["kdt"] > 0.1


# --- What carries gradient.

CARRIES = {
    "itc": {"image", "text", "temperature.value"},
    "iic": {"image", "temperature.value", "project_image_teacher.weight", "project_image_teacher.bias"},
    "ttc": {"text", "temperature.value", "project_text_teacher.weight", "project_text_teacher.bias"},
    "kd": {"image", "text", "relation_temperature.value", "text_share.value"},
    "kdi": {"relation_temperature.value", "text_share.value"},
    "kdt": {"relation_temperature.value", "text_share.value"},
}


@pytest.mark.parametrize("term", list(TERMS))
def test_what_a_term_moves(term):
    found = gradients(make_objective(), random_pairs(), term)
    assert {name for name, value in found.items() if value is not None} == CARRIES[term]
    assert all(found[name].abs().max() > 0 for name in CARRIES[term])


@pytest.mark.parametrize(
    ("kind", "moved"),
    [("image_image", {"image"}), ("text_text", {"text"}), ("image_text", {"image", "text"})],
)
def test_kd_moves_the_embeddings_that_its_relation_names(kind, moved):
    found = gradients(make_objective(relation=kind), random_pairs(), "kd")
    assert {name for name in ("image", "text") if found[name] is not None} == moved


def test_no_gradient_ever_reaches_the_teachers_features():
    pairs = random_pairs()
    pairs.image_teacher.requires_grad_()
    pairs.text_teacher.requires_grad_()
    module = make_objective()
    module.total(module(pairs)).backward()
    assert pairs.image_teacher.grad is None
    assert pairs.text_teacher.grad is None
    assert pairs.image.grad is not None


def test_fixed_scalars_are_no_parameters_but_are_saved():
    module, pairs = make_objective(learnable=False), random_pairs()
    scalars = {"temperature.value", "relation_temperature.value", "text_share.value"}
    assert not scalars & {name for name, _ in module.named_parameters()}
    assert scalars <= module.state_dict().keys()
    torch.testing.assert_close(module(pairs), make_objective()(pairs))


# --- Small batches.


def test_a_batch_of_one_pair():
    module, pairs = make_objective(), random_pairs(ids=[7])
    terms = module(pairs)
    module.total(terms).backward()
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(dict.fromkeys(TERMS, 0), abs=1e-12)
    for tensor in (pairs.image, pairs.text, *module.parameters()):
        assert tensor.grad.abs().max() < 1e-12


def test_a_batch_of_one_image():
    module, pairs = make_objective(), random_pairs(ids=[7, 7, 7, 7])
    terms, expected = module(pairs), reference_terms(module, pairs)
    module.total(terms).backward()
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-6)
    assert all(terms[name] >= math.log(4) for name in ("itc", "iic", "ttc"))
    assert pairs.image.grad.isfinite().all()
    assert pairs.text.grad.isfinite().all()


# --- Precision.


def test_terms_are_computed_in_float32_under_autocast():
    module = make_objective().float()
    pairs = PairEmbeddings(*(t.detach().to(torch.bfloat16) if t.is_floating_point() else t for t in random_pairs()))
    pairs.image.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = module(pairs)
    exact = module(PairEmbeddings(*(t.float() if t.is_floating_point() else t for t in pairs)))
    assert {value.dtype for value in terms.values()} == {torch.float32}
    for name in TERMS:
        torch.testing.assert_close(terms[name], exact[name], rtol=0, atol=0)
    module.total(terms).backward()
    assert pairs.image.grad.dtype == torch.bfloat16


# --- Scalars.


def test_clamp_puts_both_temperatures_back_and_leaves_lambda():
    module = make_objective()
    with torch.no_grad():
        module.temperature.value.fill_(-3)
        module.relation_temperature.value.fill_(50)
        module.text_share.value.fill_(1.7)
    module.clamp()
    assert {name: value.item() for name, value in module.scalars().items()} == pytest.approx(
        {"temperature": 0.01, "relation_temperature": 1.0, "lambda": 1.7}
    )
    RebalancingObjective({"itc": 1}, WIDTH).clamp()


def test_logged_scalars():
    values = make_objective(tau=0.2, tau2=0.4, share=0.3).scalars()
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {"temperature": 0.2, "relation_temperature": 0.4, "lambda": 0.3}
    )
    assert not any(value.requires_grad for value in values.values())
    assert set(RebalancingObjective({"itc": 1}, WIDTH).scalars()) == {"temperature"}


def test_the_published_starting_values():
    values = RebalancingObjective({"itc": 1, "kd": 2}, WIDTH).scalars()
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {"temperature": 0.07, "relation_temperature": 0.07, "lambda": 0.5}
    )


def test_two_objectives_share_no_scalar():
    first, second = RebalancingObjective({"itc": 1, "kd": 1}, WIDTH), RebalancingObjective({"itc": 1, "kd": 1}, WIDTH)
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    assert first.temperature is not first.relation_temperature


# --- Errors.


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"itcc": 1.0}, r"unknown term 'itcc'.*itc, iic, ttc, kd, kdi, kdt.*did you mean 'itc'\?"),
        ({"itc": 1.0, "kdl": 0.0}, r"unknown term 'kdl'.*did you mean 'kd"),
        ({"itc": -0.5}, r"weight of 'itc' must be finite and >= 0, got -0\.5"),
        ({"itc": 1.0, "kd": math.nan}, r"weight of 'kd' must be finite and >= 0, got nan"),
        ({"itc": math.inf}, r"weight of 'itc' must be finite and >= 0, got inf"),
        ({"itc": 0.0, "kd": 0.0}, "no term has a positive weight"),
        ({}, "no term has a positive weight"),
    ],
)
def test_weights_that_make_no_sense(weights, message):
    with pytest.raises(ValueError, match=message):
        make_objective(weights)


@pytest.mark.parametrize(("term", "argument"), [("iic", "image_teacher_width"), ("ttc", "text_teacher_width")])
def test_a_missing_width(term, argument):
    with pytest.raises(ValueError, match=f"'{term}' needs {argument}"):
        RebalancingObjective({term: 1}, WIDTH)
    widths = {"image_teacher_width": 6, "text_teacher_width": 7}
    module = RebalancingObjective({term: 1}, WIDTH, **{argument: widths[argument]})
    (projection,) = [child for child in module.children() if isinstance(child, nn.Linear)]
    assert (projection.in_features, projection.out_features) == (widths[argument], WIDTH)


@pytest.mark.parametrize(("term", "modality", "width"), [("iic", "image", 5), ("ttc", "text", 3)])
def test_a_bank_of_another_width(term, modality, width):
    pairs = random_pairs()._replace(**{f"{modality}_teacher": random_rows(6, 11, 0)})
    message = rf"{modality} bank is 11 wide.*expects {width}.*{modality}_teacher_width to 11"
    with pytest.raises(ValueError, match=message):
        make_objective({term: 1})(pairs)
    make_objective({"kd": 1})(pairs)  # relations do not mind widths
