"""Turns CUDA sources into C++ that runs in the emulator: kernels, launches, shared memory, torch's tensors.

Lines keep their numbers, so that compilers and the emulator speak of the source. What is not understood is refused here
or does not compile; nothing is left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

_OPENING, _CLOSING = "([{", ")]}"
_ATTRIBUTES = {"__launch_bounds__", "__cluster_dims__", "alignas", "__align__", "__attribute__"}
_FILES_ONLY = "extern __shared__ must stand on lines of its own"


class TranslationError(Exception):
    """A construct that the emulation does not know."""


def translate(path: Path) -> str:
    """Return the C++ of a CUDA source or header."""
    source = _Source(path.name, path.read_text(encoding="utf-8"))
    for step in (_refuse, _mark_kernels, _translate_shared, _translate_launches, _translate_tensors, _refuse_rest):
        step(source)
    head = '#include "emulated_torch.h"\n' if "STABLE_TORCH_LIBRARY" in source.code else ""
    # A header's own #pragma once works on the file, wherever it says it is.
    return f'{head}#line 1 "{path.name}"\n{source.text}'


def kernels(path: Path) -> list[str]:
    """Return the `file:function` of every `__global__` function that a source defines."""
    return [f"{path.name}:{name}" for name, *_ in _definitions(_Source(path.name, path.read_text(encoding="utf-8")))]


class _Source:
    """A text, and `code`: as long, with spaces in place of comments and of what literals hold."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self.code = _without_comments(text)

    def replace(self, edits: list[tuple[int, int, str]]) -> None:
        """Put texts in place of stretches, which do not overlap."""
        for begin, end, new in sorted(edits, reverse=True):
            self.text = self.text[:begin] + new + self.text[end:]
        self.code = _without_comments(self.text)

    def error(self, at: int, what: str) -> TranslationError:
        return TranslationError(f"{self.name}:{self.line(at)}: {what}")

    def line(self, at: int) -> int:
        return self.text.count("\n", 0, at) + 1

    def closing(self, at: int) -> int:
        """Where the bracket that opens at a place is closed."""
        depth = 0
        for i in range(at, len(self.code)):
            depth += (self.code[i] in _OPENING) - (self.code[i] in _CLOSING)
            if depth == 0:
                return i
        raise self.error(at, "a bracket is not closed")


_TOKEN = re.compile(
    r"""
    //(?:[^\n\\]|\\.|\\\n)* | /\*.*?\*/
    | R"([^()\\\s]*)\(.*?\)\1" | "(?:[^"\\\n]|\\.)*" | (?<![0-9A-Fa-f])'(?:[^'\\\n]|\\.)+'
    """,
    re.VERBOSE | re.DOTALL,
)


def _without_comments(text: str) -> str:
    def blank(match: re.Match[str]) -> str:
        quote = match[0][0] if match[0][0] in "\"'" else " "
        inner = re.sub(r"[^\n]", " ", match[0])
        return quote + inner[1:-1] + quote if quote != " " else inner

    return _TOKEN.sub(blank, text)


def _refuse(source: _Source) -> None:
    for match in re.finditer(r"\b(asm|__asm__|__managed__|__constant__|__grid_constant__)\b", source.code):
        raise source.error(match.start(), f"{match[1]} is not emulated")
    for match in re.finditer(r"__CUDA_ARCH__", source.code):
        line = source.code[source.code.rfind("\n", 0, match.start()) + 1 : source.code.find("\n", match.end())]
        # Host and device are compiled as one, without __CUDA_ARCH__: only `no device, or a new one` is right for both.
        if "!defined(__CUDA_ARCH__)" not in line:
            raise source.error(match.start(), "__CUDA_ARCH__ is emulated only behind `!defined(__CUDA_ARCH__) ||`")


def _definitions(source: _Source) -> list[tuple[str, str, int]]:
    """Name, most threads and first place of the body of every kernel."""
    found = []
    for match in re.finditer(r"\b__global__\b", source.code):
        at, most_threads = match.end(), "1024"
        while True:
            token = re.compile(r"\s*(\w+|<|>|[^\w\s])").match(source.code, at)
            if token is None:
                raise source.error(match.start(), "__global__ is followed by no function")
            at = token.end()
            opens = re.compile(r"\s*\(").match(source.code, at)
            if opens is None:
                if token[1] in ";{}=":
                    raise source.error(match.start(), "__global__ is followed by no function")
                continue
            end = source.closing(opens.end() - 1)
            if token[1] not in _ATTRIBUTES:
                break
            if token[1] == "__launch_bounds__":
                most_threads = _split(source.code[opens.end() : end])[0]
            at = end + 1
        body = re.compile(r"\s*([;{])").match(source.code, end + 1)
        if body is None:
            raise source.error(match.start(), "a kernel's parameters are followed by neither body nor semicolon")
        if body[1] == "{":
            found.append((token[1], most_threads.strip(), body.end()))
    return found


def _mark_kernels(source: _Source) -> None:
    source.replace(
        [
            (at, at, f' CUDA_EMULATION_KERNEL("{source.name}:{name}", ({most_threads}));')
            for name, most_threads, at in _definitions(source)
        ]
    )


