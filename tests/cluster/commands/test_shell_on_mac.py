"""Shell text that may run on a Mac uses nothing that bash 3.2 or the BSD tools of macOS lack."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from config import REPOSITORY_ROOT as ROOT

# What is lacking, as a regular expression, and text that has it. COMMAND stands where a command begins.
COMMAND = r"(?:^|[;&|(`!]|\b(?:then|do|else|if|elif|while|until|exec|env|sudo)\s)\s*"
BASH_4 = {
    r"\b(?:mapfile|readarray|coproc)\b": "mapfile -t lines <file",
    r"\$\{\w+(?:\[[^]]*\])?[,^]": "${name,,}",
    r"\$\{\w+(?:\[[^]]*\])?@[A-Za-z]\}": "${name@Q}",
    r"\$\{\w+:[^}]*:\s*-\d": "${name:0:-1}",
    r"\$\{\w+\[-\d": "${names[-1]}",
    r"\b(?:declare|typeset|local|readonly)\s+-\w*[Anglu]": "declare -A seen",
    r"&>>": "make &>>log",
    r"\|&": "make |& tee log",
    r";;?&": "a) run ;;&",
    r"\[\[?\s+-[vR]\s": "[[ -v name ]]",
    r"%\(.*\)T": "printf '%(%s)T' -1",
    r"\$\{?(?:EPOCHSECONDS|EPOCHREALTIME|BASHPID|SRANDOM|BASH_XTRACEFD)\b": "echo $EPOCHSECONDS",
    r"\{-?\w+\.\.-?\w+\.\.": "echo {1..9..2}",
    r"\bwait\s+-\w*[np]": "wait -n",
    r"\bread\s[^;|]*-\w*N": "read -N 1 key",
    r"\bread\s[^;|]*-t\s*\d*\.": "read -t 0.5 line",
    r"\bshopt\s+-s\s+(?:globstar|lastpipe|autocd|inherit_errexit|localvar_inherit)": "shopt -s globstar",
    r"\{\w+\}[<>]": "exec {lock}>file",
    # With set -u an empty array counts as unset before bash 4.4.
    r'(?<!\+)(?<!\+")\$\{\w+\[[@*]\]\}': 'run "${words[@]}"',
}
GNU_TOOLS = {
    r"\breadlink\s+-\w*[fem]": "readlink -f file",
    r"\bsed\s+(?:-\w+\s+)*-i(?:\s+-|\s+[^'\"\s]*['\"]s|\s+[^-'\"\s])": "sed -i 's/a/b/' file",
    r"\bsed\s+-\w*[rsz]\b": "sed -r 's/(a)/b/'",
    r"\bdate\s+[^;|]*(?:-d\b|-I|%N|--)": "date -d tomorrow",
    r"\bgrep\s+[^;|]*-\w*P": "grep -oP 'a'",
    r"\bstat\s+[^;|]*(?:-c\b|--)": "stat -c %s file",
    r"\bfind\s[^;|]*-printf": "find . -printf x",
    r"\b(?:head|tail)\s+-[nc]\s*-": "head -n -1",
    r"\btail\s+--pid": "tail --pid 1 -f log",
    r"\bbase64\s+-w": "base64 -w 0",
    r"\bxargs\s+-\w*[rd]\b": "xargs -r rm",
    r"\bsort\s+-\w*V": "sort -V",
    r"\b(?:du\s+-\w*b|ln\s+-\w*[rT]|touch\s+-d|install\s+-\w*D|hostname\s+-[IiA]|uname\s+-o)\b": "du -sb .",
    r"\b(?:cp|df|id|ls|mkdir|mktemp|mv|ps|rm)\s+(?:-\w+\s+)*--\w": "df --output .",
    r"\b(?:ip|free)\s+(?:-\w|addr|link|route)": "ip -4 addr",
    r"\bsleep\s+infinity": "sleep infinity",
    r"\becho\s+-\w*e": "echo -e 'a'",
    r"\b(?:gensub|strftime|systime|asorti?)\(": "awk '{ print strftime() }'",
    COMMAND + r"(?:timeout|setsid|flock|nproc|tac|shuf|numfmt|md5sum|getent|ss|realpath|pidof|ionice)\s": (
        "if timeout 5 ping mac2; then"
    ),
}
LACKING = {re.compile(pattern, re.MULTILINE): text for pattern, text in (BASH_4 | GNU_TOOLS).items()}


def find_lacking(text: str) -> list[str]:
    """What of a shell text a Mac lacks; comments do not count."""
    code = re.sub(r"(?:^|(?<=\s))#.*", "", text, flags=re.MULTILINE)
    return [match[0] for pattern in LACKING for match in pattern.finditer(code)]


def list_shell_texts() -> Iterator[tuple[str, str]]:
    """launch.sh, and every text in the code for other hosts: what is no shell has no command of a shell."""
    yield "launch.sh", (ROOT / "launch.sh").read_text()
    for path in sorted((ROOT / "cluster" / "hosts").glob("*.py")):
        tree = ast.parse(path.read_text())
        nodes = list(ast.walk(tree))
        notes = {ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, DOCUMENTED)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
                yield f"{path.name}:{node.lineno}", "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in notes:
                yield f"{path.name}:{node.lineno}", node.value


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("pattern", LACKING, ids=LACKING.values())
def test_each_thing_that_a_mac_lacks_is_found(pattern: re.Pattern[str]) -> None:
    """In a text of its own; not where a comment speaks of it."""
    text = LACKING[pattern]
    assert pattern.search(text)
    assert find_lacking(text)
    assert not find_lacking(f"run # {text}")


def test_what_a_mac_has_is_not_found() -> None:
    """Ways to write that look alike."""
    assert not find_lacking(
        'while read -r line; do echo "${line%%.*}" >&2; done <file 2>&1\n'
        "sed -i '' 's/a/b/' file; date +%s; stat -f %z file; grep -Eo 'a' file | sort -u; a && b || c\n"
        'for name in "$@"; do [ -n "${name:-}" ] || continue; done; local name=-A; exec 3<&0\n'
        'run ${words[@]+"${words[@]}"}; case $name in a) run ;; esac; echo "$timeout"; ssh -o x timeout\n'
    )


def test_no_shell_text_needs_more_than_a_mac_has() -> None:
    """launch.sh, and what this program sends to other hosts or advises to type there."""
    texts = list(list_shell_texts())
    assert sum("python -m venv" in text or "-m venv --clear" in text for _, text in texts) >= 2
    assert [(place, found) for place, text in texts if (found := find_lacking(text))] == []
