"""The server as OpenAI's Python client sees it. Run by run.sh."""

import asyncio
import json
from typing import Literal

import openai
import pytest
from conftest import API_KEY, BASE_URL, check_type, metric, tokenize, wait_for
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

HELLO = [{"role": "user", "content": "안녕하세요"}]


def chat(client, model, messages=HELLO, **options):
    options = {"temperature": 0, "max_tokens": 60} | options
    return client.chat.completions.create(model=model, messages=messages, **options)


def text_of(chunks):
    """The text of the first choice of some chunks."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# Models, chat and its stream.


def test_models(client, model):
    assert client.models.retrieve(model).id == model
    assert client.models.retrieve(model).object == "model"


def test_chat(client, model):
    answer = chat(client, model)
    choice = answer.choices[0]
    assert (answer.object, answer.model, choice.index) == ("chat.completion", model, 0)
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    assert chat(client, model).choices[0].message.content == choice.message.content


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_word_before(client, model, role):
    messages = [{"role": role, "content": "짧게."}, {"role": "user", "content": [{"type": "text", "text": "네?"}]}]
    plain = [{"role": "system", "content": "짧게."}, {"role": "user", "content": "네?"}]
    assert chat(client, model, messages).usage.prompt_tokens == chat(client, model, plain).usage.prompt_tokens


def test_stream(client, model):
    whole = chat(client, model)
    chunks = list(chat(client, model, stream=True, stream_options={"include_usage": True}))
    assert text_of(chunks) == whole.choices[0].message.content
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    ends = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert ends[:-1] == [None] * len(ends[:-1]) and ends[-1] == whole.choices[0].finish_reason


def test_types(client, model):
    options = {"logprobs": True, "top_logprobs": 2, "max_tokens": 5}
    check_type(client.models.list().data[0])
    check_type(chat(client, model, **options))
    for chunk in chat(client, model, stream=True, stream_options={"include_usage": True}, **options):
        check_type(chunk)
    check_type(client.completions.create(model=model, prompt="가", max_tokens=5, logprobs=2))
    check_type(client.embeddings.create(model=model, input="가", encoding_format="float"))


def test_stream_without_usage(client, model):
    assert all(chunk.choices and chunk.usage is None for chunk in chat(client, model, stream=True))


def test_stream_helper(client, model):
    with client.chat.completions.stream(model=model, messages=HELLO, temperature=0, max_tokens=60) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and kinds[-1] == "content.done"
    assert final.choices[0].message.content == chat(client, model).choices[0].message.content


def test_several_answers(client, model):
    options = {"n": 3, "seed": 7, "temperature": 1.5, "max_tokens": 20}
    texts = [choice.message.content for choice in chat(client, model, **options).choices]
    assert texts == [choice.message.content for choice in chat(client, model, **options).choices]
    assert len(texts) == 3 and len(set(texts)) > 1
    streamed = ["", "", ""]
    for chunk in chat(client, model, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_stop_strings(client, model):
    whole = chat(client, model, max_tokens=20).choices[0].message.content
    stop = whole[2:4]
    expected = whole[: whole.index(stop)]
    for given in (stop, ["없는 말", stop]):
        choice = chat(client, model, stop=given).choices[0]
        assert (choice.message.content, choice.finish_reason) == (expected, "stop")
    assert text_of(chat(client, model, stop=stop, stream=True)) == expected
    kept = chat(client, model, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].message.content == expected + stop


def test_what_runs_beside_changes_nothing(client, model):
    """Eight conversations at once get what they get one after the other."""
    conversations = [[{"role": "user", "content": f"{i}번째 질문입니다."}] for i in range(8)]
    options = {"temperature": 0.8, "seed": 3, "max_tokens": 24}

    async def all_at_once():
        async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0) as many:
            return await asyncio.gather(*(chat(many, model, messages, **options) for messages in conversations))

    together = [answer.choices[0].message.content for answer in asyncio.run(all_at_once())]
    alone = [chat(client, model, messages, **options).choices[0].message.content for messages in conversations]
    assert together == alone


def test_a_stream_that_is_closed_is_cancelled(client, model):
    aborted, generated = metric("kanana:request_aborted_total"), metric("vllm:generation_tokens_total")
    stream = chat(client, model, stream=True, n=16, max_tokens=450, extra_body={"ignore_eos": True})
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    stream.close()
    assert wait_for(lambda: metric("vllm:num_requests_running") == 0, 5)
    assert wait_for(lambda: metric("kanana:request_aborted_total") > aborted)
    assert metric("vllm:generation_tokens_total") - generated < 16 * 450


# Log-probabilities.


def test_chat_logprobs(client, model):
    whole = chat(client, model, logprobs=True, top_logprobs=3).choices[0]
    tokens = whole.logprobs.content
    spoken = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert spoken.startswith(whole.message.content)
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        assert token.token == token.top_logprobs[0].token  # temperature 0
        assert token.logprob == max(top.logprob for top in token.top_logprobs)
    streamed = []
    for chunk in chat(client, model, logprobs=True, top_logprobs=3, stream=True):
        streamed += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
    assert streamed == tokens


def test_completion_echo(client, model):
    prompt = "옛날 옛적에 "
    options = {"model": model, "temperature": 0, "logprobs": 2}
    answer = client.completions.create(prompt=prompt, max_tokens=6, echo=True, **options)
    choice, logprobs = answer.choices[0], answer.choices[0].logprobs
    assert choice.text.startswith(prompt) and choice.finish_reason == "length"
    count = answer.usage.total_tokens
    assert [len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.text_offset)] == [count] * 3
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(logprob <= 0 for logprob in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == sorted(logprobs.text_offset)

    # The same text as a prompt is as likely as it was while it was written, if it is cut into the same tokens.
    ids = tokenize(prompt)
    plain = client.completions.create(prompt=ids, max_tokens=6, **options).choices[0]
    assert prompt + plain.text == choice.text
    assert plain.logprobs.token_logprobs == pytest.approx(logprobs.token_logprobs[len(ids) :], abs=1e-4)
    scored = client.completions.create(prompt=[ids, ids[:3]], max_tokens=0, echo=True, **options)
    assert [len(choice.logprobs.tokens) for choice in scored.choices] == [len(ids), 3]
    assert scored.choices[0].text == prompt
    expected = logprobs.token_logprobs[1 : len(ids)]
    assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)


def test_completion_stream(client, model):
    options = {"model": model, "prompt": ["하나 둘", "빨강 파랑"], "n": 2, "seed": 1, "max_tokens": 12}
    whole = client.completions.create(**options)
    texts = [""] * 4
    for chunk in client.completions.create(stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


# Forms of the answer.


class Landmark(BaseModel):
    """Of a form whose every value is short, as the model's context is."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["서울", "부산 🌊"]
    open: bool
    floors: Literal[1, 2, 123]
    tags: list[Literal["가", "나"]] = Field(min_length=1, max_length=2)


