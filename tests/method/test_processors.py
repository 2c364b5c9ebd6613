"""The list of processors without SDPA is what diffusers' own source says."""

import ast
from pathlib import Path

import diffusers.models.attention_processor as processors
import pytest

from coeff_diffusion.method.errors import AttachmentError
from coeff_diffusion.method.processors import WITHOUT_SDPA, check_calls, remedy


def test_all_that_never_call_sdpa_are_known_and_no_others() -> None:
    tree = ast.parse(Path(processors.__file__).read_text())
    silent = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and "Processor" in node.name:
            methods = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__call__"]
            names = {one.attr for method in methods for one in ast.walk(method) if isinstance(one, ast.Attribute)}
            if methods and "scaled_dot_product_attention" not in names:
                silent.add(node.name)
    assert silent == {name for name in WITHOUT_SDPA if hasattr(processors, name)}


def test_someone_elses_class_of_the_same_name_is_not_meant() -> None:
    theirs = type("AttnProcessor", (), {})
    assert remedy(theirs()) is None
    assert "AttnProcessor2_0" in str(remedy(processors.AttnProcessor()))
    assert remedy(processors.AttnProcessor2_0()) is None


@pytest.mark.parametrize("calls", [0, 2])
def test_the_message_names_the_layer_and_what_computes_it(calls: int) -> None:
    with pytest.raises(AttachmentError, match=f"down.attn1 .AttnProcessor2_0. .* {calls} times, expected once"):
        check_calls("down.attn1", processors.AttnProcessor2_0(), calls)
    check_calls("down.attn1", processors.AttnProcessor2_0(), 1)
