//! How the twin answers requests.

use std::{collections::BTreeMap, convert::Infallible, future::pending, sync::Arc};

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Collected, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::{Body as HttpBody, Bytes, Frame},
    header::{AUTHORIZATION, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};

use super::{Fault, Shared, objects::Logged};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Serves the connections of a listener, for ever.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, request).await) }
            });
            // A client that goes away is its own business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

/// What a request asks for.
struct Asked {
    method: Method,
    path: String,
    /// The object, if the path ends with its name.
    name: Option<String>,
    query: BTreeMap<String, String>,
    body: Value,
}

/// The answer to one request.
pub(super) async fn answer(shared: &Arc<Shared>, request: Request<impl HttpBody>) -> Answer {
    let (parts, body) = request.into_parts();
    let (fault, token) = {
        let mut state = shared.lock();
        state.requests.push(format!("{} {}", parts.method, parts.uri));
        (state.fault.clone(), format!("Bearer {}", state.token))
    };
    match fault {
        Fault::None => {}
        Fault::Refuses { code, retry_after } => return busy(code, retry_after),
        Fault::LacksBackend(path) if parts.uri.path().starts_with(path) => {
            return whole(503, "service unavailable\n".into());
        }
        Fault::LacksBackend(_) => {}
        Fault::Hangs => pending().await,
        Fault::Slow(time) => sleep(time).await,
        Fault::Babbles => return whole(200, "<html>It works!</html>".into()),
    }
    if parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) != Some(&token) {
        return refuse(401, "Unauthorized", None);
    }
    let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
    let kinds = shared.lock().kinds.clone();
    let path = parts.uri.path();
    let (path, name) = match path.rsplit_once('/') {
        Some((collection, name)) if !kinds.contains(path) => (collection.to_owned(), Some(name.to_owned())),
        _ => (path.to_owned(), None),
    };
    if !kinds.contains(&path) {
        return whole(404, "404 page not found\n".into());
    }
    let query = parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let query = query.map(|(key, value)| (decode(key), decode(value))).collect();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let asked = Asked { method: parts.method, path, name, query, body };
    if asked.query.contains_key("watch") { watched(shared, &asked) } else { changed(shared, &asked) }
}

/// Reads or writes.
fn changed(shared: &Shared, asked: &Asked) -> Answer {
    let Asked { path, query, body, .. } = asked;
    let name = asked.name.as_deref();
    let result = match (&asked.method, name) {
        (&Method::GET, None) => return listed(shared, asked),
        (&Method::GET, Some(name)) => shared.lock().objects.get(path, name).cloned().ok_or(404),
        (&Method::POST, None) => shared.change(|state| state.objects.create(path, body.clone())),
        (&Method::PUT, Some(name)) => shared.change(|state| state.objects.replace(path, name, body.clone())),
        (&Method::PATCH, Some(name)) => shared.change(|state| state.objects.merge(path, name, body)),
        (&Method::DELETE, Some(name)) => shared.change(|state| state.objects.remove(path, name).ok_or(404)),
        _ => Err(405),
    };
    match result {
        Ok(object) => whole(200, object.to_string()),
        Err(code) => refuse(code, &format!("{} {path} {query:?} is refused", asked.method), name),
    }
}

fn listed(shared: &Shared, asked: &Asked) -> Answer {
    let limit = asked.query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let next = asked.query.get("continue").map(String::as_str);
    let page = shared.lock().objects.page(&asked.path, |object| asked.selects(object), limit, next);
    match page {
        Ok((version, items, next)) => {
            let metadata =
                json!({"resourceVersion": version.to_string(), "continue": next.unwrap_or_default()});
            whole(200, json!({"kind": "List", "metadata": metadata, "items": items}).to_string())
        }
        Err(code) => refuse(code, "The provided continue parameter is too old", None),
    }
}

