"""Terms of SDR against reference loops, their gradients, degenerate batches and errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdr_lightning.methods import SDR, structure
from sdr_lightning.methods.parameters import Temperature, TextShare
from sdr_lightning.methods.sdr import TERMS
from sdr_lightning.types import Pairs, TrainingPairs
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
PAIRWISE = [(distance, RELATIONS[number % 5]) for number, distance in enumerate(DISTANCES)]


def random_rows(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_pairs(seed=0, ids=IDS):
    """Random pairs with fusion outputs of each pair, of each text with a negative image, and vice versa."""
    count, widths = len(ids), (WIDTH, WIDTH, IMAGE_WIDTH, TEXT_WIDTH, TOKEN_WIDTH)
    image, text, image_teacher, text_teacher, fused = (
        random_rows(count, width, 6 * seed + i) for i, width in enumerate(widths)
    )
    image, text = F.normalize(image, dim=1).requires_grad_(), F.normalize(text, dim=1).requires_grad_()
    logits = random_rows(3 * count, 2, 6 * seed + 5).requires_grad_()
    labels = torch.tensor([1] * count + [0] * (2 * count - 1) + [-100])  # the last negative does not exist
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
    """Return the name of a parameter in the reference."""
    return name.replace("structure.temperature", "relation_temperature").removeprefix("structure.")


def parameters(module):
    return {short(name): parameter for name, parameter in module.named_parameters()}


def plain(module, pairs):
    """Convert state and batch to lists, the input of the reference."""
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
    """Compare gradients in `.grad` with central differences of the reference."""
    tensors, given = parameters(module) | pairs._asdict(), plain(module, pairs)
    for name in names:
        slopes = reference.gradient(lambda value, n=name: weighted_reference(given | {n: value}), given[name])
        expected = torch.tensor(slopes, dtype=torch.float64)
        torch.testing.assert_close(
            tensors[name].grad, expected, rtol=1e-5, atol=1e-6, msg=lambda message, n=name: f"{n}: {message}"
        )


# --- Values and gradients against the reference.


@pytest.mark.parametrize(("distance", "relation"), PAIRWISE)
def test_structure_terms_equal_the_reference(distance, relation):
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


@pytest.mark.parametrize(
    ("distance", "teacher_mlps"),
    [*((distance, False) for distance in DISTANCES), ("mae", True), ("mse", True), ("weighted_wasserstein", True)],
)
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


# --- The sum.


def test_total_is_the_weighted_sum_of_unweighted_terms():
    pairs = random_pairs()
    terms = make_sdr()(pairs)
    assert list(terms) == list(TERMS)
    torch.testing.assert_close(make_sdr().total(terms), sum(ALL[name] * value for name, value in terms.items()))
    unweighted = make_sdr(dict.fromkeys(TERMS, 1))(pairs)
    torch.testing.assert_close(unweighted, terms)
    by_hand = SDR({"itc": 0.5, "kd": 2.0}).total({"itc": torch.tensor(3.0), "kd": torch.tensor(0.25)})
    assert by_hand.item() == 2.0


def test_terms_do_not_depend_on_other_terms():
    pairs, together = random_pairs(), make_sdr()
    for name, value in together(pairs).items():
        alone = make_sdr({name: 1})
        alone.load_state_dict({key: together.state_dict()[key] for key in alone.state_dict()})
        torch.testing.assert_close(alone(pairs), {name: value})


def test_default_weights_are_those_of_the_paper():
    module = SDR(None, WIDTH, IMAGE_WIDTH, TEXT_WIDTH)
    assert module.weights == {"itc": 1, "itm": 2, "iic": 1, "ttc": 2, "kd": 2, "kdi": 1, "kdt": 1}


# --- Which terms are computed.


def test_terms_with_weight_zero_have_no_value_and_no_parameters():
    for zero in TERMS:
        absent = {name: weight for name, weight in ALL.items() if name != zero}
        module = make_sdr(absent | {zero: 0})
        assert set(module(random_pairs())) == set(absent)
        assert module.state_dict().keys() == make_sdr(absent).state_dict().keys()
        assert any("project_image" in key for key in module.state_dict()) == (zero != "iic")
        assert any("project_text" in key for key in module.state_dict()) == (zero != "ttc")


@pytest.mark.parametrize("term", ["itc", "itm"])
def test_matching_terms_need_no_teachers(term):
    module = SDR(ALL | dict.fromkeys(set(ALL) - {term}, 0), teacher_mlps=True)
    pairs = random_pairs()._replace(image_teacher=None, text_teacher=None)
    assert list(module(pairs)) == [term]
    assert list(parameters(module)) == (["temperature.value"] if term == "itc" else [])
    assert not module.has_structure
    assert not module.needs & {"image_teacher", "text_teacher"}


def test_student_relation_is_computed_only_for_kd(monkeypatch):
    def refuse(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(structure, "student_instances", refuse)
    make_sdr({"kdi": 1, "kdt": 1}, relation="fused")(random_pairs()._replace(fused=None))
    with pytest.raises(AssertionError, match="computed"):
        make_sdr({"kd": 1})(random_pairs())


@pytest.mark.parametrize(
    ("term", "image", "text"),
    [("itc", False, False), ("iic", True, False), ("ttc", False, True)] + [(name, True, True) for name in STRUCTURE],
)
def test_terms_need_their_teachers(term, image, text):
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
def test_itm_and_fused_relation_need_fusion(weights, relation, matching, fusion):
    module = SDR(weights, relation=relation)
    assert ("matching" in module.needs, "fusion" in module.needs) == (matching, fusion)
    if not fusion:
        make_sdr(weights, relation=relation)(random_pairs()._replace(fused=None, match_logits=None))


# --- Structure.


@pytest.mark.parametrize(("distance", "kind"), PAIRWISE)
def test_structure_is_zero_iff_all_relations_are_equal(distance, kind):
    module = make_sdr(dict.fromkeys(STRUCTURE, 1), relation=kind, distance=distance)
    rows = F.normalize(random_rows(4, WIDTH, 3), dim=1)
    # Teachers and fused tokens are rotated and scaled copies of the rows.
    turned = [rows @ torch.linalg.qr(random_rows(WIDTH, WIDTH, seed)).Q * seed for seed in (1, 2, 3)]
    pairs = Pairs(rows, rows, torch.arange(4), None, *turned)
    assert max(module(pairs).values()) < 1e-6
    assert min(module(pairs._replace(text_teacher=random_rows(4, 6, 9))).values()) > 1e-4


@pytest.mark.parametrize(("distance", "kind"), PAIRWISE[:6])
def test_kd_is_zero_iff_student_relation_equals_the_target(distance, kind):
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


def test_structure_terms_of_two_pairs():
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


def test_several_relations_are_a_weighted_sum():
    pairs = random_pairs()
    single = {kind: make_sdr({"kd": 1}, relation=kind)(pairs)["kd"] for kind in SEVERAL}
    several = make_sdr({"kd": 1}, relation=SEVERAL)(pairs)["kd"]
    torch.testing.assert_close(several, sum(SEVERAL[kind] * value for kind, value in single.items()))


@pytest.mark.parametrize("distance", ["mae", "kl", "rkd_angle"])
def test_structure_is_invariant_to_rotation(distance):
    module, pairs = make_sdr(relation=SEVERAL, distance=distance), random_pairs()
    rotation, of_tokens = (torch.linalg.qr(random_rows(w, w, 9)).Q for w in (WIDTH, TOKEN_WIDTH))
    moved = pairs._replace(image=pairs.image @ rotation, text=pairs.text @ rotation, fused=pairs.fused @ of_tokens)
    rotated, still = module(moved), module(pairs)
    for name in ("itc", *STRUCTURE):
        torch.testing.assert_close(rotated[name], still[name])
    for name in ("iic", "ttc"):  # compared with projected teachers, which are not rotated
        assert abs(rotated[name] - still[name]) > 1e-3
    one_sided = module(pairs._replace(image=pairs.image @ rotation))
    assert abs(one_sided["kd"] - still["kd"]) > 1e-4


@pytest.mark.parametrize("distance", ["mse", "weighted_wasserstein", "paper_cumsum", "rkd_distance"])
def test_gradients_are_equivariant_to_permutation(distance):
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
def test_structure_terms_scale_with_tau2(distance, power):
    pairs = random_pairs()
    cold = make_sdr(tau2=0.1, distance=distance)(pairs)
    warm = make_sdr(tau2=0.8, distance=distance)(pairs)
    for name in STRUCTURE:
        assert (cold[name] / warm[name]).item() == pytest.approx(8**power, rel=1e-6)
    for name in INSTANCES:
        torch.testing.assert_close(warm[name], cold[name])


@pytest.mark.parametrize("distance", COSINE_DISTANCES)
def test_negative_tau2_keeps_distances_positive(distance):
    """Happens without clamping."""
    module = make_sdr(dict.fromkeys(STRUCTURE, 1), distance=distance, clamp_temperatures=False)
    with torch.no_grad():
        module.structure.temperature.value.neg_()
    pairs = random_pairs()
    expected = structure_terms(module, plain(module, pairs))
    assert {name: value.item() for name, value in module(pairs).items()} == pytest.approx(expected, rel=1e-6)


def test_kdi_and_kdt_with_mae_sum_to_the_teacher_distance():
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


@pytest.mark.parametrize("distance", ["mae", "kl", "rkd_distance"])
def test_lambda_is_the_share_of_the_text_teacher(distance):
    pairs = random_pairs()
    text_only = make_sdr(share=1.0, distance=distance)(pairs)
    assert text_only["kdt"].item() == pytest.approx(0, abs=1e-12)
    assert text_only["kdi"] > 0.01
    image_only = make_sdr(share=0.0, distance=distance)(pairs)
    assert image_only["kdi"].item() == pytest.approx(0, abs=1e-12)
    assert image_only["kdt"] > 0.01


@pytest.mark.parametrize("kind", ["fused", "image_image"])
def test_wasserstein_weights_come_from_texts(kind):
    module, pairs = make_sdr({"kd": 1}, relation=kind, distance="weighted_wasserstein"), random_pairs()
    other_text = F.normalize(random_rows(6, WIDTH, 50), dim=1)
    assert abs(module(pairs._replace(text=other_text))["kd"] - module(pairs)["kd"]) > 1e-3


# --- The teachers' MLPs.


def test_teacher_mlp_widths():
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


def test_no_teacher_mlps_without_structure_terms():
    module = make_sdr({"itc": 1, "iic": 1}, teacher_mlps=False)
    asked = SDR({"itc": 1, "iic": 1}, WIDTH, IMAGE_WIDTH, teacher_mlps=True)
    assert asked.state_dict().keys() == module.state_dict().keys()


# --- What carries gradient.

GRADIENT_TO = {
    "itc": {"image", "text", "temperature.value"},
    "itm": {"match_logits"},
    "iic": {"image", "temperature.value", "project_image_teacher.weight", "project_image_teacher.bias"},
    "ttc": {"text", "temperature.value", "project_text_teacher.weight", "project_text_teacher.bias"},
    "kd": {"image", "text", "relation_temperature.value", "text_share.value"},
    "kdi": {"relation_temperature.value", "text_share.value"},
    "kdt": {"relation_temperature.value", "text_share.value"},
}


@pytest.mark.parametrize("term", list(TERMS))
def test_terms_have_gradient_to_their_inputs_only(term):
    found = gradients(make_sdr(), random_pairs(), term)
    assert {name for name, value in found.items() if value is not None} == GRADIENT_TO[term]
    assert all(found[name].abs().max() > 0 for name in GRADIENT_TO[term])


@pytest.mark.parametrize(
    ("kind", "moved", "distance"),
    [
        ("fused", {"fused"}, "mae"),
        ("image_image", {"image"}, "kl"),
        ("text_text", {"text"}, "rkd_angle"),
        ("image_text", {"image", "text"}, "mae"),
        ("averaged", {"image", "text"}, "kl"),
        ({"fused": 1, "text_text": 1}, {"fused", "text"}, "rkd_angle"),
    ],
)
def test_kd_has_gradient_to_the_embeddings_of_its_relation(kind, moved, distance):
    found = gradients(make_sdr(relation=kind, distance=distance), random_pairs(), "kd")
    assert {name for name in EMBEDDINGS if found[name] is not None} == moved
    assert all(found[name].any() for name in moved)


@pytest.mark.parametrize(
    ("distance", "term", "teacher_mlps"),
    [(distance, ("kdi", "kdt")[n % 2], n % 4 > 1) for n, distance in enumerate(DISTANCES)],
)
def test_kdi_and_kdt_have_gradient_to_scalars_and_mlps_only(distance, term, teacher_mlps):
    found = gradients(make_sdr(distance=distance, teacher_mlps=teacher_mlps), random_pairs(), term)
    moved = {name for name, value in found.items() if value is not None and value.any()}
    scalars = {"text_share.value"} | (set() if distance in RKD else {"relation_temperature.value"})
    assert {name for name in moved if "mlp" not in name} == scalars
    mlps = {f"{side}_teacher_mlp.{name}" for side in ("image", "text") for name in ("0.weight", "2.weight")}
    assert (mlps <= moved) == teacher_mlps


@pytest.mark.parametrize(
    ("distance", "teacher_mlps"), [("mae", False), ("mae", True), ("kl", False), ("rkd_angle", True)]
)
def test_teacher_features_get_no_gradient(distance, teacher_mlps):
    pairs = random_pairs()
    pairs.image_teacher.requires_grad_()
    pairs.text_teacher.requires_grad_()
    module = make_sdr(distance=distance, teacher_mlps=teacher_mlps)
    module.total(module(pairs)).backward()
    assert pairs.image_teacher.grad is None
    assert pairs.text_teacher.grad is None
    assert pairs.image.grad is not None


def test_fixed_scalars_are_buffers():
    module, pairs = make_sdr(learnable=False), random_pairs()
    scalars = {"temperature.value", "relation_temperature.value", "text_share.value"}
    assert not scalars & set(parameters(module))
    assert scalars <= set(map(short, module.state_dict()))
    torch.testing.assert_close(module(pairs), make_sdr()(pairs))


@pytest.mark.parametrize("distance", ["mae", "kl"])
def test_bounded_lambda_equals_free_lambda(distance):
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
    if name == "an image twice":  # with two captions and equal fused tokens
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


@pytest.mark.parametrize("batch", BATCHES)
def test_degenerate_batches_have_finite_terms_and_gradients(batch):
    pairs = degenerate(batch)
    for number, distance in enumerate(DISTANCES):
        module = make_sdr(relation=SEVERAL, distance=distance, teacher_mlps=(number + BATCHES.index(batch)) % 2 == 1)
        terms = module(pairs)
        assert all(-1e-12 < value < 1e3 for value in terms.values()), (distance, terms)
        for term in TERMS:
            for name, found in gradients(module, pairs, term).items():
                assert found is None or found.abs().max() < 1e4, (distance, term, name)


def test_slightly_negative_wasserstein_weights_stay_finite():
    module = make_sdr(dict.fromkeys(STRUCTURE, 1), distance="weighted_wasserstein")
    for seed in range(40):
        pairs = random_pairs(seed, [0, 1])
        terms = module(pairs._replace(text=pairs.text[:1].expand(2, -1)))
        assert all(value < 1e3 for value in terms.values()), terms


@pytest.mark.parametrize("distance", DISTANCES)
def test_single_pair_has_zero_loss_and_gradient(distance):
    module, pairs = make_sdr(relation=SEVERAL, distance=distance), random_pairs(ids=[7])
    terms = module(pairs)
    module.total(terms).backward()
    matching = reference.matching(pairs.match_logits.tolist(), pairs.match_labels.tolist())
    expected = dict.fromkeys(TERMS, 0) | {"itm": matching}
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, abs=1e-12)
    for tensor in (pairs.image, pairs.text, pairs.fused, *module.parameters()):
        assert tensor.grad.abs().max() < 1e-12


# --- Centred teachers.


def training_pairs(pairs, extra=3):
    """Training features: those of the batch and a few more, off the origin."""
    features = [
        torch.cat((rows, random_rows(extra, rows.shape[1], seed))) + 2
        for seed, rows in enumerate((pairs.image_teacher, pairs.text_teacher))
    ]
    count = len(features[1])
    return TrainingPairs(torch.arange(count), torch.ones(count, dtype=torch.bool), *features)


def with_teachers(pairs, features):
    return pairs._replace(image_teacher=features[0][: len(IDS)], text_teacher=features[1][: len(IDS)])


def centred_by_hand(features):
    means = [math.fsum(column) / len(features) for column in zip(*features.tolist(), strict=True)]
    moved = [[value - mean for value, mean in zip(row, means, strict=True)] for row in features.tolist()]
    return torch.tensor(moved, dtype=torch.float64)


@pytest.mark.parametrize(("distance", "mlps"), [("mae", False), ("kl", True)])
def test_centred_teachers_give_the_terms_of_features_without_their_training_mean(distance, mlps):
    module = make_sdr(relation=SEVERAL, distance=distance, teacher_mlps=mlps, centre_teachers=True)
    raw = make_sdr(relation=SEVERAL, distance=distance, teacher_mlps=mlps)
    training = training_pairs(random_pairs())
    module.setup(training)
    features = training.image_teacher, training.text_teacher
    centred = with_teachers(random_pairs(), [centred_by_hand(rows) for rows in features])
    torch.testing.assert_close(module(with_teachers(random_pairs(), features)), raw(centred))


@pytest.mark.parametrize("distance", [*RKD, "mae"])
def test_centring_has_no_effect_on_distances_between_instances_but_on_cosines(distance):
    pairs, terms = random_pairs(), dict.fromkeys(STRUCTURE, 1)
    training = training_pairs(pairs)
    pairs = with_teachers(pairs, (training.image_teacher, training.text_teacher))
    found = []
    for centre in (False, True):
        module = make_sdr(terms, relation="averaged", distance=distance, centre_teachers=centre)
        module.setup(training)
        found.append(torch.stack(list(module(pairs).values())))
    assert torch.allclose(*found, rtol=1e-9) == (distance in RKD)


def test_a_constant_added_to_all_teacher_features_changes_nothing_with_centring():
    module, training = make_sdr(centre_teachers=True), training_pairs(random_pairs())
    found = []
    for offset in (0, 5):
        features = training.image_teacher + offset, training.text_teacher - offset
        module.setup(training._replace(image_teacher=features[0], text_teacher=features[1]))
        found.append(module(with_teachers(random_pairs(), features)))
    torch.testing.assert_close(*found)


def test_means_are_buffers_of_the_teachers_that_are_needed():
    module = make_sdr({"itc": 1, "iic": 1}, centre_teachers=True)
    with pytest.raises(ValueError, match="centre_teachers needs the mean of the image teacher's features: call setup"):
        module(random_pairs())
    training = training_pairs(random_pairs())
    module.setup(training)
    means = {name: value for name, value in module.state_dict().items() if "mean" in name}
    torch.testing.assert_close(means, {"image_teacher_mean": training.image_teacher.mean(dim=0)})
    with pytest.raises(ValueError, match="needs image-teacher features"):
        module.setup(training._replace(image_teacher=None))
    raw = make_sdr({"itc": 1, "iic": 1})
    raw.setup(training)
    assert not any("mean" in name for name in raw.state_dict())


# --- A temperature of its own for the representation terms.


def test_representation_terms_train_their_own_temperature():
    own = make_sdr(tau=0.2, relation="averaged", representation_temperature=Temperature(0.5))
    shared = make_sdr(tau=0.5, relation="averaged")
    pairs = random_pairs()
    for term in ("iic", "ttc"):
        torch.testing.assert_close(own(pairs)[term], shared(pairs)[term])
        expected = gradients(shared, pairs, term)["temperature.value"]
        found = gradients(own, pairs, term)
        torch.testing.assert_close(found["representation_temperature.value"], expected)
        assert found["temperature.value"] is None
    assert gradients(own, pairs, "itc")["representation_temperature.value"] is None
    assert own.scalars()["representation_temperature"].item() == pytest.approx(0.5)
    with torch.no_grad():
        own.representation_temperature.value.fill_(-3)
    own.after_step()
    assert own.scalars()["representation_temperature"].item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"itc": 1, "iic": 1}, {"temperature", "representation_temperature"}),
        ({"ttc": 1}, {"representation_temperature"}),
        ({"itc": 1}, {"temperature"}),
    ],
)
def test_only_temperatures_that_a_term_uses_are_parameters(weights, expected):
    module = make_sdr(weights, representation_temperature=Temperature())
    assert set(module.scalars()) == {name.removesuffix(".value") for name in parameters(module) if "temp" in name}
    assert set(module.scalars()) == expected


# --- Scalars.


def fill(module, **values):
    with torch.no_grad():
        for name, value in values.items():
            place = {"relation_temperature": "structure.temperature", "text_share": "structure.text_share"}.get(
                name, name
            )
            module.get_parameter(f"{place}.value").fill_(value)


def test_after_step_clamps_temperatures_but_not_lambda():
    module = make_sdr()
    fill(module, temperature=-3, relation_temperature=50, text_share=1.7)
    module.after_step()
    assert {name: value.item() for name, value in module.scalars().items()} == pytest.approx(
        {"temperature": 0.01, "relation_temperature": 1.0, "lambda": 1.7}
    )
    SDR({"itc": 1}).after_step()
    SDR({"kd": 1}, distance="rkd_angle").after_step()


def test_clamping_can_be_disabled():
    module = make_sdr(clamp_temperatures=False)
    fill(module, temperature=-3, relation_temperature=50, text_share=1.7)
    module.after_step()
    assert {name: value.item() for name, value in module.scalars().items()} == pytest.approx(
        {"temperature": -3, "relation_temperature": 50, "lambda": 1.7}
    )


def test_scalars():
    values = make_sdr(tau=0.2, tau2=0.4, share=0.3).scalars()
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {"temperature": 0.2, "relation_temperature": 0.4, "lambda": 0.3}
    )
    assert not any(value.requires_grad for value in values.values())
    assert set(SDR({"itc": 1}).scalars()) == {"temperature"}
    assert SDR({"itm": 1}).scalars() == {}


@pytest.mark.parametrize("distance", RKD)
def test_rkd_has_no_temperature(distance):
    module = SDR({"kd": 1, "itc": 1}, distance=distance)
    assert set(module.scalars()) == {"temperature", "lambda"}
    assert set(parameters(module)) == {"temperature.value", "text_share.value"}
    with pytest.raises(ValueError, match=f"{distance} has no temperature: leave relation_temperature out"):
        SDR({"kd": 1}, distance=distance, relation_temperature=Temperature())


def test_hard_negative_temperature():
    found = make_sdr(tau=0.2).hard_negative_temperature()
    assert found.item() == pytest.approx(0.2)
    assert not found.requires_grad
    assert SDR({"itm": 1, "kd": 1}, relation="fused").hard_negative_temperature() == 0.07


def test_initial_scalars_are_those_of_the_public_code():
    values = SDR({"itc": 1, "kd": 2}).scalars()
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {"temperature": 0.07, "relation_temperature": 0.07, "lambda": 0.5}
    )


def test_instances_share_no_parameters():
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
    ],
)
def test_invalid_weights_are_rejected(weights, message):
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
            for weight in (0, math.inf, math.nan)
        ),
        ({"distance": "wd"}, f"distance must be one of {', '.join(DISTANCES)}, got 'wd'"),
    ],
)
def test_invalid_relations_and_distances_are_rejected(arguments, message):
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
def test_missing_widths_are_rejected(weights, mlps, reader, missing):
    widths = {"embedding_width": 4, "image_teacher_width": 6, "text_teacher_width": 7}
    with pytest.raises(ValueError, match=f"{reader} needs {missing}"):
        SDR(weights, teacher_mlps=mlps, **{k: v for k, v in widths.items() if k != missing})


@pytest.mark.parametrize(("term", "argument"), [("iic", "image_teacher_width"), ("ttc", "text_teacher_width")])
def test_unused_widths_may_be_missing(term, argument):
    module = SDR({term: 1}, WIDTH, **{argument: 7})
    (projection,) = [child for child in module.children() if isinstance(child, nn.Linear)]
    assert (projection.in_features, projection.out_features) == (7, WIDTH)


@pytest.mark.parametrize(("term", "modality", "width"), [("iic", "image", 5), ("ttc", "text", 3)])
def test_teacher_features_of_another_width_are_rejected(term, modality, width):
    pairs = random_pairs()._replace(**{f"{modality}_teacher": random_rows(6, 11, 0)})
    message = rf"{modality} bank is 11 wide.*expects {width}.*{modality}_teacher_width to 11"
    with pytest.raises(ValueError, match=message):
        make_sdr({term: 1})(pairs)
    make_sdr({"kd": 1})(pairs)  # relations do not depend on widths


@pytest.mark.parametrize(
    ("weights", "absent", "message"),
    [
        ({"itm": 1}, "match_logits", "'itm' needs a fusion encoder"),
        ({"itm": 1}, "match_labels", "'itm' needs a fusion encoder"),
        ({"kd": 1}, "fused", "fused tokens needs a fusion encoder"),
    ],
)
def test_missing_fusion_outputs_are_rejected(weights, absent, message):
    with pytest.raises(ValueError, match=message):
        make_sdr(weights, relation="fused")(random_pairs()._replace(**{absent: None}))
