"""Control tokens that clients spell in messages: found, and numbered as the text they are.

Only the template writes control tokens into a chat. So that none comes out of a message, whatever the
template does to its text, a chat is rendered a second time, from messages in which every character that
could begin a control token is another, private one. Where both renderings have as many control tokens, no
client wrote any, and the first is the chat. Else the second says which are the template's own.

A control token is one that tokenizer.json or the model's configuration calls special, one that the template
writes (as transformers 5.24 has it in `sanitize_control_tokens`), or one between bars, `<|…|>`. The tags of
a pair like `<think>` and `</think>` that the configuration does not call special stay tags in what the system
and the assistant say: templates look for them in earlier answers. Knows no requests.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from prompts.chat_template import ChatTemplate, MessagesRefused, RenderedChat

Messages = Sequence[Mapping[str, Any]]

_PRIVATE = [chr(code) for code in range(0xE000, 0xF900)]
_IS_PRIVATE = re.compile(f"[{_PRIVATE[0]}-{_PRIVATE[-1]}]")
_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")
_BARRED = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
_OWN_ROLES = frozenset({"system", "assistant"})
_MAX_HEAD_LENGTH, _MAX_HEADS = 3, 16
_FULL_WIDTH = 0xFEE0  # from an ASCII character to the wide one that NFKC makes the same


class ControlTokens:
    """The control tokens of one tokenizer; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int], template: ChatTemplate | None) -> None:
        """
        Args:
            special: ids that the model's configuration calls special.
        """
        added = tokenizer.get_added_tokens_decoder()
        written = "" if template is None else template.literals
        is_control = {
            token_id: token_id in special or token.special or _is_markup(token.content, written)
            for token_id, token in added.items()
            if not token.content.isspace()
        }
        control = [added[token_id] for token_id in is_control if is_control[token_id]]
        unnamed = {token.content: token for token_id, token in added.items() if token_id not in special}
        self._tokenizer = tokenizer
        self._finder = _make_finder(tokenizer, list(added.values()))
        self._contents = frozenset(token.content for token in control)
        self._found_ids = frozenset(map(self._finder.token_to_id, self._contents))
        unknown = getattr(tokenizer.model, "unk_token", None)  # comes of any text
        self._ids = {tokenizer.token_to_id(token.content) for token in control if token.content != unknown}
        self._beginnings = sorted(set().union(*map(_beginnings, control)))
        self._goes_on = {beginning: _continuations(beginning, control) for beginning in self._beginnings}
        self._outside_tags = _outside(_tags(unnamed, written), self._beginnings)

    def read(self, text: str, messages: Messages, render: Callable[[Messages], str]) -> RenderedChat:
        """Find what clients wrote of control tokens.

        Args:
            text: what `render` makes of the messages.

        Raises:
            MessagesRefused: the template refuses messages without control tokens in them.
        """
        said = "\0".join(_texts(messages))
        if not any(beginning in said for beginning in self._beginnings):
            return RenderedChat(text)
        marks = dict(zip(self._beginnings, _unused(len(self._beginnings), said + text), strict=True))
        try:
            marked = render([self._marked_message(message, marks) for message in messages])
        except MessagesRefused:
            if self._count(said):
                raise
            return RenderedChat(text)
        is_same = _unmarked(marked, marks) == text  # else the template asks what is in the messages
        if is_same and not any(
            re.search(mark + self._goes_on[first], marked) for first, mark in marks.items()
        ):
            return RenderedChat(text)
        if self._count(text) == self._count(marked) and (is_same or not self._count(said)):
            return RenderedChat(text)
        return self._locate(marked, marks)

    def encode(self, chat: RenderedChat) -> list[int]:
        """Number the tokens of a chat with control tokens that are text."""
        (mark,) = _unused(1, chat.text)
        masked = _masked(chat.text, dict.fromkeys(chat.literals, mark))
        found = self._find(masked)
        ids, has_control = self._encode(chat.text, found, ())
        if has_control:  # of a vocabulary with whole control tokens in it, as Unigram's
            ids, _ = self._encode(chat.text, found, chat.literals)
        return ids

    def _count(self, text: str) -> int:
        ids = self._finder.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return sum(token_id in self._found_ids for token_id in ids)

    def _find(self, text: str) -> list[tuple[int, int, str]]:
        """Return start, end and token of what the tokenizer would take as added tokens."""
        encoding = self._finder.encode_batch([text], add_special_tokens=False)[0]
        return [
            (start, end, self._finder.id_to_token(token_id))
            for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token_id
        ]

    def _marked_message(self, message: Mapping[str, Any], marks: Mapping[str, str]) -> dict[str, Any]:
        pattern = self._outside_tags if message.get("role") in _OWN_ROLES else None

        def mark(text: str) -> str:
            if pattern is not None:
                return pattern.sub(lambda match: marks[match[0]], text)
            for beginning, private in marks.items():
                text = text.replace(beginning, private)
            return text

        return {key: value if key == "role" else _changed(value, mark) for key, value in message.items()}

    def _locate(self, marked: str, marks: Mapping[str, str]) -> RenderedChat:
        for mark in marks.values():
            marked = marked.replace(f"\\u{ord(mark):04x}", mark)  # from a template that writes ASCII only
        text = masked = _unmarked(marked, marks)
        by_client, literals = frozenset(marks.values()), dict[int, str]()
        while True:  # behind a token that is text another one may come to light
            found = [span for span in self._find(masked) if span[2] in self._contents]
            starts = {_skip_blanks(masked, start, end) for start, end, _ in found}
            new = {start: marked[start] for start in starts - literals.keys() if marked[start] in by_client}
            if not new:
                return RenderedChat(text, tuple(sorted(literals)))
            literals |= new
            masked = _masked(text, literals)

    def _encode(
        self, text: str, found: Sequence[tuple[int, int, str]], cuts: Iterable[int]
    ) -> tuple[list[int], bool]:
        """Number the tokens with no added tokens but those found, and whether a control token came of text.

        Args:
            cuts: offsets of characters after which no token goes on.
        """
        contents = sorted({content for _, _, content in found})
        cut, *signs = _unused(1 + len(contents), text)
        sign_of = dict(zip(contents, signs, strict=True))
        changes = [(start, end, sign_of[content]) for start, end, content in found]
        changes += [(offset + 1, offset + 1, cut) for offset in cuts]
        encoder = Tokenizer(self._tokenizer.model)  # shares the vocabulary
        encoder.normalizer, encoder.pre_tokenizer = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        encoder.add_tokens([AddedToken(sign, normalized=False) for sign in (cut, *signs)])
        ids = {encoder.token_to_id(sign_of[word]): self._tokenizer.token_to_id(word) for word in contents}
        cut_id = encoder.token_to_id(cut)
        raw = encoder.encode_batch_fast([_replaced(text, changes)], add_special_tokens=False)[0].ids
        has_control = any(token_id in self._ids and token_id not in ids for token_id in raw)
        return [ids.get(token_id, token_id) for token_id in raw if token_id != cut_id], has_control


