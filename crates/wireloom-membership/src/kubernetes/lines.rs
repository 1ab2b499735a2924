//! The lines of an answer that never ends.

use http_body_util::BodyExt;
use kube::client::Body;

use super::credentials::chain;

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
}

impl Lines {
    pub(super) fn new(body: Body) -> Self {
        Self { body, received: Vec::new(), start: 0, unread: 0 }
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
            match self.body.frame().await {
                Some(Ok(frame)) => self.received.extend(frame.data_ref().into_iter().flatten()),
                Some(Err(error)) => return Some(Err(chain(&error))),
                // What is left is half a line of a connection that was cut. It comes again with the next watch.
                None => return None,
            }
        }
    }
}
