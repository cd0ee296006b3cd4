"""The text form, read back: `parse(to_text(p)) == p`.

program   := "program" NAME "(" [param ("," param)*] ")" "{" header statement* "}"
header    := grid warps ["producer"] [cluster] [threads] [shared]
param     := NAME ":" type ["%" INT]
statement := NAME ":" type "=" (expr | inst) | NAME "=" (expr | inst) | inst | "break" | "continue"
           | "if" expr block ["else" block] | "while" expr block
           | "for" NAME [":" type] "in" "range" "(" expr "," expr "," INT ")" ["unroll"] block
inst      := NAME "(" [field "=" value ("," field "=" value)*] ")" [":" selected]
selected  := ATOM ["width" "=" INT] ["unmasked" "=" "(" INT,* ")"] [STRING]

What stands in a field follows from the annotation of the instruction's dataclass.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import reduce
from operator import or_
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from tilus.dtypes import Codebook, DataType, boolean, dtype, f32, i32
from tilus.errors import DTypeError, LayoutError, ParseError
from tilus.ir.expr import BlockId, CastExpr, Const, Expr, Op, Tensor, Var
from tilus.ir.instructions import BY_NAME, Instruction
from tilus.ir.operators import OPERATORS, SYMBOLS
from tilus.ir.program import Param, Program
from tilus.ir.schema import field_kinds
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Selected, Stmt, While
from tilus.ir.tokens import Source, Token
from tilus.ir.types import GlobalType, PointerType, RegisterType, ScalarType, SharedType, Type
from tilus.ir.words import RESERVED
from tilus.layouts import BitLayout, RegisterLayout, SharedLayout, parse_bits, parse_shared
from tilus.layouts import parse as parse_register

_T = TypeVar("_T")


def parse(text: str, file: str = "<text>") -> Program:
    """Return the program that a text says.

    Parameters
    ----------
    text : str
    file : str
        What the text is called in messages.

    Raises
    ------
    ParseError
        With the place of what was not understood.
    """
    return _Reader(Source(text, file)).program()


def parse_dtype(text: str) -> DataType:
    """Return the data type that a text says: a name, or `codebook(...)` with its table.

    Raises
    ------
    ParseError
        With the place of what was not understood.
    """
    reader = _Reader(Source(text, "<data type>"))
    kind = reader.dtype()
    if reader.peek().kind not in ("newline", "end"):
        reader.fail(f"expected the end, got {reader.peek()}")
    return kind


class _Reader:
    """Recursive descent over the tokens of one program."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tokens = source.tokens()
        self.position = 0
        self.variables: dict[str, Var | Tensor] = {}

    # Tokens

    def peek(self, ahead: int = 0) -> Token:
        return self.tokens[min(self.position + ahead, len(self.tokens) - 1)]

    def next(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def at(self, text: str) -> bool:
        return self.peek().text == text and self.peek().kind in ("sign", "name")

    def accept(self, text: str) -> bool:
        if self.at(text):
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> Token:
        return self.next() if self.at(text) else self.fail(f"expected {text!r}, got {self.peek()}")

    def kind(self, kind: str, what: str) -> Token:
        return self.next() if self.peek().kind == kind else self.fail(f"expected {what}, got {self.peek()}")

    def fail(self, message: str, token: Token | None = None, hint: str | None = None) -> NoReturn:
        self.source.fail(message, (self.peek() if token is None else token).offset, hint)

    def attempt(self, token: Token, make: Callable[..., _T], *args: object, **kwargs: object) -> _T:
        """Build something; what its constructor rejects is an error at `token`."""
        try:
            return make(*args, **kwargs)
        except (DTypeError, LayoutError) as error:
            self.fail(error.message, token, error.hint)
        except ValueError as error:
            self.fail(str(error), token)

    def skip_newlines(self) -> None:
        while self.peek().kind == "newline":
            self.position += 1

    def end_line(self) -> None:
        if not self.at("}") and self.peek().kind not in ("newline", "end"):
            self.fail(f"expected the end of the line, got {self.peek()}")
        self.skip_newlines()

    def separated(self, close: str, item: Callable[[], _T]) -> list[_T]:
        """Read `item ("," item)* [","] close`."""
        items: list[_T] = []
        while not self.accept(close):
            items.append(item())
            if not self.accept(",") and not self.at(close):
                self.fail(f"expected ',' or {close!r}, got {self.peek()}")
        return items

    def integer(self) -> int:
        sign = -1 if self.accept("-") else 1
        token = self.kind("number", "an integer")
        return sign * int(token.text) if token.text.isdigit() else self.fail(f"expected an integer, got {token}", token)

    def number(self) -> float:
        sign = -1.0 if self.accept("-") else 1.0
        if self.at("inf") or self.at("nan"):
            return sign * float(self.next().text)
        return sign * float(self.kind("number", "a number").text)

    def string(self) -> str:
        token = self.kind("string", "a string in double quotes")
        return str(self.attempt(token, json.loads, token.text))

    # Program and statements

    def program(self) -> Program:
        self.skip_newlines()
        start = self.expect("program")
        name = self.kind("name", "the name of the program").text
        self.expect("(")
        params = tuple(self.separated(")", self.param))
        self.expect("{")
        self.end_line()
        self.expect("grid")
        grid = self.tuple_of(self.expr)
        self.end_line()
        self.expect("warps")
        warps, producer = self.integer(), self.accept("producer")
        self.end_line()
        cluster: tuple[int, ...] = ()
        if self.accept("cluster"):
            cluster = tuple(self.tuple_of(self.integer))
            self.end_line()
        threads = self.header("threads") if self.at("threads") else None
        shared = self.header("shared") if self.at("shared") else None
        body = self.rest_of_block()
        self.skip_newlines()
        if self.peek().kind != "end":
            self.fail(f"expected the end of the text, got {self.peek()}")
        loc = self.source.loc(start.offset)
        return Program(name, params, grid, warps, body, producer, cluster, threads, shared, loc=loc)

    def header(self, word: str) -> int:
        self.expect(word)
        value = self.integer()
        self.end_line()
        return value

    def param(self) -> Param:
        token = self.kind("name", "a parameter")
        self.expect(":")
        var = self.declare(token, self.type())
        if not isinstance(var, Var):
            self.fail(f"a parameter is a pointer or a scalar, not {var.type}", token)
        multiple = self.integer() if self.accept("%") else 1
        return Param(var, multiple, loc=self.source.loc(token.offset))

    def block(self) -> tuple[Stmt, ...]:
        self.expect("{")
        return self.rest_of_block()

    def rest_of_block(self) -> tuple[Stmt, ...]:
        body: list[Stmt] = []
        self.skip_newlines()
        while not self.accept("}"):
            body.append(self.statement())
            self.end_line()
        return tuple(body)

    def statement(self) -> Stmt:
        token = self.kind("name", "a statement")
        loc = self.source.loc(token.offset)
        match token.text:
            case "break":
                return Break(loc=loc)
            case "continue":
                return Continue(loc=loc)
            case "if":
                cond, then = self.expr(), self.block()
                return If(cond, then, self.block() if self.accept("else") else (), loc=loc)
            case "while":
                return While(self.expr(), self.block(), loc=loc)
            case "for":
                return self.for_loop(token)
        if self.at("("):
            return self.inst_statement(None, token, token)
        return self.definition(token)

    def for_loop(self, token: Token) -> For:
        name = self.kind("name", "a loop variable")
        var = self.declare(name, self.type() if self.accept(":") else ScalarType(i32))
        if not isinstance(var, Var):
            self.fail(f"a loop variable is a scalar, not {var.type}", name)
        for word in ("in", "range", "("):
            self.expect(word)
        start = self.expr()
        self.expect(",")
        stop = self.expr()
        self.expect(",")
        step = self.integer()
        self.expect(")")
        unroll = self.accept("unroll")
        return For(var, start, stop, step, self.block(), unroll, loc=self.source.loc(token.offset))

    def definition(self, token: Token) -> Stmt:
        loc = self.source.loc(token.offset)
        declared = self.type() if self.accept(":") else None
        self.expect("=")
        start = self.peek()
        if start.text in BY_NAME and self.peek(1).text == "(":
            self.position += 1
            inst, selected = self.instruction(start)
            out = self.lookup(token) if declared is None else self.declare(token, declared)
            return InstStmt(out, inst, selected, loc=loc)
        value = self.expr()
        var = self.lookup(token) if declared is None else self.declare(token, declared)
        if not isinstance(var, Var):
            self.fail(f"{token.text!r} is a tensor: it is defined by an instruction", start)
        return Assign(var, value, loc=loc) if declared is None else Let(var, value, loc=loc)

    def declare(self, token: Token, declared: Type) -> Var | Tensor:
        if RESERVED.fullmatch(token.text) or "." in token.text:
            self.fail(f"{token.text!r} is no name for a variable", token)
        known = self.variables.get(token.text)
        if known is not None and known.type != declared:
            self.fail(f"{token.text!r} was declared as {known.type} before", token)
        if known is None:
            make = Var if isinstance(declared, ScalarType | PointerType) else Tensor
            known = make(token.text, declared, loc=self.source.loc(token.offset))  # type: ignore[arg-type]
            self.variables[token.text] = known
        return known

    def lookup(self, token: Token) -> Var | Tensor:
        if token.text not in self.variables:
            self.fail(f"{token.text!r} is not defined", token)
        return self.variables[token.text]

    # Instructions

    def inst_statement(self, out: Var | Tensor | None, first: Token, name: Token) -> InstStmt:
        inst, selected = self.instruction(name)
        return InstStmt(out, inst, selected, loc=self.source.loc(first.offset))

    def instruction(self, name: Token) -> tuple[Instruction, Selected | None]:
        if name.text not in BY_NAME:
            self.fail(f"no instruction is called {name.text!r}", name, f"one of {', '.join(sorted(BY_NAME))}")
        cls = BY_NAME[name.text].cls
        self.expect("(")
        values = dict(self.separated(")", lambda: self.field(cls, name)))
        for each in fields(cls):
            if each.name not in values and _is_required(each):
                self.fail(f"{name.text} needs the field {each.name!r}", name)
        inst = self.attempt(name, cls, **values, loc=self.source.loc(name.offset))
        return inst, self.selected() if self.accept(":") else None

    def field(self, cls: type[Instruction], inst: Token) -> tuple[str, Any]:
        token = self.kind("name", "a field")
        kinds = field_kinds(cls)
        if token.text not in kinds:
            fields_text = f"fields: {', '.join(kinds)}" if kinds else "it has none"
            self.fail(f"{inst.text} has no field {token.text!r}", token, fields_text)
        self.expect("=")
        return token.text, self.value(kinds[token.text])

    def selected(self) -> Selected:
        atom = self.string() if self.peek().kind == "string" else self.kind("name", "a hardware instruction").text
        width = 1
        if self.accept("width"):
            self.expect("=")
            width = self.integer()
        unmasked: tuple[int, ...] = ()
        if self.accept("unmasked"):
            self.expect("=")
            unmasked = self.tuple_of(self.integer)
        return Selected(atom, width, self.string() if self.peek().kind == "string" else "", unmasked)

    def value(self, kind: Any) -> Any:
        """Read what an annotation allows."""
        if get_origin(kind) is tuple:
            return self.tuple_of(lambda: self.value(get_args(kind)[0]))
        if type(None) in get_args(kind):
            given = tuple(part for part in get_args(kind) if part is not type(None))
            return None if self.accept("None") else self.value(reduce(or_, given))
        if kind in _VALUES:
            return _VALUES[kind](self)
        return self.string()  # str, or a Literal of strings

    def tuple_of(self, item: Callable[[], _T]) -> tuple[_T, ...]:
        self.expect("(")
        return tuple(self.separated(")", item))

    def variable(self) -> Var | Tensor:
        return self.lookup(self.kind("name", "a variable"))

    def tensor(self) -> Tensor:
        token, found = self.peek(), self.variable()
        return found if isinstance(found, Tensor) else self.fail(f"{token.text!r} is not a tensor", token)

    def pointer(self) -> Var:
        token, found = self.peek(), self.variable()
        return found if isinstance(found, Var) else self.fail(f"{token.text!r} is a tensor, not a scalar", token)

    def operand(self) -> Tensor | Expr:
        # A variable may be called what a type or operator is: `f32` is the tensor, `f32(x)` the cast.
        alone = self.peek().kind == "name" and self.peek(1).text != "("
        return self.tensor() if alone and isinstance(self.variables.get(self.peek().text), Tensor) else self.expr()

    def truth(self) -> bool:
        if self.at("true") or self.at("false"):
            return self.next().text == "true"
        self.fail(f"expected true or false, got {self.peek()}")

    # Types

    def type(self) -> Type:
        token = self.peek()
        if token.text not in ("ptr", "global", "shared", "register") or self.peek(1).text != "[":
            return ScalarType(self.dtype())
        self.position += 2
        element = self.dtype()
        made: Type
        if token.text == "ptr":
            made = PointerType(element)
        else:
            self.expect(",")
            made = GlobalType(element, self.integer()) if token.text == "global" else self.tile_type(token, element)
        self.expect("]")
        return made

    def tile_type(self, token: Token, element: DataType) -> Type:
        shape = self.tuple_of(self.integer)
        laid_out = self.accept(",")
        if token.text == "shared":
            return SharedType(element, shape, self.shared_layout() if laid_out else None)
        return self.attempt(token, RegisterType, element, shape, self.register_layout() if laid_out else None)

    def dtype(self) -> DataType:
        token = self.kind("name", "a data type")
        if token.text == "codebook" and self.accept("("):
            return self.codebook(token)
        return self.attempt(token, dtype, token.text)

    def codebook(self, token: Token) -> DataType:
        name = self.string()
        self.expect(",")
        table = self.tuple_of(self.number)
        spare = self.integer() if self.accept(",") else 0
        self.expect(")")
        return self.attempt(token, Codebook, name, max(len(table) - 1, 0).bit_length(), table, spare)

    def register_layout(self) -> RegisterLayout:
        return self.layout(parse_register)

    def shared_layout(self) -> SharedLayout:
        return self.layout(parse_shared)

    def bit_layout(self) -> BitLayout:
        return self.layout(parse_bits)

    def layout(self, read: Callable[[str], _T]) -> _T:
        """Hand the text up to the end of this field to the layouts' own parser."""
        start, depth = self.peek(), 0
        while (token := self.peek()).kind != "end":
            if depth == 0 and token.text in (",", ")", "]"):
                break
            depth += (token.text in ("(", "[")) - (token.text in (")", "]"))
            self.position += 1
        text = self.source.text[start.offset : max(start.offset, self.tokens[self.position - 1].end)]
        try:
            return read(text)
        except ParseError as error:
            inside = error.loc.column - 1 if error.loc is not None else 0
            self.source.fail(error.message, start.offset + inside, error.hint)
        except LayoutError as error:
            self.fail(error.message, start, error.hint)

    # Expressions

    def expr(self, least: int = 1) -> Expr:
        """Read operators that bind at least as strongly as `least`."""
        left = self.primary()
        while (row := SYMBOLS.get(self.peek().text)) is not None and row.precedence >= least:
            sign = self.next()
            right = self.expr(row.precedence + 1)
            left = Op(row.name, (left, right), loc=self.source.loc(sign.offset))
        return left

    def primary(self) -> Expr:
        token = self.peek()
        if self.accept("("):
            inner = self.expr()
            self.expect(")")
            return inner
        if self.accept("-"):
            if self.peek().kind == "number" or self.peek().text.split("_")[0] in ("inf", "nan"):
                return self.literal(token, negative=True)
            return Op("neg", (self.primary(),), loc=self.source.loc(token.offset))
        if token.kind == "number" or RESERVED.fullmatch(token.text):
            return self.literal(token)
        if token.kind != "name":
            self.fail(f"expected an expression, got {token}")
        if self.peek(1).text == "(":
            return self.call()
        return self.scalar()

    def scalar(self) -> Var:
        token, found = self.peek(), self.variable()
        return found if isinstance(found, Var) else self.fail(f"{token.text!r} is a tensor, not a scalar", token)

    def literal(self, first: Token, negative: bool = False) -> Const:
        token, loc = self.next(), self.source.loc(first.offset)
        if token.text in ("true", "false"):
            return Const(token.text == "true", boolean, loc=loc)
        text, _, suffix = token.text.partition("_")
        if token.kind != "number" and text not in ("inf", "nan"):
            self.fail(f"expected an expression, got {token}", token)
        kind = i32 if text.isdigit() else f32
        if suffix:
            kind = self.attempt(token, dtype, suffix)
        elif self.peek().text.startswith("_") and self.peek().offset == token.end:
            kind = self.suffix()
        if kind.is_boolean or (kind.is_integer and not text.isdigit()):
            self.fail(f"{token} is no literal of type {kind}", token)
        value = int(text) if kind.is_integer else float(text)
        return Const(-value if negative else value, kind, loc=loc)

    def suffix(self) -> DataType:
        token = self.next()
        if token.text == "_codebook" and self.accept("("):
            return self.codebook(token)
        return self.attempt(token, dtype, token.text[1:])

    def call(self) -> Expr:
        token = self.peek()
        loc = self.source.loc(token.offset)
        if token.text == "block_id":
            self.position += 2
            axis = self.integer()
            self.expect(")")
            return BlockId(axis, loc=loc)
        if token.text in OPERATORS:
            self.position += 1
            return self.attempt(token, Op, token.text, self.tuple_of(self.expr), loc=loc)
        if token.text in BY_NAME:
            self.fail(f"{token.text} is an instruction: give its result a name first")
        kind = self.dtype()
        self.expect("(")
        value = self.expr()
        self.expect(")")
        return CastExpr(kind, value, loc=loc)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


_VALUES: dict[Any, Callable[[_Reader], Any]] = {
    Expr: _Reader.expr,
    Tensor: _Reader.tensor,
    Var: _Reader.pointer,
    Tensor | Expr: _Reader.operand,
    int: _Reader.integer,
    float: _Reader.number,
    bool: _Reader.truth,
    str: _Reader.string,
    DataType: _Reader.dtype,
    RegisterLayout: _Reader.register_layout,
    BitLayout: _Reader.bit_layout,
    BitLayout | None: _Reader.bit_layout,
    SharedLayout: _Reader.shared_layout,
}
