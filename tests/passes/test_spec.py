"""A pass as text: names and options, read and written, and what cannot be read."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from bnnopt.errors import UsageError
from bnnopt.passes import PASSES, Pass, make_pass, select
from bnnopt.passes.bitmap import Bitmap
from bnnopt.passes.block_filters import BlockFilters
from bnnopt.passes.float16_gradients import Float16Gradients
from bnnopt.passes.float16_state import Float16State
from bnnopt.passes.infra.spec import read_spec
from bnnopt.passes.int4_gradients import Int4Gradients
from bnnopt.passes.int8_latents import Int8Latents
from bnnopt.passes.prune_stored import PruneStored
from bnnopt.passes.rebuild_activations import RebuildActivations
from bnnopt.passes.recompute_binary_products import RecomputeBinaryProducts

CONFIGURED = [
    (BlockFilters(least_kib=0), "block-filters{least_kib=0}"),
    (PruneStored(0.98), "prune-stored{sparsity=0.98}"),
    (Bitmap(margin=1.5), "bitmap{margin=1.5}"),
    (Float16State(stochastic=False), "float16-state{stochastic=false}"),
    (Float16Gradients(scale_bits=3), "float16-gradients{scale_bits=3}"),
    (Int4Gradients(one_in=8), "int4-gradients{one_in=8}"),
    (Int8Latents(unit=0.25), "int8-latents{unit=0.25}"),
    (RebuildActivations(longest=0), "rebuild-activations{longest=0}"),
    (RecomputeBinaryProducts("a|b%2Cc"), "recompute-binary-products{leave=a|b%2Cc}"),
]


@pytest.mark.parametrize("candidate", [*PASSES, *(p for p, _ in CONFIGURED)], ids=lambda p: p.spec)
def test_every_pass_reads_back_what_it_prints(candidate: Pass) -> None:
    assert make_pass(candidate.spec) == candidate
    assert make_pass(candidate.name) == next(p for p in PASSES if p.name == candidate.name)


@pytest.mark.parametrize(("candidate", "spec"), CONFIGURED)
def test_the_form(candidate: Pass, spec: str) -> None:
    assert candidate.spec == spec


def test_every_option_of_every_pass_is_reached() -> None:
    with_options = {p.name for p in PASSES if asdict(p)}
    assert with_options == {p.name for p, _ in CONFIGURED}


def test_spaces_and_empty_braces() -> None:
    assert read_spec(" a{ b = 1 , c=x } ") == ("a", {"b": "1", "c": "x"})
    assert read_spec("a{}") == ("a", {})


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("sing-pack", ["'sing-pack'", "did you mean 'sign-pack'?"]),
        ("nothing", ["'nothing'", "'bnnopt passes' lists them"]),
        ("prune-stored{sparsty=0.9}", ["prune-stored", "did you mean 'sparsity'?"]),
        ("sign-pack{x=1}", ["sign-pack has no option 'x'", "expected none"]),
        ("prune-stored{sparsity=much}", ["sparsity is much", "expected a number (float)"]),
        ("prune-stored{sparsity=1}", ["sparsity is 1.0", "between 0 and 1"]),
        ("prune-stored{sparsity=nan}", ["sparsity is nan"]),
        ("bitmap{margin=0.5}", ["margin is 0.5", "1 or more"]),
        ("float16-gradients{scale_bits=128}", ["scale_bits is 128", "-126 to 127"]),
        ("float16-gradients{scale_bits=1.5}", ["scale_bits is 1.5", "(int)"]),
        ("float16-state{stochastic=maybe}", ["stochastic is maybe", "true or false"]),
        ("rebuild-activations{longest=-1}", ["longest is -1"]),
        ("int4-gradients{one_in=1}", ["one_in is 1", "2 to 1048576"]),
        ("int8-latents{unit=0}", ["unit is 0", "a number above 0"]),
        ("bitmap{margin}", ["cannot be read", "NAME{option=value,...}"]),
        ("bitmap{margin=1", ["cannot be read"]),
        ("bitmap{margin=1=2}", ["cannot be read"]),
        ("", ["cannot be read"]),
    ],
)
def test_mistakes_are_one_line(spec: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        make_pass(spec)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_an_enabled_spec_takes_the_place_of_the_levels_own() -> None:
    chosen = select("O1", enabled=["bitmap{margin=2}", "prune-stored{sparsity=0.5}"])
    assert Bitmap(2.0) in chosen
    assert Bitmap() not in chosen
    assert PruneStored(0.5) in chosen
    assert select("O1", ["bitmap{margin=2}"], enabled=["bitmap{margin=3}"]) == [Bitmap(3.0)]


def test_what_is_left_out_is_named_without_options() -> None:
    assert not {"bitmap"} & {p.name for p in select("O1", disabled=["bitmap"])}
    with pytest.raises(UsageError, match="left out with any options"):
        select("O1", disabled=["bitmap{margin=2}"])