/// The state of an answer that goes on.
struct Watched {
    number: u64,
    shared: Arc<Shared>,
    ticks: tokio::sync::watch::Receiver<u64>,
    asked: (String, BTreeMap<String, String>),
    after: u64,
    generation: u64,
    bookmarks: u64,
    is_over: bool,
}

fn watched(shared: &Arc<Shared>, asked: &Asked) -> Answer {
    let after = asked.query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let mut state = shared.lock();
    state.watches += 1;
    let watched = Watched {
        number: state.watches,
        shared: Arc::clone(shared),
        ticks: shared.ticks.subscribe(),
        asked: (asked.path.clone(), asked.query.clone()),
        after,
        generation: state.generation,
        bookmarks: state.bookmarks,
        is_over: false,
    };
    drop(state);
    let lines = stream::unfold(watched, async |mut watched| {
        let lines = watched.lines().await?;
        Some((lines, watched))
    });
    let frames = lines.map(|lines| Ok(Frame::data(Bytes::from(lines))));
    Response::new(UnsyncBoxBody::new(StreamBody::new(frames)))
}

impl Watched {
    /// What happens next, as lines; nothing when the watch is over.
    async fn lines(&mut self) -> Option<String> {
        loop {
            if self.is_over {
                return None;
            }
            let lines = self.news();
            if lines.is_empty() && !self.is_over {
                self.ticks.changed().await.ok()?;
            } else if !lines.is_empty() {
                return Some(lines);
            }
        }
    }

    fn news(&mut self) -> String {
        let (path, query) = &self.asked;
        let state = self.shared.lock();
        self.ticks.mark_unchanged();
        if state.generation != self.generation {
            self.is_over = true;
            return String::new();
        }
        if self.number <= state.muted {
            return String::new();
        }
        let mut lines = String::new();
        let mut say = |kind: &str, object: &Value| {
            lines += &json!({"type": kind, "object": object}).to_string();
            lines.push('\n');
        };
        match state.objects.since(path, self.after) {
            Ok(changes) => {
                for Logged { version, kind, object, .. } in changes {
                    self.after = version;
                    if selects(query, &object) {
                        say(kind, &object);
                    }
                }
            }
            Err(code) => {
                say("ERROR", &status(code, "too old resource version", None));
                self.is_over = true;
            }
        }
        if state.bookmarks != self.bookmarks {
            self.bookmarks = state.bookmarks;
            if self.after <= state.objects.version() {
                self.after = state.objects.version();
                say("BOOKMARK", &json!({"metadata": {"resourceVersion": self.after.to_string()}}));
            }
        }
        lines
    }
}

impl Asked {
    fn selects(&self, object: &Value) -> bool {
        selects(&self.query, object)
    }
}

/// Whether the selectors of a request choose an object: `metadata.name=NAME`, and `LABEL=VALUE`.
fn selects(query: &BTreeMap<String, String>, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let by_name = query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
    let by_label = query.get("labelSelector").and_then(|selector| selector.split_once('='));
    by_name.is_none_or(|name| metadata["name"] == name)
        && by_label.is_none_or(|(label, value)| metadata["labels"][label] == value)
}

/// The answer of a server, or of what is in front of it, that takes no requests now. The queues of the real one answer
/// 429 as text.
fn busy(code: u16, retry_after: Option<u64>) -> Answer {
    let mut answer = whole(code, "Too many requests, please try again later.\n".into());
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    answer
}

fn refuse(code: u16, message: &str, name: Option<&str>) -> Answer {
    whole(code, status(code, message, name).to_string())
}

fn status(code: u16, message: &str, name: Option<&str>) -> Value {
    let details = name.map_or_else(|| json!({}), |name| json!({"name": name}));
    json!({"kind": "Status", "status": "Failure", "message": message, "code": code, "details": details})
}

fn whole(code: u16, body: String) -> Answer {
    let mut answer = Response::new(UnsyncBoxBody::new(Full::new(Bytes::from(body))));
    *answer.status_mut() = code.try_into().unwrap();
    answer
}

/// A part of a query without its percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                let digits = std::str::from_utf8(&digits).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}
