"""Which variables a chat template reads from outside."""

from __future__ import annotations

from collections.abc import Iterable

from jinja2 import Environment, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser


def variables_of(template: str) -> frozenset[str]:
    """The variables that a chat template reads before it sets them itself.

    ``jinja2.meta.find_undeclared_variables`` also gives names that both branches of an ``if`` set, such as ``content``.

    Raises:
        TemplateSyntaxError: it is no template.
    """
    environment = Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"], autoescape=False)
    reader = _Reader()
    reader.visit([environment.parse(template)], set(environment.globals))
    return frozenset(reader.read)


class _Generation(Extension):
    """transformers' tag around what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012  # as jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Reader:
    def __init__(self) -> None:
        self.read: set[str] = set()

    def visit(self, found: Iterable[nodes.Node], known: set[str]) -> set[str]:
        """Walk statements in their order, and add to ``known`` the names that are set after them for certain."""
        for node in found:
            if isinstance(node, nodes.Name) and node.ctx == "load":
                self.read |= {node.name} - known
            elif isinstance(node, nodes.Assign | nodes.AssignBlock):
                self.visit(node.iter_child_nodes(exclude=["target"]), set(known))
                known |= _names(node.target)
            elif isinstance(node, nodes.If):
                self.visit([node.test, *(other.test for other in node.elif_)], known)
                bodies = [node.body, *(other.body for other in node.elif_), node.else_]
                known |= set.intersection(*(self.visit(body, set(known)) for body in bodies))
            elif isinstance(node, nodes.For):
                self.visit([node.iter], known)
                inside = known | _names(node.target) | {"loop"}
                self.visit([node.test] if node.test else [], inside)
                self.visit(node.body, inside)
                self.visit(node.else_, set(known))
            elif isinstance(node, nodes.Macro | nodes.CallBlock):
                self.visit([*node.defaults, *([node.call] if isinstance(node, nodes.CallBlock) else [])], known)
                known |= {node.name} if isinstance(node, nodes.Macro) else set()
                args = set().union(*map(_names, node.args))
                self.visit(node.body, known | args | {"caller", "varargs", "kwargs"})
            elif isinstance(node, nodes.With):
                self.visit(node.values, known)
                self.visit(node.body, known.union(*map(_names, node.targets)))
            else:
                self.visit(node.iter_child_nodes(), known)
        return known


def _names(target: nodes.Node) -> set[str]:
    own = {target.name} if isinstance(target, nodes.Name) else set()
    return own | {name.name for name in target.find_all(nodes.Name)}
