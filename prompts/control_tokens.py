"""Finds control tokens in clients' messages, and encodes them as plain text.

Only the template may write control tokens into a chat. To find those of clients, the chat is rendered twice:
the second time, private characters replace every character in the messages that could begin a control token.
If both renderings have the same number of control tokens, no client wrote one, and the first rendering is the
chat. Otherwise the second rendering shows which tokens are the template's.

A control token is special in tokenizer.json or in the model's configuration, or the template writes it (as in
`sanitize_control_tokens` of transformers 5.24), or it is between bars, `<|…|>`. A pair of tags such as
`<think>` and `</think>` that the configuration does not call special stays a pair of tags in turns of the
system and the assistant: templates search for them in earlier answers. Knows no requests.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from prompts.chat_template import MessagesRefused, RenderedChat

Messages = Sequence[Mapping[str, Any]]

_PRIVATE = [chr(code) for code in range(0xE000, 0xF900)]
_IS_PRIVATE = re.compile(f"[{_PRIVATE[0]}-{_PRIVATE[-1]}]")
_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")
_BARRED = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
_OWN_ROLES = frozenset({"system", "assistant"})
_MAX_HEAD_LENGTH, _MAX_HEADS = 3, 16
_FULL_WIDTH = 0xFEE0  # from an ASCII character to its wide form, which NFKC maps back


class ControlTokens:
    """The control tokens of one tokenizer; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int], written: str) -> None:
        """
        Args:
            special: ids that the model's configuration calls special.
            written: the texts of the chat templates.
        """
        added = tokenizer.get_added_tokens_decoder()
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
        unknown = getattr(tokenizer.model, "unk_token", None)  # any text may give it
        self._ids = {tokenizer.token_to_id(token.content) for token in control if token.content != unknown}
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        self._can_spell = not self._contents.isdisjoint(vocabulary)
        self._beginnings = sorted(set().union(*map(_beginnings, control)))
        self._patterns = {first: _continuations(first, control) for first in self._beginnings}
        self._outside_tags = _outside(_tags(unnamed, written), self._beginnings)

    def read(self, text: str, messages: Messages, render: Callable[[Messages], str]) -> RenderedChat:
        """Find control tokens that clients wrote.

        Args:
            text: the messages as `render` writes them.

        Raises:
            MessagesRefused: the template refuses messages without control tokens.
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
            return self._without_spelled(text)
        is_same = _unmarked(marked, marks) == text  # otherwise the template inspects the messages
        if is_same and not any(
            re.search(mark + self._patterns[first], marked) for first, mark in marks.items()
        ):
            return self._without_spelled(text)
        if self._count(text) == self._count(marked) and (is_same or not self._count(said)):
            return self._without_spelled(text)
        return self._locate(marked, marks)

    def _without_spelled(self, text: str, literals: tuple[int, ...] = ()) -> RenderedChat:
        """Return a chat whose added tokens outside `literals` are the template's; what the model's own
        vocabulary makes of the rest is no control token, even if it drops characters from within.
        """
        if self._can_spell:
            found = self._find(_masked(text, dict.fromkeys(literals, *_unused(1, text))))
            if self._encode(text, found, literals)[1]:
                inside = {offset for start, end, _ in found for offset in range(start, end)}
                firsts = {at for at, char in enumerate(text) if char in self._beginnings}
                literals = tuple(sorted({*literals, *firsts - inside}))
        return RenderedChat(text, literals)

    def encode(self, chat: RenderedChat) -> list[int]:
        """Encode a chat, with its literals as plain text."""
        (mark,) = _unused(1, chat.text)
        masked = _masked(chat.text, dict.fromkeys(chat.literals, mark))
        found = self._find(masked)
        ids, has_control = self._encode(chat.text, found, ())
        if has_control:  # a vocabulary such as Unigram's contains whole control tokens
            ids, _ = self._encode(chat.text, found, chat.literals)
        return ids

    def _count(self, text: str) -> int:
        ids = self._finder.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return sum(token_id in self._found_ids for token_id in ids)

    def _find(self, text: str) -> list[tuple[int, int, str]]:
        """Return start, end and text of each added token that the tokenizer would find."""
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
        while True:  # masking one token may reveal another one behind it
            found = [span for span in self._find(masked) if span[2] in self._contents]
            starts = {_skip_blanks(masked, start, end) for start, end, _ in found}
            new = {start: marked[start] for start in starts - literals.keys() if marked[start] in by_client}
            if not new:
                return self._without_spelled(text, tuple(sorted(literals)))
            literals |= new
            masked = _masked(text, literals)

    def _encode(
        self, text: str, found: Sequence[tuple[int, int, str]], cuts: Iterable[int]
    ) -> tuple[list[int], bool]:
        """Encode a text with only the found added tokens; return ids, and whether text gave a control token.

        Args:
            cuts: offsets of characters after which every token ends.
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
    """Make a tokenizer that knows only the added tokens; all other text has the id 0."""
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
    """Whether a text is between bars, or the template writes it and it is neither a word nor blank."""
    if _BARRED.fullmatch(content):
        return True
    word = content.strip(" \t\r\n▁")
    return bool(word) and not word.isalnum() and content in written


