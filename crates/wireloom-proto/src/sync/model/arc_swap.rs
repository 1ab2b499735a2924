//! Pointers that are swapped.
//!
//! A modelled one keeps every pointer that it ever held, and an atomic says which of them is the current one. A load
//! acquires and a store acquires and releases, which is the least that arc-swap promises. What is not modelled is that
//! a pointer is dropped when nobody holds it any more: that is arc-swap's own concern.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use arc_swap::RefCnt;
use loom::sync::atomic::AtomicUsize;

use super::atomic::Modelled;
use super::is_running;

pub(crate) type ArcSwap<T> = ArcSwapAny<Arc<T>>;
pub(crate) type ArcSwapOption<T> = ArcSwapAny<Option<Arc<T>>>;

pub(crate) enum ArcSwapAny<P: RefCnt> {
    Real(arc_swap::ArcSwapAny<P>),
    Modelled(Box<Pointers<P>>),
}

pub(crate) struct Pointers<P> {
    all: std::sync::Mutex<Vec<P>>,
    current: Modelled<AtomicUsize>,
}

/// A pointer that was loaded.
pub enum Guard<P: RefCnt> {
    /// With arc-swap.
    Real(arc_swap::Guard<P>),
    /// Of a model.
    Modelled(P),
}

impl<P: RefCnt> ArcSwapAny<P> {
    pub(crate) fn new(pointer: P) -> Self {
        if is_running() {
            let all = std::sync::Mutex::new(vec![pointer]);
            Self::Modelled(Box::new(Pointers { all, current: Modelled::new(AtomicUsize::new(0)) }))
        } else {
            Self::Real(arc_swap::ArcSwapAny::new(pointer))
        }
    }

    pub(crate) fn load(&self) -> Guard<P> {
        match self {
            Self::Real(real) => Guard::Real(real.load()),
            Self::Modelled(pointers) => Guard::Modelled(pointers.load()),
        }
    }

    pub(crate) fn load_full(&self) -> P {
        match self {
            Self::Real(real) => real.load_full(),
            Self::Modelled(pointers) => pointers.load(),
        }
    }

    pub(crate) fn store(&self, pointer: P) {
        match self {
            Self::Real(real) => real.store(pointer),
            Self::Modelled(pointers) => {
                let new = pointers.add(pointer);
                pointers.current.at().swap(new, Ordering::AcqRel);
            }
        }
    }
}

impl<T> ArcSwapOption<T> {
    pub(crate) fn empty() -> Self {
        Self::new(None)
    }

    /// Stores `new` if the pointer is still `current`.
    pub(crate) fn compare_and_swap(&self, current: &Option<Arc<T>>, new: Option<Arc<T>>) {
        match self {
            Self::Real(real) => drop(real.compare_and_swap(current, new)),
            Self::Modelled(pointers) => {
                let new = pointers.add(new);
                let is_current = |at| RefCnt::as_ptr(&pointers.get(at)) == RefCnt::as_ptr(current);
                let _ = pointers
                    .current
                    .at()
                    .fetch_update(Ordering::AcqRel, Ordering::Acquire, |at| is_current(at).then_some(new));
            }
        }
    }
}

impl<P: RefCnt> Pointers<P> {
    fn load(&self) -> P {
        self.get(self.current.at().load(Ordering::Acquire))
    }

    fn get(&self, at: usize) -> P {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)[at].clone()
    }

    fn add(&self, pointer: P) -> usize {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(pointer);
        all.len() - 1
    }
}

impl<T: Default> Default for ArcSwap<T> {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl<P: RefCnt> fmt::Debug for ArcSwapAny<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArcSwapAny").finish_non_exhaustive()
    }
}

impl<P: RefCnt> Guard<P> {
    pub(crate) fn from_inner(pointer: P) -> Self {
        Self::Modelled(pointer)
    }
}

impl<P: RefCnt> Deref for Guard<P> {
    type Target = P;

    fn deref(&self) -> &P {
        match self {
            Self::Real(real) => real,
            Self::Modelled(pointer) => pointer,
        }
    }
}
