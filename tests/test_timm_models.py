"""Our backbones as timm models: the checks of timm's own test suite, on every registered name."""

import inspect
import re
from typing import Any

import pytest
import timm
import tiny
import torch
from timm.models import get_pretrained_cfg
from timm.models.swin_transformer import SwinTransformer
from timm.optim import create_optimizer_v2, param_groups_weight_decay

import backbones
import backbones.timm_models as ours
from backbones import timm_keywords, weights
from backbones.specs import variants
from transom.errors import SpecError

NAMES = timm.list_models("transom*")
SMALL = [ours.PREFIX + n for n in ("swin_t", "swinv2_t_w8", "swin_mlp_t_c24", "cswin_t", "pale_t")]


def small(family, *edits, **kwargs):
    """A small model of a family, through create_model."""
    spec = tiny.notation(family, *edits)
    kwargs = {"num_classes": 10, "img_size": 64} | kwargs
    return tiny.randomise(timm.create_model("transom", spec=spec, **kwargs)).eval()


def test_every_variant_is_registered_under_a_prefix():
    assert set(NAMES) == {"transom"} | {ours.PREFIX + name for name in variants.names()}
    assert type(timm.create_model("swin_tiny_patch4_window7_224")).__module__.startswith("timm.")


def of_any_size(name: str) -> Any:
    """Of a paper's variants the first is a fast test; each takes seconds."""
    sources = {ours.PREFIX + n: variants.get(n).source for n in variants.names()}
    later = name in sources and name != next(n for n in sources if sources[n] == sources[name])
    return pytest.param(name, marks=pytest.mark.slow) if later else name


@pytest.mark.parametrize("name", map(of_any_size, NAMES))
def test_default_configs(name):
    """Built on meta, with the configuration that timm's tools read; pretrained is refused."""
    with torch.device("meta"):
        model = timm.create_model(name)
    config = model.pretrained_cfg
    state = model.state_dict()
    assert state[config["first_conv"] + ".weight"].shape[1] == config["input_size"][0]
    assert state[config["classifier"] + ".weight"].shape[0] == model.num_classes
    assert model.num_classes == config["num_classes"] == (10 if "micro" in name else 1000)
    logits = model(torch.empty(2, *config["input_size"], device="meta"))
    assert logits.shape == (2, model.num_classes)
    features = model.forward_features(torch.empty(2, *config["input_size"], device="meta"))
    assert features.shape == (2, model.num_features, *config["pool_size"])
    assert get_pretrained_cfg(name).url == ""
    if name != "transom":
        row = variants.get(name.removeprefix(ours.PREFIX))
        assert sum(p.numel() for p in model.parameters()) == row.params
        levels = timm.create_model(name, features_only=True).feature_info.channels()
        assert levels == [stage.dim for stage in row.spec.stages]


@pytest.mark.parametrize("family", tiny.SOME)
def test_forward_equals_the_backbone_it_wraps(family):
    model = small(family)
    plain = tiny.create(family, "num_classes=10", "img_size=64")
    plain.load_state_dict(model.state_dict())
    x = tiny.images(2, 3, 50, 70)
    assert tiny.error(model(x), plain(x)) < 1e-6


