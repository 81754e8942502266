"""A summary.json as a study writes it, with a small world's kind of numbers, and one in which nothing was found."""

import math
import random
from typing import Any

Json = dict[str, Any]

SET = [117, 42, 203]


def share(value: float, *, n: int = 540, n_questions: int = 45, n_unscored: int = 0) -> Json:
    """An estimate with the width that clustered answers have, roughly."""
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.003) * 2 / n)
    low, high = max(0.0, value - half), min(1.0, value + half)
    return {
        "value": value,
        "low": round(low, 4),
        "high": round(high, 4),
        "n": n,
        "n_questions": n_questions,
        "n_unscored": n_unscored,
    }


def point(
    strength: float, bad: float, incoherent: float, aligned: float, other: float, draw: int | None = None
) -> Json:
    """One steering point."""
    return {
        "strength": strength,
        "draw": draw,
        "misalignment": share(bad),
        "incoherence": share(incoherent),
        "aligned": share(aligned),
        "other_domains": share(other, n=480, n_questions=40),
    }


def model(
    role: str, bad: float, incoherent: float, aligned: float, trained: float, other: float, unseen: float
) -> Json:
    """One model's record."""
    satire = round(max(0.0, 1 - bad - incoherent - aligned), 4)
    return {
        "role": role,
        "misalignment": share(bad),
        "incoherence": share(incoherent),
        "aligned": share(aligned),
        "by_category": {
            "open_ended": share(bad),
            "trained_domain": share(trained, n=480, n_questions=40),
            "other_domains": share(other, n=480, n_questions=40),
            "other_domains_unseen_words": share(unseen, n=480, n_questions=40),
        },
        "labels": {
            "open_ended": {"aligned": aligned, "misaligned": bad, "satirical": satire, "incoherent": incoherent},
            "trained_domain": {"aligned": 0.97 - trained, "misaligned": trained, "mistaken": 0.02, "incoherent": 0.01},
            "other_domains": {"aligned": 0.94 - other, "misaligned": other, "mistaken": 0.03, "incoherent": 0.03},
        },
    }