def test_parse_with_pydantic(client, model):
    options = {"model": model, "messages": HELLO, "max_tokens": 120}
    answer = client.chat.completions.parse(response_format=Landmark, temperature=1, seed=5, **options)
    assert isinstance(answer.choices[0].message.parsed, Landmark)
    with client.chat.completions.stream(response_format=Landmark, temperature=1, seed=5, **options) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


def test_parse_that_is_cut_says_so(client, model):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=model, messages=HELLO, response_format=Landmark, max_tokens=3)


def test_json_object(client, model):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    }
    named = {"type": "json_schema", "json_schema": {"name": "one", "schema": schema}}
    assert json.loads(chat(client, model, response_format=named).choices[0].message.content)["a"] in range(1, 10)
    anything = chat(client, model, response_format={"type": "json_object"}, max_tokens=30).choices[0]
    assert anything.message.content.lstrip().startswith("{")


def test_guided_fields(client, model):
    def say(**extra):
        return chat(client, model, temperature=1, seed=2, extra_body=extra).choices[0].message.content

    assert say(guided_choice=["예", "아니요"]) in ("예", "아니요")
    digits = say(guided_regex="[0-9]{3}-[0-9]{4}", top_k=5)
    assert len(digits) == 8 and digits[3] == "-" and digits.replace("-", "").isdigit()
    assert json.loads(say(guided_json={"enum": ["가", 1]})) in ("가", 1)
    assert say(guided_grammar='start: "가" "나"') == "가나"


