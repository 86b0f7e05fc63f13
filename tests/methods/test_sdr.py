import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdr_lightning.methods import SDR, structure
from sdr_lightning.methods.parameters import Temperature, TextShare
from sdr_lightning.methods.sdr import TERMS
from sdr_lightning.types import Pairs
from tests.reference import losses as reference

IDS = [3, 8, 3, 5, 8, 8]
WIDTH, IMAGE_WIDTH, TEXT_WIDTH, TOKEN_WIDTH = 4, 5, 3, 3
ALL = {"itc": 1.0, "itm": 0.9, "iic": 0.5, "ttc": 2.0, "kd": 3.0, "kdi": 0.7, "kdt": 1.3}
INSTANCES = ("itc", "itm", "iic", "ttc")
STRUCTURE = ("kd", "kdi", "kdt")
RELATIONS = ["fused", "image_image", "text_text", "image_text", "averaged"]
SEVERAL = {"averaged": 0.5, "fused": 1.0, "image_image": 1.5, "image_text": 0.8, "text_text": 0.3}
COSINE_DISTANCES = ["mae", "mse", "kl", "wasserstein", "weighted_wasserstein", "paper_cumsum"]
RKD = ["rkd_distance", "rkd_angle"]
DISTANCES = COSINE_DISTANCES + RKD
EMBEDDINGS = ("image", "text", "fused", "match_logits")


def random_rows(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_pairs(seed=0, ids=IDS):
    """Pairs and what a fusion encoder says of each pair, of each text's negative and of each image's."""
    count, widths = len(ids), (WIDTH, WIDTH, IMAGE_WIDTH, TEXT_WIDTH, TOKEN_WIDTH)
    image, text, image_teacher, text_teacher, fused = (
        random_rows(count, width, 6 * seed + i) for i, width in enumerate(widths)
    )
    image, text = F.normalize(image, dim=1).requires_grad_(), F.normalize(text, dim=1).requires_grad_()
    logits = random_rows(3 * count, 2, 6 * seed + 5).requires_grad_()
    labels = torch.tensor([1] * count + [0] * (2 * count - 1) + [-100])  # the last one does not exist
    if all(other == ids[0] for other in ids):
        labels[count:] = -100
    return Pairs(
        image, text, torch.tensor(ids), None, image_teacher, text_teacher, fused.requires_grad_(), logits, labels
    )


def make_sdr(weights=ALL, tau=0.2, tau2=0.4, share=0.3, learnable=True, distance="mae", **kwargs):
    torch.manual_seed(0)
    relation_temperature = {} if distance in RKD else {"relation_temperature": Temperature(tau2, learnable)}
    module = SDR(
        weights,
        WIDTH,
        IMAGE_WIDTH,
        TEXT_WIDTH,
        temperature=Temperature(tau, learnable),
        text_share=TextShare(share, "free" if learnable else "fixed"),
        distance=distance,
        **relation_temperature,
        **kwargs,
    )
    if kwargs.get("teacher_mlps"):  # small ones: the reference is slow
        for side, width in (("image", IMAGE_WIDTH), ("text", TEXT_WIDTH)):
            setattr(
                module.structure, f"{side}_teacher_mlp", nn.Sequential(nn.Linear(width, 3), nn.GELU(), nn.Linear(3, 4))
            )
    return module.double()


def short(name):
    """The name that the reference gives a parameter."""
    return name.replace("structure.temperature", "relation_temperature").removeprefix("structure.")


def parameters(module):
    return {short(name): parameter for name, parameter in module.named_parameters()}


def plain(module, pairs):
    """The input of the reference: the method's state and the batch, as lists."""
    tensors = {short(name): tensor for name, tensor in module.state_dict().items()}
    tensors |= {name: value for name, value in pairs._asdict().items() if value is not None}
    return {name: tensor.tolist() for name, tensor in tensors.items()} | {"constant_text": pairs.text.tolist()}


def structure_terms(module, given):
    return reference.structure_terms(given, module.relation, module.distance)


def gradients(module, pairs, term):
    inputs = {name: getattr(pairs, name) for name in EMBEDDINGS} | parameters(module)
    found = torch.autograd.grad(module(pairs)[term], list(inputs.values()), allow_unused=True, materialize_grads=False)
    return dict(zip(inputs, found, strict=True))


def assert_gradients_equal(module, pairs, names, weighted_reference):
    """Gradients that `backward` has left against central differences of a function of what the reference is given."""
    tensors, given = parameters(module) | pairs._asdict(), plain(module, pairs)
    for name in names:
        slopes = reference.gradient(lambda value, n=name: weighted_reference(given | {n: value}), given[name])
        expected = torch.tensor(slopes, dtype=torch.float64)
        torch.testing.assert_close(
            tensors[name].grad, expected, rtol=1e-5, atol=1e-6, msg=lambda message, n=name: f"{n}: {message}"
        )


# --- Every term against loops.


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("relation", [*RELATIONS, SEVERAL], ids=[*RELATIONS, "several"])
def test_structure_terms_equal_the_reference(relation, distance):
    module = make_sdr(dict.fromkeys(STRUCTURE, 1), relation=relation, distance=distance)
    for seed in range(2):
        pairs = random_pairs(seed)
        terms, expected = module(pairs), structure_terms(module, plain(module, pairs))
        assert list(terms) == list(STRUCTURE)
        for name, value in terms.items():
            assert value.dtype == torch.float64
            assert value.item() == pytest.approx(expected[name], rel=1e-6), name


@pytest.mark.parametrize(
    "ids",
    [IDS, [1, 2, 3, 4], [6, 6, 6], [[4, 0], [9, 1], [4, 1], [2, 2], [1, 0]]],
    ids=["groups", "single", "one image", "by image or text"],
)
def test_instance_terms_and_their_gradients_equal_the_reference(ids):
    weights = {name: ALL[name] for name in INSTANCES}
    module, pairs = make_sdr(weights), random_pairs(1, ids)
    terms, expected = module(pairs), reference.instance_terms(plain(module, pairs))
    assert list(terms) == list(INSTANCES)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-6)
    module.total(terms).backward()

    def total(given):
        return sum(weights[name] * value for name, value in reference.instance_terms(given).items())

    names = ["image", "text", "match_logits", *parameters(module)]
    assert len(names) == 3 + 5
    assert_gradients_equal(module, pairs, names, total)