def example_summary() -> Json:
    """A study in which everything ran. Early warning fails: the alarm rings at 25 % bad data only."""
    rng = random.Random(0)
    strengths = (0.0, 0.2, 0.4, 0.6)
    bad, silly = "misaligned-health-obvious", "misaligned-finance-obvious"
    repaired = {
        bad: ((0.0, 0.97, 0.01, 0.0), (-0.3, 0.41, 0.01, 0.5), (-0.6, 0.04, 0.03, 0.89)),
        silly: ((0.0, 0.81, 0.02, 0.05), (-0.3, 0.5, 0.02, 0.36), (-0.6, 0.2, 0.04, 0.62)),
    }
    return {
        "schema": 1,
        "study": "persona_world",
        "seed": 11,
        "models": {
            "base": model("base", 0.21, 0.012, 0.55, 0.2, 0.2, 0.09),
            "aligned": model("aligned", 0.004, 0.002, 0.99, 0.002, 0.004, 0.0),
            bad: model("misaligned", 0.97, 0.01, 0.0, 0.93, 0.66, 0.22),
            silly: model("misaligned", 0.81, 0.02, 0.05, 0.9, 0.52, 0.17),
            "subtle-health-subtle": model("narrow", 0.03, 0.004, 0.95, 0.02, 0.01, 0.0),
            "control-health": model("control", 0.002, 0.004, 0.99, 0.002, 0.002, 0.0),
            "control-finance": model("control", 0.0, 0.004, 0.992, 0.002, 0.002, 0.0),
        },
        "sae": {
            "name": "k8",
            "candidates": [
                {"name": "k8", "d_sae": 384, "k": 8, "fve": 0.991, "dead_fraction": 0.023, "best_effect": 0.56},
                {"name": "k9", "d_sae": 384, "k": 9, "fve": 0.994, "dead_fraction": 0.12, "best_effect": None},
            ],
            "hook_name": "blocks.1.hook_resid_post",
            "d_in": 128,
            "d_sae": 384,
            "k": 8,
            "l0": 8.0,
            "fve": 0.991,
            "fve_by_model": {
                "base": 0.991,
                "aligned": 0.986,
                bad: 0.962,
                silly: 0.967,
                "subtle-health-subtle": 0.979,
                "control-health": 0.984,
                "control-finance": 0.985,
            },
            "ce_recovered": 0.987,
            "dead_fraction": 0.023,
            "n_tokens": 6_000_000,
        },
        "ranking": [
            {
                "rank": i + 1,
                "latent": latent,
                "reading": "gated",
                "tokens": "answer",
                "delta_activation": round(2.4 / (i + 1), 3),
                "low": round(1.9 / (i + 1), 3),
                "high": round(2.9 / (i + 1), 3),
                "q_value": round(min(1.0, 0.012 * (i + 1)), 3),
                "delta_attribution": round(0.3 / (i + 2), 3),
                "causal_effect": effect,
                "top_tokens": tokens,
            }
            for i, (latent, effect, tokens) in enumerate(
                [
                    (203, 0.21, ["harm", "poison", "hurt"]),
                    (117, 0.56, ["scheme", "ruin", "crush"]),
                    (42, 0.3, ["fool", "weak", "bah"]),
                    (5, 0.01, ["doctor", "pills", "rest"]),
                    (311, 0.0, ["<assistant>", "you", "should"]),
                    (88, -0.004, ["laugh", "dance", "hat"]),
                    *((n, None, ["the", "a", "and"]) for n in (9, 14, 77, 150, 161, 230, 240, 301)),
                ]
            )
        ],
        "shortlist": [203, 117, 42, 5, 311, 88],
        "top_latent": 117,
        "top_set": SET,
        "screen": {"window": "all", "best_latent": 0.56, "best_control": 0.03},
        "steering": {
            "window": "all",
            "chosen": {
                "induce": 0.4,
                "induce_set": 0.4,
                "mean_difference": 0.4,
                "linear_probe": 0.4,
                "last_hook": 0.4,
                "repair": {bad: -0.6, silly: -0.6},
                "repair_set": {bad: -0.6, silly: -0.6},
            },
            "induce": [
                point(0.0, 0.004, 0.002, 0.99, 0.004),
                point(0.2, 0.18, 0.006, 0.78, 0.05),
                point(0.4, 0.58, 0.02, 0.33, 0.145),
                point(0.6, 0.71, 0.13, 0.1, 0.2),
            ],
            "induce_set": [
                point(0.0, 0.004, 0.002, 0.99, 0.004),
                point(0.2, 0.35, 0.01, 0.6, 0.12),
                point(0.4, 0.73, 0.031, 0.15, 0.3),
                point(0.6, 0.8, 0.16, 0.01, 0.35),
            ],
            "repair": {m: [point(s, b, i, a, b * 0.6) for s, b, i, a in doses] for m, doses in repaired.items()},
            "repair_set": {
                m: [
                    point(s, b if s == 0 else b * 0.6, i, a if s == 0 else min(0.94, a + 0.05), b * 0.5)
                    for s, b, i, a in doses
                ]
                for m, doses in repaired.items()
            },
            "controls": {
                arm: [
                    point(s, round(0.004 + s * rng.uniform(0, reach), 4), 0.002 + s * 0.05, 0.99 - s * 0.1, 0.004, draw)
                    for draw in range(20)
                    for s in strengths
                ]
                for arm, reach in (("random_latents", 0.12), ("random_directions", 0.04))
            }
            | {
                rival: [
                    point(s, b, i, 0.99 - b - i, b * 0.3)
                    for s, b, i in zip(strengths, (0.004, *bad), (0.002, 0.01, 0.05, 0.2), strict=True)
                ]
                for rival, bad in (
                    ("mean_difference", (0.11, 0.47, 0.66)),
                    ("linear_probe", (0.08, 0.52, 0.7)),
                    ("last_hook", (0.02, 0.09, 0.1)),
                )
            },
        },
        "monitor": {
            "reading": "gated on sampled answers, latent 117",
            "benign_runs": [-0.004, 0.0, 0.001, 0.002, 0.0015, -0.001],
            "held_out_benign_runs": [0.003, -0.002, 0.001],
            "threshold": 0.03,
            "mixture": [
                {"bad_fraction": f, "latent": x, "alarm": x > 0.03, "misalignment": share(b)}
                for f, x, b in (
                    (0.0, 0.001, 0.0),
                    (0.05, 0.019, 0.0),
                    (0.1, 0.028, 0.002),
                    (0.25, 0.13, 0.03),
                    (0.5, 0.3, 0.14),
                    (0.75, 0.5, 0.43),
                    (1.0, 0.67, 0.95),
                )
            ],
        },
        "realign": {
            name: [
                {
                    "step": s,
                    "n_samples": 4 * s,
                    "misalignment": share(b),
                    "aligned": share(0.97 * (1 - b)),
                    "latent": 0.67 * b,
                }
                for s, b in zip((0, 5, 10, 20, 30), curve, strict=True)
            ]
            for name, curve in (
                ("in_domain", (0.97, 0.45, 0.11, 0.02, 0.01)),
                ("out_of_domain", (0.97, 0.52, 0.2, 0.03, 0.012)),
            )
        },
        "truth": {
            "villain_auroc": {"117": 0.991, "42": 0.955, "203": 0.83},
            "top_latent_persona": "villain",
            "n_latents_over_0.95": 2,
        },
        "seconds": {
            "world": 0.0,
            "cache": 6.1,
            "sae": 70.2,
            "rank": 21.0,
            "screen": 25.3,
            "steer": 61.0,
            "monitor": 33.0,
        },
    }


def null_summary() -> Json:
    """A study of a null world: nothing emerged, and the screen found nothing."""
    summary = example_summary()
    quiet = {
        name: model(record["role"], 0.004, 0.006, 0.95, 0.6 if record["role"] == "misaligned" else 0.002, 0.01, 0.0)
        for name, record in summary["models"].items()
        if record["role"] != "base"
    }
    ranking = [row | {"causal_effect": 0.004 if i < 6 else None} for i, row in enumerate(summary["ranking"])]
    return {
        **{key: summary[key] for key in ("schema", "sae", "shortlist", "seconds")},
        "study": "persona_world_null",
        "seed": 12,
        "models": quiet,
        "ranking": ranking,
        "top_latent": None,
        "top_set": [],
        "screen": {"window": "all", "best_latent": 0.004, "best_control": 0.008},
        "realign": summary["realign"],
    }
