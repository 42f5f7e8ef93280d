"""Several answers to one body: choices, several prompts; logprobs, echo, suffix, and counting tokens."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.fake_engine import MAX_PIECES
from tests.services.frontdoor_service import Service, events, make_model_folder, running_service, until

TEXT = "Grüße, wörld! 🎉 n0 n1 "
USER: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


def test_a_chat_has_n_choices_with_one_seed(client: openai.OpenAI, service: Service) -> None:
    """Each is a request of its own with its number; the prompt counts once."""
    answer = client.chat.completions.create(model="tiny", messages=USER, n=3, max_tokens=6, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {TEXT}
    params = [request.params for request in service.engine.claimed]
    assert sorted(each.choice for each in params) == [0, 1, 2]
    assert {each.seed for each in params} == {5}
    assert answer.usage is not None
    (num_prompt_tokens,) = {len(request.token_ids or ()) for request in service.engine.claimed}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (num_prompt_tokens, 18)


def test_choices_stream_side_by_side(client: openai.OpenAI) -> None:
    """Every choice has its role, its text and its end; the usage of all comes last."""
    with client.chat.completions.create(
        model="tiny",
        messages=USER,
        n=2,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    for index in range(2):
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == TEXT
        assert [choice.finish_reason for choice in mine].count("length") == 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def test_several_prompts_of_a_completion(client: openai.OpenAI, service: Service) -> None:
    """Prompts in order, all choices of the first one first; texts and token ids may be mixed."""
    answer = client.completions.create(
        model="tiny",
        prompt=["a", [5, 6]],  # type: ignore[arg-type]
        n=2,
        max_tokens=1,
        echo=True,
    )
    assert [choice.text[:1] for choice in answer.choices] == ["a", "a", "&", "&"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)
    asked = {(request.text, request.token_ids) for request in service.engine.claimed}
    assert {text for text, _ in asked} == {"a", None}
    assert (None, (5, 6)) in asked


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate"])
def test_a_retry_under_its_key_gets_all_choices(service: Service, path: str) -> None:
    """No second run, whole or streamed: the ids follow from the first one's."""
    body = {"messages": USER, "n": 3, "temperature": 1.0}
    headers = {"Idempotency-Key": f"choices of {path}".replace(" ", "-")}
    first, retry = (service.http.post(path, json=body, headers=headers).json() for _ in range(2))
    assert first["choices"] == retry["choices"]
    streamed = service.http.post(path, json={**body, "stream": True}, headers=headers).text
    assert streamed.count("n0 ") >= 3
    assert len(service.engine.claimed) == 3


def test_when_one_choice_fails_the_others_are_cancelled(service: Service) -> None:
    """The answer is that error; nothing goes on for nobody."""
    body = {"prompt": ["[fail]", "[hold] b"], "max_tokens": 5}
    answer = service.http.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "it went wrong")
    (held,) = [request.id for request in service.engine.claimed if request.text != "[fail]"]
    until(lambda: service.spool.read_result(held) is not None)
    result = service.spool.read_result(held)
    assert result is not None
    assert result.finish_reason == "cancelled"


def test_the_id_of_an_answer_cancels_all_its_choices(service: Service) -> None:
    """The id in OpenAI's form is the answer's; the id alone is one request's."""
    body = {"prompt": "[hold]", "n": 3, "background": True}
    first, *others = [choice["id"] for choice in service.http.post("/generate", json=body).json()["choices"]]
    service.http.delete(f"/requests/{others[0]}")
    until(lambda: service.spool.state(others[0]) == "done")
    assert {service.spool.state(each) for each in (first, others[1])} <= {"waiting", "active"}
    assert service.http.delete(f"/requests/chatcmpl-{first}").json()["cancelled"]
    until(lambda: all(service.spool.state(each) == "done" for each in (first, *others)))


def test_nothing_is_accepted_when_the_queue_has_room_for_some(tmp_path: Path) -> None:
    """Eight choices do not fit into a queue of five: 429, and the five leave it again."""
    with running_service(tmp_path, {"MAX_QUEUE_DEPTH": "5"}, max_open=0) as service:
        answer = service.http.post("/v1/chat/completions", json={"messages": USER, "n": 8})
        assert answer.status_code == 429
        until(lambda: service.spool.depth().num_waiting == 0)


