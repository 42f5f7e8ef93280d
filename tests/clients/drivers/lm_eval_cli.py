"""lm-eval: answers and loglikelihoods, by chats and by completions."""

import json
import os
import subprocess
import sys
from pathlib import Path

from things import CAPITAL, CAPITAL_ANSWER, MODEL, RECIPE, URL

LM_EVAL = Path(sys.executable).with_name("lm_eval")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
doc_to_text: "{{{{question}}}}"
"""
GENERATE = """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 16, temperature: 0}
metric_list: [{metric: exact_match}]
"""
CHOOSE = """
output_type: multiple_choice
doc_to_target: 0
doc_to_choice: ["{{answer}}", " 17 17 17"]
metric_list: [{metric: acc}]
"""
folder = Path(os.environ["HOME"]) / "tasks"
folder.mkdir(exist_ok=True)
data = folder / "data.jsonl"
data.write_text(json.dumps({"question": CAPITAL, "answer": CAPITAL_ANSWER}) + "\n")
for name, rest in (("generate", GENERATE), ("choose", CHOOSE)):
    (folder / f"{name}.yaml").write_text(TASK.format(name=f"ring_{name}", data=data) + rest)


def _run(task, *words, env=None):
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
    rows = [line.split("|") for line in ended.stdout.splitlines() if f"|{task}" in line]
    assert [row[7].strip() for row in rows] == ["1"], ended.stdout + ended.stderr


def _complete(task):
    arguments = (
        f"model={MODEL},base_url={URL}/completions,num_concurrent=2,tokenizer={os.environ['TOKENIZER']}"
    )
    service = ("--model", "local-completions", "--model_args", arguments)
    _run(task, LM_EVAL, *service, "--tasks", task, "--include_path", folder)


def generate_by_chat():
    """As the recipe does, with another task."""
    script = RECIPE["script"].replace("ifeval", "ring_generate")
    path = f"{LM_EVAL.parent}:{os.environ['PATH']}"
    _run(
        "ring_generate", "bash", "-ec", f"{script} --include_path {folder}", env={**os.environ, "PATH": path}
    )


def generate_by_completions():
    _complete("ring_generate")


def loglikelihood():
    _complete("ring_choose")
