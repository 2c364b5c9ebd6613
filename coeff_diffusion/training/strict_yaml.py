"""YAML as it is meant: a key that is there twice is a mistake, of which YAML libraries take the last one silently."""

from typing import Any

import yaml


def load_yaml(text: str) -> Any:
    """The one document of a text, plain data alone. Raises yaml.YAMLError: it is no YAML, or has a key twice."""
    return yaml.load(text, _Strict)


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                both = f"lines {lines[key.value]} and {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(problem=f"{key.value!r} is there twice, in {both}")
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)
