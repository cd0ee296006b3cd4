"""PTX text to `Module`. Every name is resolved here: registers to their types, inner scopes to names of their own."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count

from tilus.errors import ParseError
from tilus.simt.scanner import SourceMap, Token, scan
from tilus.simt.syntax import (
    BYTES,
    Address,
    Function,
    Immediate,
    Instruction,
    Module,
    Negated,
    Operand,
    Register,
    Sink,
    Source,
    Special,
    Symbol,
    Variable,
    Vector,
)

_SPACES = ("shared", "global", "const", "local", "param")
_LINKAGE = (".visible", ".extern", ".weak", ".common")
_LINE_DIRECTIVES = (".version", ".target", ".address_size", ".file", ".loc")
_RANGE = re.compile(r"(.*?)(\d+)")


@lru_cache(maxsize=64)
def parse(text: str) -> Module:
    """Read a PTX text.

    Raises
    ------
    ParseError
        With the line of what cannot be read.
    """
    return _Parser(text).module()


@dataclass
class _Scope:
    """Names between two braces."""

    registers: dict[str, Register] = field(default_factory=dict)
    ranges: dict[str, tuple[int, str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # labels and variables

    def register(self, name: str) -> Register | None:
        if name in self.registers:
            return self.registers[name]
        match = _RANGE.fullmatch(name)
        if match and match[1] in self.ranges and int(match[2]) < self.ranges[match[1]][0]:
            return Register(name, self.ranges[match[1]][1])
        return None


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = scan(text)
        self.at = 0
        self.sources = SourceMap(text)
        self.source: Source | None = None
        self.result = Module()
        self.scopes: list[_Scope] = []
        self.function = Function("", False, [])
        self.fresh = count(1)

    # --- tokens -------------------------------------------------------------------------------------------------

    def peek(self) -> Token:
        while self.tokens[self.at].kind == "newline":
            self.at += 1
        return self.tokens[self.at]

    def take(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def accept(self, text: str) -> bool:
        found = self.peek().text == text
        self.at += found
        return found

    def expect(self, text: str) -> Token:
        token = self.take()
        if token.text != text:
            raise self.error(f"expected {text!r}, got {token.text!r}", token)
        return token

    def error(self, message: str, token: Token | None = None) -> ParseError:
        line = (token or self.peek()).line
        return ParseError(f"PTX line {line}: {message}\n    {self.text.splitlines()[line - 1].strip()}")

    def rest_of_line(self) -> list[str]:
        words = []
        while self.tokens[self.at].kind not in ("newline", "end"):
            words.append(self.tokens[self.at].text)
            self.at += 1
        return words

    def integer(self) -> int:
        sign = -1 if self.accept("-") else 1
        token = self.take()
        if token.kind != "number":
            raise self.error(f"expected a number, got {token.text!r}", token)
        return sign * int(token.text.rstrip("U"), 0)

    def list_of(self, close: str, item: Callable[[], object]) -> None:
        if self.accept(close):
            return
        item()
        while not self.accept(close):
            self.expect(",")
            item()

    # --- module level -------------------------------------------------------------------------------------------

    def module(self) -> Module:
        self.scopes.append(_Scope())
        while self.peek().kind != "end":
            self.top_level()
        return self.result

    def top_level(self) -> None:
        token = self.take()
        match token.text:
            case ".version":
                major, minor = self.rest_of_line()[0].split(".")
                self.result.version = int(major), int(minor)
            case ".target":
                self.result.target = self.rest_of_line()[0]
            case ".address_size" | ".file" | ".loc":
                self.rest_of_line()
            case ".section":
                self.skip_braces()
            case ".entry" | ".func":
                self.define(token.text == ".entry")
            case text if text in _LINKAGE or text in (";", ".alias", ".pragma"):
                pass
            case text if text[1:] in _SPACES:
                for variable in self.variables(text[1:]):
                    self.result.variables[variable.name] = variable
            case _:
                raise self.error(f"unknown directive {token.text!r}", token)

    def skip_braces(self) -> None:
        while self.take().text != "{":
            pass
        depth = 1
        while depth:
            depth += {"{": 1, "}": -1}.get(self.take().text, 0)

    def define(self, is_entry: bool) -> None:
        results = self.parameters() if not is_entry and self.peek().text == "(" else []
        name = self.take().text
        params = self.parameters() if self.peek().text == "(" else []
        self.function = Function(name, is_entry, params, results)
        self.directives()
        if self.accept(";"):
            self.result.functions.setdefault(name, self.function)
            return
        self.result.functions[name] = self.function
        self.source = None
        self.expect("{")
        self.block()

    def parameters(self) -> list[Variable]:
        self.expect("(")
        found: list[Variable] = []

        def parameter() -> None:
            self.expect(".param")
            found.extend(self.variables("param"))

        self.list_of(")", parameter)
        return found

    def directives(self) -> None:
        while self.peek().text not in ("{", ";"):
            name, numbers = self.take().text[1:], []
            while self.peek().kind == "number" or self.peek().text == ",":
                token = self.take()
                numbers += [int(token.text)] if token.kind == "number" else []
            self.function.directives[name] = tuple(numbers)

    def variables(self, space: str) -> list[Variable]:
        """Read a declaration after its space: alignment, type, and one or more names."""
        align, element, found = 0, 1, list[Variable]()
        while self.peek().text.startswith("."):
            word = self.take().text[1:]
            if word == "align":
                align = self.integer()
            elif word in BYTES:
                element = BYTES[word]
            elif word in ("v2", "v4"):
                element *= int(word[1])
            elif word != "ptr" and word not in _SPACES:
                raise self.error(f"unknown type .{word}")
        found.append(self.declarator(space, align or element, element))
        while space != "param" and self.accept(","):
            found.append(self.declarator(space, align or element, element))
        return found

    def declarator(self, space: str, align: int, element: int) -> Variable:
        name, numel, open_ended = self.take().text, 1, False
        while self.accept("["):
            if self.accept("]"):
                open_ended = True
            else:
                numel *= self.integer()
                self.expect("]")
        initial: list[int | Symbol] = []
        if self.accept("="):
            self.initializer(initial)
        return Variable(name, space, None if open_ended else numel * element, align, tuple(initial), element)

    def initializer(self, values: list[int | Symbol]) -> None:
        if self.accept("{"):
            self.list_of("}", lambda: self.initializer(values))
            return
        match self.operand():
            case Immediate(bits=bits):
                values.append(bits)
            case Symbol() as symbol:
                values.append(symbol)
            case other:
                raise self.error(f"cannot initialise with {other}")

    # --- bodies -------------------------------------------------------------------------------------------------

    def block(self) -> None:
        scope = _Scope()
        self.scopes.append(scope)
        self.find_labels(scope)
        while not self.accept("}"):
            self.statement()
        self.scopes.pop()

    def unique(self, name: str) -> str:
        return name if len(self.scopes) <= 2 else f"{name}@{next(self.fresh)}"

    def find_labels(self, scope: _Scope) -> None:
        """Labels may be used before they stand: look ahead, to the brace that closes this scope."""
        depth, at = 0, self.at
        while depth >= 0 and self.tokens[at].kind != "end":
            token, following = self.tokens[at], self.tokens[at + 1] if at + 1 < len(self.tokens) else None
            depth += (token.text == "{") - (token.text == "}")
            if depth == 0 and token.kind == "name" and following is not None and following.text == ":":
                scope.names[token.text] = self.unique(token.text)
            at += 1

    def statement(self) -> None:
        token = self.peek()
        if self.accept("{"):
            self.block()
        elif self.accept(";"):
            pass
        elif token.text.startswith("."):
            self.at += 1
            self.directive(token)
        elif token.kind == "name" and self.tokens[self.at + 1].text == ":":
            self.at += 2
            self.function.body.append(self.scopes[-1].names[token.text])
        else:
            self.function.body.append(self.instruction())

    def directive(self, token: Token) -> None:
        match token.text:
            case ".reg":
                self.registers()
            case ".loc":
                self.source = self.sources.read(self.rest_of_line())
            case ".file":
                self.rest_of_line()
            case ".branchtargets":
                label = self.function.body[-1]
                targets: list[Operand] = []
                self.list_of(";", lambda: targets.append(self.operand()))
                self.function.tables[str(label)] = tuple(t.name for t in targets if isinstance(t, Symbol))
            case ".pragma" | ".callprototype":
                while not self.accept(";"):
                    self.take()
            case text if text[1:] in _SPACES:
                for variable in self.variables(text[1:]):
                    self.declare(variable)
            case _:
                raise self.error(f"unknown directive {token.text!r}", token)

    def declare(self, variable: Variable) -> None:
        name = self.unique(variable.name)
        self.scopes[-1].names[variable.name] = name
        # Parameters of calls are memory of the thread.
        space = "local" if variable.space == "param" else variable.space
        self.function.variables[name] = Variable(name, space, variable.nbytes, variable.align, variable.initial)

    def registers(self) -> None:
        kind = self.take().text[1:]
        if kind not in BYTES:
            raise self.error(f"unknown type of register .{kind}")
        scope = self.scopes[-1]

        def register() -> None:
            name = self.take().text
            if self.accept("<"):
                scope.ranges[name] = self.integer(), kind
                self.expect(">")
            else:
                scope.registers[name] = Register(self.unique(name), kind)

        self.list_of(";", register)

    # --- instructions -------------------------------------------------------------------------------------------

    def instruction(self) -> Instruction:
        first = self.peek()
        guard = self.guard() if self.accept("@") else None
        opcode = self.take()
        if opcode.kind != "name":
            raise self.error(f"expected an instruction, got {opcode.text!r}", opcode)
        operands: list[Operand] = []
        self.list_of(";", lambda: operands.append(self.operand()))
        end = self.tokens[self.at - 1].start
        text = " ".join(self.text[first.start : end + 1].split())
        return Instruction(opcode.text, tuple(operands), guard, first.line, text, self.source)

    def guard(self) -> Register | Negated:
        negated = self.accept("!")
        operand = self.operand()
        if not isinstance(operand, Register):
            raise self.error(f"expected a predicate, got {operand}")
        return Negated(operand) if negated else operand

    def operand(self) -> Operand:
        operand = self.simple()
        if self.accept("|"):
            return Vector((operand, self.simple()))
        return operand

    def simple(self) -> Operand:
        token = self.take()
        match token.text:
            case "{":
                return self.vector("}")
            case "(":
                return self.vector(")")
            case "[":
                return self.address()
            case "!":
                operand = self.simple()
                if isinstance(operand, Register):
                    return Negated(operand)
                raise self.error("only predicates are negated", token)
            case "-":
                return self.negative()
            case "_":
                return Sink()
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "name":
            return self.named(token)
        raise self.error(f"expected an operand, got {token.text!r}", token)

    def negative(self) -> Immediate:
        number = _number(self.take().text)
        if number.kind == "s64":
            return Immediate(-number.bits)
        return Immediate(number.bits ^ (1 << (31 if number.kind == "f32" else 63)), number.kind)

    def vector(self, close: str) -> Vector:
        items: list[Operand] = []
        self.list_of(close, lambda: items.append(self.operand()))
        return Vector(tuple(items))

    def address(self) -> Address:
        base, offset = self.simple(), 0
        if isinstance(base, Symbol):
            base, offset = Symbol(base.name), base.offset
        while self.accept("+"):
            offset += self.integer()
        extra: list[Operand] = []
        while self.accept(","):
            extra.append(self.simple())
        self.expect("]")
        return Address(base, offset, tuple(extra))

    def named(self, token: Token) -> Operand:
        for scope in reversed(self.scopes):
            if found := scope.register(token.text):
                return found
            if token.text in scope.names:
                return self.symbol(scope.names[token.text])
        if token.text.startswith("%"):
            return Special(token.text)
        if token.text == "generic" and self.accept("("):
            inner = self.operand()
            self.expect(")")
            return inner
        return self.symbol(token.text)

    def symbol(self, name: str) -> Symbol:
        return Symbol(name, self.integer() if self.accept("+") else 0)


def _number(text: str) -> Immediate:
    head = text[:2].lower()
    if head in ("0f", "0d"):
        return Immediate(int(text[2:], 16), "f32" if head == "0f" else "f64")
    if "." in text:
        return Immediate(int.from_bytes(struct.pack("<d", float(text)), "little"), "f64")
    return Immediate(int(text.rstrip("U"), 0))
