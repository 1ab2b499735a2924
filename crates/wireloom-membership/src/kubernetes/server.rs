//! Requests to the API server: one attempt each, within a bound, with errors that name the fix.

use std::{sync::Mutex, time::Duration};

use http_body_util::{BodyExt, Limited};
use kube::{
    Client,
    client::Body,
    core::{
        Request, Status,
        params::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, WatchParams},
    },
};
use serde_json::Value;
use tokio::time::timeout;

use super::credentials::{Credentials, chain};
use crate::store::{StoreError, StoreProblem};

/// How long an answer may take. The server gives up lists after a minute (`--request-timeout`); a page of 500 objects
/// takes it well below a second.
const ANSWER: Duration = Duration::from_secs(20);

/// How many bytes an answer may have. Etcd stores no object above 1.5 MiB, and a page of 500 of our records has less
/// than a megabyte.
const ANSWER_BYTES: usize = 64 << 20;

/// The fix for a kind that the server does not know.
const NO_SUCH_KIND: &str =
    "the server does not know this kind; apply it: kubectl apply -k deploy/kubernetes/crds";

/// The API server, as this node's credentials show it.
pub(crate) struct ApiServer {
    credentials: Credentials,
    connected: Mutex<Option<Connected>>,
}

#[derive(Clone)]
struct Connected {
    client: Client,
    url: String,
}

