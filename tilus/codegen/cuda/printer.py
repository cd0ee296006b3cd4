"""The text of C++ nodes: the only place that knows indentation and how strongly operators bind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tilus.codegen.cuda import cpp
from tilus.errors import Loc, assert_never

_INDENT = "  "

# C++ precedence, larger binds tighter (cppreference, "C++ Operator Precedence", counted from below).
_BINARY = {
    "*": 12, "/": 12, "%": 12, "+": 11, "-": 11, "<<": 10, ">>": 10, "<": 8, "<=": 8, ">": 8, ">=": 8,
    "==": 7, "!=": 7, "&": 6, "^": 5, "|": 4, "&&": 3, "||": 2,
}  # fmt: skip
_PREFIX, _POSTFIX, _CONDITIONAL = 13, 14, 1
# Compilers warn, and readers err, where these stand inside one another without parentheses.
_CONFUSING = {"<<", ">>", "&", "^", "|", "&&", "||"}

_INT_MIN, _INT_MAX, _UINT_MAX = -(1 << 31), (1 << 31) - 1, (1 << 32) - 1


def expr_text(expr: cpp.Expr) -> str:
    """Return the text of an expression."""
    return _expr(expr)[0]


def _expr(expr: cpp.Expr) -> tuple[str, int]:
    """Return the text and how strongly it binds."""
    match expr:
        case cpp.Name(text=text):
            return text, _POSTFIX if not text.startswith("-") else _PREFIX
        case cpp.Int(value=value, bits=as_bits):
            return _int(value, as_bits)
        case cpp.Unary(op=op, operand=operand):
            return op + _child(operand, _PREFIX + 1), _PREFIX
        case cpp.Convert(type=type_, operand=operand):
            return f"({type_}){_child(operand, _PREFIX)}", _PREFIX
        case cpp.Binary(op=op, left=left, right=right):
            level = _BINARY[op]
            return f"{_operand(left, op, level)} {op} {_operand(right, op, level + 1)}", level
        case cpp.Conditional(condition=condition, then=then, otherwise=otherwise):
            parts = (_child(x, _CONDITIONAL + 1) for x in (condition, then, otherwise))
            return "{} ? {} : {}".format(*parts), _CONDITIONAL
        case cpp.Call(function=function, args=args):
            return f"{function}({', '.join(expr_text(a) for a in args)})", _POSTFIX
        case cpp.Index(base=base, index=index):
            return f"{_child(base, _POSTFIX)}[{expr_text(index)}]", _POSTFIX
        case _:
            assert_never(expr)


def _int(value: int, as_bits: bool) -> tuple[str, int]:
    if as_bits:
        return f"0x{value:x}u" if value > 9 else f"{value}u", _POSTFIX
    if value == _INT_MIN:
        return f"({_INT_MIN + 1} - 1)", _POSTFIX  # C++ has no negative literals, and 2147483648 is no int
    if value < _INT_MIN or value > _UINT_MAX:
        text = f"({-(1 << 63) + 1}ll - 1)" if value == -(1 << 63) else f"{value}{'ull' if value >= 1 << 63 else 'll'}"
        return text, _PREFIX if value < 0 else _POSTFIX
    return f"{value}{'u' if value > _INT_MAX else ''}", _PREFIX if value < 0 else _POSTFIX


def _child(expr: cpp.Expr, least: int) -> str:
    text, level = _expr(expr)
    return f"({text})" if level < least else text


def _operand(expr: cpp.Expr, op: str, least: int) -> str:
    nested = isinstance(expr, cpp.Binary) and expr.op != op and (op in _CONFUSING or expr.op in _CONFUSING)
    return f"({expr_text(expr)})" if nested else _child(expr, least)


class Lines:
    """Lines of text and where they come from.

    Attributes
    ----------
    lines : list of str
    places : list of (int, Loc)
        Line numbers (from 1) at which code for a place of the user's program begins.
    windows : list of (int, range or None)
        Line numbers at which code begins that may access some bytes of shared memory; None for all.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.places: list[tuple[int, Loc]] = []
        self.windows: list[tuple[int, range | None]] = []

    def body(self, statements: Sequence[cpp.Stmt], depth: int) -> None:
        """Add statements."""
        for stmt in statements:
            if isinstance(stmt, cpp.Comment):
                if stmt.loc is not None:
                    self.places.append((len(self.lines) + 1, stmt.loc))
                self.windows.append((len(self.lines) + 1, stmt.shared))
                if not stmt.text:
                    continue
            self._statement(stmt, depth)

    def add(self, text: str, depth: int = 0) -> None:
        """Add one line."""
        self.lines.append(_INDENT * depth + text)

    def _statement(self, stmt: cpp.Stmt, depth: int) -> None:
        match stmt:
            case cpp.If():
                self._if(stmt, depth)
            case cpp.For():
                self._for(stmt, depth)
            case cpp.While(condition=condition, body=body):
                self._braces(f"while ({expr_text(condition)}) {{", body, depth)
            case cpp.Block(body=body):
                self._braces("{", body, depth)
            case _:
                self.add(_simple(stmt), depth)

    def _braces(self, head: str, body: Sequence[cpp.Stmt], depth: int) -> None:
        self.add(head, depth)
        self.body(body, depth + 1)
        self.add("}", depth)

    def _if(self, stmt: cpp.If, depth: int) -> None:
        self.add(f"if ({expr_text(stmt.condition)}) {{", depth)
        self.body(stmt.then, depth + 1)
        if stmt.otherwise:
            self.add("} else {", depth)
            self.body(stmt.otherwise, depth + 1)
        self.add("}", depth)

    def _for(self, stmt: cpp.For, depth: int) -> None:
        compare, name = "<" if stmt.step > 0 else ">", stmt.name
        step = {1: f"++{name}", -1: f"--{name}"}.get(stmt.step, f"{name} += {stmt.step}")
        start, stop = expr_text(stmt.start), _child(stmt.stop, _BINARY["<"] + 1)
        if stmt.unroll:
            self.add("#pragma unroll", depth)
        self._braces(f"for ({stmt.type} {name} = {start}; {name} {compare} {stop}; {step}) {{", stmt.body, depth)

    def function(self, f: cpp.Function) -> None:
        """Add a function."""
        if f.remark:
            self.add(f"// {f.remark}")
        self._braces(f"__device__ __forceinline__ {f.result} {f.name}({', '.join(f.params)}) {{", f.body, 0)

    def table(self, t: cpp.Table) -> None:
        """Add a table."""
        values = ", ".join(_int(v, True)[0] for v in t.values)
        self.add(f"__device__ const {t.type} {t.name}[{len(t.values)}] = {{{values}}};")