def _beginnings(token: AddedToken) -> set[str]:
    """Return the possible first characters of this token's text, after blanks."""
    first = token.content.lstrip()[0]
    if not token.normalized:
        return {first}
    wide = {chr(ord(first) + _FULL_WIDTH)} if "!" <= first <= "~" else set()
    return {first, *first.lower(), *first.upper(), *wide}


def _continuations(beginning: str, tokens: Iterable[AddedToken]) -> str:
    """Return a short pattern of the text after a beginning in any token: for a quick first check."""
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
    """Return the pairs of tags; a special tag only if the template writes it or searches for it."""
    return [
        tag
        for tag, token in tokens.items()
        if (partner := _partner(tag)) in tokens
        and (not token.special or tag in written or (partner or tag) in written)
    ]


def _outside(tags: Sequence[str], beginnings: Sequence[str]) -> re.Pattern[str] | None:
    """Return a pattern for a beginning that does not begin a tag."""
    if not tags:
        return None
    return re.compile(f"(?!{'|'.join(map(re.escape, sorted(tags)))})[{re.escape(''.join(beginnings))}]")


def _partner(tag: str) -> str | None:
    if not tag.startswith("<") or not tag.endswith(">"):
        return None
    return f"<{tag[2:]}" if tag.startswith("</") else f"</{tag[1:]}"


def _texts(value: Any) -> Iterable[str]:
    """Yield all texts of clients, at any depth; keys that are identifiers do not count."""
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
    """Return a copy with changed texts."""
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
    """Return private characters that a text does not contain, not even as JSON escapes.

    Raises:
        MessagesRefused: the text contains nearly all of them.
    """
    used = set() if text.isascii() else set(_IS_PRIVATE.findall(text))
    if "\\u" in text:
        used |= {chr(int(digits, 16)) for digits in _ESCAPED.findall(text)}
    free = [char for char in _PRIVATE if char not in used][:num] if used else _PRIVATE[:num]
    if len(free) < num:
        raise MessagesRefused("the messages have too many private-use characters (U+E000 to U+F8FF)")
    return free


def _skip_blanks(text: str, start: int, end: int) -> int:
    """Return the start of a token without the blanks before it."""
    while start < end - 1 and text[start].isspace():
        start += 1
    return start


def _unmarked(marked: str, marks: Mapping[str, str]) -> str:
    """Replace the marks by their original characters."""
    for beginning, mark in marks.items():
        marked = marked.replace(mark, beginning)
    return marked


def _masked(text: str, marks: Mapping[int, str]) -> str:
    """Replace the characters at these offsets by marks."""
    return _replaced(text, [(at, at + 1, mark) for at, mark in marks.items()])


def _replaced(text: str, changes: Iterable[tuple[int, int, str]]) -> str:
    """Replace spans, which do not overlap, by other texts."""
    pieces: list[str] = []
    done = 0
    for start, end, other in sorted(changes):
        pieces += (text[done:start], other)
        done = end
    return "".join([*pieces, text[done:]])
