//! A connection to one member of the cluster at a time, and to the next one when it fails.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use super::{
    Settings, credentials,
    problem::{Failure, denied, is_refusal},
};
use crate::store::{StoreError, StoreProblem};

/// How long a member may take to say who it is, once we can connect to it. It asks nobody.
const GREETING: Duration = Duration::from_secs(2);

/// How long a request may take: etcd itself gives up after 7 s (5 s, and twice the time of an election).
const REQUEST: Duration = Duration::from_secs(8);

/// The client of a cluster. A clone shares its connection.
#[derive(Clone)]
pub(super) struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// The endpoint to try next.
    next: usize,
    /// How many connections there have been.
    made: u64,
}

/// A connection to a member.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) etcd: etcd_client::Client,
    pub(super) endpoint: String,
    /// Whether the answer to a request for progress comes after all events up to its revision. Versions before 3.4.25
    /// and 3.5.8 answer at once (etcd's issue 15220).
    pub(super) progress_is_ordered: bool,
    /// Tells it from others.
    number: u64,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Self {
        Self { shared: Arc::new(Shared { settings, state: Mutex::default() }) }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Makes a request, of each member in turn until one answers. `what` says what it does, in an infinitive.
    pub(super) async fn request<T, F, Answer>(&self, what: &str, call: F) -> Result<T, StoreError>
    where
        F: Fn(Connection) -> Answer,
        Answer: Future<Output = Result<T, Failure>>,
    {
        let failed = |problem| StoreError { operation: format!("{what} in etcd"), problem };
        let mut silent = Vec::new();
        let mut tokens = 0;
        while silent.len() < self.shared.settings.endpoints.len().max(1) {
            let (endpoint, failure) = match self.connection().await {
                Ok(connection) => {
                    let answer = timeout(REQUEST, call(connection.clone())).await;
                    let late = || Err(Failure::Member(format!("no answer within {} s", REQUEST.as_secs())));
                    match answer.unwrap_or_else(|_| late()) {
                        Ok(answer) => return Ok(answer),
                        Err(failure) => {
                            self.judge(&connection, &failure);
                            (connection.endpoint, failure)
                        }
                    }
                }
                Err(refused) => refused,
            };
            match failure {
                Failure::Final(problem) => return Err(failed(at(&endpoint, problem))),
                Failure::TooLong => {
                    let why =
                        format!("{endpoint}: the answer is longer than 4 MiB; look for huge values there");
                    return Err(failed(StoreProblem::Nonsense { why }));
                }
                Failure::Token if tokens == 0 => tokens += 1,
                Failure::Token => {
                    let why = format!(
                        "{endpoint}: it does not accept the token that it has just given; look at its log"
                    );
                    return Err(failed(StoreProblem::Denied { why }));
                }
                Failure::Member(why) => silent.push(format!("{endpoint}: {why}")),
            }
        }
        Err(failed(StoreProblem::Unavailable { why: silent.join("; "), retry_after: None }))
    }

    /// Makes sure that a connection which has failed so is not used again, and that the next one is to another member
    /// if this one is to blame.
    pub(super) fn judge(&self, connection: &Connection, failure: &Failure) {
        let step = match failure {
            Failure::Member(_) => 1,
            Failure::Token => 0,
            Failure::TooLong | Failure::Final(_) => return,
        };
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.connection.as_ref().is_some_and(|current| current.number == connection.number) {
            state.connection = None;
            state.next += step;
        }
    }

    /// The connection, or a new one to the member whose turn it is. A failure passes the turn on.
    async fn connection(&self) -> Result<Connection, (String, Failure)> {
        let (endpoint, number) = {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(connection) = &state.connection {
                return Ok(connection.clone());
            }
            let endpoints = &self.shared.settings.endpoints;
            let Some(endpoint) = endpoints.get(state.next % endpoints.len().max(1)) else {
                return Err(("no member".into(), denied("there are no endpoints; name them in endpoints")));
            };
            state.made += 1;
            (endpoint.clone(), state.made)
        };
        let opened = open(&self.shared.settings, &endpoint, number).await;
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        match opened {
            Ok(connection) => {
                state.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(failure) => {
                state.next += 1;
                Err((endpoint, failure))
            }
        }
    }
}

async fn open(settings: &Settings, endpoint: &str, number: u64) -> Result<Connection, Failure> {
    let options = credentials::options(settings, endpoint).map_err(denied)?;
    let greet = async {
        let mut etcd = etcd_client::Client::connect([endpoint], Some(options)).await?;
        let progress_is_ordered = match etcd.status().await {
            Ok(status) if status.leader() == 0 => return Err(Failure::Member("it knows no leader".into())),
            Ok(status) => orders_progress(status.version()),
            // It is there. Whether we may do what we are here for will be seen.
            Err(error) if is_refusal(&error) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(Connection { etcd, endpoint: endpoint.to_owned(), progress_is_ordered, number })
    };
    let late = || Err(Failure::Member(format!("no answer within {} s", GREETING.as_secs())));
    match timeout(GREETING, greet).await.unwrap_or_else(|_| late()) {
        // A member that does not accept our certificate hangs up. Its reason comes after the handshake (RFC 8446,
        // section 4.4.2.4), and is lost if we were writing meanwhile.
        Err(Failure::Member(why)) if endpoint.starts_with("https://") && is_hang_up(&why) => {
            let fix =
                if settings.cert_file.is_some() { "check" } else { "it wants a certificate of ours: set" };
            Err(Failure::Member(format!("{why}; if that does not pass, {fix} cert_file and key_file")))
        }
        opened => opened,
    }
}

fn is_hang_up(why: &str) -> bool {
    let why = why.to_ascii_lowercase();
    ["broken pipe", "connection reset", "connection closed", "unexpected eof"]
        .iter()
        .any(|words| why.contains(words))
}

/// Whether this version of etcd answers a request for progress after the events before it.
fn orders_progress(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (3, 4, patch) => patch >= 25,
        (3, 5, patch) => patch >= 8,
        (major, minor, _) => (major, minor) >= (3, 6),
    }
}

/// The problem, with the member that has it.
fn at(endpoint: &str, problem: StoreProblem) -> StoreProblem {
    let name = |why: String| format!("{endpoint}: {why}");
    match problem {
        StoreProblem::Unavailable { why, retry_after } => {
            StoreProblem::Unavailable { why: name(why), retry_after }
        }
        StoreProblem::Denied { why } => StoreProblem::Denied { why: name(why) },
        StoreProblem::Conflict { why } => StoreProblem::Conflict { why },
        StoreProblem::Nonsense { why } => StoreProblem::Nonsense { why: name(why) },
        StoreProblem::Compacted => StoreProblem::Compacted,
    }
}

#[cfg(test)]
mod tests {
    use super::orders_progress;

    #[test]
    fn progress_is_trusted_from_the_versions_on_that_order_it() {
        for (version, ordered) in [
            ("3.3.27", false),
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.7", false),
            ("3.5.21", true),
            ("3.6.16", true),
            ("3.7.0-rc.0", true),
            ("4.0.0", true),
            ("", false),
        ] {
            assert_eq!(orders_progress(version), ordered, "{version}");
        }
    }
}
