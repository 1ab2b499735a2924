//! The lines of an answer that never ends.

use std::time::Duration;

use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::timeout;

/// How long a line may be. Etcd stores no object above 1.5 MiB, and JSON makes it at most a few times longer.
const LINE: usize = 16 << 20;

/// The lines of a watch, as they come.
pub(super) struct Lines {
    body: Body,
    /// What has been received, from `start` on.
    received: Vec<u8>,
    start: usize,
    /// From here on nobody has looked for the end of a line.
    unread: usize,
    silence: Duration,
}

impl Lines {
    /// Lines of a body that must not be silent for longer than this.
    pub(super) fn new(body: Body, silence: Duration) -> Self {
        Self { body, received: Vec::new(), start: 0, unread: 0, silence }
    }

    /// The next line without its end, or why there is none; nothing when the server has ended the answer.
    pub(super) async fn next(&mut self) -> Option<Result<Vec<u8>, String>> {
        loop {
            while let Some(length) = self.received[self.unread..].iter().position(|&byte| byte == b'\n') {
                let end = self.unread + length;
                let line = self.received[self.start..end].to_vec();
                (self.start, self.unread) = (end + 1, end + 1);
                if !line.iter().all(u8::is_ascii_whitespace) {
                    return Some(Ok(line));
                }
            }
            self.received.drain(..self.start);
            (self.start, self.unread) = (0, self.received.len());
            if self.received.len() > LINE {
                return Some(Err(format!("a line is longer than {} MiB", LINE >> 20)));
            }
            match timeout(self.silence, self.body.frame()).await {
                Ok(Some(Ok(frame))) => self.received.extend(frame.data_ref().into_iter().flatten()),
                Ok(Some(Err(error))) => return Some(Err(super::credentials::chain(&error))),
                // What is left is half a line of a connection that was cut. It comes again with the next watch.
                Ok(None) => return None,
                Err(_) => return Some(Err(format!("nothing was said for {} s", self.silence.as_secs()))),
            }
        }
    }
}
