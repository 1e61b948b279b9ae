"""YAML that a person writes by hand, from a file of anyone's: plain values, lists and keys, and nothing clever."""

from typing import Any

import yaml

from lungkit.errors import LungkitError

_DEEPEST = 5  # a plan has lists, and nothing within them


def read(content: bytes) -> Any:
    """The value that these bytes state. LungkitError says what is wrong; no object but plain ones is ever made."""
    try:
        return yaml.load(content.decode("utf-8"), _Loader)
    except UnicodeDecodeError:
        raise LungkitError("it is not text in UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, a number too long to read
        raise LungkitError(f"it is not the YAML of a plan: {' '.join(str(error).split())[:300]}") from None


class _Loader(yaml.SafeLoader):
    """Plain values only: no alias, which can unfold to any size, and no key twice, of which one would be lost."""

    depth = 0  # of the node that is read; reading deep ones takes long

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to another part of itself (an alias, *); write the value out")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError("it is nested too deeply; a plan is a list of keys")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} is given twice")
            if not isinstance(key, str) or key == "<<":
                raise yaml.YAMLError(f"the key {key!r} is not a name")
        return dict(super().construct_mapping(node, deep))
