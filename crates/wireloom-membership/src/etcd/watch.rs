//! The changes of a mesh as they happen.
//!
//! A watch says nothing while nothing changes, and a member that hangs says nothing either. So the member is asked from
//! time to time how far the watch is: that shows the follower that it is alive, and keeps the version from which the
//! next watch begins from being compacted.

use std::{collections::VecDeque, time::Duration};

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use futures::{StreamExt as _, stream};
use tokio::time::timeout;

use super::{
    client::{Client, Connection},
    entry::{is_readable, name, object},
    layout,
    problem::{Failure, nonsense},
};
use crate::store::{Change, Changes, StoreError, StoreProblem, Version};

/// How long nothing may come before the member is asked how far the watch is.
const QUIET: Duration = Duration::from_secs(15);

/// How many questions in a row may stay without an answer. A member does not answer while the watch catches up, but
/// then there are changes.
const UNANSWERED: u32 = 3;

/// A watch that has begun.
struct Watching {
    client: Client,
    connection: Connection,
    stream: WatchStream,
    prefix: String,
    /// What has come and was not yet handed on.
    waiting: VecDeque<Change>,
    /// The newest version that has come.
    reached: u64,
    unanswered: u32,
    is_over: bool,
}

/// Begins to watch all objects with this prefix, from after this version on.
pub(super) async fn begin(client: Client, prefix: String, after: Version) -> Result<Changes, StoreError> {
    let start = |connection: Connection| {
        let prefix = prefix.clone();
        async move {
            let options = WatchOptions::new()
                .with_range(layout::end(&prefix))
                .with_start_revision(after.0.saturating_add(1).cast_signed())
                .with_progress_notify();
            let mut etcd = connection.etcd.clone();
            let mut stream = etcd.watch(prefix, Some(options)).await?;
            let created = stream.message().await?.ok_or_else(closed)?;
            let here = created.header().map_or(0, |header| header.revision().unsigned_abs());
            if let Some(failure) = ended(&created) {
                return Err(failure);
            }
            if here < after.0 {
                // It has not heard of what another has told us; or all of them have gone back in time, which the next
                // look at the position will show.
                return Err(Failure::Member(format!("it is at revision {here}, before {}", after.0)));
            }
            Ok((connection, stream))
        }
    };
    let (connection, stream) = client.request(&operation(&prefix), start).await?;
    let watching = Watching {
        client,
        connection,
        stream,
        prefix,
        waiting: VecDeque::new(),
        reached: after.0,
        unanswered: 0,
        is_over: false,
    };
    Ok(stream::unfold(watching, |mut watching| async { Some((watching.next().await?, watching)) }).boxed())
}

impl Watching {
    /// The next change; `None` after an error.
    async fn next(&mut self) -> Option<Result<Change, StoreError>> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Some(Ok(change));
            }
            if self.is_over {
                return None;
            }
            if let Err(failure) = self.hear().await {
                self.is_over = true;
                return Some(Err(self.give_up(failure)));
            }
        }
    }

    /// Waits for the member to say something, or asks it to.
    async fn hear(&mut self) -> Result<(), Failure> {
        let Ok(message) = timeout(QUIET, self.stream.message()).await else {
            if self.unanswered == UNANSWERED {
                return Err(Failure::Member(format!(
                    "no answer within {} s",
                    (QUIET * UNANSWERED).as_secs()
                )));
            }
            self.unanswered += 1;
            return Ok(self.stream.request_progress().await?);
        };
        let message = message?.ok_or_else(closed)?;
        self.unanswered = 0;
        if let Some(failure) = ended(&message) {
            return Err(failure);
        }
        if message.events().is_empty() {
            self.progress(&message);
            return Ok(());
        }
        for event in message.events() {
            let entry = event.kv().ok_or_else(|| nonsense("an event without a key; look at its log"))?;
            let version = entry.mod_revision().unsigned_abs();
            self.reached = self.reached.max(version);
            let name = name(&self.prefix, entry);
            if !is_readable(&name) {
                self.waiting.push_back(Change::Progress(Version(self.reached)));
                continue;
            }
            self.waiting.push_back(match event.event_type() {
                EventType::Put => Change::Put(name, object(entry), Version(version)),
                EventType::Delete => Change::Gone(name, Version(version)),
            });
        }
        Ok(())
    }

    fn progress(&mut self, message: &WatchResponse) {
        // The answer to a question has no watch's id (`clientv3.InvalidWatchID`). What a member says unasked about this
        // watch is in order in every version.
        if let Some(header) = message.header()
            && (self.connection.progress_is_ordered || message.watch_id() >= 0)
        {
            self.reached = self.reached.max(header.revision().unsigned_abs());
        }
        self.waiting.push_back(Change::Progress(Version(self.reached)));
    }

    fn give_up(&self, failure: Failure) -> StoreError {
        self.client.judge(&self.connection, &failure);
        let endpoint = &self.connection.endpoint;
        let problem = match failure {
            Failure::Final(problem) => problem,
            // There are too many changes at once, or huge ones. List again.
            Failure::TooLong => StoreProblem::Compacted,
            Failure::Member(why) => {
                StoreProblem::Unavailable { why: format!("{endpoint}: {why}"), retry_after: None }
            }
            Failure::Token => StoreProblem::Unavailable {
                why: format!("{endpoint}: users or roles have changed"),
                retry_after: None,
            },
        };
        StoreError { operation: format!("{} in etcd", operation(&self.prefix)), problem }
    }
}

/// Why the member has ended the watch, if it has.
fn ended(message: &WatchResponse) -> Option<Failure> {
    if message.compact_revision() > 0 {
        return Some(Failure::Final(StoreProblem::Compacted));
    }
    message.canceled().then(|| Failure::of_cancel(message.cancel_reason()))
}

fn closed() -> Failure {
    Failure::Member("it has ended the watch".into())
}

fn operation(prefix: &str) -> String {
    format!("watch {prefix}")
}
