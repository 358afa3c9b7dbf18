//! The events of a streamed response: an item is added, grows and is done, one after the other.

use axum::response::Response;
use futures_util::StreamExt;
use futures_util::stream::{self, Stream};
use kanana_tokenizer::tools::ToolEvent;
use serde_json::{Value, json};

use super::responses::{Frame, Names, function_call, message, status, text_part};
use crate::error::ApiResult;
use crate::generation::{Call, Delta, Deltas, Finish, Whole};
use crate::ids::fresh_id;
use crate::sse;

type Named = (&'static str, Value);

/// The answer as events.
pub(super) fn response(frame: Frame, deltas: Deltas, prompt_tokens: usize) -> Response {
    sse::named(events(frame, deltas, prompt_tokens))
}

fn events(frame: Frame, deltas: Deltas, prompt_tokens: usize) -> impl Stream<Item = Named> + Send {
    let mut made =
        Made { frame, prompt_tokens, sequence: 0, total: Whole::default(), items: Vec::new(), open: None };
    let response = made.frame.begun();
    let begun = vec![
        made.event("response.created", json!({"response": response})),
        made.event("response.in_progress", json!({"response": response})),
    ];
    let body = stream::unfold((made, Some(deltas)), |(mut made, deltas)| async move {
        let mut deltas = deltas?;
        let (events, ended) = match deltas.next().await {
            Some((_, delta)) => made.accept(delta),
            None => return None,
        };
        Some((stream::iter(events), (made, (!ended).then_some(deltas))))
    });
    stream::iter(begun).chain(body.flatten())
}

/// What was told so far.
struct Made {
    frame: Frame,
    prompt_tokens: usize,
    sequence: usize,
    total: Whole,
    /// Items that are done.
    items: Vec<Value>,
    open: Option<Open>,
}

/// The item that grows.
enum Open {
    Message { id: String, text: String },
    Call { names: Names, call: Call },
}

impl Made {
    fn event(&mut self, name: &'static str, mut fields: Value) -> Named {
        fields["type"] = json!(name);
        fields["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        (name, fields)
    }

    /// The events of a delta, and whether it was the last.
    fn accept(&mut self, delta: ApiResult<Delta>) -> (Vec<Named>, bool) {
        let mut events = Vec::new();
        let delta = match delta {
            Ok(delta) => delta,
            Err(error) => {
                let response = self.frame.failed(&error);
                events.push(self.event("response.failed", json!({"response": response})));
                return (events, true);
            }
        };
        self.total.tokens.extend(&delta.tokens);
        self.total.cached_tokens += delta.cached_tokens;
        if !delta.text.is_empty() {
            self.text(&delta.text, &mut events);
        }
        for event in &delta.calls {
            self.call(event, &mut events);
        }
        let Some(finish) = delta.finish else { return (events, false) };
        self.total.finish = Some(finish);
        if self.items.is_empty() && self.open.is_none() {
            self.text("", &mut events); // an answer without a word is still a message
        }
        self.close(status(Some(finish)), &mut events);
        let response = self.frame.of(&self.total, self.prompt_tokens, self.items.clone());
        let name = if finish == Finish::Length { "response.incomplete" } else { "response.completed" };
        events.push(self.event(name, json!({"response": response})));
        (events, true)
    }

    fn text(&mut self, delta: &str, events: &mut Vec<Named>) {
        if !matches!(self.open, Some(Open::Message { .. })) {
            self.close("completed", events);
            let (id, index) = (fresh_id("msg_"), self.items.len());
            let item = message(&id, "in_progress", None);
            events
                .push(self.event("response.output_item.added", json!({"output_index": index, "item": item})));
            let part =
                json!({"item_id": id, "output_index": index, "content_index": 0, "part": text_part("")});
            events.push(self.event("response.content_part.added", part));
            self.open = Some(Open::Message { id, text: String::new() });
        }
        let index = self.items.len();
        let Some(Open::Message { id, text }) = &mut self.open else { return };
        text.push_str(delta);
        if !delta.is_empty() {
            let fields = json!({
                "item_id": id, "output_index": index, "content_index": 0, "delta": delta, "logprobs": [],
            });
            events.push(self.event("response.output_text.delta", fields));
        }
    }

    fn call(&mut self, event: &ToolEvent, events: &mut Vec<Named>) {
        match event {
            ToolEvent::Text(text) => self.text(text, events),
            ToolEvent::Call { name, .. } => {
                self.close("completed", events);
                let (names, call) = (Names::fresh(), Call { name: name.clone(), arguments: String::new() });
                let fields = json!({
                    "output_index": self.items.len(), "item": function_call(&names, "in_progress", &call),
                });
                events.push(self.event("response.output_item.added", fields));
                self.open = Some(Open::Call { names, call });
            }
            ToolEvent::Arguments { delta, .. } => {
                let index = self.items.len();
                let Some(Open::Call { names, call }) = &mut self.open else { return };
                call.arguments += delta;
                let fields = json!({"item_id": names.item, "output_index": index, "delta": delta});
                events.push(self.event("response.function_call_arguments.delta", fields));
            }
        }
    }

    /// Ends the item that grows.
    fn close(&mut self, status: &str, events: &mut Vec<Named>) {
        let index = self.items.len();
        let item = match self.open.take() {
            None => return,
            Some(Open::Message { id, text }) => {
                let at = |fields: Value| {
                    let mut fields = fields;
                    fields["item_id"] = json!(id);
                    fields["output_index"] = json!(index);
                    fields["content_index"] = json!(0);
                    fields
                };
                events
                    .push(self.event("response.output_text.done", at(json!({"text": text, "logprobs": []}))));
                events.push(self.event("response.content_part.done", at(json!({"part": text_part(&text)}))));
                message(&id, status, Some(&text))
            }
            Some(Open::Call { names, call }) => {
                let fields = json!({
                    "item_id": names.item, "output_index": index, "name": call.name, "arguments": call.arguments,
                });
                events.push(self.event("response.function_call_arguments.done", fields));
                function_call(&names, status, &call)
            }
        };
        events.push(self.event("response.output_item.done", json!({"output_index": index, "item": item})));
        self.items.push(item);
    }
}