@pytest.mark.parametrize("family", tiny.SOME)
def test_backward_reaches_every_parameter(family):
    model = small(family).train()
    model(tiny.images(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter", "fx"])
@pytest.mark.parametrize("family", ["swin", "pale", "hybrid"])
def test_features_in_all_classes(family, kind):
    """The same maps, NCHW, by any wrapper, with negative indices and a size of primes."""
    spec = tiny.notation(family)
    net = timm.create_model(
        "transom", spec=spec, features_only=True, feature_cls=kind, out_indices=(0, 2, -1)
    ).eval()  # fmt: skip
    whole = small(family)
    wrapped = {key.replace("stages_", "stages."): v for key, v in net.state_dict().items()}
    wrapped = {re.sub(r"^(graph_module|model)\.", "", k): v for k, v in wrapped.items()}
    missing = whole.load_state_dict(wrapped, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith(("norm.", "head.")) for key in missing.missing_keys)
    x = tiny.images(2, 3, 97, 53)
    maps = net(x)
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    expected = [whole.features(x)[i] for i in (0, 2, 3)]
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    assert net.feature_info.reduction() == [4, 16, 32]
    assert max(map(tiny.error, maps, expected)) < 1e-5


@pytest.mark.parametrize("indices", [None, 1, 3, [0, 2], [-1]])
def test_intermediates(indices):
    model = small("swin")
    x = tiny.images(1, 3, 64, 48)
    last, maps = model.forward_intermediates(x, indices)
    every = model.features(x)
    chosen = {None: [0, 1, 2, 3], 1: [3], 3: [1, 2, 3]}.get(
        indices if not isinstance(indices, list) else "list", indices
    )
    assert tiny.error(last, model.forward_features(x)) == 0
    assert len(maps) == len(chosen)
    assert all(tiny.error(m, every[i]) == 0 for m, i in zip(maps, chosen, strict=True))
    only = model.forward_intermediates(x, indices, norm=True, intermediates_only=True)
    if 3 in chosen or -1 in chosen:
        assert tiny.error(only[-1], last) == 0
    short = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    assert tiny.error(short[0], every[0]) == 0


@pytest.mark.parametrize("indices", [[1], [0, 3], 2])
def test_pruning_keeps_what_is_asked_for(indices):
    model = small("cswin")
    x = tiny.images(1, 3, 64, 64)
    before = model.forward_intermediates(x, indices, intermediates_only=True)
    taken = model.prune_intermediate_layers(indices)
    after = model.forward_intermediates(x, taken, intermediates_only=True)
    assert all(tiny.error(a, b) == 0 for a, b in zip(after, before, strict=True))
    assert len(model.stages) == max(taken) + 1 and model.num_classes == 0
    assert model(x).shape[1] == model.num_features


def test_classifier_and_channels():
    model = small("swinv2", num_classes=7, in_chans=5)
    x = tiny.images(2, 5, 64, 64)
    assert model(x).shape == (2, 7) and model.get_classifier() is model.head
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert tiny.error(model(x), model.forward_head(model.forward_features(x), True)) == 0
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 32, 2, 2)
    with pytest.raises(SpecError):
        model.reset_classifier(4)


def test_input_size_resamples_absolute_positions():
    model = small("swin", "position=absolute")
    before = model.stem.position.detach().clone()
    x = tiny.images(1, 3, 96, 64)
    expected = model(x)
    model.set_input_size((96, 64))
    assert model.stem.position.shape[2:] == (24, 16) != before.shape[2:]
    assert tiny.error(model(x), expected) < 1e-5  # what forward did at every call
    for bad in ({"img_size": 0}, {"patch_size": 2}):
        with pytest.raises(SpecError):
            model.set_input_size(**bad)


def test_drop_path_rate():
    model = small("swin", drop_path_rate=0.3)
    rates = [m.rate for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.3) and rates == sorted(rates)


@pytest.mark.parametrize("family", ["swin", "swinv2", "pale", "hybrid"])
def test_checkpointing_changes_nothing(family):
    """Outputs within 1e-6 and gradients within 1e-5 of the plain ones, and blocks do run again."""
    model, x = small(family).eval(), tiny.images(2, 3, 64, 64)
    grads, kept = [], []
    calls = []
    model.stages[0].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable, per in ((False, "block"), (True, "block"), (True, "stage")):
        model.set_grad_checkpointing(enable, per=per)
        model.zero_grad()
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.update({t.data_ptr(): t.nbytes}), t)[1], lambda t: t
        ):
            out = model(x)
        out.square().sum().backward()
        grads.append((out.detach(), [p.grad.clone() for p in model.parameters()]))
        kept.append(sum(sizes.values()))
    assert len(calls) == 5 and kept[0] > kept[1] > kept[2]
    (a, plain), *others = grads
    scale = max(float(g.abs().max()) for g in plain)
    for b, again in others:
        assert tiny.error(a, b) <= 1e-6
        assert max(map(tiny.error, plain, again)) <= 1e-5 * scale
    with pytest.raises(SpecError, match="per='head' is neither 'block' nor 'stage'"):
        model.set_grad_checkpointing(per="head")