def _simple(stmt: cpp.Declare | cpp.Set | cpp.Do | cpp.Comment | cpp.Jump | cpp.Asm) -> str:
    match stmt:
        case cpp.Declare(type=type_, name=name, value=value, extent=extent, constant=constant):
            array = "" if extent is None else f"[{extent}]"
            start = "" if value is None else f" = {expr_text(value)}"
            return f"{'const ' if constant else ''}{type_} {name}{array}{start};"
        case cpp.Set(target=target, value=value):
            return f"{expr_text(target)} = {expr_text(value)};"
        case cpp.Do(call=call):
            return f"{expr_text(call)};"
        case cpp.Comment(text=text):
            return f"// {text}"
        case cpp.Jump(word=word, value=value):
            return f"{word};" if value is None else f"{word} {expr_text(value)};"
        case cpp.Asm():
            return _asm(stmt)
        case _:
            assert_never(stmt)


def _asm(stmt: cpp.Asm) -> str:
    outputs, inputs = (", ".join(f'"{c}"({expr_text(x)})' for c, x in group) for group in (stmt.outputs, stmt.inputs))
    volatile, clobbers = " volatile" if stmt.stays else "", ' : "memory"' if stmt.touches_memory else ""
    return f'asm{volatile}("{stmt.template}" : {outputs} : {inputs}{clobbers});'.replace(" :  ", " : ")


def string_literal(text: str) -> str:
    """Return a C string literal."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escapes.get(c) or (c if " " <= c <= "~" else _bytes(c)) for c in text) + '"'


def _bytes(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in char.encode())


def join(parts: Iterator[str]) -> str:
    """Return lines as a text that ends with a line break."""
    return "\n".join(parts) + "\n"
