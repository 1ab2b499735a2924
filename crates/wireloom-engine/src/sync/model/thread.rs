//! Threads.

use std::io;
pub(crate) use std::thread::Result;

use super::is_running;

/// Makes threads.
#[derive(Default)]
pub(crate) struct Builder {
    name: String,
}

/// A thread that was started.
pub(crate) enum JoinHandle<T> {
    Real(std::thread::JoinHandle<T>),
    Modelled(loom::thread::JoinHandle<T>),
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn name(self, name: String) -> Self {
        Self { name }
    }

    pub(crate) fn spawn<T: Send + 'static>(
        self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        if is_running() {
            Ok(JoinHandle::Modelled(loom::thread::spawn(run)))
        } else {
            std::thread::Builder::new().name(self.name).spawn(run).map(JoinHandle::Real)
        }
    }
}

impl<T> JoinHandle<T> {
    pub(crate) fn is_finished(&self) -> bool {
        match self {
            Self::Real(thread) => thread.is_finished(),
            Self::Modelled(_) => unreachable!("a model joins its threads"),
        }
    }

    pub(crate) fn join(self) -> Result<T> {
        match self {
            Self::Real(thread) => thread.join(),
            Self::Modelled(thread) => thread.join(),
        }
    }
}