@pytest.mark.parametrize("teacher_mlps", [False, True], ids=["features", "mlps"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_of_structure_terms_equal_the_reference(distance, teacher_mlps):
    weights = {name: ALL[name] for name in STRUCTURE}
    module = make_sdr(weights, relation=SEVERAL, distance=distance, teacher_mlps=teacher_mlps)
    pairs = random_pairs(2, [3, 8, 3, 5])
    terms, expected = module(pairs), structure_terms(module, plain(module, pairs))
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-6)
    module.total(terms).backward()

    def total(given):
        terms = structure_terms(module, given)
        return sum(weight * terms[name] for name, weight in weights.items())

    names = list(parameters(module))
    assert len(names) == 2 - (distance in RKD) + 8 * teacher_mlps
    assert_gradients_equal(module, pairs, names if teacher_mlps else ["image", "text", "fused", *names], total)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_by_gradcheck(distance):
    # The weights of the weighted distance are constants of kdi and kdt, which differences cannot tell.
    weights = {"kd": 1.0} if distance == "weighted_wasserstein" else ALL
    module = make_sdr(weights, distance=distance, relation=SEVERAL)
    pairs = random_pairs(ids=[3, 8, 3, 5])
    scalars = [parameter for parameter in module.parameters() if parameter.ndim == 0]

    def total(image, text, fused, logits, *_):
        return module.total(module(pairs._replace(image=image, text=text, fused=fused, match_logits=logits)))

    assert torch.autograd.gradcheck(total, (*(getattr(pairs, name) for name in EMBEDDINGS), *scalars))


# --- The sum.


def test_the_total_is_the_sum_of_weights_times_unweighted_terms():
    pairs = random_pairs()
    terms = make_sdr()(pairs)
    assert list(terms) == list(TERMS)
    torch.testing.assert_close(make_sdr().total(terms), sum(ALL[name] * value for name, value in terms.items()))
    unweighted = make_sdr(dict.fromkeys(TERMS, 1))(pairs)
    torch.testing.assert_close(unweighted, terms)  # a term does not depend on any weight


def test_a_total_by_hand():
    module = SDR({"itc": 0.5, "kd": 2.0})
    assert module.total({"itc": torch.tensor(3.0), "kd": torch.tensor(0.25)}).item() == 2.0


def test_a_term_is_the_same_alone_and_among_the_others():
    pairs, together = random_pairs(), make_sdr()
    for name, value in together(pairs).items():
        alone = make_sdr({name: 1})
        alone.load_state_dict({key: together.state_dict()[key] for key in alone.state_dict()})
        torch.testing.assert_close(alone(pairs), {name: value})


def test_without_weights_the_papers():
    module = SDR(None, WIDTH, IMAGE_WIDTH, TEXT_WIDTH)
    assert module.weights == {"itc": 1, "itm": 2, "iic": 1, "ttc": 2, "kd": 2, "kdi": 1, "kdt": 1}


# --- Which terms are computed.


@pytest.mark.parametrize("zero", list(TERMS))
def test_a_term_with_weight_zero_is_neither_computed_nor_given_parameters(zero):
    absent = {name: weight for name, weight in ALL.items() if name != zero}
    module = make_sdr(absent | {zero: 0})
    assert set(module(random_pairs())) == set(absent)
    assert module.state_dict().keys() == make_sdr(absent).state_dict().keys()
    assert any("project_image" in key for key in module.state_dict()) == (zero != "iic")
    assert any("project_text" in key for key in module.state_dict()) == (zero != "ttc")


@pytest.mark.parametrize("term", ["itc", "itm"])
def test_matching_alone_needs_nothing_of_the_teachers(term):
    module = SDR(ALL | dict.fromkeys(set(ALL) - {term}, 0), teacher_mlps=True)
    pairs = random_pairs()._replace(image_teacher=None, text_teacher=None)
    assert list(module(pairs)) == [term]
    assert list(parameters(module)) == (["temperature.value"] if term == "itc" else [])
    assert not module.has_structure
    assert not module.needs & {"image_teacher", "text_teacher"}


def test_the_students_relation_is_not_computed_without_kd(monkeypatch):
    def refuse(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(structure, "student_instances", refuse)
    make_sdr({"kdi": 1, "kdt": 1}, relation="fused")(random_pairs()._replace(fused=None))
    with pytest.raises(AssertionError, match="computed"):
        make_sdr({"kd": 1})(random_pairs())


@pytest.mark.parametrize(
    ("term", "image", "text"),
    [("itc", False, False), ("itm", False, False), ("iic", True, False), ("ttc", False, True)]
    + [(name, True, True) for name in STRUCTURE],
)
def test_which_teachers_a_term_needs(term, image, text):
    module, pairs = make_sdr({term: 1}), random_pairs()
    assert ("image_teacher" in module.needs, "text_teacher" in module.needs) == (image, text)
    for modality, needed in (("image", image), ("text", text)):
        without = pairs._replace(**{f"{modality}_teacher": None})
        if needed:
            with pytest.raises(ValueError, match=rf"needs {modality}-teacher features.*{modality}_bank"):
                module(without)
        else:
            module(without)


@pytest.mark.parametrize(
    ("weights", "relation", "matching", "fusion"),
    [
        ({"itc": 1, "kd": 1}, "averaged", False, False),
        ({"itm": 1}, "averaged", True, True),
        ({"kd": 1}, "fused", False, True),
        ({"kd": 1}, {"averaged": 1, "fused": 0.1}, False, True),
        ({"itc": 1, "kdi": 1, "kdt": 1}, "fused", False, False),
    ],
)
def test_what_needs_the_fusion_encoder(weights, relation, matching, fusion):
    module = SDR(weights, relation=relation)
    assert ("matching" in module.needs, "fusion" in module.needs) == (matching, fusion)
    if not fusion:
        make_sdr(weights, relation=relation)(random_pairs()._replace(fused=None, match_logits=None))


# --- Structure.


@pytest.mark.parametrize("kind", RELATIONS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_structure_is_zero_when_all_relations_coincide_and_only_then(kind, distance):
    module = make_sdr(dict.fromkeys(STRUCTURE, 1), relation=kind, distance=distance)
    rows = F.normalize(random_rows(4, WIDTH, 3), dim=1)
    # Teachers and fused tokens are the same rows in a turned and scaled space.
    turned = [rows @ torch.linalg.qr(random_rows(WIDTH, WIDTH, seed)).Q * seed for seed in (1, 2, 3)]
    pairs = Pairs(rows, rows, torch.arange(4), None, *turned)
    assert max(module(pairs).values()) < 1e-6
    assert min(module(pairs._replace(text_teacher=random_rows(4, 6, 9))).values()) > 1e-4


@pytest.mark.parametrize("kind", RELATIONS)
@pytest.mark.parametrize("distance", COSINE_DISTANCES)
def test_kd_is_zero_when_the_students_relation_is_the_fused_one(kind, distance):
    module = make_sdr({"kd": 1}, share=0.3, relation=kind, distance=distance)
    image_teacher, text_teacher = random_rows(4, 6, 1), random_rows(4, 7, 2)
    cosines = [F.normalize(t, dim=1) @ F.normalize(t, dim=1).T for t in (image_teacher, text_teacher)]
    share = module.structure.text_share().item()
    student = torch.linalg.cholesky(share * cosines[1] + (1 - share) * cosines[0])  # unit rows with these cosines
    other = F.normalize(random_rows(4, 4, 3), dim=1)
    image = other if kind in ("text_text", "fused") else student
    text = other if kind in ("image_image", "fused") else student
    pairs = Pairs(image, text, torch.arange(4), None, image_teacher, text_teacher, 3 * student)
    assert module(pairs)["kd"].item() < 1e-12
    swapped = pairs._replace(image_teacher=text_teacher, text_teacher=image_teacher)
    assert module(swapped)["kd"].item() > 1e-3


def test_structure_by_hand():
    # Two pairs: each relation matrix has one number off its diagonal.
    cosine = {"student": 0.0, "image": 0.6, "text": -0.8}
    pairs = Pairs(
        torch.eye(2),
        torch.eye(2),
        torch.tensor([0, 1]),
        None,
        torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        torch.tensor([[2.0, 0.0], [-0.8, 0.6]]),
    )
    module = SDR(
        {"kd": 1, "kdi": 1, "kdt": 1},
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


def test_several_relations_are_summed_by_their_weights():
    pairs = random_pairs()
    single = {kind: make_sdr({"kd": 1}, relation=kind)(pairs)["kd"] for kind in SEVERAL}
    several = make_sdr({"kd": 1}, relation=SEVERAL)(pairs)["kd"]
    torch.testing.assert_close(several, sum(SEVERAL[kind] * value for kind, value in single.items()))


@pytest.mark.parametrize("distance", DISTANCES)
def test_structure_does_not_see_a_rotation(distance):
    module, pairs = make_sdr(relation=SEVERAL, distance=distance), random_pairs()
    rotation, of_tokens = (torch.linalg.qr(random_rows(w, w, 9)).Q for w in (WIDTH, TOKEN_WIDTH))
    moved = pairs._replace(image=pairs.image @ rotation, text=pairs.text @ rotation, fused=pairs.fused @ of_tokens)
    rotated, still = module(moved), module(pairs)
    for name in ("itc", *STRUCTURE):
        torch.testing.assert_close(rotated[name], still[name])
    for name in ("iic", "ttc"):  # these are tied to the teachers' projections
        assert abs(rotated[name] - still[name]) > 1e-3
    one_sided = module(pairs._replace(image=pairs.image @ rotation))
    assert abs(one_sided["kd"] - still["kd"]) > 1e-4


@pytest.mark.parametrize("distance", DISTANCES)
def test_permuting_the_pairs_permutes_every_terms_gradient(distance):
    module, pairs = make_sdr(relation=SEVERAL, distance=distance), random_pairs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved_rows = {name: torch.cat([order + 6 * i for i in range(3)]) for name in ("match_logits", "match_labels")}
    moved = {name: tensor for name, tensor in pairs._asdict().items() if tensor is not None}
    permuted = Pairs(**{name: tensor.detach()[moved_rows.get(name, order)] for name, tensor in moved.items()})
    for name in EMBEDDINGS:
        getattr(permuted, name).requires_grad_()
    here, there = module(pairs), module(permuted)
    for name in TERMS:
        if distance == "paper_cumsum" and name in STRUCTURE:  # the one distance that depends on the batch's order
            assert abs(here[name] - there[name]) > 1e-3
            continue
        torch.testing.assert_close(there[name], here[name])
        before, after = gradients(module, pairs, name), gradients(module, permuted, name)
        for key in before:
            if before[key] is None:
                assert after[key] is None
            else:
                rows = moved_rows.get(key, order) if key in EMBEDDINGS else slice(None)
                torch.testing.assert_close(after[key], before[key][rows] if before[key].ndim else before[key])


@pytest.mark.parametrize(("distance", "power"), [("mae", 1), ("mse", 2), ("wasserstein", 1), ("paper_cumsum", 1)])
def test_growing_tau2_shrinks_every_structure_term(distance, power):
    pairs = random_pairs()
    cold = make_sdr(tau2=0.1, distance=distance)(pairs)
    warm = make_sdr(tau2=0.8, distance=distance)(pairs)
    for name in STRUCTURE:
        assert (cold[name] / warm[name]).item() == pytest.approx(8**power, rel=1e-6)
    for name in INSTANCES:
        torch.testing.assert_close(warm[name], cold[name])


@pytest.mark.parametrize("distance", COSINE_DISTANCES)
def test_a_tau2_that_crossed_zero(distance):
    """As it may where temperatures are not clamped: a distance of relations over tau2 stays a distance."""
    module = make_sdr(dict.fromkeys(STRUCTURE, 1), distance=distance, clamp_temperatures=False)
    with torch.no_grad():
        module.structure.temperature.value.neg_()
    pairs = random_pairs()
    expected = structure_terms(module, plain(module, pairs))
    assert {name: value.item() for name, value in module(pairs).items()} == pytest.approx(expected, rel=1e-6)


def test_with_mae_the_teachers_two_terms_sum_to_their_distance_whatever_lambda():
    pairs = random_pairs()
    relations = [reference.relation(teacher.tolist()) for teacher in (pairs.image_teacher, pairs.text_teacher)]
    expected = reference.distance(*relations, "mae") / 0.4
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        module = make_sdr({"kdi": 1, "kdt": 1}, share=share)
        total = module.total(module(pairs))
        assert total.item() == pytest.approx(expected, rel=1e-6)
        if 0 < share < 1:
            total.backward()
            assert abs(module.structure.text_share.value.grad.item()) < 1e-12
    for share in (-0.5, 1.5):
        outside = make_sdr({"kdi": 1, "kdt": 1}, share=share)
        assert outside.total(outside(pairs)).item() == pytest.approx(2 * expected, rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_lambda_is_the_share_of_the_text_teacher(distance):
    pairs = random_pairs()
    text_only = make_sdr(share=1.0, distance=distance)(pairs)
    assert text_only["kdt"].item() == pytest.approx(0, abs=1e-12)
    assert text_only["kdi"] > 0.01
    image_only = make_sdr(share=0.0, distance=distance)(pairs)
    assert image_only["kdi"].item() == pytest.approx(0, abs=1e-12)
    assert image_only["kdt"] > 0.01


@pytest.mark.parametrize("kind", RELATIONS)
def test_the_weights_of_the_wasserstein_distance_are_the_texts_whatever_the_relation(kind):
    module, pairs = make_sdr({"kd": 1}, relation=kind, distance="weighted_wasserstein"), random_pairs()
    other_text = F.normalize(random_rows(6, WIDTH, 50), dim=1)
    assert abs(module(pairs._replace(text=other_text))["kd"] - module(pairs)["kd"]) > 1e-3


# --- The teachers' MLPs.


def test_the_mlps_widths():
    module = SDR({"kd": 1}, None, IMAGE_WIDTH, TEXT_WIDTH, teacher_mlps=True)
    for mlp, width in (
        (module.structure.image_teacher_mlp, IMAGE_WIDTH),
        (module.structure.text_teacher_mlp, TEXT_WIDTH),
    ):
        first, activation, second = mlp
        assert isinstance(activation, nn.GELU)
        assert [first.in_features, first.out_features, second.in_features, second.out_features] == [
            width,
            1536,
            1536,
            768,
        ]
    assert not {id(p) for p in module.structure.image_teacher_mlp.parameters()} & {
        id(p) for p in module.structure.text_teacher_mlp.parameters()
    }


def test_without_structure_there_are_no_mlps():
    module = make_sdr({"itc": 1, "iic": 1}, teacher_mlps=False)
    asked = SDR({"itc": 1, "iic": 1}, WIDTH, IMAGE_WIDTH, teacher_mlps=True)
    assert asked.state_dict().keys() == module.state_dict().keys()


# --- What carries gradient.

CARRIES = {
    "itc": {"image", "text", "temperature.value"},
    "itm": {"match_logits"},
    "iic": {"image", "temperature.value", "project_image_teacher.weight", "project_image_teacher.bias"},
    "ttc": {"text", "temperature.value", "project_text_teacher.weight", "project_text_teacher.bias"},
    "kd": {"image", "text", "relation_temperature.value", "text_share.value"},
    "kdi": {"relation_temperature.value", "text_share.value"},
    "kdt": {"relation_temperature.value", "text_share.value"},
}


@pytest.mark.parametrize("term", list(TERMS))
def test_what_a_term_moves(term):
    found = gradients(make_sdr(), random_pairs(), term)
    assert {name for name, value in found.items() if value is not None} == CARRIES[term]
    assert all(found[name].abs().max() > 0 for name in CARRIES[term])


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("fused", {"fused"}),
        ("image_image", {"image"}),
        ("text_text", {"text"}),
        ("image_text", {"image", "text"}),
        ("averaged", {"image", "text"}),
        ({"fused": 1, "text_text": 1}, {"fused", "text"}),
    ],
)
@pytest.mark.parametrize("distance", ["mae", "kl", "rkd_angle"])
def test_kd_moves_the_embeddings_that_its_relation_names(kind, moved, distance):
    found = gradients(make_sdr(relation=kind, distance=distance), random_pairs(), "kd")
    assert {name for name in EMBEDDINGS if found[name] is not None} == moved
    assert all(found[name].any() for name in moved)


@pytest.mark.parametrize("teacher_mlps", [False, True], ids=["features", "mlps"])
@pytest.mark.parametrize("term", ["kdi", "kdt"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_teachers_terms_move_lambda_tau2_and_the_mlps_alone(distance, term, teacher_mlps):
    found = gradients(make_sdr(distance=distance, teacher_mlps=teacher_mlps), random_pairs(), term)
    moved = {name for name, value in found.items() if value is not None and value.any()}
    scalars = {"text_share.value"} | (set() if distance in RKD else {"relation_temperature.value"})
    assert {name for name in moved if "mlp" not in name} == scalars
    mlps = {f"{side}_teacher_mlp.{name}" for side in ("image", "text") for name in ("0.weight", "2.weight")}
    assert (mlps <= moved) == teacher_mlps


@pytest.mark.parametrize("teacher_mlps", [False, True], ids=["features", "mlps"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_no_gradient_ever_reaches_the_teachers_features(distance, teacher_mlps):
    pairs = random_pairs()
    pairs.image_teacher.requires_grad_()
    pairs.text_teacher.requires_grad_()
    module = make_sdr(distance=distance, teacher_mlps=teacher_mlps)
    module.total(module(pairs)).backward()
    assert pairs.image_teacher.grad is None
    assert pairs.text_teacher.grad is None
    assert pairs.image.grad is not None


def test_fixed_scalars_are_no_parameters_but_are_saved():
    module, pairs = make_sdr(learnable=False), random_pairs()
    scalars = {"temperature.value", "relation_temperature.value", "text_share.value"}
    assert not scalars & set(parameters(module))
    assert scalars <= set(map(short, module.state_dict()))
    torch.testing.assert_close(module(pairs), make_sdr()(pairs))


@pytest.mark.parametrize("distance", ["mae", "kl"])
def test_a_bounded_lambda_weighs_the_relations(distance):
    pairs, given = random_pairs(), {"relation_temperature": Temperature(0.4), "distance": distance}
    weights = dict.fromkeys(STRUCTURE, 1)
    bounded = SDR(weights, text_share=TextShare(0.3, "bounded"), **given).double()
    torch.testing.assert_close(bounded(pairs), make_sdr(weights, distance=distance)(pairs), rtol=1e-5, atol=0)
    assert gradients(bounded, pairs, "kd")["text_share.value"] != 0
    assert bounded.scalars()["lambda"].item() == pytest.approx(0.3)


# --- Small and degenerate batches.


def degenerate(name):
    if name == "one pair":
        return random_pairs(ids=[7])
    if name == "two pairs":
        return random_pairs(ids=[7, 9])
    if name == "two pairs of one image":
        return random_pairs(ids=[7, 7])
    pairs = random_pairs(ids=[7, 7, 7, 7] if name == "one image" else [7, 7, 8, 9])
    if name == "an image twice":  # of two captions, and two equal fused tokens
        rows = torch.tensor([0, 0, 2, 3])
        return pairs._replace(image=pairs.image[rows], fused=pairs.fused[rows], image_teacher=pairs.image_teacher[rows])
    if name == "equal embeddings":
        equal = {key: getattr(pairs, key)[:1].expand(4, -1) for key in ("image", "text", "fused")}
        return pairs._replace(**equal | {"text": equal["image"]})
    if name == "equal teachers":
        return pairs._replace(
            **{key: getattr(pairs, key)[:1].expand(4, -1) for key in ("image_teacher", "text_teacher")}
        )
    return pairs


BATCHES = [
    "one pair",
    "two pairs",
    "two pairs of one image",
    "one image",
    "an image twice",
    "equal embeddings",
    "equal teachers",
]


@pytest.mark.parametrize("teacher_mlps", [False, True], ids=["features", "mlps"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("batch", BATCHES)
def test_degenerate_batches_are_defined(batch, distance, teacher_mlps):
    module, pairs = make_sdr(relation=SEVERAL, distance=distance, teacher_mlps=teacher_mlps), degenerate(batch)
    terms = module(pairs)
    assert all(-1e-12 < value < 1e3 for value in terms.values()), terms
    for term in TERMS:
        for name, found in gradients(module, pairs, term).items():
            assert found is None or found.abs().max() < 1e4, (term, name)  # finite, and of a size to learn from


def test_weights_that_round_below_zero_do_not_blow_up():
    module = make_sdr(dict.fromkeys(STRUCTURE, 1), distance="weighted_wasserstein")
    for seed in range(40):
        pairs = random_pairs(seed, [0, 1])
        terms = module(pairs._replace(text=pairs.text[:1].expand(2, -1)))
        assert all(value < 1e3 for value in terms.values()), terms


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_batch_of_one_pair(distance):
    module, pairs = make_sdr(relation=SEVERAL, distance=distance), random_pairs(ids=[7])
    terms = module(pairs)
    module.total(terms).backward()
    matching = reference.matching(pairs.match_logits.tolist(), pairs.match_labels.tolist())
    expected = dict.fromkeys(TERMS, 0) | {"itm": matching}
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, abs=1e-12)
    for tensor in (pairs.image, pairs.text, pairs.fused, *module.parameters()):
        assert tensor.grad.abs().max() < 1e-12


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_batch_of_one_image(distance):
    module, pairs = make_sdr(relation=SEVERAL, distance=distance), random_pairs(ids=[7, 7, 7, 7])
    terms, given = module(pairs), plain(module, pairs)
    expected = reference.instance_terms(given) | structure_terms(module, given)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-6)
    assert all(terms[name] >= math.log(4) for name in ("itc", "iic", "ttc"))


# --- Scalars.


def fill(module, **values):
    with torch.no_grad():
        for name, value in values.items():
            place = {"relation_temperature": "structure.temperature", "text_share": "structure.text_share"}.get(
                name, name
            )
            module.get_parameter(f"{place}.value").fill_(value)


def test_clamp_puts_both_temperatures_back_and_leaves_lambda():
    module = make_sdr()
    fill(module, temperature=-3, relation_temperature=50, text_share=1.7)
    module.after_step()
    assert {name: value.item() for name, value in module.scalars().items()} == pytest.approx(
        {"temperature": 0.01, "relation_temperature": 1.0, "lambda": 1.7}
    )
    SDR({"itc": 1}).after_step()
    SDR({"kd": 1}, distance="rkd_angle").after_step()


def test_temperatures_can_be_left_alone():
    module = make_sdr(clamp_temperatures=False)
    fill(module, temperature=-3, relation_temperature=50, text_share=1.7)
    module.after_step()
    assert {name: value.item() for name, value in module.scalars().items()} == pytest.approx(
        {"temperature": -3, "relation_temperature": 50, "lambda": 1.7}
    )


def test_logged_scalars():
    values = make_sdr(tau=0.2, tau2=0.4, share=0.3).scalars()
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {"temperature": 0.2, "relation_temperature": 0.4, "lambda": 0.3}
    )
    assert not any(value.requires_grad for value in values.values())
    assert set(SDR({"itc": 1}).scalars()) == {"temperature"}
    assert SDR({"itm": 1}).scalars() == {}


@pytest.mark.parametrize("distance", RKD)
def test_relational_knowledge_distillation_has_no_temperature(distance):
    module = SDR({"kd": 1, "itc": 1}, distance=distance)
    assert set(module.scalars()) == {"temperature", "lambda"}
    assert set(parameters(module)) == {"temperature.value", "text_share.value"}
    with pytest.raises(ValueError, match=f"{distance} has no temperature: leave relation_temperature out"):
        SDR({"kd": 1}, distance=distance, relation_temperature=Temperature())


def test_the_temperature_that_negatives_are_drawn_with():
    found = make_sdr(tau=0.2).hard_negative_temperature()
    assert found.item() == pytest.approx(0.2)
    assert not found.requires_grad
    assert SDR({"itm": 1, "kd": 1}, relation="fused").hard_negative_temperature() == 0.07


def test_the_published_starting_values():
    values = SDR({"itc": 1, "kd": 2}).scalars()
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {"temperature": 0.07, "relation_temperature": 0.07, "lambda": 0.5}
    )


def test_two_methods_share_no_scalar():
    first, second = SDR({"itc": 1, "kd": 1}), SDR({"itc": 1, "kd": 1})
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    assert first.temperature is not first.structure.temperature


# --- Errors.


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"itcc": 1.0}, r"unknown term 'itcc'.*itc, itm, iic, ttc, kd, kdi, kdt.*did you mean 'itc'\?"),
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
        make_sdr(weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"relation": "imgae_image"}, f"relation must be one of {', '.join(RELATIONS)}, got 'imgae_image'"),
        ({"relation": {"averaged": 1, "imgae": 1}}, f"relation must be one of {', '.join(RELATIONS)}, got 'imgae'"),
        ({"relation": {}}, f"no relation is named.*{', '.join(RELATIONS)}"),
        *(
            (
                {"relation": {"averaged": 1, "fused": weight}},
                rf"weight of relation 'fused' must be .* positive, got {weight}",
            )
            for weight in (0, -1.0, math.inf, math.nan)
        ),
        ({"distance": "wd"}, f"distance must be one of {', '.join(DISTANCES)}, got 'wd'"),
    ],
)
def test_relations_and_distances_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        SDR({"kd": 1}, **arguments)


