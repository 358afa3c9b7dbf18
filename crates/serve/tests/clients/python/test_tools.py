"""Tools and the responses API as OpenAI's Python client sees them. Run by run.sh.

The model is too small to choose tools by itself: `tool_choice: required` makes it call, and where exactly two calls are
needed, a grammar of two calls does.
"""

import json
from typing import Literal

import pytest
from conftest import check_type, metric, wait_for
from pydantic import BaseModel, ConfigDict

CITIES, ZONES = ["서울", "부산 🌊"], ["KST", "UTC"]


def schema(name, values):
    return {
        "type": "object",
        "properties": {name: {"type": "string", "enum": values}},
        "required": [name],
        "additionalProperties": False,
    }


FUNCTIONS = [
    {"name": "weather", "description": "날씨", "parameters": schema("city", CITIES)},
    {"name": "clock", "description": "시간", "parameters": schema("zone", ZONES)},
]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
FLAT_TOOLS = [{"type": "function", **function} for function in FUNCTIONS]
QUESTION = [{"role": "user", "content": "서울 날씨와 시간은?"}]

# One call of each tool, in the form in which Kanana writes them.
TWO_CALLS = "start: first second\n" + "".join(
    f'{name}: "<function={function["name"]}>" %json {json.dumps(function["parameters"])} "</function>"\n'
    for name, function in zip(("first", "second"), FUNCTIONS, strict=True)
)


def weather(city):
    return f"{city} 맑음"


def clock(zone):
    return f"12:00 {zone}"


def run(name, arguments):
    """What the caller does with a call; fails where the arguments are not of the schema."""
    arguments = json.loads(arguments)
    function = next(function for function in FUNCTIONS if function["name"] == name)
    ((key, property),) = function["parameters"]["properties"].items()
    assert list(arguments) == [key] and arguments[key] in property["enum"]
    return {"weather": weather, "clock": clock}[name](**arguments)


def ask(client, model, messages=QUESTION, **options):
    options = {"temperature": 0, "max_tokens": 110, "tools": TOOLS} | options
    return client.chat.completions.create(model=model, messages=messages, **options)


def assembled(chunks):
    """The calls of a stream, put together as the API's description says."""
    calls = []
    for chunk in chunks:
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.index == len(calls):
                assert delta.id and delta.type == "function"
                calls.append({"id": delta.id, "name": delta.function.name, "arguments": ""})
            calls[delta.index]["arguments"] += delta.function.arguments or ""
    return calls


def pairs(calls):
    return [(call.function.name, call.function.arguments) for call in calls]


def test_the_whole_loop_with_two_parallel_calls(client, model):
    answer = ask(client, model, extra_body={"guided_grammar": TWO_CALLS})
    choice = answer.choices[0]
    calls = choice.message.tool_calls
    check_type(answer)
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert [call.function.name for call in calls] == ["weather", "clock"]
    assert len({call.id for call in calls}) == 2 and all(call.type == "function" for call in calls)

    messages = [*QUESTION, choice.message]
    for call in calls:
        result = run(call.function.name, call.function.arguments)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    final = ask(client, model, messages, tool_choice="none", max_tokens=30)
    assert final.choices[0].message.content and final.choices[0].message.tool_calls is None
    assert final.usage.prompt_tokens > ask(client, model, tool_choice="none", max_tokens=1).usage.prompt_tokens


def test_required_may_be_several(client, model):
    """All calls are valid; and of some seeds one answers with several."""
    several = 0
    for seed in range(8):
        options = {"tool_choice": "required", "parallel_tool_calls": True, "temperature": 1, "seed": seed}
        choice = ask(client, model, **options).choices[0]
        if choice.finish_reason == "length":
            continue  # a call may be cut
        assert choice.finish_reason == "tool_calls"
        for name, arguments in pairs(choice.message.tool_calls):
            run(name, arguments)
        several += len(choice.message.tool_calls) > 1
    assert several > 0


def test_required_and_not_parallel_is_one(client, model):
    for seed in range(4):
        options = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 1, "seed": seed}
        choice = ask(client, model, **options).choices[0]
        ((name, arguments),) = pairs(choice.message.tool_calls)
        assert choice.finish_reason == "tool_calls" and run(name, arguments)


@pytest.mark.parametrize("name", ["weather", "clock"])
def test_named(client, model, name):
    choice = ask(client, model, tool_choice={"type": "function", "function": {"name": name}}).choices[0]
    assert [called for called, _ in pairs(choice.message.tool_calls)] == [name]


