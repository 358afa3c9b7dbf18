use std::time::{Duration, Instant};

use serde_json::from_value;

use super::*;

fn render(source: &str, request: &ChatRequest) -> Result<String> {
    ChatTemplate::from_source("test", source)?.render(request)
}

/// 2025-07-04 12:00 UTC, the clock of the goldens.
fn golden_clock() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_751_630_400)
}

#[test]
fn renders_as_transformers_does() {
    let goldens: Vec<Value> =
        serde_json::from_str(include_str!("../../tests/goldens/templates.json")).unwrap();
    let mut wrong = Vec::new();
    for golden in &goldens {
        let mut options: Map<String, Value> = from_value(golden["options"].clone()).unwrap();
        let mut take = |name: &str| options.shift_remove(name).unwrap_or(Value::Null);
        let ending = match (take("add_generation_prompt"), take("continue_final_message")) {
            (Value::Bool(true), _) => Ending::GenerationPrompt,
            (_, Value::Bool(true)) => Ending::ContinueFinal,
            _ => Ending::Closed,
        };
        let request = ChatRequest {
            messages: from_value(golden["messages"].clone()).unwrap(),
            tools: from_value(take("tools")).unwrap(),
            documents: from_value(take("documents")).unwrap(),
            ending,
            variables: options,
            now: Some(golden_clock()),
        };
        let got = render(golden["template"].as_str().unwrap(), &request);
        let got = got.unwrap_or_else(|error| format!("ERROR {error}"));
        if got != golden["text"] {
            wrong.push(format!(
                "{}\n--- got\n{got}\n--- expected\n{}",
                golden["name"],
                golden["text"].as_str().unwrap()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), goldens.len(), wrong.join("\n=====\n"));
}

/// The built-in format over `messages`.
fn kanana(messages: Vec<Message>, tools: Option<Vec<Value>>, ending: Ending) -> Result<String> {
    ChatTemplate::built_in().render(&ChatRequest { tools, ending, ..ChatRequest::new(messages) })
}

#[test]
fn kanana_plain_chat() {
    let messages = vec![Message::system(DEFAULT_SYSTEM_PROMPT), Message::user("안녕 \n")];
    let expected = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n\
        You are a helpful AI assistant developed by Kakao.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
        안녕<|eot_id|>";
    let prompt = "<|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(kanana(messages.clone(), None, Ending::Closed).unwrap(), expected);
    assert_eq!(
        kanana(messages.clone(), None, Ending::GenerationPrompt).unwrap(),
        format!("{expected}{prompt}")
    );
    let mut open = messages;
    open.push(Message::assistant("반가"));
    assert_eq!(kanana(open, None, Ending::ContinueFinal).unwrap(), format!("{expected}{prompt}반가"));
}

#[test]
fn kanana_with_tools() {
    let tool = json!({ "type": "function", "function": { "name": "날씨", "description": "도시의 날씨", "parameters": {} } });
    let arguments = json!("{\"도시\": \"서울\"}");
    let call = json!({ "role": "assistant", "content": null,
        "tool_calls": [{ "function": { "name": "날씨", "arguments": arguments } }] });
    let messages = vec![
        Message::system("Be brief."),
        Message::user("서울은?"),
        Message::from_value(call).unwrap(),
        Message::tool("21도"),
        Message::assistant("").with_tool_call("python", json!({ "code": "1+1" })),
    ];
    let text =
        kanana(messages, Some(vec![tool, json!({ "type": "code_interpreter" })]), Ending::Closed).unwrap();
    let head = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n\n\n\n\
        You have access to the following functions:\n\nUse the function '날씨' to '도시의 날씨'\n\
        {\"name\": \"날씨\", \"description\": \"도시의 날씨\", \"parameters\": {}}\n\n";
    let tail = "<|eot_id|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
        <|start_header_id|>user<|end_header_id|>\n\n서울은?<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\n<function=날씨>{\"도시\": \"서울\"}</function><|eom_id|>\
        <|start_header_id|>ipython<|end_header_id|>\n\n21도<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\n<|python_tag|>{\"code\": \"1+1\"}<|eom_id|>";
    assert!(text.starts_with(head), "{text}");
    assert!(text.ends_with(tail), "{text}");
}

#[test]
fn kanana_refuses_what_it_cannot_say() {
    let check = |messages: Vec<Message>, problem: &str| {
        let error = kanana(messages, None, Ending::Closed).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::TemplateRaised { message } if message.contains(problem)),
            "{error}"
        );
    };
    check(vec![Message::new("critic", "no")], "unknown role 'critic'");
    let image = json!({ "role": "user", "content": [{ "type": "image" }] });
    check(vec![Message::from_value(image).unwrap()], "type image");
    let request = ChatRequest { documents: Some(vec![json!({})]), ..ChatRequest::new([]) };
    assert!(matches!(ChatTemplate::built_in().render(&request), Err(TokenizerError::TemplateRaised { .. })));
}

/// A template of functionary's kind, in two dialects: one has the role `tool`, the other only `ipython`.
fn functionary(tool_role: &str) -> String {
    let template = "{{ bos_token }}
{%- for m in messages %}
{%- if m.role in ['system', 'user'] %}
{{- '[' + m.role + ']' + m.content | trim }}
{%- elif m.role == 'TOOL' %}
{{- '[ipython]' + m.content + (' of ' + m.name if m.name else '') }}
{%- elif m.role == 'assistant' %}
{{- '[assistant]' }}{% if m.content %}{{ m.content }}{% endif %}
{%- for call in m.tool_calls or [] %}
{{- '<function=' + call.function.name + '>' + call.function.arguments | tojson + '</function>' }}
{%- endfor %}
{%- else %}{{ raise_exception('role ' + m.role) }}
{%- endif %}
{%- endfor %}";
    template.replace("TOOL", tool_role)
}

/// A conversation as an OpenAI client sends it, through templates that know less than the API.
#[test]
fn openai_messages_reach_every_template() {
    let part = |text: &str| json!({ "type": "text", "text": text });
    let call = |id: &str, name: &str, arguments: &str| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
    let calls = json!([call("a", "weather", "{\"도시\": \"서울\"}"), call("b", "time", "")]);
    let messages = json!([
        { "role": "user", "content": [part("서울"), part("은?")] },
        { "role": "assistant", "content": null, "tool_calls": calls },
        { "role": "tool", "tool_call_id": "b", "content": "12:00" },
        { "role": "tool", "tool_call_id": "a", "content": [part("21도")] },
        { "role": "tool", "tool_call_id": "x", "name": "own", "content": "" },
    ]);
    let request = ChatRequest {
        ending: Ending::Closed,
        messages: from_value(messages).unwrap(),
        ..ChatRequest::default()
    };
    let expected = "[user]서울은?[assistant]<function=weather>{\"도시\": \"서울\"}</function><function=time>{}</function>\
        [ipython]12:00 of time[ipython]21도 of weather[ipython] of own";
    for role in ["tool", "ipython"] {
        assert_eq!(render(&functionary(role), &request).unwrap(), expected, "{role}");
    }
    let text = ChatTemplate::built_in().render(&request).unwrap();
    assert!(text.ends_with("<|start_header_id|>ipython<|end_header_id|>\n\n<|eot_id|>"), "{text}");
    assert!(text.contains("서울은?<|eot_id|>"), "{text}");
}

/// Templates that look into lists of parts see them; what is not all text is left to the template.
#[test]
fn parts_are_joined_only_where_they_must() {
    let check = |source: &str, content: Value, expected: &str| {
        let message = Message::from_value(json!({ "role": "user", "content": content })).unwrap();
        assert_eq!(render(source, &ChatRequest::new([message])).unwrap(), expected, "{source}");
    };
    let parts = json!([{ "type": "text", "text": "a" }, "b"]);
    check("{{ messages[0].content }}", parts.clone(), "ab");
    check("{{ messages[0]['content'] | trim }}", parts.clone(), "ab");
    check("{{ messages[0].content | tojson }}", parts, "\"ab\"");
    let two = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
    check("{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}", two, "[a][b]");
    let image = json!([{ "type": "image" }]);
    check("{{ messages[0].content | length }}{{ messages[0].content[0].type }}", image, "1image");
}

#[test]
fn sources_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let load = || ChatTemplate::from_dir(dir.path());
    let rendered = |tools: Option<Vec<Value>>| {
        load().unwrap().render(&ChatRequest { tools, ..ChatRequest::default() }).unwrap()
    };
    assert_eq!(load().unwrap().origin(), &Origin::BuiltIn);
    write("tokenizer_config.json", r#"{"bos_token": {"content": "<s>"}, "eos_token": null}"#);
    assert_eq!(rendered(None), "<s><|start_header_id|>assistant<|end_header_id|>\n\n");
    write("tokenizer_config.json", r#"{"bos_token": "<s>", "chat_template": "{{ bos_token }}one"}"#);
    assert_eq!(rendered(None), "<s>one");
    let named = json!({ "chat_template": [
        { "name": "default", "template": "plain" }, { "name": "tool_use", "template": "tools" }] });
    write("tokenizer_config.json", &named.to_string());
    assert_eq!((rendered(None), rendered(Some(vec![json!({})]))), ("plain".into(), "tools".into()));
    write("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": "x"}]}"#);
    assert!(load().unwrap_err().to_string().contains("[\"rag\"]"));
    write("tokenizer_config.json", r#"{"chat_template": 3}"#);
    assert!(load().unwrap_err().to_string().contains("chat_template: expected a string or a list"));
    write("chat_template.jinja", "file");
    assert_eq!(rendered(None), "file");
    std::fs::write(dir.path().join("chat_template.jinja"), b"ab\xff").unwrap();
    assert!(matches!(load(), Err(TokenizerError::NotUtf8 { offset: 2, .. })));
}

#[test]
fn broken_templates_are_told_apart() {
    let sample = render_sample;
    assert!(matches!(sample("{% if %}"), Err(TokenizerError::TemplateSyntax { .. })));
    assert!(matches!(sample("{{ nothing.at.all }}"), Err(TokenizerError::TemplateFailed { .. })));
    let raised = sample("{{ raise_exception('no ' ~ messages[0].role) }}").unwrap_err();
    assert!(
        matches!(&raised, TokenizerError::TemplateRaised { message } if message == "no system"),
        "{raised}"
    );
    let within = sample("{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{{ f() }}").unwrap_err();
    assert!(matches!(&within, TokenizerError::TemplateRaised { message } if message == "deep"), "{within}");
    let line = sample("one\ntwo\n{{ 1 + [] }}").unwrap_err().to_string();
    assert!(line.contains(":3"), "{line}");
}

#[test]
fn final_message_that_cannot_be_continued() {
    let check = |source: &str, messages: Vec<Message>| {
        let request = ChatRequest { ending: Ending::ContinueFinal, ..ChatRequest::new(messages) };
        assert!(matches!(render(source, &request), Err(TokenizerError::CannotContinue { .. })), "{source}");
    };
    check("{{ messages }}", vec![]);
    check("{{ messages }}", vec![Message::from_value(json!({ "role": "user", "content": null })).unwrap()]);
    check("nothing", vec![Message::user("hi")]);
}

/// A hostile template ends in an error (or, harmless after all, in text) soon and without taking the process along.
#[test]
fn hostile_templates_are_stopped() {
    let nested =
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let expression = |part: &str, times: usize| format!("{{{{ 1{} }}}}", part.repeat(times));
    let hostile = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}".to_string(),
        "{{ range(1000000000000) }}".into(),
        "{{ range(9223372036854775807, -9223372036854775807, -1) | list }}".into(),
        "{{ 'a' * 1000000000000 }}".into(),
        "{{ [1] * 1000000000000 }}".into(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
        "{{ [1] | tojson(indent=10000000000) }}".into(),
        "{{ ''.join(range(100000) | list * 1000) }}".into(),
        "{{ '{:1000000000}'.format(3) }}".into(),
        "{{ '%1000000000d' | format(3) }}".into(),
        "{{ 'a' | indent(10000000000) }}".into(),
        "{{ ('a' * 10000000).replace('a', 'b' * 10000000) }}".into(),
        "{% set ns = namespace(s='ab') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}".into(),
        format!("{nested}{{{{ ns.x }}}}"),
        format!("{nested}{{{{ ns.x | tojson }}}}"),
        format!("{nested}{{{{ ns.x == [ns.x] }}}}"),
        nested.to_string(),
        expression(" + 1", 50_000),
        expression(" | string", 20_000),
        expression("[0]", 50_000),
        format!("{}{}", "{{ (((((((((((((".repeat(5000), "[".repeat(50_000)),
        "{% if true %}".repeat(15_000),
        "x".repeat(300 << 10),
    ];
    for source in &hostile {
        let start = Instant::now();
        let result = render_sample(source);
        let shown = source.chars().take(80).collect::<String>();
        assert!(start.elapsed() < Duration::from_secs(9), "{shown}: {:?}", start.elapsed());
        assert!(result.is_err() || result.is_ok_and(|text| text.len() < 100 << 20), "{shown}");
    }
}

/// Many small messages are honest work.
#[test]
fn long_conversations_have_fuel() {
    let messages = (0..5000).map(|i| Message::user(format!("{i}: 안녕하세요").repeat(20)));
    let text = ChatTemplate::built_in().render(&ChatRequest::new(messages)).unwrap();
    assert!(text.len() > 5000 * 20 * 15);
}
