//! Channels. They have those of crossbeam's methods that are used.

use std::{collections::VecDeque, fmt, iter, sync::Arc, thread};

use crossbeam_channel::{RecvError, SendError, TryRecvError, TrySendError};
use loom::sync::{Condvar, Mutex, MutexGuard};

use super::is_running;

/// The end that sends.
pub(crate) enum Sender<T> {
    Real(crossbeam_channel::Sender<T>),
    Modelled(ModelledSender<T>),
}

/// The end that receives.
pub(crate) enum Receiver<T> {
    Real(crossbeam_channel::Receiver<T>),
    Modelled(ModelledReceiver<T>),
}

/// A channel with room for `capacity` messages.
pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    channel(capacity, || crossbeam_channel::bounded(capacity))
}

/// A channel with room for any number of messages.
pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    channel(usize::MAX, crossbeam_channel::unbounded)
}

fn channel<T>(
    capacity: usize,
    real: impl FnOnce() -> (crossbeam_channel::Sender<T>, crossbeam_channel::Receiver<T>),
) -> (Sender<T>, Receiver<T>) {
    if is_running() {
        let state = State { messages: VecDeque::new(), capacity, senders: 1, receivers: 1 };
        let channel = Arc::new(Channel { state: Mutex::new(state), changed: Condvar::new() });
        let sender = ModelledSender(Arc::clone(&channel));
        (Sender::Modelled(sender), Receiver::Modelled(ModelledReceiver(channel)))
    } else {
        let (sender, receiver) = real();
        (Sender::Real(sender), Receiver::Real(receiver))
    }
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
        match self {
            Self::Real(sender) => sender.send(message),
            Self::Modelled(ModelledSender(channel)) => channel.send(message),
        }
    }

    pub(crate) fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        match self {
            Self::Real(sender) => sender.try_send(message),
            Self::Modelled(ModelledSender(channel)) => channel.try_send(message),
        }
    }
}

impl<T> Receiver<T> {
    pub(crate) fn recv(&self) -> Result<T, RecvError> {
        match self {
            Self::Real(receiver) => receiver.recv(),
            Self::Modelled(ModelledReceiver(channel)) => channel.recv(),
        }
    }

    pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
        match self {
            Self::Real(receiver) => receiver.try_recv(),
            Self::Modelled(ModelledReceiver(channel)) => channel.lock().receive(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Real(receiver) => receiver.is_empty(),
            Self::Modelled(ModelledReceiver(channel)) => channel.lock().messages.is_empty(),
        }
    }

    pub(crate) fn try_iter(&self) -> impl Iterator<Item = T> {
        iter::from_fn(|| self.try_recv().ok())
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = T> {
        iter::from_fn(move || self.recv().ok())
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Real(sender) => Self::Real(sender.clone()),
            Self::Modelled(ModelledSender(channel)) => {
                channel.lock().senders += 1;
                Self::Modelled(ModelledSender(Arc::clone(channel)))
            }
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Real(receiver) => Self::Real(receiver.clone()),
            Self::Modelled(ModelledReceiver(channel)) => {
                channel.lock().receivers += 1;
                Self::Modelled(ModelledReceiver(Arc::clone(channel)))
            }
        }
    }
}

pub(crate) struct ModelledSender<T>(Arc<Channel<T>>);

pub(crate) struct ModelledReceiver<T>(Arc<Channel<T>>);

impl<T> Drop for ModelledSender<T> {
    fn drop(&mut self) {
        self.0.leave(|state| state.senders -= 1);
    }
}

impl<T> Drop for ModelledReceiver<T> {
    fn drop(&mut self) {
        self.0.leave(|state| state.receivers -= 1);
    }
}

struct Channel<T> {
    state: Mutex<State<T>>,
    /// A message came or went, or a channel's end is gone.
    changed: Condvar,
}

struct State<T> {
    messages: VecDeque<T>,
    capacity: usize,
    senders: usize,
    receivers: usize,
}

impl<T> Channel<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("loom's mutexes are never poisoned")
    }

    /// Takes note that an end is gone, unless the model has failed and loom is gone, too.
    fn leave(&self, leave: impl FnOnce(&mut State<T>)) {
        if !thread::panicking() {
            leave(&mut self.lock());
            self.changed.notify_all();
        }
    }

    fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        self.lock().send(message)?;
        self.changed.notify_all();
        Ok(())
    }

    fn send(&self, mut message: T) -> Result<(), SendError<T>> {
        let mut state = self.lock();
        loop {
            match state.send(message) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(message)) => return Err(SendError(message)),
                Err(TrySendError::Full(back)) => message = back,
            }
            state = self.changed.wait(state).expect("as above");
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn recv(&self) -> Result<T, RecvError> {
        let mut state = self.lock();
        let message = loop {
            match state.receive() {
                Ok(message) => break message,
                Err(TryRecvError::Disconnected) => return Err(RecvError),
                Err(TryRecvError::Empty) => state = self.changed.wait(state).expect("as above"),
            }
        };
        drop(state);
        self.changed.notify_all();
        Ok(message)
    }
}

impl<T> State<T> {
    fn send(&mut self, message: T) -> Result<(), TrySendError<T>> {
        if self.receivers == 0 {
            return Err(TrySendError::Disconnected(message));
        }
        if self.messages.len() == self.capacity {
            return Err(TrySendError::Full(message));
        }
        self.messages.push_back(message);
        Ok(())
    }

    fn receive(&mut self) -> Result<T, TryRecvError> {
        match self.messages.pop_front() {
            Some(message) => Ok(message),
            None if self.senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }
}