def test_generate_answers_and_streams_choices(service: Service) -> None:
    """The first answer as ever, all of them under `choices`; events name their choice."""
    answer = service.http.post("/generate", json={"prompt": "hi", "n": 2}).json()
    assert answer["text"] == TEXT
    assert [choice["text"] for choice in answer["choices"]] == [TEXT, TEXT]
    assert len({choice["id"] for choice in answer["choices"]}) == 2
    found = events(service.http.post("/generate", json={"prompt": "hi", "n": 2, "stream": True}).text)
    for index in range(2):
        mine = [(name, data) for name, _, data in found if data["choice"] == index]
        assert "".join(data["text"] for name, data in mine if name == "token") == TEXT
        assert mine[-1][0] == "done"


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    """Each token with its bytes and the asked number of alternatives; the same in a stream."""
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "max_tokens": 3}
    asked |= {"logprobs": True, "top_logprobs": 2}
    logprobs = client.chat.completions.create(**asked).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.logprob for entry in logprobs.content] == [-0.1, -0.101, -0.102]
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [2, 2, 2]
    assert bytes(logprobs.content[0].bytes or ()).decode("utf-8", "replace") == logprobs.content[0].token
    with client.chat.completions.create(**asked, stream=True) as stream:
        streamed = [
            entry
            for chunk in stream
            if chunk.choices[0].logprobs is not None
            for entry in chunk.choices[0].logprobs.content or ()
        ]
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in logprobs.content]


def test_logprobs_of_a_completion_and_its_prompt(client: openai.OpenAI) -> None:
    """As lm-eval reads them: the prompt's tokens first, the first without a number; offsets in the text."""
    asked: dict[str, Any] = {"model": "tiny", "prompt": [[40, 41, 42]], "logprobs": 1, "echo": True}
    choice = client.completions.create(**asked, max_tokens=1).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [None, -0.041, -0.042, -0.1]
    assert choice.logprobs.top_logprobs is not None
    assert [len(top or ()) for top in choice.logprobs.top_logprobs] == [0, 2, 2, 2]
    assert choice.logprobs.text_offset == [0, 1, 2, 3]
    assert choice.text.startswith("".join(choice.logprobs.tokens or ())[:3])
    alone = client.completions.create(**asked, max_tokens=0).choices[0]
    assert alone.logprobs is not None
    assert alone.logprobs.token_logprobs == [None, -0.041, -0.042]
    assert len(alone.text) == 3


def test_choices_share_the_logprobs_of_their_prompt(service: Service) -> None:
    """Only the first choice of each prompt asks the ring for them; every choice of the answer has them."""
    body = {"prompt": [[40, 41], [42, 43, 44]], "n": 2, "echo": True, "logprobs": 0, "max_tokens": 1}
    answer = service.http.post("/v1/completions", json=body).json()
    first, second = [None, -0.041, -0.1], [None, -0.043, -0.044, -0.1]
    given = [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]]
    assert given == [first, first, second, second]
    asked = [(each.params.choice, each.params.prompt_logprobs) for each in service.engine.claimed]
    assert sorted(asked, key=str) == [(0, 0), (0, 0), (1, None), (1, None)]