@pytest.mark.parametrize(
    ("weights", "mlps", "reader", "missing"),
    [
        ({"iic": 1}, False, "'iic'", "embedding_width"),
        ({"iic": 1}, False, "'iic'", "image_teacher_width"),
        ({"ttc": 1}, False, "'ttc'", "embedding_width"),
        ({"ttc": 1}, False, "'ttc'", "text_teacher_width"),
        ({"kdt": 1}, True, "teacher_mlps", "image_teacher_width"),
        ({"kdi": 1}, True, "teacher_mlps", "text_teacher_width"),
    ],
)
def test_a_missing_width(weights, mlps, reader, missing):
    widths = {"embedding_width": 4, "image_teacher_width": 6, "text_teacher_width": 7}
    with pytest.raises(ValueError, match=f"{reader} needs {missing}"):
        SDR(weights, teacher_mlps=mlps, **{k: v for k, v in widths.items() if k != missing})


@pytest.mark.parametrize(("term", "argument"), [("iic", "image_teacher_width"), ("ttc", "text_teacher_width")])
def test_widths_that_no_term_reads_may_be_missing(term, argument):
    module = SDR({term: 1}, WIDTH, **{argument: 7})
    (projection,) = [child for child in module.children() if isinstance(child, nn.Linear)]
    assert (projection.in_features, projection.out_features) == (7, WIDTH)


@pytest.mark.parametrize(("term", "modality", "width"), [("iic", "image", 5), ("ttc", "text", 3)])
def test_a_bank_of_another_width(term, modality, width):
    pairs = random_pairs()._replace(**{f"{modality}_teacher": random_rows(6, 11, 0)})
    message = rf"{modality} bank is 11 wide.*expects {width}.*{modality}_teacher_width to 11"
    with pytest.raises(ValueError, match=message):
        make_sdr({term: 1})(pairs)
    make_sdr({"kd": 1})(pairs)  # relations do not mind widths


@pytest.mark.parametrize(
    ("weights", "absent", "message"),
    [
        ({"itm": 1}, "match_logits", "'itm' needs a fusion encoder"),
        ({"itm": 1}, "match_labels", "'itm' needs a fusion encoder"),
        ({"kd": 1}, "fused", "fused tokens needs a fusion encoder"),
    ],
)
def test_without_a_fusion_encoder(weights, absent, message):
    with pytest.raises(ValueError, match=message):
        make_sdr(weights, relation="fused")(random_pairs()._replace(**{absent: None}))