def _make_finder(tokenizer: Tokenizer, added: Sequence[AddedToken]) -> Tokenizer:
    """Make a tokenizer that knows the added tokens only; all else has the id 0."""
    finder = Tokenizer(models.WordLevel({"": 0}, ""))
    finder.normalizer = tokenizer.normalizer
    finder.add_tokens(
        [
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
            )
            for token in added
        ]
    )
    return finder


def _is_markup(content: str, written: str) -> bool:
    """Whether this has bars, or the template writes it and it is neither a word nor blank."""
    if _BARRED.fullmatch(content):
        return True
    word = content.strip(" \t\r\n▁")
    return bool(word) and not word.isalnum() and content in written


def _beginnings(token: AddedToken) -> set[str]:
    """Return the characters that a text of this token may begin with, after blanks."""
    first = token.content.lstrip()[0]
    if not token.normalized:
        return {first}
    wide = {chr(ord(first) + _FULL_WIDTH)} if "!" <= first <= "~" else set()
    return {first, *first.lower(), *first.upper(), *wide}


def _continuations(beginning: str, tokens: Iterable[AddedToken]) -> str:
    """Return a short pattern of what follows a beginning in any of the tokens: for a first, quick look."""
    own = [token for token in tokens if beginning in _beginnings(token)]
    rests = ["" if token.normalized else token.content.lstrip()[1:] for token in own]
    heads: set[str] = {""}
    for length in range(1, _MAX_HEAD_LENGTH + 1):
        longer = {rest[:length] for rest in rests}
        if len(longer) > _MAX_HEADS:
            break
        heads = longer
    return f"(?:{'|'.join(map(re.escape, sorted(heads)))})"