def _split(code: str) -> list[str]:
    """Parts of a list between commas that no bracket of any kind encloses."""
    parts, depth = [""], 0
    for i, character in enumerate(code):
        depth += (character in _OPENING + "<") - (character in _CLOSING + ">" and code[i - 1 : i] != "-")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _translate_shared(source: _Source) -> None:
    edits = []
    for number, match in enumerate(re.finditer(r"\b__shared__\b", source.code)):
        before = source.code[: match.start()]
        begin = max(before.rfind(mark) for mark in ";{}") + 1
        while (directive := re.compile(r"\s*#[^\n]*\n").match(source.code, begin)) is not None:
            begin = directive.end()
        begin += len(source.code[begin:]) - len(source.code[begin:].lstrip())
        end = source.code.find(";", match.end())
        words = source.code[begin : match.start()] + source.code[match.end() : end]
        if end < 0 or begin > match.start() or re.search(r"[={}#]", words):
            raise source.error(match.start(), "__shared__ is emulated in declarations without a value only")
        lines = "\n" * source.text.count("\n", begin, end)
        if re.match(r"extern\b", words):
            edits.append((*_whole_lines(source, begin, end), _extern(source, begin, end, words)))
            continue
        names = [re.sub(r"(\s*\[[^\[\]]*\])*\s*$", "", part).split()[-1].lstrip("*&") for part in _split(words)]
        if not all(re.fullmatch(r"\w+", name) for name in names):
            raise source.error(match.start(), f"cannot tell the variables of `{' '.join(words.split())}`")
        words = " ".join(re.sub(r"\bstatic\b", " ", words).split())
        kind, variables = f"CudaEmulationShared{number}", f"cuda_emulation_shared_{number}"
        new = f"struct {kind} {{ {words}; }}; auto& {variables} = cuda_emulation::shared_variables<{kind}>();"
        new += "".join(f" auto& {name} = {variables}.{name};" for name in names)
        edits.append((begin, end + 1, new + lines))
    source.replace(edits)


def _whole_lines(source: _Source, begin: int, end: int) -> tuple[int, int]:
    first, last = source.text.rfind("\n", 0, begin) + 1, source.text.find("\n", end)
    if source.code[first:begin].strip() or source.code[end + 1 : last].strip():
        raise source.error(begin, _FILES_ONLY)
    return first, last


def _extern(source: _Source, begin: int, end: int, words: str) -> str:
    """Every use of the name becomes a call: where dynamic shared memory lies depends on the block."""
    words = re.sub(r"\b(extern|static|volatile)\b|\b(alignas|__align__)\s*\([^()]*\)", " ", words)
    found = re.fullmatch(r"\s*(.+?)\s*\b(\w+)\s*\[\s*\]\s*", words, re.DOTALL)
    if found is None:
        raise source.error(begin, "extern __shared__ is emulated as `extern __shared__ TYPE NAME[];` only")
    kind, name = " ".join(found[1].split()), found[2]
    return f"#undef {name}\n#define {name} (cuda_emulation::dynamic_shared<{kind}>())\n#line {source.line(end)}"


def _translate_launches(source: _Source) -> None:
    edits = []
    for match in re.finditer("<<<", source.code):
        begin = _name_before(source, match.start())
        name = source.text[begin : match.start()].strip()
        end = match.end()
        while end < len(source.code) and not source.code.startswith(">>>", end):
            end = source.closing(end) + 1 if source.code[end] in _OPENING else end + 1
        opens = re.compile(r">>>\s*\(").match(source.code, end)
        if not name or opens is None:
            raise source.error(match.start(), "<<< is emulated in launches `kernel<<<...>>>(...)` only")
        # With its template arguments the kernel has an address; without, they follow from the call.
        kernel = f"&{name}" if name.endswith(">") else f"[&](auto... values) {{ {name}(values...); }}"
        arguments = source.text[opens.end() : source.closing(opens.end() - 1)]
        comma = ", " if arguments.strip() else ""
        config = source.text[match.end() : end]
        edits.append((begin, opens.end(), f"cuda_emulation::launch(cuda_emulation::config({config}), {kernel}{comma}"))
    source.replace(edits)


def _name_before(source: _Source, at: int) -> int:
    """Where the name that ends at a place begins, its template arguments and namespaces included."""
    code, begin = source.code, at
    while begin > 0 and code[begin - 1].isspace():
        begin -= 1
    if begin > 0 and code[begin - 1] == ">":
        depth = inside = 0
        while begin > 0:
            begin -= 1
            inside += (code[begin] in _CLOSING) - (code[begin] in _OPENING)
            if inside == 0:
                depth += (code[begin] == ">" and code[begin - 1] != "-") - (code[begin] == "<")
                if depth == 0:
                    break
    found = re.search(r"(?:::)?\w+(?:\s*::\s*\w+)*\s*$", code[:begin])
    return found.start() if found else at


def _translate_tensors(source: _Source) -> None:
    edits: list[tuple[int, int, str]] = []

    def substitute(pattern: str, new: Callable[[re.Match[str]], str]) -> None:
        edits.extend((match.start(), match.end(), new(match)) for match in re.finditer(pattern, source.code))

    substitute(r"\b(\w+(?:(?:\.|->)\w+)*)\.get_device\(\)", lambda found: f"cuda_emulation::device_index({found[1]})")
    substitute(r"\btorch::stable::(new_empty|new_zeros)\b", lambda found: f"cuda_emulation::{found[1]}")
    substitute(r"(\bSTABLE_TORCH_LIBRARY_IMPL\(\s*\w+\s*,\s*)CUDA\b", lambda found: f"{found[1]}CPU")
    source.replace(edits)


def _refuse_rest(source: _Source) -> None:
    unknown = r"<<<|__shared__|\bget_device\b|LIBRARY_IMPL\([^)]*\bCUDA\b|\btorch::stable::(?:empty|full|zeros|ones)\w*"
    for match in re.finditer(unknown, source.code):
        raise source.error(match.start(), f"{match[0]} is not emulated here")