@pytest.mark.parametrize(
    "options",
    [
        {"extra_body": {"guided_grammar": TWO_CALLS}},
        {"tool_choice": "required", "temperature": 1, "seed": 4},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}, "temperature": 1, "seed": 9},
    ],
)
def test_streamed_calls_are_the_same(client, model, options):
    whole = ask(client, model, **options).choices[0]
    chunks = list(ask(client, model, stream=True, **options))
    calls = assembled(chunks)
    assert [(call["name"], call["arguments"]) for call in calls] == pairs(whole.message.tool_calls)
    assert len({call["id"] for call in calls}) == len(calls)
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (whole.message.content or "")


def test_auto_answers_with_text(client, model):
    assert ask(client, model, tool_choice="auto", max_tokens=20).choices[0].message.content


# The responses API.


class Mood(BaseModel):
    model_config = ConfigDict(extra="forbid")
    mood: Literal["좋음 🙂", "나쁨"]
    sure: bool


def respond(client, model, input="안녕하세요", **options):
    options = {"temperature": 0, "max_output_tokens": 110} | options
    return client.responses.create(model=model, input=input, **options)


def check_events(events, expected):
    """Fails unless the events of a stream are of their types and in this order; repeated ones count once."""
    for event in events:
        check_type(event)
    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    short = [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]
    assert [kind.removeprefix("response.") for kind in short] == expected


BEGIN = ["created", "in_progress"]
TEXT = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]


def test_response(client, model):
    response = respond(client, model)
    check_type(response)
    assert (response.status, response.object, response.model) == ("completed", "response", model)
    spoken = ask(client, model, [{"role": "user", "content": "안녕하세요"}], tools=None)
    assert response.output_text == spoken.choices[0].message.content
    assert response.usage.input_tokens + response.usage.output_tokens == response.usage.total_tokens
    with_word = respond(client, model, [{"role": "user", "content": "네?"}], instructions="짧게.")
    assert with_word.output_text and with_word.instructions == "짧게."
    cut = respond(client, model, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output[0].status == "incomplete"


def test_response_goes_on(client, model):
    """The output of a response is a part of the next one's input."""
    first = respond(client, model)
    again = respond(
        client, model, [{"role": "user", "content": "안녕하세요"}, *first.output, {"role": "user", "content": "네"}]
    )
    assert again.output_text and again.usage.input_tokens > first.usage.input_tokens


def test_response_stream(client, model):
    whole = respond(client, model)
    events = list(respond(client, model, stream=True))
    check_events(events, [*BEGIN, *TEXT, "completed"])
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage
    check_events(list(respond(client, model, stream=True, max_output_tokens=2)), [*BEGIN, *TEXT, "incomplete"])


def test_response_parse(client, model):
    options = {"model": model, "input": "기분은?", "max_output_tokens": 60, "temperature": 0}
    parsed = client.responses.parse(text_format=Mood, **options)
    assert isinstance(parsed.output_parsed, Mood)
    with client.responses.stream(text_format=Mood, **options) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == parsed.output_parsed


def test_response_tools(client, model):
    options = {"tools": FLAT_TOOLS, "extra_body": {"guided_grammar": TWO_CALLS}}
    first = respond(client, model, "서울?", **options)
    check_type(first)
    assert [(item.type, item.name) for item in first.output] == [
        ("function_call", "weather"),
        ("function_call", "clock"),
    ]
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": run(item.name, item.arguments)}
        for item in first.output
    ]
    conversation = [{"role": "user", "content": "서울?"}, *first.output, *results]
    assert respond(client, model, conversation, tools=FLAT_TOOLS, tool_choice="none", max_output_tokens=30).output_text

    events = list(respond(client, model, "서울?", stream=True, **options))
    check_events(events, [*BEGIN, *CALL, *CALL, "completed"])
    done = [(item.name, item.arguments) for item in first.output]
    assert [(item.name, item.arguments) for item in events[-1].response.output] == done
    deltas = ["", ""]
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            deltas[event.output_index] += event.delta
    assert deltas == [arguments for _, arguments in done]


def test_response_required(client, model):
    for choice in ("required", {"type": "function", "name": "clock"}):
        output = respond(
            client, model, "몇 시?", tools=FLAT_TOOLS, tool_choice=choice, parallel_tool_calls=False
        ).output
        assert [item.type for item in output] == ["function_call"] and run(output[0].name, output[0].arguments)


def test_nothing_runs_on():
    assert wait_for(lambda: metric("vllm:num_requests_running") == metric("vllm:num_requests_waiting") == 0)
