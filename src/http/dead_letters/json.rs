//! Dead letters as the API and `--json` give them. Without the right to see persons' data addresses are masked, and the rest
//! of what is personal is null: headers, properties and content are the producer's, and relays repeat addresses.

use serde_json::{Value, json};

use crate::{
    http::messages::address_for,
    store::dead::{DeadCursor, DeadLetter, DeadPage, DeadSummary, Discard},
    wire,
};

/// Bytes that are shown of what is no request.
const START_BYTES: usize = 200;

/// A page of letters.
pub(crate) fn dead_page_json(page: &DeadPage, personal: bool) -> Value {
    json!({
        "items": page.items.iter().map(|letter| dead_summary_json(letter, personal)).collect::<Vec<_>>(),
        "total": page.total,
        "total_is_exact": page.total_is_exact,
        "next": page.next.map(DeadCursor::to_text),
        "searched_since": page.searched_since,
    })
}

/// One letter of a list.
pub(crate) fn dead_summary_json(s: &DeadSummary, personal: bool) -> Value {
    let recipients = listed(s.recipients.as_deref());
    let addresses = recipients.iter().filter_map(|line| words(line, "address"));
    json!({
        "id": s.id, "reason": s.reason, "error": s.error.as_deref().filter(|_| personal), "request_id": s.request_id,
        "source": s.source, "template_key": s.template_key, "lane": s.lane, "attempts": s.attempts, "state": s.state,
        "at": s.at, "recipients": addresses.map(|address| address_for(personal, address)).collect::<Vec<_>>(),
    })
}

/// One letter with its headers, its history and its content.
pub(crate) fn dead_letter_json(letter: &DeadLetter, personal: bool) -> Value {
    let mut all = dead_summary_json(&letter.summary, personal);
    let header = |name: &str| listed(letter.headers.get(name).and_then(Value::as_str));
    all["routing_key"] = json!(letter.routing_key.as_deref().filter(|_| personal));
    all["first_at"] = json!(letter.first_at);
    all["archived_at"] = json!(letter.archived_at);
    all["replayed_at"] = json!(letter.replayed_at);
    all["discard"] = json!(letter.discard.as_ref().map(|discard| discard_json(discard, personal)));
    all["properties"] = json!(Some(&letter.properties).filter(|_| personal));
    all["headers"] = json!(Some(&letter.headers).filter(|_| personal));
    all["history"] = header("x-history").iter().map(|line| step_json(line, personal)).collect();
    all["body_bytes"] = json!(letter.body_bytes);
    all["content"] = if personal { content(letter) } else { Value::Null };
    all
}

/// Who discarded a letter.
pub(crate) fn discard_json(discard: &Discard, personal: bool) -> Value {
    json!({ "by": discard.by, "at": discard.at, "note": discard.note.as_deref().filter(|_| personal) })
}

fn step_json(line: &Value, personal: bool) -> Value {
    if personal {
        return line.clone();
    }
    ["message_id", "at", "kind", "attempt", "relay", "phase", "code"]
        .into_iter()
        .map(|name| (name.to_owned(), line.get(name).cloned().unwrap_or_default()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// What a header of ours lists; one that is no list, such as a producer's own of that name, lists nothing.
pub(crate) fn listed(header: Option<&str>) -> Vec<Value> {
    header.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// What stands under a name, if it is text.
pub(crate) fn words<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The request as JSON with its attachments' bytes left out, or the first bytes of what is no request.
pub(crate) fn content(letter: &DeadLetter) -> Value {
    let Some(body) = &letter.body else { return Value::String("(removed by anonymising)".to_owned()) };
    let content_type = letter.properties.get("content_type").and_then(Value::as_str);
    let request = match content_type {
        Some(wire::JSON) => wire::from_json(body).ok(),
        _ => wire::from_protobuf(body.clone().into()).ok().filter(|r| !r.request_id.is_empty()),
    };
    match request {
        Some(request) => {
            let mut json = wire::to_json(&request);
            for attachment in json.get_mut("attachments").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(inline) = attachment.get_mut("inline") {
                    let bytes = inline.as_str().map_or(0, |text| text.len() / 4 * 3);
                    *inline = json!(format!("({bytes} bytes)"));
                }
            }
            json
        }
        None => {
            let start = String::from_utf8_lossy(&body[..body.len().min(START_BYTES)]).into_owned();
            let shown: String = start.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
            Value::String(if body.len() > START_BYTES { format!("{shown} ...") } else { shown })
        }
    }
}