@pytest.mark.parametrize("token_id", [-1, 10**6, 10**30])
def test_an_echo_of_tokens_that_do_not_exist_is_refused(service: Service, token_id: int) -> None:
    """By name, before the text of the prompt is made."""
    answer = service.http.post("/v1/completions", json={"prompt": [5, token_id], "echo": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_an_echo_alone_has_no_tokens_of_an_answer(client: openai.OpenAI) -> None:
    """The ring draws one; the client neither sees nor counts it."""
    asked: dict[str, Any] = {"model": "tiny", "prompt": "abc", "echo": True, "max_tokens": 0}
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    streamed = list(client.completions.create(**asked, stream=True, stream_options=options))
    for chunks in ([client.completions.create(**asked)], streamed):
        assert {chunk.usage and chunk.usage.completion_tokens for chunk in chunks} == {0}
        assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "abc"


def test_penalties_and_bias_reach_the_ring(service: Service) -> None:
    """Under the same names on every route."""
    asked = {"frequency_penalty": 0.5, "presence_penalty": -1, "repetition_penalty": 1.2}
    for path, prompt in (
        ("/generate", {"prompt": "hi"}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": USER}),
    ):
        body = {**prompt, **asked, "logit_bias": {"5": -100}}
        assert service.http.post(path, json=body).status_code == 200
        params = service.engine.claimed[-1].params
        assert {name: getattr(params, name) for name in asked} == asked
        assert params.logit_bias == {5: -100.0}


def test_suffix_asks_for_the_text_between(tmp_path: Path) -> None:
    """A model with the tokens gets prefix, suffix and place; another one refuses by name."""
    folder = make_model_folder(tmp_path / "model")
    described = json.loads((folder / "tokenizer.json").read_text())
    names = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    described["added_tokens"] += [
        {**described["added_tokens"][0], "id": 300 + index, "content": name}
        for index, name in enumerate(names)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with running_service(tmp_path, {"MODEL_REPO": str(folder)}) as service:
        body = {"prompt": "a", "suffix": "b", "max_tokens": MAX_PIECES}
        assert service.http.post("/v1/completions", json=body).status_code == 200
        before_prefix, a, before_suffix, b, before_answer = service.engine.claimed[-1].token_ids or ()
        names_of = service.http.post(
            "/detokenize", json={"tokens": [before_prefix, a, before_suffix, b, before_answer]}
        ).json()["prompt"]
        assert names_of == "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
        by_ollama = {"model": "model", "prompt": "a", "suffix": "b", "stream": False}
        assert service.http.post("/api/generate", json=by_ollama).status_code == 200
        assert service.engine.claimed[-1].token_ids == service.engine.claimed[-2].token_ids
        assert "insert" in service.http.post("/api/show", json={"model": "model"}).json()["capabilities"]


def test_tokenize_counts_as_a_request_does(service: Service) -> None:
    """A prompt with its opening or without, a chat with its template; and back to text."""
    post = service.http.post
    service.http.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 1})
    counted = post("/tokenize", json={"messages": USER}).json()
    assert tuple(counted["tokens"]) == service.engine.claimed[-1].token_ids
    assert counted["count"] == len(counted["tokens"])
    assert counted["max_model_len"] == 256
    plain = post("/tokenize", json={"prompt": "hi", "add_special_tokens": False, "return_token_strs": True})
    assert plain.json()["token_strs"] == ["h", "i"]
    assert (
        post("/detokenize", json={"tokens": counted["tokens"]})
        .json()["prompt"]
        .startswith("<|start|>user:hi")
    )
    assert post("/tokenize", json={"prompt": "a", "messages": USER}).status_code == 400
    assert post("/tokenize", json={"prompt": "a", "model": "other"}).status_code == 404
    assert post("/detokenize", json={"tokens": ["a"]}).status_code == 400
    assert post("/tokenize", json={"prompt": ""}).json()["count"] == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/detokenize", {"tokens": [40, 10**6]}, "tokens"),
        ("/detokenize", {"tokens": [40, None]}, "tokens"),
        ("/detokenize", {"tokens": [40, True]}, "tokens"),
        ("/detokenize", {"tokens": [40, -1]}, "tokens"),
        ("/detokenize", {"tokens": "hi"}, "tokens"),
        ("/tokenize", {"messages": USER, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ("/tokenize", {"prompt": "a", "tools": [{"type": "function", "function": {"name": "a"}}]}, "tools"),
        ("/tokenize", {"messages": [{"role": "tool", "content": None}] * 900}, "messages"),
    ],
)
def test_counting_ignores_nothing(service: Service, path: str, body: dict[str, Any], param: str) -> None:
    """A token that does not exist, a field without an effect here: refused by name."""
    answer = service.http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