def _tags(tokens: Mapping[str, AddedToken], written: str) -> list[str]:
    """Return the pairs of tags; a special one only if the template writes or looks for it."""
    return [
        tag
        for tag, token in tokens.items()
        if (partner := _partner(tag)) in tokens
        and (not token.special or tag in written or (partner or tag) in written)
    ]


def _outside(tags: Sequence[str], beginnings: Sequence[str]) -> re.Pattern[str] | None:
    """Return what matches a beginning that is none of a tag."""
    if not tags:
        return None
    return re.compile(f"(?!{'|'.join(map(re.escape, sorted(tags)))})[{re.escape(''.join(beginnings))}]")


def _partner(tag: str) -> str | None:
    if not tag.startswith("<") or not tag.endswith(">"):
        return None
    return f"<{tag[2:]}" if tag.startswith("</") else f"</{tag[1:]}"


def _texts(value: Any) -> Iterable[str]:
    """All that clients wrote, however deep; keys that are names are no texts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, member in value.items():
            if not str(key).isidentifier():
                yield str(key)
            yield from _texts(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _texts(member)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Return a copy with other texts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            key if str(key).isidentifier() else change(str(key)): _changed(member, change)
            for key, member in value.items()
        }
    if isinstance(value, list | tuple):
        return [_changed(member, change) for member in value]
    return value


def _unused(num: int, text: str) -> list[str]:
    """Return private characters that a text does not have, nor as JSON escapes.

    Raises:
        MessagesRefused: it has nearly all of them.
    """
    used = set() if text.isascii() else set(_IS_PRIVATE.findall(text))
    if "\\u" in text:
        used |= {chr(int(digits, 16)) for digits in _ESCAPED.findall(text)}
    free = [char for char in _PRIVATE if char not in used][:num] if used else _PRIVATE[:num]
    if len(free) < num:
        raise MessagesRefused("the messages have too many private-use characters (U+E000 to U+F8FF)")
    return free


def _skip_blanks(text: str, start: int, end: int) -> int:
    """Return where a token that may have taken blanks before it begins."""
    while start < end - 1 and text[start].isspace():
        start += 1
    return start


def _unmarked(marked: str, marks: Mapping[str, str]) -> str:
    """Put the characters back in whose place the marks are."""
    for beginning, mark in marks.items():
        marked = marked.replace(mark, beginning)
    return marked


def _masked(text: str, marks: Mapping[int, str]) -> str:
    """Put a mark in the place of each character at these offsets."""
    return _replaced(text, [(at, at + 1, mark) for at, mark in marks.items()])


def _replaced(text: str, changes: Iterable[tuple[int, int, str]]) -> str:
    """Put other texts in the place of spans that do not overlap."""
    pieces: list[str] = []
    done = 0
    for start, end, other in sorted(changes):
        pieces += (text[done:start], other)
        done = end
    return "".join([*pieces, text[done:]])
