//! Function calls in answers: what is a call, what is text, and that pieces give what the whole gives.

#![allow(clippy::unwrap_used)] // tests

use kanana_tokenizer::tools::{Parsed, ParsedCall, ToolEvent, ToolFormat, ToolParser, parse};
use proptest::prelude::*;

use ToolFormat::{Hermes, Kanana, Llama3Json};

const TOOLS: [&str; 4] = ["f", "날씨", "get_weather", "python"];

/// Pushes the pieces; checks the order of events on the way.
fn in_pieces<'a>(format: ToolFormat, tools: &[&str], pieces: impl IntoIterator<Item = &'a str>) -> Parsed {
    let mut parser = ToolParser::new(format, tools.to_vec());
    let mut events: Vec<ToolEvent> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    assert!(parser.finish().is_empty());
    let mut parsed = Parsed { unclosed: parser.unclosed(), ..Parsed::default() };
    for event in events {
        match event {
            ToolEvent::Text(text) => parsed.text += &text,
            ToolEvent::Call { index, name } => {
                assert_eq!(index, parsed.calls.len());
                parsed.calls.push(ParsedCall { name, arguments: String::new() });
            }
            ToolEvent::Arguments { index, delta } => {
                assert!(index + 1 == parsed.calls.len() && !delta.is_empty());
                parsed.calls[index].arguments += &delta;
            }
        }
    }
    parsed
}

/// However the answer is cut, the result is that of the whole.
fn check_cuts(format: ToolFormat, tools: &[&str], answer: &str) -> Parsed {
    let whole = parse(format, tools.to_vec(), answer);
    let chars: Vec<&str> = answer.char_indices().map(|(i, c)| &answer[i..i + c.len_utf8()]).collect();
    assert_eq!(in_pieces(format, tools, chars), whole, "{answer:?} by characters");
    for (cut, _) in answer.char_indices() {
        assert_eq!(
            in_pieces(format, tools, [&answer[..cut], &answer[cut..]]),
            whole,
            "{answer:?} cut at {cut}"
        );
    }
    whole
}

fn check(format: ToolFormat, answer: &str, text: &str, calls: &[(&str, &str)]) {
    let parsed = check_cuts(format, &TOOLS, answer);
    let got: Vec<(&str, &str)> = parsed.calls.iter().map(|call| (&*call.name, &*call.arguments)).collect();
    assert_eq!((&*parsed.text, &*got, parsed.unclosed), (text, calls, false), "{format}: {answer:?}");
}

/// The answer is text to the last character.
fn check_text(format: ToolFormat, answer: &str) {
    check(format, answer, answer, &[]);
}

/// The answer ends within its last call.
fn check_unclosed(format: ToolFormat, answer: &str, arguments: &str) {
    let parsed = check_cuts(format, &TOOLS, answer);
    assert!(parsed.unclosed, "{format}: {answer:?}");
    assert_eq!(parsed.calls.last().unwrap().arguments, arguments, "{format}: {answer:?}");
}