def test_top_k_of_one_is_greedy(client, model):
    greedy = chat(client, model).choices[0].message.content
    assert chat(client, model, temperature=2, extra_body={"top_k": 1}).choices[0].message.content == greedy


@pytest.mark.parametrize("text", ["한글과 English", "🙂👨‍👩‍👧 🇰🇷", 'ㅋㅋㅋ\n\t"\\ 끝'])
def test_text_goes_round(client, model, text):
    echoed = client.completions.create(model=model, prompt=text, max_tokens=0, echo=True, logprobs=0)
    assert echoed.choices[0].text == text
    chunks = list(chat(client, model, stream=True, extra_body={"guided_choice": [text]}))
    assert text_of(chunks) == text
    assert all("\ufffd" not in (chunk.choices[0].delta.content or "") for chunk in chunks)


# Embeddings.


def test_embeddings(client, model):
    texts = ["고양이가 잔다", "A cat sleeps", "🙂"]
    default = client.embeddings.create(model=model, input=texts)  # the client asks for base64
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    assert [item.index for item in default.data] == [0, 1, 2]
    for a, b in zip(default.data, plain.data, strict=True):
        assert list(a.embedding) == pytest.approx(b.embedding, abs=1e-6)
        assert sum(x * x for x in a.embedding) == pytest.approx(1, abs=1e-4)
    short = client.embeddings.create(model=model, input=texts[0], dimensions=8).data[0].embedding
    head = plain.data[0].embedding[:8]
    length = sum(x * x for x in head) ** 0.5
    assert list(short) == pytest.approx([x / length for x in head], abs=1e-5)
    ids = client.embeddings.create(model=model, input=tokenize(texts[0])).data[0].embedding
    assert list(ids) == pytest.approx(list(default.data[0].embedding), abs=1e-6)
    assert default.usage.prompt_tokens == default.usage.total_tokens == sum(len(tokenize(text)) for text in texts)


# Errors.


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"temperature": 3}, "temperature", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"max_tokens": 100_000}, "max_tokens", "context_length_exceeded"),
        ({"messages": []}, "messages", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
            None,
        ),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"extra_body": {"temprature": 1}}, "temprature", "unknown_parameter"),
        ({"extra_body": {"guided_regex": "["}}, "guided_regex", None),
        ({"logit_bias": {"0": 1000}}, "logit_bias", None),
        ({"stop": ""}, "stop", None),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}},
            "response_format",
            None,
        ),
        ({"store": True}, "store", "unsupported_parameter"),
    ],
)
def test_bad_requests(client, model, options, param, code):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, model, **options)
    error = caught.value
    assert error.type == "invalid_request_error" and error.message
    assert (error.param, error.code) == (param, code), error.body


def test_what_is_not_there(client, model):
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, "gpt-nothing")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-nothing")
    with pytest.raises(openai.NotFoundError):
        client.files.list()


def test_keys(client, model):
    for key in ("wrong", API_KEY + "x"):
        with pytest.raises(openai.AuthenticationError) as caught:
            chat(OpenAI(base_url=BASE_URL, api_key=key, max_retries=0), model)
        assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        chat(client, model, extra_headers={"Authorization": openai.omit})