/// What is asked of the server.
pub(crate) enum Call<'a> {
    List(&'a ListParams),
    /// As `List`, with the objects' metadata alone.
    ListMetadata(&'a ListParams),
    /// What changes after a version.
    Watch(&'a WatchParams, u64),
    /// As `Watch`, with the objects' metadata alone.
    WatchMetadata(&'a WatchParams, u64),
    Get(&'a str),
    Create(&'a Value),
    /// Writes an object whole; the version in its metadata must be the current one.
    Replace(&'a str, &'a Value),
    /// Changes the fields that a JSON merge patch names.
    Merge(&'a str, &'a Value),
    Delete(&'a str),
}

impl ApiServer {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, connected: Mutex::new(None) }
    }

    /// Reads the credentials, if that has not been done, and returns the server's URL. Whether the server takes them
    /// shows with the first request.
    ///
    /// # Errors
    /// [`StoreProblem::Denied`], with the file and the fix.
    pub(super) async fn connect(&self) -> Result<String, StoreError> {
        self.connected().await.map(|connected| connected.url)
    }

    /// The answer to a request, as JSON. `what` completes "cannot …", such as "list the WireloomNodes".
    ///
    /// # Errors
    /// Each [`StoreProblem`]. [`StoreProblem::Nonsense`] if the object or its kind is not there.
    pub(crate) async fn ask(&self, path: &str, call: Call<'_>, what: &str) -> Result<Value, StoreError> {
        let connected = self.connected().await?;
        let answer = connected.ask(path, &call).await.and_then(|body| json(&body));
        answer.map_err(|failure| self.error(&connected, what, failure))
    }

    /// Whether the server knows the kind of which objects are there.
    ///
    /// # Errors
    /// As [`ApiServer::ask`], but for the kind's absence.
    pub(crate) async fn knows(&self, path: &str, what: &str) -> Result<bool, StoreError> {
        let connected = self.connected().await?;
        match connected.ask(path, &Call::List(&first())).await {
            Err(Failure::Refused { status, .. }) if status.code == 404 => Ok(false),
            answer => answer.map(|_| true).map_err(|failure| self.error(&connected, what, failure)),
        }
    }

    /// How many objects are there.
    ///
    /// # Errors
    /// As [`ApiServer::ask`].
    pub(crate) async fn count(&self, path: &str, what: &str) -> Result<usize, StoreError> {
        let list = self.ask(path, Call::List(&first()), what).await?;
        let items = list["items"].as_array().map_or(0, Vec::len);
        let others = list["metadata"]["remainingItemCount"].as_u64().unwrap_or_default();
        Ok(items.saturating_add(usize::try_from(others).unwrap_or(usize::MAX)))
    }

    /// An object, if it is there.
    ///
    /// # Errors
    /// As [`ApiServer::ask`], but for its absence.
    pub(super) async fn get(&self, path: &str, name: &str, what: &str) -> Result<Option<Value>, StoreError> {
        let connected = self.connected().await?;
        match connected.ask(path, &Call::Get(name)).await.and_then(|body| json(&body)) {
            Err(failure) if failure.is_absence() => Ok(None),
            answer => answer.map(Some).map_err(|failure| self.error(&connected, what, failure)),
        }
    }

    /// Deletes an object. One that is not there is no error.
    ///
    /// # Errors
    /// As [`ApiServer::ask`], but for its absence.
    pub(super) async fn delete(&self, path: &str, name: &str, what: &str) -> Result<(), StoreError> {
        let connected = self.connected().await?;
        match connected.ask(path, &Call::Delete(name)).await {
            Err(failure) if !failure.is_absence() => Err(self.error(&connected, what, failure)),
            _ => Ok(()),
        }
    }

    /// The body of a watch, and the operation for its errors.
    ///
    /// # Errors
    /// As [`ApiServer::ask`].
    pub(super) async fn watch(
        &self,
        path: &str,
        call: Call<'_>,
        what: &str,
    ) -> Result<(Body, String), StoreError> {
        let connected = self.connected().await?;
        match connected.open(path, &call).await {
            Ok(body) => Ok((body, connected.operation(what))),
            Err(failure) => Err(self.error(&connected, what, failure)),
        }
    }

    async fn connected(&self) -> Result<Connected, StoreError> {
        let connected = self.lock().clone();
        if let Some(connected) = connected {
            return Ok(connected);
        }
        let (client, url) = self.credentials.client().await?;
        let connected = Connected { client, url };
        *self.lock() = Some(connected.clone());
        Ok(connected)
    }

    /// What a failure means. After one that the credentials may explain, their files are read anew.
    fn error(&self, connected: &Connected, what: &str, failure: Failure) -> StoreError {
        let problem = failure.problem();
        if matches!(problem, StoreProblem::Denied { .. }) {
            *self.lock() = None;
        }
        StoreError { operation: connected.operation(what), problem }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Connected>> {
        self.connected.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Why there is no answer.
enum Failure {
    /// The server said so.
    Refused { status: Box<Status>, retry_after: Option<Duration> },
    /// It could not be asked, or did not say all.
    Broken(String),
    /// The answer makes no sense.
    Nonsense(String),
}

impl Failure {
    fn late() -> Self {
        Self::Broken(format!("no answer within {} s", ANSWER.as_secs()))
    }

    fn broken(error: &dyn std::error::Error) -> Self {
        Self::Broken(chain(error))
    }

    /// Whether the kind exists, but not the object.
    fn is_absence(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code == 404 && names_an_object(status))
    }

    fn problem(self) -> StoreProblem {
        match self {
            Self::Refused { status, retry_after } => refusal(&status, retry_after),
            // The words of the library rustls.
            Self::Broken(why) if why.contains("invalid peer certificate") => StoreProblem::Denied {
                why: format!("{why}; the CA that we were given did not sign the server's certificate"),
            },
            Self::Nonsense(why) => StoreProblem::Nonsense { why },
            Self::Broken(why) => StoreProblem::Unavailable { why, retry_after: None },
        }
    }
}

/// What a refusal means that the server gave as an answer or inside a watch.
pub(super) fn refusal(status: &Status, retry_after: Option<Duration>) -> StoreProblem {
    let said = if status.message.is_empty() { &status.reason } else { &status.message };
    let mut why: String = said.trim().chars().take(500).collect();
    if why.is_empty() {
        why = format!("the server answers {}", status.code);
    }
    let asked = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    let asked = (asked > 0).then(|| Duration::from_secs(asked.into()));
    match status.code {
        401 => StoreProblem::Denied {
            why: format!("{why}; the server does not take our token or certificate: renew it"),
        },
        403 => StoreProblem::Denied {
            why: format!("{why}; apply the role of deploy/kubernetes, and write as the node that this is"),
        },
        404 if names_an_object(status) => StoreProblem::Nonsense { why },
        404 => StoreProblem::Nonsense { why: NO_SUCH_KIND.into() },
        409 => StoreProblem::Conflict { why },
        410 => StoreProblem::Compacted,
        429 | 500..=599 => StoreProblem::Unavailable { why, retry_after: asked.or(retry_after) },
        code => StoreProblem::Nonsense { why: format!("{why} ({code})") },
    }
}

/// Whether a refusal is about one object of a kind that exists. The server names the object then.
fn names_an_object(status: &Status) -> bool {
    status.details.as_ref().is_some_and(|details| !details.name.is_empty())
}

impl Connected {
    fn operation(&self, what: &str) -> String {
        format!("{what} at {}", self.url)
    }

    async fn ask(&self, path: &str, call: &Call<'_>) -> Result<Vec<u8>, Failure> {
        let asked = async { whole(self.send(path, call).await?).await };
        timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(Failure::late()))
    }

    async fn open(&self, path: &str, call: &Call<'_>) -> Result<Body, Failure> {
        timeout(ANSWER, self.send(path, call)).await.unwrap_or_else(|_| Err(Failure::late()))
    }

    /// The body of an answer that is no refusal.
    async fn send(&self, path: &str, call: &Call<'_>) -> Result<Body, Failure> {
        let api = Request::new(path);
        let request = match call {
            Call::List(params) => api.list(params),
            Call::ListMetadata(params) => api.list_metadata(params),
            Call::Watch(params, after) => api.watch(params, &after.to_string()),
            Call::WatchMetadata(params, after) => api.watch_metadata(params, &after.to_string()),
            Call::Get(name) => api.get(name, &GetParams::default()),
            Call::Create(object) => api.create(&PostParams::default(), object.to_string().into_bytes()),
            Call::Replace(name, object) => {
                api.replace(name, &PostParams::default(), object.to_string().into_bytes())
            }
            Call::Merge(name, patch) => api.patch(name, &PatchParams::default(), &Patch::Merge(patch)),
            Call::Delete(name) => api.delete(name, &DeleteParams::background()),
        };
        let request = request.map_err(|error| Failure::broken(&error))?;
        let response =
            self.client.send(request.map(Body::from)).await.map_err(|error| Failure::broken(&error))?;
        let (code, retry_after) =
            (response.status().as_u16(), seconds(response.headers().get("retry-after")));
        if code < 400 {
            return Ok(response.into_body());
        }
        Err(refused(code, &whole(response.into_body()).await?, retry_after))
    }
}

/// A list of one object.
fn first() -> ListParams {
    ListParams { limit: Some(1), ..ListParams::default() }
}

async fn whole(body: Body) -> Result<Vec<u8>, Failure> {
    let body = Limited::new(body, ANSWER_BYTES).collect().await;
    Ok(body.map_err(|error| Failure::broken(error.as_ref()))?.to_bytes().into())
}

/// A refusal. Its body is a `Status`, or text of a proxy in front of the server, or of the server's own queues.
fn refused(code: u16, body: &[u8], retry_after: Option<Duration>) -> Failure {
    let status = serde_json::from_slice::<Status>(body).ok().filter(|status| !status.is_success());
    let mut status = status.unwrap_or_else(|| Status::failure(&String::from_utf8_lossy(body), ""));
    status.code = code;
    Failure::Refused { status: Box::new(status), retry_after }
}

/// The header `Retry-After`, where it is a number of seconds (RFC 9110, 10.2.3); an hour at most.
fn seconds(value: Option<impl AsRef<[u8]>>) -> Option<Duration> {
    let seconds: u64 = std::str::from_utf8(value?.as_ref()).ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(3600)))
}

fn json(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::Nonsense(format!("the answer is not JSON ({error})")))
}
