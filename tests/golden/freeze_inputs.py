"""What freeze.py looks at: configs with their variants, and rows (label, config, fields, …).

A row's config is `file.py:variant`, shrunk, with fields set on top: freeze_rows.json has it whole.
"""

from itertools import product

SIZES = ["full", "medium", "small"]
PATCHES = [f"{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4, 8)]
FLUX = [
    "fast",
    "plain",
    *SIZES,
    *(f"{size},{mode}" for size in SIZES for mode in ("fast", "plain")),
]
SPRINGS = [f"{mask}{size}" for mask in ("causal", "full") for size in ("", ",paper", ",small")]
STAGES = ["l2", "perceptual", "adversarial"]
SOT = [f"{stage}{sot}" for stage in STAGES for sot in ("", ",sot")]
LINES = ["sot", "uncond", "medium", "small", "sot,small", "small,sot,l2"]
LINES += [",".join(p) for p in product(STAGES, ("uncond", "medium", "small"))]
LINES += [",".join(p) for p in product(STAGES, ("sot",), ("uncond", "medium", "small"))]

CONFIGS = {  # each file and the variants that it knows
    "action_matching_two_moons.py": ["selu", "swish"],
    "dansm_bedroom.py": ["baseline", "1k", "10k"],
    "dansm_cifar10.py": ["baseline", "1k", "10k"],
    "dansm_ffhq256.py": ["baseline", "100", "1k"],
    "dansm_imagenet64.py": ["baseline", "100", "1k"],
    "denoising_celeba64.py": FLUX,
    "denoising_cifar10.py": FLUX,
    "denoising_springs.py": SPRINGS,
    "distance_marching_cifar10.py": SIZES,
    "distance_marching_digits.py": [],
    "distance_marching_imagenet256.py": PATCHES,
    "distance_marching_two_moons.py": [],
    "edm_afhq64.py": [],
    "edm_cifar10.py": ["full", "cond", "medium", "small"],
    "edm_imagenet64.py": ["deterministic", "stochastic"],
    "edm_two_moons.py": [],
    "equilibrium_matching_cifar10.py": [*SIZES, "energy", "energy_small"],
    "equilibrium_matching_digits.py": [],
    "equilibrium_matching_imagenet256.py": PATCHES,
    "equilibrium_matching_two_moons.py": ["equilibrium_matching", "energy_matching"],
    "flow_matching_cifar10.py": [*SIZES, *(f"{size}_uncond" for size in SIZES)],
    "flow_matching_digits.py": [],
    "flow_matching_imagenet256.py": [*PATCHES, *(f"{patch}_uncond" for patch in PATCHES)],
    "flow_matching_two_moons.py": ["independent", "ot", "sb"],
    "flux_matching_celeba64.py": FLUX,
    "flux_matching_cells.py": ["paper", "long"],
    "flux_matching_cifar10.py": FLUX,
    "flux_matching_springs.py": SPRINGS,
    "flux_matching_two_moons.py": ["annealed", "smoothed", "turning", "velocity", "score"],
    "lines_afhq64.py": SOT,
    "lines_cifar10.py": [*SOT, *LINES],
    "lines_imagenet64.py": SOT,
    "lines_two_moons.py": ["1", "2", "3", "flow"],
}
SHAPES = {  # of data that are not files of a known size: shape and classes
    "two_moons": ((2,), 0),
    "digits": ((8, 8, 1), 10),
    "springs": ((50, 4), 0),
    "cells": ((20,), 0),
}
CLASSES = {32: 10, 64: 1000}  # of labelled images, by their side

AM, DM, EDM, EQM, FM, FLUX_2D, LINES_2D = (
    f"{name}_two_moons.py"
    for name in (
        *("action_matching", "distance_marching", "edm", "equilibrium_matching"),
        *("flow_matching", "flux_matching", "lines"),
    )
)
CIFAR_FLUX, CIFAR_EDM, CIFAR_LINES = (
    f"{name}_cifar10.py" for name in ("flux_matching", "edm", "lines")
)
TINY = {"batch_size": 16, "net.width": 8, "net.depth": 2}
GROUPS = {"batch_size": 16, "net.width": 8, "loss.group_size": 8}
DIGITS = "freeze_digits.py"  # the tiny transformer on digits, with labels, dropout and an average


def fields(base: dict, **more) -> dict:
    """Fields with dots written as double underscores."""
    return base | {name.replace("__", "."): value for name, value in more.items()}


def named(name: str, **more) -> dict:
    """A section."""
    return {"name": name, **more}


MLP = named("mlp", width=8, depth=2)
SCALAR = MLP | {"output": "scalar"}
TIMED = MLP | {"time_input": True}

# ---- Draws alone: data, times, sources, couplings ------------------------------------------------

TOYS = ("checkerboard", "eight_gaussians", "pinwheel", "rings", "spirals", "swiss_roll")
DRAWS = [
    *((f"data {name}", FM, fields(TINY, data=named(name))) for name in TOYS),
    ("source two_moons", FM, fields(TINY, data=named("rings", source="two_moons"))),
    ("time skewed", FM, fields(TINY, time=named("skewed", mean=-1.0, std=1.1, low=1e-3))),
    ("time logit_normal", FM, fields(TINY, time=named("logit_normal", mean=0.1, std=0.9))),
    ("time uniform", FM, fields(TINY, time=named("uniform", low=0.1, high=0.9))),
    ("levels log_normal", EDM, fields(TINY, time=named("log_normal", mean=-1.0, std=1.1))),
    ("levels log_uniform", EDM, fields(TINY, time=named("log_uniform", low=0.01, high=50.0))),
    ("levels fixed", EDM, fields(TINY, time=named("fixed", level=0.3))),
    ("levels schedule", EDM, fields(TINY, time=named("schedule", schedule_steps=9))),
    (
        "levels schedule indices",
        EDM,
        fields(
            TINY, time=named("schedule", indices=(0, 3), sigma_min=0.01, sigma_max=40.0, rho=5.0)
        ),
    ),
    ("seed", FM, fields(TINY, seed=11)),
    ("digits classes", "flow_matching_digits.py", {"data.classes": (1, 3, 7)}),
    ("images grey", "flow_matching_cifar10.py:small", {"data.channels": 1, "data.size": 16}),
    ("images no flip", "flow_matching_cifar10.py:small", {"data.flip": False, "data.labels": True}),
    ("greedy parallel", FM, fields(TINY, coupling=named("greedy", method="parallel", block=4))),
    ("springs", "flux_matching_springs.py", {"data.data_seed": 3, "data.step_size": 0.05}),
    ("pairs labels", CIFAR_LINES + ":l2,small", {"data.real.labels": True}),
    ("latents scale", "dansm_bedroom.py:baseline", {"data.scale": 0.5}),
    *(
        (f"config {name}", f"{name}.py", {})
        for name in (
            *("dansm_bedroom", "dansm_cifar10", "dansm_ffhq256", "dansm_imagenet64"),
            *("denoising_celeba64", "denoising_cifar10", "denoising_springs"),
            *("distance_marching_cifar10", "distance_marching_digits"),
            *("distance_marching_imagenet256", "edm_afhq64", "edm_imagenet64"),
            *("equilibrium_matching_cifar10", "equilibrium_matching_digits"),
            *("equilibrium_matching_imagenet256", "flow_matching_imagenet256"),
            *("flux_matching_celeba64", "lines_afhq64", "lines_imagenet64"),
        )
    ),
]

# ---- Losses: two steps each ----------------------------------------------------------------------

POINTS = [
    ("action", AM, TINY),
    ("action swish", AM + ":swish", fields(TINY, optimizer__clip_norm=0.5)),
    ("flow", FM, TINY),
    ("flow no time", FM, fields(TINY, loss=named("flow_matching", time_input=False))),
    (
        "flow weight",
        FM,
        fields(TINY, loss=named("flow_matching", weight=named("inverse_square", cutoff=0.1))),
    ),
    ("flow exact", FM + ":ot", TINY),
    (
        "flow exact device",
        FM,
        fields(TINY, coupling=named("exact_assignment", backend="device"), match_size=8),
    ),
    ("flow sinkhorn bridge", FM + ":sb", TINY),
    (
        "flow sinkhorn permutation",
        FM,
        fields(
            TINY,
            coupling=named(
                "sinkhorn", regularization=0.5, rounding="permutation", max_iterations=50
            ),
        ),
    ),
    ("flow bridge", FM, fields(TINY, path_noise=0.3)),
    ("flow greedy", FM, fields(TINY, coupling=named("greedy"))),
    ("flow greedy larger", FM, fields(TINY, coupling=named("greedy"), match_size=64)),
    ("flow greedy smaller", FM, fields(TINY, coupling=named("greedy"), match_size=8)),
    ("flow exact larger", FM + ":ot", fields(TINY, match_size=32)),
    ("flow nearest_source", FM, fields(TINY, coupling=named("nearest_source"), match_size=8)),
    ("flow nearest_source whole", FM, fields(TINY, coupling=named("nearest_source"))),
    ("flow rematching", FM, fields(TINY, rematching=named("nearest", group_size=8))),
    ("equilibrium", EQM, TINY),
    ("equilibrium energy_matching", EQM + ":energy_matching", TINY),
    *(
        (f"equilibrium {name}", EQM, fields(TINY, loss__decay=named(name, **options)))
        for name, options in (
            ("linear", {"multiplier": 2.0}),
            ("truncated", {"a": 0.6, "multiplier": 3.0}),
            ("piecewise", {"a": 0.7, "b": 1.2}),
            ("constant", {"multiplier": 0.5}),
        )
    ),
    (
        "equilibrium time",
        EQM,
        fields(
            TINY,
            net=TIMED,
            loss=named("equilibrium_matching", time_input=True),
            sampler=named("euler", num_steps=2),
        ),
    ),
    ("equilibrium dot", EQM, fields(TINY, net=MLP, energy="dot")),
    ("equilibrium squared_norm", EQM, fields(TINY, net=MLP, energy="squared_norm")),
    ("distance", DM, TINY),
    ("distance ablation", DM, fields(TINY, loss__normalize=False, loss__one_step_weight=0.3)),
    ("distance eikonal", DM, fields(TINY, loss__one_step_weight=0.0, loss__eikonal_weight=0.7)),
    ("denoising", EDM, TINY),
    ("denoising plain", EDM, fields(TINY, preconditioning="none")),
    (
        "denoising stable",
        EDM,
        fields(TINY, loss=named("denoising", stable_target=True, group_size=8)),
    ),
    ("denoising stable whole", EDM, fields(TINY, loss=named("denoising", stable_target=True))),
    ("lines 1", LINES_2D + ":1", TINY),
    ("lines 3", LINES_2D + ":3", fields(TINY, loss__distance="l2")),
    ("lines flow", LINES_2D + ":flow", TINY),
]
FLUXES = [
    *(
        (f"flux {variant}", f"{FLUX_2D}:{variant}", GROUPS)
        for variant in ("annealed", "smoothed", "turning", "velocity", "score")
    ),
    ("flux mixing", FLUX_2D, fields(GROUPS, loss__mixing_weight=0.1)),
    ("flux norm", FLUX_2D, fields(GROUPS, loss__norm_weight=0.1, loss__learned_horizon=False)),
    (
        "flux circulation",
        FLUX_2D,
        fields(GROUPS, loss__circulation_weight=-0.2, loss__sigma_data=1.8, loss__horizon=3.0),
    ),
    ("flux pathwise", FLUX_2D, fields(GROUPS, loss__estimator="pathwise", loss__num_steps=2)),
    ("flux normalized", FLUX_2D, fields(GROUPS, loss__estimator="cross_chain_normalized")),
    ("flux exact", FLUX_2D, fields(GROUPS, loss__divergence="exact", loss__chunk=8)),
    (
        "flux probes",
        FLUX_2D,
        fields(GROUPS, loss__num_probes=2, loss__probe="normal", loss__probed=0.5),
    ),
    ("flux rotation", FLUX_2D, fields(GROUPS, net=SCALAR, preconditioning="none", rotation=0.7)),
    ("flux velocity pathwise", FLUX_2D + ":velocity", fields(GROUPS, loss__estimator="pathwise")),
    ("flux accumulate", FLUX_2D, fields(GROUPS, optimizer__accumulate=2)),
    ("springs flux", "flux_matching_springs.py:full,small", {}),
    ("springs denoising", "denoising_springs.py", {}),
]
OPTIMIZERS = [
    (
        "adamw cosine",
        FM,
        fields(
            TINY,
            optimizer__name="adamw",
            optimizer__weight_decay=0.1,
            optimizer__schedule="cosine",
            optimizer__b1=0.8,
            optimizer__b2=0.95,
        ),
    ),
    (
        "radam linear warmup",
        FM,
        fields(
            TINY,
            optimizer__name="radam",
            optimizer__schedule="linear",
            optimizer__warmup_steps=3,
            train__steps=9,
        ),
    ),
    ("sgd clip", FM, fields(TINY, optimizer__name="sgd", optimizer__clip_norm=0.1)),
    (
        "ema rate accumulate",
        DM,
        fields(TINY, ema__rate=0.9, optimizer__accumulate=2, rematching__group_size=4),
    ),
    ("ema half_life", FM, fields(TINY, ema__half_life=50.0)),
    ("ema ramp_up", FM, fields(TINY, ema__half_life=500.0, ema__ramp_up=0.05)),
    ("level rate", FLUX_2D, fields(GROUPS, optimizer__level_learning_rate=0.05)),
]
IMAGES = [
    ("digits distance head", DIGITS, {}),
    ("digits accumulate", DIGITS, {"optimizer.accumulate": 2, "label_dropout": 0.5}),
    (
        "digits greedy classes",
        "flow_matching_digits.py",
        {"net": named("sit", depth=1, width=16, num_heads=2), "batch_size": 16}
        | {"coupling": named("greedy", within_classes=True), "match_size": 32},
    ),
    (
        "digits exact penalty",
        DIGITS,
        {"coupling": named("exact_assignment", class_penalty=3.0)},
    ),
    (
        "digits flux classes",
        DIGITS,
        {
            "net": named(
                "unet", channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_levels=()
            ),
            "path": "variance_exploding",
            "preconditioning": "edm",
            "time": named("log_normal"),
            "loss": named("flux_matching", group_size=8),
            "sampler": named("reverse_ve", num_steps=2),
        },
    ),
    (
        "digits stable classes",
        DIGITS,
        {
            "net": named("sit", depth=1, width=16, num_heads=2),
            "path": "variance_exploding",
            "time": named("log_normal"),
            "loss": named("denoising", stable_target=True, group_size=8),
            "sampler": named("edm_heun", num_steps=2),
        },
    ),
    ("unet flow", "flow_matching_cifar10.py", {}),
    ("unet flux conv mixing", CIFAR_FLUX + ":fast", {"net.dtype": "float32"}),
    ("ddpmpp augmentation", CIFAR_EDM + ":cond", {"label_dropout": 0.2, "augmentation": 0.5}),
    ("ncsnpp", CIFAR_EDM, {"net.name": "ncsnpp", "data.size": 16}),
    ("adm", "edm_imagenet64.py", {}),
    ("lines l2", CIFAR_LINES + ":l2,small", {}),
    ("lines perceptual", CIFAR_LINES + ":perceptual,uncond", {}),
    (
        "lines perceptual lite",
        CIFAR_LINES + ":perceptual,small",
        {"loss.distance.layers": ("stage_1",), "net.augmentation_size": 0},
    ),
    ("lines adversarial", CIFAR_LINES + ":adversarial,uncond", {}),
    (
        "lines adversarial hinge",
        CIFAR_LINES + ":adversarial,sot",
        {"loss.game": "hinge", "loss.start": 1, "loss.policy": ("color",)}
        | {"loss.distance": named("squared_l2"), "loss.adversarial_weight": 0.5},
    ),
    ("latents sit", "flow_matching_imagenet256.py", {}),
]
LOSSES = [*POINTS, *FLUXES, *OPTIMIZERS, *IMAGES]
NETS = [*FLUXES, *IMAGES]

# ---- Samples -------------------------------------------------------------------------------------

HMC = named("hamiltonian", num_steps=3, step_size=0.1, num_leapfrog=2)
DESCENT = named("gradient_descent", num_steps=6, step_size=0.1)
LEVELS = {"sigma_min": 0.02, "sigma_max": 20.0}


def sampler(base: dict, name: str, **options) -> dict:
    """Fields with this sampler."""
    return base | {"sampler": named(name, **options)}


NESTEROV = named("nesterov", num_steps=4, step_size=0.1, momentum=0.3)
STOP = DESCENT | {"stop": named("gradient_norm", threshold=0.1)}
RISING = named("langevin", num_steps=6, step_size=0.05) | {
    "stop": named("rising_distance", patience=2)
}
CHURN = {"churn": 3.0, "churn_min": 0.05, "churn_max": 10.0, "churn_noise": 1.01}
LINE = {"indices": (0, 3, 5), "schedule_steps": 9}
FIXED = {"time": named("fixed", level=0.2)}
SAMPLES = [
    ("sphere_tracing then hamiltonian", DM, TINY),
    ("gradient_descent", DM, TINY | {"sampler": DESCENT}, {"trace": 2}),
    ("nesterov", DM, TINY | {"sampler": NESTEROV}),
    ("sphere_tracing", DM, sampler(TINY, "sphere_tracing", num_steps=4, step_size=0.5)),
    ("langevin", DM, sampler(TINY, "langevin", num_steps=4, step_size=0.05, temperature=0.5)),
    ("hamiltonian", DM, TINY | {"sampler": HMC | {"mass": 2.0, "temperature": 0.2}}),
    ("chain of three", DM, TINY | {"sampler": DESCENT | {"then": NESTEROV | {"then": HMC}}}),
    ("stop gradient_norm", DM, TINY | {"sampler": STOP}),
    ("stop rising_distance", DM, TINY | {"sampler": RISING}),
    ("stop then chain", DM, TINY | {"sampler": STOP | {"then": HMC}}),
    ("slots", DM, TINY | {"sampler": STOP, "sample.slots": 4}),
    ("slots rising", DM, TINY | {"sampler": RISING, "sample.slots": 8}),
    ("euler negated", EQM, sampler(TINY, "euler", num_steps=4)),
    ("dot hamiltonian", EQM, fields(TINY, net=MLP, energy="dot", sampler=HMC)),
    ("euler", FM, sampler(TINY, "euler", num_steps=5), {"trace": 1}),
    ("euler action", AM, sampler(TINY, "euler", num_steps=3)),
    ("heun", FM, sampler(TINY, "heun", num_steps=4)),
    ("dopri5", FM, sampler(TINY, "dopri5", rtol=1e-3, atol=1e-3)),
    ("dopri5 together", FM, sampler(TINY, "dopri5", rtol=1e-3, per_sample=False, t1=0.9)),
    ("heun_adaptive", FM, sampler(TINY, "heun_adaptive", rtol=1e-3, atol=1e-3, max_steps=64)),
    ("heun_adaptive trace", FM, sampler(TINY, "heun_adaptive", rtol=1e-3), {"trace": 1}),
    ("euler bridge", FM + ":sb", sampler(TINY, "euler", num_steps=3)),
    ("edm_heun", EDM, sampler(TINY, "edm_heun", num_steps=4), {"starts": True}),
    ("edm_heun churn", EDM, sampler(TINY, "edm_heun", num_steps=4, **CHURN)),
    ("edm_euler", EDM, sampler(TINY, "edm_euler", num_steps=4, rho=5.0, **LEVELS)),
    ("edm_euler churn", EDM, sampler(TINY, "edm_euler", num_steps=4, **CHURN), {"trace": 2}),
    ("reverse_ve", EDM, sampler(TINY, "reverse_ve", num_steps=4, **LEVELS)),
    ("reverse_ve ancestral", EDM, sampler(TINY, "reverse_ve", num_steps=4, noise="ancestral")),
    ("predictor_corrector", EDM, sampler(TINY, "predictor_corrector", num_steps=3, **LEVELS)),
    (
        "predictor_corrector ratio",
        EDM,
        sampler(TINY, "predictor_corrector", num_steps=3, corrector_ratio=0.3),
    ),
    ("multistep 1", EDM, sampler(TINY, "multistep")),
    ("multistep fresh 3", EDM, sampler(TINY, "multistep", **LINE)),
    ("multistep line 1", EDM, sampler(TINY, "multistep", noise="line")),
    ("multistep line 3", EDM, sampler(TINY, "multistep", noise="line", **LINE, **LEVELS)),
    ("multistep lines config", LINES_2D, TINY),
    ("probability_flow", EDM, sampler(TINY, "probability_flow", rtol=1e-2, atol=1e-2)),
    (
        "probability_flow dopri5",
        EDM,
        sampler(TINY, "probability_flow", method="dopri5", rtol=1e-2, sigma_data=1.8, **LEVELS),
    ),
    ("flux predictor_corrector", FLUX_2D, fields(GROUPS, sampler__num_steps=3)),
    ("flux edm_heun", FLUX_2D, sampler(GROUPS, "edm_heun", num_steps=3)),
    ("flux langevin", FLUX_2D + ":smoothed", fields(GROUPS, sampler__num_steps=3)),
    ("denoising langevin", EDM, FIXED | sampler(TINY, "langevin", num_steps=3, step_size=0.01)),
    (
        "rotation langevin",
        FLUX_2D,
        fields(GROUPS, net=SCALAR, preconditioning="none", rotation=0.7)
        | FIXED
        | {"sampler": named("langevin", num_steps=3, step_size=0.01)},
    ),
    ("velocity euler", FLUX_2D + ":velocity", sampler(GROUPS, "euler", num_steps=3)),
    ("digits", DIGITS, {}, {"levels": True}),
    (
        "digits direction",
        DIGITS,
        {"sample.guidance_scale": 2.5, "sample.guidance_on": "direction"},
    ),
    (
        "digits displacement",
        DIGITS,
        {"sample.guidance_scale": 2.5, "sample.guidance_on": "displacement"},
    ),
    ("digits truncate", DIGITS, {"sample.rounding": "truncate"}, {"levels": True}),
    ("digits shift", DIGITS, {"sample.rounding": "shift"}, {"levels": True, "starts": True}),
    (
        "digits flow guided",
        "flow_matching_digits.py",
        {
            "net": named("sit", depth=1, width=16, num_heads=2),
            "sampler": named("heun", num_steps=2),
            "sample.guidance_scale": 1.5,
        },
    ),
    (
        "images edm guided",
        CIFAR_EDM + ":cond",
        {"label_dropout": 0.2, "sample.guidance_scale": 1.5, "data.size": 16}
        | {"net.channel_multipliers": (1,), "net.attention_resolutions": ()},
        {"levels": True},
    ),
    ("springs reverse_ve", "flux_matching_springs.py:causal,small", {}),
]
