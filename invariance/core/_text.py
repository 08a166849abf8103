"""Text of somebody else's that goes to a terminal or into a document."""

from __future__ import annotations

import re

#: Control characters as their pictures, one column each; what turns text around as a mark.
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"} | {
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"),
}

#: A code span of Markdown, in which HTML means nothing.
_CODE = re.compile(r"(?<![\\`])(`+)(?!`)(.+?)(?<!`)\1(?!`)")

#: What begins HTML in Markdown: an element, its end, a comment or an instruction.
_HTML = re.compile(r"<(?=[A-Za-z/!?])")


def printable(text: str) -> str:
    r"""Return text that cannot command a terminal: control characters become pictures.

    Tabs and line ends stay.

    Examples:
        >>> printable("a\x1b[31mb")
        'a␛[31mb'
    """
    return text.translate(_PICTURES)


def without_html(text: str) -> str:
    """Return Markdown whose HTML is shown rather than obeyed; code spans stay as they are.

    In a text of several lines code spans count as text: where they end depends on the blocks.

    Examples:
        >>> without_html("n < 3, <b>bold</b>, `<code>`")
        'n < 3, &lt;b>bold&lt;/b>, `<code>`'
    """
    parts, end = [], 0
    for code in () if "\n" in text else _CODE.finditer(text):
        parts += [_HTML.sub("&lt;", text[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, _HTML.sub("&lt;", text[end:])])