def test_weight_decay_and_layer_groups():
    model = small("swinv2")
    skipped = model.no_weight_decay()
    names = dict(model.named_parameters())
    assert skipped <= set(names)
    for part in ("logit_scale", "bias.mlp.0.weight", "bias.mlp.2.weight"):
        assert any(part in name for name in skipped)
    assert not any(name.endswith(("qkv.weight", "fc1.weight", "conv.weight")) for name in skipped)
    assert any("table" in name for name in small("swin").no_weight_decay())
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=skipped)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for n, p in names.items() if n not in skipped and p.ndim > 1}
    optimizer = create_optimizer_v2(model, "adamw", layer_decay=0.9)
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert len(scales) >= 10 and max(scales) == 1.0


# What timm's scripts pass to create_model where no option is given, argument by argument.
SCRIPTS = {
    "train": {
        "pretrained": False, "in_chans": 3, "num_classes": 7, "drop_rate": 0.0,
        "drop_path_rate": None, "drop_block_rate": None, "global_pool": None, "bn_momentum": None,
        "bn_eps": None, "scriptable": False, "checkpoint_path": "",
    },
    "validate": {
        "pretrained": False, "num_classes": 7, "in_chans": 3, "global_pool": None,
        "scriptable": False,
    },
    "benchmark": {
        "num_classes": 7, "in_chans": 3, "global_pool": "fast", "scriptable": False,
        "drop_rate": 0.0, "drop_path_rate": None, "drop_block_rate": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", ["transom_swin_t", "transom_pale_t"])
def test_scripts_of_timm(name, script):
    """Their arguments, then one step at a rate that falls from the head to the stem."""
    model = timm.create_model(name, **SCRIPTS[script])
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.9)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    loss = torch.nn.functional.cross_entropy(
        model(tiny.images(2, 3, 32, 32)), torch.tensor([1, 6])
    )  # fmt: skip
    loss.backward()
    optimizer.step()
    scales = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    depth = sum(stage.depth for stage in model.spec.stages)
    assert len(scales) == len(before)
    assert scales[id(model.head.weight)] == 1
    assert scales[id(model.stem.conv.weight)] == pytest.approx(0.9 ** (depth + 1))
    assert all(p.isfinite().all() for p in model.parameters())
    for key in ("stem.conv.weight", "stages.2.blocks.5.mlp.fc1.weight", "head.weight"):
        assert not torch.equal(before[key], model.get_parameter(key))


def test_dropout_stands_before_the_classifier():
    """In training alone, at its rate, of the pooled features; none of it in the state."""
    model = small("swin", drop_rate=0.25).train()
    ones = torch.ones(64, model.num_features, 2, 2)
    seen = model.forward_head(ones, pre_logits=True)
    assert torch.allclose(seen.unique(), torch.tensor([0, 1 / 0.75]))
    assert float((seen == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
    assert torch.equal(model.eval().forward_head(ones, pre_logits=True), ones.mean((2, 3)))
    assert set(model.state_dict()) == set(small("swin").state_dict())
    for wrong in (1, -0.1, "a"):
        with pytest.raises(SpecError, match=f"drop_rate={wrong!r}: expected a rate"):
            small("swin", drop_rate=wrong)


def test_batch_norms_device_and_dtype():
    model = small("pale", bn_momentum=0.3, bn_eps=1e-4)
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.3, 1e-4)} and norms
    spec = tiny.notation("swin")
    model = timm.create_model("transom", spec=spec, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


def test_drop_path_of_the_notation_is_kept():
    """drop_path_rate replaces it only where it is given."""
    spec = tiny.notation("swin", "drop_path=0.2")
    assert timm.create_model("transom", spec=spec).spec.drop_path == 0.2
    assert timm.create_model("transom", spec=spec, drop_path_rate=0.0).spec.drop_path == 0


def swin_defaults():
    parameters = inspect.signature(SwinTransformer.__init__).parameters
    return {key: p.default for key, p in parameters.items() if key != "self"}


def test_the_keywords_of_timms_swin_are_known():
    """All at once with timm's defaults: Swin-T with them is Swin-T."""
    asked = swin_defaults()
    assert {"window_size", "attn_drop_rate", "norm_layer", "weight_init"} <= set(asked)
    with torch.device("meta"):
        model = timm.create_model("transom_swin_t", **asked)
        plain = timm.create_model("transom_swin_t", drop_path_rate=asked["drop_path_rate"])
    assert model.spec == plain.spec


ASKED = {
    "window_size": [8, (7, 14), [8, 8, 7, 7]], "embed_dim": [192, (96, 192, 384, 576)],
    "depths": [(2, 2, 18, 2), (2, 2, 6)], "num_heads": [(4, 8, 16, 32), (3, 6, 12)],
    "head_dim": [16], "mlp_ratio": [2.0], "qkv_bias": [False], "ape": [True], "patch_size": [8],
    "proj_drop_rate": [0.1], "attn_drop_rate": [0.1], "drop_block_rate": [0.1],
    "norm_layer": [torch.nn.BatchNorm2d], "embed_layer": [torch.nn.Conv2d],
    "weight_init": ["jax"],
}  # fmt: skip
CASES = [(key, value) for key, values in ASKED.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES, ids=str)
def test_refused_keywords_name_a_notation_that_builds(key, value):
    """What the line says to write parses and builds, and is what was asked for, so that the same
    keyword passes there; but dropouts, parts and initialisations, which have no field."""
    with torch.device("meta"), pytest.raises(SpecError) as refused:
        timm.create_model("transom_swin_t", **{key: value})
    (line,) = str(refused.value).splitlines()
    shown = getattr(value, "__name__", repr(value))
    hint = re.fullmatch(rf"{key}={re.escape(shown)}: say spec=\"([^\"]+)\".*", line)
    assert hint is not None, line
    told = {} if key.endswith("_rate") or key in timm_keywords.PARTS else {key: value}
    with torch.device("meta"):
        model = timm.create_model("transom", spec=hint[1], **told)
    assert model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)
    plain = backbones.parse("swin_t")
    assert (model.spec.stages == plain.stages) == (key in ("ape", "patch_size") or not told)
    if key.endswith("_rate"):
        assert model.spec.drop_path == value


def test_refused_keywords_together():
    """One line for all; a window where there was none; what is no value at all."""
    line = re.escape('embed_dim=128, num_heads=(4, 8, 16, 32): say spec="swin_t/1.dim=128/')
    for name, asked, message in [
        ("swin_t", {"embed_dim": 128, "num_heads": (4, 8, 16, 32)}, line),
        ("swin_t", {"embed_dim": 128}, "dim 128 does not divide.*embed_dim and num_heads go"),
        ("axial_t", {"window_size": 8}, 'say spec="axial_t/1=window:size=8/2=window:size=8/'),
        ("cswin_t", {"window_size": 7}, 'say spec="cswin_t/1=cross/2=cross'),
        ("swin_t", {"window_size": "big"}, "window_size='big': window: size='big': expected 7"),
        ("swin_t", {"mlp_ratio": (1, 2)}, "expected one value, or 4: one a stage"),
        ("swin_t", {"strict_img_size": 3}, "strict_img_size=3: expected true or false"),
        ("swin_t", {"scriptable": True}, "scriptable=True: torch.jit.script.*backbones.export"),
    ]:
        with torch.device("meta"), pytest.raises(SpecError, match=message):
            timm.create_model(ours.PREFIX + name, **asked)
    with pytest.raises(TypeError, match="'windowsize'; did you mean 'window_size'"):
        timm.create_model("transom_swin_t", windowsize=8)


# -- norms per level ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{}, {"feature_cls": "getter"}])
def test_norms_per_level(kind):
    """The maps of `features`, each normed, on the same weights; nothing else is left to train."""
    net = timm.create_model("transom", spec="swin_t/out_norms=true", features_only=True, **kind)
    assert sum(p.numel() for p in net.parameters()) == 27_520_698
    net = tiny.randomise(net).eval()
    plain = backbones.create("swin_t/out_norms=true", num_classes=0, final_norm=False).eval()
    state = net.state_dict()
    plain.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    x = tiny.images(1, 3, 64, 96)
    with torch.no_grad():
        maps, wanted = net(x), plain.features(x)
    assert all(map(torch.equal, maps, wanted)) and len(maps) == 4
    assert net.feature_info.channels() == [m.shape[1] for m in maps]


def test_norms_of_levels_that_are_not_asked_for_are_dropped():
    """Else DistributedDataParallel would wait for their gradients."""
    spec = tiny.notation("swin", "out_norms=true")
    net = timm.create_model("transom", spec=spec, features_only=True, out_indices=(1, 2)).train()
    sum(m.square().sum() for m in net(tiny.images(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert [m.shape[1] for m in net(tiny.images(2, 3, 64, 64))] == net.feature_info.channels()
    whole = timm.create_model("transom", spec=spec).eval()
    last, maps = whole.forward_intermediates(tiny.images(1, 3, 64, 64), norm=True)
    assert tiny.error(maps[-1], whole.features(tiny.images(1, 3, 64, 64))[-1]) == 0
    assert tiny.error(last, whole.forward_features(tiny.images(1, 3, 64, 64))) == 0


@pytest.mark.parametrize("kind", ["list", "dict", "hook", "fx"])
def test_wrappers_that_would_lose_the_norms_are_refused(kind):
    spec = tiny.notation("swin", "out_norms=true")
    with pytest.raises(SpecError, match=f"feature_cls='{kind}'.*out_norms.*'getter'"):
        timm.create_model("transom", spec=spec, features_only=True, feature_cls=kind)


def test_what_is_not_offered_is_refused_by_name():
    for kwargs, word in [
        ({"output_stride": 8}, "output_stride=8"), ({"global_pool": "max"}, "global_pool='max'"),
        ({"spec": "swin_x"}, "swin_t"),
    ]:  # fmt: skip
        with pytest.raises(SpecError, match=word):
            timm.create_model("transom", **kwargs)
    with pytest.raises(TypeError):
        timm.create_model("transom_swin_t", no_such_argument=1)
    assert timm.create_model("transom_swin_t", output_stride=32).num_classes == 1000


def test_register_names_a_hybrid():
    """The same weights as through spec=; twice is once; what is taken or no name is refused."""
    spec = tiny.notation("hybrid")
    name = ours.register("test_hybrid", spec)
    assert name == "transom_test_hybrid" and ours.register("test_hybrid", spec) == name
    made = tiny.randomise(timm.create_model(name)).eval()
    assert tiny.state_hash(made) == tiny.state_hash(small("hybrid"))
    told = tiny.randomise(timm.create_model("transom", spec=spec)).eval()  # its classes, too
    assert told.num_classes == 10 and tiny.state_hash(made) == tiny.state_hash(told)
    assert made.pretrained_cfg["input_size"] == (3, 64, 64)
    assert get_pretrained_cfg(name).input_size == (3, 64, 64)
    for wrong, of, why in (
        ("test_hybrid", "swin_t", "another backbone"),
        ("swin_t", spec, "another backbone"),
        ("Test-Hybrid", spec, "lower-case"),
        ("test_other", "swin_t/3=pal", "did you mean 'pale'"),
    ):
        with pytest.raises(SpecError, match=why):
            ours.register(wrong, of)
    assert "transom_test_other" not in timm.list_models()


def test_weights_are_loaded_into_timm_models(tmp_path):
    """weights.load takes them as it takes ours, for those who want no reader but ours."""
    wanted = tiny.create("hybrid", seed=3)
    path = weights.save(wanted, tmp_path / "own.safetensors")
    made = timm.create_model("transom", spec=tiny.notation("hybrid"))
    assert weights.load(made, path).model is made
    assert tiny.state_hash(made) == tiny.state_hash(wanted)