#[test]
fn names_and_detection() {
    for format in ToolFormat::ALL {
        assert_eq!(format.to_string().parse::<ToolFormat>().unwrap(), format);
    }
    let error = "mistral".parse::<ToolFormat>().unwrap_err().to_string();
    assert_eq!(error, "tools: format: expected kanana, llama3_json, hermes, got \"mistral\"");
    let check = |template: &str, expected| assert_eq!(ToolFormat::detect(template), expected, "{template}");
    let built_in = kanana_tokenizer::ChatTemplate::built_in();
    check(built_in.source(true), Some(Kanana));
    check(r#"{{ '<tool_call>\n{"name": "' + call.name }}, "parameters": "#, Some(Hermes));
    check(r#"{{ '{"name": "' + call.name + '", ' + '"parameters": ' }}"#, Some(Llama3Json));
    check(r#"{{ "{\"name\": name, \"parameters\": values}" }}"#, Some(Llama3Json));
    check("<tool_call>\n<function=f>\n<parameter=a>", None);
    check("{% for m in messages %}{{ m.content }}{% endfor %}", None);
}

#[test]
fn kanana_calls() {
    let check = |answer: &str, text: &str, calls: &[(&str, &str)]| check(Kanana, answer, text, calls);
    check("<function=f>{\"a\": 1}</function>", "", &[("f", "{\"a\": 1}")]);
    check("<function=f>{}</function><|eom_id|>", "", &[("f", "{}")]);
    check("<function=f>{}</function><|eom_id|><|eot_id|>", "", &[("f", "{}")]);
    let hangul = "{\"도시\": \"서울 😀 {[\\\" \\\\\"}";
    check(&format!("네. <function=날씨>{hangul}</function>"), "네. ", &[("날씨", hangul)]);
    let quoted = "{\"a\": \"</function>\\\"</function>\"}";
    check(&format!("<function=f>{quoted}</function>!"), "!", &[("f", quoted)]);
    check(
        "<function=f>{}</function>\n<function=f>[</function>",
        "\n<function=f>[</function>",
        &[("f", "{}")],
    );
    check(
        "\n<function=f>{}</function>\n<function=날씨>{ }</function>\n",
        "",
        &[("f", "{}"), ("날씨", "{ }")],
    );
    check("<function=f> {\"a\": 1} </function> b", " b", &[("f", "{\"a\": 1}")]);
    check("<function=f>{\"a\": 1 oops}}</fun</function>", "", &[("f", "{\"a\": 1 oops}}</fun")]);
    check("<<function=<function=f>{}</function>", "<<function=", &[("f", "{}")]);
    check("<function=g>{}</function><function=f>{}</function>", "<function=g>{}</function>", &[("f", "{}")]);
    check(
        "a<|python_tag|>print(\"<function=f>\")\n<|eom_id|>",
        "a",
        &[("python", "print(\"<function=f>\")\n")],
    );
    check("<|python_tag|>{\"code\": \"1\"}", "", &[("python", "{\"code\": \"1\"}")]);
    check("<function=f>{}</function><|python_tag|>1", "", &[("f", "{}"), ("python", "1")]);
}

#[test]
fn kanana_text() {
    for answer in [
        "",
        " ",
        "안녕 😀",
        "<",
        "<func",
        "<function=",
        "<function=f",
        "<function=f>",
        "<function=f> ",
        "<function=ff>{}",
        "<function=f>text</function>",
        "<function=f></function>",
        "<function=f{}",
        "<function>f</function>",
        "a <b> c",
        "<function=\n",
        "<|eom",
        "a<|eot_id|>b",
        "<|python_ta",
        "{\"name\": \"f\", \"parameters\": {}}",
    ] {
        check_text(Kanana, answer);
    }
    check(Kanana, "a<|eot_id|>b<|eot_id|>", "a<|eot_id|>b", &[]);
    assert_eq!(check_cuts(Kanana, &["f"], "<|python_tag|>1").text, "<|python_tag|>1");
    let any = check_cuts(Kanana, &[], "<function=anything>{}</function><function=a b>{}</function>");
    assert_eq!((any.calls.len(), &*any.text), (1, "<function=a b>{}</function>"));
}

#[test]
fn llama_calls() {
    let check = |answer: &str, text: &str, calls: &[(&str, &str)]| check(Llama3Json, answer, text, calls);
    check(
        "{\"name\": \"f\", \"parameters\": {\"a\": [1, {\"b\": \"}\"}]}}",
        "",
        &[("f", "{\"a\": [1, {\"b\": \"}\"}]}")],
    );
    check("<|python_tag|>{\"name\":\"날씨\",\"arguments\":{}}<|eom_id|>", "", &[("날씨", "{}")]);
    check("\n{ \"type\" : \"function\", \"name\" : \"f\" , \"parameters\" : { } } \n", "", &[("f", "{ }")]);
    check("{\"parameters\": {\"a\": \"\\\"😀\"}, \"name\": \"f\"}", "", &[("f", "{\"a\": \"\\\"😀\"}")]);
    check("{\"n\\u0061me\": \"\\ub0a0씨\", \"parameters\": {}}", "", &[("날씨", "{}")]);
    let (one, two) =
        ("{\"name\": \"f\", \"parameters\": {}}", "{\"name\": \"날씨\", \"parameters\": {\"a\": 1}}");
    let calls = [("f", "{}"), ("날씨", "{\"a\": 1}")];
    for answer in [
        format!("{one};{two}"),
        format!("{one}; {two};"),
        format!("{one}\n{two}\n"),
        format!("[{one}, {two}]"),
        format!(" [ {one} , {two} ] <|eot_id|>"),
        format!("<|python_tag|>{one};<|python_tag|>{two}"),
    ] {
        check(&answer, "", &calls);
    }
    check(&format!("{one} and text {two}"), &format!(" and text {two}"), &calls[..1]);
    check(&format!("[{one}] and text"), " and text", &calls[..1]);
    check(&format!("{one}; {{\"a\": 1}}"), "; {\"a\": 1}", &calls[..1]);
    check("{\"name\": \"f\", \"parameters\": {\"a\": [1}} x", "}} x", &[("f", "{\"a\": [1")]);
    check("{\"name\": \"f\", \"parameters\": {} oops", "oops", &[("f", "{}")]);
}

#[test]
fn llama_text() {
    for answer in [
        "",
        "\n",
        "안녕 {\"name\": \"f\", \"parameters\": {}}",
        "{",
        "{}",
        "{\"a\": 1}",
        "[1, 2]",
        "[]",
        "[",
        "[{\"a\": 1}]",
        "{\"name\": \"g\", \"parameters\": {}}",
        "{\"name\": \"f\"}",
        "{\"name\": \"f\", \"parameters\": \"x\"}",
        "{\"name\": \"f\", \"name\": \"f\", \"parameters\": {}}",
        "{\"name\": 3, \"parameters\": {}}",
        "{name: f}",
        "{\"name\": \"f\", \"parameters\": null}",
        "{\"parameters\": {}, \"x\": 1}",
        "<|python_tag|>print(1)",
        "<|python",
        "{\"name\" \"f\"}",
        "<function=f>{}</function>",
        ";",
        ",{",
        "{\"parameters\": {\"a\": 1}",
        "{\"parameters\": {]}}",
    ] {
        check_text(Llama3Json, answer);
    }
}

#[test]
fn hermes_calls() {
    let check = |answer: &str, text: &str, calls: &[(&str, &str)]| check(Hermes, answer, text, calls);
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}\n</tool_call>";
    let calls = [("f", "{\"a\": \"</tool_call>\"}"), ("날씨", "{}")];
    check(one, "", &calls[..1]);
    check(&format!("네, {one}<|im_end|>"), "네, ", &calls[..1]);
    let two = "<tool_call>{\"arguments\":{},\"name\":\"날씨\"}</tool_call>";
    check(&format!("{one}\n{two}\n"), "", &calls);
    check(&format!("{one} 그리고 {two}."), " 그리고 .", &calls);
    check("<tool_call>{\"name\": \"f\", \"arguments\": {}}", "", &[("f", "{}")]);
    check("<tool_call>{\"name\": \"f\", \"arguments\": {}}\n</tool", "", &[("f", "{}")]);
    check(
        "<tool_call>{\"name\": \"f\", \"arguments\": {}} x </tool_call>",
        " x </tool_call>",
        &[("f", "{}")],
    );
    let unclosed = "<tool_call>{\"name\": \"f\", \"arguments\": {}}\n";
    check(&format!("{unclosed}{two}"), "", &[("f", "{}"), ("날씨", "{}")]);
    check("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1</tool_call>.", ".", &[("f", "{\"a\": 1")]);
    check(
        &format!("<tool_call>{{\"a\": 1}}</tool_call>{two}"),
        "<tool_call>{\"a\": 1}</tool_call>",
        &calls[1..],
    );
}

#[test]
fn hermes_text() {
    for answer in [
        "",
        " ",
        "<tool",
        "<tool_call>",
        "<tool_call>\n",
        "<tool_call>\n{\"na",
        "<tool_call>f()</tool_call>",
        "</tool_call>",
        "<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>",
        "<tool_call>[{\"name\": \"f\", \"arguments\": {}}]",
        "{\"name\": \"f\", \"arguments\": {}}",
    ] {
        check_text(Hermes, answer);
    }
}

#[test]
fn answers_that_end_within_a_call() {
    check_unclosed(Kanana, "<function=f>{\"도시\": \"서", "{\"도시\": \"서");
    check_unclosed(Kanana, "<function=f>{\"a\": 1}", "{\"a\": 1}");
    check_unclosed(Kanana, "<function=f>{\"a\": 1} </func", "{\"a\": 1}");
    check_unclosed(Kanana, "<function=f>{\"a\": \"x}</function> text", "{\"a\": \"x}</function> text");
    check_unclosed(Kanana, "<function=f>{}</function><function=f>{", "{");
    check_unclosed(Llama3Json, "{\"name\": \"f\", \"parameters\": {\"a\": [", "{\"a\": [");
    check_unclosed(Llama3Json, "{\"name\": \"f\", \"parameters\": {}", "{}");
    check_unclosed(Hermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\"", "{\"a\"");
}

/// What has been read is known at once, where it can be.
#[test]
fn nothing_is_held_longer_than_it_must() {
    let check = |format: ToolFormat, pieces: &[(&str, &[ToolEvent])]| {
        let mut parser = ToolParser::new(format, TOOLS);
        for (piece, events) in pieces {
            assert_eq!(&parser.push(piece), events, "{piece:?}");
        }
    };
    let text = |text: &str| ToolEvent::Text(text.into());
    let call = |name: &str| ToolEvent::Call { index: 0, name: name.into() };
    let arguments = |delta: &str| ToolEvent::Arguments { index: 0, delta: delta.into() };
    check(
        Kanana,
        &[
            ("안녕 <", &[text("안녕 ")]),
            ("b> <function=", &[text("<b> ")]),
            ("f>", &[]),
            ("{\"a\": ", &[call("f"), arguments("{\"a\":")]),
            ("\"서", &[arguments(" \"서")]),
            ("울</", &[arguments("울</")]),
            ("\"}", &[arguments("\"}")]),
            ("</function>", &[]),
            (" 끝", &[text(" 끝")]),
        ],
    );
    check(Kanana, &[("<function=x", &[text("<function=x")])]);
    check(Kanana, &[("<|python_tag|>", &[call("python")]), ("1", &[arguments("1")])]);
    check(
        Llama3Json,
        &[
            ("{\"name\": \"f\", \"parameters\": ", &[]),
            ("{\"a", &[call("f"), arguments("{\"a")]),
            ("\": {}}", &[arguments("\": {}}")]),
            ("}", &[]),
        ],
    );
    check(Llama3Json, &[("{\"result", &[]), ("\"", &[text("{\"result\"")]), (": <", &[text(": ")])]);
    check(Hermes, &[("<tool_call>\n{\"name\": \"f\", \"arguments\": {", &[call("f"), arguments("{")])]);
}

/// A call that would have to be held for long is text, and comes out before the answer ends.
#[test]
fn no_more_is_held_than_a_limit() {
    let answer = format!("{{\"parameters\": {{\"a\": \"{}\"}}, \"name\": \"f\"}}", "x".repeat(17_000));
    let mut parser = ToolParser::new(Llama3Json, TOOLS);
    assert!(!parser.push(&answer[..17_000]).is_empty());
    assert_eq!(parse(Llama3Json, TOOLS, &answer).text, answer);
}

/// Answers of a model that has lost itself take time in proportion to their length.
#[test]
fn long_answers_are_read_in_linear_time() {
    let blanks = " ".repeat(200_000);
    for (format, answer) in [
        (Kanana, format!("<function=f>{{{blanks}")),
        (Kanana, format!("<function=f>{blanks}")),
        (Kanana, format!("<function=f>{{}}{blanks}x")),
        (Hermes, format!("<tool_call>{{\"name\": \"f\", \"arguments\": {{}}}}{blanks}x")),
        (Hermes, "<tool_call>{\"arguments\": {\"".repeat(8_000)),
        (Llama3Json, format!("[{blanks}{{")),
        (Kanana, "<|eot_id|>".repeat(20_000)),
        (Kanana, "<function=".repeat(20_000)),
    ] {
        let start = std::time::Instant::now();
        let whole = parse(format, TOOLS, &answer);
        let chars: Vec<&str> = answer.split_inclusive(|_| true).collect();
        assert_eq!(in_pieces(format, &TOOLS, chars), whole);
        let shown = answer.chars().take(50).collect::<String>();
        assert!(
            start.elapsed() < std::time::Duration::from_secs(5),
            "{format} {shown}: {:?}",
            start.elapsed()
        );
    }
}

/// Fragments that answers are made of, so that random ones come near to calls.
const FRAGMENTS: &[&str] = &[
    "<function=",
    "f",
    ">",
    "{",
    "}",
    "</function>",
    "<",
    "\"",
    "\\",
    "서울",
    "😀",
    " ",
    "\n",
    "<|python_tag|>",
    "<|eom_id|>",
    "<tool_call>",
    "</tool_call>",
    "{\"name\": \"f\", ",
    "\"arguments\": {",
    "\"parameters\": ",
    "[",
    "]",
    ";",
    ",",
    "<function=f>{",
    "\"name\"",
    ":",
    "{\"name\": \"f\", \"parameters\": {\"a\": 1}}",
    "<tool_call>{\"name\": \"f\", \"arguments\": {}}",
    "<function=f>{}</function>",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn pieces_give_what_the_whole_gives(
        picked in prop::collection::vec(prop::sample::select(FRAGMENTS), 0..16),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let answer = picked.concat();
        let places: Vec<usize> = answer.char_indices().map(|(i, _)| i).chain([answer.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| places[cut.index(places.len())]).collect();
        cuts.sort_unstable();
        let ends = cuts.iter().copied().chain([answer.len()]);
        let pieces: Vec<&str> = ends.scan(0, |from, to| Some(&answer[std::mem::replace(from, to)..to])).collect();
        for format in ToolFormat::ALL {
            let whole = parse(format, TOOLS, &answer);
            prop_assert_eq!(&in_pieces(format, &TOOLS, pieces.iter().copied()), &whole, "{:?}", pieces);
            let chars: Vec<String> = answer.chars().map(String::from).collect();
            prop_assert_eq!(&in_pieces(format, &TOOLS, chars.iter().map(|c| &**c)), &whole);
            if whole.calls.is_empty() {
                let end = ["<|eom_id|>"];
                prop_assert_eq!(whole.text.as_str(), answer.trim_end_matches(end[0]), "nothing is lost");
            }
        }
    }
}
